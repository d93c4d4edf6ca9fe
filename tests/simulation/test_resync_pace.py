"""The resync options have their effect, and status says which of them it is."""

from __future__ import annotations

import pytest

from protocol.states import Conn
from replicator.engine.pacing import REQUEST_POLITE
from replicator.engine.settings import DiskSettings
from replicator.status.proc import proc_text
from tests.simulation.pair import MIB, Node, Pair

AL = {"al_extents": 67}


def resyncing(disk: DiskSettings, size: int = 24 * MIB, link_latency: float = 0.0) -> Pair:
    pair = Pair(size=size, disk=disk)
    pair.fill()
    pair.network.base_latency += link_latency
    pair.up()
    pair.alice.primary(force=True)
    pair.run_until(lambda: pair.bob.is_(Conn.SyncTarget) and pair.alice.is_(Conn.SyncSource))
    return pair


def reason(node: Node) -> str:
    progress = node.r.snapshot().volumes[0].progress
    assert progress is not None
    return progress.reason


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (DiskSettings(**AL, c_max_rate=4 * MIB), "limited by c-max-rate"),
        (DiskSettings(**AL, c_plan_ahead=0, resync_rate=4 * MIB), "limited by resync-rate"),
    ],
)
def test_a_configured_rate_is_kept_and_named(disk: DiskSettings, words: str) -> None:
    pair = resyncing(disk)
    start = pair.clock.time
    pair.run(2)
    assert reason(pair.bob) == words
    assert reason(pair.alice) == "limited by the peer"
    pair.settle()
    assert 5.5 < pair.clock.time - start < 7


def test_a_fill_target_bounds_what_is_under_way() -> None:
    pair = resyncing(DiskSettings(**AL, c_fill_target=64 << 10), link_latency=0.02)
    pair.run(1)
    resync = pair.bob.volume().resync
    assert reason(pair.bob) == "limited by c-fill-target"
    assert 0 < resync._in_flight <= 64 << 10
    pair.settle()


def test_a_slow_disk_of_the_target_is_named_on_both_sides() -> None:
    pair = resyncing(DiskSettings(**AL))
    pair.bob.disks[0].slow = lambda kind, *_: 1.0 if kind in ("write", "flush") else 0.0
    pair.run(3)
    assert reason(pair.bob) == "limited by this node's disk"
    assert reason(pair.alice) == "limited by the peer"
    pair.bob.disks[0].slow = None
    pair.settle()


def test_a_slow_disk_of_the_source_is_named_on_both_sides() -> None:
    pair = resyncing(DiskSettings(**AL))
    pair.alice.disks[0].slow = lambda kind, *_: 1.0 if kind == "read" else 0.0
    pair.run(2)
    assert reason(pair.alice) == "limited by this node's disk"
    assert reason(pair.bob) == "limited by the peer"
    pair.alice.disks[0].slow = None
    pair.settle()


def test_a_source_whose_applications_feel_the_resync_answers_at_the_lowest_rate() -> None:
    pair = resyncing(DiskSettings(**AL, c_min_rate=MIB), size=64 * MIB)
    volume, running = pair.alice.volume(), True

    def write(_errno: int = 0) -> None:
        if running:
            volume.write(0, b"a" * 4096, False, write)

    courtesy = pair.alice.r.courtesy
    pair.alice.disks[0].slow = lambda kind, *_: (
        0.05 if kind == "write" and courtesy.rate != MIB else 0.0
    )
    write()
    pair.run(3)
    assert reason(pair.alice) == "yielding to application I/O"
    before = volume.bitmap.weight if volume.bitmap else 0
    pair.run(5)
    after = volume.bitmap.weight if volume.bitmap else 0
    assert 3 * MIB < (before - after) << 12 < 12 * MIB
    running = False
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_the_proc_text_ends_with_the_reason() -> None:
    pair = resyncing(DiskSettings(**AL, c_max_rate=4 * MIB))
    pair.run(2)
    text = proc_text([pair.bob.r.snapshot()])
    assert text.rstrip().endswith("want: 4,096 K/sec (limited by c-max-rate)")


def test_writes_before_a_resync_do_not_make_its_requests_small() -> None:
    pair = Pair(size=24 * MIB, disk=DiskSettings(**AL, c_plan_ahead=0, resync_rate=20 * MIB))
    pair.fill()
    pair.up_synced()
    pair.alice.primary()
    pair.alice.write(0, bytes(4096))
    pair.run(60)
    resync = pair.bob.volume().resync
    pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    pair.run(0.2)
    pair.run_until(lambda: resync.outstanding > 0)
    assert max(block.nsectors << 9 for block in resync._requested.values()) > REQUEST_POLITE
    pair.settle()
