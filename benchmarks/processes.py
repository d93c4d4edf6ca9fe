"""What processes use: processor time and memory, read from the kernel."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.stage import BenchError

CPUCLOCK_SCHED = 2
"""Of the Linux clock ids of other processes: time scheduled, to the nanosecond, of all threads, those
that have ended included."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the processes have used, together."""
    return sum(time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) for pid in pids)


def processor_percent(pids: Sequence[int], seconds: float) -> list[float]:
    """What share of one processor each of them uses during the next `seconds`."""
    before = [cpu_seconds([pid]) for pid in pids]
    time.sleep(seconds)
    used = (cpu_seconds([pid]) - was for pid, was in zip(pids, before, strict=True))
    return [100 * one / seconds for one in used]


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise BenchError(f"process {pid} has no VmRSS")
