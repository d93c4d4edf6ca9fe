"""Play invented histories from a shell: one by its seed, or as many new ones as time allows.

    python -m tests.simulation.explore --seed 7             # one, with everything that was logged
    python -m tests.simulation.explore --seed 7 --steps 9   # the same seed, but only so many acts
    python -m tests.simulation.explore --seconds 600        # from a seed that nobody has seen yet
    python -m tests.simulation.explore --from 0 --to 500    # a fixed set
    python -m tests.simulation.explore --from 0 --to 500000 --jobs 8

Every seed stands for one history of each kind (see campaign.KINDS); --kind chooses one of them. Most
histories of a campaign are shorter than their seed says (see campaign.task).
A failure prints the command that repeats it, and the acts that are enough to cause it.
Campaigns play in the compiled twin if there is one (`make twin`), and what fails again in Python.
Exit status 0: nothing found; 1: a history failed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from replicator import compiled
from tests.simulation.campaign import KINDS, Task, batches, digest, disagreement, played, run
from tests.simulation.checkers.reached import never_reached, rows
from tests.simulation.histories import Act
from tests.simulation.twin import SELECTION

SHRINK_SECONDS = 120.0
BOTH = 20
"""Seeds that a campaign with the compiled twin plays in Python, too."""


def play(seed: int, acts: list[Act] | None = None, kind: str = "link") -> tuple[str, list[str]]:
    """Play one history: ("" or what went wrong, the log)."""
    failure, history = played(Task(kind, seed), acts)
    return failure, history.pair.lines


def kind_of(failure: str) -> str:
    """Failures of one kind begin alike: the class, and the words before the first number."""
    return "".join(c for c in failure.split("\n")[0] if not c.isdigit())[:40]


def shrink(task: Task, acts: list[Act], failure: str, seconds: float) -> list[Act]:
    """Leave out acts, in halves and then one by one, as long as it still fails in the same way."""
    end = time.monotonic() + seconds
    size = max(1, len(acts) // 2)
    while size and time.monotonic() < end:
        start = 0
        while start < len(acts) and time.monotonic() < end:
            shorter = acts[:start] + acts[start + size :]
            found, _history = played(task, shorter)
            if found and kind_of(found) == kind_of(failure):
                acts = shorter
            else:
                start += size
        size //= 2
    return acts


def report(task: Task, failure: str, shrink_seconds: float = SHRINK_SECONDS) -> None:
    print(f"{task.kind} history of seed {task.seed} fails: {failure.splitlines()[0]}", flush=True)
    here, history = played(task)
    if kind_of(here) != kind_of(failure):
        print(
            f"but only in the compiled twin, in Python: {here or 'nothing lost'}; make sim {task}"
        )
        return
    whole = history.acts
    acts = shrink(task, whole, failure, shrink_seconds)
    final, history = played(task, acts)
    print(f"\nenough to cause it ({len(acts)} of {len(whole)} acts):")
    print("\n".join(history.pair.lines))
    print(f"\n{final}")
    print(f"\nthe whole history again: make sim {task}")


def show(seed: int, kinds: list[str], steps: int) -> int:
    """Play the histories of one seed and print their logs. Returns the exit status."""
    failed = 0
    for kind in kinds:
        failure, history = played(Task(kind, seed, steps))
        print("\n".join(history.pair.lines))
        print(f"\n{kind} history of seed {seed}: {failure or 'nothing lost, both copies equal'}\n")
        failed |= bool(failure)
    return failed


def print_digests(first: int, end: int, kinds: list[str], steps: int) -> None:
    for seed in range(first, end):
        for kind in kinds:
            print(kind, seed, digest(Task(kind, seed, steps)))


def print_reached(counts: Counter[str]) -> None:
    """How much of the engine's decision tables was reached, and what was not."""
    every, never = list(rows()), never_reached(counts)
    print(f"{len(every) - len(never)} of {len(every)} rows of the decision tables reached; never:")
    print("\n".join(f"  {name}" for name in never) or "  none")


def sample(kinds: list[str], first: int, steps: int) -> list[Task]:
    """What a campaign from this seed plays with the twin and without it."""
    work = batches(kinds, first, first + BOTH, None, steps)
    return [one for batch in work for one in batch]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, help="play the histories of this one, print their logs")
    parser.add_argument("--kind", choices=sorted(KINDS), help="only histories of this kind")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="acts of each; default what the seed says, in a campaign for a quarter of the seeds",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="explore for this long")
    parser.add_argument("--from", dest="first", type=int, help="first seed; default a random one")
    parser.add_argument("--to", type=int, help="end with the seed before this one")
    parser.add_argument("--jobs", type=int, default=1, help="processes; default 1")
    parser.add_argument(
        "--python", action="store_true", help="not with the compiled twin, also if it is there"
    )
    parser.add_argument("--digests", action="store_true", help="print the digest of each trace")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    kinds = [options.kind] if options.kind else list(KINDS)
    if options.seed is not None:
        return show(options.seed, kinds, options.steps)
    first = random.SystemRandom().getrandbits(32) if options.first is None else options.first
    if options.digests:
        end = first + 1 if options.to is None else options.to
        print_digests(first, end, kinds, options.steps)
        return 0
    stop = time.monotonic() + options.seconds if options.to is None else None
    to = "" if options.to is None else f" to {options.to - 1}"
    print(f"histories of kind {' and '.join(kinds)}, seeds from {first}{to}", flush=True)
    twin = compiled.Twin(None, "--python") if options.python else compiled.find(selection=SELECTION)
    print(f"engine and simulator: {twin}", flush=True)
    if twin.directory is not None and (other := disagreement(sample(kinds, first, options.steps))):
        print(f"the twin plays another history than Python: make sim {other}")
        return 1
    work = batches(kinds, first, options.to, stop, options.steps)
    total = run(work, max(1, options.jobs), compiled=twin.directory is not None)
    print_reached(total.reached)
    for task, failure in total.failures[:1]:
        report(task, failure)
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
