"""How fast a backing disk is by itself, without the page cache and without writing to it.

Rules: the disk is opened for reading only. Runs in the process of the command, beside a daemon that has
the same disk open; blocks while it measures.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from replicator.errors import NoDiskError

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class DiskTimes:
    """Seconds of each step. direct: the reads went past the page cache."""

    reads: list[float]
    flushes: list[float]
    direct: bool


def measure(data: str, meta: str, count: int, seconds: float) -> DiskTimes:
    """Read 4 KiB blocks all over `data`, and flush `meta`, which may be the same. Each for at most
    `count` steps and `seconds`. Raises NoDiskError."""
    fd, direct = _open_direct(data)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        blocks = size // BLOCK
        if not blocks:
            raise NoDiskError(f"{data}: expected at least {BLOCK} bytes, found {size}")
        # Of its own, because direct I/O wants memory that begins at a page.
        with mmap.mmap(-1, BLOCK) as page:
            reads = _series(
                lambda: os.preadv(fd, [page], random.randrange(blocks) * BLOCK), count, seconds
            )
    except OSError as error:
        raise NoDiskError(f"{data}: cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return DiskTimes(reads, _flushes(meta, count, seconds), direct)


def _flushes(path: str, count: int, seconds: float) -> list[float]:
    fd = _open(path)
    try:
        return _series(lambda: os.fdatasync(fd), count, seconds)
    except OSError as error:
        raise NoDiskError(f"{path}: cannot be flushed: {error.strerror}") from None
    finally:
        os.close(fd)


def _series(step: Callable[[], object], count: int, seconds: float) -> list[float]:
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < count and (since := time.perf_counter()) < until:
        step()
        times.append(time.perf_counter() - since)
    return times


def _open_direct(path: str) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT), True
    except OSError:
        return _open(path), False  # some file systems have no direct I/O


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoDiskError(
            f"{path}: cannot be opened: {error.strerror}",
            hint="Measuring reads the backing disk itself, which needs root or its group.",
        ) from None
