"""Backing disks that can be made to fail and repaired again, one kind for each way of failing.

    plain   a sparse file: never fails
    small   a sparse file on a file system in memory that somebody else fills: ENOSPC
    loop    a loop device on such a file: the page cache takes the writes, their flush fails
    locked  a loop device that becomes read-only, as a worn-out drive does: EPERM for every write; what is
            in the page cache is stored, and reads go on
    errors  a file that nbdkit serves through its error filter and nbdfuse mounts: EIO for every
            request while it fails

Each takes the place of a node's backing file before the node's first start, and goes when the pair
clears up its directory; `close` after that. Must not know: the product.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.integration import processes
from tests.integration.pair import Node, PairError

BLKROSET, BLKFLSBUF = 0x125D, 0x1261
START_SECONDS = 20.0
ROOM = 64 << 10
"""Bytes that a full file system has left for nothing but itself."""


class PlainDisk:
    """A node's backing file as it is. Base of all kinds."""

    can_fail = False

    def __init__(self, node: Node, size: int) -> None:
        self.path = node.backing()
        self.size = size
        self.processes: list[subprocess.Popen[bytes]] = []
        self.prepare(node.directory)

    def prepare(self, directory: Path) -> None:
        """Put the disk in the place of the file."""

    def fail(self) -> None:
        """From now on requests fail, as far as the kind has it."""

    def repair(self) -> None:
        """All is well again. What the disk had said to have stored it may have lost."""

    def close(self) -> None:
        """After the pair's: it has ended the processes."""
        for process in self.processes:
            process.wait(START_SECONDS)


class SmallDisk(PlainDisk):
    can_fail = True

    def prepare(self, directory: Path) -> None:
        self._room = directory / "small"
        self._room.mkdir()
        size = f"size={self.size + 2 * ROOM}"
        mount = ["mount", "-t", "tmpfs", "-o", size, "replicator-test", str(self._room)]
        subprocess.run(mount, check=True, timeout=START_SECONDS)
        self.file = self._room / "disk"
        self.file.touch()
        os.truncate(self.file, self.size)
        self._replace()

    def _replace(self) -> None:
        self.path.unlink()
        self.path.symlink_to(self.file)

    def fail(self) -> None:
        with contextlib.suppress(OSError), (self._room / "others").open("wb") as others:
            while True:
                others.write(bytes(ROOM))

    def repair(self) -> None:
        (self._room / "others").unlink(missing_ok=True)


class LoopDisk(SmallDisk):
    def _replace(self) -> None:
        done = subprocess.run(
            ["losetup", "--find", "--show", str(self.file)],
            check=True,
            timeout=START_SECONDS,
            capture_output=True,
            text=True,
        )
        self.path.unlink()
        self.path.symlink_to(done.stdout.strip())

    def repair(self) -> None:
        super().repair()
        # What the device could not store is still in the page cache and would look like stored.
        with self.path.open("rb") as device:
            fcntl.ioctl(device, BLKFLSBUF)


class LockedDisk(LoopDisk):
    def fail(self) -> None:
        self._set_read_only(True)

    def repair(self) -> None:
        """Also at the end of the game: the kernel would keep the mark for the device's next user."""
        self._set_read_only(False)

    def _set_read_only(self, read_only: bool) -> None:
        with self.path.open("rb") as device:
            fcntl.ioctl(device, BLKROSET, struct.pack("i", read_only))


class ErrorDisk(PlainDisk):
    can_fail = True

    def prepare(self, directory: Path) -> None:
        served, socket = directory / "served", directory / "served.sock"
        served.touch()
        os.truncate(served, self.size)
        self._trigger = directory / "fails"
        error = ["error=EIO", "error-rate=100%", f"error-file={self._trigger}"]
        server = ["nbdkit", "-f", "-U", str(socket), "--filter=error", "file", f"file={served}"]
        mounted = ["nbdfuse", str(self.path), f"nbd+unix:///?socket={socket}"]
        self._start([*server, *error], socket.exists)
        self._start(mounted, lambda: str(self.path) in processes.mounts_of(directory))

    def _start(self, words: list[str], ready: Callable[[], bool]) -> None:
        self.processes.append(subprocess.Popen(words))
        if not processes.wait_until(ready, START_SECONDS):
            raise PairError(f"{' '.join(words)}: not ready after {START_SECONDS} s")

    def fail(self) -> None:
        self._trigger.touch()

    def repair(self) -> None:
        self._trigger.unlink(missing_ok=True)


KINDS: dict[str, type[PlainDisk]] = {
    "plain": PlainDisk,
    "small": SmallDisk,
    "loop": LoopDisk,
    "locked": LockedDisk,
    "errors": ErrorDisk,
}
