"""Many histories, on as many processors as one likes: who plays which, and what came of it.

Histories are handed out in batches of consecutive seeds. The first one that fails ends the campaign;
so does an interrupt, and both end it with a count.
What this file must not know: what a history is made of.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import queue
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import Pool
from typing import NamedTuple

from tests.simulation.checkers.reached import REACHED
from tests.simulation.disk_histories import DiskHistory
from tests.simulation.harsh_histories import HarshHistory
from tests.simulation.histories import Act, History
from tests.simulation.late_histories import LateHistory
from tests.simulation.trace import Trace

KINDS: dict[str, type[History]] = {
    "link": History,
    "disk": DiskHistory,
    "harsh": HarshHistory,
    "late": LateHistory,
}
"""Kinds of histories: faults of nodes and links; of disks and orders as well; at their worst; and among
what comes late."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
BATCH = 10
"""Seeds that one process plays before it reports."""

SHORT_OTHER = range(4, 13), 0.75
SHORT = {"late": (range(2, 8), 0.875)}
"""By kind: how many acts a short history of a campaign has, and the share of those. What needs many faults
in a row is left to the others, which are as long as their seed says. Of the late ones each act is made
of several faults, and costs as much as four others."""


class Task(NamedTuple):
    """Which history. steps: how many acts it has; 0: as many as the seed says."""

    kind: str
    seed: int
    steps: int = 0

    def __str__(self) -> str:
        steps = f" STEPS={self.steps}" if self.steps else ""
        return f"SEED={self.seed} KIND={self.kind}{steps}"


def task(kind: str, seed: int) -> Task:
    """What a campaign plays of a seed: most histories short, the others whole."""
    rng = random.Random(f"length of {kind} {seed}")
    lengths, share = SHORT.get(kind, SHORT_OTHER)
    return Task(kind, seed, rng.choice(lengths) if rng.random() < share else 0)


@dataclass
class Outcome:
    """What a batch, or a whole campaign, came to."""

    histories: int = 0
    acts: int = 0
    steps: int = 0
    failures: list[tuple[Task, str]] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    """How often each row of the engine's decision tables was reached."""

    def add(self, other: Outcome) -> None:
        self.histories += other.histories
        self.acts += other.acts
        self.steps += other.steps
        self.failures += other.failures
        self.reached += other.reached


def played(task: Task, acts: list[Act] | None = None) -> tuple[str, History]:
    """Play one history: ("" or what went wrong, the history as it ended)."""
    history = KINDS[task.kind](task.seed, task.steps, acts)
    try:
        history.run()
    except Exception as error:
        # Any exception of the engine or a checker is a finding.
        return f"{type(error).__name__}: {error}", history
    return "", history


def digest(task: Task) -> str:
    """Of all that this history does (trace.py), and how it ends."""
    history = KINDS[task.kind](task.seed, task.steps)
    trace = Trace(history)
    try:
        history.run()
    except Exception as error:
        return f"{trace.digest()} {type(error).__name__}: {error}"
    return trace.digest()


def digests(tasks: list[Task]) -> list[str]:
    return [digest(one) for one in tasks]


def disagreement(tasks: list[Task]) -> Task | None:
    """Play these here and in a process with the twin: the first that is not the same, if there is one."""
    with workers(1, compiled=True) as pool:
        theirs = pool.apply_async(digests, (tasks,))
        ours = digests(tasks)
        pairs = zip(tasks, ours, theirs.get(), strict=True)
        return next((one for one, our, their in pairs if our != their), None)


def play_batch(tasks: list[Task]) -> Outcome:
    outcome = Outcome()
    REACHED.clear()
    for task in tasks:
        failure, history = played(task)
        outcome.histories += 1
        outcome.acts += len(history.acts)
        outcome.steps += history.pair.clock.steps
        if failure:
            outcome.failures.append((task, failure))
            break
        del history
        gc.collect()
    outcome.reached = REACHED.copy()
    return outcome


def batches(
    kinds: list[str], first: int, end: int | None, stop: float | None, steps: int = 0
) -> Iterator[list[Task]]:
    """Seeds from `first` to before `end`, or until the monotonic time `stop`, each with every kind;
    steps: acts of each."""
    seed = first
    while (end is None or seed < end) and (stop is None or time.monotonic() < stop):
        after = seed + BATCH if end is None else min(seed + BATCH, end)
        yield [
            Task(kind, number, steps) if steps else task(kind, number)
            for number in range(seed, after)
            for kind in kinds
        ]
        seed = after


def _start_worker() -> None:
    """The interrupt is for the one who counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_memory()


def keep_memory() -> None:
    """Garbage is looked for when a history has ended (play_batch), seldom in the middle of one. And what
    is freed is kept for the next large buffer, instead of given back to the system and got again."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_TRIM_THRESHOLD, 256 << 20)
        set_option(M_MMAP_THRESHOLD, 32 << 20)


def workers(jobs: int, *, compiled: bool) -> Pool:
    """Processes that play. compiled: with the simulator's twin, which must be there."""
    if not compiled:
        return multiprocessing.Pool(jobs, _start_worker)
    os.environ["REPLICATOR_TEST_ENGINE"] = (
        "simulator"  # for the new processes: this one is what it is
    )
    try:
        return multiprocessing.get_context("spawn").Pool(jobs, _start_worker)
    finally:
        del os.environ["REPLICATOR_TEST_ENGINE"]


def run(
    work: Iterator[list[Task]], jobs: int, *, compiled: bool = False, progress_seconds: float = 60.0
) -> Outcome:
    """Play until the work ends, one history fails, or somebody interrupts. compiled: see workers()."""
    total, started = Outcome(), time.monotonic()
    said = started
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell began it in the background
        signal.signal(number, signal.default_int_handler)
    try:
        for outcome in _outcomes(work, jobs, compiled):
            total.add(outcome)
            if time.monotonic() - said >= progress_seconds:
                said = time.monotonic()
                print(f"  {count_line(total, said - started)}", flush=True)
            if total.failures:
                break
    except KeyboardInterrupt:
        print("interrupted")
    print(count_line(total, time.monotonic() - started), flush=True)
    return total


def _outcomes(work: Iterator[list[Task]], jobs: int, compiled: bool) -> Iterator[Outcome]:
    if jobs == 1 and not compiled:
        keep_memory()
        yield from map(play_batch, work)
        return
    done: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    under_way = 0
    with workers(jobs, compiled=compiled) as pool:
        while True:
            for tasks in itertools.islice(work, 2 * jobs - under_way):
                pool.apply_async(play_batch, (tasks,), callback=done.put, error_callback=done.put)
                under_way += 1
            if not under_way:
                return
            outcome = done.get()
            under_way -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome


def count_line(total: Outcome, seconds: float) -> str:
    rate = total.histories / max(seconds, 1e-9)
    return (
        f"{total.histories:,} histories, {total.acts:,} acts and faults, {total.steps:,} events in "
        f"{seconds:.0f} s ({60 * rate:,.0f} a minute), {len(total.failures)} violations"
    )
