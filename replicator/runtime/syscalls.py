"""The system calls of the usual write: sockets that do not block, and bursts of small disk writes.

Their compiled twin is written by hand, in syscalls.c (replicator/compiled.py).
Rules: an error is an errno in what is returned, not an exception; an interrupted call is made again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence

from replicator.runtime import disk_ops

Buffer = bytes | bytearray | memoryview


def receive(fd: int, space: memoryview) -> int:
    """How many bytes have been received, 0 at the end of the stream, or -errno."""
    try:
        return os.readv(fd, (space,))
    except OSError as error:
        return -(error.errno or errno.EIO)


def send(fd: int, data: Buffer) -> int:
    """How many bytes the system has taken, or -errno."""
    try:
        return os.write(fd, data)
    except OSError as error:
        return -(error.errno or errno.EIO)


def write_burst(
    fd: int, writes: Sequence[tuple[int, Buffer, Callable[[int], None]]], seconds: float
) -> tuple[list[int], float]:
    """Write one after the other (offset, data, ...), until that has taken longer than `seconds`. Returns
    0 or an errno of each that was made, and the seconds."""
    results: list[int] = []
    started = time.monotonic()
    taken = 0.0
    for offset, data, _ in writes:
        try:
            disk_ops.write_all(fd, offset, data)
        except OSError as error:
            results.append(error.errno or errno.EIO)
        else:
            results.append(0)
        taken = time.monotonic() - started
        if taken > seconds:
            break
    return results, taken
