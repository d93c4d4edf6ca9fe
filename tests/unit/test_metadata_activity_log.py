"""The activity log's blocks: exact bytes, ring places, replay, and what apply-al makes of it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import MetadataError
from replicator.metadata.activity_log import (
    AL_FREE,
    CONTEXT,
    MAX_UPDATES,
    SLOTS_MAX,
    Bad,
    Initialized,
    Transaction,
    check_al_extents,
    decode_block,
    encode_transaction,
    initialized_block,
    max_extents,
    raw_crc32c,
    replay,
    ring_block,
)
from replicator.metadata.apply_al import apply_al
from replicator.metadata.layout import BLOCK, Geometry, Placement, geometry
from replicator.metadata.superblock import Flags, Superblock

PLACE = geometry(64 << 20, Placement("internal"))
FREE_67 = [AL_FREE] * 67
EMPTY = initialized_block()


def striped(stripes: int, size: int) -> Geometry:
    return geometry(1 << 30, Placement("internal"), stripes, size)


def test_the_checksum_has_no_inversions() -> None:
    assert raw_crc32c(b"123456789") == 0x58E3FA20


def test_an_initialized_block_has_exactly_these_bytes() -> None:
    expected = bytes.fromhex("69cb65a2 00000000 709cc651 ffff 0000")
    assert initialized_block() == expected.ljust(BLOCK, b"\0")
    assert decode_block(EMPTY) == Initialized()


def test_three_transactions_have_exactly_these_bytes() -> None:
    first = encode_transaction(0, [(0, 3), (1, 7)], FREE_67, 0)
    second = encode_transaction(1, [(2, 0)], [3, 7, *FREE_67[2:]], 0)
    third = encode_transaction(2, [(0, 9)], [3, 7, 0, *FREE_67[3:]], 0)
    checksums = [int.from_bytes(block[8:12], "big") for block in (first, second, third)]
    assert checksums == [0x385C3884, 0xDAF335E2, 0x05E14F49]
    assert third[:40] == bytes.fromhex(
        "69cb65a2 00000002 05e14f49 0000 0001 0043 0000" + "00" * 16 + "0000 ffff"
    )
    assert third[164:172] == bytes.fromhex("00000009 ffffffff")
    assert third[420:436] == bytes.fromhex("00000003 00000007 00000000 ffffffff")


TABLES = st.integers(1, 2500).flatmap(
    lambda n: st.tuples(st.just(n), st.randoms(use_true_random=False))
)


@settings(max_examples=40)
@given(table=TABLES, number=st.integers(0, 2**32 - 1), data=st.data())
def test_what_is_encoded_is_decoded(table, number, data) -> None:  # type: ignore[no-untyped-def]
    size, rng = table
    slots = [rng.choice([AL_FREE, rng.randrange(2**22)]) for _ in range(size)]
    start = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(0, min(size, MAX_UPDATES)))
    updates = [(slot, rng.randrange(2**22)) for slot in rng.sample(range(size), count)]
    block = encode_transaction(number, updates, slots, start)
    assert len(block) == BLOCK
    window = slots[start : start + CONTEXT]
    assert decode_block(block) == Transaction(
        number, tuple(updates), size, start, tuple(window + [AL_FREE] * (CONTEXT - len(window)))
    )


@given(at=st.integers(0, BLOCK - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_makes_a_block_bad(at: int, bit: int) -> None:
    block = bytearray(encode_transaction(5, [(0, 9)], [3, 7, *FREE_67[2:]], 0))
    block[at] ^= 1 << bit
    assert isinstance(decode_block(bytes(block)), Bad)


@given(block=st.binary(max_size=BLOCK + 1))
def test_garbage_is_bad_and_never_a_crash(block: bytes) -> None:
    assert isinstance(decode_block(block), Bad)


def with_fields(kind: int = 0, n_updates: int = 0, size: int = 67, start: int = 0) -> bytes:
    """A block with a good checksum and any header."""
    block = bytearray(encode_transaction(1, [], FREE_67, 0))
    struct.pack_into(">IHHHH", block, 8, 0, kind, n_updates, size, start)
    struct.pack_into(">I", block, 8, raw_crc32c(bytes(block)))
    return bytes(block)


def test_an_unknown_type_is_bad_even_with_a_good_checksum() -> None:
    assert decode_block(with_fields(kind=7)) == Bad("unknown transaction type 0x0007")


def test_impossible_slot_numbers_are_counted_and_skipped() -> None:
    result = replay([with_fields(start=65000, size=65535), EMPTY])
    assert result.bad_slots == 1, "slot 65534 of a table said to have 65535"
    assert result.active_extents == set()


def test_more_updates_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 64"):
        encode_transaction(0, [(i, i) for i in range(65)], [AL_FREE] * 100, 0)


@pytest.mark.parametrize(("slots", "start"), [(67, 67), (67, -1), (SLOTS_MAX + 1, 0)])
def test_impossible_contexts_are_refused(slots: int, start: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        encode_transaction(0, [], [AL_FREE] * slots, start)


def test_the_ring_rotates_over_the_stripes() -> None:
    assert [ring_block(n, PLACE) for n in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert [ring_block(n, striped(4, 2)) for n in range(9)] == [0, 2, 4, 6, 1, 3, 5, 7, 0]
    assert [ring_block(n, striped(2, 9)) for n in range(4)] == [0, 9, 1, 10]


@given(first=st.integers(0, 2**32 - 1), shape=st.sampled_from([(1, 8), (4, 2), (3, 5), (2, 64)]))
def test_consecutive_transactions_fill_the_whole_ring(first: int, shape: tuple[int, int]) -> None:
    place = striped(*shape)
    n = place.al_blocks
    first -= first % n  # numbers wrap at 2^32, which a ring of odd size does not divide
    assert sorted(ring_block(first + i, place) for i in range(n)) == list(range(n))


@pytest.mark.parametrize(("blocks", "most"), [(8, 6433), (72, 65249), (73, 65534), (8192, 65534)])
def test_slots_that_survive_a_torn_newest_block(blocks: int, most: int) -> None:
    assert max_extents(blocks) == most
    check_al_extents(most, blocks)
    with pytest.raises(
        MetadataError, match=f"al-extents: expected 1 to {most} .* found {most + 1}"
    ):
        check_al_extents(most + 1, blocks)


class Writer:
    """Writes transactions as an engine does, and remembers which extents are active after each."""

    def __init__(self, place: Geometry, slots: int, first: int) -> None:
        self.place, self.number, self.start = place, first, 0
        self.table = [AL_FREE] * slots
        self.ring = [EMPTY] * place.al_blocks
        self.history = [set[int]()]

    def write(self, updates: list[tuple[int, int]]) -> None:
        block = encode_transaction(self.number, updates, self.table, self.start)
        self.ring[ring_block(self.number, self.place)] = block
        for slot, extent in updates:
            self.table[slot] = extent
        self.number = (self.number + 1) & 0xFFFFFFFF
        self.start = self.start + CONTEXT if self.start + CONTEXT < len(self.table) else 0
        self.history.append({extent for extent in self.table if extent != AL_FREE})


# Rings whose size divides 2^32: with others a wrap leaves a jump in the ring, see docs/metadata.md.
SHAPES = st.sampled_from([(1, 8), (4, 2), (1, 16), (2, 16)])


@given(
    shape=SHAPES,
    fraction=st.floats(0.01, 1),
    count=st.integers(1, 70),
    first=st.sampled_from([0, 1000, 2**32 - 3, 2**32 - 40]),
    tear=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=40)
def test_replay_finds_exactly_the_active_extents(shape, fraction, count, first, tear, rng) -> None:  # type: ignore[no-untyped-def]
    place = striped(*shape)
    writer = Writer(place, max(67, int(fraction * max_extents(place.al_blocks))), first)
    for _ in range(count):
        slots = rng.sample(range(len(writer.table)), rng.choice([0, 1, 2, 64]))
        cold = iter(rng.sample(range(10**6), len(slots)))
        writer.write([(slot, next(cold)) for slot in slots])
    if tear:
        newest = ring_block((writer.number - 1) & 0xFFFFFFFF, place)
        writer.ring[newest] = writer.ring[newest][:2048] + bytes(2048)
    result = replay(writer.ring)
    torn_to_nothing = tear and count == 1
    assert result.active_extents == writer.history[-2 if tear else -1]
    assert result.last_tr_number == (
        None if torn_to_nothing else (writer.number - (2 if tear else 1)) & 0xFFFFFFFF
    )
    # Nothing but one bad block is believed to be a torn first transaction in block 0 only, where
    # number 0 goes: every log begins with that after apply-al has emptied the ring.
    began_in_block_0 = ring_block(first, place) == 0
    assert result.usable == (began_in_block_0 or not torn_to_nothing)
    assert len(result.bad_blocks) == tear


# apply-al

CRASHED = Flags.CONSISTENT | Flags.PRIMARY_IND | Flags.WAS_UP_TO_DATE


def crashed(flags: Flags = CRASHED, la_size_sect: int = 130992) -> Superblock:
    superblock = Superblock.fresh(PLACE)
    superblock.flags, superblock.clean, superblock.la_size_sect = flags, False, la_size_sect
    return superblock


def ring_with(*updates: tuple[int, int]) -> list[bytes]:
    return [encode_transaction(0, updates, FREE_67, 0)] + [EMPTY] * 7


def test_extents_of_a_crashed_primary_are_marked_whole() -> None:
    bitmap = bytearray(4096)
    bitmap[3 * 128] = 0x0F
    done = apply_al(crashed(), PLACE, ring_with((0, 3), (1, 7)), lambda o, n: bitmap[o : o + n])
    assert done.bitmap_writes == [(3 * 128, b"\xff" * 128), (7 * 128, b"\xff" * 128)]
    assert done.new_bits == 2 * 1024 - 4
    assert done.initialize_ring
    assert done.superblock.flags == CRASHED | Flags.AL_CLEAN, "attach must see who crashed"
    assert not done.superblock.needs_apply_al


def test_a_crashed_secondary_owes_nothing() -> None:
    done = apply_al(crashed(Flags.CONSISTENT), PLACE, ring_with((0, 3)), lambda o, n: bytes(n))
    assert done.bitmap_writes == []
    assert done.initialize_ring and not done.superblock.needs_apply_al


def test_extents_behind_the_end_are_reported_and_skipped() -> None:
    done = apply_al(crashed(), PLACE, ring_with((0, 3), (1, 999)), lambda o, n: bytes(n))
    assert done.extents == [3]
    assert any("extent 999" in note for note in done.notes)


def test_a_needed_log_that_is_damaged_is_refused_with_a_way_out() -> None:
    ring = [EMPTY, bytes(BLOCK), bytes(BLOCK)] + [EMPTY] * 5
    with pytest.raises(MetadataError, match="2 of 8 blocks are damaged") as refusal:
        apply_al(crashed(), PLACE, ring, lambda o, n: bytes(n))
    assert "full resync" in refusal.value.hint
    done = apply_al(crashed(Flags.CONSISTENT), PLACE, ring, lambda o, n: bytes(n))
    assert done.initialize_ring, "a Secondary does not need it"


def test_the_superblock_given_is_not_changed() -> None:
    superblock = crashed()
    apply_al(superblock, PLACE, ring_with((0, 3)), lambda o, n: bytes(n))
    assert superblock == crashed()
