"""The digest of a history: everything that left a node or changed a disk, in order and with its time.

Two runs of one seed must have the same digest, in whatever process: else a failure found today
could not be played again tomorrow.
What this file must not know: what any of it means.
"""

from __future__ import annotations

import hashlib
import struct
from functools import partial

from tests.simulation.histories import History
from tests.simulation.medium import ZERO_PAGE, Medium


class Trace:
    """Listens to the world of one history, which has not begun yet."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._hash = hashlib.sha256()
        pair = history.pair
        pair.network.tap = self._sent
        for node in (pair.alice, pair.bob):
            media = {id(medium): medium for medium in (*node.media, *node.metas)}
            for number, medium in enumerate(media.values()):
                medium.changed = partial(self._written, f"{node.name}/{number}", medium)

    def _note(self, what: str, content: bytes) -> None:
        time = self._history.pair.clock.time
        self._hash.update(struct.pack("<dI", time, len(content)) + what.encode() + content)

    def _sent(self, channel: str, data: bytes | None) -> None:
        self._note(channel, b"end" if data is None else data)

    def _written(self, disk: str, medium: Medium, page: int) -> None:
        self._note(f"{disk} {page}", medium.pages.get(page, ZERO_PAGE))

    def digest(self) -> str:
        """Of all that was heard, of the log with every state change, and of the number of events."""
        pair = self._history.pair
        self._note(f"{pair.clock.steps} events", "\n".join(pair.lines).encode())
        return self._hash.hexdigest()
