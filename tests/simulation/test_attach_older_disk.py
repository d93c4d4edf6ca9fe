"""A Primary's disk that was given up, and comes back without a write that was completed meanwhile: under the
name that the data in use have, as long as the peer has not told that it has begun a generation."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import FLEXIBLE, MIB, Pair, differing_blocks

BEFORE, AFTER = b"b" * 4096, b"a" * 4096


@pytest.fixture
def pair():
    """alice, Primary, has lost her disk with a write that bob has, and is about to lose bob, too."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alice = pair.alice
    alice.write(MIB, BEFORE)
    alice.flush()
    disk = alice.disks[0]
    disk.slow = lambda kind, offset, _length: 0.01 if (kind, offset) == ("write", MIB) else 0.0
    disk.fails = lambda kind, offset, _length: errno.EIO if (kind, offset) == ("write", MIB) else 0
    results: list[int] = []
    alice.volume().write(MIB, AFTER, False, results.append)
    pair.run_until(lambda: alice.is_(disk=Disk.Failed))
    pair.network.cut = {"alice"}
    pair.run_until(lambda: alice.is_(disk=Disk.Diskless))
    assert results == [0], "the peer has it"
    pair.network.break_all()
    pair.run(0.1)
    assert alice.volume().exposed_uuid >> 1 == pair.bob.volume().store.uuids.current >> 1
    return pair


def attach(node):
    node.do(lambda done: node.attach(0, done))
    node.pair.run(0.1)


def meet(pair):
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected) and pair.bob.is_(Conn.Connected))


def assert_nothing_is_lost(pair):
    pair.settle()
    assert pair.alice.data()[MIB : MIB + 4096] == AFTER
    assert pair.bob.data()[MIB : MIB + 4096] == AFTER


def test_it_gets_the_write_from_the_peer(pair):
    meet(pair)
    attach(pair.alice)
    assert_nothing_is_lost(pair)


def test_it_gets_the_write_also_if_nobody_is_primary_any_more(pair):
    meet(pair)
    pair.alice.secondary()
    attach(pair.alice)
    assert_nothing_is_lost(pair)


def test_applications_do_not_see_the_older_data_while_the_peer_is_away(pair):
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.Inconsistent)
    with pytest.raises(OSError):
        pair.alice.read(MIB, 4096)
    pair.network.cut = set()
    assert_nothing_is_lost(pair)


def test_applications_do_not_see_the_older_data_while_the_peer_has_no_disk(pair):
    pair.bob.do(lambda done: pair.bob.r.detach(0, False, done))
    meet(pair)
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.Inconsistent)
    attach(pair.bob)
    assert_nothing_is_lost(pair)


def test_a_generation_of_the_peer_that_got_lost_on_its_way_does_not_matter():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    pair.alice.write(MIB, BEFORE)
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    data = next(c for c in pair.network.channels if c.owner == "bob")
    data.slowness = 10000.0
    pair.alice.write(MIB, AFTER)  # acknowledged by the other socket
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    attach(pair.alice)
    with pytest.raises(OSError):
        pair.alice.read(MIB, 4096)
    pair.network.cut = set()
    assert_nothing_is_lost(pair)


def test_a_write_that_began_without_a_disk_and_ends_when_there_is_one_is_missed_by_that():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alice, results = pair.alice, []
    alice.write(MIB, BEFORE)
    alice.do(lambda done: alice.r.detach(0, False, done))
    data = next(c for c in pair.network.channels if c.owner == "bob")
    data.slowness = 10000.0
    pair.bob.disks[0].slow = lambda kind, _offset, _length: 0.2 if kind == "write" else 0.0
    alice.volume().write(MIB, AFTER, False, results.append)
    attach(alice)
    assert alice.is_(disk=Disk.Negotiating)
    assert results == []
    pair.run(0.2)
    assert results == [0]
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(0.1)
    with pytest.raises(OSError):
        alice.read(MIB, 4096)
    pair.network.cut = set()
    assert_nothing_is_lost(pair)


