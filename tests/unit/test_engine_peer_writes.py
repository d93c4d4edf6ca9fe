"""The receiving side of mirrored writes: order, acknowledgements, epochs, memory, and disks that fail."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.framing import FrameReader
from protocol.packets import BarrierAck, BlockAck, Command, DpFlags, decode
from protocol.states import Conn, StateWord
from protocol.states import Disk as DiskState
from replicator.engine.intervals import IntervalLocks
from replicator.engine.peer_writes import PeerWrites
from replicator.engine.requests import Kind
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.engine.volume import Counters
from tests.simulation import world

pytestmark = pytest.mark.python_engine  # has pretended parts in the place of a link and a volume

WRITE_ACK, RECEIVE_ACK = DpFlags.SEND_WRITE_ACK, DpFlags.SEND_RECEIVE_ACK
CONNECTED = StateWord(conn=Conn.Connected, disk=DiskState.UpToDate, pdsk=DiskState.UpToDate)


class FakeLink:
    """What PeerWrites uses of a link: it takes acknowledgements and can be ended."""

    def __init__(self, peer_extension: int) -> None:
        self.peer_extension = peer_extension
        self.closed = False
        self.reason = ""
        self.reading = True
        self.sent: list[tuple[Command, Any]] = []

    def buffers_full(self, full: bool) -> None:
        assert self.reading is full
        self.reading = not full

    def send_meta(self, packet: bytes) -> None:
        reader = FrameReader("m")
        reader.switch_to_h100()
        reader.feed(packet)
        frame = reader.next_frame()
        assert frame is not None and not self.closed
        self.sent.append((Command(frame.command), decode(frame.command, frame.payload)))

    def fail(self, state: Conn, reason: str) -> None:
        self.closed = True
        self.reason = reason


@dataclass(eq=False)
class FakeVolume:
    """What PeerWrites uses of a volume."""

    data_disk: Any
    number: int = 0
    sequence: int = 0
    activity_log: Any = None
    activity_log_object: Any = None
    state: StateWord = CONNECTED
    locks: IntervalLocks = field(default_factory=IntervalLocks)
    counters: Counters = field(default_factory=Counters)
    settings: Any = field(default_factory=lambda: SimpleNamespace(disk=DiskSettings()))
    marked: list[tuple[int, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tracking: int = 0
    tracked_writes: dict[Any, None] = field(default_factory=dict)

    def mark_out_of_sync(self, sector: int, nsectors: int) -> None:
        self.marked.append((sector, nsectors))

    def local_io_error(self, what: str, sector: int, error: int, disk: Any = None) -> None:
        self.errors.append(what)
        self.data_disk = None

    def track_for_peer(self) -> None:
        self.tracking += 1

    def after_generation(self, action: Callable[[], None]) -> None:
        action()

    def when_indicated(self, action: Callable[[], None]) -> None:
        action()

    def keep_superblock(self) -> None:
        """Flags follow from what is under way; the superblock is another test's matter."""


