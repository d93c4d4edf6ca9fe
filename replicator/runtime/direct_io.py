"""A backing file or block device past the page cache: aligned reads and writes by O_DIRECT.

Rules:
1. Whole or an errno, like disk_ops. May be called by several threads at once; each has memory of its own
   through which the data goes, because direct I/O wants memory that begins at a page.
2. What is not aligned to the device's blocks goes through the page cache after all. That is coherent as
   long as overlapping requests are not under way at once, which is what the Disk port asks for: the
   kernel writes back what is dirty before a direct request, and drops what that has made stale. Two
   unaligned requests in one page meet in the page cache.
3. Stable is what a flush of the buffered descriptor makes stable: it is the same file.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading

from replicator.engine.ports import Buffer
from replicator.errors import NoDiskError
from replicator.runtime import disk_ops

ALIGNMENTS = (512, 4096)
"""What devices ask of offset and length, smallest first."""

BOUNCE = 1 << 20
"""Bytes moved at a time."""


class DirectFile:
    """fd: opened for reading and writing without O_DIRECT; stays its owner's. name: for errors.
    Raises NoDiskError where there is no direct I/O."""

    def __init__(self, fd: int, name: str) -> None:
        self._buffered = fd
        self._memory = threading.local()
        try:
            # The same file, also if it was replaced under its name.
            self._direct = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(name, error) from None
        try:
            self.alignment = self._find_alignment(name)
        except BaseException:
            self.close()
            raise

    def _find_alignment(self, name: str) -> int:
        for alignment in ALIGNMENTS:
            try:
                os.preadv(self._direct, [self._bounce()[:alignment]], 0)
            except OSError as error:
                problem = error
            else:
                return alignment
        raise _refusal(name, problem)

    def close(self) -> None:
        """No call may be under way."""
        os.close(self._direct)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises OSError; EIO where the file ends before."""
        if (offset | length) % self.alignment:
            return disk_ops.read_all(self._buffered, offset, length)
        bounce = self._bounce()
        parts = []
        while length:
            count = os.preadv(self._direct, [bounce[: min(length, BOUNCE)]], offset)
            if count <= 0 or count % self.alignment:
                raise OSError(errno.EIO, f"read at {offset} reached the end of the device")
            parts.append(bounce[:count].tobytes())
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: Buffer) -> None:
        """All of `data`. Raises OSError."""
        view = memoryview(data).cast("B")
        bounce = self._bounce()
        while view:
            if (offset | len(view)) % self.alignment:
                disk_ops.write_all(self._buffered, offset, view)
                return
            step = min(len(view), BOUNCE)
            bounce[:step] = view[:step]
            written = os.pwrite(self._direct, bounce[:step], offset)
            if written <= 0:
                raise OSError(errno.EIO, f"write at {offset} made no progress")
            offset += written
            view = view[written:]

    def _bounce(self) -> memoryview:
        """BOUNCE bytes of this thread's own, beginning at a page."""
        found: memoryview | None = getattr(self._memory, "view", None)
        if found is None:
            found = self._memory.view = memoryview(mmap.mmap(-1, BOUNCE))
        return found


def _refusal(name: str, error: OSError) -> NoDiskError:
    return NoDiskError(
        f"{name}: disk-io direct: direct I/O is not possible there: {error.strerror}",
        hint="Set `disk-io buffered;` in the section replicator, or use a disk that has direct I/O.",
    )
