"""Online verify: both copies are compared by digests while they are in use. Here is the half of the
node that asks, and the account that both keep; `verify_target` answers.

Rules:
1. A difference is reported only where there is one. Both digests are of the content at the same
   place in the stream of mirrored writes: a Primary takes its own before it asks, a Secondary when the
   answer comes, behind the writes that came before it. What is in flight while a role changes is
   asked for again.
2. A kernel does not order its reads with writes that are under way: towards one, a Primary begins
   with a range that is stable on both nodes, and holds it until the kernel is done with it.
3. Nothing is repaired: differing blocks are marked on both nodes, for the next resync.
4. To a replicator larger ranges are named; one that differs is asked for again block by block. To a
   kernel, which counts packets, each is one block.
What this file must not know: how the two nodes agreed to begin (`verify_command`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from protocol import digests
from protocol.errors import WireError
from protocol.packets import (
    IN_SYNC,
    OUT_OF_SYNC_VERDICT,
    SYNCER_ID,
    BlockAck,
    BlockRequest,
    Command,
    block_request,
)
from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.block_answers import send_answer
from replicator.engine.pacing import TICK, Pace
from replicator.engine.refusals import (
    NEED_UP_TO_DATE,
    NO_VERIFY_ALG,
    NOT_CONNECTED,
    RUNS_ALREADY,
)
from replicator.engine.snapshot import Progress

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Timer
    from replicator.engine.volume import Volume

BLOCK_SECTORS = 8
REQUEST_SECTORS = 256
"""128 KiB: what is asked for at once where the peer is a replicator."""
WINDOW_BYTES = 4 << 20
"""Asked for and not yet compared."""
MARK_INTERVAL = 3.0
MARKS = 8
NOTED_MAX = 1000
"""Differing blocks that are named in the log; the rest is only counted (and marked)."""

RUNNING = (Conn.VerifyS, Conn.VerifyT)


def objection(volume: Volume) -> int:
    """0, or the code that speaks against a verify on this node, whichever asks for it."""
    state = volume.state
    if state.conn < Conn.Connected:
        return NOT_CONNECTED
    if state.conn is not Conn.Connected:
        return RUNS_ALREADY
    if not volume.resource.settings.net.verify_alg:
        return NO_VERIFY_ALG
    both_good = state.disk is state.pdsk is Disk.UpToDate
    return 0 if both_good else NEED_UP_TO_DATE


class _Range:
    """Sectors being compared. `digest`: of this node's copy, b"" if that is read with the answer."""

    __slots__ = ("again", "digest", "hold", "nsectors", "ready", "run", "sector", "since")

    def __init__(self, sector: int, nsectors: int, since: float, run: int) -> None:
        self.sector = sector
        self.nsectors = nsectors
        self.since = since
        self.run = run
        self.digest = b""
        self.ready = False
        """It may be sent."""
        self.hold: Hold | None = None
        self.again = False
        """A role has changed since it was asked for: the answer says nothing."""


