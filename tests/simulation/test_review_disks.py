"""Disks that fail, come and go at bad moments: every request is answered once, and truthfully."""

from __future__ import annotations

import errno

import pytest

from protocol.packets import BlockRequest, Command, Data, DpFlags
from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from replicator.metadata.superblock import Superblock
from tests.simulation import world
from tests.simulation.checkers.guard import Guard
from tests.simulation.pair import MIB, Pair, create_md
from tests.simulation.scripted import ScriptedPeer, synced_alice


def only(kind, limit, answer=errno.EIO):
    """Fail every `kind` access below `limit` (the data area)."""
    return lambda what, offset, _length: answer if what == kind and offset < limit else 0


def slow_metadata(node, seconds):
    limit = len(node.data())
    node.disks[0].slow = lambda _kind, offset, _length: seconds if offset >= limit else 0.0


def detach(node, force=False):
    node.do(lambda done: node.r.detach(0, force, done))


def attach(node):
    node.do(lambda done: node.attach(0, done))


@pytest.mark.parametrize("seed", range(6))
def test_a_write_that_waits_for_the_new_generation_is_answered_once(seed):
    pair = Pair(seed)
    pair.up_synced()
    limit = len(pair.bob.data())
    pair.bob.disks[0].fails = only("write", limit)
    slow_metadata(pair.alice, 0.3)
    answers = []
    for number in range(4):
        pair.alice.volume().write(number * 4096, bytes(4096), False, answers.append)
    pair.run(0.05)
    pair.network.break_all()
    pair.run(2)
    assert answers == [0, 0, 0, 0]
    assert pair.alice.volume().application.pending == 0


def test_completions_wait_for_the_last_of_two_generations_on_their_way():
    pair = Pair()
    pair.up_synced()
    volume = pair.alice.volume()
    pair.bob.kill()
    pair.run(0.1)
    slow_metadata(pair.alice, 0.2)
    stable = []

    def completed(_errno):
        layout = volume.store.geometry
        image = pair.alice.media[0].stable[layout.sb_offset : layout.sb_offset + 4096]
        stable.append(Superblock.decode(bytes(image)).current)

    for _ in range(2):
        volume.store.uuids.new_current(pair.alice.r.random_uuid(), primary=True)
        volume.generation_begun()
        pair.run(0.1)
    volume.write(0, bytes(4096), False, completed)
    pair.run(2)
    assert stable == [volume.store.uuids.current]


def test_an_error_of_a_disk_that_was_exchanged_does_not_cost_the_new_one():
    pair = Pair()
    pair.up_synced()
    old = pair.alice.disks[0]
    old.slow = lambda kind, _offset, _length: 1.0 if kind in ("write", "flush", "read") else 0.0
    old.fails = only("write", len(pair.alice.data()))
    answers = []
    pair.alice.volume().write(0, bytes(4096), False, answers.append)
    pair.run(0.1)
    old.slow = None
    detach(pair.alice)
    attach(pair.alice)
    pair.settle()
    pair.run(3)
    assert answers == [0]
    assert pair.alice.synced


def test_detaching_during_an_attach_leaves_no_disk_behind_that_nobody_has():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    answers = []
    pair.alice.attach(0, answers.append)
    for _ in range(200):
        if pair.alice.volume().store is not None:
            break
        pair.clock.step()
    pair.alice.r.detach(0, True, answers.append)
    pair.run(2)
    volume = pair.alice.volume()
    assert len(answers) == 2
    assert (volume.store is None) is (volume.state.disk is Disk.Diskless)


def test_detaching_twice_releases_the_disk_once():
    pair = Pair()
    pair.up_synced()
    released, answers = [], []
    pair.alice.volume().released = released.append
    pair.alice.r.detach(0, False, answers.append)
    pair.alice.r.detach(0, True, answers.append)
    pair.run(1)
    assert answers == [None, None]
    assert len(released) == 1


