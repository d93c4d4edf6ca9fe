"""disk-timeout: a disk that stops answering, and answers late, too late, or never."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk
from replicator.engine.settings import DiskSettings
from replicator.errors import NoDiskError
from tests.simulation.pair import MIB, Node, Pair

TIMEOUT = 3.0


def watched_pair(seed: int = 0, *, seconds: float = TIMEOUT, **options: object) -> Pair:
    disk = DiskSettings(al_extents=67, c_max_rate=0, disk_timeout=seconds)
    pair = Pair(seed, disk=disk, **options)  # type: ignore[arg-type]
    pair.up_synced()
    pair.alice.write(0, b"o" * 4096)  # so that this extent is in the activity log
    pair.alice.flush()
    pair.run(1)
    return pair


def hang(node: Node, seconds: float = 1e9) -> None:
    """From now on every call takes that long; the disk does what it was asked, then."""
    node.disks[0].slow = lambda _kind, _offset, _length: seconds


def start(node: Node, offset: int, data: bytes) -> list[int]:
    answers: list[int] = []
    node.volume().write(offset, data, False, answers.append)
    return answers


def test_a_primary_goes_on_with_its_peer_when_its_disk_hangs() -> None:
    pair = watched_pair()
    alice = pair.alice
    hang(alice)
    written = start(alice, 0, b"a" * 4096)
    pair.run(TIMEOUT - 0.5)
    assert written == [] and alice.is_(disk=Disk.UpToDate)
    pair.run(1)
    assert written == [0]
    assert alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    error = alice.r.snapshot().volumes[0].disk_error
    assert "disk-timeout: a write was not answered for 3 s" in error
    assert alice.read(0, 4096) == b"a" * 4096
    alice.write(4096, b"b" * 4096)
    alice.flush()


@pytest.mark.parametrize("request_", ["read", "flush", "cold write"])
def test_any_kind_of_call_is_watched(request_: str) -> None:
    pair = watched_pair(size=24 * MIB)
    alice, answers = pair.alice, []
    hang(alice)
    if request_ == "read":
        alice.volume().read(0, 4096, lambda errno, _data: answers.append(errno))
    elif request_ == "flush":
        alice.volume().flush(answers.append)
    else:  # the activity log is written first
        alice.volume().write(16 * MIB, b"c" * 4096, False, answers.append)
    pair.run(TIMEOUT + 0.5)
    assert answers == [0]
    assert alice.is_(disk=Disk.Diskless, pdsk=Disk.UpToDate)


def test_a_secondary_whose_disk_hangs_gives_it_up_and_the_primary_goes_on() -> None:
    pair = watched_pair()
    hang(pair.bob, seconds=10)
    written = start(pair.alice, 0, b"a" * 4096)
    pair.run(TIMEOUT + 0.5)
    assert written == [0]
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)
    pair.bob.do(lambda done: pair.bob.attach(0, done))
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("seed", range(10))
def test_what_a_disk_does_too_late_harms_nothing(seed: int) -> None:
    """The writes land long after they were given up, over data that the peer has gone on with; the
    disk is attached again after that, and must then get all of it."""
    pair = watched_pair(seed)
    alice = pair.alice
    hang(alice, seconds=10)
    late = [start(alice, 4096 * n, b"late" * 1024) for n in range(20)]
    pair.run(TIMEOUT + 0.5)
    assert [errno for one in late for errno in one] == [0] * 20
    for number in range(0, 20, 2):
        alice.write(4096 * number, b"newer..." * 512)
    alice.flush()
    pair.run(10)
    assert alice.data()[:4096] == b"late" * 1024, "the old disk has it by now"
    alice.do(lambda done: alice.attach(0, done))
    pair.settle()
    assert alice.data() == pair.bob.data()
    assert alice.read(0, 4096) == b"newer..." * 512
    assert alice.volume().disk_error == ""


def test_a_disk_that_answers_in_time_is_kept() -> None:
    pair = watched_pair()
    hang(pair.alice, seconds=TIMEOUT - 0.5)
    pair.alice.write(0, b"a" * 4096)
    pair.alice.flush()
    assert pair.alice.is_(disk=Disk.UpToDate)


def test_without_disk_timeout_a_hanging_disk_is_waited_for() -> None:
    pair = watched_pair(seconds=0.0)
    hang(pair.alice, seconds=100)
    written = start(pair.alice, 0, b"a" * 4096)
    pair.run(90)
    assert written == [] and pair.alice.is_(disk=Disk.UpToDate)
    pair.run(20)
    assert written == [0]


def test_the_last_copy_that_hangs_means_errors_or_waiting() -> None:
    for policy, expected in (("io-error", [errno.ETIMEDOUT]), ("suspend-io", [])):
        pair = watched_pair(on_no_data=policy)
        pair.bob.kill()
        pair.run(2)
        hang(pair.alice)
        written = start(pair.alice, 0, b"a" * 4096)
        pair.run(20)
        assert written == expected
        assert pair.alice.is_(disk=Disk.Diskless)


def test_a_disk_that_hangs_while_it_is_attached_is_not_attached() -> None:
    pair = watched_pair()
    bob = pair.bob
    bob.do(lambda done: bob.r.detach(0, False, done))
    results: list[object] = []
    bob.attach(0, results.append, delay=1e9)
    pair.run(TIMEOUT + 1)
    assert len(results) == 1 and "timed out" in str(results[0])
    assert bob.is_(disk=Disk.Diskless)
    with pytest.raises(NoDiskError, match="I/O from before"):
        bob.do(lambda done: bob.attach(0, done))


def test_a_forced_detach_of_a_hanging_disk_ends() -> None:
    pair = watched_pair(seconds=0.0)
    hang(pair.alice)
    start(pair.alice, 0, b"a" * 4096)
    pair.run(0.1)
    pair.alice.do(lambda done: pair.alice.r.detach(0, True, done), limit=30)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    pair.alice.write(8192, b"b" * 4096)


def test_a_disk_that_hangs_after_the_handshake_ends_the_resync_and_no_more() -> None:
    pair = watched_pair(size=24 * MIB)
    pair.bob.kill()
    pair.run(2)
    for number in range(20):
        pair.alice.write(number * MIB, b"n" * 65536)
    pair.bob.up()
    pair.run_until(lambda: pair.bob.is_(Conn.SyncTarget))
    hang(pair.bob, seconds=10)
    pair.run(TIMEOUT + 2)
    assert pair.bob.is_(Conn.Connected, Disk.Diskless)
    pair.alice.write(0, b"z" * 4096)
    pair.bob.do(lambda done: pair.bob.attach(0, done))
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
