"""The simulator bites: engines without one safeguard are noticed, the engine as it is is not.

Here are those that a few histories notice, that the run stays short; `make mutants` hunts them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutants import hunt, rows
from tests.simulation.mutations import MUTANTS

TABLE = Path(__file__).parents[2] / "docs" / "mutants.md"
QUICK = (
    "log_entry_dropped_at_ack",
    "activity_log_skipped",
    "transaction_not_awaited",
    "log_not_applied",
    "degraded_writes_unmarked",
    "barrier_without_flush",
    "bit_cleared_early",
    "no_locks_on_primary",
)
BOUND = 40
"""Histories; at most a quarter of that was needed when this was written."""


@pytest.mark.python_engine
@pytest.mark.parametrize("name", QUICK)
def test_an_engine_without_this_safeguard_is_noticed(name):
    assert hunt(name, BOUND) is not None


def test_a_removed_safeguard_is_back_afterwards():
    hunt("activity_log_skipped", 1)
    from replicator.engine.activity_log import ActivityLog

    assert ActivityLog.begin.__qualname__ == "ActivityLog.begin"


def test_the_table_in_the_documentation_has_every_mutant():
    assert set(rows(TABLE.read_text())) == set(MUTANTS)
