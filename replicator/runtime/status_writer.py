"""Keeps the status files of a daemon current: soon after a change, and at most a second old.

Rules: files are written on a thread, one write at a time; the loop never waits for them. A run
directory that cannot be written to is logged once, and is no reason to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from replicator.engine.ports import Log
from replicator.engine.snapshot import ResourceSnapshot
from replicator.runtime import status_files

SETTLE_SECONDS = 0.1
"""After a change: a change of state is often several, written once."""

LONGEST_SECONDS = 1.0
"""Progress and counters change without a notice: looked at this often."""


class StatusWriter:
    """snapshot: takes one, on the loop. `changed` may be called as often as one likes."""

    def __init__(self, run_dir: str, snapshot: Callable[[], ResourceSnapshot], log: Log) -> None:
        self._run_dir = run_dir
        self._snapshot = snapshot
        self._log = log
        self._changed = asyncio.Event()
        self._written: object = None
        self._failed = False

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.write_now()
            try:
                # Not wait_for: a cancellation that comes together with a change would be lost, and
                # whoever ends this waits for ever.
                async with asyncio.timeout(LONGEST_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            except TimeoutError:
                pass

    async def write_now(self) -> None:
        """Write if anything but the passing of time has changed since the last write."""
        self._changed.clear()
        snapshot = self._snapshot()
        content = {**snapshot.to_dict(), "since": 0.0}
        if content == self._written:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, status_files.write_snapshot, self._run_dir, snapshot)
        except OSError as error:
            if not self._failed:
                self._log.log("warning", f"cannot write the status files: {error}")
            self._failed = True
            return
        self._failed = False
        self._written = content
