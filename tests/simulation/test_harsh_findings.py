"""What the harshest histories have found, each told step by step."""

from __future__ import annotations

from errno import EIO

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.metadata.layout import geometry
from tests.simulation.pair import FLEXIBLE, INTERNAL, MIB, Pair, create_md, differing_blocks


def until_conn(pair, node, conn):
    pair.run_until(lambda: node.is_(conn), 20)


def hang(disk, pair, seconds, where=None):
    """What is written there now arrives all at once, after that time."""
    end = pair.clock.time + seconds
    disk.slow = lambda kind, offset, _length: (
        max(0.0, end - pair.clock.time) if "write" in kind and where in (None, offset) else 0.0
    )


def test_a_write_that_the_local_disk_still_has_when_the_peer_is_met_again_is_copied():
    """It was on its way to both when the connection broke; only its end would have marked it."""
    for seconds in (0.7, 5.0):
        pair = Pair()
        pair.up_synced()
        alice, bob = pair.alice, pair.bob
        alice.write(0, b"0" * 4096)
        hang(alice.disks[0], pair, seconds, where=8 * 4096)
        answers = []
        pair.network.cut = {"alice"}
        alice.volume().write(8 * 4096, b"w" * 4096, False, answers.append)
        pair.run(0.01)
        alice.disks[0].slow = None
        pair.network.cut = set()
        pair.network.break_all()
        alice.write(4096, b"1" * 4096)
        until_conn(pair, alice, Conn.SyncSource)
        lines = len(pair.lines)
        pair.run(20)
        assert answers == [0]
        assert alice.synced and bob.synced
        assert alice.data() == bob.data()
        assert alice.volume().bitmap.weight == 0
        assert not [line for line in pair.lines[lines:] if "connection ended" in line]


def test_a_target_that_gives_up_its_disk_while_the_resync_is_named_stays_connected():
    pair = Pair()
    pair.up_synced()
    bob = pair.bob
    bob.disconnect()
    pair.alice.write(0, b"0" * 4096)
    bob.connect()
    until_conn(pair, pair.alice, Conn.SyncSource)
    assert bob.is_(Conn.WFSyncUUID)
    bob.r.detach(0, True, lambda _error: None)
    pair.run(5)
    assert bob.is_(Conn.Connected, Disk.Diskless)
    assert not [line for line in pair.lines if "ProtocolError" in line]


def test_what_is_asked_again_does_not_repeat_requests_that_are_still_open():
    """A Primary that is the target writes into a range that it has asked for, while later ranges
    are on their way as well."""
    pair = Pair(size=8 << 20, net=NetSettings(csums_alg="crc32c"))
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    alice.disks[0].slow = lambda kind, offset, _l: 0.2 + offset / (40 << 20)
    bob.do(lambda done: bob.r.invalidate(0, done))
    until_conn(pair, bob, Conn.SyncTarget)
    bob.primary()
    pair.run_until(lambda: bob.volume().resync.outstanding > 4)
    bob.volume().write(4096, b"w" * 4096, False, lambda _errno: None)
    pair.run(30)
    assert alice.synced and bob.synced
    assert alice.data() == bob.data()
    assert not [line for line in pair.lines if "ProtocolError" in line]


@pytest.mark.parametrize("seed", range(8))
def test_a_disconnect_right_after_the_connection_is_made_is_no_offence(seed):
    """Its answer may overtake the parameters, which take the other socket."""
    pair = Pair(seed)
    pair.up_synced()
    bob = pair.bob
    pair.network.break_all()
    until_conn(pair, bob, Conn.WFReportParams)
    bob.disconnect()
    pair.run(1)
    assert bob.is_(Conn.StandAlone)
    assert not [line for line in pair.lines if "ProtocolError" in line]


@pytest.mark.parametrize("seed", range(8))
def test_the_name_of_a_full_sync_may_overtake_the_consent_to_it(seed):
    pair = Pair(seed)
    pair.up_synced()
    pair.network.base_latency = 0.004
    for disk in (*pair.alice.disks, *pair.bob.disks):
        disk.delay = 0.00001
    pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    pair.settle()
    assert not [line for line in pair.lines if "ProtocolError" in line]


