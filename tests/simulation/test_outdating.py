"""Outdated copies: the command `outdate`, and nodes that part on request under a fencing policy."""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk, Role
from replicator.errors import NoUsableDataError, ReplicatorError, StateRefused
from tests.simulation.pair import Node, Pair
from tests.simulation.test_fencing import RESOURCE_ONLY, STONITH, cut, fence, fencing_pair, mend


def outdate(node: Node) -> int:
    """The exit code of `outdate`."""
    try:
        node.do(lambda done: node.r.outdate(0, done))
    except ReplicatorError as error:
        return error.exit_code
    return 0


# The command


def test_a_disconnected_secondary_is_outdated_and_cannot_take_over() -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    cut(pair)
    assert outdate(pair.bob) == 0
    assert outdate(pair.bob) == 0, "twice is no error"
    fence(pair.bob, 5)
    with pytest.raises(NoUsableDataError):
        pair.bob.primary()
    pair.bob.power_loss()
    pair.bob.up(connect=False)
    assert pair.bob.is_(disk=Disk.Outdated), "it is durable before it is answered"


def test_a_connected_secondary_refuses_to_be_outdated() -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    assert outdate(pair.bob) == 11
    assert pair.bob.is_(Conn.Connected, Disk.UpToDate)


def test_a_secondary_that_has_not_noticed_the_loss_yet_finds_out_and_is_outdated() -> None:
    """The Primary's fence-peer handler arrives before the Secondary's own keep-alive fails."""
    pair = fencing_pair(STONITH)
    pair.network.cut = {"alice"}
    assert pair.bob.is_(Conn.Connected)
    assert outdate(pair.bob) == 0
    assert pair.bob.is_(disk=Disk.Outdated)


@pytest.mark.parametrize("connected", [True, False])
def test_a_primary_cannot_be_outdated(connected: bool) -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    if not connected:
        cut(pair)
    assert outdate(pair.alice) == 17
    assert pair.alice.is_(disk=Disk.UpToDate)


def test_inconsistent_or_missing_data_cannot_be_outdated() -> None:
    pair = Pair()
    pair.bob.up(connect=False)
    assert outdate(pair.bob) == 5
    pair.bob.do(lambda done: pair.bob.r.detach(0, False, done))
    assert outdate(pair.bob) == 5


def test_a_disk_that_is_being_attached_is_not_outdated_behind_its_back() -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    bob = pair.bob
    bob.disconnect()
    bob.do(lambda done: bob.r.detach(0, False, done))
    bob.attach(0, lambda _error: None, delay=1.0)
    pair.run(0.1)
    assert bob.is_(disk=Disk.Attaching)
    assert outdate(bob) == 11


def test_the_whole_way_the_primary_outdates_its_peer_through_its_handler() -> None:
    """As with drbd-peer-outdater: the handler has the other node run `outdate`, and its exit code
    becomes the handler's (0 -> 4, 5 -> 3, 17 -> 6)."""
    pair = fencing_pair(STONITH)
    asked: list[None] = []

    def handler() -> int:
        asked.append(None)
        pair.bob.r.volumes[0].change(disk=Disk.Outdated)
        return 4

    pair.alice.handlers.answers["fence-peer"] = handler
    cut(pair)
    pair.run(1)
    assert asked and pair.alice.is_(pdsk=Disk.Outdated)
    pair.alice.write(0, b"a" * 4096)
    with pytest.raises(NoUsableDataError):
        pair.bob.primary()
    mend(pair)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


# Parting


