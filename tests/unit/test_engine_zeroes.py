"""Finding the zeroes in resynchronised data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.engine.zeroes import PIECE, Run, is_zero, may_unmap, zero_runs

MIB = 1 << 20


def test_a_mebibyte_of_zeroes_is_one_hole() -> None:
    assert is_zero(bytes(MIB))
    assert zero_runs(bytes(MIB), 0) == [Run(0, MIB, True)]


def test_one_bit_at_the_very_end_is_data() -> None:
    assert not is_zero(bytes(MIB - 1) + b"\x01")


def test_zeroes_and_data_alternate_in_aligned_pieces() -> None:
    data = bytes(PIECE) + b"x" * PIECE + bytes(2 * PIECE)
    expected = [Run(0, PIECE, True), Run(PIECE, 2 * PIECE, False), Run(2 * PIECE, 4 * PIECE, True)]
    assert zero_runs(data, 5 * PIECE) == expected


def test_pieces_are_aligned_on_the_disk_not_in_the_buffer() -> None:
    data = b"x" * 4096 + bytes(PIECE)
    assert zero_runs(data, PIECE - 4096) == [Run(0, 4096, False), Run(4096, 4096 + PIECE, True)]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(0, 100),
)
def test_the_runs_cover_everything_and_none_that_is_called_zero_has_data(
    parts: list[tuple[bool, int]], block: int
) -> None:
    data = b"".join((b"d" if full else b"\0") * 4096 * count for full, count in parts)
    runs = zero_runs(data, block * 4096)
    assert runs[0].start == 0 and runs[-1].end == len(data)
    for one, following in zip(runs, runs[1:], strict=False):
        assert one.end == following.start and one.zero is not following.zero
    assert all(not any(data[r.start : r.end]) for r in runs if r.zero)


def test_only_whole_multiples_of_the_granularity_are_given_back() -> None:
    assert may_unmap(4096, 4096, 0)
    assert may_unmap(65536, 131072, 65536)
    assert not may_unmap(4096, 65536, 65536)
    assert not may_unmap(65536, 4096, 65536)
