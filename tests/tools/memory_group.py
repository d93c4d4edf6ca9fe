"""A control group whose processes together may use only so much memory, page cache included.

Works with the memory controller of cgroup v1 and of v2, whichever this machine has; needs root.
Raises MemoryGroupError, naming what is missing, where there is neither.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

ROOT = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 10.0


class MemoryGroupError(AssertionError):
    """This machine offers no memory controller."""


class MemoryGroup:
    """limit: bytes. Removed at the end, when its processes are gone."""

    def __init__(self, name: str, limit: int) -> None:
        if (ROOT / "memory" / "memory.limit_in_bytes").exists():
            self.path = ROOT / "memory" / name
            self._limit, self._hits = "memory.limit_in_bytes", "memory.failcnt"
        elif "memory" in _words(ROOT / "cgroup.controllers"):
            (ROOT / "cgroup.subtree_control").write_text("+memory")
            self.path = ROOT / name
            self._limit, self._hits = "memory.max", "memory.events"
        else:
            raise MemoryGroupError(f"no memory controller below {ROOT}: mount one")
        self.path.mkdir()
        (self.path / self._limit).write_text(str(limit))

    def add(self, pid: int) -> None:
        """Take the process in; what it has got so far is not counted."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def hits(self) -> int:
        """How often its processes have met the limit."""
        words = _words(self.path / self._hits)
        return int(words[words.index("max") + 1] if "max" in words else words[0])

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        end = time.monotonic() + REMOVE_SECONDS
        while True:
            try:
                os.rmdir(self.path)
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
