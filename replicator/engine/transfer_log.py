"""The transfer log: writes sent to the peer, in epochs, until the peer says that they are stable.

Rules:
1. An entry leaves the log only by a barrier acknowledgement, or when the connection is given up.
2. Epochs are acknowledged in order, with exactly the number of writes that were sent in them.
3. An epoch without writes never gets a barrier.
4. The log is bounded: while it is full, new writes wait for the peer's next acknowledgement.
What this file must not know: packets, disks. It is told what was sent and what was answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from replicator.engine.requests import Write

EPOCHS_MAX = 32
"""Epochs of full size that the log may hold, by number of writes: 65536 with max-epoch-size 2048."""


class Epoch:
    """The writes between two barriers. `waiters` are told whether they have become stable."""

    __slots__ = ("number", "opened", "waiters", "writes")

    def __init__(self, number: int) -> None:
        self.number = number
        self.writes: list[Write] = []
        self.opened = 0.0
        """When its first write was sent."""
        self.waiters: list[Callable[[bool], None]] = []


class LogMismatch(Exception):
    """The peer acknowledged something that was never sent like that; the message says what."""


class TransferLog:
    """Epochs of one connection, all volumes together."""

    def __init__(self, max_epoch_size: int) -> None:
        self.max_epoch_size = max_epoch_size
        self._next_number = 1
        self.current = Epoch(self._take_number())
        self.closed: deque[Epoch] = deque()
        self.by_id: dict[int, Write] = {}
        """Writes whose acknowledgement is awaited, by block id."""
        self.unacknowledged = 0
        """Writes in the log."""
        self.full = False
        """Nothing more should be added. What is under way may still be: the bound is for memory."""
        self._writes_max = EPOCHS_MAX * max_epoch_size

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number = (number + 1) & 0xFFFFFFFF or 1
        return number

    @property
    def writes(self) -> Iterator[Write]:
        """All in the log, oldest epoch first."""
        for epoch in (*self.closed, self.current):
            yield from epoch.writes

    def add(self, write: Write, now: float = 0.0) -> None:
        """`now` is needed for the first write of an epoch."""
        epoch = self.current
        if not epoch.writes:
            epoch.opened = now
        epoch.writes.append(write)
        write.epoch = epoch
        self.unacknowledged += 1
        self.full = self.unacknowledged >= self._writes_max

    def close_epoch(self) -> Epoch | None:
        """Close the current epoch if it has writes: the one whose barrier is to be sent now."""
        epoch = self.current
        if not epoch.writes:
            return None
        self.closed.append(epoch)
        self.current = Epoch(self._take_number())
        return epoch

    def wait_stable(self, done: Callable[[bool], None]) -> bool:
        """Call done(True) when every write in the log is stable at the peer, done(False) when the
        connection was lost before. False returned: nothing to wait for, `done` is not called.
        The current epoch must have been closed."""
        if not self.closed:
            return False
        self.closed[-1].waiters.append(done)
        return True

    def acknowledged(self, number: int, count: int) -> Epoch:
        """The oldest epoch is stable at the peer. Raises LogMismatch, and leaves the log as it was."""
        if not self.closed:
            raise LogMismatch(f"barrier ack {number} but no barrier is outstanding")
        epoch = self.closed[0]
        if epoch.number != number or len(epoch.writes) != count:
            raise LogMismatch(
                f"barrier ack for epoch {number} with {count} writes, "
                f"expected epoch {epoch.number} with {len(epoch.writes)}"
            )
        early = next((w for w in epoch.writes if w.block_id in self.by_id), None)
        if early is not None:
            raise LogMismatch(f"barrier ack {number} before the ack of sector {early.sector}")
        self.unacknowledged -= count
        self.full = self.unacknowledged >= self._writes_max
        return self.closed.popleft()

    def oldest_wait(self) -> float | None:
        """When the oldest write in the log was sent; None when the log is empty."""
        epoch = self.closed[0] if self.closed else self.current
        return epoch.opened if epoch.writes else None

    def clear(self) -> list[Epoch]:
        """The connection is gone: all epochs, oldest first; the log is empty afterwards."""
        epochs = [*self.closed, self.current]
        self.closed.clear()
        self.by_id.clear()
        self.unacknowledged = 0
        self.full = False
        self.current = Epoch(self._take_number())
        return epochs
