"""I/O that is suspended: by an administrator, or because no good data can be reached."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk, Role
from replicator.errors import StateRefused
from tests.simulation.pair import Node, Pair
from tests.simulation.test_pair_faults import reattach


def waiting_pair(**options: object) -> Pair:
    pair = Pair(on_no_data="suspend-io", **options)  # type: ignore[arg-type]
    pair.up_synced()
    return pair


def lose_link(pair: Pair) -> None:
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(0.01)


def mend(pair: Pair) -> None:
    pair.network.cut = set()


def diskless_primary(pair: Pair) -> Node:
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    return pair.alice


def start(node: Node, offset: int, data: bytes) -> list[int]:
    answers: list[int] = []
    node.volume().write(offset, data, False, answers.append)
    return answers


def start_read(node: Node, offset: int, length: int) -> list[tuple[int, bytes]]:
    answers: list[tuple[int, bytes]] = []
    node.volume().read(offset, length, lambda errno, data: answers.append((errno, data)))
    return answers


# No good data


def test_requests_wait_for_good_data_and_then_go_on() -> None:
    pair = waiting_pair()
    alice = diskless_primary(pair)
    lose_link(pair)
    written, read = start(alice, 0, b"a" * 4096), start_read(alice, 8192, 4096)
    flushed: list[int] = []
    alice.volume().flush(flushed.append)
    pair.run(60)
    assert (written, read, flushed) == ([], [], [])
    shown = alice.r.snapshot().volumes[0]
    assert shown.susp_nod and "good data" in shown.waiting_for
    mend(pair)
    pair.run(20)
    assert (written, flushed) == ([0], [0])
    assert read == [(0, bytes(4096))]
    assert not alice.volume().state.susp_nod
    assert pair.bob.data()[:4096] == b"a" * 4096


def test_what_was_under_way_when_the_last_good_data_went_is_tried_again() -> None:
    pair = waiting_pair()
    alice = diskless_primary(pair)
    pair.network.cut = {"bob"}
    written = [start(alice, 4096 * (n % 3), bytes([n + 1]) * 4096) for n in range(9)]
    read = start_read(alice, 1 << 20, 4096)
    pair.run(0.01)
    lose_link(pair)
    pair.run(5)
    assert not any(written) and not read
    mend(pair)
    pair.run(20)
    assert [errno for one in written for errno in one] == [0] * 9
    assert read == [(0, bytes(4096))]
    assert pair.bob.data()[: 3 * 4096] == b"".join(bytes([n]) * 4096 for n in (7, 8, 9))


def test_a_disk_that_fails_while_the_peer_is_away_suspends_and_its_return_resumes() -> None:
    pair = waiting_pair()
    pair.alice.write(0, b"o" * 4096)
    pair.bob.kill()
    pair.run(2)
    alice = pair.alice
    limit = len(alice.data())
    alice.disks[0].fails = lambda kind, offset, _length: (
        errno.EIO if kind == "write" and offset < limit else 0
    )
    written = start(alice, 0, b"a" * 4096)
    pair.run(5)
    assert written == [] and alice.is_(disk=Disk.Diskless)
    reattach(alice)
    pair.run(1)
    assert written == [0]
    assert alice.read(0, 4096) == b"a" * 4096
    pair.bob.up()
    pair.settle()
    assert alice.data() == pair.bob.data()


def test_resume_io_without_data_means_errors() -> None:
    pair = waiting_pair()
    alice = diskless_primary(pair)
    lose_link(pair)
    written, read = start(alice, 0, b"a" * 4096), start_read(alice, 0, 4096)
    pair.run(1)
    alice.do(alice.r.resume_io)
    pair.run(1)
    assert written == [errno.EIO] and read[0][0] == errno.EIO


def test_io_error_is_the_default() -> None:
    pair = Pair()
    pair.up_synced()
    alice = diskless_primary(pair)
    lose_link(pair)
    written = start(alice, 0, b"a" * 4096)
    pair.run(1)
    assert written == [errno.EIO] and not alice.volume().state.suspended


def test_other_data_do_not_thaw_what_waits() -> None:
    """The peer that comes was promoted meanwhile: the application's view must not change under it."""
    pair = waiting_pair()
    alice = diskless_primary(pair)
    alice.write(0, b"o" * 4096)
    lose_link(pair)
    read = start_read(alice, 0, 4096)
    pair.bob.primary()
    pair.bob.write(0, b"n" * 4096)
    pair.bob.secondary()
    mend(pair)
    pair.run(30)
    assert read == []
    assert alice.is_(Conn.StandAlone)


