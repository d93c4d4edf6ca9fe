"""A Primary without a disk gets one while its peer serves it: what happens to that disk is no reason to lose
the peer, and what the peer serves is no reason to lose the disk."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk
from tests.simulation.pair import MIB, Pair

pytestmark = pytest.mark.python_engine


@pytest.fixture
def pair():
    pair = Pair()
    pair.up_synced()
    pair.alice.primary()
    pair.alice.do(lambda done: pair.alice.r.detach(0, True, done))
    pair.run(0.1)
    pair.alice.write(MIB, b"a" * 4096)
    return pair


def when_it_becomes(volume, disk, action):
    """Run `action` just before the volume's disk state becomes `disk`."""
    change = volume.change

    def changed(**what):
        if what.get("disk") is disk:
            action()
        change(**what)

    volume.change = changed


def test_a_flush_that_found_no_disk_does_not_fail_the_one_that_comes(pair):
    alice, answers = pair.alice, []
    volume = alice.volume()
    when_it_becomes(volume, Disk.Negotiating, lambda: volume.application.flush(answers.append))
    alice.do(lambda done: alice.attach(0, done))
    pair.settle()
    assert answers == [0]
    assert alice.is_(disk=Disk.UpToDate)
    assert not [line for line in pair.lines if "local flush" in line]


def test_a_disk_that_fails_as_the_peers_bitmap_is_on_its_way_costs_no_connection(pair):
    alice, bob = pair.alice, pair.bob
    link, volume, exchange = alice.r.link, alice.volume(), bob.volume().exchange
    send = exchange._send_bitmap

    def send_as_the_disk_fails():
        exchange._send_bitmap = send
        send()
        volume.local_io_error("superblock write", 0, errno.EIO, volume.store.data)

    exchange._send_bitmap = send_as_the_disk_fails
    alice.do(lambda done: alice.attach(0, done))
    pair.run_until(lambda: alice.is_(disk=Disk.Diskless))
    pair.run(1)
    assert alice.r.link is link
    assert alice.read(MIB, 4096) == b"a" * 4096
    alice.do(lambda done: alice.attach(0, done))
    pair.settle()
    assert alice.data() == bob.data()


def test_what_the_peer_makes_of_a_disk_that_has_gone_is_not_taken_for_an_answer_about_the_next():
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    alice.do(lambda done: alice.r.detach(0, True, done))
    pair.network.break_all()
    pair.run_until(lambda: alice.is_(Conn.Connected) and bob.is_(Conn.Connected))
    ours, theirs = (
        next(c for c in pair.network.channels if c.owner == n) for n in ("alice", "bob")
    )
    theirs.slowness = 2000.0
    alice.do(lambda done: alice.attach(0, done))
    pair.run_until(lambda: bob.is_(pdsk=Disk.UpToDate))
    alice.do(lambda done: alice.r.detach(0, True, done))
    pair.run_until(lambda: bob.is_(pdsk=Disk.Diskless))
    ours.slowness = 5000.0
    known: list[Disk] = []
    when_it_becomes(alice.volume(), Disk.UpToDate, lambda: known.append(bob.volume().state.pdsk))
    alice.attach(0, lambda _error: None)
    pair.settle()
    assert known == [Disk.UpToDate]


def test_a_disk_that_is_to_be_compared_is_not_used_unseen_if_the_connection_ends_before(pair):
    alice = pair.alice
    refused = []
    alice.attach(0, refused.append)
    pair.run_until(lambda: alice.volume().store is not None)
    assert alice.is_(Conn.Connected, disk=Disk.Attaching)
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(1)
    assert alice.is_(disk=Disk.Diskless)
    assert "can only attach to the data that is in use" in f"{refused[0]}"
    pair.network.cut = set()
    pair.run_until(lambda: alice.is_(Conn.Connected))
    alice.do(lambda done: alice.attach(0, done))
    pair.settle()
    assert alice.read(MIB, 4096) == b"a" * 4096
    assert alice.data() == pair.bob.data()
