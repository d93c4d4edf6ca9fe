"""Which rows of the engine's decision tables the histories of this process have reached.

Counted are the UUID rules of the handshake, the after-split-brain policies with what they decided,
and the rows of the tables that refuse state changes. rows() lists them all, so that what was never
reached can be named.
What this file must not know: histories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from replicator.engine import generations, split_brain, states
from replicator.engine.generations import Decision
from replicator.engine.split_brain import Conflict, Resolution
from replicator.engine.states import Change, Row

REACHED: Counter[str] = Counter()
"""How often each row was reached, by its name."""

TABLES = {
    "never": states.NEVER,
    "state refused": states.STATES,
    "change refused": states.TRANSITIONS,
}
DECIDED = {split_brain.SOURCE: "source", split_brain.TARGET: "target", split_brain.UNSOLVED: "none"}


def rows() -> Iterator[str]:
    """The names of all rows there are."""
    for number in dict.fromkeys(rule.number for rule in generations.RULES):
        yield f"rule {number}"
    for policy in split_brain.NO_PRIMARY:
        yield f"after-sb-0pri {policy}"
    for policy in split_brain.ONE_PRIMARY:
        yield f"after-sb-1pri {policy}"
    for policy in split_brain.TWO_PRIMARIES:
        yield f"after-sb-2pri {policy}"
    for name, table in TABLES.items():
        for index, (code, _applies) in enumerate(table):
            yield f"{name}, row {index + 1} ({code})"


def never_reached(counts: Counter[str]) -> list[str]:
    return [name for name in rows() if not counts[name]]


def _counted_decision(decide: Callable[..., Decision]) -> Callable[..., Decision]:
    def counted(*sets: object, **facts: object) -> Decision:
        decision = decide(*sets, **facts)
        REACHED[f"rule {decision.rule}"] += 1
        return decision

    return counted


def _counted_solution(
    solve: Callable[[Conflict, str, str, str], Resolution],
) -> Callable[[Conflict, str, str, str], Resolution]:
    def counted(conflict: Conflict, *policies: str) -> Resolution:
        solution = solve(conflict, *policies)
        name = solution.policy.split(" (")[0]
        REACHED[name] += 1
        REACHED[f"{name} decides {DECIDED[solution.value]}"] += 1
        return solution

    return counted


def _counted_row(
    first: Callable[[tuple[Row, ...], Change], int],
) -> Callable[[tuple[Row, ...], Change], int]:
    def counted(table: tuple[Row, ...], change: Change) -> int:
        code = first(table, change)
        if code:
            name = next(name for name, rows in TABLES.items() if rows is table)
            index = next(i for i, (_code, applies) in enumerate(table) if applies(change))
            REACHED[f"{name}, row {index + 1} ({code})"] += 1
        return code

    return counted


vars(generations)["decide"] = _counted_decision(generations.decide)
vars(split_brain)["solve"] = _counted_solution(split_brain.solve)
vars(states)["_first"] = _counted_row(states._first)
