"""The inner loop: sockets whose every message counts, handled without an event loop's machinery.

An event loop charges for each message: handles, protocols looked up, turns. Here an epoll of its own
leads from the kernel to the code that receives. TurnLoop decides when this runs and when the
outer loop does (runtime/turns.py); a Transport is driven like one of asyncio's with a
BufferedProtocol, so that the same code can be served by either.

Rules:
1. All is called on the thread that leads the loop; only soon_threadsafe() by others.
2. No callback comes from inside the call that it is an answer to.
3. Nothing blocks but poll(), which has an end.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import Any, Final, Protocol

from replicator.runtime.calls import Calls
from replicator.runtime.syscalls import receive, send

Buffer = bytes | bytearray | memoryview
Action = Callable[[], None]

LINGER: Final = 0.01
"""Seconds that the inner loop waits for the next event before the outer one sleeps; and about what a
timer may be late while the inner loop is busy. Not less: a short time-out of each wait makes the kernel
set a timer of the processor each time, which costs a virtual machine more than all that is saved here."""

NEVER: Final = float("inf")

EVENTS_MAX: Final = 64
READS_MAX: Final = 8
"""Receives in a row from one socket that fills every buffer; then the others have their turn."""

PARTS_MAX: Final = 1024
"""Buffers that one system call takes (IOV_MAX)."""

WRITE_HIGH: Final = 64 * 1024

AGAIN: Final = -errno.EAGAIN
"""What the system answers when it has nothing, or no room."""


class Driven(Protocol):
    """What receives from a Transport: the part of asyncio.BufferedProtocol that is used."""

    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class Ends(IntEnum):
    """Why lead() has returned."""

    TURN = 1
    """The outer loop needs a turn."""
    SLEEP = 2
    """Nothing is going on: the outer loop may sleep."""
    LOST = 3
    """Another thread leads now."""


class InnerLoop:
    """calls: made between two turns. outer: readable when the outer loop has something to do.
    leave: make it return, when it runs. failed(error): a callback has raised.
    fd: readable when poll() would have something."""

    def __init__(
        self,
        calls: Calls,
        outer: int,
        leave: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.outer_runs = True
        """The outer loop has to be left before anything happens here. Set by TurnLoop."""
        self.outer_due = False
        """The outer loop has something to do."""
        self.outer_at = 0.0
        """When the outer loop gets its next turn at the latest; time of time.monotonic()."""
        self.timer_at = NEVER
        """The next of the timers set lately."""
        self.actions: deque[Action] = deque()
        self._calls = calls
        self._outer = outer
        self._watches_outer = False
        self._leave = leave
        self._failed = failed
        self._transports: dict[int, Transport] = {}
        self._from_threads: deque[Action] = deque()
        self._sleeps = True
        """Whether another thread has to wake this loop. Only wrong in the harmless direction."""
        self._closed = False
        self._lock = threading.Lock()
        """So that nobody wakes by a descriptor that has become another's."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self.fd = self._epoll.fileno()

    def close(self) -> None:
        with self._lock:
            self._closed = self._sleeps = True
            self._epoll.close()
            os.close(self._wake)

    def soon(self, action: Action) -> None:
        """Run `action` in a moment, behind all that has been asked for before."""
        self.actions.append(action)
        if self.outer_runs:
            self._leave()

    def soon_threadsafe(self, action: Action) -> None:
        """The same from any thread. Raises RuntimeError once the loop has been closed."""
        self._from_threads.append(action)
        # Who is about to sleep sets this first, and then looks what is there.
        if self._sleeps:
            self._sleeps = False
            with self._lock:
                if self._closed:
                    raise RuntimeError("the loop is closed")
                os.eventfd_write(self._wake, 1)

    def between_turns(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """See TurnLoop.between_turns()."""
        self._calls.waiting.append((call, then))
        if self.outer_runs:
            self._leave()

    def lead(self, leader: int) -> Ends:
        """Turn after turn, with the calls between them, until something else has to be done."""
        calls = self._calls.waiting
        while True:
            self.act()
            if calls and not self._make_calls(leader):
                return Ends.LOST
            self.act()
            now = time.monotonic()
            if self.outer_due or now >= self.outer_at or now >= self.timer_at:
                return Ends.TURN
            if calls:
                self.poll(0.0)
            elif not self.poll(min(LINGER, self.timer_at - now)) and self._may_sleep():
                return Ends.SLEEP

    def _make_calls(self, leader: int) -> bool:
        """The calls that wait. False: one took so long that another thread leads now."""
        calls = self._calls
        while calls.waiting:
            call, then = calls.waiting.popleft()
            calls.begin()
            result = call()
            if not calls.end(leader):
                try:
                    self.soon_threadsafe(partial(then, result))
                except RuntimeError:
                    pass  # the loop has been closed, nobody is left to be told
                return False
            try:
                then(result)
            except Exception as error:
                self._failed(error)
        return True

    def act(self) -> None:
        """Run what is waiting now; what that adds comes with the next call."""
        actions = self.actions
        for _ in range(len(actions)):
            action = actions.popleft()
            try:
                action()
            except Exception as error:
                self._failed(error)

    def poll(self, seconds: float) -> bool:
        """Wait at most so long for events, handle them. False: there were none."""
        if self.actions:
            seconds = 0.0
        elif seconds:
            self._sleeps = True
            if self._from_threads:
                seconds = 0.0
        events = self._epoll.poll(seconds, EVENTS_MAX)
        self._sleeps = False
        self._take_from_threads()
        for fd, mask in events:
            if fd == self._outer:
                self.outer_due = True
            elif fd == self._wake:
                os.eventfd_read(self._wake)
            else:
                # None: closed by what was handled before it.
                transport = self._transports.get(fd)
                if transport is not None:
                    try:
                        transport.ready(mask)
                    except Exception as error:
                        self._failed(error)
        return bool(events)

    def _may_sleep(self) -> bool:
        """Before the outer loop waits: from here on threads have to wake this one. False: it must not
        wait, something has come meanwhile."""
        self._sleeps = True
        return not (self._from_threads or self.actions)

    def _take_from_threads(self) -> None:
        waiting = self._from_threads
        for _ in range(len(waiting)):
            self.actions.append(waiting.popleft())

    def watch_outer(self, watch: bool) -> None:
        """Whether poll() ends when the outer loop has something to do."""
        if watch and not self._watches_outer:
            self._epoll.register(self._outer, select.EPOLLIN)
        elif self._watches_outer and not watch:
            self._epoll.unregister(self._outer)
        self._watches_outer = watch

    def watch(self, fd: int, transport: Transport, was: int, mask: int) -> None:
        """Wait for other events of a transport than before; 0: for none."""
        if not mask:
            self._epoll.unregister(fd)
            del self._transports[fd]
        elif was:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._transports[fd] = transport


class Transport:
    """A connected stream socket, which it owns. Behaves like asyncio's transports."""

    def __init__(self, inner: InnerLoop, connected: socket.socket, driven: Driven) -> None:
        self._inner = inner
        self._socket = connected
        self._fd = connected.fileno()
        self._driven = driven
        self._mask = 0
        self._reading = True
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._high = WRITE_HIGH
        self._low = WRITE_HIGH // 4
        self._paused = False
        """The protocol has been told to write no more."""
        self._eof_due = False
        self._peer_ended = False
        """All that the peer has sent has been received."""
        self._closing = False
        self._ended = False

    def start(self) -> None:
        """Begin to read. Apart from the constructor, so that the protocol can be told first."""
        self._update()

    # asyncio's names.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._socket
        try:
            if name == "sockname":
                return self._socket.getsockname()
            if name == "peername":
                return self._socket.getpeername()
        except OSError:
            pass
        return default

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._update()

    def resume_reading(self) -> None:
        self._reading = not self._peer_ended
        self._update()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = WRITE_HIGH if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def write(self, data: Buffer) -> None:
        if self._closing or self._eof_due:
            return
        count = 0
        if not self._unsent_bytes:
            count = send(self._fd, data)
            if count == len(data):
                return
            if count < 0:
                if count != AGAIN:
                    self._failed(count)
                    return
                count = 0
        self._keep(data, count)
        self._wait_to_send()

    def writelines(self, parts: Sequence[Buffer]) -> None:
        if len(parts) > PARTS_MAX:
            parts = [b"".join(parts)]
        if self._closing or self._eof_due or not parts:
            return
        count = 0
        if not self._unsent_bytes:
            try:
                count = self._socket.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError as error:
                self._end(error)
                return
        for part in parts:
            if count >= len(part):
                count -= len(part)
            else:
                self._keep(part, count)
                count = 0
        self._wait_to_send()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End of stream for the peer, once all is sent."""
        if self._closing or self._eof_due:
            return
        self._eof_due = True
        if not self._unsent_bytes:
            self._say_eof()

    def close(self) -> None:
        """Send what is left, then end."""
        if self._closing:
            return
        if self._unsent_bytes:
            self._closing = True
            self._update()
        else:
            self._end(None)

    def abort(self) -> None:
        self._end(None)

    # The inner loop's side.

    def ready(self, mask: int) -> None:
        if self._unsent_bytes:
            self._send_more()
        if mask & ~select.EPOLLOUT:
            self._receive()

    def _receive(self) -> None:
        driven = self._driven
        for _ in range(READS_MAX):
            if not self._reading or self._closing or self._ended:
                return
            space = driven.get_buffer(-1)
            count = receive(self._fd, space)
            if count < 0:
                if count != AGAIN:
                    self._failed(count)
                return
            if count == 0:
                self._peer_ended = True
                self._reading = False
                self._update()
                if not driven.eof_received():
                    self.close()
                return
            full = count == len(space)
            driven.buffer_updated(count)
            if not full:
                return

    def _send_more(self) -> None:
        unsent = self._unsent
        while unsent and not self._ended:
            first = unsent[0]
            count = send(self._fd, first)
            if count < 0:
                if count != AGAIN:
                    self._failed(count)
                return
            self._unsent_bytes -= count
            if count < len(first):
                unsent[0] = first[count:]
                break
            unsent.popleft()
        if self._paused and self._unsent_bytes <= self._low and not self._closing:
            self._paused = False
            self._driven.resume_writing()
        if self._unsent_bytes or self._ended:
            return
        if self._closing:
            self._end(None)
            return
        self._update()
        if self._eof_due:
            self._say_eof()

    def _keep(self, data: Buffer, start: int) -> None:
        rest = memoryview(data)[start:]
        self._unsent.append(rest)
        self._unsent_bytes += len(rest)

    def _wait_to_send(self) -> None:
        if not self._unsent_bytes:
            return
        self._update()
        if self._unsent_bytes > self._high and not self._paused:
            self._paused = True
            self._driven.pause_writing()

    def _say_eof(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._end(error)

    def _update(self) -> None:
        """Make the kernel's interest what it should be. None at all is no entry: an end of the
        connection is always reported, and would be again and again."""
        mask = 0
        if not self._ended:
            if self._reading and not self._closing:
                mask = select.EPOLLIN
            if self._unsent_bytes:
                mask |= select.EPOLLOUT
        if mask != self._mask:
            self._inner.watch(self._fd, self, self._mask, mask)
            self._mask = mask

    def _failed(self, code: int) -> None:
        """code: -errno."""
        self._end(OSError(-code, os.strerror(-code)))

    def _end(self, error: OSError | None) -> None:
        if self._ended:
            return
        self._closing = self._ended = True
        self._unsent.clear()
        self._unsent_bytes = 0
        self._update()
        self._inner.soon(lambda: self._lost(error))

    def _lost(self, error: OSError | None) -> None:
        self._socket.close()
        self._driven.connection_lost(error)
