"""The guard of one history: all its checkers: when each of them looks, and what becomes of what they find.

What this file must not know: what is right or wrong; each checker says that.
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.engine.handshake import Outcome
from tests.simulation.checkers import Violation, observe
from tests.simulation.checkers.counters import Counters
from tests.simulation.checkers.coverage_of_differences import Differences
from tests.simulation.checkers.lineage import MIRRORED, OTHER, Lineage
from tests.simulation.checkers.observe import Decided
from tests.simulation.checkers.promises import Promises
from tests.simulation.checkers.waits import Waits
from tests.simulation.pair import Pair

EVERY = 13
"""Events between two looks. Each costs as much as several events; a campaign of many histories sees
more with this than one of few that looks after each event."""
COUNTERS_EVERY = 8
"""Looks between two at the counters, for which whole statuses are made."""


class Guard:
    """Looks at a pair while it runs. every: events between two looks. suspected: see Lineage.
    gave_up: called with node and volume when a policy or a person gives up that node's changes."""

    def __init__(
        self,
        pair: Pair,
        every: int = EVERY,
        suspected: Callable[[], bool] = lambda: False,
        gave_up: Callable[[str, int], None] = lambda _node, _volume: None,
    ) -> None:
        self._pair = pair
        self._every = every
        self._left = every
        self._gave_up = gave_up
        self.looks = 0
        self.differences = [Differences(pair, n) for n in range(len(pair.alice.media))]
        self.lineages = [Lineage(pair, n, suspected) for n in range(len(pair.alice.media))]
        self.promises: list[Promises] = []
        """By volume, of a history that numbers its writes."""
        self.counters = Counters(pair)
        self.waits = Waits(pair)
        self.given_up: str | None = None
        """The node whose changes were given up last, by a policy or a person."""
        self._verdicts: list[str] = []
        """What is wrong with verdicts: kept for the next event, not thrown into the engine."""
        observe.watch_handshakes(pair, self._decided)
        pair.clock.after_step = self._after_step

    def _after_step(self) -> None:
        self._left -= 1
        for lineage in self.lineages:
            lineage.look()
        if self._verdicts:
            self.report(self._verdicts)
        for promises in self.promises:
            self.report(promises.violations)
        if self._left <= 0:
            self._left = self._every
            self.look()

    def look(self) -> None:
        """Raises Violation with everything that is wrong now."""
        self.looks += 1
        found = [words for one in self.differences for words in one.violations()]
        if self.looks % COUNTERS_EVERY == 0:
            statuses = observe.statuses(self._pair)
            found += self.counters.violations(statuses) + self.waits.violations(statuses)
        self.report(found)

    def era_of_writes(self, primary: str, volume: int) -> int | None:
        return self.lineages[volume].era_of_writes(primary)

    def completed(
        self, primary: str, volume: int, began: int | None, *, flushed: bool = False
    ) -> None:
        """An application's write was acknowledged, or a flush."""
        self.lineages[volume].completed(primary, began, flushed=flushed)

    def _decided(self, event: Decided) -> None:
        verdict = event.verdict
        self._verdicts += self.lineages[event.volume].decided(event)
        if verdict.split_brain and verdict.outcome in MIRRORED:
            source = verdict.outcome is Outcome.SOURCE
            self.given_up = OTHER[event.node] if source else event.node
            self._gave_up(self.given_up, event.volume)

    def report(self, found: list[str]) -> None:
        if found:
            raise Violation("\n".join(found))
