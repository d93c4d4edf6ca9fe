"""Single steps that show how long something takes and change no data: `replicator bench` times them.

A ping of the peer, and writing a block that is on the disk already once more.
Rules:
1. Nobody comes in between: the block is locked from before it is read until it is written, so that no
   application's write is ever undone.
2. Blocks are rewritten only on a Primary whose own copy is UpToDate: what is read there is what both
   copies have to hold. A mirrored rewrite is a write like any other from there on.
3. All within one extent, so that no other is pushed out of the activity log.
What this file must not know: what time it is; `begun` tells whoever measures.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO, errorcode
from functools import partial
from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine.activity_log import EXTENT_SHIFT
from replicator.engine.refusals import NEED_UP_TO_DATE
from replicator.engine.requests import Kind, Write
from replicator.engine.states import replicated
from replicator.errors import ReplicatorError, StateRefused, UsageError

if TYPE_CHECKING:
    from replicator.engine.volume import Volume

BLOCK = 4096
LINK = "link"
WRITE_HERE = "write-here"
WRITE = "write"
WRITE_FLUSH = "write-flush"
WRITES = (WRITE_HERE, WRITE, WRITE_FLUSH)
"""To this node's disk alone; as applications do; the same, and a flush."""

Begun = Callable[[], None]
Ended = Callable[[ReplicatorError | None], None]


def probe(volume: Volume, kind: str, begun: Begun, ended: Ended) -> None:
    """Do it once: begun() is called where the time begins to count, ended(error) at its end, never if
    the connection is lost under a ping. Raises StateRefused if it cannot be done now, UsageError
    for an unknown kind."""
    if kind == LINK:
        _ping(volume, begun, ended)
    elif kind in WRITES:
        _Rewrite(volume, kind, begun, ended).start()
    else:
        known = ", ".join((LINK, *WRITES))
        raise UsageError(f"nothing to measure is called '{kind}'", hint=f"Known: {known}")


def _ping(volume: Volume, begun: Begun, ended: Ended) -> None:
    link = volume.resource.link
    if link is None or volume.state.conn < Conn.Connected:
        raise StateRefused(f"{volume.name}: not connected to the peer")
    begun()
    link.ping(partial(ended, None))


class _Rewrite:
    """One block written once more."""

    def __init__(self, volume: Volume, kind: str, begun: Begun, ended: Ended) -> None:
        self._volume = volume
        self._kind = kind
        self._check()
        self._begun = begun
        self._ended = ended
        blocks = min(volume.size_sectors, 1 << EXTENT_SHIFT) * 512 // BLOCK
        number = int.from_bytes(volume.resource.entropy.random_bytes(4), "big") % blocks
        sectors = BLOCK // 512
        self._write = Write(volume, Kind.WRITE, number * sectors, sectors, b"", self._written)

    def _check(self) -> None:
        """Raises StateRefused: this cannot be done now."""
        volume, state = self._volume, self._volume.state
        if state.role is not Role.Primary:
            raise StateRefused(
                f"{volume.name}: only a Primary writes, this node is {state.role.name}",
                hint="Measure writes on the Primary; elsewhere leave out --write.",
            )
        if state.disk is not Disk.UpToDate or volume.data_disk is None:
            raise StateRefused(
                f"{volume.name}: needs an UpToDate disk here, found {state.disk.name}",
                code=NEED_UP_TO_DATE,
            )
        if state.suspended:
            raise StateRefused(f"{volume.name}: I/O is suspended")
        if self._kind != WRITE_HERE and replicated(state.conn, state.pdsk) != "data":
            # It would be written here only, and marked for a resync.
            raise StateRefused(f"{volume.name}: writes are not mirrored now ({state.conn.name})")

    def start(self) -> None:
        write, locks = self._write, self._volume.locks
        write.hold = locks.acquire(write.sector, write.sector + write.nsectors, self._read)
        if write.hold.granted:
            self._read()

    def _read(self) -> None:
        disk = self._volume.data_disk
        if disk is None:
            self._end(EIO)
        else:
            disk.read(self._write.sector << 9, BLOCK, self._loaded)

    def _loaded(self, errno: int, data: bytes) -> None:
        try:
            self._check()  # it may have changed during the read
        except StateRefused as refusal:
            self._release()
            self._ended(refusal)
            return
        if errno:
            self._end(errno)
            return
        self._begun()
        if self._kind == WRITE_HERE:
            disk = self._volume.data_disk
            assert disk is not None
            disk.write(self._write.sector << 9, data, self._end)
        else:
            self._write.data = data
            self._volume.application.write_held(self._write)

    def _written(self, errno: int) -> None:
        """By the application's way, which has given the range back."""
        if self._kind == WRITE_FLUSH and not errno:
            self._volume.application.flush(self._answer)
        else:
            self._answer(errno)

    def _end(self, errno: int) -> None:
        self._release()
        self._answer(errno)

    def _release(self) -> None:
        assert self._write.hold is not None
        self._volume.locks.release(self._write.hold)
        self._write.hold = None

    def _answer(self, errno: int) -> None:
        if errno:
            name = errorcode.get(errno, str(errno))
            self._ended(StateRefused(f"{self._volume.name}: the write failed: {name}"))
        else:
            self._ended(None)