@pytest.mark.parametrize("policy", [RESOURCE_ONLY, STONITH])
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_secondary_that_parts_from_its_primary_is_outdated_and_nobody_is_fenced(
    policy: str, who: str
) -> None:
    pair = fencing_pair(policy)
    generation = pair.alice.volume().store.uuids.current
    getattr(pair, who).disconnect()
    pair.run(0.5)
    assert pair.bob.is_(disk=Disk.Outdated)
    assert pair.alice.is_(disk=Disk.UpToDate, pdsk=Disk.Outdated)
    assert "fence-peer" not in pair.alice.handlers.calls
    pair.alice.write(0, b"a" * 4096)
    assert pair.alice.volume().store.uuids.current != generation
    with pytest.raises(NoUsableDataError):
        pair.bob.primary()
    getattr(pair, who).connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_a_secondary_that_is_shut_down_is_outdated() -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    pair.bob.do(lambda done: pair.bob.r.shutdown(done))
    pair.bob.up(connect=False)
    assert pair.bob.is_(disk=Disk.Outdated)
    assert pair.alice.is_(pdsk=Disk.Outdated)


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_secondary_is_outdated_on_its_disk_before_the_primary_counts_on_it(who: str) -> None:
    pair = fencing_pair(STONITH)
    pair.disk_delay = 0.01
    getattr(pair, who).r.disconnect(False, lambda _error: None)
    pair.run_until(lambda: pair.alice.is_(pdsk=Disk.Outdated))
    pair.bob.power_loss()
    pair.bob.up(connect=False)
    assert pair.bob.is_(disk=Disk.Outdated)


def test_a_primary_without_good_data_of_its_own_does_not_outdate_the_peers() -> None:
    pair = fencing_pair(STONITH)
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    pair.alice.disconnect()
    assert pair.bob.is_(disk=Disk.UpToDate)


def test_two_secondaries_part_without_either_being_outdated() -> None:
    pair = fencing_pair(STONITH)
    pair.alice.secondary()
    pair.bob.disconnect()
    pair.run(0.5)
    assert pair.alice.is_(disk=Disk.UpToDate) and pair.bob.is_(disk=Disk.UpToDate)


def test_without_a_fencing_policy_a_disconnect_outdates_nobody() -> None:
    pair = fencing_pair("dont-care")
    pair.bob.disconnect()
    pair.run(0.5)
    assert pair.bob.is_(disk=Disk.UpToDate)
    assert pair.alice.is_(pdsk=Disk.DUnknown)


def test_a_forced_disconnect_asks_nobody_and_so_has_to_fence() -> None:
    pair = fencing_pair(STONITH)
    fence(pair.alice, 4, seconds=0.1)
    pair.alice.do(lambda done: pair.alice.r.disconnect(True, done))
    assert pair.alice.volume().state.susp_fen
    pair.run(1)
    assert pair.alice.is_(pdsk=Disk.Outdated, role=Role.Primary)


def test_a_peer_that_does_not_answer_a_disconnect_is_not_taken_for_outdated() -> None:
    """It may be dead, and come back with data that look good: so it has to be fenced."""
    pair = fencing_pair(STONITH)
    fence(pair.alice, 1)
    pair.bob.power_loss()
    pair.alice.disconnect()
    assert pair.alice.is_(Conn.StandAlone, pdsk=Disk.DUnknown)
    assert "fence-peer" in pair.alice.handlers.calls
    assert pair.alice.volume().state.susp_fen


def test_a_secondary_with_worthless_data_just_goes() -> None:
    pair = fencing_pair(STONITH)
    pair.bob.do(lambda done: pair.bob.r.detach(0, False, done))
    pair.bob.disconnect()
    assert pair.bob.is_(Conn.StandAlone)


def test_an_outdated_secondary_is_not_asked_twice() -> None:
    pair = fencing_pair(STONITH)
    pair.bob.disconnect()
    pair.run(0.1)
    with pytest.raises(StateRefused):
        pair.bob.primary()


def test_an_outdated_secondary_is_not_promoted_because_it_meets_a_node_without_a_disk() -> None:
    pair = fencing_pair(RESOURCE_ONLY)
    cut(pair)
    assert outdate(pair.bob) == 0
    pair.alice.secondary()
    pair.alice.do(lambda done: pair.alice.r.detach(0, True, done))
    mend(pair)
    pair.run_until(lambda: pair.bob.is_(Conn.Connected, Disk.Outdated, Disk.Diskless))
    with pytest.raises(NoUsableDataError):
        pair.bob.primary()
    pair.bob.primary(force=True)
    assert pair.bob.is_(role=Role.Primary, disk=Disk.UpToDate)
