"""Resyncs that are disturbed: by a node that dies, a link that is cut, writes, a pause."""

from __future__ import annotations

from contextlib import suppress
from errno import EIO

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from tests.simulation.pair import MIB, Pair, differing_blocks
from tests.simulation.strikes import Watch

BLOCK = 4096
SLOW = DiskSettings(al_extents=67, c_plan_ahead=0, resync_rate=256 * 1024)


def interrupted(settings: DiskSettings = SLOW) -> Pair:
    """bob has missed 2 MiB of alice's, and is being brought up to date."""
    pair = Pair(size=8 * MIB, disk=settings)
    pair.up_prepared()
    pair.bob.kill()
    pair.run(1)
    pair.alice.write(0, b"m" * MIB)
    pair.alice.write(2 * MIB, b"n" * MIB)
    pair.bob.up()
    return pair


def under_way(pair: Pair) -> None:
    pair.run_until(lambda: pair.alice.is_(Conn.SyncSource))
    pair.run(2)
    left = pair.alice.volume().bitmap.weight
    assert 0 < left < 512, "some has been copied, and some is left"


def whole(pair: Pair) -> None:
    pair.settle()
    assert not differing_blocks(pair.alice, pair.bob)
    assert pair.alice.volume().bitmap.weight == pair.bob.volume().bitmap.weight == 0
    assert pair.bob.data()[:MIB] == b"m" * MIB
    assert pair.bob.data()[2 * MIB : 3 * MIB] == b"n" * MIB


def test_a_flush_is_stable_on_a_target_that_is_complete_before_its_source_knows():
    """It may be promoted at once, and must not show what was written after the flush alone."""
    pair = interrupted(DiskSettings(al_extents=67))
    pair.run_until(lambda: pair.bob.is_(Conn.Connected) and pair.alice.is_(Conn.SyncSource))
    volume, ended = pair.alice.volume(), list[int]()
    volume.write(4 * MIB, b"w" * BLOCK, False, lambda _errno: volume.flush(ended.append))
    pair.run_until(lambda: bool(ended))
    assert ended == [0]
    assert pair.bob.data()[4 * MIB :][:BLOCK] == b"w" * BLOCK
    assert 4 * MIB // BLOCK not in pair.bob.media[0].unflushed_pages()


@pytest.mark.parametrize("end", ["kill", "power_loss"])
def test_a_target_that_dies_goes_on_with_what_is_left(end):
    pair = interrupted()
    under_way(pair)
    left = pair.alice.volume().bitmap.weight
    getattr(pair.bob, end)()
    pair.run(1)
    pair.bob.up()
    pair.run_until(lambda: pair.bob.is_(Conn.SyncTarget), 30)
    # What had been copied but was not yet noted on its disk may be copied once more.
    assert left <= pair.bob.volume().resync.total <= 512
    whole(pair)


@pytest.mark.parametrize("end", ["kill", "power_loss"])
def test_a_source_that_dies_leaves_a_target_that_does_not_count(end):
    pair = interrupted()
    under_way(pair)
    getattr(pair.alice, end)()
    pair.run(30)
    assert pair.bob.is_(disk=Disk.Inconsistent)
    pair.alice.up()
    whole(pair)


def test_writes_while_the_resync_is_paused_reach_both():
    pair = interrupted()
    under_way(pair)
    pair.bob.do(lambda done: pair.bob.r.pause_sync(0, done))
    pair.run(0.5)
    assert pair.alice.is_(Conn.PausedSyncS)
    for offset in (0, 2 * MIB + 3 * BLOCK, 3 * MIB - BLOCK, 5 * MIB):
        pair.alice.write(offset, b"p" * BLOCK)
    pair.alice.flush()
    left = pair.alice.volume().bitmap.weight
    pair.run(20)
    assert pair.alice.volume().bitmap.weight == left, "nothing is copied meanwhile"
    pair.bob.do(lambda done: pair.bob.r.resume_sync(0, done))
    pair.settle()
    assert not differing_blocks(pair.alice, pair.bob)
    assert pair.bob.data()[3 * MIB - BLOCK : 3 * MIB] == b"p" * BLOCK


FAST = DiskSettings(al_extents=67, c_max_rate=0)


