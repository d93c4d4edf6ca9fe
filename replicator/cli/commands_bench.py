"""bench: how long disk, link and mirrored writes take on a pair that is in use, and where time goes.

Rules: without --write nothing is written at all; with it only blocks with the content they have (see
engine.probe). What cannot be measured now is said, with the reason, and does not stop the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replicator.cli.context import Context, Target
from replicator.cli.daemon_link import ask, snapshot
from replicator.engine.probe import LINK, WRITE, WRITE_FLUSH, WRITE_HERE
from replicator.errors import ReplicatorError
from replicator.runtime.probe import check_bounds

if TYPE_CHECKING:
    from replicator.engine.snapshot import ResourceSnapshot

SCHEMA = 1
COUNT = 1000
"""Steps of each measurement at most; the option --seconds bounds it too."""
DEFAULT_SECONDS = 1.0
PATIENCE = 15.0
"""Seconds the daemon may take beyond a measurement's own."""
DISK_READ = "disk-read"
DISK_FLUSH = "disk-flush"

TITLES = {
    DISK_READ: "disk: read 4 KiB",
    DISK_FLUSH: "disk: flush, metadata",
    LINK: "link: round trip",
    WRITE_HERE: "write 4 KiB: this disk alone",
    WRITE: "write 4 KiB: mirrored",
    WRITE_FLUSH: "write 4 KiB and flush: mirrored",
}


@dataclass(slots=True)
class Measured:
    """Of one volume. times: seconds of each step, ascending; missing: why there are none."""

    name: str
    found: ResourceSnapshot
    number: int
    times: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    direct: bool = True

    def microseconds(self, kind: str, share: float = 0.5) -> float | None:
        """The time that `share` of the steps did not exceed; None if it was not measured."""
        times = self.times.get(kind)
        if not times:
            return None
        return times[min(len(times) - 1, int(share * len(times)))] * 1e6


def bench(context: Context) -> int:
    """Exit code 0 if every volume was measured, else that of the first error."""
    documents: list[dict[str, Any]] = []
    seconds = _seconds(context)

    def measure(target: Target) -> None:
        measured = _measure(context, target, target.numbers[0], seconds)
        if context.options["json"]:
            documents.append(document(measured))
        else:
            context.terminal.answer(text(measured))

    code = context.for_each(context.volume_targets(), measure)
    if context.options["json"]:
        answer = {"schema": SCHEMA, "node": context.node, "volumes": documents}
        context.terminal.answer(json.dumps(answer, indent=2, allow_nan=False) + "\n")
    return code


def _measure(context: Context, target: Target, number: int, seconds: float) -> Measured:
    found = snapshot(context, target.resource)
    measured = Measured(target.label(number), found, number)
    (volume,) = (one for one in target.volumes if one.number == number)
    meta = volume.disk if volume.meta_disk.kind == "internal" else volume.meta_disk.path
    try:
        disk = context.world.measure_disk(volume.disk, meta, COUNT, seconds)
        measured.times |= {DISK_READ: sorted(disk.reads), DISK_FLUSH: sorted(disk.flushes)}
        measured.direct = disk.direct
    except ReplicatorError as error:
        measured.missing[DISK_READ] = measured.missing[DISK_FLUSH] = error.message
    writes = (WRITE_HERE, WRITE, WRITE_FLUSH) if context.options["write"] else ()
    for kind in (LINK, *writes):
        arguments = {"volume": number, "kind": kind, "count": COUNT, "seconds": seconds}
        try:
            times = ask(context, target.resource, "bench", seconds + PATIENCE, **arguments)
            measured.times[kind] = sorted(times)
        except ReplicatorError as error:
            measured.missing[kind] = error.message
    return measured


def _seconds(context: Context) -> float:
    """Of each measurement. Raises UsageError."""
    given: float | None = context.options["seconds"]
    if given is None:
        return DEFAULT_SECONDS
    check_bounds(COUNT, given)
    return given


def document(measured: Measured) -> dict[str, Any]:
    """One element of `volumes`, see docs/status.md."""
    (volume,) = (one for one in measured.found.volumes if one.volume == measured.number)
    kinds = {
        kind: {
            "samples": len(times),
            "min_us": round(times[0] * 1e6, 1),
            "p50_us": round(measured.microseconds(kind) or 0, 1),
            "p99_us": round(measured.microseconds(kind, 0.99) or 0, 1),
            "max_us": round(times[-1] * 1e6, 1),
        }
        for kind, times in measured.times.items()
        if times
    }
    return {
        "name": measured.name,
        "role": volume.role,
        "cs": volume.cs,
        "protocol": measured.found.protocol,
        "direct": measured.direct,
        "measured": kinds,
        "missing": measured.missing,
    }


def text(measured: Measured) -> str:
    """For people."""
    (volume,) = (one for one in measured.found.volumes if one.volume == measured.number)
    lines = [
        f"{measured.name} {volume.role}, {volume.cs}, protocol {measured.found.protocol}",
        f"  {'':32}{'median':>12}{'99 %':>12}{'one by one':>14}",
    ]
    for kind, title in TITLES.items():
        if median := measured.microseconds(kind):
            slow = measured.microseconds(kind, 0.99) or median
            lines.append(
                f"  {title:32}{_duration(median):>12}{_duration(slow):>12}{1e6 / median:>12,.0f}/s"
            )
        elif kind in measured.missing:
            lines.append(f"  {title:32}  not measured: {measured.missing[kind]}")
    lines += [f"  {remark}" for remark in remarks(measured)]
    return "\n".join(lines) + "\n"


def remarks(measured: Measured) -> list[str]:
    """Where the time of a mirrored write goes, as far as that was measured."""
    found = []
    if not measured.direct:
        found.append("the disk has no direct I/O: its reads may come from the page cache")
    write, link = measured.microseconds(WRITE), measured.microseconds(LINK)
    here, flushed = measured.microseconds(WRITE_HERE), measured.microseconds(WRITE_FLUSH)
    if write and link and here:
        rest = max(0.0, write - max(link, here))
        found.append(
            f"of {_duration(write)} for a mirrored write, the link's round trip is "
            f"{_duration(link)}, this disk at the same time {_duration(here)}; "
            f"{_duration(rest)} are the peer's disk and the work of both daemons"
        )
    if write and flushed:
        found.append(
            f"a flush adds {_duration(max(0.0, flushed - write))}: both disks' caches, and the link"
        )
    return found


def _duration(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.1f} ms"
