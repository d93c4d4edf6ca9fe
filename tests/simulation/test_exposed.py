"""A node that has lost its disk remembers what it held: a copy that lacks it is no substitute, also if the
node is Secondary meanwhile."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings
from replicator.errors import NoUsableDataError
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import MIB, Pair

NEWER = b"n" * 4096


@pytest.fixture
def pair():
    """alice was Primary alone, has been demoted, and has lost her disk; bob is down, and lacks a write."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alone(pair)
    lose_disk(pair.alice)
    return pair


def alone(pair):
    """alice is Primary, bob fails, alice goes on and is demoted."""
    pair.bob.kill()
    pair.run(1)
    pair.alice.write(MIB, NEWER)
    pair.alice.flush()
    pair.alice.secondary()


def lose_disk(node):
    node.do(lambda done: node.r.detach(0, True, done))
    node.pair.run(0.1)


def attach(node):
    node.do(lambda done: node.attach(0, done))
    node.pair.run(1)


def come_back(pair):
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected) and pair.bob.is_(Conn.Connected))


def warnings(pair):
    return [line for line in pair.lines if "is taken for Outdated" in line]


def test_it_is_not_promoted_on_an_older_copy(pair):
    come_back(pair)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.Outdated)
    assert len(warnings(pair)) == 1
    with pytest.raises(NoUsableDataError, match="the peer's Outdated"):
        pair.alice.primary()
    assert pair.bob.is_(role=Role.Secondary, disk=Disk.UpToDate)


def test_its_disk_comes_back_and_the_older_copy_gets_what_it_lacks(pair):
    come_back(pair)
    attach(pair.alice)
    pair.settle()
    pair.alice.primary()
    assert pair.alice.read(MIB, 4096) == NEWER
    assert pair.bob.data()[MIB : MIB + 4096] == NEWER


def test_an_older_copy_that_is_attached_while_connected_is_not_taken_either():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    lose_disk(pair.bob)
    pair.alice.write(MIB, NEWER)
    pair.alice.secondary()
    lose_disk(pair.alice)
    attach(pair.bob)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.Outdated)
    with pytest.raises(NoUsableDataError):
        pair.alice.primary()


def test_a_disk_that_fails_as_its_node_is_demoted_is_remembered():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    pair.bob.kill()
    pair.run(1)
    alice = pair.alice
    alice.write(MIB, NEWER)
    alice.disks[0].fails = lambda kind, _offset, _length: errno.EIO if kind == "flush" else 0
    alice.secondary()
    pair.run(1)
    assert alice.is_(disk=Disk.Diskless)
    come_back(pair)
    assert alice.is_(pdsk=Disk.Outdated)


def test_the_older_copy_stays_older_after_its_own_promotion(pair):
    """As with DRBD it may be promoted; what the lost disk had is not in it for all that."""
    come_back(pair)
    pair.bob.primary()
    pair.bob.write(2 * MIB, b"b" * 4096)
    pair.bob.secondary()
    pair.network.break_all()
    pair.run(5)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.Outdated)


def test_an_administrator_gives_up_what_the_lost_disk_had(pair):
    come_back(pair)
    pair.alice.disconnect()
    pair.alice.connect(discard_my_data=True)
    pair.run_until(lambda: pair.alice.is_(Conn.Connected))
    assert pair.alice.is_(pdsk=Disk.UpToDate)
    pair.alice.primary()
    pair.run(1)
    pair.network.break_all()
    pair.run(5)
    assert pair.alice.is_(Conn.Connected, pdsk=Disk.UpToDate, role=Role.Primary)


def test_a_primary_is_told_how_to_use_the_older_copy():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    pair.bob.kill()
    pair.run(1)
    alice = pair.alice
    alice.write(MIB, NEWER)
    lose_disk(alice)
    pair.bob.up()
    pair.run_until(lambda: alice.is_(Conn.StandAlone))
    assert "replicator secondary r0, then replicator connect --discard-my-data r0" in (
        alice.r.last_error
    )
    pair.run(1)
    alice.secondary()
    alice.connect(discard_my_data=True)
    pair.bob.connect()
    pair.run_until(lambda: alice.is_(Conn.Connected))
    alice.primary()
    assert alice.read(MIB, 4096) == bytes(4096)


def test_what_is_outdated_to_it_is_in_doubt_when_the_connection_has_ended(pair):
    """The peer may be promoted: under a fencing policy it has to be fenced."""
    come_back(pair)
    pair.bob.kill()
    pair.run(1)
    assert pair.alice.is_(pdsk=Disk.DUnknown)


def test_a_copy_that_went_on_from_the_lost_one_is_good():
    """Through as many generations as it likes, whoever was connected."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    lose_disk(alice)
    for turn in range(6):
        if turn % 2:
            alice.disconnect()
        bob.primary()
        bob.write(MIB, bytes([turn]) * 4096)
        bob.kill()
        bob.up()
        pair.run(1)
        if turn % 2:
            alice.connect()
        pair.run_until(lambda: alice.is_(Conn.Connected))
        assert alice.is_(disk=Disk.Diskless, pdsk=Disk.UpToDate)
    assert not warnings(pair)
    alice.primary()
    assert alice.read(MIB, 4096) == b"\5" * 4096


def test_a_copy_that_was_being_overwritten_leaves_nothing_to_remember():
    pair = Pair(size=16 * MIB, disk=DiskSettings(al_extents=67, c_max_rate=0))
    pair.up_synced()
    Guard(pair)
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    bob.primary()
    alice.r.invalidate(0, lambda _error: None)
    pair.run_until(lambda: alice.is_(Conn.SyncTarget))
    lose_disk(alice)
    assert alice.volume().exposed_uuid == 0
    pair.network.break_all()
    pair.run(5)
    assert alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)


@pytest.fixture
def used_the_peers():
    """alice, Primary, lost her disk and worked on with bob's; both are Secondary now."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    lose_disk(pair.alice)
    pair.alice.write(MIB, NEWER)
    pair.alice.secondary()
    return pair


def test_its_own_disk_is_outdated_if_it_has_used_the_peers_since(used_the_peers):
    pair = used_the_peers
    pair.bob.kill()
    pair.run(1)
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.Outdated)
    with pytest.raises(NoUsableDataError):
        pair.alice.primary()
    pair.bob.up()
    pair.settle()
    assert pair.alice.data()[MIB : MIB + 4096] == NEWER


def test_its_own_disk_is_outdated_if_the_peer_has_lost_its_own_meanwhile(used_the_peers):
    pair = used_the_peers
    lose_disk(pair.bob)
    attach(pair.alice)
    assert pair.alice.is_(Conn.Connected, Disk.Outdated, Disk.Diskless)
    for node in (pair.alice, pair.bob):
        with pytest.raises(NoUsableDataError):
            node.primary()
    attach(pair.bob)
    pair.settle()
    assert pair.alice.data()[MIB : MIB + 4096] == NEWER


def test_its_own_disk_is_declared_good_if_the_peers_is_lost_for_good(used_the_peers):
    pair = used_the_peers
    pair.bob.kill()
    pair.run(1)
    attach(pair.alice)
    pair.alice.primary(force=True)
    assert pair.alice.is_(disk=Disk.UpToDate, role=Role.Primary)
    assert pair.alice.read(MIB, 4096) == bytes(4096)


def test_its_own_disk_is_good_if_it_has_used_no_other(pair):
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.UpToDate)
    pair.alice.primary()
    assert pair.alice.read(MIB, 4096) == NEWER
