"""A flush on its way: what its two halves, this disk's and the peer's, come to.

What this file must not know: when a flush may begin, and whom it has to wait for (`application`).
"""

from __future__ import annotations

from errno import EIO
from typing import TYPE_CHECKING

from replicator.engine.ports import Disk as DiskPort
from replicator.engine.ports import Done

if TYPE_CHECKING:
    from replicator.engine.volume import Volume


class FlushOutcome:
    """Joins the local and the remote half of a flush: one of them has to be good, both ended."""

    __slots__ = (
        "_answer",
        "_counted",
        "_disk",
        "_local",
        "_remote_ok",
        "_volume",
        "remote_pending",
    )

    def __init__(self, volume: Volume, answer: Done, disk: DiskPort | None) -> None:
        self._volume = volume
        self._answer = answer
        self._disk = disk
        self._counted = volume.application.counts
        """The local copy was a good one when the flush began. If it is given up meanwhile, the peer
        has all of it (see admin.detach), or what is lost is told."""
        self._local: int | None = None
        self._remote_ok = False
        self.remote_pending = False

    def local(self, errno: int) -> None:
        self._local = errno
        if errno:
            self._volume.local_io_error("flush", 0, errno, self._disk)
        self._join()

    def remote(self, stable: bool) -> None:
        self.remote_pending = False
        self._remote_ok = stable
        self._join()

    def _join(self) -> None:
        if self._local is None or self.remote_pending:
            return
        here = not self._local and self._counted
        if self._remote_ok:
            if self._local:
                self._volume.attachment.completed_without_disk()
            self._answer(0)
        else:
            result = 0 if here else self._local or EIO
            self._volume.application.answer_flush(self._answer, here, result)
