"""What the project wants to reach, as ratios within one run, and whether a run reached it.

Rules: a target that was not measured is neither reached nor missed. The targets are promises to
users: they are changed by a decision, not to make a table look better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Results

QEMU = "qemu"
ONE_COPY = "one copy"
DAEMON_MIB = 64
MIB_PER_TIB = 34


@dataclass(frozen=True)
class Target:
    """at_least: else at most. value: what the run reached, None if it was not measured."""

    title: str
    goal: float
    value: Callable[[Results], float | None]
    unit: str = ""
    at_least: bool = True

    def reached(self, results: Results) -> bool | None:
        value = self.value(results)
        if value is None:
            return None
        return value >= self.goal if self.at_least else value <= self.goal


def _beside(contestant: str, workload: str, family: str, words: str, goal: float) -> Target:
    def value(results: Results) -> float | None:
        return results.ratio(workload, contestant, results.best(workload, family))

    front_end = contestant.partition("-")[0]
    other = {QEMU: "qemu's best", ONE_COPY: "one nbdkit copy"}[family]
    return Target(f"{front_end}: {words} / {other}", goal, value)


def _number(name: str, title: str, goal: float, unit: str) -> Target:
    return Target(title, goal, lambda results: results.number(name), unit, at_least=False)


TARGETS = (
    _beside("native-C", "randwrite-4k-d32", QEMU, "4 KiB random write, depth 32", 2.5),
    _beside("native-C", "randwrite-4k-d1", QEMU, "4 KiB random write, depth 1", 1.3),
    _beside("native-C", "write-1m-d8", QEMU, "1 MiB sequential write, depth 8", 1.3),
    _beside("native-C", "randread-4k-d32", ONE_COPY, "4 KiB random read, depth 32", 1.0),
    _beside("native-C", "randwrite-4k-d32", ONE_COPY, "4 KiB random write, depth 32", 0.45),
    _beside("nbdkit-C", "randwrite-4k-d1", QEMU, "4 KiB random write, depth 1", 1.0),
    _beside("nbdkit-C", "randwrite-4k-d32", QEMU, "4 KiB random write, depth 32", 0.7),
    Target(
        "full resync / dd through a socket",
        0.7,
        lambda results: results.number_ratio("resync_mib_s", "dd_mib_s"),
    ),
    Target(
        "99 % latency of a write during a resync / without one",
        3.0,
        lambda results: results.number_ratio("resync_p99_us", "idle_p99_us"),
        at_least=False,
    ),
    _number("failover_s", "failover, from SIGKILL to the first write", 1.0, "s"),
    _number("idle_cpu_percent", "processor of an idle daemon", 0.5, "%"),
    _number("rss_mib", "memory of a daemon", DAEMON_MIB, "MiB"),
    _number("rss_tib_mib", "memory of a daemon with 1 TiB", DAEMON_MIB + MIB_PER_TIB, "MiB"),
)
