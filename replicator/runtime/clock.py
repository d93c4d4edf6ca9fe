"""The Clock and Entropy ports: the loop's monotonic time and the system's randomness."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class LoopClock:
    """Timers of an event loop. Seconds, monotonic."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, seconds), action)

    def call_soon(self, action: Callable[[], None]) -> asyncio.Handle:
        return self._loop.call_soon(action)


class SystemEntropy:
    """Random bytes of the operating system, fit for generation UUIDs and challenges."""

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)
