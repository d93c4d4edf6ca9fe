"""Every wait has a reason that status shows, and what passes at once does pass.

What this file must not know: how the engine finds the reason.
"""

from __future__ import annotations

from tests.simulation.checkers import observe
from tests.simulation.checkers.observe import Statuses
from tests.simulation.pair import Pair

AT_REST = (
    *("StandAlone", "Connected", "SyncSource", "SyncTarget", "VerifyS", "VerifyT"),
    *("Ahead", "Behind"),
)
PASSING = (
    *("Unconnected", "Timeout", "BrokenPipe", "NetworkFailure", "ProtocolError", "TearDown"),
    "Disconnecting",
)
PASSING_SECONDS = 35.0
"""The longest that one of them may last: until an order that the peer does not answer is given up."""


class Waits:
    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._since: dict[str, tuple[str, float]] = {}
        """Per volume of a node the connection state at the last look, and since when it was seen."""

    def violations(self, statuses: Statuses | None = None) -> list[str]:
        """statuses: those of this moment, if they have been looked at already."""
        found = []
        for node, status in statuses or observe.statuses(self._pair):
            for shown in status.volumes:
                where = f"{node.name}/{shown.volume}"
                found += self._too_long(where, shown.cs)
                frozen = observe.frozen(node, shown.volume)
                waits = shown.cs not in AT_REST + PASSING or shown.disk == "Negotiating" or frozen
                if waits and not (shown.waiting_for or status.waiting_for):
                    found.append(
                        f"{where}: {shown.cs}, disk {shown.disk}, {frozen} requests held, "
                        "and status gives no reason"
                    )
        return found

    def _too_long(self, where: str, conn: str) -> list[str]:
        now = self._pair.clock.time
        before, since = self._since.get(where, ("", now))
        if before != conn:
            self._since[where] = conn, now
            return []
        if conn in PASSING and now - since > PASSING_SECONDS:
            return [f"{where}: {conn} for {now - since:.0f} s"]
        return []
