"""What a crashed node owes its peer: the activity log turned into bitmap bits.

Rules:
1. Decides only; the caller reads before and writes after, bitmap first, superblock last.
2. PRIMARY_IND is left set: attach learns from it that this was a Primary that crashed.
What this file must not know: devices, the running engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from replicator.errors import MetadataError
from replicator.metadata.activity_log import BITS_PER_EXTENT, Replay, replay
from replicator.metadata.layout import (
    DEFAULT_AL_STRIPE_SIZE_4K,
    DEFAULT_AL_STRIPES,
    Geometry,
    bitmap_bytes_used,
)
from replicator.metadata.superblock import Flags, Superblock

EXTENT_BM_BYTES = BITS_PER_EXTENT // 8
_FULL_EXTENT = b"\xff" * EXTENT_BM_BYTES


@dataclass(slots=True)
class Applied:
    """What to write, and what to say about it."""

    superblock: Superblock
    bitmap_writes: list[tuple[int, bytes]] = field(default_factory=list)
    """(byte offset in the bitmap, bytes)."""
    initialize_ring: bool = False
    extents: list[int] = field(default_factory=list)
    new_bits: int = 0
    notes: list[str] = field(default_factory=list)
    """Lines for people."""


def apply_al(
    superblock: Superblock,
    geometry: Geometry,
    ring: Iterable[bytes],
    read_bitmap: Callable[[int, int], bytes],
) -> Applied:
    """Work out what applying the activity log changes.

    ring: all blocks in order; read_bitmap(offset, length): bytes of the bitmap.
    Raises MetadataError if the log is needed but too damaged to be used.
    """
    log = replay(ring)
    result = Applied(replace(superblock, clean=True, flags=superblock.flags | Flags.AL_CLEAN))
    _report_damage(log, result.notes)
    was_primary = bool(superblock.flags & Flags.PRIMARY_IND)
    if log.transactions:
        result.initialize_ring = True
        if was_primary:
            _mark_extents(log, superblock, read_bitmap, result)
    elif not log.usable:
        if was_primary and not _never_used(log, superblock):
            raise MetadataError(
                f"activity log at byte {geometry.al_offset}: {len(log.bad_blocks)} of"
                f" {geometry.al_blocks} blocks are damaged and no transaction is left, so it"
                " cannot tell which blocks this Primary was writing when it crashed",
                hint="if the peer has good data: create-md here and take a full resync from it",
            )
        result.initialize_ring = True
        result.notes.append("activity log unusable but not needed: initialized")
    return result


def _mark_extents(
    log: Replay,
    superblock: Superblock,
    read_bitmap: Callable[[int, int], bytes],
    result: Applied,
) -> None:
    end = bitmap_bytes_used(superblock.la_size_sect)
    for extent in sorted(log.active_extents):
        offset = extent * EXTENT_BM_BYTES
        if offset >= end:
            result.notes.append(f"extent {extent} lies behind the end of the bitmap: skipped")
            continue
        before = read_bitmap(offset, EXTENT_BM_BYTES)
        result.new_bits += BITS_PER_EXTENT - int.from_bytes(before, "little").bit_count()
        result.extents.append(extent)
        result.bitmap_writes.append((offset, _FULL_EXTENT))
    result.notes.append(
        f"activity log applied: {result.new_bits * 4} KB more marked as out of sync"
        f" ({len(result.extents)} extents of 4 MiB)"
    )


def _report_damage(log: Replay, notes: list[str]) -> None:
    for block, why in log.bad_blocks.items():
        notes.append(f"activity log block {block} skipped: {why}")
    if log.bad_slots:
        notes.append(f"activity log: {log.bad_slots} entries with impossible slot numbers skipped")


def _never_used(log: Replay, superblock: Superblock) -> bool:
    """Clean metadata whose default ring starts with blocks that are none: it was last used by an
    engine before 8.4, which kept its log there in another form. Nothing in it is owed to anybody."""
    return (
        superblock.clean
        and 0 in log.bad_blocks
        and 1 in log.bad_blocks
        and superblock.al_stripes == DEFAULT_AL_STRIPES
        and superblock.al_stripe_size_4k == DEFAULT_AL_STRIPE_SIZE_4K
    )
