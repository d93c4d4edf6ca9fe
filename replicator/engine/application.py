"""The application's reads and writes on one volume of a Primary: both copies, the account, the answer.

Rules:
1. A write goes nowhere before its extents are in the durable activity log.
2. Overlapping writes are submitted one after the other, in the order in which they came, so that
   both disks see that order.
3. While a new generation is on its way to the disk, writes that the peer did not get are not
   completed (the new UUID is stable before the first of them is acknowledged).
4. Nothing is allocated for a request but its account; no Task, no Future.
What this file must not know: packets (the resource's replication queues them), NBD.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import EINVAL, EIO, EROFS
from functools import partial
from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine.activity_log import extents
from replicator.engine.ports import Buffer, Done, ReadDone
from replicator.engine.ports import Disk as DiskPort
from replicator.engine.requests import MAX_DATA, MAX_ZERO, Countdown, Kind, Part, Write
from replicator.engine.states import replicated

if TYPE_CHECKING:
    from replicator.engine.activity_log import ActivityLog
    from replicator.engine.volume import Volume

TARGET = frozenset({Conn.SyncTarget, Conn.PausedSyncT})
HOLDING = frozenset({Conn.WFBitMapT, Conn.WFSyncUUID})
"""Connection states in which new application I/O waits (generations: 6.3)."""


class Application:
    """Serves one volume; `volume` owns it."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._replication = volume.resource.replication
        self.pending = 0
        """Requests accepted and not completed: the `ap` counter."""
        self._held: list[Write] = []
        self._unshared: set[Write] = set()
        """Writes on their way to the local disk that the peer neither gets nor has been told of."""
        self._lost = False
        """A write that was completed is on no stable storage and cannot be put there any more: the
        next flush has to say so."""
        self._frozen: deque[Callable[[], None]] = deque()

    # --- entry points -------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, fua: bool, done: Done) -> None:
        """Write `data` at byte `offset`; done(errno). With `fua` it is stable as after a flush."""
        length = len(data)
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
            self._accept(
                Write(
                    self._volume,
                    Kind.WRITE,
                    (offset + start) >> 9,
                    len(part) >> 9,
                    part,
                    joined.part_done,
                )
            )

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
        self._flush(self._answer(done))

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        """Read bytes; done(errno, data). Served by the peer where the local copy is not usable."""
        volume = self._volume
        if (refusal := self._read_refusal(offset, length)) is not None:
            volume.resource.soon(partial(done, refusal, b""))
            return
        if self._waits():
            self._frozen.append(partial(self.read, offset, length, done))
            return
        self.pending += 1

        def answer(errno: int, data: bytes) -> None:
            self.pending -= 1
            done(errno, data)

        if self._readable_here(offset >> 9, length >> 9):
            self._read_here(offset, length, answer)
        else:
            self._replication.read_from_peer(volume, offset, length, answer)

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
        return state.susp or state.susp_nod or state.susp_fen

    def thaw(self) -> None:
        """The reason to hold I/O may be gone: go on with what waits, in order."""
        while self._frozen and not self._waits():
            self._frozen.popleft()()

    @property
    def frozen(self) -> int:
        return len(self._frozen)

    def _answer(self, done: Done) -> Done:
        def answer(errno: int) -> None:
            self.pending -= 1
            done(errno)

        return answer

    def _stable_after(self, done: Done) -> Done:
        """FUA: when the write is complete, flush; then answer."""
        answer = self._answer(done)

        def written(errno: int) -> None:
            if errno:
                answer(errno)
            else:
                self._flush(answer)

        return written

    # --- a write ------------------------------------------------------------------------------

    def _accept(self, write: Write) -> None:
        """Into the line for its range: overlapping writes keep the order they came in."""
        if self._waits():
            self._frozen.append(partial(self._accept, write))
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
            self._frozen.append(partial(self._submit, write))
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
            self._unshared.add(write)
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
        write.data = b""
        self._unshared.discard(write)
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
            return
        if write.completed and not self._is_kept(write):
            self._lost = True
        if not write.completed and not write.held and write.net is not Part.PENDING:
            if self._volume.generation_pending and write.net is not Part.OK:
                write.held = True
                self._held.append(write)
            else:
                self._complete(write)
        if write.epoch is None and write.net is not Part.PENDING:
            self._finish(write)

    def _is_kept(self, write: Write) -> bool:
        """Some copy that counts has it: not one on a disk that was given up since."""
        here = write.local is Part.OK and self.counts
        return here or write.net is Part.OK

    def _complete(self, write: Write) -> None:
        write.completed = True
        if self._is_kept(write):
            write.done(0)
            if self._replication.epoch_per_completion and write.epoch is not None:
                self._replication.completed_in(write.epoch)
        else:
            write.done(write.errno or EIO)

    def _finish(self, write: Write) -> None:
        """Local disk and peer are both done with it: mark what only one of them has."""
        volume = self._volume
        if write.local is not Part.OK or write.net is not Part.OK:
            volume.mark_out_of_sync(write.sector, write.nsectors)
        if write.al is not None:
            log, first, last = write.al
            write.al = None
            log.end(first, last)

    def mark_unshared(self) -> None:
        """The bitmap is about to be sent: it has to have what is still on its way to the disk."""
        for write in self._unshared:
            self._volume.mark_out_of_sync(write.sector, write.nsectors)

    def generation_stable(self) -> None:
        """The new UUID is on stable storage: complete what waited for it."""
        held, self._held = self._held, []
        for write in held:
            self._complete(write)

    # --- flush --------------------------------------------------------------------------------

    def _flush(self, answer: Done) -> None:
        """The local disk and, as the protocol promises, the peer."""
        if self._waits():
            self._frozen.append(partial(self._flush, answer))
            return
        volume = self._volume
        disk = volume.data_disk
        outcome = _FlushOutcome(self, answer, disk)
        if self._replication.flush_peer(volume, outcome.remote):
            outcome.remote_pending = True
        if disk is None:
            volume.resource.soon(partial(outcome.local, EIO))
        else:
            disk.flush(outcome.local)

    def flush_failed_locally(self, errno: int, disk: DiskPort | None) -> None:
        self._volume.local_io_error("flush", 0, errno, disk)

    @property
    def counts(self) -> bool:
        """Whether the copy on the local disk is one that will be used again."""
        return self._volume.state.disk is Disk.UpToDate

    def take_lost(self) -> bool:
        """Whether something completed was lost since this was last asked."""
        lost, self._lost = self._lost, False
        return lost

    def after_generation(self, action: Callable[[], None]) -> None:
        """Run `action` now, or when the generation that is being written is stable."""
        self._volume.after_generation(action)

    # --- reads --------------------------------------------------------------------------------

    def _readable_here(self, sector: int, nsectors: int) -> bool:
        volume = self._volume
        if volume.data_disk is None:
            return False
        if volume.state.disk is Disk.Inconsistent:
            return volume.bitmap is not None and not volume.bitmap.any_in(
                sector >> 3, ((sector + nsectors - 1) >> 3) - (sector >> 3) + 1
            )
        return volume.state.disk is Disk.UpToDate

    def _read_here(self, offset: int, length: int, answer: ReadDone) -> None:
        volume = self._volume
        disk = volume.data_disk
        assert disk is not None

        def loaded(errno: int, data: bytes) -> None:
            if not errno:
                volume.counters.read += length >> 9
                answer(0, data)
                return
            volume.mark_out_of_sync(offset >> 9, length >> 9)
            volume.local_io_error("read", offset >> 9, errno, disk)
            self._replication.read_from_peer(volume, offset, length, answer)

        disk.read(offset, length, loaded)


