"""A client of the NBD export that keeps many random requests in flight and keeps the journal of them.

It survives the death of the server: what is unanswered then stays unanswered in the journal. Any
failed request before `server_ends` was set is an error of the server.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import nbd

from tests.integration.crash_journal import SECTOR, Journal, Write

EXTENT_SECTORS = (4 << 20) // SECTOR
"""What one entry of the activity log covers."""
HOT_SECTORS = 2048
LARGE_SECTORS = 2560
"""More than the 1 MiB that one packet carries."""
POLL_MS = 20


class ClientError(AssertionError):
    """The server failed a request, or did not answer."""


class CrashClient:
    """journal: where its requests are recorded; rng: decides about them; depth: requests in flight.

    Requests go to a few extents only, so that the activity log of the node does not cover all.
    """

    def __init__(
        self, socket: Path, journal: Journal, rng: random.Random, server_ends: Event | None = None
    ) -> None:
        self.journal = journal
        self.depth = rng.choice((1, 4, 8, 16, 16, 32))
        self.broken = False
        self._rng = rng
        self._server_ends = server_ends or Event()
        self._failures: list[str] = []
        self._sent: dict[int, object] = {}
        self._serial = 0
        self._sectors = len(journal.before) // SECTOR
        extents = max(1, self._sectors // EXTENT_SECTORS)
        self._extents = rng.sample(range(extents), min(extents, rng.choice((1, 2, 3, 5))))
        self._handle = nbd.NBD()
        self._handle.set_export_name("0")
        self._handle.connect_unix(str(socket))

    def run(self, enough: Callable[[], bool], seconds: float = 20, pause: float = 0) -> None:
        """Send requests until `enough()` or the server is gone, then wait for what is in flight;
        `pause`: seconds to wait after each round of requests. Raises ClientError."""
        end = time.monotonic() + seconds
        try:
            while not enough():
                while len(self._sent) < self.depth:
                    self._send_something()
                self._handle.poll(POLL_MS)
                self._check(end)
                if pause:
                    time.sleep(pause)
            self.drain(end)
        except nbd.Error as error:
            self._lost(error)

    def drain(self, end: float) -> None:
        """Wait for all answers, at most until `end` of the monotonic clock."""
        while self._sent:
            self._handle.poll(POLL_MS)
            self._check(end)

    def finish(self, seconds: float = 20) -> None:
        """Flush, one last write of a sector after that, and leave. Raises ClientError."""
        end = time.monotonic() + seconds
        try:
            self.drain(end)
            self._flush()
            self.drain(end)
            self.last = self.journal.write(0, 1)
            self._send_write(self.last, fua=False)
            self.drain(end)
            self._handle.shutdown()
        except nbd.Error as error:
            self._lost(error)
            raise ClientError(f"the server is gone: {error}") from None

    def _lost(self, error: nbd.Error) -> None:
        self.broken = True
        if not self._server_ends.is_set():
            raise ClientError(f"the connection broke although nobody was killed: {error}")

    def _check(self, end: float) -> None:
        if self._failures:
            raise ClientError("; ".join(self._failures[:3]))
        if time.monotonic() > end:
            raise ClientError(f"{len(self._sent)} requests are unanswered for too long")

    # ---- requests

    def _send_something(self) -> None:
        rng = self._rng
        kind = rng.random()
        if kind < 0.04:
            self._flush()
            return
        first, count = self._place()
        if kind < 0.90:
            self._send_write(self.journal.write(first, count), fua=rng.random() < 0.05)
        else:
            self._send_zero(self.journal.write(first, count, data=False), trim=kind > 0.95)

    def _place(self) -> tuple[int, int]:
        """(first sector, sectors): anywhere in a few extents, or crowded in a MiB to overlap."""
        rng = self._rng
        size = rng.random()
        count = 8
        if size < 0.25:
            count = rng.randint(1, 64)
        elif size > 0.995:
            count = LARGE_SECTORS
        start = rng.choice(self._extents) * EXTENT_SECTORS
        room = HOT_SECTORS if rng.random() < 0.4 else EXTENT_SECTORS
        first = start + rng.randrange(room)
        if rng.random() < 0.7:
            first &= ~7
        first = max(1, min(first, self._sectors - count))
        return first, count

    def _send_write(self, write: Write, *, fua: bool) -> None:
        buffer = nbd.Buffer.from_bytearray(bytearray(write.payload()))
        done = self._done(buffer, lambda: self.journal.answered(write, fua=fua), f"{write}")
        flags = nbd.CMD_FLAG_FUA if fua else 0
        self._handle.aio_pwrite(buffer, write.first * SECTOR, done, flags)

    def _send_zero(self, write: Write, *, trim: bool) -> None:
        done = self._done(None, lambda: self.journal.answered(write), f"{write}")
        send = self._handle.aio_trim if trim else self._handle.aio_zero
        send(write.count * SECTOR, write.first * SECTOR, done)

    def _flush(self) -> None:
        sent = self.journal.now()
        self._handle.aio_flush(self._done(None, lambda: self.journal.flushed(sent), "flush"))

    def _done(
        self, buffer: object, succeeded: Callable[[], None], what: str
    ) -> Callable[[Any], int]:
        """The completion callback of one request, which keeps its buffer until then."""
        self._serial += 1
        serial = self._serial
        self._sent[serial] = buffer

        def done(error: Any) -> int:
            self._sent.pop(serial, None)
            if error.value == 0:
                succeeded()
            elif not self._server_ends.is_set():
                self._failures.append(f"{what}: errno {error.value}")
            return 1

        return done
