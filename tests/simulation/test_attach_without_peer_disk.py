"""A disk that comes back while the peer has none: there is nothing to compare it with."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import MIB, Pair


@pytest.fixture
def pair():
    """alice is Primary, and neither node has a disk."""
    pair = Pair()
    pair.up_synced()
    pair.alice.primary()
    Guard(pair)
    detach(pair.bob)
    detach(pair.alice)
    return pair


def detach(node):
    node.do(lambda done: node.r.detach(0, True, done))
    node.pair.run(0.1)


def attach(node):
    node.do(lambda done: node.attach(0, done))
    node.pair.run(1)


def test_a_primary_uses_its_disk_again_though_the_peer_has_none(pair):
    attach(pair.alice)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)
    assert pair.bob.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    pair.alice.write(MIB, b"a" * 4096)
    attach(pair.bob)
    pair.settle()
    assert pair.bob.data()[MIB : MIB + 4096] == b"a" * 4096


def test_a_primary_whose_disk_negotiates_as_the_connection_ends_begins_a_generation():
    pair = Pair()
    pair.up_synced()
    pair.alice.primary()
    Guard(pair)
    area = len(pair.bob.data())
    pair.bob.disks[0].fails = lambda kind, offset, _length: (
        errno.EIO if kind == "write" and offset >= area else 0
    )
    detach(pair.alice)
    assert pair.bob.is_(disk=Disk.Diskless), "it could not write its new generation"
    pair.bob.disks[0].fails = None
    pair.network.cut = {"bob"}
    attach(pair.alice)
    assert pair.alice.is_(disk=Disk.Negotiating), "nobody has answered yet"
    shared = pair.alice.volume().store.uuids.current
    pair.network.break_all()
    pair.run(0.1)
    pair.alice.write(MIB, b"a" * 4096)
    assert pair.alice.is_(disk=Disk.UpToDate)
    assert pair.alice.volume().store.uuids.current != shared


def test_a_primary_without_disk_uses_one_that_the_other_node_attaches():
    pair = Pair()
    pair.up_synced()
    pair.alice.primary()
    Guard(pair)
    detach(pair.alice)
    detach(pair.bob)
    attach(pair.bob)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    pair.alice.write(MIB, b"b" * 4096)
    assert pair.alice.read(MIB, 4096) == b"b" * 4096
    attach(pair.alice)
    pair.settle()
    assert pair.alice.data()[MIB : MIB + 4096] == b"b" * 4096, "bob has tracked what alice lacked"


def test_a_primary_without_disk_refuses_an_older_copy_that_the_other_node_attaches(pair):
    attach(pair.alice)
    pair.alice.write(MIB, b"a" * 4096)  # bob's disk lacks it
    detach(pair.alice)
    attach(pair.bob)
    assert pair.alice.is_(conn=Conn.StandAlone, disk=Disk.Diskless)
    assert any("this Primary has no disk" in line for line in pair.lines)
    with pytest.raises(OSError):
        pair.alice.read(MIB, 4096)


def test_two_secondaries_attach_one_after_the_other():
    pair = Pair()
    pair.up_synced()
    pair.alice.secondary()
    for node in (pair.alice, pair.bob):
        detach(node)
    attach(pair.alice)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)
    attach(pair.bob)
    pair.settle()
    assert pair.alice.synced


@pytest.mark.parametrize("slower", [1.0, 1.5, 2.0, 2.5, 3.0])
def test_two_disks_that_are_attached_at_the_same_moment_are_compared_as_they_are(slower):
    """One is used at once, because the other is not there yet, and gets a generation, slowly."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    area = len(pair.bob.data())
    pair.bob.disks[0].fails = lambda kind, offset, _length: (
        errno.EIO if kind == "write" and offset >= area else 0
    )
    detach(pair.alice)
    assert pair.bob.is_(disk=Disk.Diskless), "it could not write its new generation"
    pair.network.base_latency = 0.001
    answers = []
    disk = pair.alice.attach(0, answers.append)
    pair.bob.attach(0, answers.append, delay=0.0005 * slower)
    pair.run_until(lambda: pair.alice.is_(disk=Disk.Negotiating))
    disk.slow = lambda *_: 0.02
    pair.settle(5.0)
    assert answers == [None, None]
    assert not any("connection ended" in line for line in pair.lines)


def test_news_from_before_the_attach_does_not_decide_about_it():
    pair = Pair()
    pair.network.base_latency = 0.01  # the disk is opened faster than news travel
    pair.up_synced()
    pair.alice.primary()
    Guard(pair)
    pair.network.cut = {"alice", "bob"}
    detach(pair.alice)
    pair.network.cut = set()
    pair.network.break_all()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate))
    pair.run(1)
    answers = []
    pair.alice.volume().write(MIB, b"w" * 4096, False, answers.append)
    pair.bob.r.pause_sync(0, lambda _error: None)  # it tells its state, and has not got the write
    attach(pair.alice)
    pair.bob.r.resume_sync(0, lambda _error: None)
    pair.settle()
    assert answers == [0]
    assert pair.alice.data()[MIB : MIB + 4096] == b"w" * 4096
