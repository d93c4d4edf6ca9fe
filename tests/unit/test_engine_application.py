"""Application I/O on a real pair in the pretended world: order, completion, flush, failing disks."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from protocol.packets import Command, StateRequest, encode
from protocol.states import CONN_MASK, CONN_SHIFT, DISK_SHIFT, PDSK_SHIFT, Conn, Disk
from replicator.engine.replication import RemoteRead
from replicator.engine.requests import Countdown
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.engine.transfer_log import EPOCHS_MAX
from replicator.metadata.layout import geometry
from tests.simulation import world
from tests.simulation.pair import INTERNAL, MIB, Node, Pair, apply_al

BLOCK = 4096


def synced(**options: Any) -> Pair:
    pair = Pair(**options)
    pair.up_synced()
    return pair


def reattach(node: Node) -> None:
    """Attach the node's medium again, as `attach` does after apply-al."""
    apply_al(node.media[0])
    disk = world.Disk(node.media[0], node.clock, node.pair.rng)
    node.disks[0] = disk
    node.do(lambda done: node.r.attach(0, disk, disk, INTERNAL, done))


def burst(node: Node, count: int, seed: int = 0) -> list[int]:
    """Start random writes, flushes, trims and reads without waiting; their results, as they come."""
    rng = random.Random(seed)
    results: list[int] = []
    volume = node.volume()
    for _ in range(count):
        offset = 512 * rng.randrange(volume.size // 512 - 64)
        length = 512 * rng.randrange(1, 64)
        kind = rng.randrange(10)
        if kind < 6:
            volume.write(offset, rng.randbytes(length), rng.random() < 0.2, results.append)
        elif kind < 7:
            volume.flush(results.append)
        elif kind < 8:
            volume.trim(offset, length, False, results.append)
        elif kind < 9:
            volume.zero(offset, length, True, True, results.append)
        else:
            volume.read(offset, length, lambda e, _data: results.append(e))
    return results


def at_rest(node: Node) -> dict[str, int]:
    shown = node.r.snapshot().volumes[0]
    return {word: getattr(shown, word) for word in ("lo", "pe", "ua", "ap", "ep")}


REST = {"lo": 0, "pe": 0, "ua": 0, "ap": 0, "ep": 1}


# --- counters return to rest ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
@pytest.mark.parametrize("per_completion", [False, True])
def test_after_any_traffic_every_counter_is_at_rest_and_both_copies_are_equal(
    protocol: str, per_completion: bool
) -> None:
    pair = synced(net=NetSettings(protocol=protocol), epoch_per_completion=per_completion)
    results = burst(pair.alice, 300)
    busy = at_rest(pair.alice)
    assert busy["ap"] > 0 and busy["lo"] > 0
    pair.run(5)
    assert results == [0] * 300
    assert at_rest(pair.alice) == REST and at_rest(pair.bob) == REST
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.volume().bitmap.weight == 0  # type: ignore[union-attr]
    assert pair.alice.r.replication.log.unacknowledged == 0
    assert pair.alice.volume().activity_log_object._references == {}  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(6))
def test_counters_are_at_rest_after_a_lost_connection_and_the_resync_that_follows(
    seed: int,
) -> None:
    pair = synced(seed=seed, net=NetSettings(protocol="ABC"[seed % 3]))
    results = burst(pair.alice, 200, seed)
    pair.run(0.0005 * seed)
    pair.network.break_all()
    results += burst(pair.alice, 50, seed + 100)
    pair.run(1)
    pair.settle()
    pair.run(2)
    assert set(results) == {0}
    assert at_rest(pair.alice) == REST and at_rest(pair.bob) == REST
    assert pair.alice.data() == pair.bob.data()


def test_counters_are_at_rest_on_a_primary_without_a_disk() -> None:
    pair = synced()
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    results = burst(pair.alice, 150)
    pair.run(5)
    assert results == [0] * 150
    assert at_rest(pair.alice) == REST and at_rest(pair.bob) == REST


