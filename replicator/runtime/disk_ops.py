"""The blocking disk calls, each whole or an errno: full reads and writes, zeroing, discarding.

Rules: runs on disk threads, so it knows no event loop and no engine. Every function either did all
that was asked or raises OSError; a short read or write is carried on, end of file is EIO.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from replicator.engine.ports import Buffer

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F

TMPFS = 0x01021994
HOLES_TRUSTED = {0xEF53, 0x58465342, 0x9123683E, TMPFS}
"""File systems (ext4, XFS, Btrfs, tmpfs; numbers of statfs(2)) whose word for it that a range is a
hole is taken: data wrongly called a hole would be lost on the other node."""

ZERO_CHUNK = 1 << 20
"""Bytes of zeroes written at a time where the disk has no call of its own for it."""

_ZEROES = bytes(ZERO_CHUNK)

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}
"""Answers of a disk that has no such call; EINVAL comes for ranges it cannot align."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def read_all(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`. Raises OSError; EIO where the file ends before."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts = []
    while True:
        if not data:
            raise OSError(errno.EIO, f"read at {offset} reached the end of the device")
        parts.append(data)
        offset += len(data)
        length -= len(data)
        if not length:
            return b"".join(parts)
        data = os.pread(fd, length, offset)


def tells_holes(fd: int) -> bool:
    """Whether is_hole() may be asked about this file."""
    return _file_system(fd) in HOLES_TRUSTED


def is_in_memory(fd: int) -> bool:
    """Whether all of the file is memory, so that no read waits for a device (but for swapped pages)."""
    return _file_system(fd) == TMPFS


def _file_system(fd: int) -> int:
    """Its number of statfs(2); 0 if it cannot be told."""
    answer = (ctypes.c_long * 32)()  # struct statfs has 15 of them; the first is the type
    told = _libc.fstatfs(fd, ctypes.addressof(answer)) == 0
    return int(answer[0]) if told else 0


def is_hole(fd: int, offset: int, length: int) -> bool:
    """Whether the file system keeps nothing of this range, so that it reads as zeroes."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        # ENXIO: no data from here to the end of the file.
        return error.errno == errno.ENXIO


def write_all(fd: int, offset: int, data: Buffer) -> None:
    """All of `data` at `offset`. Raises OSError; EIO for a device that takes nothing."""
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    view = memoryview(data).cast("B")
    while True:
        if written <= 0:
            raise OSError(errno.EIO, f"write at {offset} made no progress")
        offset += written
        view = view[written:]
        if not view:
            return
        written = os.pwrite(fd, view, offset)


def zero_range(fd: int, offset: int, length: int, *, unmap: bool, block_device: bool) -> None:
    """Make the range read as zeroes, by the cheapest call that the disk has; else write zeroes."""
    # fallocate works on block devices too: punching there unmaps only if that reads as zeroes,
    # which BLKDISCARD does not promise.
    if unmap and _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        return
    if _fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length):
        return
    if block_device and _ioctl_range(fd, BLKZEROOUT, offset, length):
        return
    write_zeroes(fd, offset, length)


def discard_range(fd: int, offset: int, length: int, *, block_device: bool) -> None:
    """Give the space of the range back where the disk can; a disk that cannot keeps its content."""
    if block_device:
        _ioctl_range(fd, BLKDISCARD, offset, length)
    else:
        zero_range(fd, offset, length, unmap=True, block_device=False)


def write_zeroes(fd: int, offset: int, length: int) -> None:
    """Zeroes the slow way, ZERO_CHUNK at a time."""
    while length > 0:
        step = min(length, ZERO_CHUNK)
        write_all(fd, offset, _ZEROES if step == ZERO_CHUNK else _ZEROES[:step])
        offset += step
        length -= step


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """True if the file system did it, False if it has no such call."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code))
    return True


def _ioctl_range(fd: int, request: int, offset: int, length: int) -> bool:
    """True if the block device did it, False if it has no such call."""
    try:
        fcntl.ioctl(fd, request, struct.pack("QQ", offset, length))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True
