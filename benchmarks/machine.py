"""What the numbers were measured on: processor, kernel, versions, load.

Everything is read when asked for; what cannot be found is "unknown", because a missing version
makes no measurement worse.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = "unknown"
VERSION_COMMANDS = {
    "fio": ("fio", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "qemu-storage-daemon": ("qemu-storage-daemon", "--version"),
    "glusterfs": ("glusterd", "--version"),
}
PYTHON_PACKAGES = ("uvloop", "msgpack", "google-crc32c", "xxhash")


def load() -> float:
    """Processes that wanted a processor, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def facts() -> dict[str, object]:
    """Of this machine and the programs measured; a JSON object."""
    return {
        "cpu": _field("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_kib": int(_field("/proc/meminfo", r"MemTotal:\s*(\d+)", "0")),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "replicator": _revision(),
        "versions": {name: _version(command) for name, command in VERSION_COMMANDS.items()}
        | {name: _package(name) for name in PYTHON_PACKAGES},
    }


def _field(path: str, pattern: str, default: str = UNKNOWN) -> str:
    found = re.search(pattern, Path(path).read_text(errors="replace"))
    return found[1].strip() if found else default


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    return done.stdout.strip().partition("\n")[0] or UNKNOWN


def _version(command: tuple[str, ...]) -> str:
    line = _first_line(*command)
    found = re.search(r"\d+(\.\d+)+", line)
    return found[0] if found else line


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The commit, with a + if files were changed since."""
    commit = _first_line("git", "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return commit + ("" if changed == UNKNOWN else "+")
