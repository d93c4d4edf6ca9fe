"""What a client has sent and nobody has looked at yet: one buffer of fixed size, and a second place
for large payloads, so that their bytes go where they belong as they arrive.

Rules: never more than BUFFER bytes are taken in before they are parsed; a payload gets its memory
when its request has been admitted. Nothing here knows what the bytes mean, and there is no I/O.
"""

from __future__ import annotations

from typing import Final

from protocol.lent import lend

BUFFER: Final = 256 * 1024
ROOM: Final = 64 * 1024
"""Free bytes below which a read is not worth its system call: then what is left moves to the front."""

LARGE: Final = BUFFER // 2
"""A payload that is longer, and not here yet, is received into memory of its own."""

PEEK: Final = 4096
"""Bytes received after those: one large write follows another, and only its header is wanted here."""


class Inbox:
    """bytes [start, end) of `buffer` have arrived and are not parsed yet.

    Large payload: begin_payload(); then get_space() is its place until take_payload() has it.
    """

    __slots__ = ("_after_payload", "_filled", "_payload", "_view", "buffer", "end", "start")

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER)
        self.start = 0
        self.end = 0
        self._view = memoryview(self.buffer)
        self._payload: memoryview | None = None
        self._filled = 0
        self._after_payload = False

    def get_space(self) -> memoryview:
        """Where the next bytes go; never empty as long as what can be parsed has been."""
        if self._payload is not None:
            return self._payload[self._filled :]
        if self._after_payload:
            self._after_payload = False
            return self._view[self.end : self.end + PEEK]
        if self.start == self.end:
            self.start = self.end = 0
        elif BUFFER - self.end < ROOM:
            self._to_front()
        return self._view[self.end :]

    @property
    def has_room(self) -> bool:
        """Whether more can be received before what is here has been parsed, without moving it."""
        return BUFFER - self.end >= ROOM

    def received(self, count: int) -> None:
        """`count` bytes have been put where get_space() said."""
        if self._payload is not None:
            self._filled += count
        else:
            self.end += count

    def take(self, start: int, length: int) -> bytes:
        """A copy of bytes of the buffer."""
        return self._view[start : start + length].tobytes()

    def drop(self) -> None:
        """Nothing more will come: give the memory back now, not when the garbage is collected."""
        self.buffer = bytearray()
        self._view = memoryview(self.buffer)
        self._payload = None
        self.start = self.end = 0

    def skip(self, count: int) -> int:
        """Drop up to `count` bytes of the buffer; returns how many there were."""
        count = min(count, self.end - self.start)
        self.start += count
        return count

    def begin_payload(self, length: int) -> None:
        """From here on bytes belong to a payload; its beginning may be in the buffer already."""
        payload = lend(length)
        here = min(self.end - self.start, length)
        payload[:here] = self._view[self.start : self.start + here]
        self.start += here
        self._payload = payload
        self._filled = here

    @property
    def awaits_payload(self) -> bool:
        return self._payload is not None

    def take_payload(self) -> memoryview | None:
        """The payload, once it is complete, else None. Nobody else uses its memory."""
        payload = self._payload
        if payload is None or self._filled < len(payload):
            return None
        self._payload = None
        self.start = self.end = 0
        self._after_payload = True
        return payload

    def _to_front(self) -> None:
        left = self.end - self.start
        self._view[:left] = self._view[self.start : self.end]
        self.start, self.end = 0, left
