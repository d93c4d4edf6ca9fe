"""An attached backing disk with its metadata, and the steps that attach it.

Rules:
1. Metadata must be clean (its activity log applied) before it is attached; nothing is repaired here.
2. From the first superblock write on it is marked unclean, so that a crash is noticed.
3. Whole-bitmap changes are bracketed by the FULL_SYNC flag on stable storage.
What this file must not know: roles, peers, what the generations mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicator.engine.generations import UuidSet
from replicator.engine.meta_store import BitmapWriter, SuperblockWriter, read_bitmap
from replicator.engine.ports import Disk
from replicator.engine.words import errno_text
from replicator.errors import MetadataError, NoDiskError, ReplicatorError
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.layout import Geometry, Placement, bitmap_bits, sb_offset
from replicator.metadata.superblock import Flags, Superblock

BLOCK = 4096


@dataclass(slots=True)
class Store:
    """What belongs to one attached disk; it goes when the disk goes."""

    data: Disk
    meta: Disk
    geometry: Geometry
    superblock: Superblock
    uuids: UuidSet
    bitmap: Bitmap
    superblocks: SuperblockWriter
    bitmaps: BitmapWriter
    capacity_sectors: int
    """Largest volume that this disk and its metadata can hold."""


def attach(
    name: str,
    data: Disk,
    meta: Disk,
    placement: Placement,
    refresh: Callable[[Store], None],
    done: Callable[[Store | None, ReplicatorError | None], None],
) -> None:
    """Read superblock and bitmap through the disks; done(store, None) or (None, the error).

    refresh(store) is called before every superblock write to bring flags and UUIDs up to date.
    """

    def superblock_read(errno: int, block: bytes) -> None:
        if errno:
            done(None, NoDiskError(f"{name}: cannot read the superblock: {errno_text(errno)}"))
            return
        try:
            store = _build(name, data, meta, placement, Superblock.decode(block), refresh)
        except ReplicatorError as error:
            done(None, error)
            return
        read_bitmap(meta, store.geometry, store.bitmap, lambda errno: bitmap_read(store, errno))

    def bitmap_read(store: Store, errno: int) -> None:
        if errno:
            done(None, NoDiskError(f"{name}: cannot read the bitmap: {errno_text(errno)}"))
            return
        if store.superblock.flags & Flags.FULL_SYNC:
            store.bitmap.set_all()
        done(store, None)

    try:
        offset = sb_offset(meta.size, placement)
    except ReplicatorError as error:
        done(None, error)
        return
    meta.read(offset, BLOCK, superblock_read)


def _build(
    name: str,
    data: Disk,
    meta: Disk,
    placement: Placement,
    superblock: Superblock,
    refresh: Callable[[Store], None],
) -> Store:
    """Check everything that can be checked before the bitmap is read. Raises MetadataError."""
    geometry = superblock.geometry(meta.size, placement)
    superblock.validate(geometry)
    if superblock.needs_apply_al:
        raise MetadataError(
            f"{name}: the metadata is unclean: its activity log has not been applied",
            hint="replicator apply-al RESOURCE/VOLUME, then attach again (up does both)",
        )
    capacity = geometry.max_data_sectors
    if placement.external:
        capacity = min(capacity, data.size >> 9)
    if superblock.la_size_sect > capacity:
        raise MetadataError(
            f"{name}: la-size-sect: the agreed size is {superblock.la_size_sect} sectors, "
            f"but only {capacity} are usable: the disk has shrunk",
            hint="give the disk its old size back, or start anew with create-md",
        )
    bitmap = Bitmap(bitmap_bits(superblock.la_size_sect))
    uuids = UuidSet(superblock.current, superblock.bitmap, superblock.history0, superblock.history1)
    superblock.clean = False
    superblock.flags &= ~Flags.AL_CLEAN
    store = Store(
        data,
        meta,
        geometry,
        superblock,
        uuids,
        bitmap,
        SuperblockWriter(meta, geometry, superblock, lambda: refresh(store)),
        BitmapWriter(meta, geometry, bitmap),
        capacity,
    )
    return store


def write_full_bitmap(store: Store, then: Callable[[int], None]) -> None:
    """All bits are set: make that durable, whatever instant a crash may choose; then(errno)."""

    def marked(errno: int) -> None:
        if errno:
            then(errno)
        else:
            store.bitmaps.write_all(written)

    def written(errno: int) -> None:
        if errno:
            then(errno)
            return
        store.superblock.flags &= ~Flags.FULL_SYNC
        store.superblocks.write(then)

    store.bitmap.set_all()
    store.superblock.flags |= Flags.FULL_SYNC
    store.superblocks.write(marked)
