"""The application's reads and writes on one volume of a Primary: both copies, the account, the answer.

Rules:
1. A write goes nowhere before its extents are in the durable activity log, and the superblock says
   that the log counts.
2. Overlapping writes are submitted one after the other, in the order in which they came, so that
   both disks see that order.
3. While a new generation is on its way to the disk, or I/O is suspended, writes that the peer did
   not get are not completed: the new UUID is stable before the first of them is acknowledged.
4. Nothing is allocated for a request but its account; no Task, no Future.
What this file must not know: packets (the resource's replication queues them), NBD.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from errno import EINVAL, EIO, EROFS
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from protocol.states import Conn, Disk, Role
from replicator.engine.activity_log import EXTENT_SHIFT, extents
from replicator.engine.flush_outcome import FlushOutcome
from replicator.engine.ports import Buffer, Done, ReadDone
from replicator.engine.ports import Disk as DiskPort
from replicator.engine.requests import MAX_DATA, MAX_ZERO, Countdown, Kind, Part, Write
from replicator.engine.states import replicated

if TYPE_CHECKING:
    from replicator.engine.activity_log import ActivityLog
    from replicator.engine.volume import Volume

WRITE: Final = Kind.WRITE
OK: Final = Part.OK
PENDING: Final = Part.PENDING
FAILED: Final = Part.FAILED
TARGET = frozenset({Conn.SyncTarget, Conn.PausedSyncT})
HOLDING = frozenset({Conn.WFBitMapT, Conn.WFSyncUUID})
"""Connection states in which new application I/O waits (generations: 6.3)."""


class Ask(Enum):
    """What asks for stable storage."""

    FLUSH = 1
    FUA = 2


class _Waiting(NamedTuple):
    """A request, or its completion, that waits: how it goes on, and how it fails (errno)."""

    go: Callable[[], None]
    fail: Done


class Application:
    """Serves one volume; `volume` owns it."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._replication = volume.resource.replication
        self.pending = 0
        """Requests accepted and not completed: the `ap` counter."""
        self.straight = False
        """Writes may go the straight way, see there."""
        self._held: list[_Waiting] = []
        """Completions that wait for a new generation, or for the end of a suspension."""
        self._may_retry = volume.resource.settings.on_no_data_accessible == "suspend-io"
        """What found no good data is tried again when there is some: so its data are kept."""
        self._unshared: dict[Write, None] = {}
        """Writes on their way to the local disk that the peer neither gets nor has been told of, in
        the order in which it would be."""
        self._losses = 0
        """How often a completed write was found to be on no stable storage, with no way to put it there
        any more. Every flush and every write with FUA that is asked for before one of its kind has
        told of it fails: whoever flushes need not be the one who wrote with FUA."""
        self._told = {Ask.FLUSH: 0, Ask.FUA: 0}
        """Of these losses."""
        self._frozen: deque[_Waiting] = deque()
        """Requests that the present state does not let go on, and those that came after them."""
        self._thawing = False

    # --- entry points -------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, fua: bool, done: Done) -> None:
        """Write `data` at byte `offset`; done(errno). With `fua` it is stable as after a flush."""
        length = len(data)
        if self.straight and not fua and self._write_straight(offset, length, data, done):
            return
        if (refusal := self._refusal(offset, length)) is not None:
            self._volume.resource.soon(partial(done, refusal))
            return
        self.pending += 1
        answer = self._stable_after(done) if fua else self._answer(done)
        if length <= MAX_DATA:
            payload = data if isinstance(data, bytes) else bytes(data)
            self._accept(Write(self._volume, Kind.WRITE, offset >> 9, length >> 9, payload, answer))
            return
        joined = Countdown(-(-length // MAX_DATA), answer)
        view = memoryview(data)
        for start in range(0, length, MAX_DATA):
            part = bytes(view[start : start + MAX_DATA])
            sector = (offset + start) >> 9
            self._accept(Write(self._volume, WRITE, sector, len(part) >> 9, part, joined.part_done))

    def write_held(self, write: Write) -> None:
        """As write(), for a range that the caller has locked (`write.hold`) and gives up to it."""
        self.pending += 1
        write.done = self._answer(write.done)
        self._activate(write)

    def zero(self, kind: Kind, offset: int, length: int, fua: bool, done: Done) -> None:
        """Trim or zero a range; done(errno). Both nodes read zeroes afterwards, also after a trim."""
        if (refusal := self._refusal(offset, length)) is not None:
            self._volume.resource.soon(partial(done, refusal))
            return
        self.pending += 1
        answer = self._stable_after(done) if fua else self._answer(done)
        joined = Countdown(-(-length // MAX_ZERO), answer)
        for start in range(0, length, MAX_ZERO):
            count = min(MAX_ZERO, length - start)
            self._accept(
                Write(
                    self._volume,
                    kind,
                    (offset + start) >> 9,
                    count >> 9,
                    b"",
                    joined.part_done,
                )
            )

    def flush(self, done: Done) -> None:
        """Everything completed before is stable: here, and under protocol C at the peer; done(errno)."""
        self.pending += 1
        self._flush(self._telling(Ask.FLUSH, self._answer(done)))

    def _telling(self, ask: Ask, answer: Done) -> Done:
        """The answer to this, which also tells of losses that were not told when it was asked for."""
        told = self._told[ask]

        def ended(errno: int) -> None:
            self._told[ask] = self._losses
            answer(errno or (EIO if self._losses > told else 0))

        return ended

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        """Read bytes; done(errno, data). Served by the peer where the local copy is not usable."""
        volume = self._volume
        if (refusal := self._read_refusal(offset, length)) is not None:
            volume.resource.soon(partial(done, refusal, b""))
            return
        self.pending += 1
        disk = volume.data_disk
        if self.straight and disk is not None:
            disk.read(offset, length, partial(self._straight_read_done, offset, length, disk, done))
        else:
            self._read(offset, length, partial(self._read_answered, done))

    def _read_answered(self, done: ReadDone, errno: int, data: bytes) -> None:
        self.pending -= 1
        done(errno, data)

    def _straight_read_done(
        self, offset: int, length: int, disk: DiskPort, done: ReadDone, errno: int, data: bytes
    ) -> None:
        """As _read_here, in one step, for the usual read."""
        if errno:
            self._read_failed(offset, length, disk, partial(self._read_answered, done), errno)
            return
        self._volume.counters.read += length >> 9
        self.pending -= 1
        done(0, data)

    def _read(self, offset: int, length: int, answer: ReadDone) -> None:
        if self._waits():
            self._freeze_read(offset, length, answer)
        elif self._readable_here(offset >> 9, length >> 9):
            self._read_here(offset, length, answer)
        else:
            self._read_there(offset, length, answer)

    def _freeze_read(self, offset: int, length: int, answer: ReadDone) -> None:
        go = partial(self._read, offset, length, answer)
        self._frozen.append(_Waiting(go, lambda errno: answer(errno, b"")))

    # --- the straight way ---------------------------------------------------------------------

    def find_straight(self) -> None:
        """After a change of state: see whether writes may go the straight way from here on."""
        volume = self._volume
        state = volume.state
        self.straight = (
            state.role is Role.Primary
            and state.conn is Conn.Connected
            and state.disk is state.pdsk is Disk.UpToDate
            and volume.data_disk is not None
            and not self._waits()
        )

    def _write_straight(self, offset: int, length: int, data: Buffer, done: Done) -> bool:
        """The usual write in one go: both disks UpToDate and connected, a hot extent, and nobody else
        in this range. Its outcome is that of _accept, _activate and _submit, which do the same step
        by step for any state. False: this is another case, and nothing has been done."""
        volume = self._volume
        sector, nsectors = offset >> 9, length >> 9
        end = sector + nsectors
        if (offset | length) & 511 or not 0 <= sector < end <= volume.size_sectors:
            return False
        extent = sector >> EXTENT_SHIFT
        if (end - 1) >> EXTENT_SHIFT != extent or length > MAX_DATA:
            return False
        replication = self._replication
        if self._frozen or replication.log.full or replication.waiting:
            return False
        hold = volume.locks.take_free(sector, end)
        if hold is None:
            return False
        log = volume.activity_log
        if log is not None and not log.begin_hot(extent):
            volume.locks.release(hold)
            return False
        payload = data if type(data) is bytes else bytes(data)
        write = Write(volume, WRITE, sector, nsectors, payload, partial(self._answered, done))
        write.hold = hold
        if log is not None:
            write.al = (log, extent, extent)
        write.net = write.local = PENDING
        self.pending += 1
        replication.send_write(write)
        disk = volume.data_disk
        assert disk is not None
        disk.write(offset, payload, partial(self._straight_done, write, disk))
        return True

    def _straight_done(self, write: Write, disk: DiskPort, errno: int) -> None:
        """As _local_done and progress, for the usual write."""
        if errno or write.net is FAILED or self._unshared or self._may_retry:
            self._local_done(write, disk, errno)
            return
        volume = self._volume
        assert write.hold is not None
        volume.locks.release(write.hold)
        write.hold = None
        write.data = b""
        write.local = OK
        volume.counters.written += write.nsectors
        if write.net is OK:
            self.progress(write)

    def acknowledged(self, write: Write) -> None:
        """The peer has it, as the protocol in use demands; as progress, for the usual write."""
        write.net = OK
        usual = self.straight and write.local is OK and not write.completed and not write.held
        if not usual or write.epoch is None:
            self.progress(write)
            return
        write.completed = True
        write.done(0)
        if self._replication.epoch_per_completion:
            self._replication.completed_in(write.epoch)

    def stable_at_peer(self, write: Write) -> None:
        """Its epoch is stable at the peer, and over; as progress, for the usual write."""
        write.epoch = None
        if write.net is PENDING:
            write.net = OK
        if not write.completed or write.local is not OK or write.net is not OK:
            self.progress(write)
        elif write.al is not None:
            log, first, last = write.al
            write.al = None
            log.end(first, last)

    # --- checks and waiting -------------------------------------------------------------------

    def _read_refusal(self, offset: int, length: int) -> int | None:
        end = offset + length
        if length <= 0 or offset < 0 or (offset | length) & 511 or end > self._volume.size:
            return EINVAL
        return None

    def _refusal(self, offset: int, length: int) -> int | None:
        if self._volume.state.role is not Role.Primary:
            return EROFS
        return self._read_refusal(offset, length)

    def _waits(self) -> bool:
        state = self._volume.state
        if state.conn in HOLDING or state.disk is Disk.Negotiating:
            # The disk does not take writes yet, and the peer counts on it already.
            return True
        if state.role is Role.Primary and not self._volume.indicated:
            return True
        return state.suspended

    @property
    def _holding(self) -> bool:
        """Whether what the peer did not get may not be completed now."""
        return self._volume.generation_pending or self._volume.state.suspended

    def hold(self, go: Callable[[], None], fail: Done) -> None:
        """Run `go` when nothing holds completions any more; `fail` if the device is taken away."""
        self._held.append(_Waiting(go, fail))

    def thaw(self) -> None:
        """The reason to hold I/O may be gone: go on with what waits, in order."""
        self.find_straight()
        self._thawing = True
        if self._held and not self._holding:
            held, self._held = self._held, []
            for waiting in held:
                waiting.go()
        while self._frozen and not self._waits():
            self._frozen.popleft().go()
        self._thawing = False

    def give_up(self) -> None:
        """The device is taken from its users: what waits for better times fails now."""
        while self._frozen:
            self._frozen.popleft().fail(EIO)
        held, self._held = self._held, []
        for waiting in held:
            waiting.fail(EIO)

    @property
    def frozen(self) -> int:
        """Requests that wait for the state to change."""
        return len(self._frozen) + len(self._held)

    def _answer(self, done: Done) -> Done:
        return partial(self._answered, done)

    def _answered(self, done: Done, errno: int) -> None:
        self.pending -= 1
        done(errno)

    def _stable_after(self, done: Done) -> Done:
        """FUA: when the write is complete, flush; then answer."""
        answer = self._answer(done)

        def written(errno: int) -> None:
            if errno:
                answer(errno)
            else:
                self._flush(self._telling(Ask.FUA, answer))

        return written

    # --- a write ------------------------------------------------------------------------------

    def _accept(self, write: Write) -> None:
        """Into the line for its range: overlapping writes keep the order they came in."""
        if self._waits() or (self._frozen and not self._thawing):
            self._frozen.append(_Waiting(partial(self._accept, write), write.done))
            return
        if self._replication.full:
            self._replication.when_room(partial(self._accept, write))
            return
        end = write.sector + write.nsectors
        write.hold = self._volume.locks.acquire(write.sector, end, lambda: self._activate(write))
        if write.hold.granted:
            self._activate(write)

    def _activate(self, write: Write) -> None:
        """The range is free: name its extents in the activity log, unless they are."""
        log = self._volume.activity_log
        if log is None:
            self._submit(write)
            return
        first, last = extents(write.sector, write.nsectors)
        if log.begin(first, last, partial(self._activated, write, log, first, last)):
            write.al = (log, first, last)
            self._submit(write)

    def _activated(self, write: Write, log: ActivityLog, first: int, last: int, errno: int) -> None:
        """The activity log has the extents, or cannot write (then the disk is given up)."""
        if errno:
            self._volume.activity_log_failed(log, errno)
        else:
            write.al = (log, first, last)
        self._submit(write)

    def _submit(self, write: Write) -> None:
        """Both copies at once."""
        volume = self._volume
        if self._waits():
            # The state changed while the write waited: it keeps its range, and waits once more.
            fail = partial(self._local_done, write, None)
            self._frozen.append(_Waiting(partial(self._submit, write), fail))
            return
        state = volume.state
        if Disk.UpToDate not in (state.disk, state.pdsk):
            # Nobody has good data: what is written now would be on no copy that counts.
            self._local_done(write, None, EIO)
            return
        if state.conn in TARGET:
            volume.resync.overtake(write.sector, write.nsectors)
        mode = replicated(state.conn, state.pdsk)
        if mode == "data":
            write.net = Part.PENDING
        disk = volume.data_disk
        if disk is not None:
            write.local = Part.PENDING
        if mode == "data":
            self._replication.send_write(write)
        elif mode == "out-of-sync":
            volume.mark_out_of_sync(write.sector, write.nsectors, tell_peer=True)
        if mode != "data":
            self._unshared[write] = None
        if disk is None:
            self._local_done(write, None, EIO)
        elif write.kind is Kind.WRITE:
            disk.write(write.sector << 9, write.data, partial(self._local_done, write, disk))
        else:
            disk.zero(
                write.sector << 9,
                write.nsectors << 9,
                write.kind is not Kind.ZERO,
                partial(self._local_done, write, disk),
            )

    def _local_done(self, write: Write, disk: DiskPort | None, errno: int) -> None:
        volume = self._volume
        if write.hold is not None:
            volume.locks.release(write.hold)
            write.hold = None
        if not self._may_retry:
            write.data = b""
        self._unshared.pop(write, None)
        if errno:
            write.local = Part.FAILED
            write.errno = errno
            if disk is not None:
                volume.mark_out_of_sync(write.sector, write.nsectors)
                volume.local_io_error("write", write.sector, errno, disk)
        else:
            write.local = Part.OK
            volume.counters.written += write.nsectors
        self.progress(write)

    def progress(self, write: Write) -> None:
        """Some part of `write` has moved: complete it, and be done with it, as far as that goes."""
        if write.local is Part.PENDING:
            if write.net is Part.FAILED:
                # Its end will mark it, which may be too late for a bitmap that is sent before.
                self._unshared[write] = None
            return
        if write.completed and not self._is_kept(write):
            self._losses += 1
        if not write.completed and not write.held and write.net is not Part.PENDING:
            if write.net is not Part.OK and self._holding:
                write.held = True
                retry = self._may_retry and self._volume.state.suspended
                go = self._try_again if retry else self._complete
                self.hold(partial(go, write), partial(self._fail, write))
            else:
                self._complete(write)
        if write.epoch is None and write.net is not Part.PENDING:
            self._finish(write)

    def _is_kept(self, write: Write) -> bool:
        """Some copy that counts has it: not one on a disk that was given up since, nor that of a peer
        which is only being synchronised."""
        if write.local is Part.OK and self.counts:
            return True
        return write.net is Part.OK and self._volume.state.pdsk is Disk.UpToDate

    def _complete(self, write: Write) -> None:
        write.completed = True
        if self._is_kept(write):
            if write.local is not Part.OK:
                self._volume.attachment.completed_without_disk()
            write.done(0)
            if self._replication.epoch_per_completion and write.epoch is not None:
                self._replication.completed_in(write.epoch)
        else:
            write.done(write.errno or EIO)

    def _try_again(self, write: Write) -> None:
        """After a suspension: if no copy that counts has it, it is written anew."""
        if self._is_kept(write):
            self._complete(write)
            return
        write.completed = True  # as far as this account goes
        self._accept(
            Write(write.volume, write.kind, write.sector, write.nsectors, write.data, write.done)
        )

    def _fail(self, write: Write, errno: int) -> None:
        write.completed = True
        write.done(errno)

    def _finish(self, write: Write) -> None:
        """Local disk and peer are both done with it: mark what the peer may not have. What the local
        disk has not was marked when it failed, or by the peer while there was none, what the peer has
        refused when it did; since then a resync may have copied it."""
        volume = self._volume
        if write.net is not Part.OK and not write.marked:
            volume.mark_out_of_sync(write.sector, write.nsectors)
        if write.al is not None:
            log, first, last = write.al
            write.al = None
            log.end(first, last)

    def mark_unshared(self) -> None:
        """The bitmap is about to be sent: it has to have what is still on its way to the disk."""
        for write in self._unshared:
            self._volume.mark_out_of_sync(write.sector, write.nsectors)

    # --- flush --------------------------------------------------------------------------------

    def _flush(self, answer: Done) -> None:
        """The local disk and, as the protocol promises, the peer."""
        if self._waits():
            self._frozen.append(_Waiting(partial(self._flush, answer), answer))
            return
        volume = self._volume
        disk = volume.data_disk
        outcome = FlushOutcome(volume, answer, disk)
        if self._replication.flush_peer(volume, outcome.remote):
            outcome.remote_pending = True
        if disk is None:
            volume.resource.soon(partial(outcome.local, EIO))
        else:
            disk.flush(outcome.local)

    @property
    def counts(self) -> bool:
        """Whether the copy on the local disk is one that will be used again."""
        return self._volume.state.disk is Disk.UpToDate

    def answer_flush(self, answer: Done, good: bool, result: int) -> None:
        """Answer a flush that the peer had no part in. good: the local copy has it all."""
        state = self._volume.state
        if not good and state.disk is not Disk.UpToDate and state.pdsk is Disk.UpToDate:
            # The local disk failed under it. What counts now is that the peer has it all.
            self._flush(answer)
        elif not self._holding:
            answer(result)
        elif self._may_retry and not good and self._volume.state.suspended:
            self.hold(partial(self._flush, answer), answer)
        else:
            self.hold(lambda: answer(result), answer)

    # --- reads --------------------------------------------------------------------------------

    def _readable_here(self, sector: int, nsectors: int) -> bool:
        volume = self._volume
        if volume.data_disk is None:
            return False
        if volume.state.disk is Disk.Inconsistent:
            if volume.bitmap is None or volume.attachment.is_older_than_its_name:
                return False
            first, last = sector >> 3, (sector + nsectors - 1) >> 3
            return not volume.bitmap.any_in(first, last - first + 1)
        return volume.state.disk is Disk.UpToDate

    def _read_here(self, offset: int, length: int, answer: ReadDone) -> None:
        volume = self._volume
        disk = volume.data_disk
        assert disk is not None

        def loaded(errno: int, data: bytes) -> None:
            if not errno:
                volume.counters.read += length >> 9
                answer(0, data)
            else:
                self._read_failed(offset, length, disk, answer, errno)

        disk.read(offset, length, loaded)

    def _read_failed(
        self, offset: int, length: int, disk: DiskPort, answer: ReadDone, errno: int
    ) -> None:
        """Here; perhaps the peer has it."""
        volume = self._volume
        volume.mark_out_of_sync(offset >> 9, length >> 9)
        volume.local_io_error("read", offset >> 9, errno, disk)
        self._read_there(offset, length, answer)

    def _read_there(self, offset: int, length: int, answer: ReadDone) -> None:
        """From the peer."""

        def ended(errno: int, data: bytes) -> None:
            if errno and self._may_retry and self._volume.state.suspended:
                self._freeze_read(offset, length, answer)
            else:
                answer(errno, data)

        self._replication.read_from_peer(self._volume, offset, length, ended)