@pytest.mark.parametrize("command", ["invalidate", "invalidate_remote"])
@pytest.mark.parametrize("diskless", ["alice", "bob"])
def test_a_full_sync_without_two_disks_is_refused(command, diskless):
    pair = Pair()
    pair.up_synced()
    detach({"alice": pair.alice, "bob": pair.bob}[diskless])
    pair.run(0.5)
    before = [n.volume().bitmap.weight for n in (pair.alice, pair.bob) if n.volume().bitmap]
    with pytest.raises(ReplicatorError):
        pair.alice.do(lambda done: getattr(pair.alice.r, command)(0, done))
    pair.run(0.5)
    after = [n.volume().bitmap.weight for n in (pair.alice, pair.bob) if n.volume().bitmap]
    assert after == before


def test_a_flush_does_not_claim_what_was_lost_with_the_peers_power():
    """A Primary without a disk: what it wrote was only in the cache of a peer that lost its power."""
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.alice.write(0, b"x" * 4096)
    pair.bob.power_loss()
    pair.run(15)
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected))
    with pytest.raises(OSError):
        pair.alice.flush()
    pair.alice.flush()


def test_a_loss_is_told_to_all_flushes_that_are_under_way():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.alice.write(0, b"x" * 4096)
    pair.bob.power_loss()
    pair.run(15)
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected))
    answers: list[int] = []
    for _ in range(3):
        pair.alice.volume().flush(answers.append)
    pair.run(5)
    assert answers == [errno.EIO] * 3
    pair.alice.flush()


def test_a_loss_that_only_a_write_with_fua_was_told_of_is_told_to_the_next_flush_too():
    """Whoever flushes need not be the one who wrote with FUA."""
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.alice.write(0, b"x" * 4096)
    pair.bob.power_loss()
    pair.run(15)
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected))
    with pytest.raises(OSError):
        pair.alice.write(4096, b"y" * 4096, fua=True)
    pair.alice.write(4096, b"y" * 4096, fua=True)
    with pytest.raises(OSError):
        pair.alice.flush()
    pair.alice.flush()


def test_a_flush_does_not_claim_a_write_that_failed_here_and_was_lost_there():
    pair = Pair(disk=DiskSettings(al_extents=67, c_max_rate=0, on_io_error="pass_on"))
    pair.up_synced()
    pair.alice.disks[0].fails = only("write", len(pair.alice.data()))
    pair.alice.write(0, b"x" * 4096)
    pair.bob.power_loss()
    pair.alice.disks[0].fails = None
    with pytest.raises(OSError):
        pair.alice.flush()


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_a_primary_without_a_disk_reads_what_it_has_written(protocol):
    pair = Pair(net=NetSettings(protocol=protocol))
    pair.up_synced()
    detach(pair.alice)
    for number in range(1, 40):
        pair.alice.write(0, bytes([number]) * 4096)
        assert pair.alice.read(0, 4096) == bytes([number]) * 4096


def test_a_read_for_the_peer_waits_for_its_earlier_writes():
    pair = Pair()
    uuids = synced_alice(pair)
    peer = ScriptedPeer(pair)
    peer.connect(uuids, Disk.UpToDate, role=Role.Primary)
    peer.state(Disk.Diskless, role=Role.Primary)
    pair.run(0.05)
    pair.alice.disks[0].slow = lambda kind, *_: 0.2 if kind == "write" else 0.0
    peer.send(Command.DATA, Data(8, 1, 1, DpFlags.SEND_RECEIVE_ACK, b"", b"n" * 4096))
    peer.send(Command.DATA_REQUEST, BlockRequest(8, 2, 4096))
    pair.run(1)
    assert peer.last(Command.DATA_REPLY).data == b"n" * 4096


def test_a_write_for_a_diskless_primary_leaves_a_mark_also_if_it_ends_after_the_connection():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.2)
    pair.bob.disks[0].slow = lambda kind, offset, _length: (
        0.5 if kind == "write" and offset < MIB else 0.0
    )
    answers = []
    pair.alice.volume().write(8192, b"w" * 4096, False, answers.append)
    pair.run(0.05)
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.run(2)
    assert pair.bob.data()[8192:12288] == b"w" * 4096
    assert pair.bob.volume().bitmap.any_in(2, 1)