@pytest.mark.parametrize("seed", range(4))
def test_a_write_begun_while_every_bit_was_set_is_covered_after_the_full_sync(seed):
    """It was under way when the peer came, the full sync copied it, and then its own disk, which was
    never asked to flush it, lost it."""
    pair = Pair(seed, placement=FLEXIBLE)
    alice = pair.alice
    alice.up()
    alice.primary(force=True)
    hang(alice.disks[0], pair, 1.0, where=8 * 4096)
    alice.volume().write(8 * 4096, b"w" * 4096, False, lambda _errno: None)
    pair.run(0.01)
    alice.disks[0].slow = None
    pair.bob.up()
    pair.settle()
    assert pair.bob.data()[8 * 4096 : 9 * 4096] == b"w" * 4096
    alice.power_loss()
    pair.run(1)
    alice.up()
    pair.settle()
    assert not differing_blocks(alice, pair.bob)


def test_a_target_that_has_lost_several_names_of_its_resync_is_no_stranger():
    """Its disk did not answer while the connection broke again and again, and then it lost power."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.kill()
    pair.run(1)
    alice.write(0, b"w" * 4096)
    alice.secondary()
    bob.up()
    hang(bob.disks[0], pair, 60.0, where=geometry(bob.media[0].size, INTERNAL).sb_offset)
    for _ in range(4):
        until_conn(pair, bob, Conn.SyncTarget)
        pair.network.break_all()
        pair.run(0.1)
    bob.power_loss()
    pair.run(1)
    bob.up()
    pair.settle()
    assert not differing_blocks(alice, bob)


def test_an_ancestor_whose_full_sync_came_to_nothing_is_no_stranger_after_force():
    """Its source begins no generation because the ancestor says that it is one: the set has room for
    two former ones only, and loses one of them to a crash or force before the two meet again."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.disconnect()
    alice.write(0, b"1" * 4096)
    bob.connect()
    pair.run_until(lambda: bob.synced)
    assert alice.is_(Conn.SyncSource), "it has not heard of the end"
    pair.network.break_all()
    until_conn(pair, alice, Conn.WFBitMapS)
    current = alice.volume().store.uuids.current
    until_conn(pair, alice, Conn.SyncSource)
    assert bob.is_(Conn.WFSyncUUID)
    assert alice.volume().store.uuids.current == current
    bob.power_loss()
    alice.kill()
    alice.up()
    alice.primary(force=True)
    bob.up()
    pair.settle()
    assert not differing_blocks(alice, bob)


@pytest.mark.parametrize("loser", ["source", "target"])
def test_the_name_of_a_full_sync_that_came_to_nothing_does_not_begin_the_next_one(loser):
    """The target was still marking its blocks, on a slow disk, when the name came; then a disk went.
    When that is attached again, the resync waits for the name that the source gives it after its flush."""
    pair = Pair()
    pair.up_synced()
    source, target = pair.alice, pair.bob
    hang(target.disks[0], pair, 2.0)
    target.r.invalidate(0, lambda _error: None)
    until_conn(pair, source, Conn.SyncSource)
    pair.run(0.01)
    assert target.is_(Conn.StartingSyncT)
    lost = source if loser == "source" else target
    lost.r.detach(0, True, lambda _error: None)
    pair.run(5)
    assert target.is_(Conn.Connected)
    assert lost.volume().state.disk is Disk.Diskless
    target.disks[0].slow = None
    lost.attach(0, lambda _error: None)
    source.disks[0].slow = lambda kind, _offset, _length: 0.5 if kind == "flush" else 0.0
    until_conn(pair, target, Conn.WFSyncUUID)
    assert not source.is_(Conn.SyncSource)
    pair.run(0.1)
    assert target.is_(Conn.WFSyncUUID)
    pair.settle()
    assert not differing_blocks(source, target)
    assert not [line for line in pair.lines if "connection ended" in line]


