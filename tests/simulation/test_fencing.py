"""Fencing: a Primary that loses its peer, a Secondary that is to take over, and what fence-peer says.

The peer that is out of reach is the same real engine; fence-peer is played by a function that, like
the real one, may reach the other node although the replication link is down.
"""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.fencing import OUTCOMES
from replicator.engine.settings import DiskSettings
from replicator.errors import NoUsableDataError, StateRefused
from tests.simulation.pair import Node, Pair

RESOURCE_ONLY, STONITH = "resource-only", "resource-and-stonith"
BROKEN = 1


def fencing_pair(policy: str, *, seed: int = 0, volumes: int = 1) -> Pair:
    pair = Pair(
        seed, volumes=volumes, disk=DiskSettings(al_extents=67, c_max_rate=0, fencing=policy)
    )
    pair.up_synced()
    return pair


def cut(pair: Pair) -> None:
    """The replication link breaks, both nodes live."""
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(0.01)


def mend(pair: Pair) -> None:
    pair.network.cut = set()


def start_write(node: Node, offset: int, data: bytes) -> list[int]:
    """The list gets the errno when the write is answered."""
    answers: list[int] = []
    node.volume().write(offset, data, False, answers.append)
    return answers


def fence(node: Node, status: int, seconds: float = 1.0) -> None:
    node.handlers.answers["fence-peer"] = status
    node.handlers.seconds["fence-peer"] = seconds


# A Primary loses its peer


@pytest.mark.parametrize("policy", [RESOURCE_ONLY, STONITH])
@pytest.mark.parametrize(
    ("status", "pdsk"),
    [(3, Disk.Inconsistent), (4, Disk.Outdated), (5, Disk.Outdated), (7, Disk.Outdated)],
)
def test_a_primary_that_has_fenced_its_peer_goes_on_alone(
    policy: str, status: int, pdsk: Disk
) -> None:
    pair = fencing_pair(policy)
    fence(pair.alice, status)
    cut(pair)
    answers = start_write(pair.alice, 0, b"a" * 4096)
    pair.run(0.5)
    assert answers == ([] if policy == STONITH else [0]), "only stonith freezes I/O"
    pair.run(1)
    assert answers == [0]
    assert pair.alice.handlers.calls.count("fence-peer") == 1
    assert pair.alice.is_(disk=Disk.UpToDate, pdsk=pdsk, role=Role.Primary)


@pytest.mark.parametrize("status", [0, BROKEN, 2, 6, 8, 20, 124, 127])
def test_an_answer_that_proves_nothing_leaves_io_frozen_until_somebody_decides(status: int) -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, status)
    uuids = str(pair.alice.volume().store.uuids)
    cut(pair)
    answers = start_write(pair.alice, 0, b"a" * 4096)
    reads: list[int] = []
    pair.alice.volume().read(0, 4096, lambda errno, _data: reads.append(errno))
    pair.run(30)
    assert (answers, reads) == ([], [])
    assert str(pair.alice.volume().store.uuids) == uuids, "no new generation before fencing"
    assert pair.alice.is_(disk=Disk.UpToDate, pdsk=Disk.DUnknown)
    shown = pair.alice.r.snapshot().volumes[0]
    assert shown.susp_fen and "replicator resume-io r0" in shown.waiting_for
    pair.alice.do(pair.alice.r.resume_io)
    pair.run(0.1)
    assert (answers, reads) == ([0], [0])
    assert str(pair.alice.volume().store.uuids) != uuids, "the peer misses this write"


def test_while_the_handler_runs_status_says_so() -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, 4, seconds=10)
    cut(pair)
    pair.run(3)
    assert (
        "fence-peer handler ends (running for 3 s)"
        in pair.alice.r.snapshot().volumes[0].waiting_for
    )
    pair.run(10)
    assert pair.alice.r.snapshot().volumes[0].waiting_for != ""
    assert not pair.alice.r.snapshot().volumes[0].susp_fen


def test_writes_and_flushes_under_way_are_not_answered_while_frozen() -> None:
    """They are on the Primary's disk only: were it shot now, the peer would go on without them."""
    pair = fencing_pair(STONITH)
    fence(pair.alice, 4, seconds=5)
    pair.network.cut = {"alice", "bob"}
    written = start_write(pair.alice, 0, b"a" * 4096)
    flushed: list[int] = []
    pair.run(0.01)
    pair.alice.volume().flush(flushed.append)
    pair.run(0.01)
    cut(pair)
    pair.run(3)
    assert (written, flushed) == ([], [])
    pair.run(3)
    assert (written, flushed) == ([0], [0])