def test_an_old_copy_is_not_attached_under_a_primary_that_went_on_through_the_peer():
    pair = Pair()
    pair.up_synced()
    slow_metadata(pair.alice, 0.3)
    pair.alice.r.detach(0, False, lambda _error: None)
    pair.run(3)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless)
    pair.alice.write(0, b"x" * 4096)
    pair.alice.flush()
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.run(1)
    with pytest.raises(ReplicatorError):
        attach(pair.alice)


def test_a_diskless_primary_refuses_a_peer_with_other_data():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.2)
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.run(1)
    pair.bob.primary()
    pair.bob.write(0, b"other" * 512 + bytes(4096 - 2560))
    pair.bob.flush()
    pair.bob.secondary()
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone))
    assert "generation" in pair.alice.r.last_error


def test_a_target_that_has_not_begun_does_not_become_current_when_the_source_loses_its_disk():
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.run(0.1)
    pair.alice.write(0, b"new" * 1024 + bytes(1024))
    limit = len(pair.alice.data())
    pair.alice.disks[0].slow = lambda _kind, offset, _length: 5.0 if offset >= limit else 0.0
    pair.bob.up()
    pair.run_until(lambda: pair.bob.is_(Conn.WFSyncUUID), 15)
    pair.alice.r.detach(0, True, lambda _error: None)
    pair.run(20)
    assert pair.alice.is_(disk=Disk.Diskless)
    assert pair.bob.is_(disk=Disk.Outdated)
    with pytest.raises(OSError):
        pair.alice.read(0, 4096)


def test_without_any_good_copy_nothing_is_written_or_read():
    pair = Pair()
    pair.up_synced()
    pair.alice.volume().store.uuids.mark_role(True)
    pair.bob.kill()
    pair.run(0.1)
    pair.alice.volume().change(disk=Disk.Outdated)
    with pytest.raises(OSError):
        pair.alice.write(0, bytes(4096))
    with pytest.raises(OSError):
        pair.alice.read(0, 4096)
    with pytest.raises(OSError):
        pair.alice.flush()


@pytest.mark.parametrize("second", ["alice", "bob"])
def test_an_order_for_a_full_sync_is_not_turned_round_by_another(second):
    pair = Pair()
    pair.up_synced()
    pair.alice.r.invalidate_remote(0, lambda _error: None)
    pair.run_until(lambda: pair.alice.is_(Conn.StartingSyncS))
    node = {"alice": pair.alice, "bob": pair.bob}[second]
    with pytest.raises(ReplicatorError):
        node.do(lambda done: node.r.invalidate_remote(0, done))
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_an_invalidated_copy_is_not_trusted_again_because_the_connection_broke():
    pair = Pair()
    pair.up_synced()
    pair.bob.media[0].current[8192:12288] = b"!" * 4096
    pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    pair.network.break_all()
    pair.run(0.1)
    pair.bob.power_loss()
    pair.bob.up()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_a_primary_that_attaches_its_disk_while_alone_begins_a_generation():
    """One: what it has begun alone the peer cannot have, however often the disk goes and comes."""
    pair = Pair()
    pair.up_synced()
    before = pair.alice.volume().store.uuids.current
    pair.network.cut = {"alice"}  # bob does not hear of what follows
    detach(pair.alice, force=True)
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    attach(pair.alice)
    pair.run(0.1)
    begun = pair.alice.volume().store.uuids.copy()
    assert begun.current != before
    detach(pair.alice, force=True)
    attach(pair.alice)
    pair.run(0.1)
    assert pair.alice.volume().store.uuids == begun
    pair.alice.write(0, b"x" * 4096)
    pair.network.cut = set()
    pair.settle()
    assert pair.bob.data()[:4096] == b"x" * 4096


