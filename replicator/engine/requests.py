"""One application write on its way to the local disk and to the peer.

Life (design: "The life of a write"): active extents, interval lock, both copies in parallel,
complete to the application, barrier acknowledged, done. The two outcomes are kept apart because
completion needs one of them and being done needs both.
What this file must not know: how a write travels; it only keeps the account.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from replicator.engine.activity_log import ActivityLog
    from replicator.engine.intervals import Hold
    from replicator.engine.transfer_log import Epoch
    from replicator.engine.volume import Volume

MAX_DATA: Final = 1 << 20
"""Largest write in one P_DATA, bytes (protocol 100 and newer)."""
MAX_ZERO: Final = 128 << 20
"""Largest range in one P_TRIM or P_ZEROES, bytes, where WSAME was agreed."""


class Kind(IntEnum):
    WRITE = 0
    TRIM = 1
    ZERO = 2
    ZERO_UNMAP = 3


class Part(IntEnum):
    """How far one of the two copies of a write is."""

    NONE = 0
    """Not sent there at all."""
    PENDING = 1
    OK = 2
    FAILED = 3


class Write:
    """A write of sectors [sector, sector + nsectors); `data` is empty for the zeroing kinds."""

    __slots__ = (
        "al",
        "block_id",
        "completed",
        "data",
        "done",
        "epoch",
        "errno",
        "held",
        "hold",
        "kind",
        "local",
        "marked",
        "net",
        "nsectors",
        "sector",
        "stream_end",
        "volume",
    )

    def __init__(
        self,
        volume: Volume,
        kind: Kind,
        sector: int,
        nsectors: int,
        data: bytes | memoryview,
        done: Callable[[int], None],
    ) -> None:
        self.volume = volume
        self.kind = kind
        self.sector = sector
        self.nsectors = nsectors
        self.data: bytes | memoryview = data
        self.done = done
        self.local = Part.NONE
        self.net = Part.NONE
        self.errno = 0
        self.epoch: Epoch | None = None
        """The epoch whose barrier is still unacknowledged; None when not (any more) in the log."""
        self.al: tuple[ActivityLog, int, int] | None = None
        """The log that names its extents, first and last of them: the disk may be exchanged."""
        self.hold: Hold | None = None
        self.block_id = 0
        self.stream_end = 0
        self.completed = False
        self.held = False
        """Its completion waits for a new generation."""
        self.marked = False
        """The peer has refused it, and it was marked then: only a resync can have cleared that."""


class Countdown:
    """Joins the parts of one thing: done(first errno) after `parts` completions."""

    __slots__ = ("_done", "_errno", "_left")

    def __init__(self, parts: int, done: Callable[[int], None]) -> None:
        self._left = parts
        self._done = done
        self._errno = 0

    def part_done(self, errno: int) -> None:
        self._errno = self._errno or errno
        self._left -= 1
        if not self._left:
            self._done(self._errno)
