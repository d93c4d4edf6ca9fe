"""The checkers themselves: each sees the fault that it is there for, planted by hand."""

from __future__ import annotations

import pytest

from replicator.engine.activity_log import ActivityLog
from tests.simulation.checkers.guard import Guard, Violation
from tests.simulation.pair import Pair

BLOCK = 4096


def guarded() -> tuple[Pair, Guard]:
    pair = Pair(1)
    guard = Guard(pair, every=1)
    pair.up_synced()
    return pair, guard


def written_alone(pair: Pair) -> None:
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.run(0.01)
    pair.alice.write(5 * BLOCK, b"x" * BLOCK)
    pair.alice.flush()


def test_a_pair_without_fault_is_not_accused():
    pair, guard = guarded()
    written_alone(pair)
    pair.network.cut = set()
    pair.settle()
    assert guard.looks > 100


def test_a_block_that_changes_on_one_disk_behind_the_engine_is_found():
    pair, guard = guarded()
    pair.bob.media[0].put(7 * BLOCK, b"?" * BLOCK)
    with pytest.raises(Violation, match="volume 0: 1 blocks differ unmarked: 7"):
        guard.look()


def test_a_bit_that_is_cleared_too_early_is_found():
    pair, guard = guarded()
    written_alone(pair)
    guard.look()
    pair.alice.volume().mark_in_sync(5 * 8, 8)
    with pytest.raises(Violation, match="1 blocks differ unmarked: 5"):
        guard.look()


def test_writes_without_activity_log_are_found_before_any_power_is_lost(monkeypatch):
    monkeypatch.setattr(ActivityLog, "begin", lambda self, first, last, go: True)
    monkeypatch.setattr(ActivityLog, "end", lambda self, first, last: None)
    pair, _guard = guarded()
    with pytest.raises(Violation, match="differ unmarked, if alice loses power now: 5"):
        written_alone(pair)


def test_a_count_that_does_not_agree_with_the_bitmap_is_found():
    pair, guard = guarded()
    bitmap = pair.alice.volume().bitmap
    assert bitmap is not None
    bitmap.weight += 1
    with pytest.raises(Violation, match="status says 4 KiB out of sync, but 0 bits are set"):
        guard.report(guard.counters.violations())


def test_a_negative_counter_and_one_that_is_left_when_idle_are_found():
    pair, guard = guarded()
    pair.alice.volume().application.pending = -1
    assert "alice/0: ap is -1" in guard.counters.violations()
    pair.alice.volume().application.pending = 2
    assert guard.counters.left_when_idle() == ["alice/0: ap is 2 when idle"]
