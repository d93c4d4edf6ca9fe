"""What a medium says about blocks out of sync: superblock, activity log and bitmap, decoded anew.

The format is that of docs/metadata.md; no code of the product is used. Decoded parts are remembered
by their bytes, because most of them do not change from one look to the next.
What this file must not know: nodes, time, whether anything runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import google_crc32c

from tests.simulation.medium import PAGE, Medium
from tests.tools.metadata_v08_areas import (
    AL_BODY,
    AL_CONTEXT,
    AL_FREE,
    AL_HEAD,
    AL_MAGIC,
    AL_NO_SLOT,
    AL_TYPE_UPDATE,
    AL_UPDATES,
    BITS_PER_EXTENT,
    SUPERBLOCK,
    UUID_JUST_CREATED,
    ceil_div,
    serial_distance,
)

PRIMARY_IND, FULL_SYNC = 1 << 1, 1 << 3


class Superblock(NamedTuple):
    """Of the fields only those that matter here. Offsets are in bytes from the medium's start."""

    size_sectors: int
    current: int
    flags: int
    al_offset: int
    al_blocks: int
    bm_offset: int

    @property
    def blocks(self) -> int:
        return ceil_div(self.size_sectors, 8)


@lru_cache(4096)
def superblock(raw: bytes, offset: int) -> Superblock:
    fields = SUPERBLOCK.unpack_from(raw)
    size, current, flags = fields[0], fields[1], fields[7]
    al_offset, bm_offset, stripes, stripe_blocks = fields[10], fields[12], fields[15], fields[16]
    return Superblock(
        size,
        current,
        flags,
        offset + 512 * struct.unpack(">i", struct.pack(">I", al_offset & 0xFFFFFFFF))[0],
        max(1, stripes) * max(8, stripe_blocks),
        offset + 512 * struct.unpack(">i", struct.pack(">I", bm_offset & 0xFFFFFFFF))[0],
    )


@lru_cache(8192)
def transaction(raw: bytes) -> tuple[int, dict[int, int]] | None:
    """(number, extents by slot) of one block of the ring; None if it holds no update."""
    magic, number, checksum, kind, updates, size, start = AL_HEAD.unpack_from(raw)
    if magic != AL_MAGIC or kind != AL_TYPE_UPDATE:
        return None
    data = raw[:8] + bytes(4) + raw[12:]
    if google_crc32c.extend(0xFFFFFFFF, data) ^ 0xFFFFFFFF != checksum:
        return None
    body = AL_BODY.unpack_from(raw, AL_HEAD.size)
    slots = {}
    for index, extent in enumerate(body[2 * AL_UPDATES : 2 * AL_UPDATES + AL_CONTEXT]):
        if start + index < size:
            slots[start + index] = extent
    for slot, extent in zip(body[:updates], body[AL_UPDATES : AL_UPDATES + updates], strict=True):
        if slot != AL_NO_SLOT:
            slots[slot] = extent
    return number, slots


@lru_cache(8192)
def active_blocks(ring: tuple[bytes, ...]) -> int:
    """The blocks, as a mask, of all extents that the activity log names."""
    found = [t for t in map(transaction, ring) if t is not None]
    if not found:
        return 0
    newest = found[0][0]
    for number, _slots in found:
        if serial_distance(number, newest) > 0:
            newest = number
    slots: dict[int, int] = {}
    for _number, changes in sorted(found, key=lambda t: serial_distance(t[0], newest)):
        slots |= changes
    mask = 0
    for extent in set(slots.values()) - {AL_FREE}:
        mask |= ((1 << BITS_PER_EXTENT) - 1) << extent * BITS_PER_EXTENT
    return mask


def marked(medium: Medium, superblock_at: int, page_at: Callable[[int], bytes]) -> int:
    """The blocks, as a mask, that the metadata lets a node take for out of sync when it starts.

    page_at: the medium's current or its stable pages.
    """
    head = superblock(page_at(superblock_at // PAGE), superblock_at)
    if head.current & ~1 in (0, UUID_JUST_CREATED):
        return -1  # also of a volume whose size is not known yet
    everything = (1 << head.blocks) - 1
    if head.flags & FULL_SYNC:
        return everything
    first = head.bm_offset // PAGE
    pages = range(first, first + ceil_div(head.blocks, 8 * PAGE))
    mask = int.from_bytes(b"".join(map(page_at, pages)), "little")
    if head.flags & PRIMARY_IND:
        first = head.al_offset // PAGE
        mask |= active_blocks(tuple(map(page_at, range(first, first + head.al_blocks))))
    return mask & everything


def marked_now(medium: Medium, superblock_at: int) -> int:
    """If the node's process ends here."""
    return marked(medium, superblock_at, medium.current_page)


def marked_at_worst(medium: Medium, superblock_at: int) -> int:
    """If it loses power here: what is on its way to the platter may have got there or not."""
    now = marked(medium, superblock_at, medium.current_page)
    return now & marked(medium, superblock_at, medium.stable_page)
