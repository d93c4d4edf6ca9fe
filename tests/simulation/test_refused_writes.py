"""Writes that a peer without disk refuses: each is marked when the refusal comes, and a resync may have copied
it before the epoch that it belongs to is over."""

from __future__ import annotations

import pytest

from protocol.states import Disk
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import MIB, Pair, differing_blocks


@pytest.fixture
def pair():
    """bob, Secondary, has refused a write of alice's, and gets his disk back at once."""
    pair = Pair()
    pair.up_synced()
    Guard(pair)
    alice, bob = pair.alice, pair.bob
    alice.write(0, b"0" * 4096)
    alice.flush()
    bob.r.detach(0, False, lambda _error: None)
    pair.run_until(lambda: bob.is_(disk=Disk.Failed))
    assert alice.is_(pdsk=Disk.UpToDate), "it has not heard of that"
    alice.write(MIB, b"w" * 4096)
    assert alice.volume().bitmap.weight == 1
    pair.run_until(lambda: bob.is_(disk=Disk.Diskless))
    bob.do(lambda done: bob.attach(0, done))
    return pair


def test_what_a_resync_has_copied_is_not_marked_again_when_the_epoch_is_over(pair):
    alice, bob = pair.alice, pair.bob
    pair.run_until(lambda: alice.synced and bob.synced)
    assert alice.r.replication.log.writes, "the peer has not been asked for a flush yet"
    pair.run(2.0)
    assert alice.volume().bitmap.weight == bob.volume().bitmap.weight == 0
    assert not differing_blocks(alice, bob)


def test_what_no_resync_has_copied_stays_marked_when_the_connection_ends(pair):
    alice, bob = pair.alice, pair.bob
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(2.0)
    assert alice.volume().bitmap.weight == 1
    pair.network.cut = set()
    pair.settle()
    assert not differing_blocks(alice, bob)
