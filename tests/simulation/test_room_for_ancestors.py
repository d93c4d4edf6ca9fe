"""A set of UUIDs has room for two former generations: what must not use that up before a target, which
has not heard the name of its resync, is met again."""

from __future__ import annotations

from errno import EIO

from protocol.states import Conn, Disk
from tests.simulation.pair import Pair, differing_blocks


def test_an_ancestor_whose_source_lost_its_disk_before_the_full_sync_is_no_stranger():
    """The flush before the resync fails, and the Primary reads nothing of the older copy. Its disk comes
    back alone, with a generation of its own: the first since the two met."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.disconnect()
    alice.write(0, b"1" * 4096)
    bob.connect()
    pair.run_until(lambda: bob.synced)
    assert alice.is_(Conn.SyncSource), "it has not heard of the end"
    pair.network.break_all()
    alice.disks[0].fails = lambda kind, _offset, _length: EIO if kind == "flush" else 0
    pair.run_until(lambda: alice.is_(disk=Disk.Diskless), 20)
    assert bob.is_(disk=Disk.Outdated)
    alice.disks[0].fails = None
    alice.disconnect()
    pair.run(2)
    alice.do(lambda done: alice.attach(0, done))
    alice.write(4096, b"2" * 4096)
    alice.connect()
    pair.settle()
    assert alice.data()[:8192] == b"1" * 4096 + b"2" * 4096
    assert not differing_blocks(alice, bob)


def test_an_ancestor_is_no_stranger_however_often_its_source_begins_anew_before_the_full_sync():
    """It knows that the source has marked everything for it, and nothing else. Each restart of the source, Primary
    and alone, begins a generation: the peer may have completed a resync that this node has not heard of."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.disconnect()
    alice.write(0, b"1" * 4096)
    bob.connect()
    pair.run_until(lambda: bob.synced)
    assert alice.is_(Conn.SyncSource), "it has not heard of the end"
    pair.network.break_all()
    bob.disks[0].slow = lambda *_: 9.0
    pair.run_until(lambda: alice.is_(Conn.WFBitMapS))
    pair.run(0.1)
    assert alice.is_(Conn.WFBitMapS)
    for number in range(4):
        alice.kill()
        bob.disconnect()
        alice.up()
        alice.primary()
        alice.write(4096, bytes([number + 1]) * 4096)
    bob.disks[0].slow = None
    bob.connect()
    pair.settle()
    assert bob.data()[:8192] == b"1" * 4096 + b"\4" * 4096
    assert not differing_blocks(alice, bob)
