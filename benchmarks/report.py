"""The texts of a run: tables for a terminal and for docs/benchmarks.md, and the picture's rows.

Rules: only what was measured is in a table; what was not has its reason beside it. No number is
rounded to look better: three significant digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.picture import Bar, bars
from benchmarks.results import Results
from benchmarks.scenarios import NUMBERS
from benchmarks.targets import TARGETS
from benchmarks.workloads import Workload

PICTURE_TITLE = "Targets: ratio reached (bar, from 1) and wanted (mark), logarithmic"
WORDS = {True: "reached", False: "**not reached**", None: "not measured"}

PAGE = """\
# Benchmarks

What replicator does beside its peers on one machine, both nodes on it. Read ratios, not rates: a rate
says more about the machine, and about what else it was doing. This page, the picture and
[benchmarks.json](benchmarks.json) are written by `make bench`. [Where the time goes](speed.md) says why.

![The targets as bars](benchmarks.svg)

## Targets

A ratio is the median over the rounds of the ratio within a round, where both were measured seconds
apart. "qemu's best" is the fastest of all its configurations below in that workload.

{targets}

## Rates

Median of {rounds} rounds of {seconds:g} s each, contestants interleaved and beginning with another one each
round. Both copies are files in {directory}; clients come by a Unix socket, replicator's nodes talk by TCP
over loopback, and so does qemu to its second copy where that says tcp.

{rates}

{legend}

*Median latency* of the same runs, in
microseconds:

{latencies}

*Processor time per operation* of all processes of a contestant, those of both copies, in microseconds. This is
what a busy machine distorts least:

{processor}

## Other measurements

{numbers}

{missing}

## The machine

{machine}

## Repeating it

    make bench              # everything, writes this page
    make bench QUICK=1      # under two minutes: a few contestants and workloads, writes build/bench/
    make bench DIR=/mnt/x   # both copies there instead of in /dev/shm
    .venv/bin/python -m benchmarks --help

Nothing else should run meanwhile. Beside what `make setup` installs it needs `qemu-storage-daemon`
(Debian: `qemu-system-common`) for qemu's part; without it that part is left out, and said to be.

What is compared:

- **replicator** by each front end and protocol, resync rate not limited, all else default.
- **qemu quorum**: `qemu-storage-daemon` with a quorum of a file and an NBD client, `vote-threshold` 2, `read-pattern`
  fifo. **qemu mirror**: a `blockdev-mirror` job with `copy-mode` write-blocking, once it is ready. The second
  copy is served by nbdkit's file plugin, which gave qemu its best rates for writes. An iothread is not used:
  quorum stops with an assertion there (qemu 7.2). Neither remembers which blocks differ after a failure, makes
  the peer flush before a write is stable, or decides who has the good data.
- **one copy**: nbdkit's file plugin alone, no network: what NBD costs by itself.
- **GlusterFS** is not measured: its bricks refuse loopback addresses. By hand, in a network namespace on a busy
  machine (10.3, replica 2, write-behind off, fio's gfapi_async) it did 1,900 random 4 KiB writes per second at depth
  1 and 3,700 at depth 32.
- **dd**: `dd | TCP socket | dd` of the whole volume, what a copy without any bookkeeping takes.

## The JSON file

| field | what |
|---|---|
| `schema` | 1; raised when a field changes its meaning |
| `machine` | `cpu`, `cpus`, `memory_kib`, `kernel`, `python`, `replicator` (commit, `+` if changed), `versions`, \
`load_before`, `load_after` (processes that wanted a processor, last minute) |
| `settings` | `rounds`, `seconds` of each fio run, `size_bytes` of a volume, `directory`, `disk_directory`, `quick` |
| `contestants`, `workloads` | key: title |
| `fio` | workload: contestant: a list with one object per round: `iops`, `mib` (MiB/s), `p50_us`, `p99_us` \
(completion latency, microseconds), `cpu_us` (processor \
microseconds per operation) |
| `numbers` | name: `unit` and `rounds`, one number per round |
| `missing` | what was not measured: why |
"""


def page(results: Results) -> str:
    """docs/benchmarks.md."""
    settings = results.settings
    return PAGE.format(
        targets=table(("target", "wanted", "measured", ""), _target_rows(results)),
        rounds=settings["rounds"],
        seconds=settings["seconds"],
        directory=f"`{settings['directory']}` (for the flushes: `{settings['disk_directory']}`)",
        rates=_matrix(results, _rate),
        legend="\n".join(_legend(results)),
        latencies=_matrix(results, _latency),
        processor=_matrix(results, _processor),
        numbers=table(("", "median", "unit"), _number_rows(results)),
        missing="\n".join(f"- {key}: not measured, {why}" for key, why in results.missing.items()),
        machine=table(("", ""), _machine_rows(results)),
    )


def summary(results: Results) -> str:
    """For the terminal."""
    parts = ["rates:\n" + _matrix(results, _rate)]
    parts.append("processor microseconds per operation:\n" + _matrix(results, _processor))
    parts += [table(("", "median", "unit"), _number_rows(results))]
    parts.append(table(("target", "wanted", "measured", ""), _target_rows(results)))
    parts += [f"not measured: {key}: {why}" for key, why in results.missing.items()]
    return "\n\n".join(parts).replace("**", "")


def picture(results: Results) -> str:
    """SVG of the targets that are ratios."""
    found = [(one, one.value(results)) for one in TARGETS if not one.unit]
    return bars(
        PICTURE_TITLE,
        [
            Bar(one.title, value, one.goal, bool(one.reached(results)))
            for one, value in found
            if value is not None
        ],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, with columns in line."""
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def digits(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _target_rows(results: Results) -> list[list[str]]:
    return [
        [
            one.title,
            f"{'≥' if one.at_least else '≤'} {one.goal:g} {one.unit}".strip(),
            f"{digits(one.value(results))} {one.unit}".strip(),
            WORDS[one.reached(results)],
        ]
        for one in TARGETS
    ]


def _rate(results: Results, workload: Workload, contestant: str) -> str:
    return digits(results.median(workload.key, contestant, workload.measure))


def _latency(results: Results, workload: Workload, contestant: str) -> str:
    return digits(results.median(workload.key, contestant, "p50_us"))


def _processor(results: Results, workload: Workload, contestant: str) -> str:
    return digits(results.median(workload.key, contestant, "cpu_us"))


def _matrix(results: Results, cell: Callable[[Results, Workload, str], str]) -> str:
    head = ["", *(one.short for one in results.workloads)]
    rows = [
        [one.title, *(cell(results, workload, one.key) for workload in results.workloads)]
        for one in results.contestants
    ]
    return table(head, rows)


def _legend(results: Results) -> list[str]:
    units = {"iops": "operations per second", "mib": "MiB per second"}
    return [f"- *{one.short}*: {one.title}, {units[one.measure]}" for one in results.workloads]


def _number_rows(results: Results) -> list[list[str]]:
    return [
        [title, digits(results.number(name)), unit]
        for name, (title, unit) in NUMBERS.items()
        if name in results.numbers
    ]


def _machine_rows(results: Results) -> list[list[str]]:
    flat = {key: value for key, value in results.machine.items() if key != "versions"}
    versions = results.machine["versions"]
    assert isinstance(versions, dict)
    return [[str(key), str(value)] for key, value in {**flat, **versions}.items()]
