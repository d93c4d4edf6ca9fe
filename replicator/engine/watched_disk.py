"""disk-timeout: a backing disk that does not answer is taken for failed, whatever it does later.

Rules:
1. The oldest call under way counts, of any kind: with a page cache in front of it a dead disk shows
   first where something must become stable.
2. When it is overdue, the owner is told once; then every call under way, and every later one, ends
   with ETIMEDOUT.
3. What the disk answers after that is dropped. Nothing is lost by it: each call owns its buffer, and
   whoever asked has long acted on the failure.
What this file must not know: what follows from the failure.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ETIMEDOUT
from functools import partial
from typing import NamedTuple

from replicator.engine.ports import Buffer, Clock, Disk, Done, ReadDone, Timer


class _Call(NamedTuple):
    since: float
    what: str
    done: Callable[..., None]
    failed: tuple[int | bytes, ...]
    """What `done` is given if the disk does not answer."""


class WatchedDisk:
    """A Disk port in front of another. seconds: disk-timeout; hung(what has not been answered)."""

    def __init__(
        self, disk: Disk, clock: Clock, seconds: float, hung: Callable[[str], None]
    ) -> None:
        self.size = disk.size
        self.allocated = disk.allocated
        self._disk = disk
        self._clock = clock
        self._seconds = seconds
        self._hung = hung
        self._calls: dict[int, _Call] = {}
        """Under way, oldest first."""
        self._next = 0
        self._timer: Timer | None = None
        self._given_up = False

    # --- the port -----------------------------------------------------------------------------

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        if answer := self._begin("read", done, ETIMEDOUT, b""):
            self._disk.read(offset, length, answer)

    def read_unless_hole(self, offset: int, length: int, done: ReadDone) -> None:
        if answer := self._begin("read", done, ETIMEDOUT, b""):
            self._disk.read_unless_hole(offset, length, answer)

    def write(self, offset: int, data: Buffer, done: Done) -> None:
        if answer := self._begin("write", done, ETIMEDOUT):
            self._disk.write(offset, data, answer)

    def write_durable(self, offset: int, data: Buffer, done: Done) -> None:
        if answer := self._begin("metadata write", done, ETIMEDOUT):
            self._disk.write_durable(offset, data, answer)

    def flush(self, done: Done) -> None:
        if answer := self._begin("flush", done, ETIMEDOUT):
            self._disk.flush(answer)

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        if answer := self._begin("write of zeroes", done, ETIMEDOUT):
            self._disk.zero(offset, length, unmap, answer)

    def discard(self, offset: int, length: int, done: Done) -> None:
        if answer := self._begin("discard", done, ETIMEDOUT):
            self._disk.discard(offset, length, answer)

    # --- watching -----------------------------------------------------------------------------

    def _begin(
        self, what: str, done: Callable[..., None], *failed: int | bytes
    ) -> Callable[..., None] | None:
        """What the disk is to call; None if it is not to be asked any more."""
        if self._given_up:
            self._clock.call_soon(partial(done, *failed))
            return None
        self._next += 1
        self._calls[self._next] = _Call(self._clock.now(), what, done, failed)
        if self._timer is None:
            self._timer = self._clock.call_later(self._seconds, self._look)
        return partial(self._ended, self._next)

    def _ended(self, number: int, *answer: int | bytes) -> None:
        call = self._calls.pop(number, None)
        if call is not None:
            call.done(*answer)

    def _look(self) -> None:
        self._timer = None
        oldest = next(iter(self._calls.values()), None)
        if oldest is None:
            return
        left = oldest.since + self._seconds - self._clock.now()
        if left > 0:
            self._timer = self._clock.call_later(left, self._look)
            return
        self._given_up = True
        self._hung(oldest.what)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.done(*call.failed)
