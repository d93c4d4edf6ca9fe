"""TurnLoop: an event loop with an inner loop for what is busy, and with short blocking calls between
two turns; it never waits for one that turns out to be long.

The inner loop (runtime/inner.py) serves the sockets of clients and of the peer. While they are busy
it leads, and the outer loop, uvloop, which serves everything else, gets a turn when it has something to
do, and once in LINGER seconds. When nothing has come for LINGER seconds the outer loop sleeps.

A write to the page cache takes 3 us; to hand it to a thread and to hear back costs ten times as much.
But now and then such a write takes seconds (throttling, a journal that commits to a stalled disk),
and nobody can tell beforehand. So the calls are made on the loop's thread, while neither loop is
running: if one takes longer than PATIENCE, a second thread goes on with the loops, and the first
one only finishes its call.

Rules:
1. The loops run on one thread at a time: who leads is settled under a lock.
2. What a call leads to (`then`) runs in the loop, whoever leads it by then.
3. Between two turns nothing else touches the loops, so code that runs in them needs no locks.
4. Knows nothing of disks.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from replicator.runtime.calls import Calls
from replicator.runtime.inner import LINGER, NEVER, Ends, InnerLoop

T = TypeVar("T")

PATIENCE = 0.02
"""Seconds that a call may hold up the loop before another thread takes the loop over."""

LATE = 0.001
"""uvloop counts in milliseconds: what is due may have to wait for the next one."""

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
        self._unpark = threading.Event()
        self._calls = Calls(self._unpark.set)
        self._ended = threading.Event()
        self._leaving = False
        self.inner = InnerLoop(
            self._calls,
            self._get_backend_id(),  # type: ignore[attr-defined]
            self._leave_outer,
            self._callback_failed,
        )
        self.add_reader(self.inner.fd, self._leave_outer)
        self._broken: BaseException | None = None
        """What ended the loop itself, not a callback in it: SystemExit and the like."""

    def between_turns(self, call: Callable[[], T], then: Callable[[T], None]) -> None:
        """On the loop: run `call` when this turn is over, and then(its result) in a later turn.
        `call` runs outside the loop, and should do nothing but block; it must not raise."""
        self.inner.between_turns(call, then)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As ever; and the outer loop gets its turn at once."""
        self.inner.outer_due = True
        return super().call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As ever; and the outer loop gets its turn in time."""
        inner = self.inner
        inner.timer_at = min(inner.timer_at, time.monotonic() + delay + LATE)
        return super().call_later(delay, callback, *args, context=context)

    def run_turns(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` on threads of the loop's own until it has ended; then close the loop. Returns or
        raises what it did. The calling thread only waits, and can receive signals meanwhile."""
        outcome: asyncio.Task[T] = self.create_task(main)
        outcome.add_done_callback(lambda _task: self._end())
        self.taking_turns = True
        self._start_thread("loop", self._lead, 0)
        self._start_thread("loop-watch", self._watch)
        self._ended.wait()
        if self._broken is not None:
            raise self._broken
        return outcome.result()

    def _start_thread(self, name: str, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, name=name, daemon=True).start()

    def _end(self) -> None:
        self._leave_outer()
        self.taking_turns = False

    # Leading.

    def _lead(self, leader: int) -> None:
        """Turn after turn, with the calls between them; until the end, or until a call took so long
        that another thread leads."""
        try:
            asyncio._set_running_loop(self)
            self.remove_reader(self.inner.fd)
            self.inner.watch_outer(True)
            self.inner.outer_runs = self._leaving = False
            while self.taking_turns:
                why = self.inner.lead(leader)
                if why == Ends.LOST:
                    return
                if why == Ends.SLEEP:
                    self._sleep_outside()
                else:
                    self._turn_outside()
        except BaseException as error:
            self._broken = error
        finally:
            asyncio._set_running_loop(None)
        self._finish()

    def _turn_outside(self) -> None:
        """One turn of the outer loop, without waiting for anything."""
        inner = self.inner
        if time.monotonic() >= inner.timer_at:
            inner.timer_at = NEVER
        self._leave_outer()
        self._run_outer()
        inner.poll(0.0)

    def _sleep_outside(self) -> None:
        """The outer loop until there is something for the inner one. Each loop's descriptor can be
        waited for by the other, but not both at a time."""
        inner = self.inner
        inner.watch_outer(False)
        self.add_reader(inner.fd, self._leave_outer)
        self._run_outer()
        self.remove_reader(inner.fd)
        inner.watch_outer(True)

    def _run_outer(self) -> None:
        """The outer loop until it is left, with _leave_outer()."""
        inner = self.inner
        inner.outer_due = False
        inner.outer_runs = True
        asyncio._set_running_loop(None)
        try:
            self.run_forever()
        finally:
            asyncio._set_running_loop(self)
            inner.outer_runs = self._leaving = False
            inner.outer_at = time.monotonic() + LINGER

    def _leave_outer(self) -> None:
        """On the outer loop: there is something for the inner one."""
        if self._leaving:
            return
        self._leaving = True
        if self.taking_turns:
            self.stop()
        else:
            super().call_soon(self._serve_inner)

    def _serve_inner(self) -> None:
        """Before the first turn, and after the last: the outer loop does it."""
        self._leaving = False
        self.inner.poll(0.0)
        self.inner.act()
        if self.inner.actions:
            self._leave_outer()

    def _callback_failed(self, error: Exception) -> None:
        self.call_exception_handler({"message": "in a callback", "exception": error})

    def _finish(self) -> None:
        self.inner.watch_outer(False)
        self.add_reader(self.inner.fd, self._leave_outer)
        self.inner.outer_runs = True
        self._leaving = False
        try:
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            self.run_until_complete(_ends(left))
            self.run_until_complete(self.shutdown_asyncgens())
            self.run_until_complete(self.shutdown_default_executor())
            self.remove_reader(self.inner.fd)
            self.inner.close()
            self.close()
        finally:
            self._unpark.set()
            self._ended.set()

    # Watching.

    def _watch(self) -> None:
        """Take the loop over from a leader who is stuck in a call."""
        looks, seen = 0, 0
        calls = self._calls
        while not self._ended.is_set():
            if looks > IDLE_LOOKS:
                self._sleep()
            time.sleep(LOOK_SECONDS)
            looks = looks + 1 if calls.made == seen else 0
            seen = calls.made
            if leader := calls.take_over(PATIENCE):
                self.takeovers += 1
                self._start_thread("loop-watch", self._watch)
                self._lead(leader)
                return

    def _sleep(self) -> None:
        calls = self._calls
        self._unpark.clear()
        calls.watch_sleeps = True
        if not calls.under_way and not self._ended.is_set():
            self._unpark.wait()
        calls.watch_sleeps = False


def soon_on(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], object]:
    """call_soon of the loop; of a TurnLoop's inner one, where that costs least."""
    return loop.inner.soon if isinstance(loop, TurnLoop) else loop.call_soon


def soon_threadsafe_on(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], object]:
    """The same for call_soon_threadsafe."""
    return loop.inner.soon_threadsafe if isinstance(loop, TurnLoop) else loop.call_soon_threadsafe


async def _ends(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