def test_a_write_for_a_diskless_primary_waits_for_the_superblock_that_vouches_for_its_mark():
    """When that Primary is met again its extent is still in the log, and a base is tracked already:
    neither a transaction nor a new generation has to be awaited."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.do(lambda done: alice.r.detach(0, False, done))
    alice.write(0, b"1" * 4096)
    alice.flush()
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run(2)
    superblock = geometry(bob.media[0].size, INTERNAL).sb_offset
    bob.disks[0].slow = lambda kind, offset, _length: (
        1.0 if "write" in kind and offset == superblock else 0.0
    )
    pair.network.cut = set()
    until_conn(pair, alice, Conn.Connected)
    alice.write(4096, b"2" * 4096)
    alice.flush()
    bob.power_loss()
    alice.kill()
    pair.run(1)
    bob.up()
    alice.up()
    pair.settle()
    assert alice.data()[:8192] == b"1" * 4096 + b"2" * 4096
    assert not differing_blocks(alice, bob)


def test_a_block_found_equal_counts_only_when_a_broken_off_resync_has_written_it() -> None:
    """By checksum a target finds what its disk has in the cache: a write of the resync before, that
    ended after the flush with which this one began."""
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    pair.up_synced()
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.alice.write(8192, b"n" * 4096)
    pair.alice.flush()
    pair.bob.disks[0].slow = lambda kind, offset, _length: (
        3.0 if kind == "write" and offset == 8192 else 0.0
    )
    pair.network.cut = set()
    pair.run_until(lambda: bool(pair.bob.volume().locks.count), 30)
    pair.bob.disks[0].slow = lambda kind, _offset, _length: 8.0 if kind == "flush" else 0.0
    pair.network.break_all()
    pair.run_until(lambda: pair.bob.is_(conn=Conn.SyncTarget), 30)
    pair.run_until(lambda: pair.alice.volume().bitmap.weight == 0, 60)
    pair.bob.power_loss()
    assert bytes(pair.bob.media[0].current[8192:12288]) == b"n" * 4096


def late_write_at_bob(pair: Pair, data: bytes, seconds: float) -> None:
    """alice writes `data` at 8192; bob's disk takes so long that the connection ends meanwhile. Then
    alice is alone."""
    bob = pair.bob
    bob.disks[0].slow = lambda kind, offset, _length: (
        seconds if kind == "write" and offset == 8192 else 0.0
    )
    pair.alice.volume().write(8192, data, False, lambda _errno: None)
    pair.run_until(lambda: bool(bob.volume().locks.count), 30)
    bob.disks[0].slow = None
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.run_until(lambda: pair.alice.is_(Conn.WFConnection) and pair.bob.is_(Conn.WFConnection))


def test_a_block_is_not_found_equal_before_a_late_write_of_an_earlier_connection() -> None:
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    pair.up_synced()
    old = bytes(pair.alice.media[0].current[8192:12288])
    late_write_at_bob(pair, b"n" * 4096, 20.0)
    pair.alice.write(8192, old)
    pair.network.cut = set()
    pair.settle()
    pair.run(60)
    assert differing_blocks(pair.alice, pair.bob) == []


def test_a_late_write_of_an_earlier_connection_is_stable_before_it_is_found_equal() -> None:
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    pair.up_synced()
    late_write_at_bob(pair, b"n" * 4096, 5.0)
    pair.bob.disks[0].slow = lambda kind, _offset, _length: 8.0 if kind == "flush" else 0.0
    pair.network.cut = set()
    pair.run_until(lambda: pair.bob.is_(Conn.SyncTarget), 30)
    pair.run_until(lambda: pair.alice.volume().bitmap.weight == 0, 60)
    pair.bob.power_loss()
    assert bytes(pair.bob.media[0].current[8192:12288]) == b"n" * 4096


def test_what_a_late_write_left_is_stable_before_it_is_served_to_a_target() -> None:
    """alice comes back with a new disk, while bob's still has a write of hers under way."""
    pair = Pair()
    pair.up_synced()
    late_write_at_bob(pair, b"n" * 4096, 20.0)
    pair.alice.power_loss()
    create_md(pair.alice.media[0])
    pair.network.cut = set()
    pair.alice.up()
    pair.settle()
    assert pair.alice.data()[8192:12288] == b"n" * 4096
    pair.bob.power_loss()
    assert bytes(pair.bob.media[0].current[8192:12288]) == b"n" * 4096


