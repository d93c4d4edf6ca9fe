"""A source that has not heard of the end of its resync when both nodes lose power: the target, complete,
may have been at work since."""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import NetSettings
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import Pair


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_what_a_complete_target_has_flushed_since_is_not_overwritten(protocol):
    pair = Pair(net=NetSettings(protocol=protocol))
    pair.up_synced()
    Guard(pair)
    alice, bob = pair.alice, pair.bob
    alice.primary()
    alice.do(lambda done: alice.r.invalidate(0, done))
    pair.run_until(lambda: alice.is_(Conn.SyncTarget))
    bob.disks[0].slow = lambda kind, _offset, _length: 0.1 if kind != "read" else 0.0
    pair.run_until(lambda: alice.is_(Conn.Connected, disk=Disk.UpToDate), 20)
    assert bob.is_(Conn.SyncSource), "it has to write its bitmap first"
    alice.write(0, b"f" * 4096)
    alice.flush()
    for node in pair.alice, pair.bob:
        node.power_loss()
    for node in pair.alice, pair.bob:
        node.up()
    pair.settle()
    assert alice.is_(role=Role.Secondary, conn=Conn.Connected, disk=Disk.UpToDate)
    assert alice.data()[:4096] == bob.data()[:4096] == b"f" * 4096
