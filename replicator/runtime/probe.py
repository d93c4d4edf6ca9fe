"""A series of timed steps on a running resource, for `replicator bench`.

Rules: one step at a time, bounded in number and in time; the series ends also if a step never does.
Applications go on meanwhile. What a step is only the engine knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from replicator.errors import DaemonError, ReplicatorError, StateRefused, UsageError

COUNT_MAX = 10_000
SECONDS_MAX = 20.0
GRACE_SECONDS = 10.0
"""For the last step."""

Begun = Callable[[], None]
Ended = Callable[[ReplicatorError | None], None]
Step = Callable[[Begun, Ended], None]
Finish = Callable[[list[float] | None, ReplicatorError | None], None]


def check_bounds(count: int, seconds: float) -> None:
    """Raises UsageError."""
    if not (1 <= count <= COUNT_MAX and 0 < seconds <= SECONDS_MAX):
        raise UsageError(
            f"expected 1 to {COUNT_MAX} steps within at most {SECONDS_MAX:g} s, "
            f"found {count} within {seconds:g} s"
        )


class Series:
    """Does `step` again and again until there are `count` or `seconds` are over; then calls
    finish(seconds that each took, None), or finish(None, error) at the first that fails."""

    def __init__(self, step: Step, count: int, seconds: float, finish: Finish) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._step = step
        self._count = count
        self._finish = finish
        self._times: list[float] = []
        self._since = 0.0
        self._until = time.perf_counter() + seconds
        self._over = False
        self._timer = loop.call_later(seconds + GRACE_SECONDS, self._late)
        loop.call_soon(self._next)

    def interrupt(self, reason: str) -> None:
        """End it with the step that is under way. Harmless if it is over."""
        self._end(None, StateRefused(reason))

    def _next(self) -> None:
        if self._over:
            return
        try:
            self._step(self._begun, self._ended)
        except ReplicatorError as error:
            self._end(None, error)

    def _begun(self) -> None:
        self._since = time.perf_counter()

    def _ended(self, error: ReplicatorError | None) -> None:
        now = time.perf_counter()
        if self._over:
            return
        if error is not None:
            self._end(None, error)
            return
        self._times.append(now - self._since)
        if len(self._times) >= self._count or now > self._until:
            self._end(self._times, None)
        else:
            self._loop.call_soon(self._next)

    @property
    def over(self) -> bool:
        return self._over

    def _late(self) -> None:
        self._end(None, DaemonError(f"a step has not ended within {GRACE_SECONDS:g} s"))

    def _end(self, times: list[float] | None, error: ReplicatorError | None) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._finish(times, error)