def test_a_source_that_cannot_note_the_end_of_a_resync_gives_its_disk_up() -> None:
    """It stayed SyncSource for ever, of a target that had long been done."""
    pair = Pair(placement=FLEXIBLE)
    pair.up_synced()
    pair.bob.disconnect()
    pair.alice.write(0, b"n" * 4096)
    pair.bob.connect()
    until_conn(pair, pair.alice, Conn.SyncSource)
    bitmap = geometry(pair.alice.metas[0].size, FLEXIBLE).bm_offset
    pair.alice.meta_disks[0].fails = lambda kind, offset, _length: (
        EIO if kind == "write" and offset >= bitmap else 0
    )
    pair.run(20)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    assert "bitmap write" in pair.alice.volume().disk_error
    assert pair.bob.is_(Conn.Connected, Disk.UpToDate)


def test_what_only_a_sync_target_has_is_neither_acknowledged_nor_flushed() -> None:
    """The source's disk fails. Attached again it is the good copy once more, without that write."""
    pair = Pair(disk=DiskSettings(al_extents=67, c_max_rate=64 << 10))
    pair.up_synced()
    pair.bob.disconnect()
    pair.alice.write(0, b"n" * (1 << 20))
    pair.bob.connect()
    until_conn(pair, pair.alice, Conn.SyncSource)
    pair.alice.disks[0].fails = lambda kind, _offset, _length: EIO if kind == "write" else 0
    answers: list[int] = []
    pair.alice.volume().write(2 << 20, b"w" * 4096, False, answers.append)
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.Inconsistent)
    pair.alice.volume().flush(answers.append)
    pair.run(1)
    assert answers == [EIO, EIO]


def forced_after(pair, how):
    """alice is Primary; bob's copy becomes Inconsistent; alice completes a write that bob will never
    hear of, and dies; bob's copy is declared good by force, and used."""
    alice, bob = pair.alice, pair.bob
    how(pair)
    alice.kill()
    pair.network.cut = set()
    pair.run(60)
    assert bob.is_(disk=Disk.Inconsistent)
    bob.primary(force=True)
    bob.write(8 * 4096, b"b" * 4096)
    alice.up()
    if bob.is_(Conn.StandAlone):
        bob.connect()
    pair.run(10)


def before_the_resync_has_a_name(pair):
    alice, bob = pair.alice, pair.bob
    bitmap = geometry(alice.media[0].size, INTERNAL).bm_offset
    hang(alice.disks[0], pair, 0.2, where=bitmap)
    alice.r.invalidate_remote(0, lambda _error: None)
    pair.run_until(lambda: alice.is_(Conn.StartingSyncS) and bob.is_(Conn.WFSyncUUID))
    alice.write(0, b"a" * 4096)
    pair.network.cut = {"alice"}
    until_conn(pair, alice, Conn.SyncSource)
    pair.run(0.01)
    assert bob.is_(Conn.WFSyncUUID, Disk.Inconsistent)


def in_the_middle_of_the_resync(pair):
    alice, bob = pair.alice, pair.bob
    alice.disks[0].slow = lambda kind, *_: 0.5 if kind == "read" else 0.0
    bob.do(lambda done: bob.r.invalidate(0, done))
    until_conn(pair, bob, Conn.SyncTarget)
    pair.network.break_all()
    alice.write(0, b"a" * 4096)


