"""The lock that makes a resource's daemon the only one: an flock on RUN_DIR/RESOURCE.pid.

The kernel drops the lock when the last descriptor of its open file is gone, however the daemon
ended; so the lock says whether it lives, the number in the file only which process it is.
Whoever starts a daemon takes the lock and lets the daemon inherit the descriptor: no gap.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from replicator.errors import DaemonError
from replicator.runtime.paths import RunFiles

PROBE_PATIENCE = 0.5
"""Seconds to try again: somebody who only looks holds the lock for microseconds."""


def acquire(files: RunFiles) -> int:
    """Take the lock; returns the descriptor that holds it. Raises DaemonError naming the holder."""
    deadline = time.monotonic() + PROBE_PATIENCE
    while (fd := try_acquire(files)) is None:
        if time.monotonic() > deadline:
            pid = _read_pid(files.pid)
            raise DaemonError(
                f"{files.resource}: another daemon of this resource runs already "
                f"({f'pid {pid}' if pid else 'still starting or stopping'})",
                hint=f"See: replicator status {files.resource}",
            )
        time.sleep(0.02)
    return fd


def try_acquire(files: RunFiles) -> int | None:
    """The descriptor that holds the lock, None if somebody else has it. Raises DaemonError when
    the file cannot be opened. Who has the lock may unlink the file before letting it go."""
    while True:
        try:
            fd = os.open(files.pid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DaemonError(f"cannot open {files.pid}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        try:
            if os.path.samestat(os.fstat(fd), os.stat(files.pid)):
                return fd
        except FileNotFoundError:
            pass
        # The file was unlinked between our open and our lock: what we hold is worth nothing.
        os.close(fd)


def write_pid(fd: int, pid: int) -> None:
    """Say who holds the lock. Raises DaemonError."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{pid}\n".encode(), 0)
    except OSError as error:
        raise DaemonError(
            f"cannot write the pid file {os.readlink(f'/proc/self/fd/{fd}')}: {error.strerror}",
            hint="Make room in the run directory, or give another one with --run-dir DIR.",
        ) from None


def daemon_pid(run_dir: str, resource: str) -> int | None:
    """The pid of the resource's daemon, 0 while it starts or stops; None if there is no daemon."""
    path = RunFiles(run_dir, resource).pid
    return None if is_free(path) else _read_pid(path)


def is_free(path: Path) -> bool:
    """True if nobody holds the lock on this pid file, or there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _read_pid(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0