def test_a_disk_is_not_given_up_for_a_peer_that_is_lost_while_it_is_asked():
    pair = Pair()
    pair.up_synced()
    pair.network.cut = {"alice", "bob"}
    answers = []
    pair.alice.r.detach(0, False, answers.append)
    pair.run(20)
    assert isinstance(answers[0], ReplicatorError)
    assert pair.alice.is_(disk=Disk.UpToDate)


def test_marks_for_a_diskless_primary_survive_a_power_loss_after_it_has_gone():
    pair = Pair(disk=DiskSettings(al_extents=67, c_max_rate=0))
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    pair.alice.write(8192, b"w" * 4096)
    pair.alice.flush()
    pair.alice.kill()
    for _ in range(40):
        pair.run(0.0001)
    pair.run_until(lambda: pair.bob.is_(Conn.WFConnection))
    pair.bob.power_loss()
    pair.bob.up()
    pair.alice.up()
    pair.settle()
    assert pair.alice.data()[8192:12288] == b"w" * 4096


def test_a_write_under_way_for_a_diskless_primary_is_copied_to_the_disk_that_it_attaches():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    bob = pair.bob
    bob.disks[0].slow = lambda kind, offset, _length: (
        3.0 if kind == "write" and offset == 8192 else 0.0
    )
    pair.alice.volume().write(8192, b"w" * 4096, False, lambda _errno: None)
    pair.run(0.01)
    bob.disks[0].slow = None
    attach(pair.alice)
    pair.run(10)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.data()[8192:12288] == b"w" * 4096


def test_what_was_written_without_a_disk_is_not_marked_again_after_it_was_copied_to_one():
    """Its epoch ends later than a short resync does."""
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    pair.alice.volume().write(8192, b"w" * 4096, False, lambda _errno: None)
    attach(pair.alice)
    pair.run_until(lambda: pair.alice.is_(Conn.Connected, disk=Disk.UpToDate))
    pair.run(2)
    assert [node.volume().bitmap.weight for node in (pair.alice, pair.bob)] == [0, 0]
    assert pair.alice.data()[8192:12288] == b"w" * 4096


def test_resync_data_that_an_application_has_overtaken_is_not_written():
    """A Primary whose own copy is the target writes where it has asked for the source's data."""
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    pair.alice.write(8192, b"1" * 4096)
    pair.bob.disks[0].slow = lambda kind, offset, length: (
        0.5 if kind == "read" and offset == 8192 else 0.0
    )
    attach(pair.alice)
    pair.run_until(lambda: pair.alice.is_(Conn.SyncTarget))
    pair.run_until(lambda: pair.alice.volume().resync.outstanding > 0)
    pair.alice.volume().write(8192, b"2" * 4096, False, lambda _errno: None)
    pair.settle()
    pair.run(1)
    assert pair.alice.data()[8192:12288] == b"2" * 4096
    assert pair.bob.data()[8192:12288] == b"2" * 4096


def test_what_a_resync_that_ended_has_asked_for_is_not_answered_in_the_next():
    """The target would have one answer too many, and end the connection over it."""
    pair = Pair()
    pair.up_synced()
    detach(pair.bob)
    pair.run(0.1)
    pair.alice.write(8192, b"1" * 4096)
    pair.alice.write(MIB, b"1" * 4096)
    seconds = {8192: 3.0, MIB: 10.0}
    pair.alice.disks[0].slow = lambda kind, offset, _length: (
        seconds.get(offset, 0.0) if kind == "read" else 0.0
    )
    attach(pair.bob)
    pair.run_until(lambda: pair.bob.volume().resync.outstanding == 2)
    detach(pair.bob)
    pair.run(0.1)
    attach(pair.bob)
    pair.settle()
    pair.run(5)
    assert not [line for line in pair.lines if "connection ended" in line]
    assert pair.bob.data()[8192:12288] == b"1" * 4096


