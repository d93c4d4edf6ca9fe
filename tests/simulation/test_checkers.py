"""The checkers themselves: each sees the fault that it is there for, planted by hand."""

from __future__ import annotations

import pytest

from protocol.states import Conn
from replicator.engine import handshake, status
from replicator.engine.activity_log import ActivityLog
from replicator.engine.generations import UuidSet
from replicator.engine.handshake import Handshake, Outcome, Verdict
from replicator.engine.volume import Volume
from tests.simulation.checkers import Violation
from tests.simulation.checkers.guard import Guard
from tests.simulation.checkers.observe import Decided
from tests.simulation.histories import Account
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


@pytest.mark.python_engine
def test_writes_without_activity_log_are_found_before_any_power_is_lost(monkeypatch):
    monkeypatch.setattr(ActivityLog, "begin", lambda self, first, last, go: True)
    monkeypatch.setattr(ActivityLog, "end", lambda self, first, last: None)
    pair, _guard = guarded()
    with pytest.raises(Violation, match="differ unmarked, if alice loses power now: 5"):
        written_alone(pair)


def acknowledged(guard: Guard, *names: str) -> None:
    for name in names:
        guard.completed(name, 0, guard.era_of_writes(name, 0))


def test_a_split_brain_is_what_the_lineage_expects_and_no_violation():
    pair, guard = guarded()
    written_alone(pair)
    acknowledged(guard, "alice")
    pair.alice.secondary()
    pair.bob.primary()
    acknowledged(guard, "bob")
    pair.network.cut = set()
    pair.run(30)
    assert pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone)


def test_a_verdict_that_overwrites_what_only_one_copy_has_is_found(monkeypatch):
    resolve = handshake.resolve

    def swapped(facts):
        verdict = resolve(facts)
        other = {Outcome.SOURCE: Outcome.TARGET, Outcome.TARGET: Outcome.SOURCE}
        return verdict._replace(outcome=other.get(verdict.outcome, verdict.outcome))

    pair, guard = guarded()
    written_alone(pair)
    acknowledged(guard, "alice")
    pair.alice.secondary()
    monkeypatch.setattr(handshake, "resolve", swapped)
    pair.network.cut = set()
    with pytest.raises(Violation, match=r"verdict (source|target) by rule .*, legal is only"):
        pair.run(5)


@pytest.mark.python_engine
def test_a_difference_that_a_handshake_does_not_see_is_found(monkeypatch):
    pair, guard = guarded()
    monkeypatch.setattr(Volume, "new_generation", lambda self, then=None: None)
    written_alone(pair)
    acknowledged(guard, "alice")
    pair.network.cut = set()
    with pytest.raises(Violation, match="verdict nothing by rule 40, legal is only"):
        pair.run(5)


def test_two_nodes_that_decide_differently_are_found():
    pair, guard = guarded()
    event = Decided("alice", 0, "7", Handshake(UuidSet(), UuidSet()), verdict(Outcome.SOURCE))
    lineage = guard.lineages[0]
    assert lineage.decided(event) == []
    found = lineage.decided(event._replace(node="bob", verdict=verdict(Outcome.SOURCE)))
    assert found == ["volume 0: bob decides source, its peer source"]


def verdict(outcome: Outcome) -> Verdict:
    return Verdict(outcome, False, 40, False, "", UuidSet(), UuidSet())


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


def test_a_wait_without_a_reason_in_status_is_found(monkeypatch):
    pair, _guard = guarded()
    monkeypatch.setattr(status, "WAITING", {})
    pair.network.break_all()
    words = "/0: WFConnection, disk UpToDate, 0 requests held, and status gives no reason"
    with pytest.raises(Violation, match=words):
        pair.run(1)


def test_a_state_that_should_pass_at_once_and_stays_is_found():
    pair, guard = guarded()
    volume = pair.alice.volume()
    volume.state = volume.state._replace(conn=Conn.BrokenPipe)
    assert guard.waits.violations() == []
    pair.clock.time += 60
    assert guard.waits.violations() == ["alice/0: BrokenPipe for 60 s"]


@pytest.mark.parametrize("before", [True, False])
def test_the_account_holds_no_copy_to_what_was_given_up_with_it(before):
    """Alice has completed a write that no flush has promised yet, before or after a split brain was
    solved against her; both are in sync again, and as Primary she flushes."""
    pair = Pair(1)
    sectors = range(8)
    account = Account()
    account.submitted(sectors, 1)
    if not before:
        account.given_up("alice")
        account.submitted(sectors, 2)
    account.completed("alice", sectors, 1 if before else 2)
    if before:
        account.given_up("alice")
    account.united("alice")
    account.flushed(account.before_flush("alice"), {"alice", "bob"})
    found = account.violations("alice", pair.alice.media[0])
    assert found == (
        [] if before else [f"sector {s} holds 0, allowed [2] of [0, 1, 2]" for s in sectors]
    )


def test_a_flush_answered_on_a_copy_that_was_given_up_meanwhile_promises_nothing_of_it():
    account = Account()
    account.submitted(range(2), 1)
    account.completed("alice", range(2), 1)
    begun = account.before_flush("alice")
    assert account.not_given_up("alice", begun) == {0: 1, 1: 1}
    account.given_up("alice")
    assert account.not_given_up("alice", begun) == {}
    assert account.not_given_up("bob", begun) == begun
