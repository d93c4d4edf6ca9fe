"""Play invented histories from a shell: one by its seed, or as many new ones as time allows.

    python -m tests.simulation.explore --seed 7          # one, with everything that was logged
    python -m tests.simulation.explore --seconds 600     # new ones; the first failure is made short
    python -m tests.simulation.explore --from 0 --to 500 # a fixed set

A failure prints the command that repeats it, and the acts that are enough to cause it.
Exit status 0: nothing found; 1: a history failed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator

from tests.simulation.histories import Act, History, invent

STEPS = 60
SHRINK_SECONDS = 120.0


def play(seed: int, acts: list[Act] | None = None) -> tuple[str, list[str]]:
    """Play one history: ("" or what went wrong, the log)."""
    history = History(seed, STEPS, acts)
    try:
        history.run()
    except Exception as error:
        # Any exception of the engine or a checker is a finding.
        return f"{type(error).__name__}: {error}", history.pair.lines
    return "", history.pair.lines


def kind_of(failure: str) -> str:
    """Failures of one kind begin alike: the class, and the words before the first number."""
    return "".join(c for c in failure.split("\n")[0] if not c.isdigit())[:40]


def shrink(seed: int, acts: list[Act], failure: str) -> list[Act]:
    """Leave out acts, in halves and then one by one, as long as it still fails in the same way."""
    end = time.monotonic() + SHRINK_SECONDS
    size = max(1, len(acts) // 2)
    while size and time.monotonic() < end:
        start = 0
        while start < len(acts) and time.monotonic() < end:
            shorter = acts[:start] + acts[start + size :]
            found, _log = play(seed, shorter)
            if found and kind_of(found) == kind_of(failure):
                acts = shorter
            else:
                start += size
        size //= 2
    return acts


def report(seed: int, failure: str) -> None:
    print(f"seed {seed} fails: {failure.splitlines()[0]}")
    acts = shrink(seed, invent(seed, STEPS), failure)
    final, log = play(seed, acts)
    print(f"\nenough to cause it ({len(acts)} of {STEPS} acts):")
    print("\n".join(log))
    print(f"\n{final}")
    print(f"\nthe whole history again: make sim SEED={seed}")


def seeds(arguments: argparse.Namespace) -> Iterator[int]:
    if arguments.to is not None:
        yield from range(arguments.first, arguments.to)
        return
    end = time.monotonic() + arguments.seconds
    source = random.SystemRandom()
    while time.monotonic() < end:
        yield source.getrandbits(32)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, help="play this one and print its log")
    parser.add_argument("--seconds", type=float, default=60.0, help="explore for this long")
    parser.add_argument("--from", dest="first", type=int, default=0, help="first of a fixed set")
    parser.add_argument("--to", type=int, help="end of a fixed set")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        failure, log = play(arguments.seed)
        print("\n".join(log))
        print(f"\nseed {arguments.seed}: {failure or 'nothing lost, both copies equal'}")
        return 1 if failure else 0
    started, count = time.monotonic(), 0
    for seed in seeds(arguments):
        failure, _log = play(seed)
        count += 1
        if failure:
            report(seed, failure)
            return 1
    minutes = (time.monotonic() - started) / 60
    print(f"{count} histories, nothing found; {count / minutes:.0f} a minute in pid {os.getpid()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
