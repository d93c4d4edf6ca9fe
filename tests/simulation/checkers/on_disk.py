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
    """Of what it says only what matters here."""

    current: int
    flags: int
    blocks: int
    log: range
    """The pages of the activity log."""
    bitmap: range


@lru_cache(4096)
def superblock(raw: bytes, offset: int) -> Superblock:
    fields = SUPERBLOCK.unpack_from(raw)
    size, current, flags = fields[0], fields[1], fields[7]
    al_offset, bm_offset, stripes, stripe_blocks = fields[10], fields[12], fields[15], fields[16]
    blocks = ceil_div(size, 8)
    first, bits = (_page(offset, sectors) for sectors in (al_offset, bm_offset))
    return Superblock(
        current,
        flags,
        blocks,
        range(first, first + max(1, stripes) * max(8, stripe_blocks)),
        range(bits, bits + ceil_div(blocks, 8 * PAGE)),
    )


def _page(offset: int, sectors: int) -> int:
    """The number of the page that is so many sectors, a signed number of 32 bits, behind `offset`."""
    signed: int = struct.unpack(">i", struct.pack(">I", sectors & 0xFFFFFFFF))[0]
    return (offset + 512 * signed) // PAGE


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


@lru_cache(4096)
def bitmap_of(raw: tuple[bytes, ...], blocks: int) -> int:
    return int.from_bytes(b"".join(raw), "little") & (1 << blocks) - 1


def marked(superblock_at: int, page_at: Callable[[int], bytes]) -> int:
    """The blocks, as a mask, that the metadata lets a node take for out of sync when it starts.

    page_at: a medium's current or its stable pages.
    """
    head = superblock(page_at(superblock_at // PAGE), superblock_at)
    if head.current & ~1 in (0, UUID_JUST_CREATED):
        return -1  # also of a volume whose size is not known yet
    if head.flags & FULL_SYNC:
        return (1 << head.blocks) - 1
    mask = bitmap_of(tuple(map(page_at, head.bitmap)), head.blocks)
    if head.flags & PRIMARY_IND:
        mask |= active_blocks(tuple(map(page_at, head.log))) & (1 << head.blocks) - 1
    return mask


def marked_now(medium: Medium, superblock_at: int) -> int:
    """If the node's process ends here."""
    return marked(superblock_at, medium.current_page)


def marked_at_worst(medium: Medium, superblock_at: int) -> int:
    """If it loses power here: what is on its way to the platter may have got there or not."""
    now = marked_now(medium, superblock_at)
    at = superblock_at // PAGE
    head = superblock(medium.current_page(at), superblock_at)
    if medium.all_stable((at, *head.bitmap, *head.log)):
        return now
    return now & marked(superblock_at, medium.stable_page)
