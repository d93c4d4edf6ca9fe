"""Requests from nbdkit's worker threads to the engine's loop thread and back.

Rules:
1. Hand-over in batches: workers append to one queue, and wake the loop only if no wake-up is due.
2. Each worker waits on a lock of its own, made once per thread.
3. No wait without an end: a worker looks every LOOK_SECONDS whether the engine still lives; when it
   does not, the request fails with EIO. A request may be older than that: the engine may have a
   reason to hold it (status says which).
4. No nbdkit here, and no replication: `engine_volume` objects are called as engine_api describes.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from replicator.errors import ReplicatorError, StateRefused
from replicator.runtime.engine_api import EngineVolume

LOOK_SECONDS = 1.0

SECTOR = 512

T = TypeVar("T")


class Waiter:
    """One worker's place to wait. Never shared between threads; one request at a time."""

    __slots__ = ("data", "errno", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.errno = 0
        self.data: bytes = b""

    def done(self, code: int) -> None:
        self.errno = code
        self.lock.release()

    def read_done(self, code: int, data: bytes) -> None:
        self.errno = code
        self.data = data
        self.lock.release()


class Bridge:
    """call_soon_threadsafe: of the engine's loop; alive: False once the engine's thread has ended
    or stopped serving. Request methods are for worker threads; they return an errno."""

    def __init__(
        self,
        call_soon_threadsafe: Callable[[Callable[[], None]], Any],
        alive: Callable[[], bool],
    ) -> None:
        self._wake = call_soon_threadsafe
        self._alive = alive
        self._queue: deque[Callable[[], None]] = deque()
        self._wakeup_due = False
        self._local = threading.local()

    def read(self, volume: EngineVolume, offset: int, length: int) -> tuple[int, bytes]:
        """(0, data) or (errno, b"")."""
        if refusal := misaligned(offset, length):
            return refusal, b""
        waiter = self._waiter()
        code = self._run(waiter, partial(volume.read, offset, length, waiter.read_done))
        data, waiter.data = waiter.data, b""
        return code, data

    def write(self, volume: EngineVolume, offset: int, data: bytes, fua: bool) -> int:
        if refusal := misaligned(offset, len(data)):
            return refusal
        waiter = self._waiter()
        return self._run(waiter, partial(volume.write, offset, data, fua, waiter.done))

    def flush(self, volume: EngineVolume) -> int:
        waiter = self._waiter()
        return self._run(waiter, partial(volume.flush, waiter.done))

    def trim(self, volume: EngineVolume, offset: int, length: int, fua: bool) -> int:
        if refusal := misaligned(offset, length):
            return refusal
        waiter = self._waiter()
        return self._run(waiter, partial(volume.trim, offset, length, fua, waiter.done))

    def zero(
        self, volume: EngineVolume, offset: int, length: int, may_unmap: bool, fua: bool
    ) -> int:
        if refusal := misaligned(offset, length):
            return refusal
        waiter = self._waiter()
        return self._run(waiter, partial(volume.zero, offset, length, may_unmap, fua, waiter.done))

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the loop's thread and return its result. Raises what it raises;
        StateRefused if the engine is gone."""
        results: list[T] = []
        errors: list[ReplicatorError] = []
        waiter = self._waiter()

        def run() -> None:
            try:
                results.append(function())
            except ReplicatorError as error:
                errors.append(error)
            waiter.done(0)

        if self._run(waiter, run) or not (results or errors):
            raise StateRefused("the engine of this resource has stopped")
        if errors:
            raise errors[0]
        return results[0]

    def _waiter(self) -> Waiter:
        waiter: Waiter | None = getattr(self._local, "waiter", None)
        if waiter is None:
            waiter = self._local.waiter = Waiter()
        return waiter

    def _run(self, waiter: Waiter, start: Callable[[], None]) -> int:
        """Queue the request, wait for its completion; its errno."""
        self._queue.append(start)
        if not self._wakeup_due:
            self._wakeup_due = True
            try:
                self._wake(self._drain)
            except RuntimeError:
                return self._give_up()  # the loop has been closed
        while not waiter.lock.acquire(timeout=LOOK_SECONDS):
            if not self._alive():
                return self._give_up()
        return waiter.errno

    def _give_up(self) -> int:
        """The completion may still come, from a loop in its last breath: never use this lock again."""
        del self._local.waiter
        return errno.EIO

    def _drain(self) -> None:
        """On the loop's thread: start everything that has been queued."""
        # Cleared first: who appends after this wakes the loop again, who appended before is served.
        self._wakeup_due = False
        queue = self._queue
        for _ in range(len(queue)):
            queue.popleft()()


def misaligned(offset: int, length: int) -> int:
    """EINVAL for what is not in whole sectors: the wire and the peer's disk know nothing smaller."""
    return errno.EINVAL if (offset | length) % SECTOR else 0