def without_any_resync(pair):
    alice, bob = pair.alice, pair.bob
    bob.disconnect()
    bob.do(lambda done: bob.r.invalidate(0, done))
    alice.write(0, b"a" * 4096)


HALF_MADE = [before_the_resync_has_a_name, in_the_middle_of_the_resync, without_any_resync]


def stand_apart(pair):
    """Both copies are kept."""
    alice, bob = pair.alice, pair.bob
    assert alice.is_(Conn.StandAlone) and bob.is_(Conn.StandAlone)
    assert alice.data()[:4096] == b"a" * 4096
    assert bob.data()[8 * 4096 : 9 * 4096] == b"b" * 4096


@pytest.mark.parametrize("how", HALF_MADE)
def test_a_half_made_copy_declared_good_never_overwrites_its_source(how):
    """Also when it never heard the name of its resync, so that it still has the source's very
    generation: to whoever goes by names alone the source is then its mere ancestor."""
    pair = Pair()
    pair.up_synced()
    forced_after(pair, how)
    stand_apart(pair)


@pytest.mark.parametrize("how", HALF_MADE)
@pytest.mark.parametrize("victim", ["alice", "bob"])
def test_after_force_on_a_half_made_copy_either_may_be_given_up_and_all_is_copied(how, victim):
    pair = Pair()
    pair.up_synced()
    forced_after(pair, how)
    pair.bob.secondary()
    for node in (pair.alice, pair.bob):
        node.connect(discard_my_data=node.name == victim)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    kept, first = (b"a", 0) if victim == "bob" else (b"b", 8 * 4096)
    assert pair.alice.data()[first : first + 4096] == kept * 4096


def test_a_target_that_never_heard_of_its_resync_does_not_overwrite_its_source():
    """Nobody forces anything: the target is as good as ever to itself when it starts again. But the
    source, waiting for it to begin, has completed writes that it need not send yet."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.power_loss()
    pair.run(1)
    hang(bob.disks[0], pair, 600.0)
    alice.up()
    until_conn(pair, alice, Conn.WFBitMapS)
    alice.primary()
    alice.write(0, b"a" * 4096)
    assert alice.is_(Conn.WFBitMapS)
    alice.kill()
    bob.power_loss()
    bob.up()
    assert bob.is_(disk=Disk.UpToDate)
    bob.primary()
    bob.write(8 * 4096, b"b" * 4096)
    alice.up()
    pair.run(10)
    stand_apart(pair)


def test_a_primary_that_serves_an_equal_copy_ends_with_the_same_history_as_its_target():
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    before = alice.volume().store.uuids.current
    alice.do(lambda done: alice.r.invalidate_remote(0, done))
    pair.settle()
    sets = [node.volume().store.uuids.masked() for node in (alice, bob)]
    assert sets[0] == sets[1]
    assert sets[0].current != before & ~1
    assert sets[0].history1 == before & ~1


@pytest.mark.parametrize("slowness", [(1.0, 8.0), (8.0, 1.0)])
def test_what_a_target_said_before_it_agreed_to_a_full_sync_does_not_end_it(slowness):
    """Its consent takes the other socket, and may overtake the report of its promotion."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    pair.network.base_latency, pair.network.slowness = 0.003, slowness
    pair.network.break_all()
    pair.settle()
    alice.primary()
    bob.r.invalidate_remote(0, lambda _error: None)
    until_conn(pair, bob, Conn.SyncSource)
    pair.settle()
    assert not [line for line in pair.lines if "ended the resync, but" in line]
    assert alice.data() == bob.data()