def test_a_refusal_that_comes_late_is_not_taken_for_an_answer_in_the_next_resync():
    """It takes the slower socket; the source has its disk again, and both have begun anew."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    detach(bob)
    pair.run(0.1)
    alice.write(8192, b"1" * 4096)
    alice.disks[0].fails = lambda kind, *_: errno.EIO if kind == "read" else 0
    alice.r.replication.link.meta.channel.slowness = 200.0
    attach(bob)
    pair.run_until(lambda: alice.is_(disk=Disk.Diskless))
    alice.disks[0].fails = None
    attach(alice)
    pair.settle()
    assert not [line for line in pair.lines if "connection ended" in line]
    assert bob.data()[8192:12288] == b"1" * 4096


def test_asking_again_for_overtaken_data_repeats_no_request_that_is_under_way():
    """The source answers each request, and an answer to nothing would end the connection."""
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    for place in range(4):
        pair.alice.write(place * MIB, b"1" * 4096)
    pair.bob.disks[0].slow = lambda kind, offset, _length: (
        0.1 + offset / MIB if kind == "read" else 0.0
    )
    attach(pair.alice)
    pair.run_until(lambda: pair.alice.volume().resync.outstanding == 4)
    pair.alice.volume().write(0, b"2" * 4096, False, lambda _errno: None)
    pair.run_until(lambda: pair.alice.volume().state.conn is not Conn.SyncTarget)
    assert pair.alice.is_(Conn.Connected, disk=Disk.UpToDate), pair.alice.r.last_error
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_requests_wait_while_the_handshake_about_an_attached_disk_is_open():
    pair = Pair()
    pair.up_synced()
    detach(pair.alice)
    pair.run(0.1)
    answers = []
    pair.alice.attach(0, answers.append)
    pair.run_until(lambda: pair.alice.is_(disk=Disk.Negotiating))
    pair.alice.volume().write(0, b"x" * 4096, False, answers.append)
    assert pair.alice.volume().application.frozen == 1
    pair.settle()
    pair.run(1)
    assert answers == [None, 0]
    assert pair.alice.data() == pair.bob.data()


def test_a_disk_smaller_than_what_is_in_use_is_not_attached():
    pair = Pair(size=8 * MIB)
    pair.up_synced()
    detach(pair.alice)

    small = world.Medium(4 * MIB)
    create_md(small)
    pair.alice.media[0] = small
    size = pair.alice.volume().size
    with pytest.raises(ReplicatorError):
        attach(pair.alice)
    assert pair.alice.volume().size == size


@pytest.mark.parametrize("flush_seconds", [n / 1000 for n in range(8, 40, 2)])
def test_a_resync_that_was_broken_off_before_it_had_a_name_does_not_begin_the_next(flush_seconds):
    """The flush before the first attempt ends when the second has begun with another disk of the
    target: the bitmaps are not merged yet then."""
    pair = Pair()
    pair.up_synced()
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(0.1)
    pair.alice.write(8192, b"a" * 4096)
    pair.alice.disks[0].slow = lambda kind, *_: flush_seconds if kind == "flush" else 0.0
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.WFBitMapS) and pair.bob.is_(Conn.WFSyncUUID))
    pair.run(0.004)
    detach(pair.bob)
    pair.network.base_latency = 0.004
    attach(pair.bob)
    pair.settle()
    ended = [line for line in pair.lines if "connection ended" in line and "reset" not in line]
    assert not ended
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("seed", range(5))
def test_writes_of_a_primary_without_disk_stay_marked_while_its_disk_comes_back(seed):
    """Some of them wait for an earlier epoch, and begin when the peer has a disk again: a mark that a
    power loss takes away would leave blocks that differ and that nobody copies."""
    pair = Pair(seed, net=NetSettings(protocol="B", max_epoch_size=2))
    guard = Guard(pair, every=1)
    pair.up_synced()
    detach(pair.alice)
    pair.bob.disks[0].slow = lambda *_: 0.1 * pair.rng.random() ** 4
    answers = []
    for number in range(20):
        pair.alice.volume().write(number * 4096, b"w" * 4096, False, answers.append)
    attach(pair.alice)
    pair.settle()
    assert answers == [0] * 20
    assert guard.looks > 100
