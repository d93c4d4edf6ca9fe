"""What is asked of each contestant, and how fio is run and read.

Rules: one fio process per measurement; every contestant sees the same sequence of offsets; a fio
that reports an error is no measurement.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.contestants import Fio, Served
from benchmarks.stage import BenchError

MIB = 1 << 20
FIO_PATIENCE = 60.0
"""Seconds that fio may take beyond its run time: a flush of a slow disk."""


@dataclass(frozen=True)
class Workload:
    """short: heading of a column. options: fio's. measure: the field of Result that is its rate.
    disk: measured on a real disk, not in the page cache."""

    key: str
    short: str
    title: str
    options: tuple[str, ...]
    measure: str = "iops"
    quick: bool = False
    disk: bool = False


def _random(kind: str, depth: int) -> Workload:
    words = {"randwrite": "write", "randread": "read"}[kind]
    return Workload(
        f"{kind}-4k-d{depth}",
        f"{words} d{depth}",
        f"4 KiB random {words}, depth {depth}",
        (f"--rw={kind}", "--bs=4k", f"--iodepth={depth}"),
        quick=depth != 8 and (kind, depth) != ("randread", 1),
    )


WORKLOADS = (
    *(_random("randwrite", depth) for depth in (1, 8, 32)),
    *(_random("randread", depth) for depth in (1, 8, 32)),
    Workload(
        "mixed-4k-d8",
        "70/30 d8",
        "4 KiB random, 70 % read, depth 8",
        ("--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=8"),
    ),
    Workload(
        "randwrite-64k-d8",
        "64k write",
        "64 KiB random write, depth 8",
        ("--rw=randwrite", "--bs=64k", "--iodepth=8"),
    ),
    Workload(
        "write-1m-d8",
        "1M write",
        "1 MiB sequential write, depth 8",
        ("--rw=write", "--bs=1m", "--iodepth=8"),
        measure="mib",
        quick=True,
    ),
    Workload(
        "read-1m-d8",
        "1M read",
        "1 MiB sequential read, depth 8",
        ("--rw=read", "--bs=1m", "--iodepth=8"),
        measure="mib",
    ),
    Workload(
        "flush-4k-d1",
        "flushed",
        "4 KiB random write, each flushed, on the disk",
        ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"),
        disk=True,
    ),
    Workload(
        "disk-randwrite-4k-d32",
        "disk d32",
        "4 KiB random write, depth 32, on the disk",
        ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
        disk=True,
    ),
)


@dataclass(frozen=True)
class Result:
    """Of one fio run, reads and writes together: operations and MiB per second; completion latency
    in microseconds; processor time of the contestant per operation in microseconds, which is what
    a busy machine distorts least."""

    iops: float
    mib: float
    p50_us: float
    p99_us: float
    cpu_us: float


def fill(served: Served, size: int, directory: Path) -> None:
    """Write every block once, so that none is a hole."""
    _fio(served.fio, ("--rw=write", "--bs=1m", "--iodepth=8"), size, directory)


def run(
    served: Served, options: tuple[str, ...], size: int, seconds: float, directory: Path
) -> Result:
    """Measure for `seconds` in the first `size` bytes of the volume. Raises BenchError."""
    timed = (*options, f"--runtime={round(seconds * 1000)}ms", "--time_based")
    before = processes.cpu_seconds(served.pids)
    job = _fio(served.fio, timed, size, directory, seconds)
    used = processes.cpu_seconds(served.pids) - before
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    if not sides:
        raise BenchError(f"fio did nothing within {seconds:g} s: {options}")
    main = max(sides, key=lambda side: float(side["total_ios"]))
    percentiles = main["clat_ns"]["percentile"]
    return Result(
        iops=sum(side["iops"] for side in sides),
        mib=sum(side["bw_bytes"] for side in sides) / MIB,
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
        cpu_us=used * 1e6 / sum(side["total_ios"] for side in sides),
    )


def _fio(
    target: Fio, options: tuple[str, ...], size: int, directory: Path, seconds: float = 0
) -> dict[str, Any]:
    output = directory / "fio.json"
    command = ["fio", "--name=bench", *target, *options, f"--size={size}"]
    command += ["--randrepeat=1", "--output-format=json", f"--output={output}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + FIO_PATIENCE, cwd=directory
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
    try:
        (job,) = json.loads(output.read_text())["jobs"]
    except ValueError:
        raise BenchError(f"{' '.join(command)}: no result: {output.read_text()[:500]}") from None
    if job["error"]:
        raise BenchError(f"{' '.join(command)}: fio met error {job['error']}")
    return dict(job)