class _FlushOutcome:
    """Joins the local and the remote half of a flush: one of them has to be good, both ended."""

    __slots__ = (
        "_answer",
        "_application",
        "_counted",
        "_disk",
        "_local",
        "_remote_ok",
        "remote_pending",
    )

    def __init__(self, application: Application, answer: Done, disk: DiskPort | None) -> None:
        self._application = application
        self._answer = answer
        self._disk = disk
        self._counted = application.counts
        """The local copy was a good one when the flush began. If it is given up meanwhile, the peer
        has all of it (see admin.detach), or what is lost is told (take_lost)."""
        self._local: int | None = None
        self._remote_ok = False
        self.remote_pending = False

    def local(self, errno: int) -> None:
        self._local = errno
        if errno:
            self._application.flush_failed_locally(errno, self._disk)
        self._join()

    def remote(self, stable: bool) -> None:
        self.remote_pending = False
        self._remote_ok = stable
        self._join()

    def _join(self) -> None:
        if self._local is None or self.remote_pending:
            return
        here = not self._local and self._counted
        result = 0 if self._remote_ok or here else self._local or EIO
        if self._application.take_lost():
            result = result or EIO
        if self._remote_ok:
            self._answer(result)
        else:
            self._application.after_generation(partial(self._answer, result))
