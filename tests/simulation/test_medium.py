"""The pretended medium: what a flush promises, and what a power loss may undo."""

from __future__ import annotations

import random

from tests.simulation.medium import PAGE, SECTOR, Medium


def page(byte: int) -> bytes:
    return bytes([byte]) * PAGE


def test_what_was_written_before_a_flush_began_survives_and_what_came_after_may_not():
    outcomes = set()
    for seed in range(20):
        medium = Medium(4 * PAGE)
        medium.write(0, page(1))
        flush = medium.seal()
        medium.write(0, page(2))
        medium.settle(flush)
        medium.power_loss(random.Random(seed))
        outcomes |= {medium.read(at, 1)[0] for at in range(0, PAGE, SECTOR)}
    assert outcomes == {1, 2}


def test_a_flush_that_ends_late_takes_nothing_back_from_one_that_began_later():
    medium = Medium(PAGE)
    medium.write(0, page(1))
    first = medium.seal()
    medium.write(0, page(2))
    second = medium.seal()
    medium.settle(second)
    medium.settle(first)
    assert medium.stable[0:PAGE] == page(2)
    assert not medium.unflushed


def test_a_durable_write_makes_its_own_sectors_stable_and_no_others():
    medium = Medium(2 * PAGE)
    medium.write(0, page(1))
    medium.write(SECTOR, page(2)[:SECTOR])
    medium.settle_only(medium.seal(), SECTOR, SECTOR)
    assert medium.stable[0:PAGE] == bytes(SECTOR) + page(2)[:SECTOR] + bytes(PAGE - 2 * SECTOR)
    assert medium.unflushed == {0, *range(2, 8)}


def test_an_unflushed_page_is_torn_sector_by_sector():
    torn = set()
    for seed in range(20):
        medium = Medium(PAGE)
        medium.write(0, page(1))
        medium.power_loss(random.Random(seed))
        torn.add(medium.read(0, PAGE))
        assert medium.read(0, PAGE) == medium.stable[0:PAGE]
    assert len(torn) > 10


def test_reads_and_writes_of_any_sectors_agree_with_a_plain_array():
    rng = random.Random(7)
    medium, plain = Medium(16 * PAGE), bytearray(16 * PAGE)
    for _ in range(500):
        start = rng.randrange(120)
        length = rng.randint(1, 128 - start)
        content = bytes([rng.randrange(3)]) * (length * SECTOR)
        medium.write(start * SECTOR, content)
        plain[start * SECTOR : (start + length) * SECTOR] = content
        assert medium.read(0, medium.size) == plain
    medium.settle(medium.seal())
    assert medium.stable[0 : medium.size] == plain