def test_a_primary_met_while_its_disk_fails_begins_no_generation_here_before_it_writes():
    """It may find yet that its applications use other data: what was begun for it would be a split
    brain of which one side is empty."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    bob.disconnect()
    pair.run(1)
    volume = alice.volume()
    before = volume.store.uuids.copy()
    volume.change(conn=Conn.WFReportParams)
    volume.change(conn=Conn.Connected, peer=Role.Primary, pdsk=Disk.Failed)
    volume.change(pdsk=Disk.Diskless)
    assert volume.store.uuids == before
    volume.track_for_peer()
    assert volume.store.uuids.bitmap == before.current


def test_a_copy_is_not_invalidated_between_its_report_and_the_verdict():
    """The peer would decide on a good copy, this node on an Inconsistent one."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    pair.network.base_latency = 0.003
    pair.network.break_all()
    until_conn(pair, bob, Conn.WFReportParams)
    lines = len(pair.lines)
    bob.do(lambda done: bob.r.invalidate(0, done))
    verdicts = [line for line in pair.lines[lines:] if "handshake: " in line]
    assert len(verdicts) == 2 and all("handshake: nothing" in line for line in verdicts)
    assert bob.is_(Conn.StartingSyncT, Disk.Inconsistent) or bob.is_(Conn.WFSyncUUID)
    pair.settle()


@pytest.mark.parametrize("on_io_error", ["detach", "pass_on"])
def test_what_a_target_could_not_write_after_its_resync_is_no_fault_of_the_resync(on_io_error):
    pair = Pair(disk=DiskSettings(al_extents=67, c_max_rate=0, on_io_error=on_io_error))
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.disconnect()
    alice.write(MIB, b"a" * 4096)
    bob.connect()
    pair.run_until(lambda: bob.is_(Conn.SyncTarget))
    pair.run_until(lambda: bob.volume().resync.outstanding > 0)
    bob.r.replication.link.data.channel.slowness = (
        200.0  # its report that it is done is overtaken by the refusal
    )
    pair.run_until(lambda: bob.is_(Conn.Connected, Disk.UpToDate))
    pair.run(0.005)  # it is on its way
    bob.disks[0].fails = lambda _kind, offset, _length: EIO if offset == 2 * MIB else 0
    alice.write(2 * MIB, b"b" * 4096)
    assert alice.is_(Conn.SyncSource)
    pair.run_until(lambda: alice.is_(Conn.Connected), 5.0)
    pair.run(1.0)
    assert not any("still marked here" in line for line in pair.lines)
    assert alice.volume().bitmap.weight == 1


def test_a_source_that_is_promoted_while_it_names_its_resync_tells_its_new_generation_first():
    """The resync may be over, and its target have taken the name that was told last, before a slow
    disk has stored the new one."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.kill()
    pair.run(1)
    alice.up()
    alice.disks[0].slow = lambda kind, _offset, _length: 0.05 if "write" in kind else 0.0
    until_conn(pair, alice, Conn.WFBitMapS)
    pair.run(0.07)
    assert alice.is_(Conn.WFBitMapS), "the name of the resync is on its way to the disk"
    alice.disks[0].slow = lambda kind, _offset, _length: 0.5 if "write" in kind else 0.0
    alice.do(lambda done: alice.r.primary(False, done))
    pair.settle()
    assert alice.is_(role=Role.Primary, conn=Conn.Connected)
    source, target = (node.volume().store.uuids for node in (alice, bob))
    assert target.current == source.current & ~1
    assert (target.bitmap, target.history0, target.history1) == (
        source.bitmap,
        source.history0,
        source.history1,
    )


def test_what_an_application_wrote_into_a_resync_is_stable_when_that_is_done():
    """What it replaces may have been flushed at the peer, while there was no disk here. Such a block
    is found equal and not written again."""
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    alice.do(lambda done: alice.r.detach(0, False, done))
    alice.write(0, b"f" * 4096)
    alice.flush()
    bob.do(lambda done: bob.r.pause_sync(0, done))
    alice.do(lambda done: alice.attach(0, done))
    pair.run(1)
    assert alice.is_(Conn.PausedSyncT)
    alice.write(0, b"u" * 4096)
    bob.do(lambda done: bob.r.resume_sync(0, done))
    until_conn(pair, alice, Conn.Connected)
    assert alice.is_(disk=Disk.UpToDate)
    assert alice.media[0].stable_page(0) == b"u" * 4096