# --- order and content ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_writes_leave_the_same_bytes_on_both_nodes(seed: int) -> None:
    pair = synced(seed=seed)
    rng = random.Random(seed)
    done: list[int] = []
    for number in range(200):
        start = 512 * rng.randrange(24)
        data = bytes([number & 255]) * (512 * rng.randrange(1, 16))
        pair.alice.volume().write(start, data, False, done.append)
        if rng.random() < 0.1:
            pair.run(0.001)
    pair.run(3)
    assert done == [0] * 200
    assert pair.alice.data() == pair.bob.data()


def test_of_two_overlapping_writes_the_later_one_wins() -> None:
    pair = synced()
    done: list[int] = []
    for letter in (b"a", b"b", b"c"):
        pair.alice.volume().write(0, letter * BLOCK, False, done.append)
    pair.run(2)
    assert pair.alice.data()[:BLOCK] == pair.bob.data()[:BLOCK] == b"c" * BLOCK


def test_a_large_write_is_split_and_answered_once() -> None:
    pair = synced()
    data = random.Random(1).randbytes(3 * MIB - 512)
    results: list[int] = []
    pair.alice.volume().write(512, data, True, results.append)
    pair.run(2)
    assert results == [0]
    assert pair.bob.data()[512 : 512 + len(data)] == data
    assert pair.alice.read(512, len(data)) == data


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (-512, 512), (1, 512), (0, 511), (4 * MIB, 512)]
)
def test_impossible_ranges_are_einval(offset: int, length: int) -> None:
    pair = synced()
    results: list[int] = []
    volume = pair.alice.volume()
    volume.write(offset, bytes(length), False, results.append)
    volume.trim(offset, length, False, results.append)
    volume.read(offset, length, lambda e, _data: results.append(e))
    assert results == [], "an answer came from inside the call"
    pair.run(1)
    assert results == [errno.EINVAL] * 3
    assert at_rest(pair.alice) == REST


def test_a_secondary_is_not_written() -> None:
    pair = synced()
    with pytest.raises(OSError, match="i/o") as caught:
        pair.bob.write(0, bytes(512))
    assert caught.value.errno == errno.EROFS


# --- when a write is complete ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "peer_is", "complete"),
    [
        ("A", "cut off", True),
        ("A", "slow", True),
        ("B", "cut off", False),
        ("B", "slow", True),
        ("C", "cut off", False),
        ("C", "slow", False),
    ],
)
def test_a_write_completes_when_the_protocol_says_so(
    protocol: str, peer_is: str, complete: bool
) -> None:
    pair = synced(net=NetSettings(protocol=protocol))
    if peer_is == "slow":
        pair.bob.disks[0].hangs = True
    else:
        pair.network.cut = {"alice"}
    results: list[int] = []
    pair.alice.volume().write(0, b"w" * BLOCK, False, results.append)
    pair.run(0.3)
    assert results == [0] * complete


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_no_protocol_completes_a_write_before_the_own_disk_has_it(protocol: str) -> None:
    pair = synced(net=NetSettings(protocol=protocol))
    pair.alice.write(0, b"hot" + bytes(509))
    pair.alice.disks[0].hangs = True
    results: list[int] = []
    pair.alice.volume().write(0, b"w" * BLOCK, False, results.append)
    pair.run(0.3)
    assert results == []
    assert pair.bob.data()[:BLOCK] == b"w" * BLOCK


# --- the promise of a flush ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_under_c_a_flushed_write_survives_the_loss_of_power_on_both_nodes(seed: int) -> None:
    pair = synced(seed=seed)
    promised: dict[int, bytes] = {}
    for number in range(30):
        block = pair.rng.randrange(100)
        data = bytes([number + 1]) * BLOCK
        pair.alice.write(block * BLOCK, data)
        promised[block] = data
    pair.alice.flush()
    pair.alice.power_loss()
    pair.bob.power_loss()
    for node in (pair.alice, pair.bob):
        for block, data in promised.items():
            assert node.data()[block * BLOCK : (block + 1) * BLOCK] == data


