"""Memory that is lent again: never while anybody still looks at it, and never more than is kept."""

from __future__ import annotations

import pytest

from protocol import lent

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    for kept in lent._kept.values():
        kept.clear()


def kept_bytes() -> int:
    return sum(len(memory) for kept in lent._kept.values() for memory in kept)


@pytest.mark.parametrize("size", [1, 4096, 128 << 10, (128 << 10) + 1, MIB - 512, MIB, 3 * MIB])
def test_as_much_as_was_asked_for_is_lent(size: int) -> None:
    assert len(lent.lend(size)) == size


def test_what_one_has_forgotten_the_next_one_gets_again_and_again() -> None:
    first = lent.lend(MIB)
    memory = id(first.obj)
    for _ in range(3):
        del first
        first = lent.lend(MIB - 512)
        assert id(first.obj) == memory


def test_what_somebody_still_looks_at_is_not_lent() -> None:
    first = lent.lend(MIB)
    first[:] = b"\1" * MIB
    part = first[4096:8192]
    del first
    second = lent.lend(MIB)
    second[:] = b"\2" * MIB
    assert part == b"\1" * 4096


def test_what_is_kept_is_bounded() -> None:
    borrowed = [lent.lend(size) for size in (MIB, 200 << 10) for _ in range(100)]
    assert len({id(view.obj) for view in borrowed}) == 200, "each has its own"
    del borrowed
    assert kept_bytes() == 2 * lent.KEPT
