"""What a client has sent and nobody has looked at yet: one buffer of fixed size, and a second place
for large payloads, so that their bytes go where they belong as they arrive.

Rules: never more than BUFFER bytes are taken in before they are parsed; a payload gets its memory
when its request has been admitted. Nothing here knows what the bytes mean, and there is no I/O.
"""

from __future__ import annotations

BUFFER = 256 * 1024
ROOM = 64 * 1024
"""Free bytes below which a read is not worth its system call: then what is left moves to the front."""

LARGE = BUFFER // 2
"""A payload that is longer, and not here yet, is received into memory of its own."""

KEPT = 1 << 20
"""Payloads up to this length are received in memory that is used again, and then copied once."""


class Inbox:
    """bytes [start, end) of `buffer` have arrived and are not parsed yet.

    Large payload: begin_payload(); then get_space() is its place until take_payload() has it.
    """

    __slots__ = ("_filled", "_kept", "_payload", "_view", "buffer", "end", "start")

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER)
        self.start = 0
        self.end = 0
        self._view = memoryview(self.buffer)
        self._payload: memoryview | None = None
        self._filled = 0
        self._kept: memoryview | None = None

    def get_space(self) -> memoryview:
        """Where the next bytes go; never empty as long as what can be parsed has been."""
        if self._payload is not None:
            return self._payload[self._filled :]
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
        self._payload = self._kept = None
        self.start = self.end = 0

    def skip(self, count: int) -> int:
        """Drop up to `count` bytes of the buffer; returns how many there were."""
        count = min(count, self.end - self.start)
        self.start += count
        return count

    def begin_payload(self, length: int) -> None:
        """From here on bytes belong to a payload; its beginning may be in the buffer already."""
        if length > KEPT:
            payload = memoryview(bytearray(length))
        else:
            if self._kept is None:
                self._kept = memoryview(bytearray(KEPT))
            payload = self._kept[:length]
        here = min(self.end - self.start, length)
        payload[:here] = self._view[self.start : self.start + here]
        self.start += here
        self._payload = payload
        self._filled = here

    @property
    def awaits_payload(self) -> bool:
        return self._payload is not None

    def take_payload(self) -> bytes | memoryview | None:
        """The payload, once it is complete, else None. Nobody else uses its memory."""
        payload = self._payload
        if payload is None or self._filled < len(payload):
            return None
        self._payload = None
        return payload.tobytes() if len(payload) <= KEPT else payload

    def _to_front(self) -> None:
        left = self.end - self.start
        self._view[:left] = self._view[self.start : self.end]
        self.start, self.end = 0, left