def test_a_frozen_primary_that_is_shot_is_no_split_brain() -> None:
    """The peer shoots first and takes over: the loser has no generation of its own, and its
    unanswered writes give way."""
    pair = fencing_pair(STONITH)
    fence(pair.alice, 7, seconds=60)
    fence(pair.bob, 7, seconds=1)
    pair.network.cut = {"alice", "bob"}
    unanswered = start_write(pair.alice, 0, b"a" * 4096)
    pair.run(0.1)
    cut(pair)
    pair.run(0.5)
    pair.alice.power_loss()
    pair.bob.primary()
    pair.bob.write(8192, b"b" * 4096)
    mend(pair)
    pair.alice.up()
    pair.settle()
    assert unanswered == []
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.read(8192, 4096) == b"b" * 4096
    assert pair.alice.is_(role=Role.Secondary)


@pytest.mark.parametrize("seed", range(8))
def test_the_peer_comes_back_before_it_is_fenced(seed: int) -> None:
    """The handler's answer is ignored, and what was under way reaches the peer."""
    pair = fencing_pair(STONITH, seed=seed)
    fence(pair.alice, 4, seconds=60)
    generation = pair.alice.volume().store.uuids.current
    pair.network.cut = {"bob"} if seed % 2 else {"alice", "bob"}
    answers = [start_write(pair.alice, n * 4096, bytes([n + 1]) * 4096) for n in range(20)]
    pair.run(0.005)
    cut(pair)
    late = start_write(pair.alice, 40 * 4096, b"l" * 4096)
    pair.run(1)
    assert pair.alice.volume().store.uuids.current == generation
    mend(pair)
    pair.settle()
    pair.run(60)
    assert [errno for one in (*answers, late) for errno in one] == [0] * 21
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.volume().bitmap.weight == 0
    assert pair.alice.handlers.calls.count("fence-peer") == 1
    assert pair.alice.handlers.calls[-1] == "unfence-peer"


def test_nothing_under_way_means_no_resync_after_an_interruption() -> None:
    pair = fencing_pair(STONITH)
    pair.alice.flush()
    pair.run(2)
    fence(pair.alice, 4, seconds=5)
    resyncs = pair.bob.handlers.calls.count("before-resync-target")
    cut(pair)
    mend(pair)
    pair.settle()
    assert pair.bob.handlers.calls.count("before-resync-target") == resyncs
    assert not pair.alice.volume().state.susp_fen


def test_a_peer_that_went_on_by_itself_is_not_overwritten_by_a_frozen_primary() -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, BROKEN)
    fence(pair.bob, 4, seconds=0.1)
    pair.network.cut = {"alice", "bob"}
    answers = start_write(pair.alice, 0, b"a" * 4096)
    cut(pair)
    pair.bob.primary()
    pair.bob.write(8192, b"b" * 4096)
    pair.bob.secondary()
    mend(pair)
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone))
    pair.run(5)
    assert answers == [], "still frozen: this node would have to be the target"
    assert pair.bob.data()[8192:12288] == b"b" * 4096
    assert "pri-lost" not in pair.alice.handlers.calls
    pair.alice.do(lambda done: pair.alice.r.shutdown(done, force=True))
    assert answers and answers[0] != 0
    pair.alice.up()
    if pair.bob.is_(Conn.StandAlone):
        pair.bob.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.data()[8192:12288] == b"b" * 4096


def test_a_frozen_primary_is_taken_down_by_force_and_its_requests_fail() -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, BROKEN)
    cut(pair)
    before = pair.alice.data()
    answers = start_write(pair.alice, 0, b"a" * 4096)
    pair.run(2)
    pair.alice.do(lambda done: pair.alice.r.shutdown(done, force=True))
    pair.run(1)
    assert len(answers) == 1 and answers[0] != 0
    assert pair.alice.data() == before, "a write that waited must not be done afterwards"


def test_a_second_loss_while_the_handler_runs_is_fenced_again() -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, 4, seconds=5)
    cut(pair)
    mend(pair)
    pair.settle()
    cut(pair)
    pair.run(4)
    assert pair.alice.volume().state.susp_fen
    pair.run(10)
    assert pair.alice.handlers.calls.count("fence-peer") == 2
    assert pair.alice.is_(pdsk=Disk.Outdated) and not pair.alice.volume().state.susp_fen


def test_the_volumes_of_a_resource_are_fenced_by_one_call() -> None:
    pair = fencing_pair(STONITH, volumes=2)
    fence(pair.alice, 4)
    cut(pair)
    pair.run(3)
    assert pair.alice.handlers.calls.count("fence-peer") == 1
    assert pair.alice.is_(pdsk=Disk.Outdated)
    for number in range(2):
        pair.alice.write(0, b"v" * 4096, volume=number)