class SlowDisk:
    """Its calls end when the test says so, in the order it chooses."""

    def __init__(self, size: int = 1 << 22) -> None:
        self.medium = world.Medium(size)
        self.fails: Callable[[str, int, int], int] | None = None
        self.flushes = 0
        self.held: list[tuple[str, int, Callable[[], None]]] = []

    def _hold(
        self,
        kind: str,
        offset: int,
        length: int,
        act: Callable[[], None],
        done: Callable[[int], None],
    ) -> None:
        def end() -> None:
            error = self.fails(kind, offset, length) if self.fails is not None else 0
            if not error:
                act()
            done(error)

        self.held.append((kind, offset, end))

    def write(self, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        def act() -> None:
            self.medium.write(offset, bytes(data))

        self._hold("write", offset, len(data), act, done)

    def zero(self, offset: int, length: int, unmap: bool, done: Callable[[int], None]) -> None:
        self.write(offset, bytes(length), done)

    def flush(self, done: Callable[[int], None]) -> None:
        before = self.medium.seal()

        def act() -> None:
            self.flushes += 1
            self.medium.settle(before)

        self._hold("flush", 0, 0, act, done)

    def calls(self) -> list[tuple[str, int]]:
        return [(kind, offset >> 9) for kind, offset, _action in self.held]

    def finish(self, index: int = 0) -> None:
        self.held.pop(index)[2]()

    def finish_all(self) -> None:
        while self.held:
            self.finish()


class Rig:
    def __init__(
        self, replicators: bool = True, protocol: str = "C", max_buffers: int = 2048
    ) -> None:
        self.disk = SlowDisk()
        self.volume = FakeVolume(self.disk)
        self.link = FakeLink(1 if replicators else 0)
        self.queue: list[Callable[[], None]] = []
        net = NetSettings(protocol=protocol, max_buffers=max_buffers)
        resource = SimpleNamespace(settings=SimpleNamespace(net=net), soon=self.queue.append)
        self.writes = PeerWrites(resource, self.link)  # type: ignore[arg-type]
        self._next = 0

    def write(self, sector: int = 0, flags: int = WRITE_ACK, nsectors: int = 8) -> int:
        """A write arrives. Returns its block id."""
        self._next += 1
        data = bytes([self._next & 255]) * (nsectors << 9)
        args = (self.volume, Kind.WRITE, sector, nsectors, data, self._next, flags)
        self.writes.write(*args)  # type: ignore[arg-type]
        return self._next

    def settle(self) -> None:
        """Run what was put off for the loop, and end no disk call."""
        while self.queue:
            self.queue.pop(0)()

    def finish_all(self) -> None:
        while self.queue or self.disk.held:
            self.settle()
            self.disk.finish_all()

    def answers(self) -> list[str]:
        """What was sent, e.g. "WRITE_ACK 3", "BARRIER_ACK 7:2"."""
        words = []
        for command, packet in self.link.sent:
            if isinstance(packet, BarrierAck):
                words.append(f"BARRIER_ACK {packet.barrier}:{packet.set_size}")
            else:
                assert isinstance(packet, BlockAck)
                words.append(f"{command.name} {packet.block_id}")
        return words


# --- acknowledgements ----------------------------------------------------------------------------


def test_a_write_is_acknowledged_when_it_is_on_the_disk() -> None:
    rig = Rig()
    rig.write(8)
    assert rig.answers() == []
    rig.disk.finish()
    assert rig.answers() == ["WRITE_ACK 1"]
    packet = rig.link.sent[0][1]
    assert (packet.sector, packet.blksize, packet.seq_num) == (8, 4096, 1)
    assert rig.disk.medium.current[4096:8192] == b"\1" * 4096


def test_protocol_b_acknowledges_receipt_and_protocol_a_nothing() -> None:
    rig = Rig(protocol="B")
    rig.write(0, RECEIVE_ACK)
    assert rig.answers() == ["RECV_ACK 1"]
    rig.write(8, 0)
    rig.finish_all()
    assert rig.answers() == ["RECV_ACK 1"]


def test_overlapping_writes_reach_the_disk_one_after_the_other() -> None:
    rig = Rig()
    rig.write(0)
    rig.write(4)
    rig.write(64)
    assert rig.disk.calls() == [("write", 0), ("write", 64)]
    rig.disk.finish(1)
    rig.disk.finish(0)
    rig.disk.finish_all()
    assert rig.answers() == ["WRITE_ACK 3", "WRITE_ACK 1", "WRITE_ACK 2"]
    assert rig.disk.medium.current[:6144] == b"\1" * 2048 + b"\2" * 4096
    assert rig.volume.locks.count == 0


# --- barriers ------------------------------------------------------------------------------------


def test_a_barrier_is_acknowledged_after_its_writes_and_a_flush_that_began_afterwards() -> None:
    rig = Rig()
    rig.write(0)
    rig.write(8)
    rig.writes.barrier(7)
    rig.disk.finish()
    rig.settle()
    assert rig.disk.calls() == [("write", 8)], "the flush began before the last write had ended"
    rig.disk.finish()
    rig.settle()
    assert rig.disk.calls() == [("flush", 0)]
    assert "BARRIER_ACK 7:2" not in rig.answers()
    rig.disk.finish()
    assert rig.answers()[-1] == "BARRIER_ACK 7:2"
    assert not rig.disk.medium.unflushed


@pytest.mark.parametrize("replicators", [True, False])
def test_barriers_are_acknowledged_in_order_with_exact_counts(replicators: bool) -> None:
    rig = Rig(replicators)
    for number, count in ((1, 2), (2, 1), (3, 4)):
        for _ in range(count):
            rig.write(8 * rig._next)
        rig.writes.barrier(number)
    while rig.disk.held or rig.queue:
        rig.settle()
        if rig.disk.held:
            rig.disk.finish(len(rig.disk.held) - 1)
    acks = [word for word in rig.answers() if word.startswith("BARRIER")]
    assert acks == ["BARRIER_ACK 1:2", "BARRIER_ACK 2:1", "BARRIER_ACK 3:4"]
    assert len(rig.writes.epochs) == 1


def test_one_flush_serves_all_epochs_that_have_finished() -> None:
    rig = Rig()
    for number in range(1, 5):
        rig.write(8 * number)
        rig.writes.barrier(number)
    while rig.disk.calls()[0][0] == "write":
        rig.disk.finish()
        rig.settle()
    rig.finish_all()
    assert [word for word in rig.answers() if word.startswith("BARRIER")] == [
        f"BARRIER_ACK {number}:1" for number in range(1, 5)
    ]
    assert rig.disk.flushes == 2, "the first epoch's, and one for the three that finished meanwhile"


def test_towards_a_kernel_a_later_epoch_starts_when_the_earlier_one_is_stable() -> None:
    rig = Rig(replicators=False)
    rig.write(0)
    rig.writes.barrier(1)
    rig.write(8)
    rig.writes.barrier(2)
    rig.write(16)
    assert rig.disk.calls() == [("write", 0)]
    rig.disk.finish()
    rig.settle()
    assert rig.disk.calls() == [("flush", 0)]
    rig.disk.finish()
    rig.settle()
    assert rig.disk.calls() == [("write", 8)]
    rig.finish_all()
    assert rig.answers()[-2:] == ["BARRIER_ACK 2:1", "WRITE_ACK 3"]


@pytest.mark.parametrize(
    ("replicators", "protocol", "strict"),
    [(True, "C", False), (True, "B", True), (True, "A", True), (False, "C", True)],
)
def test_only_protocol_c_between_replicators_lets_epochs_overlap(
    replicators: bool, protocol: str, strict: bool
) -> None:
    rig = Rig(replicators, protocol)
    rig.write(0, RECEIVE_ACK if protocol == "B" else 0)
    rig.writes.barrier(1)
    rig.write(8, RECEIVE_ACK if protocol == "B" else 0)
    assert len(rig.disk.calls()) == (1 if strict else 2)
    if strict and protocol == "B":
        assert rig.answers() == ["RECV_ACK 1"], "received means: it will be written in any case"
    rig.finish_all()
    assert rig.disk.medium.current[4096:8192] == b"\2" * 4096


def test_without_disk_flushes_a_barrier_waits_for_the_writes_only() -> None:
    rig = Rig()
    rig.volume.settings.disk.disk_flushes = False
    rig.write(0)
    rig.writes.barrier(1)
    rig.disk.finish()
    assert rig.answers() == ["WRITE_ACK 1"]
    rig.settle()
    assert rig.answers() == ["WRITE_ACK 1", "BARRIER_ACK 1:1"]
    assert rig.disk.flushes == 0


# --- failures ------------------------------------------------------------------------------------


def test_a_write_without_a_disk_is_refused_but_counts_for_the_barrier() -> None:
    rig = Rig()
    rig.volume.data_disk = None
    rig.write(0)
    rig.write(8)
    rig.writes.barrier(4)
    rig.finish_all()
    assert rig.answers() == ["NEG_ACK 1", "NEG_ACK 2", "BARRIER_ACK 4:2"]


def test_a_failed_write_is_marked_and_the_connection_ends_before_its_barrier() -> None:
    """What the disk took earlier in this epoch may be lost with it."""
    rig = Rig()
    rig.write(0)
    rig.write(8)
    rig.disk.fails = lambda kind, offset, _length: errno.EIO if offset == 4096 else 0
    rig.writes.barrier(1)
    rig.finish_all()
    assert rig.answers() == ["WRITE_ACK 1", "NEG_ACK 2"]
    assert rig.volume.marked == [(8, 8)]
    assert rig.volume.errors == ["write for the peer"]
    assert rig.link.closed and "lost its disk" in rig.link.reason


def test_a_failed_flush_ends_the_connection_instead_of_acknowledging() -> None:
    rig = Rig()
    rig.write(0)
    rig.writes.barrier(1)
    rig.disk.fails = lambda kind, *_: errno.EIO if kind == "flush" else 0
    rig.finish_all()
    assert rig.answers() == ["WRITE_ACK 1"]
    assert rig.volume.errors == ["flush for the peer"]
    assert rig.link.closed


def test_a_disk_that_was_exchanged_before_the_flush_ends_the_connection() -> None:
    """Detached and attached again: what the old one held unflushed is nobody's promise."""
    rig = Rig()
    rig.write(0)
    rig.disk.finish()
    old, new = rig.disk, SlowDisk()
    rig.volume.data_disk = new
    rig.write(8)
    new.finish_all()
    rig.writes.barrier(1)
    while rig.queue or old.held or new.held:
        rig.settle()
        old.finish_all()
        new.finish_all()
    assert "BARRIER_ACK 1:2" not in rig.answers()
    assert rig.link.closed


def test_after_the_end_what_was_started_is_finished_and_nothing_is_said() -> None:
    rig = Rig(protocol="B")
    rig.write(0, 0)
    rig.writes.barrier(1)
    rig.write(8, 0)
    rig.link.closed = True
    rig.finish_all()
    assert rig.answers() == []
    assert rig.disk.medium.current[:4096] == b"\1" * 4096
    assert rig.disk.medium.current[4096:8192] == bytes(4096), "it had not been received"
    assert rig.volume.locks.count == 0


def test_where_the_sender_has_no_disk_the_activity_log_names_the_write_while_it_is_under_way() -> (
    None
):
    calls: list[tuple[str, int, int]] = []
    waiting: list[Callable[[int], None]] = []

    def begin(first: int, last: int, go: Callable[[int], None]) -> bool:
        calls.append(("begin", first, last))
        waiting.append(go)
        return False

    log = SimpleNamespace(begin=begin, end=lambda first, last: calls.append(("end", first, last)))
    rig = Rig()
    rig.volume.activity_log = rig.volume.activity_log_object = log
    rig.write(0)
    assert calls == [] and rig.disk.calls() == [("write", 0)], "both have disks: the sender's job"
    rig.disk.finish()
    rig.volume.state = CONNECTED._replace(pdsk=DiskState.Diskless)
    rig.write(8188)
    assert calls == [("begin", 0, 0)] or calls == [("begin", 0, 1)]
    assert rig.disk.calls() == []
    waiting[0](0)
    assert rig.disk.calls() == [("write", 8188)]
    rig.disk.finish()
    assert [word for word, _first, _last in calls] == ["begin", "end"]
    assert calls[0][1:] == calls[1][1:] == (0, 1)
    assert rig.volume.marked == [(8188, 8)]
    assert rig.volume.tracking == 1, "from a base on"


# --- memory --------------------------------------------------------------------------------------


def test_above_max_buffers_the_socket_is_not_read_until_half_is_done() -> None:
    rig = Rig(max_buffers=4)
    for number in range(4):
        rig.write(8 * number)
    assert rig.link.reading
    rig.write(32)
    rig.write(40)
    assert not rig.link.reading
    states = []
    while rig.disk.held:
        rig.disk.finish()
        states.append(rig.link.reading)
    assert states == [False, False, False, True, True, True]


def test_writes_that_wait_for_an_earlier_epoch_count_as_memory_too() -> None:
    rig = Rig(replicators=False, max_buffers=2)
    rig.write(0)
    rig.writes.barrier(1)
    rig.write(8)
    rig.write(16)
    assert not rig.link.reading
    rig.finish_all()
    assert rig.link.reading


def test_every_account_is_even_again_after_random_traffic() -> None:
    rng = random.Random(11)
    for seed in range(20):
        rig = Rig(replicators=seed % 2 == 0, protocol="CB"[seed % 3 == 0], max_buffers=16)
        flags = RECEIVE_ACK if seed % 3 == 0 else WRITE_ACK
        in_epoch = barriers = written = 0
        while written < 150:
            if rig.link.reading and rng.random() < 0.5:
                rig.write(rng.randrange(200), flags, rng.randrange(1, 24))
                written += 1
                in_epoch += 1
            elif in_epoch and rng.random() < 0.2:
                barriers += 1
                rig.writes.barrier(barriers)
                in_epoch = 0
            elif rig.disk.held:
                rig.disk.finish(rng.randrange(len(rig.disk.held)))
            else:
                rig.settle()
        if in_epoch:
            barriers += 1
            rig.writes.barrier(barriers)
        rig.finish_all()
        answers = rig.answers()
        acks = [word for word in answers if word.startswith("BARRIER")]
        assert [int(w.split()[1].split(":")[0]) for w in acks] == list(range(1, barriers + 1))
        assert sum(int(word.split(":")[1]) for word in acks) == 150
        assert len(answers) == 150 + barriers
        assert rig.volume.locks.count == 0
        assert rig.writes.unacknowledged == {rig.volume: 0}
        assert rig.link.reading and rig.writes.bytes_held == 0
        assert not rig.disk.medium.unflushed
