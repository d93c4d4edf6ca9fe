"""The Log port: one line a message on stderr, which the daemon has pointed at its log file.

Line: `2026-01-31T12:00:00.123 r0 warning: text`. Levels below the threshold are dropped. Nothing
here rotates or buffers.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")


class LineLog:
    """Log lines of one resource. A stream that cannot be written to is no reason to stop."""

    def __init__(
        self, resource: str, threshold: str = "info", stream: TextIO | None = None
    ) -> None:
        self._resource = resource
        self._least = LEVELS.index(threshold)
        self._stream = stream

    def log(self, level: str, message: str) -> None:
        if level in LEVELS and LEVELS.index(level) < self._least:
            return
        stamp = datetime.now().isoformat(timespec="milliseconds")
        lines = "".join(
            f"{stamp} {self._resource} {level}: {line}\n" for line in message.splitlines() or [""]
        )
        stream = self._stream or sys.stderr
        try:
            stream.write(lines)
            stream.flush()
        except (OSError, ValueError):
            pass
