"""Short blocking calls that the thread which leads a loop makes between two turns, and who leads.

Rules: one call at a time; who finds that a call takes too long takes the lead over, under the lock,
and the thread that is stuck in it leads no more. Knows no loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Call = tuple[Callable[[], Any], Callable[[Any], None]]
"""What blocks, and what its result is for."""


class Calls:
    """wake_watch: called when a call begins while `watch_sleeps`."""

    def __init__(self, wake_watch: Callable[[], None]) -> None:
        self.waiting: deque[Call] = deque()
        self.made = 0
        self.watch_sleeps = False
        self._wake_watch = wake_watch
        self._lock = threading.Lock()
        self._leader = 0
        self._began = 0.0
        """When the call began that is under way; 0: none is."""

    @property
    def under_way(self) -> bool:
        return self._began > 0

    def begin(self) -> None:
        self.made += 1
        self._began = time.monotonic()
        # After _began: who watches looks at them in the opposite order before it sleeps.
        if self.watch_sleeps:
            self._wake_watch()

    def end(self, leader: int) -> bool:
        """False: this leader has been replaced meanwhile."""
        with self._lock:
            if self._leader != leader:
                return False
            self._began = 0.0
            return True

    def take_over(self, patience: float) -> int:
        """The number of the new leader, if a call has taken longer than `patience` seconds; else 0."""
        with self._lock:
            if not self._began or time.monotonic() - self._began < patience:
                return 0
            self._leader += 1
            self._began = 0.0
            return self._leader