def test_fua_is_as_good_as_a_flush() -> None:
    pair = synced(seed=3)
    pair.alice.write(0, b"f" * BLOCK, fua=True)
    pair.alice.power_loss()
    pair.bob.power_loss()
    assert pair.alice.data()[:BLOCK] == pair.bob.data()[:BLOCK] == b"f" * BLOCK


def test_a_flush_does_not_wait_for_the_peer_under_a_and_b() -> None:
    for protocol in "AB":
        pair = synced(net=NetSettings(protocol=protocol))
        pair.alice.write(0, b"x" * BLOCK)
        pair.bob.disks[0].hangs = True
        pair.alice.flush()


# --- metadata that cannot be written -------------------------------------------------------------


def fail_activity_log(node: Node) -> None:
    """Every write of the ring ends with EIO; data, bitmap and superblock stay good."""
    layout = geometry(node.media[0].size, INTERNAL)
    ring = range(layout.al_offset, layout.al_offset + 4096 * layout.al_blocks)
    node.disks[0].fails = lambda kind, offset, _length: (
        errno.EIO if kind == "write" and offset in ring else 0
    )


def test_a_disk_whose_activity_log_cannot_be_written_is_given_up() -> None:
    """Else writes would go on that nothing marks: a crash would leave differences unknown."""
    pair = synced(size=16 * MIB)
    fail_activity_log(pair.alice)
    pair.alice.write(8 * MIB, b"x" * BLOCK)
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.Diskless, Disk.UpToDate)
    assert pair.bob.data()[8 * MIB : 8 * MIB + BLOCK] == b"x" * BLOCK
    assert any("activity log" in line for line in pair.lines)


def test_alone_such_a_write_is_an_error_and_not_a_silent_difference() -> None:
    pair = synced(size=16 * MIB)
    pair.bob.kill()
    pair.run(20)
    pair.alice.write(0, b"0" * BLOCK)
    fail_activity_log(pair.alice)
    with pytest.raises(OSError, match="i/o"):
        pair.alice.write(8 * MIB, b"x" * BLOCK)
    pair.run(1)
    assert pair.alice.is_(disk=Disk.Diskless)
    assert pair.alice.data()[8 * MIB : 8 * MIB + BLOCK] == bytes(BLOCK)


# --- detach and attach during traffic ------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_disk_may_be_detached_and_attached_while_the_peer_still_owes_answers(seed: int) -> None:
    pair = synced(seed=seed)
    for round_number in range(6):
        results = burst(pair.alice, 40, 10 * seed + round_number)
        pair.run(0.0004 * seed)
        pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
        reattach(pair.alice)
        pair.settle()
        pair.run(2)
        assert results == [0] * 40
        assert at_rest(pair.alice) == REST and at_rest(pair.bob) == REST
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.volume().activity_log_object._references == {}  # type: ignore[union-attr]


# --- starvation ----------------------------------------------------------------------------------


def test_more_hot_extents_than_slots_go_on_because_the_epoch_is_closed() -> None:
    pair = synced(size=44 * MIB, disk=DiskSettings(al_extents=3, c_max_rate=0))
    results: list[int] = []
    for extent in range(10):
        pair.alice.volume().write(extent * 4 * MIB, b"e" * BLOCK, False, results.append)
    pair.run(5)
    assert results == [0] * 10
    assert at_rest(pair.alice) == REST
    assert pair.alice.data() == pair.bob.data()


# --- what a peer may ask for ---------------------------------------------------------------------


def send(node: Node, packet: bytes) -> None:
    assert node.r.link is not None
    node.r.link.send_data(packet)
    node.pair.run(1)


@pytest.mark.parametrize("command", [Command.STATE_CHG_REQ, Command.CONN_ST_CHG_REQ])
@pytest.mark.parametrize("code", [9, 15])
def test_a_state_that_nobody_knows_is_refused_and_not_a_crash(command: Command, code: int) -> None:
    pair = synced()
    mask = 0xF << DISK_SHIFT | 0xF << PDSK_SHIFT | CONN_MASK << CONN_SHIFT
    val = code << DISK_SHIFT | code << PDSK_SHIFT
    val |= (Conn.Disconnecting if command == Command.CONN_ST_CHG_REQ else 0) << CONN_SHIFT
    send(pair.bob, encode(0, command, StateRequest(mask, val)))
    pair.settle()
    pair.alice.write(0, b"on" * 2048)


