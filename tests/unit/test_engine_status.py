"""The snapshot: every number from its source, every wait with its reason, and back to rest."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from tests.simulation.pair import MIB, Node, Pair

BLOCK = 4096


def shown(node: Node, volume: int = 0) -> VolumeSnapshot:
    return node.r.snapshot().volumes[volume]


def test_a_pair_at_rest_shows_what_drbd_shows() -> None:
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice.r.snapshot(), pair.bob.r.snapshot()
    assert (alice.cstate, alice.protocol, alice.agreed_version) == ("Connected", "C", 101)
    assert alice.waiting_for == alice.last_error == ""
    assert alice.peer_software.startswith("replicator ")
    a, b = alice.volumes[0], bob.volumes[0]
    assert (a.cs, a.role, a.peer_role, a.disk, a.peer_disk) == (
        "Connected",
        "Primary",
        "Secondary",
        "UpToDate",
        "UpToDate",
    )
    assert (b.role, b.peer_role) == ("Secondary", "Primary")
    assert (a.oos, a.lo, a.pe, a.ua, a.ap, a.ep, a.wo) == (0, 0, 0, 0, 0, 1, "f")
    assert a.uuids[0][:-1] == b.uuids[0][:-1], "one generation, the last digit tells the role"
    assert a.progress is None and a.waiting_for == ""
    assert ResourceSnapshot.from_dict(alice.to_dict()) == alice


def test_what_was_written_is_counted_on_both_sides() -> None:
    pair = Pair()
    pair.up_synced()
    a, b = shown(pair.alice), shown(pair.bob)
    for number in range(10):
        pair.alice.write(number * 8192, bytes(8192))
    pair.alice.read(0, 65536)
    after_a, after_b = shown(pair.alice), shown(pair.bob)
    assert after_a.ns - a.ns == after_b.nr - b.nr == 80
    assert after_a.dw - a.dw == after_b.dw - b.dw == 80
    assert after_a.dr - a.dr == 64
    assert after_a.al - a.al == 1


def test_requests_under_way_are_seen_where_they_wait() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, bytes(BLOCK))
    pair.bob.disks[0].hangs = True
    for number in range(5):
        pair.alice.volume().write(BLOCK * number, bytes(BLOCK), False, lambda _errno: None)
    pair.run(0.2)
    a, b = shown(pair.alice), shown(pair.bob)
    assert (a.ap, a.pe, a.lo) == (5, 5, 0)
    assert (b.ua, b.lo) == (5, 5)
    assert b.ep == 1


def test_a_write_out_of_sync_is_4_kib_each_block() -> None:
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.run(20)
    pair.alice.write(0, bytes(3 * BLOCK))
    assert shown(pair.alice).oos == 12
    assert shown(pair.alice).cs == "WFConnection"
    snapshot = pair.alice.r.snapshot()
    assert snapshot.waiting_for.startswith("the peer (") and snapshot.last_error


def test_a_resync_shows_its_progress_and_a_pause_its_reason() -> None:
    pair = Pair(size=32 * MIB, disk=DiskSettings(al_extents=67, c_max_rate=2 * MIB))
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    pair.run(2)
    a, b = shown(pair.alice), shown(pair.bob)
    assert (a.cs, b.cs) == ("SyncSource", "SyncTarget")
    assert a.progress is not None and b.progress is not None
    assert 0 < b.progress.left < b.progress.total
    assert b.progress.want is not None
    pair.bob.do(lambda done: pair.bob.r.pause_sync(0, done))
    pair.run(1)
    assert shown(pair.bob).waiting_for == "resync paused by this node's administrator"
    assert shown(pair.alice).waiting_for == "resync paused by the peer"
    pair.bob.do(lambda done: pair.bob.r.resume_sync(0, done))
    pair.settle()
    assert shown(pair.bob).progress is None and shown(pair.bob).oos == 0
    for node in (pair.alice, pair.bob):
        after = shown(node)
        assert (after.lo, after.pe, after.ua, after.ap, after.ep) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_the_protocol_is_shown_while_there_is_a_network_configuration(protocol: str) -> None:
    pair = Pair(net=NetSettings(protocol=protocol))
    pair.up()
    assert pair.alice.r.snapshot().protocol == protocol
    pair.alice.disconnect()
    assert pair.alice.r.snapshot().protocol == ""
    assert pair.alice.r.snapshot().cstate == Conn.StandAlone.name


def test_a_volume_without_a_disk_has_no_uuids() -> None:
    pair = Pair()
    pair.up_synced()
    pair.bob.do(lambda done: pair.bob.r.detach(0, False, done))
    found = shown(pair.bob)
    assert (found.disk, found.uuids, found.gi_flags, found.oos) == ("Diskless", [], "", 0)


def test_two_volumes_are_counted_apart() -> None:
    pair = Pair(volumes=2)
    pair.up_synced()
    before = [shown(pair.alice, n).dw for n in (0, 1)]
    pair.alice.write(0, bytes(BLOCK), volume=1)
    assert [shown(pair.alice, n).dw for n in (0, 1)] == [before[0], before[1] + 4]


def test_the_worst_connection_state_stands_for_the_resource() -> None:
    pair = Pair(volumes=2, size=16 * MIB, disk=DiskSettings(al_extents=67, c_max_rate=MIB))
    pair.fill()
    pair.up()
    pair.alice.primary(force=True)
    pair.run(1)
    states = {shown(pair.alice, n).cs for n in (0, 1)}
    assert pair.alice.r.snapshot().cstate in states


def test_a_disk_error_ends_in_diskless_with_its_name_in_the_log() -> None:
    pair = Pair()
    pair.up_synced()
    pair.bob.disks[0].fails = lambda kind, *_: errno.EIO if kind == "write" else 0
    pair.alice.write(0, bytes(BLOCK))
    pair.run(2)
    assert shown(pair.bob).disk == "Diskless"
    assert shown(pair.alice).peer_disk == "Diskless"
    assert any("EIO" in line and "bob" in line for line in pair.lines)