# By hand


def test_suspend_io_holds_requests_and_resume_io_lets_them_go() -> None:
    pair = Pair()
    pair.up_synced()
    alice = pair.alice
    alice.do(alice.r.suspend_io)
    written, read = start(alice, 0, b"a" * 4096), start_read(alice, 8192, 4096)
    pair.run(100)
    assert (written, read) == ([], [])
    shown = alice.r.snapshot().volumes[0]
    assert shown.susp and "replicator resume-io r0" in shown.waiting_for
    assert alice.is_(Conn.Connected), "suspended I/O is no reason to lose the peer"
    alice.do(alice.r.resume_io)
    pair.run(1)
    assert (written, read) == ([0], [(0, bytes(4096))])
    assert pair.bob.data()[:4096] == b"a" * 4096


def test_a_write_that_comes_right_after_the_resume_does_not_overtake_those_that_waited() -> None:
    pair = Pair()
    pair.up_synced()
    alice = pair.alice
    alice.do(alice.r.suspend_io)
    answers = [start(alice, 0, b"1" * 4096), start(alice, 0, b"2" * 4096)]
    alice.r.resume_io(lambda _error: None)
    answers.append(start(alice, 0, b"3" * 4096))
    pair.run(1)
    assert [errno for one in answers for errno in one] == [0, 0, 0]
    assert alice.read(0, 4096) == b"3" * 4096
    assert pair.bob.data()[:4096] == b"3" * 4096


def test_suspending_and_resuming_twice_is_no_error() -> None:
    pair = Pair()
    pair.up_synced()
    for command in (pair.alice.r.suspend_io, pair.alice.r.resume_io):
        pair.alice.do(command)
        pair.alice.do(command)
    pair.alice.write(0, b"a" * 4096)


def test_a_primary_with_suspended_requests_is_not_demoted() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.do(pair.alice.r.suspend_io)
    written = start(pair.alice, 0, b"a" * 4096)
    with pytest.raises(StateRefused, match="still under way"):
        pair.alice.secondary()
    pair.alice.do(pair.alice.r.resume_io)
    pair.run(1)
    assert written == [0]
    pair.alice.secondary()


@pytest.mark.parametrize("seed", range(8))
def test_the_peer_lost_while_suspended_is_brought_up_to_date_whether_it_comes_before_or_after(
    seed: int,
) -> None:
    pair = Pair(seed)
    pair.up_synced()
    alice = pair.alice
    generation = alice.volume().store.uuids.current
    pair.network.cut = {"bob"}
    written = [start(alice, 4096 * n, bytes([n + 1]) * 4096) for n in range(9)]
    pair.run(0.005)
    alice.do(alice.r.suspend_io)
    lose_link(pair)
    pair.run(1)
    assert not any(written)
    if seed % 2:
        assert alice.volume().store.uuids.current == generation
        mend(pair)
        pair.settle()
        alice.do(alice.r.resume_io)
    else:
        alice.do(alice.r.resume_io)
        pair.run(0.1)
        assert all(written), "resumed alone"
        assert alice.volume().store.uuids.current != generation
        mend(pair)
    pair.settle()
    pair.run(1)
    assert [errno for one in written for errno in one] == [0] * 9
    assert alice.data() == pair.bob.data()
    assert alice.volume().bitmap.weight == 0


def test_a_suspended_node_that_is_demoted_and_restarted_still_brings_the_peer_up_to_date() -> None:
    """No generation tells of what was under way when the peer was lost; the mark of a crashed
    Primary does, and it is on the disk."""
    pair = Pair()
    pair.up_synced()
    alice = pair.alice
    pair.network.cut = {"alice"}
    written = start(alice, 0, b"a" * 4096)
    pair.run(0.01)
    alice.do(alice.r.suspend_io)
    lose_link(pair)
    alice.do(lambda done: alice.r.shutdown(done, force=True))
    assert written == [errno.EIO]
    assert alice.data() != pair.bob.data()
    mend(pair)
    alice.up()
    pair.settle()
    assert alice.data() == pair.bob.data()
    assert alice.is_(role=Role.Secondary)
