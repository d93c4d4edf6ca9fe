"""The activity log's blocks: what a transaction looks like, where it goes, how a ring is replayed.

A transaction says which slots held which extents before it (context, a window that moves on with
every transaction) and which slots change (updates), so any torn block can be done without.
What this file must not know: which extents are active and why (`replicator.engine.activity_log`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import google_crc32c

from replicator.errors import MetadataError
from replicator.metadata.layout import BLOCK

AL_FREE = 0xFFFFFFFF
"""In place of an extent number: the slot is free."""
MAX_UPDATES = 64
CONTEXT = 919
SLOTS_MAX = 65534
AL_EXTENTS_MIN = 67
EXTENT_BYTES = 4 << 20
BITS_PER_EXTENT = EXTENT_BYTES // BLOCK

_MAGIC = 0x69CB65A2
_UPDATE = 0x0000
_INITIALIZED = 0xFFFF
_NO_SLOT = 0xFFFF
_HEAD = struct.Struct(">IIIHHHH16x")
_BODY = struct.Struct(f">{MAX_UPDATES}H{MAX_UPDATES}I{CONTEXT}I")
_CRC_AT = slice(8, 12)
_NO_SLOTS = [_NO_SLOT] * MAX_UPDATES
_NO_EXTENTS = [AL_FREE] * CONTEXT


class Ring(Protocol):
    """What of a Geometry is needed to place a transaction."""

    @property
    def al_stripes(self) -> int: ...
    @property
    def al_stripe_size_4k(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Transaction:
    """updates: (slot, extent) pairs; context: extents of the slots from context_start on."""

    tr_number: int
    updates: tuple[tuple[int, int], ...]
    context_size: int
    context_start: int
    context: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Initialized:
    """A block that create-md or apply-al has emptied."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A block that was torn or never was one; `why` is for people."""

    why: str


Block = Transaction | Initialized | Bad


@dataclass(slots=True)
class Replay:
    """What a ring amounts to. Block numbers count from the start of the ring."""

    table: dict[int, int] = field(default_factory=dict)
    """Slot to extent after the newest transaction, free slots left out."""
    last_tr_number: int | None = None
    transactions: int = 0
    initialized: int = 0
    bad_blocks: dict[int, str] = field(default_factory=dict)
    bad_slots: int = 0
    """Slot numbers of 65534 and above, which no log can have; skipped."""

    @property
    def active_extents(self) -> set[int]:
        return set(self.table.values())

    @property
    def torn_first(self) -> bool:
        """Only block 0 is bad and all others are empty: a torn very first transaction."""
        return not self.transactions and list(self.bad_blocks) == [0] and self.initialized > 0

    @property
    def usable(self) -> bool:
        """False: too much is damaged to say which extents were active."""
        return bool(self.transactions) or not self.bad_blocks or self.torn_first


def raw_crc32c(data: bytes) -> int:
    """CRC-32C polynomial, initial value 0, no final inversion."""
    finished: int = google_crc32c.extend(0xFFFFFFFF, data)
    return finished ^ 0xFFFFFFFF


def max_extents(al_blocks: int) -> int:
    """The most slots (`al-extents`) that a ring of this many blocks can hold while its newest
    block may be torn."""
    return min(SLOTS_MAX, (al_blocks - 1) * CONTEXT)


def encode_transaction(
    tr_number: int,
    updates: Sequence[tuple[int, int]],
    slots: Sequence[int],
    context_start: int,
) -> bytes:
    """One transaction block of 4096 bytes.

    updates: at most 64 (slot, extent); slots: the table before this transaction, AL_FREE for free
    slots; context_start: first slot of the window of 919 that the block carries along.
    Raises ValueError for what the format cannot hold.
    """
    count = len(updates)
    if count > MAX_UPDATES:
        raise ValueError(f"{count} updates in one transaction, at most {MAX_UPDATES} fit")
    if len(slots) > SLOTS_MAX or not 0 <= context_start < max(1, len(slots)):
        raise ValueError(f"context from slot {context_start} of {len(slots)} is impossible")
    window = slots[context_start : context_start + CONTEXT]
    head = _HEAD.pack(_MAGIC, tr_number, 0, _UPDATE, count, len(slots), context_start)
    body = _BODY.pack(
        *(slot for slot, _ in updates),
        *_NO_SLOTS[count:],
        *(extent for _, extent in updates),
        *_NO_EXTENTS[: MAX_UPDATES - count],
        *window,
        *_NO_EXTENTS[len(window) :],
    )
    return _with_crc(head + body)


