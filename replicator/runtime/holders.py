"""Who holds a block device open: mounts, swap, other block devices, processes.

Linux only, read from /proc and /sys. Knows devices by their numbers, whatever their nodes are
called. Nothing here opens a device but `is_claimed`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

PROCESSES_MAX = 5
"""Processes named in one message."""


def holders_of(number: tuple[int, int], node: str = "") -> list[str]:
    """Descriptions of all that can be found for the device with these (major, minor) numbers.

    node: a device node of it, asked for an exclusive claim as a last resort: a mount in another
    mount namespace shows nowhere else.
    """
    found = mounts(number) + swaps(number) + upper_devices(number) + processes(number)
    if not found and node and is_claimed(node):
        found.append("the kernel holds it (mounted in another mount namespace?)")
    return found


def mounts(number: tuple[int, int]) -> list[str]:
    """ "mounted on DIR" for each mount in our mount namespace."""
    found = []
    wanted = f"{number[0]}:{number[1]}"
    for line in _lines("/proc/self/mountinfo"):
        fields = line.split()
        try:
            source = fields[fields.index("-") + 2]
        except (ValueError, IndexError):
            continue
        # The device number is that of the file system, which for btrfs is not that of the disk.
        if fields[2] == wanted or _number_of(_unescape(source)) == number:
            found.append(f"mounted on {_unescape(fields[4])}")
    return found


def swaps(number: tuple[int, int]) -> list[str]:
    found = []
    for line in _lines("/proc/swaps")[1:]:
        path = _unescape(line.split()[0])
        if _number_of(path) == number:
            found.append("in use as swap")
    return found


def upper_devices(number: tuple[int, int]) -> list[str]:
    """Device mapper, md, bcache and the like built on top of it."""
    directory = Path(f"/sys/dev/block/{number[0]}:{number[1]}/holders")
    try:
        return [f"in use by /dev/{name}" for name in sorted(os.listdir(directory))]
    except OSError:
        return []


def processes(number: tuple[int, int]) -> list[str]:
    """Processes with the device open, as far as we may look."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        if _has_open(name, number):
            found.append(f"open by process {name} ({_command(name)})")
            if len(found) == PROCESSES_MAX:
                break
    return found


def is_claimed(node: str) -> bool:
    """True if something in the kernel has the device exclusively."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _has_open(process: str, number: tuple[int, int]) -> bool:
    directory = f"/proc/{process}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    for name in names:
        link = f"{directory}/{name}"
        try:
            target = os.readlink(link)
        except OSError:
            continue
        # Only paths can be device nodes; most descriptors are sockets, pipes and anonymous.
        if target.startswith("/") and _number_of(link) == number:
            return True
    return False


def _command(process: str) -> str:
    return next(iter(_lines(f"/proc/{process}/comm")), "?").strip()


def _number_of(path: str) -> tuple[int, int] | None:
    """(major, minor) of a block device node, following links; None for anything else."""
    if not path.startswith("/"):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def _unescape(text: str) -> str:
    """The kernel writes blanks in paths as \\040 and so on."""
    for code, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, plain)
    return text


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
