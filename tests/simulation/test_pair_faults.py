"""Disks that fail, come and go; resyncs that are interrupted, paused and ordered."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ConfigError, NoUsableDataError, StateRefused
from tests.simulation import world
from tests.simulation.pair import INTERNAL, MIB, Pair


def reattach(node, number=0):
    """Attach the node's medium again, as `attach` does after apply-al."""
    from tests.simulation.pair import apply_al

    apply_al(node.media[number])
    disk = world.Disk(node.media[number], node.clock, node.pair.rng)
    node.disks[number] = disk
    node.do(lambda done: node.r.attach(number, disk, disk, INTERNAL, done))


def fail_data_area(node, kind):
    """Every `kind` access to the data area ends with EIO; metadata stays good."""
    limit = len(node.data())
    node.disks[0].fails = lambda what, offset, _length: (
        errno.EIO if what == kind and offset < limit else 0
    )


def test_a_primary_whose_disk_fails_to_write_goes_on_with_the_peers():
    pair = Pair()
    pair.up_synced()
    fail_data_area(pair.alice, "write")
    pair.alice.write(0, b"a" * 4096)
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    assert pair.alice.read(0, 4096) == b"a" * 4096
    pair.alice.write(4096, b"b" * 4096)
    pair.alice.flush()
    assert pair.bob.data()[:8192] == b"a" * 4096 + b"b" * 4096


def test_a_primary_whose_disk_fails_to_read_is_served_by_the_peer():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"a" * 4096)
    fail_data_area(pair.alice, "read")
    assert pair.alice.read(0, 4096) == b"a" * 4096
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)


def test_a_disk_that_returns_gets_only_what_it_missed():
    pair = Pair()
    pair.up_synced()
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    assert pair.alice.is_(disk=Disk.Diskless)
    pair.alice.write(MIB, b"n" * 8192)
    pair.alice.flush()
    before = pair.bob.volume().counters.sent
    reattach(pair.alice)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.volume().counters.sent - before <= 2 * 8192


def test_a_secondary_whose_disk_fails_is_resynchronised_when_it_returns():
    pair = Pair()
    pair.up_synced()
    fail_data_area(pair.bob, "write")
    pair.alice.write(0, b"a" * 4096)
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)
    pair.alice.write(MIB, b"b" * 4096)
    reattach(pair.bob)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_detaching_the_only_good_copy_under_a_primary_is_refused():
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.run(1)
    with pytest.raises(NoUsableDataError):
        pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))


def test_a_resync_whose_target_dies_goes_on_where_it_was():
    pair = Pair(size=24 * MIB, disk=DiskSettings(al_extents=67, c_plan_ahead=0, resync_rate=MIB))
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    pair.run(6)
    assert pair.bob.is_(Conn.SyncTarget)
    assert 0 < pair.bob.volume().bitmap.weight < pair.bob.volume().bitmap.bits
    pair.bob.kill()
    pair.run(1)
    pair.disk = DiskSettings(al_extents=67, c_max_rate=0)
    pair.bob.up()
    pair.settle()
    assert pair.bob.volume().counters.received >> 1 < 20 * 1024
    assert pair.alice.data() == pair.bob.data()


def test_an_inconsistent_target_cannot_be_promoted_alone():
    pair = Pair(size=24 * MIB, disk=DiskSettings(al_extents=67, c_plan_ahead=0, resync_rate=MIB))
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    pair.run(3)
    pair.alice.kill()
    pair.run(1)
    with pytest.raises(NoUsableDataError):
        pair.bob.primary()


def test_writes_during_a_resync_reach_the_target():
    pair = Pair(
        size=24 * MIB, disk=DiskSettings(al_extents=67, c_plan_ahead=0, resync_rate=4 * MIB)
    )
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    for number in range(200):
        pair.alice.write(number * 97 * 512, bytes([number]) * 4096)
        pair.run(0.01)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_pause_and_resume_are_shown_on_both_sides():
    pair = Pair(size=24 * MIB, disk=DiskSettings(al_extents=67, c_plan_ahead=0, resync_rate=MIB))
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    pair.run(2)
    pair.alice.do(lambda done: pair.alice.r.pause_sync(0, done))
    pair.run(1)
    assert pair.alice.is_(Conn.PausedSyncS)
    assert pair.bob.is_(Conn.PausedSyncT)
    assert pair.bob.volume().state.peer_isp
    with pytest.raises(ConfigError):
        pair.alice.do(lambda done: pair.alice.r.pause_sync(0, done))
    left = pair.bob.volume().bitmap.weight
    pair.run(5)
    assert pair.bob.volume().bitmap.weight == left
    pair.alice.do(lambda done: pair.alice.r.resume_sync(0, done))
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("by_source", [False, True])
def test_invalidate_copies_everything_again(by_source):
    pair = Pair()
    pair.up_synced()
    pair.bob.media[0].current[8192:12288] = b"!" * 4096
    if by_source:
        pair.alice.do(lambda done: pair.alice.r.invalidate_remote(0, done))
    else:
        pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    pair.run(0.01)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_two_volumes_share_one_connection():
    pair = Pair(volumes=2)
    pair.up_synced()
    pair.alice.write(0, b"0" * 4096, volume=0)
    pair.alice.write(0, b"1" * 4096, volume=1)
    pair.alice.flush(0)
    pair.alice.flush(1)
    assert pair.bob.data(0)[:4096] == b"0" * 4096
    assert pair.bob.data(1)[:4096] == b"1" * 4096