class Verify:
    """The run on one volume; idle unless its connection state says otherwise."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.resume_at = 0
        """Sector where the next run begins if none is named: where the last one was cut off."""
        self.found = 0
        """Blocks that differ, found in this run."""
        self.total = 0
        self.left = 0
        """Blocks of this run, and those of them that are not compared yet."""
        self.run = 0
        self._started = 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)
        self._noted: list[tuple[int, int]] = []
        """Differing blocks: first sector, number of sectors."""
        self._over = False
        """What was found has been said."""
        self._cursor = self._end = 0
        self._again: deque[tuple[int, int]] = deque()
        """Ranges to be asked for once more: (sector, number of sectors)."""
        self._asked: dict[int, _Range] = {}
        self._line: deque[_Range] = deque()
        """Those of them that are not sent yet, in order: a kernel takes the first for the start."""
        self._in_flight = 0
        self._finishing = False
        self._pace = Pace(volume.settings.disk, volume.resource.courtesy)
        self._wake: Timer | None = None
        self._tick: Timer | None = None

    @property
    def link(self) -> Link | None:
        return self._volume.resource.replication.link

    @property
    def outstanding(self) -> int:
        """Ranges under comparison: part of the `pe` counter."""
        return len(self._asked)

    def overdue(self, now: float, limit: float) -> str:
        """A range that the peer has not answered for longer than `limit` seconds, or ""."""
        one = next(iter(self._asked.values()), None)
        if one is None or now - one.since <= limit:
            return ""
        return f"a verify request is unanswered for {now - one.since:.0f} s"

    # --- the account --------------------------------------------------------------------------

    def state_changed(self, old: StateWord, new: StateWord) -> None:
        """The volume's state changed: begin, go on, ask again, or forget everything."""
        if new.conn not in RUNNING:
            if old.conn in RUNNING:
                self._stop()
            return
        if old.conn not in RUNNING:
            self._reset()
        if (old.role, old.peer) != (new.role, new.peer):
            for one in self._asked.values():
                one.again = True
        if self._paused(old) and not self._paused(new):
            self._volume.resource.soon(self._request_more)

    @staticmethod
    def _paused(state: StateWord) -> bool:
        return state.user_isp or state.peer_isp or state.aftr_isp

    def _reset(self) -> None:
        self.found = self.total = self.left = 0
        self._noted.clear()
        self._over = False
        self._started = self._volume.resource.clock.now()
        self._cursor = self._end = 0
        disk, resource = self._volume.settings.disk, self._volume.resource
        self._pace = Pace(disk, resource.courtesy)
        resource.courtesy.begin(self, disk.c_min_rate, disk.c_plan_ahead)
        self._tick = resource.clock.call_later(TICK, self._ticked)

    def expect(self, start: int, end: int) -> None:
        """The run is about sectors [start, end)."""
        self.total = self.left = -(-(end - start) // BLOCK_SECTORS)
        self._marks.clear()
        self._marks.append((self._volume.resource.clock.now(), self.left))
        self._volume.log("info", f"online verify of sectors {start} to {end}")

    def compared(self, sector: int, nsectors: int, *, equal: bool) -> None:
        """A verdict, on either node."""
        volume = self._volume
        blocks = -(-nsectors // BLOCK_SECTORS)
        self.left = max(0, self.left - blocks)
        if not equal:
            self.found += blocks
            volume.mark_out_of_sync(sector, nsectors)
            if len(self._noted) < NOTED_MAX:
                self._noted.append((sector, nsectors))
        now = volume.resource.clock.now()
        if self._marks and now - self._marks[-1][0] >= MARK_INTERVAL:
            self._marks.append((now, self.left))
        volume.resource.changed()

    def _log_noted(self) -> None:
        """One line for each range of adjacent blocks."""
        self._noted.sort()
        merged: list[list[int]] = []
        for sector, nsectors in self._noted:
            if merged and merged[-1][1] == sector:
                merged[-1][1] += nsectors
            else:
                merged.append([sector, sector + nsectors])
        for first, end in merged:
            self._volume.log("error", f"out of sync: start={first}, size={end - first} (sectors)")

    def ended(self, outcome: str) -> None:
        """Say what was found, and keep the marks."""
        volume = self._volume
        self._over = True
        self._log_noted()
        seconds = volume.resource.clock.now() - self._started
        done = self.total - self.left
        volume.log("info", f"online verify {outcome} ({seconds:.1f} s, {4 * done} KiB)")
        if not self.found:
            return
        name = volume.resource.settings.name
        volume.log(
            "error",
            f"online verify found {self.found} 4k blocks out of sync; to copy them from the "
            f"Primary: replicator disconnect {name}, then replicator connect {name}",
        )
        if volume.store is not None:
            volume.store.bitmaps.write_dirty()
        volume.resource.handlers.call("out-of-sync", volume.number, None)

    def _stop(self) -> None:
        """The run is over, or has been cut off: the next one goes on at what was not compared."""
        if not self._over:
            if self._end:
                rest = [*self._asked, *(sector for sector, _n in self._again), self._cursor]
                self.resume_at = min(rest)
            self.ended(f"cut off, to be resumed at {self.resume_at}" if self._end else "cut off")
        self.run += 1
        for timer in (self._wake, self._tick):
            if timer is not None:
                timer.cancel()
        self._wake = self._tick = None
        self._volume.resource.courtesy.end(self)
        held = [one.hold for one in self._asked.values() if one.digest and one.hold is not None]
        self._asked.clear()
        self._line.clear()
        self._again.clear()
        self._in_flight = 0
        self._finishing = False
        self._volume.verify_target.stop()
        for hold in held:
            self._volume.resource.soon(partial(self._volume.locks.release, hold))

    def progress(self) -> Progress | None:
        """How far the run is; None when none is running."""
        if self._volume.state.conn not in RUNNING or not self.total:
            return None
        now = self._volume.resource.clock.now()
        since, left = self._marks[0]
        asking = self._volume.state.conn is Conn.VerifyS
        return Progress(
            verify=True,
            total=self.total,
            left=self.left,
            elapsed=now - self._started,
            mark_age=now - since,
            mark_left=left,
            want=self._pace.want() if asking else None,
            reason=self._pace.reason.value if asking else "",
        )

    # --- asking -------------------------------------------------------------------------------

    def begin(self, start: int, stop: int) -> None:
        """Compare sectors [start, stop); the state is VerifyS already."""
        self._cursor, self._end = start, stop
        self.expect(start, stop)
        self._request_more()

    def _request_more(self) -> None:
        state = self._volume.state
        if state.conn is not Conn.VerifyS or self._paused(state):
            return
        while self._may_ask():
            if self._again:
                sector, nsectors = self._again.popleft()
            elif self._cursor < self._end:
                kernel = self.link is None or not self.link.peer_extension
                most = BLOCK_SECTORS if kernel else REQUEST_SECTORS
                sector, nsectors = self._cursor, min(most, self._end - self._cursor)
                self._cursor += nsectors
            else:
                self._look_for_end()
                return
            self._ask(sector, nsectors)

    def _may_ask(self) -> bool:
        clock = self._volume.resource.clock
        if self._in_flight >= min(WINDOW_BYTES, self._pace.window.size):
            return False
        wait = self._pace.wait(self, clock.now())
        if wait and self._wake is None:
            self._wake = clock.call_later(min(wait, TICK), self._woken)
        return not wait

    def _woken(self) -> None:
        self._wake = None
        self._request_more()

    def _ticked(self) -> None:
        """Every TICK while it runs: remember why it is not faster."""
        if self._wake is None:
            self._pace.not_limited(self._in_flight, 0)
        self._pace.tick(peer_writes=False)
        self._tick = self._volume.resource.clock.call_later(TICK, self._ticked)

    def _ask(self, sector: int, nsectors: int) -> None:
        volume = self._volume
        one = _Range(sector, nsectors, volume.resource.clock.now(), self.run)
        self._asked[sector] = one
        self._line.append(one)
        self._in_flight += nsectors << 9
        self._pace.asked(one.since, nsectors << 9)
        if volume.state.role is Role.Primary:
            self._lock(one, partial(self._when_stable, one, partial(self._read, one, self._ready)))
        else:
            self._ready(one, b"")

    def _lock(self, one: _Range, then: Callable[[], None]) -> None:
        """Take the range's turn among writes; `then` runs if the run still goes on."""

        def granted() -> None:
            if one.run == self.run:
                then()
            else:
                self._release(one)

        one.hold = self._volume.locks.acquire(one.sector, one.sector + one.nsectors, granted)
        if one.hold.granted:
            granted()

    def _release(self, one: _Range) -> None:
        if one.hold is not None:
            self._volume.locks.release(one.hold)
            one.hold = None

    def _when_stable(self, one: _Range, then: Callable[[], None]) -> None:
        """Rule 2."""
        link, replication = self.link, self._volume.resource.replication
        if link is not None and not link.peer_extension:
            replication.when_range_stable(self._volume, one.sector, one.nsectors, then)
        else:
            then()

    def _read(self, one: _Range, then: Callable[[_Range, bytes], None]) -> None:
        """The digest of this node's copy. An error that leaves the disk in use counts as a
        difference: that digest is like no other."""
        volume = self._volume
        disk, algorithm = volume.data_disk, volume.resource.settings.net.verify_alg

        def loaded(errno: int, data: bytes) -> None:
            if errno:
                volume.local_io_error("verify read", one.sector, errno, disk)
            if one.run != self.run:
                self._release(one)
            else:
                volume.counters.read += one.nsectors
                then(one, b"unreadable" if errno else digests.digest(algorithm, data))

        if one.run != self.run or disk is None:
            self._release(one)
        else:
            disk.read(one.sector << 9, one.nsectors << 9, loaded)

    def _ready(self, one: _Range, digest: bytes) -> None:
        """Send it, if all before it are sent, and what waited for it."""
        link, number = self.link, self._volume.number
        assert link is not None
        one.digest, one.ready = digest, True
        while self._line and self._line[0].ready:
            first = self._line.popleft()
            size = first.nsectors << 9
            link.send_data(block_request(number, Command.OV_REQUEST, first.sector, SYNCER_ID, size))
            if link.peer_extension:
                self._release(first)

    # --- comparing ----------------------------------------------------------------------------

    def got_reply(self, reply: BlockRequest) -> None:
        """OV_REPLY: the digest of the peer's copy."""
        one = self._take(reply.sector, reply.blksize, "OV_REPLY")
        if one is None:
            return
        if one.digest or one.again:
            self._compare(one, reply.digest, one.digest)
            return

        def compare(read: _Range, digest: bytes) -> None:
            self._compare(read, reply.digest, digest)

        # This node does not write: its copy has to have all that came before the answer.
        self._volume.resource.after_peer_writes(
            lambda: self._lock(one, partial(self._read, one, compare))
        )

    def got_negative(self, ack: BlockAck) -> None:
        """NEG_RS_DREPLY: the peer could not read it, so nobody can say that it is equal."""
        one = self._take(ack.sector, ack.blksize, "NEG_RS_DREPLY")
        if one is not None:
            self._settle(one, equal=False)

    def _take(self, sector: int, size: int, what: str) -> _Range | None:
        """The range that an answer is about; None when it is of no use any more."""
        if self._volume.state.conn is not Conn.VerifyS:
            return None
        one = self._asked.get(sector)
        if one is None or one.nsectors << 9 != size:
            expected = "nothing" if one is None else f"{one.nsectors << 9} bytes"
            raise WireError(f"{what} for sector {sector}: expected {expected}, found {size} bytes")
        self._pace.window.answered(size, self._volume.resource.clock.now() - one.since)
        return one

    def _compare(self, one: _Range, theirs: bytes, own: bytes) -> None:
        if one.again:
            if self.link is not None and not self.link.peer_extension:
                self._send_verdict(one, equal=True)  # a kernel waits for one
            self._done(one)
            self._again.append((one.sector, one.nsectors))
        elif theirs == own or one.nsectors <= BLOCK_SECTORS:
            self._settle(one, equal=theirs == own)
            return
        else:
            self._done(one)
            end = one.sector + one.nsectors
            for sector in range(one.sector, end, BLOCK_SECTORS):
                self._again.append((sector, min(BLOCK_SECTORS, end - sector)))
        self._volume.resource.soon(self._request_more)

    def _settle(self, one: _Range, *, equal: bool) -> None:
        self.compared(one.sector, one.nsectors, equal=equal)
        self._send_verdict(one, equal=equal)
        self._done(one)
        self._request_more()

    def _done(self, one: _Range) -> None:
        del self._asked[one.sector]
        self._in_flight -= one.nsectors << 9
        self._release(one)

    def _send_verdict(self, one: _Range, *, equal: bool) -> None:
        volume, link = self._volume, self.link
        assert link is not None
        verdict = IN_SYNC if equal else OUT_OF_SYNC_VERDICT
        send_answer(volume, link, Command.OV_RESULT, one.sector, verdict, one.nsectors << 9)

    # --- the end ------------------------------------------------------------------------------

    def _look_for_end(self) -> None:
        link = self.link
        if not self._asked and not self._finishing and link is not None:
            self._finishing = True
            link.ping(partial(self._fenced, self.run))

    def _fenced(self, run: int) -> None:
        """The peer has seen every verdict."""
        volume = self._volume
        if run != self.run:
            return
        self.resume_at = self._end if self._end < volume.size_sectors else 0
        self.left = 0
        self.ended("done")
        volume.change(conn=Conn.Connected)
        volume.exchange.send_state()
