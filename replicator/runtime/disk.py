"""FileDisk: a backing file or block device as the engine's Disk port, on a few threads of its own.

Rules:
1. The loop never blocks: blocking calls run on lane threads. Only what the page cache can answer at
   once is done without: reads by RWF_NOWAIT (or from tmpfs), and small writes between two turns of a TurnLoop, which
   goes on without them if they take long after all.
2. Work moves in batches: what one loop iteration submits is handed over together, and what has
   completed meanwhile comes back with one wake-up of the loop. No Future or Task per request.
3. `done` is never called from inside the call it was given to, and always on the loop's thread.
4. Knows nothing of replication, metadata or configuration.

With direct I/O (direct_io) every call waits for the device itself: nothing is done inline then, and
DIRECT_THREADS do what one thread or two do in the page cache.

Lanes: writes one thread; zero and discard one (they can take long and must not hold up writes);
reads READ_THREADS; flush and durable writes one, so that waiting flushes are served together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Final

from replicator.engine.ports import Buffer, Done, ReadDone
from replicator.runtime import disk_ops
from replicator.runtime.direct_io import DirectFile
from replicator.runtime.syscalls import write_burst
from replicator.runtime.turns import TurnLoop, soon_on, soon_threadsafe_on

READ_THREADS = 2
DIRECT_THREADS = 8
"""Of reads, and of writes, past the page cache: how many the device gets at once."""

INLINE_READ_MAX: Final = 64 * 1024
"""Bytes; a longer read is copied on a thread, so as not to hold up the loop."""

INLINE_WRITE_MAX: Final = 64 * 1024
INLINE_BATCH_MAX: Final = 512 * 1024
"""Bytes of one write, and of all writes between two turns; what is larger goes to a thread."""

AT_ONCE: Final = 256 * 1024
"""Bytes of a job that is handed over as soon as it is submitted."""

SLOW_SECONDS = 0.005
"""Writes between two turns that have taken so long are continued on a thread, and so are all that
come within the next REST_SECONDS: the disk, or the page cache, has reasons to be slow."""

REST_SECONDS = 1.0

BATCH_SECONDS: Final = 0.001
"""A lane thread reports what it has completed at least this often while it works off a batch."""

Completion = Callable[[], None]
"""A `done` with its arguments bound."""

FLUSH = "flush"
DURABLE = "durable"


@dataclass
class DiskCounters:
    """What a disk has done since it was opened; times are not kept."""

    reads: int = 0
    reads_inline: int = 0
    writes: int = 0
    writes_inline: int = 0
    durable_writes: int = 0
    flushes: int = 0
    syncs: int = 0
    """fdatasync calls; fewer than flushes where one served several."""
    zeroes: int = 0
    discards: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


_Write = tuple[int, Buffer, Done]
"""Offset, data, completion."""


@dataclass(slots=True)
class _SyncJob:
    kind: str
    offset: int
    data: Buffer
    done: Done


class _Lane:
    """Threads that work off batches of jobs. `hand_over` and `stop` are for the loop's thread only.

    The queue is the one written in C: its wake-up costs a fraction of a Condition's.
    """

    def __init__(
        self, name: str, threads: int, work: Callable[[list[object]], None], ended: Completion
    ) -> None:
        self._work = work
        self._ended = ended
        self._queue: SimpleQueue[list[object] | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def hand_over(self, jobs: list[object]) -> None:
        """Divide the jobs among the threads."""
        share = -(-len(jobs) // len(self.threads))
        for start in range(0, len(jobs), share):
            self._queue.put(jobs[start : start + share])

    def stop(self) -> None:
        for _ in self.threads:
            self._queue.put(None)

    def _run(self) -> None:
        while (jobs := self._queue.get()) is not None:
            self._work(jobs + self._waiting())
        self._ended()

    def _waiting(self) -> list[object]:
        """With one thread everything else that waits too, so that flushes are served together."""
        found: list[object] = []
        while len(self.threads) == 1 and not self._queue.empty():
            more = self._queue.get()
            if more is None:
                self._queue.put(None)
                break
            found += more
        return found


class FileDisk:
    """The Disk port on an open file descriptor, which it owns and closes.

    loop: the engine's loop; fd: opened read-write; size: bytes; block_device: False for a file;
    direct: the same file past the page cache, owned and closed as well.
    Errors reach `done` as an errno; after stop() every call is answered ENODEV.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        size: int,
        *,
        block_device: bool = False,
        name: str = "disk",
        direct: DirectFile | None = None,
    ) -> None:
        self.size = size
        self.name = name
        self.counters = DiskCounters()
        self._loop = loop
        self._soon = soon_on(loop)
        self._soon_threadsafe = soon_threadsafe_on(loop)
        self._fd = fd
        self._block_device = block_device
        self._direct = direct
        self._inline_reads = direct is None
        # tmpfs does not know RWF_NOWAIT, and does not need it.
        self._at_once = 0 if disk_ops.is_in_memory(self._fd) else os.RWF_NOWAIT
        self._turns = loop if direct is None and isinstance(loop, TurnLoop) else None
        self._inline_writes: list[_Write] = []
        self._inline_bytes = 0
        self._between_turns = False
        """A call between two turns is due or under way."""
        self._rest_until = 0.0
        self.allocated = not block_device and os.fstat(fd).st_blocks * 512 >= size > 0
        self._tells_holes = not block_device and disk_ops.tells_holes(fd)
        self._unsynced = True
        self._sync_error = 0
        self._stopped = False
        self._closed = False
        self._on_closed: list[Completion] = []
        self._dispatch_due = False
        self._completions: deque[Completion] = deque()
        self._wakeup_pending = False
        self._deliver_due = False
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._batches: dict[str, list[object]] = {}
        self._live_threads = 0
        for lane, threads, work in (
            ("write", DIRECT_THREADS if direct else 1, self._run_calls),
            ("bulk", 1, self._run_calls),
            ("read", DIRECT_THREADS if direct else READ_THREADS, self._run_calls),
            ("sync", 1, self._run_sync),
        ):
            self._live_threads += threads
            self._batches[lane] = []
            self._lanes[lane] = _Lane(f"{name}-{lane}", threads, work, self._thread_ended)

    # The port, called on the loop's thread.

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        if problem := self._refusal(offset, length, errno.EIO):
            self._complete_later(partial(done, problem, b""))
            return
        self.counters.reads += 1
        self.counters.bytes_read += length
        if self._inline_reads and length <= INLINE_READ_MAX:
            data = self._read_cached(offset, length)
            if data is not None:
                self.counters.reads_inline += 1
                self._complete_later(partial(done, 0, data))
                return
        self._submit("read", partial(self._do_read, offset, length, done), length)

    def read_unless_hole(self, offset: int, length: int, done: ReadDone) -> None:
        if problem := self._refusal(offset, length, errno.EIO):
            self._complete_later(partial(done, problem, b""))
            return
        self.counters.reads += 1
        self._submit("read", partial(self._do_read_unless_hole, offset, length, done), length)

    def write(self, offset: int, data: Buffer, done: Done) -> None:
        if problem := self._refusal(offset, len(data), errno.ENOSPC):
            self._complete_later(partial(done, problem))
            return
        self.counters.writes += 1
        length = len(data)
        self.counters.bytes_written += length
        if length <= INLINE_WRITE_MAX and self._may_write_inline(length):
            self._inline_writes.append((offset, data, done))
            self._inline_bytes += length
        else:
            self._submit("write", partial(self._do_write, offset, data, done), length)

    def write_durable(self, offset: int, data: Buffer, done: Done) -> None:
        if problem := self._refusal(offset, len(data), errno.ENOSPC):
            self._complete_later(partial(done, problem))
            return
        self.counters.durable_writes += 1
        self.counters.bytes_written += len(data)
        self._submit("sync", _SyncJob(DURABLE, offset, data, done))

    def flush(self, done: Done) -> None:
        if self._stopped:
            self._complete_later(partial(done, errno.ENODEV))
            return
        self.counters.flushes += 1
        self._submit("sync", _SyncJob(FLUSH, 0, b"", done))

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        if problem := self._refusal(offset, length, errno.ENOSPC):
            self._complete_later(partial(done, problem))
            return
        self.counters.zeroes += 1
        call = partial(
            disk_ops.zero_range,
            self._fd,
            offset,
            length,
            unmap=unmap,
            block_device=self._block_device,
        )
        self._submit("bulk", partial(self._do_bulk, call, done))

    def discard(self, offset: int, length: int, done: Done) -> None:
        if problem := self._refusal(offset, length, errno.ENOSPC):
            self._complete_later(partial(done, problem))
            return
        self.counters.discards += 1
        call = partial(
            disk_ops.discard_range, self._fd, offset, length, block_device=self._block_device
        )
        self._submit("bulk", partial(self._do_bulk, call, done))

    # Ending.

    def stop(self, closed: Completion | None = None) -> None:
        """Take nothing more, finish what is under way, then close the descriptor and call `closed`
        on the loop. Returns at once; `join` waits. May be called more than once."""
        if closed is not None:
            if self._closed:
                self._soon(closed)
                return
            self._on_closed.append(closed)
        if self._stopped:
            return
        self._dispatch()
        self._stopped = True
        if not self._between_turns:
            self._stop_lanes()

    def _stop_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.stop()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the threads after stop(). False: some I/O still hangs.
        Completions are delivered only when the loop runs again."""
        share = timeout / max(1, sum(len(lane.threads) for lane in self._lanes.values()))
        threads = [thread for lane in self._lanes.values() for thread in lane.threads]
        for thread in threads:
            thread.join(share)
        return not any(thread.is_alive() for thread in threads)

    # Writes between two turns of the loop.

    def _may_write_inline(self, length: int) -> bool:
        """Whether a write can join those between this turn and the next. Ends with such a call due."""
        turns = self._turns
        if turns is None or not turns.taking_turns:
            return False
        if self._inline_writes:
            return self._inline_bytes + length <= INLINE_BATCH_MAX
        if self._between_turns or (self._rest_until and turns.time() < self._rest_until):
            return False
        self._between_turns = True
        turns.inner.between_turns(self._write_inline, self._written_inline)
        return True

    def _write_inline(self) -> tuple[list[_Write], list[int], float]:
        """Between two turns: write as long as it is quick. The writes, results of those made, seconds."""
        writes, self._inline_writes = self._inline_writes, []
        self._inline_bytes = 0
        results, taken = write_burst(self._fd, writes, SLOW_SECONDS)
        # After the writes and before their completions: see _sync_now.
        self._unsynced = True
        return writes, results, taken

    def _written_inline(self, outcome: tuple[list[_Write], list[int], float]) -> None:
        """Back on the loop."""
        writes, results, taken = outcome
        count = len(results)
        self._between_turns = False
        self.counters.writes_inline += count
        if taken > SLOW_SECONDS:
            self._rest_until = self._loop.time() + REST_SECONDS
        if count < len(writes):
            for offset, data, done in writes[count:]:
                self._batches["write"].append(partial(self._do_write, offset, data, done))
            self._dispatch()
        if self._stopped:
            self._stop_lanes()
        for number, result in enumerate(results):
            if result:
                self.counters.errors += 1
            self._completions.append(partial(writes[number][2], result))
        self._deliver()

    # Submitting, on the loop's thread.

    def _refusal(self, offset: int, length: int, beyond: int) -> int:
        """0, or the errno of a call that must not reach the disk."""
        if self._stopped:
            return errno.ENODEV
        if offset < 0 or length < 0:
            return errno.EINVAL
        return beyond if offset + length > self.size else 0

    def _submit(self, lane: str, job: object, size: int = 0) -> None:
        """size: bytes that the job moves; much of that does not wait for the end of the iteration, so
        that a thread works on it while the loop goes on receiving."""
        self._batches[lane].append(job)
        if size >= AT_ONCE:
            self._hand_over(lane)
        elif not self._dispatch_due:
            self._dispatch_due = True
            self._soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_due = False
        for name in self._batches:
            self._hand_over(name)

    def _hand_over(self, lane: str) -> None:
        if batch := self._batches[lane]:
            self._batches[lane] = []
            self._lanes[lane].hand_over(batch)

    def _read_cached(self, offset: int, length: int) -> bytes | None:
        """The data if the page cache has all of it, else None."""
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, [buffer], offset, self._at_once)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                self._inline_reads = False
            return None
        return bytes(buffer) if count == length else None

    # Completing.

    def _complete_later(self, completion: Completion) -> None:
        """From the loop's thread: no other one has to be kept out."""
        self._completions.append(completion)
        if not self._deliver_due:
            self._deliver_due = True
            self._soon(self._deliver)

    def _complete_from_thread(self, completions: list[Completion]) -> None:
        self._completions.extend(completions)
        with self._lock:
            if self._wakeup_pending:
                return
            self._wakeup_pending = True
        # RuntimeError: the loop has been closed, nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self._soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._deliver_due = False
        with self._lock:
            self._wakeup_pending = False
        completions = self._completions
        # Only what is there now: what `done` adds comes with the next iteration.
        count = len(completions)
        try:
            while count:
                count -= 1
                completions.popleft()()
        finally:
            # One `done` that raises must not take the others with it.
            if count:
                self._soon(self._deliver)

    def _thread_ended(self) -> None:
        with self._lock:
            self._live_threads -= 1
            if self._live_threads:
                return
        if self._direct is not None:
            self._direct.close()
        os.close(self._fd)
        self._complete_from_thread([self._report_closed])

    def _report_closed(self) -> None:
        self._closed = True
        for closed in self._on_closed:
            closed()

    # The work, on lane threads.

    def _run_calls(self, jobs: list[object]) -> None:
        completions: list[Completion] = []
        started = time.monotonic()
        for job in jobs:
            assert callable(job)
            completions.append(job())
            # A batch that takes long (large or throttled writes) reports as it goes.
            if (now := time.monotonic()) - started > BATCH_SECONDS:
                started = now
                self._complete_from_thread(completions)
                completions = []
        if completions:
            self._complete_from_thread(completions)

    def _do_read(self, offset: int, length: int, done: ReadDone) -> Completion:
        try:
            if self._direct is not None:
                data = self._direct.read(offset, length)
            else:
                data = disk_ops.read_all(self._fd, offset, length)
        except OSError as error:
            return partial(done, self._failed(error), b"")
        return partial(done, 0, data)

    def _do_read_unless_hole(self, offset: int, length: int, done: ReadDone) -> Completion:
        if self._tells_holes and disk_ops.is_hole(self._fd, offset, length):
            return partial(done, 0, b"")
        self.counters.bytes_read += length
        return self._do_read(offset, length, done)

    def _do_write(self, offset: int, data: Buffer, done: Done) -> Completion:
        return partial(done, self._write_now(offset, data))

    def _do_bulk(self, call: Callable[[], None], done: Done) -> Completion:
        try:
            call()
        except OSError as error:
            return partial(done, self._failed(error))
        finally:
            self._unsynced = True
        return partial(done, 0)

    def _write_now(self, offset: int, data: Buffer) -> int:
        try:
            if self._direct is not None:
                self._direct.write(offset, data)
            else:
                disk_ops.write_all(self._fd, offset, data)
        except OSError as error:
            return self._failed(error)
        finally:
            # After the write and before its completion: see _sync_now.
            self._unsynced = True
        return 0

    def _run_sync(self, jobs: list[object]) -> None:
        """All that waits, with at most two fdatasync: one for the flushes and as pre-flush of the
        durable writes, one after these."""
        sync_jobs = [job for job in jobs if isinstance(job, _SyncJob)]
        durable = [job for job in sync_jobs if job.kind == DURABLE]
        result = self._sync_now()
        self._complete_from_thread(
            [partial(job.done, result) for job in sync_jobs if job.kind == FLUSH]
        )
        if not durable:
            return
        if result:
            self._complete_from_thread([partial(job.done, result) for job in durable])
            return
        results = [self._write_now(job.offset, job.data) for job in durable]
        after = self._sync_now()
        self._complete_from_thread(
            [partial(job.done, one or after) for job, one in zip(durable, results, strict=True)]
        )

    def _sync_now(self) -> int:
        """fdatasync unless nothing was written since the last one; 0 or an errno.

        The mark is cleared before the call, and set by writers between their write and its
        completion, so a write whose completion precedes a flush is either in this fdatasync or
        marked for the next. After a failure the kernel may have dropped the pages and would report
        success the next time, so the failure is kept until the disk is opened again.
        """
        if self._sync_error:
            return self._sync_error
        if not self._unsynced:
            return 0
        self._unsynced = False
        self.counters.syncs += 1
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_error = self._failed(error)
        return self._sync_error

    def _failed(self, error: OSError) -> int:
        self.counters.errors += 1
        return error.errno or errno.EIO
