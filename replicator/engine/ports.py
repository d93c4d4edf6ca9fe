"""The ports through which the engine meets the world: Disk, Channel, Network, Clock, Entropy, Log.

Rules:
1. The engine sees only these protocols; `replicator.runtime` adapts the real world to them, the
   simulator a pretend one.
2. No callback is ever called from inside the call that registered it: completions arrive later,
   from the event loop. So the engine never has to fear re-entrance.
3. All calls, both ways, happen on one thread: the loop's.
4. Sizes and offsets are bytes unless a name ends in _sectors (512 bytes) or _bits (4 KiB blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Buffer = bytes | bytearray | memoryview

Done = Callable[[int], None]
"""Completion of a disk call: 0, or an errno."""

ReadDone = Callable[[int, bytes], None]
"""Completion of a read: (0, the bytes, exactly as many as asked) or (errno, b"")."""


class Disk(Protocol):
    """A backing device or file with a volatile cache; offsets are relative to its start.

    Overlapping calls in flight have no order: whoever issues them waits in between.
    A buffer given to write() must not change until `done`.
    """

    size: int
    allocated: bool
    """All of its space was there when it was opened, which somebody may have seen to: a resync does
    not give any of it back."""

    def read(self, offset: int, length: int, done: ReadDone) -> None: ...

    def read_unless_hole(self, offset: int, length: int, done: ReadDone) -> None:
        """As read(), but (0, b"") where the disk can tell without reading that all of it is zero."""

    def write(self, offset: int, data: Buffer, done: Done) -> None:
        """Complete when a read would return the data; stable only after a later flush."""

    def write_durable(self, offset: int, data: Buffer, done: Done) -> None:
        """Pre-flush and FUA: when done, everything completed before this call is stable, then this
        block is. The block never becomes stable before what was completed earlier."""

    def flush(self, done: Done) -> None:
        """When done, every write that had completed before this call is stable."""

    def zero(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """The range reads as zeroes; with `unmap` its space may be given back."""

    def discard(self, offset: int, length: int, done: Done) -> None:
        """The range's content is no longer needed; it reads as zeroes where the disk can promise that."""


class ChannelEvents(Protocol):
    """What the owner of a channel is told. After `closed` nothing more is called."""

    def received(self, data: bytes) -> None: ...

    def space(self) -> memoryview | None:
        """Where the next bytes are to be received, if that is anywhere in particular; then the channel
        calls filled() with their number, in place of received()."""

    def filled(self, count: int) -> None: ...

    def sent(self, position: int) -> None:
        """The first `position` bytes ever queued have been taken by the operating system."""

    def closed(self, reason: str) -> None:
        """The connection ended, by either side or by an error; `reason` is for people."""


class Channel(Protocol):
    """One TCP connection, a byte stream each way."""

    events: ChannelEvents
    name: str
    """For people: both addresses, e.g. "10.0.0.2:7789 <- 10.0.0.3:41234"."""
    queued: int
    """Bytes ever given to send(): the position of the next byte."""

    @property
    def unsent(self) -> int:
        """Bytes queued that the operating system has not taken yet."""

    def send(self, data: Buffer) -> None:
        """Queue; everything queued within one loop iteration goes out in one system call."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        """Send what is queued as far as that is possible at once, then close. `closed` is not called."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, monotonic, from an arbitrary start."""

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer: ...

    def call_soon(self, action: Callable[[], None]) -> Timer: ...


class Network(Protocol):
    """How a resource reaches its peer. One listening address, one peer address."""

    def listen(self, accepted: Callable[[Channel], None], failed: Callable[[str], None]) -> None:
        """Accept connections until stop_listening(). `accepted` channels have no events set: the
        receiver sets `channel.events` before it returns. `failed` says why there is no listener."""

    def stop_listening(self) -> None: ...

    def dial(self, timeout: float, done: Callable[[Channel | None, str], None]) -> Timer:
        """Connect to the peer; `done(channel, "")` or `done(None, reason)`. cancel() gives up silently."""


class Entropy(Protocol):
    def random_bytes(self, count: int) -> bytes: ...


class Log(Protocol):
    def log(self, level: str, message: str) -> None:
        """level: "debug", "info", "warning" or "error"."""


class Handlers(Protocol):
    """The administrator's programs of the `handlers` section."""

    def call(self, event: str, volume: int | None, done: Callable[[int], None] | None) -> None:
        """Run the handler of that name if there is one: after those called before for the same
        purpose, for a bounded time. volume: None for the whole resource. done(exit status), 0 soon
        if there is none."""
