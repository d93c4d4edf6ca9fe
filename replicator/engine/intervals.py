"""First-come, first-served locks on sector ranges of one volume.

What for: overlapping writes in flight, and resync reads and writes among them, must happen in one
order on both nodes. Disjoint ranges never meet.
What this file must not know: what is done under a lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BUCKET_SHIFT: Final = 8
"""Ranges are filed under every 128 KiB bucket (2^8 sectors) that they touch."""


class Hold:
    """A place in the queue for [start, end) sectors; `blocked_by` earlier holds still overlap it."""

    __slots__ = ("blocked_by", "end", "go", "start", "waiters")

    def __init__(self, start: int, end: int, go: Callable[[], None]) -> None:
        self.start = start
        self.end = end
        self.go = go
        self.blocked_by = 0
        self.waiters: list[Hold] = []

    @property
    def granted(self) -> bool:
        return self.blocked_by == 0


def _nobody_waits() -> None:
    """`go` of a hold that was granted at once."""


class IntervalLocks:
    """Grants overlapping ranges in the order in which they were asked for."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[Hold]] = {}
        self.count = 0

    def acquire(self, start: int, end: int, go: Callable[[], None]) -> Hold:
        """Ask for sectors [start, end). If the result is `granted` the caller goes on by itself and
        `go` is never called; else `go` is called when the last earlier overlapping hold is released."""
        hold = Hold(start, end, go)
        self.count += 1
        buckets = self._buckets
        first, last = start >> BUCKET_SHIFT, (end - 1) >> BUCKET_SHIFT
        if first == last:
            held = buckets.get(first)
            if held is None:
                buckets[first] = [hold]
                return hold
            for other in held:
                if other.start < end and start < other.end:
                    other.waiters.append(hold)
                    hold.blocked_by += 1
            held.append(hold)
            return hold
        blockers: set[Hold] = set()
        for bucket in range(first, last + 1):
            held = buckets.setdefault(bucket, [])
            blockers.update(h for h in held if h.start < end and start < h.end)
            held.append(hold)
        for other in blockers:
            other.waiters.append(hold)
        hold.blocked_by = len(blockers)
        return hold

    def take_free(self, start: int, end: int) -> Hold | None:
        """The common case of acquire(): sectors [start, end) within one bucket that nobody holds any
        of; else None, and nothing has happened."""
        bucket = start >> BUCKET_SHIFT
        if (end - 1) >> BUCKET_SHIFT != bucket:
            return None
        held = self._buckets.get(bucket)
        if held is None:
            self._buckets[bucket] = [hold := Hold(start, end, _nobody_waits)]
        else:
            for other in held:
                if other.start < end and start < other.end:
                    return None
            held.append(hold := Hold(start, end, _nobody_waits))
        self.count += 1
        return hold

    def release(self, hold: Hold) -> None:
        """Give the range back; those who waited for nothing else are called."""
        self.count -= 1
        buckets = self._buckets
        for bucket in range(hold.start >> BUCKET_SHIFT, ((hold.end - 1) >> BUCKET_SHIFT) + 1):
            held = buckets[bucket]
            if len(held) == 1:
                del buckets[bucket]
            else:
                held.remove(hold)
        for waiter in hold.waiters:
            waiter.blocked_by -= 1
            if waiter.blocked_by == 0:
                waiter.go()
