"""Copying what differs: the target asks for marked ranges, the source answers (`resync_source`), bits
are cleared. Here is the target's half, and the account of the run that both sides keep.

Rules:
1. The target pulls; each request is answered exactly once, same range.
2. A bit is cleared only when the block is written and flushed on the target: it flushes, clears,
   and then acknowledges; the source clears on that acknowledgement.
3. Source reads and target writes take their turn with application writes (interval locks), so
   that the order on the wire is the order on both disks.
4. The end is fenced: the target pings, so that all its acknowledgements have been seen, makes its
   new identity durable, and only then says that it is done.
What this file must not know: how the two nodes agreed on the direction (`exchange`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from protocol.errors import WireError
from protocol.packets import (
    SYNCER_ID,
    BlockAck,
    BlockDesc,
    Command,
    block_request,
)
from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.block_answers import send_answer
from replicator.engine.handler_calls import BEFORE_TARGET, before_resync
from replicator.engine.pacing import TICK, Pace
from replicator.engine.resync_digest import ask_by_digest
from replicator.engine.snapshot import Progress
from replicator.engine.zeroes import write_thin

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Buffer, Timer
    from replicator.engine.volume import Volume

REQUEST_BITS = 256
"""Largest request: 1 MiB, aligned to its size, so it never crosses a 16 MiB extent."""
SECTORS_PER_BIT = 8
REQUESTS_MAX = 1024
"""Requests under way at once, however small."""
UNFLUSHED_MAX = 64 << 20
WRITE_BACK_INTERVAL = 2.0
"""Cleared bits go to the metadata disk about this often."""
MARK_INTERVAL = 3.0
MARKS = 8

TARGET = (Conn.SyncTarget, Conn.PausedSyncT)
SOURCE = (Conn.SyncSource, Conn.PausedSyncS)
RUNNING = TARGET + SOURCE


@dataclass(slots=True, eq=False)
class _Block:
    """A requested range on the target."""

    sector: int
    nsectors: int
    since: float
    run: int
    """Number of the run that asked: its data is of no use to a later one."""
    hold: Hold | None = None
    overtaken: bool = False
    """An application has written there since it was asked for: the answer may be older."""


class Resync:
    """The run on one volume; idle unless its connection state says otherwise."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.failed = 0
        """Blocks (bits) that could not be copied in this run."""
        self.total = 0
        """Bits that were marked when the run began."""
        self._started = 0.0
        self._run = 0
        self._paused_since: float | None = None
        self._paused = 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)
        self._cursor = 0
        self._again: deque[tuple[int, int]] = deque()
        """Ranges of bits, [begin, end), behind the cursor that have to be asked for once more. Going
        back to them would ask a second time for all that is under way beyond."""
        self._pass_weight = -1
        self._requested: dict[int, _Block] = {}
        self._unfenced: Link | None = None
        """The connection by which answers to a run that was broken off may be under way. A replicator
        waits for their end before it names the next run, a kernel does not."""
        self._received: set[_Block] = set()
        """Answers that wait for their range."""
        self._in_flight = 0
        """Bytes asked for and not yet written; of these, not yet answered:"""
        self._unanswered = 0
        self._writing = 0
        self._unflushed: list[_Block] = []
        self._unflushed_bytes = 0
        self._flushing = False
        self._ready = False
        self._finishing = False
        self.pace = Pace(volume.settings.disk, volume.resource.courtesy)
        self._received_sectors = 0
        """Of all runs: what else the volume has received are the peer's writes. As of last tick:"""
        self._mirrored = 0
        self._wake: Timer | None = None
        self._tick: Timer | None = None
        self._write_back: Timer | None = None

    # --- common -------------------------------------------------------------------------------

    @property
    def _link(self) -> Link | None:
        return self._volume.resource.replication.link

    @property
    def outstanding(self) -> int:
        """Requests that the source has not answered: part of the `pe` counter."""
        return len(self._requested)

    def overdue(self, now: float, limit: float) -> str:
        """A request that the source has not answered for longer than `limit` seconds, or ""."""
        block = next(iter(self._requested.values()), None)
        if block is None or now - block.since <= limit:
            return ""
        return f"a resync request is unanswered for {now - block.since:.0f} s"

    @property
    def unacknowledged(self) -> int:
        """Resync data received and not acknowledged yet: part of the `ua` counter."""
        return self._writing + len(self._unflushed)

    def begin(self) -> None:
        volume = self._volume
        assert volume.bitmap is not None
        now = volume.resource.clock.now()
        self.failed = 0
        self.total = volume.bitmap.weight
        self._started = now
        self._paused = 0.0
        self._paused_since = None
        self._marks.clear()
        self._marks.append((now, self.total))
        self._arm_write_back()
        disk = volume.settings.disk
        self.pace = Pace(disk, volume.resource.courtesy)
        self.pace.courtesy.begin(self, disk.c_min_rate, disk.c_plan_ahead)
        # What the peer wrote before the run is nobody to be polite to.
        self._mirrored = volume.counters.received - self._received_sectors
        self._ticked()

    def state_changed(self, old: StateWord, new: StateWord) -> None:
        """The volume's state changed: pause, go on, or forget everything."""
        if new.conn not in RUNNING:
            if old.conn in RUNNING:
                self._stop()
            return
        now = self._volume.resource.clock.now()
        paused = new.conn in (Conn.PausedSyncS, Conn.PausedSyncT)
        if paused and self._paused_since is None:
            self._paused_since = now
        elif not paused and self._paused_since is not None:
            self._paused += now - self._paused_since
            self._paused_since = None
            self._marks.clear()
            self._marks.append((now, self._left()))
        if new.conn is Conn.SyncTarget and old.conn is Conn.PausedSyncT:
            self._volume.resource.soon(self._request_more)

    def _stop(self) -> None:
        """No more resync. Writes still on their way to the disk give their locks back themselves."""
        for timer in (self._tick, self._wake, self._write_back):
            if timer is not None:
                timer.cancel()
        self._tick = self._wake = self._write_back = None
        self.pace.courtesy.end(self)
        self._again.clear()
        if self._requested:
            self._unfenced = self._link
        self._requested.clear()
        self._received.clear()
        self._unflushed.clear()
        self._in_flight = self._unanswered = self._unflushed_bytes = self._writing = 0
        self._ready = self._finishing = self._flushing = False
        self._run += 1
        store = self._volume.store
        if store is not None and self._volume.state.disk > Disk.Failed:
            store.bitmaps.write_dirty()

    def _arm_write_back(self) -> None:
        volume = self._volume

        def due() -> None:
            self._write_back = None
            if volume.store is not None and volume.state.conn in RUNNING:
                volume.store.bitmaps.write_dirty()
                self._arm_write_back()

        self._write_back = volume.resource.clock.call_later(WRITE_BACK_INTERVAL, due)

    def _left(self) -> int:
        bitmap = self._volume.bitmap
        return max(0, bitmap.weight - self.failed) if bitmap is not None else 0

    def advance_marks(self) -> None:
        now = self._volume.resource.clock.now()
        if now - self._marks[-1][0] >= MARK_INTERVAL:
            self._marks.append((now, self._left()))

    def progress(self) -> Progress | None:
        """How far the run is; None when nothing is running (paused runs show no progress)."""
        conn = self._volume.state.conn
        if conn not in (Conn.SyncSource, Conn.SyncTarget):
            return None
        now = self._volume.resource.clock.now()
        since, left = self._marks[0]
        return Progress(
            verify=False,
            total=self.total,
            left=self._left(),
            elapsed=now - self._started - self._paused,
            mark_age=now - since,
            mark_left=left,
            want=self.pace.want() if conn is Conn.SyncTarget else None,
            reason=self.pace.reason.value,
        )

    # --- target -------------------------------------------------------------------------------

    def start_target(self, uuid: int) -> None:
        """The source's sync UUID has come: begin, if the handler agrees. It may make a snapshot of
        the disk, so until it has ended nothing that the peer sends gets there."""
        link = self._link
        assert link is not None
        link.pause_data()
        before_resync(self._volume, BEFORE_TARGET, partial(self._begin_target, link, uuid))

    def _begin_target(self, link: Link, uuid: int) -> None:
        """This copy is Inconsistent from now on, durably, before the first block of it changes."""
        volume = self._volume
        if volume.store is None or volume.state.conn not in (Conn.WFSyncUUID, Conn.Behind):
            link.resume_data()
            return
        volume.store.uuids.adopt_sync(uuid, volume.state.role is Role.Primary)
        volume.change(conn=Conn.SyncTarget, disk=Disk.Inconsistent, pdsk=Disk.UpToDate)
        self.begin()
        self._cursor = 0
        self._pass_weight = -1
        data, run = volume.store.data, self._run

        def stable(errno: int) -> None:
            link.resume_data()
            if not errno:
                volume.late_writes.when_none(data, flush)

        def flush() -> None:
            if run == self._run:
                data.flush(flushed)

        def flushed(errno: int) -> None:
            # What was written before, also by a resync that was broken off, is there and stable:
            # blocks found equal need no further flush.
            if run != self._run or volume.state.conn not in TARGET:
                return
            if errno:
                volume.local_io_error("flush before resync", 0, errno, data)
            elif link is self._unfenced:
                link.ping(fenced)
            else:
                self._ready = True
                self._request_more()

        def fenced() -> None:
            self._unfenced = None
            flushed(0)

        volume.write_superblock(stable)

    def _request_more(self) -> None:
        """Ask for marked ranges as far as window and rate allow; find the end."""
        volume, link = self._volume, self._link
        if not self._ready or link is None or volume.state.conn is not Conn.SyncTarget:
            return
        while self._may_ask():
            first, count = self._next()
            if count <= 0:
                self._at_end()
                return
            self._ask(link, first, count)

    def _next(self) -> tuple[int, int]:
        """(first, count) of the bits to ask for now; count 0 or less: there are none."""
        bitmap = self._volume.bitmap
        assert bitmap is not None
        most = self.pace.request_size(REQUEST_BITS << 12) >> 12
        while self._again:
            begin, end = self._again.popleft()
            first, count = bitmap.next_run(begin, most, most)
            if count > 0 and first < end:
                count = min(count, end - first)
                self._again.appendleft((first + count, end))
                return first, count
        first, count = bitmap.next_run(self._cursor, most, most)
        self._cursor = first + count if count > 0 else self._cursor
        return first, count

    def _may_ask(self) -> bool:
        pace, clock = self.pace, self._volume.resource.clock
        many = len(self._requested) >= REQUESTS_MAX
        if many or self._in_flight >= pace.window.size or self._unflushed_bytes >= UNFLUSHED_MAX:
            return False
        wait = pace.wait(self, clock.now())
        if not wait:
            return True
        if self._wake is None:
            self._wake = clock.call_later(min(wait, TICK), self._woken)
        return False

    def _woken(self) -> None:
        self._wake = None
        self._request_more()

    def _ticked(self) -> None:
        """Every TICK while it runs: remember why it is not faster."""
        volume = self._volume
        if volume.state.conn in SOURCE:
            volume.resync_source.note_pace(self.pace)
        elif self._wake is None:
            unwritten = self._in_flight - self._unanswered + self._unflushed_bytes
            self.pace.not_limited(self._unanswered, unwritten)
        mirrored = volume.counters.received - self._received_sectors
        self.pace.tick(peer_writes=mirrored != self._mirrored)
        self._mirrored = mirrored
        self._tick = volume.resource.clock.call_later(TICK, self._ticked)

    def _ask(self, link: Link, first: int, count: int) -> None:
        volume = self._volume
        sector = first * SECTORS_PER_BIT
        nsectors = min(count * SECTORS_PER_BIT, volume.size_sectors - sector)
        block = _Block(sector, nsectors, volume.resource.clock.now(), self._run)
        self._requested[sector] = block
        self._in_flight += nsectors << 9
        self._unanswered += nsectors << 9
        self.pace.asked(block.since, nsectors << 9)
        algorithm = volume.resource.settings.net.csums_alg
        if algorithm and volume.data_disk is not None:
            wanted = partial(self._waits_for, block)
            ask_by_digest(volume, link, sector, nsectors, algorithm, wanted)
            return
        command = Command.RS_THIN_REQ if link.with_thin_resync else Command.RS_DATA_REQUEST
        link.send_data(block_request(volume.number, command, sector, SYNCER_ID, nsectors << 9))

    def _waits_for(self, block: _Block) -> bool:
        return self._requested.get(block.sector) is block

    def got_data(self, sector: int, data: Buffer) -> None:
        """RS_DATA_REPLY: write it in its turn."""
        block = self._take(sector, len(data), "RS_DATA_REPLY")
        if block is not None:
            self._volume.counters.received += block.nsectors
            self._received_sectors += block.nsectors
            self._arrived(block, data)

    def got_deallocated(self, packet: BlockDesc) -> None:
        """RS_DEALLOCATED: the source has nothing but zeroes there."""
        block = self._take(packet.sector, packet.size, "RS_DEALLOCATED")
        if block is not None:
            self.pace.not_transferred(packet.size)
            self._arrived(block, b"")

    def _arrived(self, block: _Block, data: Buffer) -> None:
        """An answer, b"" for zeroes: into the line for its range. What the source wrote before the
        resync began, and has overwritten since without telling, may still wait for an earlier epoch."""
        self._writing += 1
        self._received.add(block)
        self._volume.resource.after_peer_writes(partial(self._lock, block, data))

    def _lock(self, block: _Block, data: Buffer) -> None:
        end = block.sector + block.nsectors
        hold = self._volume.locks.acquire(block.sector, end, lambda: self._write(block, data))
        block.hold = hold
        if hold.granted:
            self._write(block, data)

    def overtake(self, sector: int, nsectors: int) -> None:
        """This node is Primary and writes there itself: what has been asked for, or has come and
        waits for its turn, may have been read by the source before it gets the write."""
        end = sector + nsectors
        for block in (*self._requested.values(), *self._received):
            if block.sector < end and sector < block.sector + block.nsectors:
                block.overtaken = True

    def _take(self, sector: int, size: int, what: str) -> _Block | None:
        """The request that an answer belongs to; None when it is of no use any more."""
        if self._volume.state.conn not in TARGET or self._unfenced is self._link:
            return None
        block = self._requested.get(sector)
        if block is None or block.nsectors << 9 != size:
            expected = "nothing" if block is None else f"{block.nsectors << 9} bytes"
            raise WireError(f"{what} for sector {sector}: expected {expected}, found {size} bytes")
        del self._requested[sector]
        self._unanswered -= size
        self.pace.window.answered(size, self._volume.resource.clock.now() - block.since)
        if block.overtaken:
            self._ask_again(block)
            return None
        return block

    def _ask_again(self, block: _Block, delay: float = 0) -> None:
        self._in_flight -= block.nsectors << 9
        begin = block.sector // SECTORS_PER_BIT
        self._again.append((begin, begin + -(-block.nsectors // SECTORS_PER_BIT)))
        self._volume.resource.clock.call_later(delay, self._request_more)

    def _write(self, block: _Block, data: Buffer) -> None:
        volume = self._volume
        disk = volume.data_disk
        if disk is None or block.run != self._run:
            self._release(block)
            return
        self._received.discard(block)
        if block.overtaken:
            self._writing -= 1
            self._release(block)
            self._ask_again(block)
            return

        def written(errno: int) -> None:
            self._release(block)
            volume.late_writes.end(disk)
            if block.run != self._run or volume.state.conn not in TARGET:
                return
            self._writing -= 1
            self._in_flight -= block.nsectors << 9
            if errno:
                self._acknowledge(Command.NEG_ACK, block)
                self.failed += -(-block.nsectors // SECTORS_PER_BIT)
                volume.local_io_error("resync write", block.sector, errno, disk)
                self._request_more()
                return
            volume.counters.written += block.nsectors
            self._unflushed.append(block)
            self._unflushed_bytes += block.nsectors << 9
            self._flush()
            self._request_more()

        volume.late_writes.begin(disk)
        granularity = volume.settings.disk.rs_discard_granularity
        write_thin(disk, block.sector << 9, block.nsectors << 9, data, granularity, written)

    def _release(self, block: _Block) -> None:
        if block.hold is not None:
            self._volume.locks.release(block.hold)
            block.hold = None

    def _flush(self) -> None:
        """One flush at a time; it serves all blocks written by then."""
        volume = self._volume
        disk = volume.data_disk
        if self._flushing or not self._unflushed or disk is None:
            return
        blocks, self._unflushed = self._unflushed, []
        self._flushing = True
        run = self._run

        def flushed(errno: int) -> None:
            if run != self._run or volume.state.conn not in TARGET:
                return
            self._flushing = False
            if errno:
                volume.local_io_error("flush of resync data", 0, errno, disk)
                return
            for block in blocks:
                self._unflushed_bytes -= block.nsectors << 9
                volume.mark_in_sync(block.sector, block.nsectors)
                self._acknowledge(Command.RS_WRITE_ACK, block)
            self.advance_marks()
            volume.resource.changed()
            self._flush()
            self._request_more()

        disk.flush(flushed)

    def _acknowledge(self, command: Command, block: _Block) -> None:
        link = self._link
        if link is not None:
            size = block.nsectors << 9
            send_answer(self._volume, link, command, block.sector, SYNCER_ID, size)

    def got_in_sync(self, ack: BlockAck) -> None:
        """RS_IS_IN_SYNC: the digests were equal."""
        block = self._take(ack.sector, ack.blksize, "RS_IS_IN_SYNC")
        if block is not None:
            self._in_flight -= block.nsectors << 9
            self._volume.mark_in_sync(block.sector, block.nsectors)
            self.advance_marks()
            self._request_more()

    def got_negative(self, ack: BlockAck) -> None:
        """NEG_RS_DREPLY: the source could not read it; it stays marked."""
        block = self._take(ack.sector, ack.blksize, "NEG_RS_DREPLY")
        if block is not None:
            self._in_flight -= block.nsectors << 9
            self.failed += -(-block.nsectors // SECTORS_PER_BIT)
            self._request_more()

    def got_cancel(self, ack: BlockAck) -> None:
        """RS_CANCEL: the source wants to be asked again later."""
        block = self._take(ack.sector, ack.blksize, "RS_CANCEL")
        if block is not None:
            self._ask_again(block, TICK)

    def _at_end(self) -> None:
        """Nothing marked behind the cursor: finish when all answers are in, or go round again."""
        if self._requested or self._writing or self._unflushed or self._flushing:
            return
        volume, link = self._volume, self._link
        assert volume.bitmap is not None and link is not None
        weight = volume.bitmap.weight
        if weight > self.failed and weight != self._pass_weight:
            self._pass_weight = weight
            self._cursor = 0
            self.failed = 0
            volume.resource.soon(self._request_more)
            return
        if not self._finishing:
            self._finishing = True
            link.ping(partial(self._fenced, self._run))

    def _fenced(self, run: int) -> None:
        """The source has seen every acknowledgement. Make the data durable, the bitmap, then the identity.

        A block may have been found equal because an application here has just written it: what was
        flushed at the source alone has to be stable here, too, before this copy is as good.
        """
        volume, store = self._volume, self._volume.store
        if run != self._run or store is None:
            return
        if store.bitmap.weight > self.failed:
            self._another_pass()
            return

        def flushed(errno: int) -> None:
            if run != self._run:
                return
            if errno:
                volume.local_io_error("flush after resync", 0, errno, store.data)
            else:
                store.bitmaps.write_dirty(written)

        def written(errno: int) -> None:
            if run == self._run:
                self._finish(errno)

        store.data.flush(flushed)

    def _another_pass(self) -> None:
        """More has been marked meanwhile. What failed is tried once more with it."""
        self._finishing = False
        self._pass_weight = -1
        self._request_more()

    def _finish(self, errno: int) -> None:
        volume, link = self._volume, self._link
        store, peer = volume.store, volume.exchange.peer_uuids
        if errno and store is not None:
            volume.local_io_error("bitmap write", 0, errno, store.data)
        if volume.state.conn not in TARGET or store is None or peer is None or link is None:
            return
        if store.bitmap.weight > self.failed:
            self._another_pass()
            return
        complete = store.bitmap.weight == 0
        seconds = volume.resource.clock.now() - self._started - self._paused
        speed = self.total * 4 / max(seconds, 0.001)
        volume.log(
            "info", f"resync done ({seconds:.1f} s, {self.total * 4} KiB, {speed:.0f} K/sec)"
        )
        if complete:
            store.uuids.adopt_final(peer, volume.state.role is Role.Primary)
            volume.exchange.peer_uuids = store.uuids.copy()
            volume.change(conn=Conn.Connected, disk=Disk.UpToDate, pdsk=Disk.UpToDate)
        else:
            volume.log("error", f"{store.bitmap.weight * 4} KiB could not be copied")
            volume.change(conn=Conn.Connected, disk=Disk.Inconsistent, pdsk=Disk.UpToDate)

        def stable(errno: int) -> None:
            if not errno and self._link is link:
                volume.exchange.send_state()
                if complete:
                    volume.resource.handlers.call("after-resync-target", volume.number, None)

        volume.write_superblock(stable)
