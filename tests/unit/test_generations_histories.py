"""Every short history of two nodes: no verdict loses a promised write or mistakes copies for equal.

The model in two_node_model.py raises a Violation when a verdict of the handshake, applied to what
is on the two disks, would overwrite writes that an application was promised without calling it a
split brain; would take differing copies for equal; would leave differences after a resync; would
have the nodes act on contradictory verdicts; or would call for help although only one copy changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from replicator.engine import generations
from replicator.engine.generations import RULES, Evidence, UuidSet
from tests.unit import two_node_model as model


@pytest.mark.parametrize("start", [model.created, model.in_service])
def test_no_short_history_with_interventions_loses_data(start: Callable[[], model.World]) -> None:
    states, violations = model.explore(start(), 6, meddling=True)
    assert not violations, violations[0]
    assert states > 4_000, "the model hardly moves: it proves nothing"


def test_no_longer_history_of_daily_life_loses_data_or_raises_a_false_alarm() -> None:
    states, violations = model.explore(model.in_service(), 8, meddling=False)
    assert not violations, violations[0]
    assert states > 10_000, "the model hardly moves: it proves nothing"


def by_arbiter(evidence: Evidence) -> int:
    return 1 if evidence.arbiter else -1


WRONG: dict[str, dict[int, int | Callable[[Evidence], int]]] = {
    "the stale copy wins": {50: 1, 70: -1},
    "the ancestor wins": {60: 2, 80: -2},
    "a split brain is solved by a coin": {90: by_arbiter},
    "a split brain is ignored": {90: 0},
    "the ends of resyncs are ignored": {34: 0, 35: 0, 36: 0, 37: 0},
    "a lost sync UUID points the wrong way": {51: 1, 71: -1},
    "unrelated data is mixed": {100: by_arbiter},
}


@pytest.mark.parametrize("rows", WRONG.values(), ids=WRONG)
def test_the_model_notices_a_wrong_rule(
    rows: dict[int, int | Callable[[Evidence], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(value: int | Callable[[Evidence], int]) -> Callable[[Evidence], int]:
        return value if callable(value) else lambda _evidence: value

    broken = tuple(
        replace(rule, result=result(rows[rule.number])) if rule.number in rows else rule
        for rule in RULES
    )
    monkeypatch.setattr(generations, "RULES", broken)
    found = [
        violation
        for start in (model.created, model.in_service)
        for violation in model.explore(start(), 6, meddling=True)[1]
    ]
    assert found


def test_the_model_notices_a_crash_that_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tuple(
        replace(rule, result=lambda _evidence: 0) if rule.number == 40 else rule for rule in RULES
    )
    monkeypatch.setattr(generations, "RULES", broken)
    assert model.explore(model.in_service(), 6, meddling=False)[1]


def test_the_model_notices_a_source_that_shares_its_name_with_a_target_that_misses_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "names_what_the_target_misses", lambda: False)
    violations = model.explore(model.in_service(), 7, meddling=True)[1]
    assert any("would lose promised writes" in str(one) for one in violations)


def test_a_half_made_copy_declared_good_loses_nothing_of_a_source_that_is_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its source may have its very name, and writes that never came."""
    monkeypatch.setattr(model, "names_what_the_target_misses", lambda: False)
    assert not model.explore(model.in_service(), 6, meddling=True)[1]
    monkeypatch.setattr(UuidSet, "declare_good", UuidSet.new_current)
    violations = model.explore(model.in_service(), 6, meddling=True)[1]
    assert any("would lose promised writes" in str(one) for one in violations)


def test_the_model_notices_writes_under_a_name_that_the_peer_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A source that missed the end of a resync and goes on alone must take a new name, although it
    still tracks: else a peer promoted meanwhile would later overwrite its writes."""

    def keep_the_name(
        self: UuidSet, random: int, primary: bool, *, peer_may_have_current: bool
    ) -> bool:
        if self.bitmap:
            return False
        self.new_current(random, primary)
        return True

    monkeypatch.setattr(UuidSet, "diverge", keep_the_name)
    violations = model.explore(model.in_service(), 8, meddling=False)[1]
    assert any("would lose promised writes" in str(one) for one in violations)
