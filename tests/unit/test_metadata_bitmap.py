"""The bitmap against the plainest model there is: a set of integers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replicator.metadata.bitmap import BITS_PER_PAGE, PAGE, Bitmap

SIZES = st.one_of(
    st.integers(0, 200),
    st.integers(BITS_PER_PAGE - 70, BITS_PER_PAGE + 70),
    st.integers(3 * BITS_PER_PAGE - 10, 3 * BITS_PER_PAGE + 10),
)
POSITIONS = st.one_of(
    st.integers(0, 130),
    st.integers(BITS_PER_PAGE - 70, BITS_PER_PAGE + 70),
    st.integers(0, 3 * BITS_PER_PAGE + 100),
)
COUNTS = st.one_of(
    st.integers(0, 3),
    st.integers(0, 600),
    st.integers(BITS_PER_PAGE - 3, 3 * BITS_PER_PAGE + 20),
)


def bits_of(bitmap: Bitmap) -> set[int]:
    """Read the stored bytes bit by bit, by the definition of the format."""
    return {
        at * 8 + bit
        for at, byte in enumerate(bitmap.data)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    }


class AgainstASet(RuleBasedStateMachine):
    """Any sequence of calls leaves the same bits, counts and changed pages as the model."""

    def __init__(self) -> None:
        super().__init__()
        self.bitmap = Bitmap(0)
        self.model: set[int] = set()
        self.written: dict[int, bytes] = {}
        """What a disk would hold that only ever sees dirty pages."""

    def _range(self, first: int, count: int) -> set[int]:
        return set(range(first, min(first + count, self.bitmap.bits)))

    @rule(bits=SIZES, set_new=st.booleans())
    def resize(self, bits: int, set_new: bool) -> None:
        old = self.bitmap.bits
        self.bitmap.resize(bits, set_new)
        self.model = {bit for bit in self.model if bit < bits}
        if set_new:
            self.model |= set(range(old, bits))

    @rule(first=POSITIONS, count=COUNTS)
    def set_range(self, first: int, count: int) -> None:
        new = self._range(first, count) - self.model
        assert self.bitmap.set_range(first, count) == len(new)
        self.model |= new

    @rule(first=POSITIONS, count=COUNTS)
    def clear_range(self, first: int, count: int) -> None:
        gone = self._range(first, count) & self.model
        assert self.bitmap.clear_range(first, count) == len(gone)
        self.model -= gone

    @rule(sector=st.integers(0, 8 * 300), count=st.integers(0, 8 * 40))
    def set_sectors(self, sector: int, count: int) -> None:
        touched = {s // 8 for s in range(sector, sector + count) if s // 8 < self.bitmap.bits}
        assert self.bitmap.set_sectors(sector, count) == len(touched - self.model)
        self.model |= touched

    @rule(sector=st.integers(0, 8 * 300), count=st.integers(0, 8 * 400), tail=st.integers(0, 7))
    def clear_sectors(self, sector: int, count: int, tail: int) -> None:
        total = max(0, 8 * self.bitmap.bits - tail)
        end = sector + count
        whole = {
            bit
            for bit in range(sector // 8, min(end // 8 + 1, self.bitmap.bits))
            if count and bit * 8 >= sector and min(bit * 8 + 8, total) <= end
        }
        assert self.bitmap.clear_sectors(sector, count, total) == len(whole & self.model)
        self.model -= whole

    @rule()
    def set_all(self) -> None:
        missing = self.bitmap.bits - len(self.model)
        assert self.bitmap.set_all() == missing
        self.model = set(range(self.bitmap.bits))

    @rule()
    def clear_all(self) -> None:
        assert self.bitmap.clear_all() == len(self.model)
        self.model = set()

    @rule(offset=st.integers(0, 2 * PAGE), data=st.binary(max_size=100))
    def or_bytes(self, offset: int, data: bytes) -> None:
        theirs = {
            (offset + at) * 8 + bit
            for at, byte in enumerate(data)
            for bit in range(8)
            if byte >> bit & 1 and (offset + at) * 8 + bit < self.bitmap.bits
        }
        assert self.bitmap.or_bytes(offset, data) == len(theirs - self.model)
        self.model |= theirs

    @rule(page=st.integers(0, 2), pattern=st.binary(min_size=1, max_size=5))
    def load_a_page(self, page: int, pattern: bytes) -> None:
        if page >= self.bitmap.page_count:
            return
        data = (pattern * PAGE)[:PAGE]
        self.bitmap.load(data, page * PAGE)
        low = page * BITS_PER_PAGE
        self.model = {b for b in self.model if not low <= b < low + BITS_PER_PAGE} | {
            low + at * 8 + bit
            for at, byte in enumerate(data)
            for bit in range(8)
            if byte >> bit & 1 and low + at * 8 + bit < self.bitmap.bits
        }
        self.written[page] = self.bitmap.page(page)

    @rule(start=POSITIONS)
    def searches(self, start: int) -> None:
        bits = self.bitmap.bits
        behind = [bit for bit in self.model if bit >= start]
        assert self.bitmap.next_set(start) == min(behind, default=-1)
        clear = next((bit for bit in range(start, bits) if bit not in self.model), -1)
        assert self.bitmap.next_clear(start) == clear

    @rule(start=POSITIONS, most=st.sampled_from([0, 1, 8, 100, 5000]), edge=st.integers(0, 512))
    def next_run(self, start: int, most: int, edge: int) -> None:
        first, count = self.bitmap.next_run(start, most, edge)
        expected = min((bit for bit in self.model if bit >= start), default=-1)
        length = 0
        while expected >= 0 and expected + length in self.model:
            if (most and length == most) or (edge and length and (expected + length) % edge == 0):
                break
            length += 1
        assert (first, count) == (expected, length)

    @rule(first=POSITIONS, count=COUNTS)
    def asks_about_a_range(self, first: int, count: int) -> None:
        inside = self._range(first, count) & self.model
        assert self.bitmap.count_in(first, count) == len(inside)
        assert self.bitmap.any_in(first, count) == bool(inside)

    @rule()
    def writes_dirty_pages(self) -> None:
        for page in self.bitmap.take_dirty():
            self.written[page] = self.bitmap.page(page)
        for page in range(self.bitmap.page_count):
            assert self.written[page] == self.bitmap.page(page), "a changed page was not dirty"

    @invariant()
    def bytes_and_weight_agree(self) -> None:
        assert bits_of(self.bitmap) == self.model
        assert self.bitmap.weight == len(self.model)
        assert len(self.bitmap.data) == -(-self.bitmap.bits // BITS_PER_PAGE) * PAGE


AgainstASet.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
test_any_sequence_of_calls_agrees_with_a_set = AgainstASet.TestCase


@given(bits=st.lists(st.integers(0, 2 * BITS_PER_PAGE - 1), max_size=30))
@settings(max_examples=50, deadline=None)
def test_walking_the_runs_visits_every_set_bit_once(bits: list[int]) -> None:
    bitmap = Bitmap(2 * BITS_PER_PAGE)
    for bit in bits:
        bitmap.set_range(bit, 1)
    seen: list[int] = []
    first, count = bitmap.next_run(0)
    while first >= 0:
        seen.extend(range(first, first + count))
        first, count = bitmap.next_run(first + count)
    assert seen == sorted(set(bits))


def test_setting_a_set_bit_makes_no_page_dirty() -> None:
    bitmap = Bitmap(2 * BITS_PER_PAGE)
    bitmap.set_all()
    bitmap.take_dirty()
    bitmap.set_range(5, 1)
    bitmap.set_range(100, BITS_PER_PAGE)
    assert bitmap.dirty_pages == set()


def test_dirty_pages_can_be_taken_in_part() -> None:
    bitmap = Bitmap(4 * BITS_PER_PAGE)
    for page in range(4):
        bitmap.set_range(page * BITS_PER_PAGE, 1)
    assert bitmap.take_dirty_of([1, 3, 9]) == {1, 3}
    assert bitmap.take_dirty() == {0, 2}


def test_padding_read_from_disk_is_dropped() -> None:
    bitmap = Bitmap(10)
    bitmap.load(b"\xff" * PAGE)
    assert bitmap.weight == 10
    assert bits_of(bitmap) == set(range(10))


def test_the_last_partial_block_is_cleared_by_a_write_that_reaches_the_end() -> None:
    bitmap = Bitmap(3)
    bitmap.set_all()
    assert bitmap.clear_sectors(8, 12, 21) == 1, "one sector short of the end"
    assert bitmap.clear_sectors(8, 13, 21) == 1
    assert bits_of(bitmap) == {0}


def test_load_refuses_what_does_not_fit() -> None:
    bitmap = Bitmap(BITS_PER_PAGE)
    with pytest.raises(ValueError, match="do not fit"):
        bitmap.load(bytes(PAGE + 1))
    with pytest.raises(ValueError, match="do not fit"):
        bitmap.load(bytes(8), 8)


def test_negative_ranges_are_a_programming_error() -> None:
    bitmap = Bitmap(100)
    for call in (bitmap.set_range, bitmap.clear_range, bitmap.any_in, bitmap.count_in):
        with pytest.raises(ValueError, match="range"):
            call(-1, 5)
    with pytest.raises(IndexError):
        bitmap.test(100)


def test_a_bitmap_of_four_tebibytes_is_handled_in_whole_pages() -> None:
    # 1 Gi bits, 128 MiB. Bit by bit any of these would take minutes.
    started = time.monotonic()
    bitmap = Bitmap(1 << 30)
    assert bitmap.set_all() == 1 << 30
    assert bitmap.clear_range(1, (1 << 30) - 2) == (1 << 30) - 2
    assert bitmap.next_set(1) == (1 << 30) - 1
    assert bitmap.set_range(7, (1 << 30) - 100) == (1 << 30) - 100
    assert bitmap.count_in(3, (1 << 30) - 3) == (1 << 30) - 99
    assert bitmap.next_clear(7) == (1 << 30) - 93
    assert bitmap.next_run(1) == (7, (1 << 30) - 100)
    assert time.monotonic() - started < 10