@pytest.mark.parametrize("after", range(0, 30, 2))
def test_a_link_that_is_cut_at_the_very_end_of_a_resync(after):
    """Whatever the last messages were that arrived: the copies are equal, and both know it."""
    pair = interrupted(FAST)
    watch = Watch(pair)
    assert watch.until("nothing marked", 60)
    for _ in range(after):
        pair.clock.step()
    pair.network.break_all()
    pair.run(1)
    whole(pair)
    one, other = (node.volume().store.uuids for node in (pair.alice, pair.bob))
    assert one.current & ~1 == other.current & ~1
    assert one.bitmap == other.bitmap == 0


def found_equal(settings: DiskSettings) -> Pair:
    """bob's copy is made anew, with digests that show that it has everything already."""
    pair = Pair(size=8 * MIB, disk=settings, net=NetSettings(csums_alg="crc32c"))
    pair.up_prepared()
    pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    return pair


@pytest.mark.parametrize("begun", [interrupted, found_equal])
@pytest.mark.parametrize("after", range(0, 30, 2))
def test_who_writes_on_after_an_end_that_one_side_missed_is_never_overwritten_unasked(after, begun):
    pair = begun(FAST)
    watch = Watch(pair)
    assert watch.until("nothing marked", 60)
    for _ in range(after):
        pair.clock.step()
    pair.network.cut = {"alice", "bob"}
    pair.network.break_all()
    pair.alice.write(0, b"a" * BLOCK)
    pair.alice.flush()
    pair.alice.power_loss()
    pair.network.cut = set()
    pair.run(1)
    promoted = pair.bob.is_(disk=Disk.UpToDate)
    if promoted:
        pair.bob.primary()
        pair.bob.write(BLOCK, b"b" * BLOCK)
    pair.alice.up()
    pair.run(30)
    if promoted:
        assert pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone)
        assert pair.alice.data()[:BLOCK] == b"a" * BLOCK
        assert pair.bob.data()[BLOCK : 2 * BLOCK] == b"b" * BLOCK
    else:
        pair.settle()
        assert pair.bob.data()[:BLOCK] == b"a" * BLOCK
        assert not differing_blocks(pair.alice, pair.bob)


def test_a_missed_end_with_nobody_who_writes_copies_nothing():
    pair = interrupted(FAST)
    pair.alice.secondary()
    pair.run_until(lambda: pair.bob.is_(Conn.Connected, Disk.UpToDate), 60)
    assert pair.alice.is_(Conn.SyncSource), "it has not heard of the end"
    lines = len(pair.lines)
    pair.network.break_all()
    whole(pair)
    sizes = [line for line in pair.lines[lines:] if "resync as source" in line]
    assert all(" 0 KiB" in line for line in sizes)


def test_a_primary_that_is_the_target_survives_the_loss_of_its_source():
    """Its applications read and write through the peer; alone it has no data to go on with."""
    pair = interrupted()
    under_way(pair)
    pair.alice.secondary()
    pair.bob.primary()
    pair.bob.write(0, b"b" * BLOCK)
    assert pair.bob.read(2 * MIB, BLOCK) == b"n" * BLOCK
    pair.alice.kill()
    pair.run(1)
    with pytest.raises(OSError, match="read"):
        pair.bob.read(3 * MIB - BLOCK, BLOCK)
    pair.alice.up()
    pair.settle()
    assert pair.bob.is_(role=Role.Primary)
    assert pair.alice.data()[:BLOCK] == b"b" * BLOCK
    assert not differing_blocks(pair.alice, pair.bob)


def test_what_is_written_from_afar_to_a_copy_that_its_writer_has_surpassed_is_not_overwritten():
    """alice's disk fails as her resync of bob ends, so it still has the base, and the name that bob has
    gone on from. Then bob uses it without his own disk, and gets that back."""
    pair = interrupted(FAST)
    alice, bob = pair.alice, pair.bob
    pair.run_until(lambda: bob.is_(Conn.Connected, Disk.UpToDate), 60)
    area = len(alice.data())
    alice.disks[0].fails = lambda kind, at, _length: EIO if kind == "write" and at >= area else 0
    pair.run_until(lambda: alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate), 60)
    alice.disks[0].fails = None
    alice.secondary()
    bob.do(lambda done: bob.r.detach(0, False, done))
    # What each had since is forgotten: alice could not use her disk, nor bob be promoted on that.
    alice.kill()
    alice.up()
    bob.disconnect()
    bob.connect(discard_my_data=True)
    pair.run(1)
    bob.primary()
    bob.write(0, b"b" * BLOCK)
    bob.flush()
    bob.secondary()
    with suppress(ReplicatorError):
        bob.do(lambda done: bob.attach(0, done))
    pair.run(30)
    assert alice.data()[:BLOCK] == b"b" * BLOCK
