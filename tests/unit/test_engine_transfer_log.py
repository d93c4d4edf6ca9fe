"""The transfer log: epochs in order, exact counts, and nothing leaves it without an acknowledgement."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.engine.requests import Kind, Write
from replicator.engine.transfer_log import LogMismatch, TransferLog

pytestmark = pytest.mark.python_engine  # writes without a volume


def write() -> Write:
    volume: Any = None
    return Write(volume, Kind.WRITE, 0, 8, b"", lambda _errno: None)


def log_with(*counts: int) -> TransferLog:
    """A log of closed epochs with that many writes each."""
    log = TransferLog(2048)
    for count in counts:
        for _ in range(count):
            log.add(write(), 0.0)
        assert log.close_epoch() is not None
    return log


def test_an_epoch_without_writes_is_never_closed() -> None:
    log = TransferLog(2048)
    assert log.close_epoch() is None
    assert log.current.number == 1
    assert not log.wait_stable(lambda _stable: None)


def test_epochs_are_acknowledged_in_order_with_their_exact_count() -> None:
    log = log_with(2, 3)
    assert len(log.acknowledged(1, 2).writes) == 2
    assert len(log.acknowledged(2, 3).writes) == 3
    assert log.unacknowledged == 0


@pytest.mark.parametrize(
    ("number", "count", "words"),
    [
        (2, 3, "expected epoch 1 with 2"),
        (1, 3, "expected epoch 1 with 2"),
        (1, 0, "expected epoch 1 with 2"),
        (3, 0, "expected epoch 1 with 2"),
    ],
)
def test_any_other_acknowledgement_is_refused_and_changes_nothing(
    number: int, count: int, words: str
) -> None:
    log = log_with(2, 3)
    with pytest.raises(LogMismatch, match=words):
        log.acknowledged(number, count)
    assert log.unacknowledged == 5


def test_the_open_epoch_cannot_be_acknowledged() -> None:
    log = TransferLog(2048)
    log.add(write(), 0.0)
    with pytest.raises(LogMismatch, match="no barrier is outstanding"):
        log.acknowledged(1, 1)


def test_numbers_wrap_around_without_zero() -> None:
    log = TransferLog(2048)
    log._next_number = 0xFFFFFFFF
    numbers = []
    for _ in range(3):
        log.add(write(), 0.0)
        epoch = log.close_epoch()
        assert epoch is not None
        numbers.append(epoch.number)
    assert numbers == [1, 0xFFFFFFFF, 1]


def test_a_waiter_hears_of_the_last_epoch_that_was_closed_before_it_asked() -> None:
    log = log_with(1, 1)
    heard: list[bool] = []
    assert log.wait_stable(heard.append)
    log.add(write(), 0.0)
    log.close_epoch()
    assert not log.acknowledged(1, 1).waiters
    for waiter in log.acknowledged(2, 1).waiters:
        waiter(True)
    assert heard == [True]
    assert not log.acknowledged(3, 1).waiters


def test_the_oldest_wait_is_that_of_the_oldest_write() -> None:
    log = TransferLog(2048)
    assert log.oldest_wait() is None
    for since in (3.0, 4.0):
        log.add(write(), since)
    log.close_epoch()
    log.add(write(), 5.0)
    assert log.oldest_wait() == 3.0
    log.acknowledged(1, 2)
    assert log.oldest_wait() == 5.0


@given(st.lists(st.sampled_from(["write", "close", "ack", "lost"]), max_size=80))
def test_no_write_is_forgotten_whatever_happens(steps: list[str]) -> None:
    log = TransferLog(2048)
    inside: list[Write] = []
    for step in steps:
        if step == "write":
            one = write()
            log.add(one, 0.0)
            inside.append(one)
        elif step == "close":
            log.close_epoch()
        elif step == "ack" and log.closed:
            first = log.closed[0]
            left = log.acknowledged(first.number, len(first.writes)).writes
            assert left == inside[: len(left)] and left
            del inside[: len(left)]
        elif step == "lost":
            lost = [one for epoch in log.clear() for one in epoch.writes]
            assert lost == inside
            inside.clear()
        held = [one for epoch in (*log.closed, log.current) for one in epoch.writes]
        assert held == list(log.writes) == inside
        assert log.unacknowledged == len(inside)
        assert all(one.epoch is not None for one in inside)
        assert all(epoch.writes for epoch in log.closed)
        assert log.current not in log.closed
