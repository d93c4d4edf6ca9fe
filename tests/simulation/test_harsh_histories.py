"""Histories at their worst: a fixed set, and those that found something."""

from __future__ import annotations

from errno import EIO

import pytest

from protocol.states import Conn, Disk
from tests.simulation.harsh_histories import HarshHistory
from tests.simulation.pair import Node

FOUND = (9, 84, 94, 113, 153, 1138, 1360, 1863, 20591)
"""Each of these once ended with copies that differed, with sound nodes accusing each other, or (the last)
with a promise that the account expected of the wrong copy."""


@pytest.mark.parametrize("seed", sorted({*range(30), *FOUND}))
def test_no_fault_at_a_moment_that_matters_loses_what_was_promised(seed):
    HarshHistory(seed).run()


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("invalidated", [False, True])
def test_no_disk_is_replaced_while_the_other_copy_is_half_overwritten(invalidated, detached):
    history = HarshHistory(1, acts=[])
    alice, bob = history.nodes
    history.pair.up_synced()
    history.current = {"alice", "bob"}
    alice.secondary()
    if invalidated:
        for number in bob.r.volumes:
            bob.do(lambda done, n=number: bob.r.invalidate(n, done))
        assert bob.is_(disk=Disk.Inconsistent)
    alice.kill()
    history.pair.run(5)
    if detached:
        for number in bob.r.volumes:
            bob.do(lambda done, n=number: bob.r.detach(n, False, done))
    history._replace_disk()
    assert history.blank == (set() if invalidated else {"alice"})


PLACE = 800
"""A sector that a block begins with."""


def played_out(protocol: str) -> tuple[HarshHistory, Node, Node]:
    """A pair in sync, its Primary, which has written a block, and the Secondary."""
    history = HarshHistory({"A": 2, "C": 7}[protocol], acts=[])
    history.run()
    assert (history.protocol, history.pair.net.after_sb_0pri) == (protocol, "disconnect")
    primary = history._primary()
    assert primary is not None
    history._put(0, range(PLACE, PLACE + 8), primary)
    history.pair.run(1.0)
    return history, primary, history._other(primary)


def written_in_the_same_block(history: HarshHistory, primary: Node) -> bool:
    """Whether that ends well; what was flushed and is not there would be found now."""
    assert not history._may_suspect()
    history._put(0, range(PLACE + 3, PLACE + 4), primary)
    history.pair.run(1.0)
    return history._together() or primary.is_(disk=Disk.Diskless, pdsk=Disk.UpToDate)


def test_under_a_what_a_primary_loses_with_its_disk_and_its_connection_binds_nobody() -> None:
    history, primary, _other = played_out("A")
    pair = history.pair
    pair.network.cut = {primary.name}
    history._put(0, range(PLACE + 1, PLACE + 3), primary)
    pair.run(0.05)
    history._ask_flush(primary)
    pair.run(0.05)
    primary.disks[0].fails = lambda *_: EIO
    history._put(0, range(PLACE + 64, PLACE + 65), primary)
    pair.run(0.05)
    assert primary.is_(disk=Disk.Diskless)
    pair.network.cut = set()
    pair.network.break_all()
    pair.run(20.0)
    assert written_in_the_same_block(history, primary)


def test_what_a_primary_had_flushed_binds_nobody_after_force_on_its_half_made_copy() -> None:
    history, primary, other = played_out("C")
    pair = history.pair
    primary.do(lambda done: primary.r.detach(0, False, done))
    history._alone()
    history._put(0, range(PLACE + 1, PLACE + 3), primary)
    pair.run(1.0)
    other.do(lambda done: other.r.pause_sync(0, done))
    history._attach_all(primary)
    history._ask_flush(primary)
    pair.run(1.0)
    assert primary.is_(conn=Conn.PausedSyncT)
    history._end_of(other, Node.kill)
    pair.run(3.0)
    primary.secondary()
    history._force()
    other.up()
    pair.run(5.0)
    assert history._stand_alone() and history.split
    history.discarded = other.name
    other.connect(discard_my_data=True)
    primary.connect()
    pair.settle()
    history._note_current()
    assert written_in_the_same_block(history, primary)


def test_what_a_peer_without_disk_refuses_is_not_expected_there_before_that_is_known() -> None:
    history, primary, other = played_out("C")
    other.r.detach(0, False, lambda _error: None)
    history.pair.run_until(lambda: other.is_(disk=Disk.Failed))
    history._put(0, range(PLACE, PLACE + 8), primary)
    assert primary.is_(pdsk=Disk.UpToDate), "it has not heard of that"
    history._alone()
    assert history._promised_by(primary, 0) == history.current == {primary.name}
