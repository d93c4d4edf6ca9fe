"""A campaign that plays in the compiled twin: what it finds counts when Python finds it, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation import campaign, explore
from tests.simulation.campaign import KINDS, Task
from tests.simulation.mutations import applied

TASKS = [Task(kind, 5, 4) for kind in KINDS]


def pretend_twin(monkeypatch: pytest.MonkeyPatch, digests: list[str]) -> None:
    """A process with a twin in which TASKS have these digests."""

    @contextmanager
    def workers(_jobs: int, *, compiled: bool) -> Iterator[Any]:
        assert compiled
        yield SimpleNamespace(apply_async=lambda *_: SimpleNamespace(get=lambda: digests))

    monkeypatch.setattr(campaign, "workers", workers)


def test_a_twin_that_plays_the_same_histories_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_twin(monkeypatch, campaign.digests(TASKS))
    assert campaign.disagreement(TASKS) is None


def test_a_twin_that_plays_another_history_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = campaign.digests(TASKS)
    pretend_twin(monkeypatch, [*digests[:2], "another", digests[3]])
    other = campaign.disagreement(TASKS)
    assert str(other) == f"SEED=5 KIND={TASKS[2].kind} STEPS=4"


@pytest.mark.python_engine
def test_a_history_that_fails_has_another_digest_than_one_that_ends_well() -> None:
    well = campaign.digests(TASKS)
    with applied("activity_log_skipped"):
        ill = campaign.digests(TASKS)
    assert any("Violation" in one or "Assertion" in one for one in ill)
    assert all(one != other for one, other in zip(well, ill, strict=True) if " " in other)


def test_what_fails_only_in_the_twin_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    explore.report(TASKS[0], "Violation: 1 blocks differ")
    told = capsys.readouterr().out
    assert "only in the compiled twin, in Python: nothing lost; make sim SEED=5 KIND=link" in told
