"""Run the system's tools with a time limit, and look at what the kernel says about processes.

Rules: no wait without a limit; a tool that is missing, fails or hangs is a DeviceError with its own
words in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable

from replicator.errors import DeviceError

ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Searched besides PATH: that of an ordinary user lacks them."""

TOOL_SECONDS = 10.0


def find_tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{ADMIN_PATH}")


def run_tool(arguments: list[str], seconds: float = TOOL_SECONDS) -> str:
    """The tool's output. Raises DeviceError when it is missing, fails, or takes too long."""
    path = find_tool(arguments[0])
    if path is None:
        raise DeviceError(f"{arguments[0]} is not installed (or not in PATH)")
    try:
        done = subprocess.run(
            [path, *arguments[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{' '.join(arguments)} did not finish within {seconds:g} s") from None
    except OSError as error:
        raise DeviceError(f"cannot run {path}: {error.strerror}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise DeviceError(f"{' '.join(arguments)} failed ({done.returncode}): {said}")
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float, step: float = 0.02) -> bool:
    """True as soon as the condition holds, False after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(step)
    return True


def process_start(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid a name that is not used
    again. None if there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
