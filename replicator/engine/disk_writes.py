"""Writes that a disk has not answered yet, whoever asked for them and whatever became of their purpose.

A resync that is broken off leaves writes on their way to the disk, and so does a connection that
ends. The next resync, in whichever direction, may not flush before they have arrived: both sides
take what is there afterwards for stable.
Rules: one waiter at a time, the last one counts; a disk that answers nothing more is waited for as
long as it is in use (disk-timeout ends that).
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.engine.ports import Disk


class DiskWrites:
    """The account; by disk, because one that hangs may have been given up for another."""

    def __init__(self) -> None:
        self._open: dict[Disk | None, int] = {}
        self._waiting: tuple[Disk, Callable[[], None]] | None = None

    def begin(self, disk: Disk | None, count: int = 1) -> None:
        """None: the disk has been given up already."""
        self._open[disk] = self._open.get(disk, 0) + count

    def end(self, disk: Disk | None) -> None:
        if left := self._open.pop(disk) - 1:
            self._open[disk] = left
        elif self._waiting is not None and self._waiting[0] is disk:
            then, self._waiting = self._waiting[1], None
            then()

    def when_none(self, disk: Disk, then: Callable[[], None]) -> None:
        """Run `then` as soon as `disk` has answered all; at once if it has."""
        if disk in self._open:
            self._waiting = disk, then
        else:
            then()
