"""Histories that nobody has played before, besides the fixed ones: a few of each kind in every run.

What is found here may be older than the change that is being tested. The failure names the command that
plays the history again, and shows the acts that are enough to cause it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import count

import pytest

from tests.simulation import explore
from tests.simulation.campaign import KINDS, Task, played, task
from tests.simulation.mutations import applied

SECONDS = 5.0
SHRINK_SECONDS = 60.0


def play_on(first: int, goes_on: Callable[[], bool]) -> tuple[Task, str] | None:
    """Play the histories of all kinds from this seed on, each at least once: the first that fails,
    and how."""
    for seed in count(first):
        for kind in KINDS:
            chosen = task(kind, seed)
            failure, _history = played(chosen)
            if failure:
                return chosen, failure
        if not goes_on():
            return None
    raise AssertionError("there is no last seed")


def must_hold(first: int, goes_on: Callable[[], bool]) -> None:
    """Fails the test, with all that is known, if one of these histories fails."""
    found = play_on(first, goes_on)
    if found is not None:
        explore.report(*found, SHRINK_SECONDS)
        pytest.fail(f"make sim {found[0]}: {found[1]}", pytrace=False)


def test_histories_that_nobody_has_played_before_lose_nothing_either():
    end = time.monotonic() + SECONDS
    must_hold(random.SystemRandom().getrandbits(32), lambda: time.monotonic() < end)


@pytest.mark.python_engine
def test_a_violation_is_told_with_the_command_that_repeats_it_and_made_short(capsys):
    with applied("activity_log_skipped"), pytest.raises(pytest.fail.Exception) as told:
        must_hold(0, lambda: False)
    assert str(told.value).startswith("make sim SEED=0 KIND=")
    story = capsys.readouterr().out
    assert "enough to cause it (" in story
    assert "the whole history again: make sim SEED=0 KIND=" in story