@pytest.mark.parametrize("seed", range(4))
def test_random_state_requests_never_crash_and_always_end(seed: int) -> None:
    pair = synced(seed=seed)
    rng = random.Random(seed)
    for _ in range(60):
        word = rng.choice([Command.STATE_CHG_REQ, Command.CONN_ST_CHG_REQ])
        mask = rng.choice([0xFFFFFFFF, 3, 0xF << DISK_SHIFT, CONN_MASK << CONN_SHIFT, 0])
        val = rng.getrandbits(23)
        if pair.bob.r.link is not None:
            send(pair.bob, encode(0, word, StateRequest(mask, val)))
        pair.run(3)
    assert at_rest(pair.alice)["ap"] == 0


# --- small parts ---------------------------------------------------------------------------------


def test_a_countdown_answers_once_with_the_first_error() -> None:
    heard: list[int] = []
    joined = Countdown(3, heard.append)
    for error in (0, errno.EIO, errno.ENOSPC):
        assert heard == []
        joined.part_done(error)
    assert heard == [errno.EIO]


def test_a_read_from_the_peer_is_joined_in_order_and_has_no_data_after_an_error() -> None:
    heard: list[tuple[int, bytes]] = []
    done: Callable[[int, bytes], None] = lambda error, data: heard.append((error, data))  # noqa: E731
    read = RemoteRead(3, done)
    read.part(2, 0, b"c")
    read.part(0, 0, b"a")
    read.part(1, 0, b"b")
    assert heard == [(0, b"abc")]
    read = RemoteRead(2, done)
    read.part(1, 0, b"b")
    read.part(0, errno.EIO, b"")
    assert heard[1] == (errno.EIO, b"")


# --- bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends_by", ["the flush", "a lost connection"])
def test_a_peer_whose_flush_takes_long_makes_new_writes_wait_when_the_log_is_full(
    ends_by: str,
) -> None:
    pair = synced(net=NetSettings(max_epoch_size=4))
    log = pair.alice.r.replication.log
    pair.bob.disks[0].slow = lambda kind, _offset, _length: 20.0 if kind == "flush" else 0.0
    volume, results = pair.alice.volume(), []
    limit = 4 * EPOCHS_MAX
    for number in range(limit + 50):
        volume.write(BLOCK * (number % 40), bytes([number & 255]) * BLOCK, False, results.append)
        pair.run(0.01)
    assert results == [0] * limit and log.unacknowledged == limit
    shown = pair.alice.r.snapshot()
    assert shown.unstable == limit and "the peer's disk" in shown.volumes[0].waiting_for
    assert shown.volumes[0].ap == 50
    if ends_by == "the flush":
        pair.run(120)
    else:
        pair.network.break_all()
        pair.run(0.1)
        assert results == [0] * (limit + 50), "without a peer nothing has to wait for it"
        pair.bob.disks[0].slow = None
    pair.run(5)
    pair.settle()
    assert results == [0] * (limit + 50)
    pair.run(60)
    assert at_rest(pair.alice) == REST and pair.alice.data() == pair.bob.data()


def test_what_the_peer_has_not_written_yet_is_bounded_and_shown() -> None:
    pair = synced(net=NetSettings(max_buffers=8))
    pair.bob.disks[0].slow = lambda kind, _offset, _length: 1.0 if kind == "write" else 0.0
    volume, results, most = pair.alice.volume(), [], 0
    for number in range(60):
        volume.write(BLOCK * number, b"x" * BLOCK, False, results.append)
        pair.run(0.01)
        most = max(most, pair.bob.r.snapshot().unwritten)
    assert 0 < most <= 8 * BLOCK + 2 * BLOCK, "what had been read already may come on top"
    pair.run(60)
    assert results == [0] * 60 and pair.bob.r.snapshot().unwritten == 0
