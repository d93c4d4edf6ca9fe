"""What the peer has said it received (protocol B) is on its disk when it takes over."""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk
from replicator.engine.settings import NetSettings
from tests.simulation.pair import Pair


def slow_flushes(node, seconds):
    """The node's disk takes this long for a flush; writes are as quick as ever."""
    disk = node.disks[0]
    flush = disk.flush

    def later(done):
        node.clock.call_later(seconds, lambda: flush(done))

    disk.flush = later


def test_a_write_received_while_the_peer_flushes_is_there_after_a_fail_over():
    pair = Pair(net=NetSettings(protocol="B"))
    pair.up_synced()
    slow_flushes(pair.bob, 0.5)
    pair.alice.write(0, b"a" * 4096)
    pair.alice.flush()
    pair.alice.write(8192, b"b" * 4096)
    pair.alice.kill()
    pair.run(2)
    pair.bob.primary()
    assert pair.bob.is_(disk=Disk.UpToDate)
    assert pair.bob.read(0, 4096) == b"a" * 4096
    assert pair.bob.read(8192, 4096) == b"b" * 4096


def test_a_peer_promoted_at_once_shows_all_that_was_acknowledged():
    for protocol in "BC":
        pair = Pair(net=NetSettings(protocol=protocol))
        pair.up_synced()
        pair.bob.disks[0].delay = 0.02
        for number in range(20):
            pair.alice.write(number * 4096, bytes([number + 1]) * 4096)
        pair.alice.kill()
        pair.run_until(lambda pair=pair: pair.bob.volume().state.peer.name == "Unknown")
        pair.bob.primary()
        for number in range(20):
            assert pair.bob.read(number * 4096, 4096) == bytes([number + 1]) * 4096


@pytest.mark.parametrize("csums", ["", "md5"])
def test_a_write_that_waits_for_an_epoch_does_not_overtake_a_resync_of_its_block(csums):
    """The source has overwritten it when the resync had been agreed but not begun: marked, not sent."""
    pair = Pair(net=NetSettings(protocol="A", csums_alg=csums))
    alice, bob = pair.alice, pair.bob
    pair.up_synced()
    before = alice.read(0, 4096)
    bob.disks[0].slow = lambda kind, offset, *_: (
        0.5 if (kind, offset) == ("write", 1 << 20) else 0.0
    )
    alice.write(1 << 20, b"a" * 4096)
    alice.flush()
    alice.write(0, b"w" * 4096)
    alice.r.invalidate_remote(0, lambda _error: None)
    pair.run_until(lambda: alice.is_(Conn.StartingSyncS))
    alice.write(0, before)
    assert alice.is_(Conn.StartingSyncS)
    pair.settle()
    assert alice.volume().bitmap.weight == bob.volume().bitmap.weight == 0
    assert bob.data() == alice.data()