@pytest.fixture
def unmarked():
    """alice, Primary and alone, has a disk again that lacks a write, and whose own log and bitmap know
    nothing of that: it went to an extent that was not active when the disk was given up."""
    pair = Pair(size=8 * MIB)
    pair.up_synced()
    Guard(pair)
    alice = pair.alice
    alice.write(MIB, BEFORE)
    alice.do(lambda done: alice.r.detach(0, False, done))
    data = next(c for c in pair.network.channels if c.owner == "bob")
    data.slowness = 10000.0  # bob has begun a generation, but nobody hears of it
    alice.write(5 * MIB, AFTER)
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    attach(alice)
    assert alice.is_(disk=Disk.Inconsistent)
    bitmap = alice.volume().bitmap
    assert bitmap is not None
    assert not bitmap.any_in(5 * MIB >> 12, 1)
    return pair


def test_applications_do_not_see_older_data_either_where_the_disk_has_no_mark(unmarked):
    with pytest.raises(OSError):
        unmarked.alice.read(5 * MIB, 4096)
    unmarked.network.cut = set()
    unmarked.settle()
    assert unmarked.alice.read(5 * MIB, 4096) == AFTER


def test_nor_when_the_connection_breaks_again_before_the_marks_of_the_peer_are_here(unmarked):
    alice = unmarked.alice
    unmarked.network.cut = set()
    unmarked.run_until(lambda: alice.is_(Conn.WFBitMapT))
    unmarked.network.cut = {"alice", "bob"}
    unmarked.network.break_all()
    unmarked.run(0.1)
    with pytest.raises(OSError):
        alice.read(5 * MIB, 4096)


def test_what_is_known_to_be_good_can_be_read_when_a_resync_of_it_is_interrupted(unmarked):
    alice = unmarked.alice
    unmarked.network.cut = set()
    unmarked.bob.disks[0].slow = lambda kind, _offset, _length: 9.0 if kind == "read" else 0.0
    unmarked.run_until(lambda: alice.is_(Conn.SyncTarget))
    unmarked.network.cut = {"alice", "bob"}
    unmarked.network.break_all()
    unmarked.run(0.1)
    assert alice.read(6 * MIB, 4096) == bytes(4096), "neither node has written there"
    with pytest.raises(OSError):
        alice.read(5 * MIB, 4096)


def test_a_disk_that_has_missed_nothing_is_used_at_once():
    pair = Pair()
    pair.up_synced()
    pair.network.cut = {"alice"}  # bob does not hear of what follows
    pair.alice.do(lambda done: pair.alice.r.detach(0, True, done))
    pair.network.break_all()
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.UpToDate)


def test_a_disk_that_has_got_everything_since_is_used_at_once(pair):
    meet(pair)
    attach(pair.alice)
    assert_nothing_is_lost(pair)
    pair.network.cut = {"alice"}
    pair.alice.do(lambda done: pair.alice.r.detach(0, True, done))
    pair.network.break_all()
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.UpToDate)


def test_a_disk_whose_flush_failed_lacks_what_the_peer_alone_has_made_stable():
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alice = pair.alice
    alice.write(MIB, AFTER)
    alice.disks[0].fails = lambda kind, _offset, _length: errno.EIO if kind == "flush" else 0
    alice.flush()
    pair.network.cut = {"alice", "bob"}  # bob's new generation is not heard of
    pair.run_until(lambda: alice.is_(disk=Disk.Diskless))
    pair.network.break_all()
    attach(alice)
    assert alice.is_(disk=Disk.Inconsistent)
    pair.network.cut = set()
    assert_nothing_is_lost(pair)


def test_what_is_written_after_it_is_stable_before_its_superblock_says_so():
    """It says already that a Primary writes here when it is attached, so nothing is written then; and
    the metadata, on a disk of their own, do not order what was written to this one."""
    pair = Pair(placement=FLEXIBLE)
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    pair.network.cut = {"alice"}
    alice.do(lambda done: alice.r.detach(0, True, done))
    pair.network.break_all()
    meet(pair)
    attach(alice)
    assert alice.synced, "bob has not heard of it"
    assert bob.synced
    for block in range(32):
        alice.write(block * 4096, AFTER)
    alice.disks[0].slow = lambda kind, _offset, _length: 1.0 if kind == "flush" else 0.0
    alice.r.secondary(lambda _error: None)
    pair.run(0.5)
    alice.power_loss()
    pair.run(1)
    alice.up()
    pair.settle()
    assert not differing_blocks(alice, bob)
