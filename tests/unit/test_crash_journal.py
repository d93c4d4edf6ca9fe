"""The checker of the crash rounds finds what it is made to find: lost, torn, foreign, out of order."""

from __future__ import annotations

from tests.integration.crash_journal import CHUNK, SECTOR, Journal, Write

SIZE = 4 * CHUNK


def put(image: bytes, *writes: Write) -> bytes:
    changed = bytearray(image)
    for write in writes:
        changed[write.first * SECTOR : (write.first + write.count) * SECTOR] = write.payload()
    return bytes(changed)


def answered(journal: Journal, first: int, count: int = 8, *, data: bool = True) -> Write:
    write = journal.write(first, count, data=data)
    journal.answered(write)
    return write


def test_all_that_was_acknowledged_and_nothing_else_is_well() -> None:
    journal = Journal(bytes(SIZE))
    one, two = answered(journal, 0), answered(journal, 4)
    assert journal.problems(put(journal.before, one, two), journal.acknowledged) == []


def test_an_acknowledged_write_that_is_missing_is_found() -> None:
    journal = Journal(bytes(SIZE))
    one, _two = answered(journal, 0), answered(journal, 8)
    problems = journal.problems(put(journal.before, one), journal.acknowledged)
    assert len(problems) == 8
    assert problems[0].startswith("sector 8: zeroes; before: zeroes; then: write 2 ")


def test_one_missing_sector_is_found() -> None:
    journal = Journal(bytes(SIZE))
    image = bytearray(put(journal.before, answered(journal, 0)))
    image[3 * SECTOR : 4 * SECTOR] = bytes(SECTOR)
    problems = journal.problems(bytes(image), journal.acknowledged)
    assert [one.split(":")[0] for one in problems] == ["sector 3"]


def test_an_older_write_over_a_newer_one_is_found() -> None:
    journal = Journal(bytes(SIZE))
    old, new = answered(journal, 0), answered(journal, 0)
    assert journal.problems(put(journal.before, new, old), journal.acknowledged)
    assert not journal.problems(put(journal.before, old, new), journal.acknowledged)


def test_of_two_writes_under_way_together_either_may_win() -> None:
    journal = Journal(bytes(SIZE))
    one, two = journal.write(0, 8), journal.write(4, 8)
    journal.answered(two)
    journal.answered(one)
    for order in ((one, two), (two, one)):
        assert journal.problems(put(journal.before, *order), journal.acknowledged) == []


def test_an_unanswered_write_may_be_there_or_not_or_in_part_but_not_torn_inside_a_sector() -> None:
    journal = Journal(bytes(SIZE))
    write = journal.write(0, 8)
    image = bytearray(journal.before)
    assert journal.problems(bytes(image), []) == []
    image[SECTOR : 2 * SECTOR] = write.sector(1)
    assert journal.problems(bytes(image), []) == []
    image[SECTOR : SECTOR + 100] = bytes(100)
    assert "torn or foreign" in journal.problems(bytes(image), [])[0]


def test_data_of_another_place_is_found() -> None:
    journal = Journal(bytes(SIZE))
    write = answered(journal, 0, 1)
    image = bytearray(put(journal.before, write))
    image[40 * SECTOR : 41 * SECTOR] = write.payload()
    problems = journal.problems(bytes(image), journal.acknowledged)
    assert problems == [
        "sector 40: write 1 of sector 0, but nobody wrote to it; before: zeroes",
    ]


def test_content_from_before_that_comes_back_is_found() -> None:
    first = Journal(bytes(SIZE))
    old = answered(first, 0)
    journal = Journal(put(first.before, old), first.next_number)
    zeroed = answered(journal, 0, data=False)
    assert zeroed.number == 2
    assert journal.problems(journal.before, journal.acknowledged)
    assert journal.problems(put(journal.before, zeroed), journal.acknowledged) == []


def test_a_flush_covers_only_what_was_answered_before_it_was_sent() -> None:
    journal = Journal(bytes(SIZE))
    before = answered(journal, 0)
    late = journal.write(8, 8)
    sent = journal.now()
    journal.answered(late)
    journal.flushed(sent)
    assert journal.flushed_writes == [before]
    fua = journal.write(16, 8)
    journal.answered(fua, fua=True)
    assert journal.flushed_writes == [before, fua]


def test_a_prefix_must_hold_what_was_answered_before_the_newest_that_is_there() -> None:
    journal = Journal(bytes(SIZE))
    one, two, three = answered(journal, 0), answered(journal, 8), answered(journal, 16)
    whole = put(journal.before, one, two)
    assert journal.prefix(whole) == [one]
    assert journal.problems(whole, journal.prefix(whole)) == []
    gap = put(journal.before, one, three)
    assert journal.prefix(gap) == [one, two]
    assert journal.problems(gap, journal.prefix(gap))[0].startswith("sector 8: zeroes")
