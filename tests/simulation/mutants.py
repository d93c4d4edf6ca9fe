"""Does the simulator bite? Each mutant of `mutations` is hunted with invented histories.

    python -m tests.simulation.mutants [NAME...] [--histories N] [--from SEED] [--update FILE]

Prints a table: what was removed, how many histories it took, the kind and seed of the one that
noticed, and what it noticed. --update writes its rows into the table of a file: docs/mutants.md.
Exit status 1 if a mutant survived N histories; 2 if one was no engine at all.
What this file must not know: what a mutant does.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from tests.simulation.campaign import KINDS, Task, played, task
from tests.simulation.mutations import MUTANTS, applied

HISTORIES = 2000
ORDER = ("harsh", "harsh", "disk", "harsh", "late", "link")
"""Kinds of histories, in turn: the harsh ones, and late ones among them, meet most, the others are quick."""
BROKEN = ("AttributeError", "NameError", "TypeError", "UnboundLocalError")
"""What a mutation raises that does not fit the engine any more: nothing is proven by that."""


class BrokenMutantError(Exception):
    """The mutation itself fails, or the engine fails without it: nothing can be said."""


@dataclass(frozen=True)
class Found:
    """histories: how many it took. task: the one that noticed. words: what it noticed."""

    histories: int
    task: Task
    words: str


def hunt(name: str, limit: int, first: int = 0) -> Found | None:
    """The first history that notices this mutant, and nothing without it; None if none of `limit`
    does. Raises BrokenMutantError."""
    assert set(ORDER) == set(KINDS)
    with applied(name):
        for count, kind in enumerate(islice(cycle(ORDER), limit)):
            chosen = task(kind, first + count)
            failure, _history = played(chosen)
            if failure.startswith(BROKEN):
                raise BrokenMutantError(f"{name}, {chosen}: {failure}")
            if failure:
                break
        else:
            return None
    blamed, _history = played(chosen)
    if blamed:
        words = blamed.splitlines()[0]
        raise BrokenMutantError(f"{chosen} fails without {name}, too: {words}")
    return Found(count + 1, chosen, failure.splitlines()[0])


def row(name: str, limit: int, found: Found | None, seconds: float) -> str:
    words = MUTANTS[name][0]
    if found is None:
        return f"| `{name}` | {words} | **none of {limit}** | | {seconds:.0f} s |"
    _error, _colon, noticed = found.words.partition(": ")
    noticed = noticed.replace("|", "/")[:70]
    return f"| `{name}` | {words} | {found.histories} | {found.task} | {noticed} |"


def rows(text: str) -> dict[str, str]:
    """The rows of the table in a text, by the mutant's name."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def update(path: Path, new: dict[str, str]) -> None:
    """Put rows into the table of a file, in the order of MUTANTS; rows of no mutant go."""
    text = path.read_text()
    table = {**rows(text), **new}
    lines = [line for line in text.splitlines() if not line.startswith("| `")]
    after = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    lines[after:after] = [table[name] for name in MUTANTS if name in table]
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="mutants; all if none is named")
    parser.add_argument("--histories", type=int, default=HISTORIES, help="at most, for each")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first seed")
    parser.add_argument(
        "--update", type=Path, help="a file with the table, to be brought up to date"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - MUTANTS.keys():
        parser.error(
            f"no such mutant: {', '.join(sorted(unknown))}; there are {', '.join(MUTANTS)}"
        )
    survivors, table = 0, {}
    print("| mutant | what is wrong | histories | seed | noticed |\n|---|---|---|---|---|")
    for name in arguments.names or MUTANTS:
        started = time.monotonic()
        try:
            found = hunt(name, arguments.histories, arguments.first)
        except BrokenMutantError as error:
            print(f"broken mutant: {error}", file=sys.stderr)
            return 2
        survivors += found is None
        seconds = time.monotonic() - started
        table[name] = row(name, arguments.histories, found, seconds)
        print(table[name], flush=True)
        if arguments.update is not None:
            update(arguments.update, table)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
