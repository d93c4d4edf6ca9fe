"""Where run-time files live: the run directory and the names in it.

Knows nothing of what is in the files. Every part asks here, so that no name is spelt twice.
"""

from __future__ import annotations

import os
from pathlib import Path

from replicator.errors import DaemonError

VARIABLE = "REPLICATOR_RUN_DIR"
ROOT_DIR = "/run/replicator"


def run_dir(option: str | None = None) -> str:
    """The run directory: the option, else $REPLICATOR_RUN_DIR, else /run/replicator for root, else
    $XDG_RUNTIME_DIR/replicator. Absolute; not created. Raises DaemonError if none can be found."""
    chosen = option or os.environ.get(VARIABLE, "")
    if not chosen and os.geteuid() == 0:
        chosen = ROOT_DIR
    if not chosen:
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        if not base:
            raise DaemonError(
                "no run directory: not root, and XDG_RUNTIME_DIR is not set",
                hint=f"Give --run-dir DIR or set {VARIABLE}.",
            )
        chosen = os.path.join(base, "replicator")
    return os.path.abspath(chosen)


def prepare(directory: str) -> None:
    """Create the run directory (mode 0755, its parents too) and see that files can be made there.
    Raises DaemonError naming the directory and the reason."""
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
    except OSError as error:
        raise DaemonError(
            f"cannot create the run directory {directory}: "
            + (
                "it exists and is no directory"
                if os.path.exists(directory)
                else str(error.strerror)
            ),
            hint=f"Give --run-dir DIR or set {VARIABLE} to a directory you may write to.",
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DaemonError(
            f"the run directory {directory} is not writable for uid {os.geteuid()}",
            hint=f"Give --run-dir DIR or set {VARIABLE} to a directory you may write to.",
        )


class RunFiles:
    """The names of one resource's files in a run directory."""

    def __init__(self, directory: str, resource: str) -> None:
        self.directory = Path(directory)
        self.resource = resource
        self.control = self.directory / f"{resource}.sock"
        self.pid = self.directory / f"{resource}.pid"
        self.log = self.directory / f"{resource}.log"
        self.nbd = self.directory / f"{resource}.nbd.sock"
        self.status = self.directory / f"{resource}.status.json"

    def device(self, volume: int) -> Path:
        """The record of the attached kernel device."""
        return self.directory / f"{self.resource}-{volume}.device.json"

    def fuse_dir(self, volume: int) -> Path:
        """Where nbdfuse shows the volume as a file."""
        return self.directory / f"{self.resource}-{volume}.fuse"


def status_text(directory: str) -> Path:
    """The /proc/drbd-like text of all resources of the node."""
    return Path(directory) / "status"


def status_lock(directory: str) -> Path:
    """Held while the text is made anew."""
    return Path(directory) / ".status.lock"