def test_dont_care_calls_no_handler() -> None:
    pair = fencing_pair("dont-care")
    cut(pair)
    pair.alice.write(0, b"a" * 4096)
    pair.run(5)
    assert "fence-peer" not in pair.alice.handlers.calls


@pytest.mark.parametrize("policy", [RESOURCE_ONLY, STONITH])
def test_the_fence_is_lifted_by_the_source_after_the_resync(policy: str) -> None:
    pair = fencing_pair(policy)
    fence(pair.alice, 4, seconds=0.1)
    first = pair.alice.handlers.calls.count("unfence-peer")
    cut(pair)
    pair.run(1)
    pair.alice.write(0, b"a" * 4096)
    mend(pair)
    pair.settle()
    pair.run(1)
    assert pair.alice.handlers.calls.count("unfence-peer") == first + 1
    assert "unfence-peer" not in pair.bob.handlers.calls


# A Secondary is to take over


def lonely_secondary(policy: str, status: int, *, restarted: bool) -> Node:
    """bob, whose Primary has died; restarted: since then he has been down as well, so that his disk
    is Consistent only."""
    pair = fencing_pair(policy)
    pair.alice.write(0, b"a" * 4096)
    pair.alice.flush()
    pair.alice.power_loss()
    pair.run(30)
    if restarted:
        pair.bob.kill()
        pair.bob.up()
        assert pair.bob.is_(disk=Disk.Consistent)
    fence(pair.bob, status)
    return pair.bob


@pytest.mark.parametrize("policy", [RESOURCE_ONLY, STONITH])
@pytest.mark.parametrize("status", [4, 5, 7])
def test_a_secondary_takes_over_once_the_primary_is_fenced(policy: str, status: int) -> None:
    bob = lonely_secondary(policy, status, restarted=False)
    bob.primary()
    assert bob.handlers.calls.count("fence-peer") == 1
    assert bob.is_(role=Role.Primary, disk=Disk.UpToDate, pdsk=Disk.Outdated)
    assert not bob.volume().state.suspended
    bob.write(4096, b"b" * 4096)
    assert bob.read(0, 4096) == b"a" * 4096


@pytest.mark.parametrize("status", [0, BROKEN, 20, 124, 127])
def test_a_promotion_is_refused_if_the_primary_cannot_be_fenced(status: int) -> None:
    bob = lonely_secondary(STONITH, status, restarted=False)
    with pytest.raises(StateRefused) as refused:
        bob.primary()
    assert refused.value.code == -7
    assert bob.is_(role=Role.Secondary, disk=Disk.UpToDate)
    bob.primary(force=True)
    assert bob.is_(role=Role.Primary, pdsk=Disk.Outdated)


def test_a_secondary_told_that_the_peer_is_primary_outdates_itself() -> None:
    bob = lonely_secondary(RESOURCE_ONLY, 6, restarted=False)
    with pytest.raises(StateRefused):
        bob.primary()
    assert bob.is_(role=Role.Secondary, disk=Disk.Outdated)
    with pytest.raises(NoUsableDataError):
        bob.primary()


@pytest.mark.parametrize(
    ("status", "taken_over"), [(3, True), (4, True), (5, False), (6, False), (7, True), (1, False)]
)
def test_consistent_data_become_good_only_if_the_peer_is_proved_not_to_have_newer(
    status: int, taken_over: bool
) -> None:
    """Unreachable (5) proves nothing to a node that may have missed what the peer did meanwhile."""
    bob = lonely_secondary(STONITH, status, restarted=True)
    if taken_over:
        bob.primary()
        assert bob.is_(role=Role.Primary, disk=Disk.UpToDate)
    else:
        with pytest.raises(NoUsableDataError) as refused:
            bob.primary()
        assert refused.value.exit_code == 17


def test_a_promotion_without_doubt_fences_nobody() -> None:
    pair = fencing_pair(STONITH)
    pair.alice.secondary()
    pair.bob.primary()
    assert "fence-peer" not in pair.bob.handlers.calls + pair.alice.handlers.calls


def test_the_peer_returns_while_a_promotion_waits_for_its_handler() -> None:
    """Then the handler's answer counts for nothing; the promotion is judged by what is now."""
    pair = fencing_pair(RESOURCE_ONLY)
    pair.alice.secondary()
    fence(pair.bob, 6, seconds=60)
    cut(pair)
    done: list[object] = []
    pair.bob.r.primary(False, done.append)
    pair.run(1)
    mend(pair)
    pair.run(70)
    assert done == [None]
    assert pair.bob.is_(Conn.Connected, Disk.UpToDate, Disk.UpToDate, Role.Primary)


def test_every_documented_exit_status_has_an_outcome() -> None:
    assert sorted(OUTCOMES) == [3, 4, 5, 6, 7]
