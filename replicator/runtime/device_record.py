"""What was attached to the kernel for a volume, written down so that it can be taken away again.

RUN_DIR/RESOURCE-VOLUME.device.json. It is written before a step that leaves something behind, so
that after a crash at any point everything that may exist is named in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from replicator.runtime.status_files import replace_file


@dataclass(slots=True)
class DeviceRecord:
    """kind: "nbd-client" or "nbdfuse"; node: the device node we made, e.g. /dev/drbd0."""

    kind: str
    node: str
    daemon_pid: int
    """The daemon that it is connected to: with another one it is stale."""
    backing: str = ""
    """The kernel device: /dev/nbdN or /dev/loopN; "" while none has been made."""
    major: int = -1
    minor: int = -1
    fuse_dir: str = ""
    fuse_pid: int = 0
    fuse_start: int = 0
    """process_start of fuse_pid."""

    @property
    def number(self) -> tuple[int, int]:
        return self.major, self.minor

    def save(self, path: Path) -> None:
        """Raises OSError."""
        replace_file(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> DeviceRecord | None:
        """None if there is none, or nothing that this version can read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
