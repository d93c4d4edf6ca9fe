"""The signals that end a process, heard by an event loop that does not run in the main thread.

Python runs signal handlers in the main thread, between two of its instructions; a main thread that
is busy in foreign code (nbdkit's), or waits, never comes to that. But the C part of Python's handler
writes the signal's number to the wake-up descriptor at once, and that the loop can listen to.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class EndSignals:
    """Made in the main thread; from then on END_SIGNALS do not end the process by themselves."""

    def __init__(self) -> None:
        self._received, wakeup = socket.socketpair()
        self._received.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
        for number in END_SIGNALS:
            signal.signal(number, lambda number, frame: None)

    def listen(self, loop: asyncio.AbstractEventLoop, end: Callable[[], None]) -> None:
        """Call `end` on the loop for each of END_SIGNALS that comes, or has come since."""

        def heard() -> None:
            if any(number in END_SIGNALS for number in self._received.recv(64)):
                end()

        loop.add_reader(self._received, heard)