def initialized_block() -> bytes:
    """The block that an empty ring consists of."""
    return _with_crc(_HEAD.pack(_MAGIC, 0, 0, _INITIALIZED, 0, 0, 0).ljust(BLOCK, b"\0"))


def ring_block(tr_number: int, geometry: Ring) -> int:
    """Index of the block in the ring where this transaction goes (rotating over the stripes)."""
    stripes, stripe_size = geometry.al_stripes, geometry.al_stripe_size_4k
    turn = tr_number % (stripes * stripe_size)
    return turn % stripes * stripe_size + turn // stripes


def decode_block(block: bytes) -> Block:
    """Take one block of a ring apart; never raises for bad content."""
    if len(block) != BLOCK:
        return Bad(f"{len(block)} bytes instead of {BLOCK}")
    magic, tr_number, crc, kind, count, context_size, context_start = _HEAD.unpack_from(block)
    if magic != _MAGIC:
        return Bad(f"magic 0x{magic:08x}, expected 0x{_MAGIC:08x}")
    computed = raw_crc32c(bytes(block[:8]) + b"\0\0\0\0" + bytes(block[12:]))
    if crc != computed:
        return Bad(f"checksum 0x{crc:08x}, expected 0x{computed:08x}")
    if kind == _INITIALIZED:
        return Initialized()
    if kind != _UPDATE:
        return Bad(f"unknown transaction type 0x{kind:04x}")
    body = _BODY.unpack_from(block, _HEAD.size)
    slots, extents = body[:MAX_UPDATES], body[MAX_UPDATES : 2 * MAX_UPDATES]
    # Entries behind the count are unused unless somebody filled them in nevertheless.
    updates = tuple(
        (slot, extent)
        for i, (slot, extent) in enumerate(zip(slots, extents, strict=True))
        if i < count or slot != _NO_SLOT
    )
    return Transaction(tr_number, updates, context_size, context_start, body[2 * MAX_UPDATES :])


def replay(blocks: Iterable[bytes]) -> Replay:
    """Work out which extents were active when the newest good transaction was written.

    blocks: the whole ring, in order of place. Damaged blocks are reported in the result.
    """
    result = Replay()
    found: list[Transaction] = []
    for number, raw in enumerate(blocks):
        block = decode_block(raw)
        if isinstance(block, Bad):
            result.bad_blocks[number] = block.why
        elif isinstance(block, Initialized):
            result.initialized += 1
        else:
            found.append(block)
    result.transactions = len(found)
    if not found:
        return result
    table: dict[int, int] = {}
    for transaction in _oldest_first(found):
        result.last_tr_number = transaction.tr_number
        for slot, extent in _entries(transaction):
            if slot >= SLOTS_MAX:
                result.bad_slots += 1
            else:
                table[slot] = extent
    result.table = {slot: extent for slot, extent in table.items() if extent != AL_FREE}
    return result


def check_al_extents(al_extents: int, al_blocks: int) -> None:
    """Raise MetadataError if a ring of this many blocks cannot hold that many slots."""
    most = max_extents(al_blocks)
    if not 1 <= al_extents <= most:
        raise MetadataError(
            f"al-extents: expected 1 to {most} with an activity log of {al_blocks} blocks,"
            f" found {al_extents}",
            hint="lower al-extents, or create-md with more --al-stripes or --al-stripe-size-kB",
        )


def _entries(transaction: Transaction) -> Iterable[tuple[int, int]]:
    start, size = transaction.context_start, transaction.context_size
    for slot, extent in enumerate(transaction.context, start):
        if extent != AL_FREE or slot < size:
            yield slot, extent
    yield from transaction.updates


def _oldest_first(found: list[Transaction]) -> list[Transaction]:
    """Order by number; numbers wrap at 2^32, and a ring spans far less than half of that."""
    newest = found[0].tr_number
    for one in found[1:]:
        if _distance(one.tr_number, newest) > 0:
            newest = one.tr_number
    return sorted(found, key=lambda one: _distance(one.tr_number, newest))


def _distance(a: int, b: int) -> int:
    """a - b for wrapping 32-bit numbers, signed."""
    return (a - b + 0x80000000 & 0xFFFFFFFF) - 0x80000000


def _with_crc(block: bytes) -> bytes:
    return block[:8] + raw_crc32c(block).to_bytes(4, "big") + block[12:]