def test_csums_resync_copies_only_what_differs():
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    pair.up()
    pair.bob.media[0].current[MIB : 2 * MIB] = b"?" * MIB
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.volume().counters.received >> 1 < 1200


def test_data_integrity_digests_are_checked_and_agree():
    pair = Pair(net=NetSettings(data_integrity_alg="crc32c"))
    pair.up_synced()
    pair.alice.write(0, b"d" * 5120)
    pair.alice.flush()
    assert pair.bob.data()[:5120] == b"d" * 5120


def test_the_same_secret_connects_and_another_is_refused_on_both_sides():
    pair = Pair(net=NetSettings(cram_hmac_alg="sha256", shared_secret="one"))
    pair.up_synced()
    pair.alice.secondary()
    pair.bob.kill()
    pair.net = NetSettings(cram_hmac_alg="sha256", shared_secret="two")
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))


def test_other_protocols_are_refused_with_both_values_on_both_sides():
    pair = Pair()
    pair.up_synced()
    pair.alice.secondary()
    pair.bob.kill()
    pair.net = NetSettings(protocol="A")
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))
    for node in (pair.alice, pair.bob):
        assert "protocol" in node.r.last_error
        assert "A" in node.r.last_error
        assert "C" in node.r.last_error


def test_demotion_is_refused_while_the_device_is_open():
    pair = Pair()
    pair.up_synced()
    pair.alice.volume().open(writable=True)
    with pytest.raises(StateRefused) as refused:
        pair.alice.secondary()
    assert refused.value.code == -12
    pair.alice.volume().close(writable=True)
    pair.alice.secondary()
    assert pair.alice.is_(role=Role.Secondary)


def test_demotion_waits_for_a_client_whose_goodbye_is_still_on_its_way():
    pair = Pair()
    pair.up_synced()
    volume = pair.alice.volume()
    volume.open(writable=True)
    pair.clock.call_later(0.5, lambda: volume.close(writable=True))
    pair.alice.secondary()
    assert pair.alice.is_(role=Role.Secondary)


def test_a_secondary_refuses_to_open():
    pair = Pair()
    pair.up_synced()
    with pytest.raises(StateRefused):
        pair.bob.volume().open(writable=False)


def test_trim_and_zeroes_read_as_zeroes_on_both_nodes():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"x" * 65536)
    for call in (
        lambda done: pair.alice.volume().trim(4096, 8192, False, done),
        lambda done: pair.alice.volume().zero(16384, 4096, True, False, done),
        lambda done: pair.alice.volume().zero(32768, 4096, False, True, done),
    ):
        results = []
        call(results.append)
        pair.run_until(lambda r=results: bool(r))
        assert results == [0]
    pair.run(1)
    expected = bytearray(b"x" * 65536)
    for start, length in ((4096, 8192), (16384, 4096), (32768, 4096)):
        expected[start : start + length] = bytes(length)
    assert pair.alice.data()[:65536] == bytes(expected)
    assert pair.bob.data()[:65536] == bytes(expected)


def test_requests_outside_the_device_or_unaligned_are_refused():
    pair = Pair()
    pair.up_synced()
    size = pair.alice.volume().size
    for offset, length in ((size, 512), (size - 512, 1024), (1, 512), (0, 100), (0, 0)):
        with pytest.raises(OSError) as refused:
            pair.alice.write(offset, b"x" * length)
        assert refused.value.errno == errno.EINVAL


def test_down_and_up_in_either_order_needs_no_resync():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"w" * 4096)
    for node in (pair.alice, pair.bob):
        node.do(node.r.shutdown)
        node.kill()
    for node in (pair.bob, pair.alice):
        node.up()
    pair.settle()
    assert pair.alice.volume().counters.sent == 0
    assert pair.bob.volume().counters.sent == 0
