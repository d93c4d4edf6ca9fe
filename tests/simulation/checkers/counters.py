"""The numbers of status agree with the disks: never negative, out of sync as much as is marked, and
nothing under way once all is quiet.

What this file must not know: how the engine counts.
"""

from __future__ import annotations

from tests.simulation.checkers import observe
from tests.simulation.checkers.observe import Statuses
from tests.simulation.pair import Pair

GAUGES = ("lo", "pe", "ua", "ap", "oos", "ns", "nr", "dw", "dr", "al", "bm", "open_count")
IDLE = ("lo", "pe", "ua", "ap")
BLOCK_KIB = 4


class Counters:
    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def violations(self, statuses: Statuses | None = None) -> list[str]:
        """statuses: those of this moment, if they have been looked at already."""
        found = []
        for node, status in statuses or observe.statuses(self._pair):
            for shown in status.volumes:
                where = f"{node.name}/{shown.volume}"
                for name in GAUGES:
                    if getattr(shown, name) < 0:
                        found.append(f"{where}: {name} is {getattr(shown, name)}")
                bitmap = observe.bitmap_of(node, shown.volume)
                if bitmap is not None and shown.oos != BLOCK_KIB * bitmap.bit_count():
                    found.append(
                        f"{where}: status says {shown.oos} KiB out of sync, but "
                        f"{bitmap.bit_count()} bits are set"
                    )
                if shown.ep < 1:
                    found.append(f"{where}: ep is {shown.ep}")
        return found

    def left_when_idle(self) -> list[str]:
        """After all faults and requests have ended: nothing is under way any more."""
        found = []
        for node, status in observe.statuses(self._pair):
            for shown in status.volumes:
                found += [
                    f"{node.name}/{shown.volume}: {name} is {getattr(shown, name)} when idle"
                    for name in IDLE
                    if getattr(shown, name)
                ]
        return found
