"""Finding and ending the processes, mounts and loop devices that belong to one temporary directory.

Rules: a process is ours if its command line names the directory, whose name nobody else has;
everything is ended by its pid, and every wait is bounded. Nothing here knows what replicator is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

POLL = 0.05
HANGS_AFTER = 1.0
"""Seconds that a process may wait for a disk."""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    return True


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which holds nothing any more, does not."""
    return state(pid) not in ("", "Z", "X")


def command_line(pid: int) -> str:
    """The words of the process, separated by blanks; "" if there is none."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def state(pid: int) -> str:
    """Its letter in /proc; "" if there is no such process. Never blocks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def processes_of(directory: Path) -> list[int]:
    """Pids of all processes, but this one, whose command line names the directory."""
    own = {os.getpid(), os.getppid()}
    pids = {int(entry) for entry in os.listdir("/proc") if entry.isdecimal()} - own
    # Asking for the command line of a process that hangs on a dead device hangs as well.
    hanging = {pid for pid in pids if state(pid) == "D"}
    if hanging:
        wait_until(lambda: "D" not in map(state, hanging), HANGS_AFTER)
        pids -= {pid for pid in hanging if state(pid) == "D"}
    return [pid for pid in sorted(pids) if str(directory) in command_line(pid)]


def kill(pid: int, seconds: float = 10) -> bool:
    """SIGKILL, and wait until the process is gone; False if it is not."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return wait_until(lambda: not alive(pid), seconds)


def mounts_of(directory: Path) -> list[str]:
    """Mount points inside the directory, innermost first."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [point for point in points if point.startswith(f"{directory}/")]
    return sorted(inside, key=len, reverse=True)


def loops_of(directory: Path) -> list[str]:
    """Loop devices whose backing file is inside the directory."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(f"{directory}/"):
                found.append(f"/dev/{backing.parts[3]}")
        except OSError:
            continue  # detached meanwhile
    return found


def run_quietly(*command: str, seconds: float = 20) -> None:
    """For clearing up: what fails has been cleared up before, or is reported by `leftovers`."""
    try:
        subprocess.run(command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return


def unmount(directory: Path) -> None:
    """Unmount everything inside the directory, as far as that is possible."""
    for point in mounts_of(directory):
        run_quietly("umount", point)


def clear(directory: Path) -> list[str]:
    """Unmount, detach and kill what belongs to the directory; returns what could not be removed."""
    unmount(directory)
    for device in loops_of(directory):
        run_quietly("losetup", "--detach", device)
    for pid in processes_of(directory):
        kill(pid)
    for point in mounts_of(directory):
        run_quietly("umount", "--lazy", point)
    wait_until(lambda: not loops_of(directory), 5)
    return leftovers(directory)


def leftovers(directory: Path) -> list[str]:
    """Everything that still belongs to the directory, in words."""
    return [
        *(f"mounted: {point}" for point in mounts_of(directory)),
        *(f"loop device: {device}" for device in loops_of(directory)),
        *(f"process {pid}: {command_line(pid)}" for pid in processes_of(directory)),
    ]
