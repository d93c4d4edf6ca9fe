"""Opening backing devices and files so that no two users of one disturb each other.

Rules:
1. A block device is claimed with O_EXCL, a file with flock; both end with the process.
2. A device that several volumes share for indexed metadata is claimed slot by slot instead.
3. Who is refused is told who holds it.
What this file must not know: what is on the device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from replicator.errors import DeviceError, NoDiskError
from replicator.metadata.layout import INDEXED_SLOT_BYTES
from replicator.runtime import disk_ops

_CHECK_HINT = "check `disk` and `meta-disk` in the configuration, and the permissions"
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(slots=True)
class Backing:
    """An open device or file. Calls raise OSError; use as a context manager to close it."""

    path: str
    fd: int
    size: int
    """Bytes, as it was when opened."""
    block_device: bool

    def read(self, offset: int, length: int) -> bytes:
        return disk_ops.read_all(self.fd, offset, length)

    def write(self, offset: int, data: bytes | bytearray) -> None:
        disk_ops.write_all(self.fd, offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, without allocating space where that can be avoided."""
        if length:
            disk_ops.zero_range(
                self.fd, offset, length, unmap=not self.block_device, block_device=self.block_device
            )

    def flush(self) -> None:
        """Everything written is on stable storage, including the file's blocks."""
        os.fsync(self.fd)

    def detach_fd(self) -> int:
        """Give the descriptor, with its locks, to the caller, who closes it from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.detach_fd())

    def __enter__(self) -> Backing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_backing(
    path: str, *, writable: bool = True, exclusive: bool = True, index: int | None = None
) -> Backing:
    """Open a block device or regular file.

    exclusive: claim it against every other user that claims it, and refuse if it is mounted, held
    by another device or attached as a loop device; the claim lasts until the descriptor is closed.
    index: claim only this slot of a device with indexed metadata.
    Raises NoDiskError (missing, no permission, no disk), DeviceError (in use: by whom).
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
    _refuse_other_kinds(path)
    fd = _open(path, flags)
    try:
        block_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        if exclusive and block_device:
            claim = _open(path, flags | os.O_EXCL)
            if index is None:
                fd, claim = claim, fd
            os.close(claim)
        elif exclusive:
            loop = _loop_device_of(path)
            if loop:
                raise _in_use(path, fd, f"it is attached as {loop}")
        if exclusive and index is not None:
            claim_slot(fd, path, index)
        elif exclusive and not block_device:
            _claim_file(fd, path)
        return Backing(path, fd, os.lseek(fd, 0, os.SEEK_END), block_device)
    except BaseException:
        os.close(fd)
        raise


def _refuse_other_kinds(path: str) -> None:
    """Before opening: that would wait for a writer at a FIFO, and may move a tape."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _cannot_open(path, error) from None
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise NoDiskError(
            f"{path}: expected a block device or a regular file, found {_kind_of(mode)}",
            hint=_CHECK_HINT,
        )


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, -1) from None
        raise _cannot_open(path, error) from None


def _cannot_open(path: str, error: OSError) -> NoDiskError:
    return NoDiskError(f"cannot open {path}: {error.strerror}", hint=_CHECK_HINT)


def claim_slot(fd: int, path: str, index: int) -> None:
    """Claim one slot of a device with indexed metadata, in addition to those claimed already
    through this open file. Raises DeviceError if somebody else has it, or has the whole device."""
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    kind = fcntl.F_WRLCK if writable else fcntl.F_RDLCK
    start = index * INDEXED_SLOT_BYTES
    slot = _FLOCK.pack(kind, os.SEEK_SET, start, INDEXED_SLOT_BYTES, 0)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, slot)
    except OSError as error:
        raise _lock_error(fd, path, error) from None


def _claim_file(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _lock_error(fd, path, error) from None


def _lock_error(fd: int, path: str, error: OSError) -> NoDiskError | DeviceError:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return _in_use(path, fd)
    return NoDiskError(f"cannot lock {path}: {error.strerror}")


def _in_use(path: str, own_fd: int, by: str = "") -> DeviceError:
    """own_fd: the descriptor that was refused; it does not count as a holder."""
    holders = [by] if by else list(_holders(path, own_fd))
    return DeviceError(
        f"{path} is in use: {'; '.join(holders) or 'by somebody who cannot be seen from here'}",
        hint="stop that use first; if it is the daemon of the resource: replicator down RESOURCE",
    )


def _holders(path: str, own_fd: int) -> Iterator[str]:
    """Everybody who may hold the device or file, for people."""
    info = os.stat(path)
    if stat.S_ISBLK(info.st_mode):
        yield from _kernel_holders(info.st_rdev)
    for process in Path("/proc").iterdir():
        skip = own_fd if process.name == str(os.getpid()) else -1
        if process.name.isdecimal() and _has_open(process, info, skip):
            command = _read(process / "cmdline").replace("\0", " ").strip()
            yield f"pid {process.name} ({command[:80] or 'no command line'}) has it open"


def _has_open(process: Path, wanted: os.stat_result, skip: int) -> bool:
    try:
        for link in (process / "fd").iterdir():
            if link.name == str(skip):
                continue
            try:
                info = link.stat()
            except OSError:
                continue
            if stat.S_ISBLK(wanted.st_mode):
                if stat.S_ISBLK(info.st_mode) and info.st_rdev == wanted.st_rdev:
                    return True
            elif (info.st_dev, info.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    except OSError:
        pass  # gone meanwhile, or another user's
    return False


def _kernel_holders(device: int) -> Iterator[str]:
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _read(Path("/proc/self/mountinfo")).splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[2] == number:
            yield f"mounted on {fields[4]}"
    try:
        for holder in Path(f"/sys/dev/block/{number}/holders").iterdir():
            yield f"held by /dev/{holder.name}"
    except OSError:
        pass  # no sysfs here
    for line in _read(Path("/proc/swaps")).splitlines()[1:]:
        name = line.split()[0]
        try:
            if os.stat(name).st_rdev == device:
                yield "used as swap space"
        except OSError:
            continue


def _loop_device_of(path: str) -> str:
    """The loop device that this file is attached to, "" if none."""
    wanted = os.path.realpath(path)
    for one in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        if _read(one).rstrip("\n") == wanted:
            return f"/dev/{one.parent.parent.name}"
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _kind_of(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")
