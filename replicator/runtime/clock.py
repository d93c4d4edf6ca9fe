"""The Clock and Entropy ports: the loop's monotonic time and the system's randomness."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from replicator.runtime.turns import soon_on


class LoopClock:
    """Timers of an event loop. Seconds, monotonic."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._soon = soon_on(loop)

    def now(self) -> float:
        return self._loop.time()

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, seconds), action)

    def call_soon(self, action: Callable[[], None]) -> _Soon:
        soon = _Soon(action)
        self._soon(soon.run)
        return soon


class _Soon:
    """The Timer of what is to be done soon."""

    __slots__ = ("_action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self._action = None

    def run(self) -> None:
        if self._action is not None:
            self._action()


class SystemEntropy:
    """Random bytes of the operating system, fit for generation UUIDs and challenges."""

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)
