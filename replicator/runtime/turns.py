"""TurnLoop: an event loop that makes short blocking calls between two of its turns, and never waits
for one that turns out to be long.

A write to the page cache takes 3 us; to hand it to a thread and to hear back costs ten times as much.
But now and then such a write takes seconds (throttling, a journal that commits to a stalled disk),
and nobody can tell beforehand. So the calls are made on the loop's thread, while the loop itself is
not running: if one takes longer than PATIENCE, a second thread goes on with the loop, and the first
one only finishes its call.

Rules:
1. The loop runs on one thread at a time: who leads is settled under a lock.
2. What a call leads to (`then`) runs in the loop, whoever leads it by then.
3. Between two turns nothing else touches the loop, so code that runs in it needs no locks.
4. Knows nothing of disks.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

PATIENCE = 0.02
"""Seconds that a call may hold up the loop before another thread takes the loop over."""

LOOK_SECONDS = 0.01
IDLE_LOOKS = 20
"""Without a call during so many looks the watching thread sleeps until the next one."""


class TurnLoop(uvloop.Loop):
    """Use run_turns() in place of asyncio.run(). Signals are not handled: the loop's thread is never
    the main one, whose signal machinery would make each turn dear."""

    def __init__(self) -> None:
        super().__init__()
        self.taking_turns = False
        """Whether between_turns() may be called."""
        self.takeovers = 0
        """How often a call took too long."""
        self._lock = threading.Lock()
        self._leader = 0
        self._began: float | None = None
        self._calls_made = 0
        self._parked = False
        self._unpark = threading.Event()
        self._calls: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self._ended = threading.Event()
        self._broken: BaseException | None = None
        """What ended the loop itself, not a callback in it: SystemExit and the like."""

    def between_turns(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """On the loop: run `call` when this turn is over, and then(its result) in a later turn.
        `call` runs outside the loop, and should do nothing but block; it must not raise."""
        self._calls.append((call, then))
        self.stop()

    def run_turns(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` on threads of the loop's own until it has ended; then close the loop. Returns or
        raises what it did. The calling thread only waits, and can receive signals meanwhile."""
        outcome: asyncio.Task[T] = self.create_task(main)
        outcome.add_done_callback(lambda _task: self._end())
        self.taking_turns = True
        self._start_thread("loop", self._lead, self._leader)
        self._start_thread("loop-watch", self._watch)
        self._ended.wait()
        if self._broken is not None:
            raise self._broken
        return outcome.result()

    def _start_thread(self, name: str, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, name=name, daemon=True).start()

    def _end(self) -> None:
        self.taking_turns = False
        self.stop()

    # Leading.

    def _lead(self, leader: int) -> None:
        """Turn after turn, with the calls between them; until the end, or until a call took so long
        that another thread leads."""
        while self.taking_turns:
            while self._calls:
                call, then = self._calls.popleft()
                self._call_begins()
                result = call()
                if not self._still_leads(leader):
                    # RuntimeError: the loop has been closed, nobody is left to be told.
                    with contextlib.suppress(RuntimeError):
                        self.call_soon_threadsafe(then, result)
                    return
                self.call_soon(then, result)
            try:
                self.run_forever()
            except BaseException as error:
                self._broken = error
                break
        self._finish()

    def _call_begins(self) -> None:
        self._calls_made += 1
        self._began = time.monotonic()
        # After _began: _watch looks at them in the opposite order before it sleeps.
        if self._parked:
            self._unpark.set()

    def _still_leads(self, leader: int) -> bool:
        with self._lock:
            if self._leader != leader:
                return False
            self._began = None
            return True

    def _finish(self) -> None:
        try:
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            self.run_until_complete(_ends(left))
            self.run_until_complete(self.shutdown_asyncgens())
            self.run_until_complete(self.shutdown_default_executor())
            self.close()
        finally:
            self._unpark.set()
            self._ended.set()

    # Watching.

    def _watch(self) -> None:
        """Take the loop over from a leader who is stuck in a call."""
        looks, seen = 0, 0
        while not self._ended.is_set():
            if looks > IDLE_LOOKS:
                self._sleep()
            time.sleep(LOOK_SECONDS)
            looks = looks + 1 if self._calls_made == seen else 0
            seen = self._calls_made
            if (leader := self._take_over()) is not None:
                self._start_thread("loop-watch", self._watch)
                self._lead(leader)
                return

    def _sleep(self) -> None:
        self._unpark.clear()
        self._parked = True
        if self._began is None and not self._ended.is_set():
            self._unpark.wait()
        self._parked = False

    def _take_over(self) -> int | None:
        """The number of the new leader, if there has to be one."""
        with self._lock:
            began = self._began
            if began is None or time.monotonic() - began < PATIENCE:
                return None
            self._leader += 1
            self._began = None
            self.takeovers += 1
            return self._leader


async def _ends(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
