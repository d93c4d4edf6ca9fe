"""How much of a volume has been read, written and moved, for `ns:` and its like in the status."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """In sectors since attach."""

    sent: int = 0
    received: int = 0
    written: int = 0
    read: int = 0

    def reset(self) -> None:
        self.sent = self.received = self.written = self.read = 0
