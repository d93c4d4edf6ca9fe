"""Which parts of a resynchronised range hold nothing but zeroes: they travel, and are kept, as holes.

Rules: comparisons of whole pieces, never a loop over bytes. Offsets and sizes are bytes.
What this file must not know: packets, who asked for the data.
"""

from __future__ import annotations

from typing import NamedTuple

from replicator.engine.ports import Buffer, Disk, Done
from replicator.engine.requests import Countdown

PIECE = 64 << 10
"""Zeroes inside of data are looked for in aligned pieces of this size: what smaller holes would save
is not worth a call to the disk for each."""

_ZEROES = bytes(1 << 20)


class Run(NamedTuple):
    """Bytes [start, end) of a range, all zero or not."""

    start: int
    end: int
    zero: bool


def is_zero(data: Buffer) -> bool:
    """Whether there is nothing but zeroes in `data`, of at most 1 MiB. Ends at the first other byte."""
    return _ZEROES.startswith(data)


def zero_runs(data: Buffer, offset: int) -> list[Run]:
    """`data`, which lies at byte `offset` of the disk, as alternating runs of data and zeroes."""
    runs: list[Run] = []
    view = memoryview(data)
    start, length = 0, len(view)
    while start < length:
        end = min(start + PIECE - (offset + start) % PIECE, length)
        zero = is_zero(view[start:end])
        if runs and runs[-1].zero is zero:
            runs[-1] = runs[-1]._replace(end=end)
        else:
            runs.append(Run(start, end, zero))
        start = end
    return runs


def may_unmap(offset: int, length: int, granularity: int) -> bool:
    """Whether the disk may take this range back: whole multiples of `rs-discard-granularity`."""
    return not granularity or not (offset % granularity or length % granularity)


def write_thin(
    disk: Disk, offset: int, length: int, data: Buffer, granularity: int, done: Done
) -> None:
    """Write data as data and zeroes as holes, so that a thin disk stays thin; done(first errno).

    data: `length` bytes, or b"" for nothing but zeroes.
    """
    runs = zero_runs(data, offset) if data else [Run(0, length, True)]
    part = Countdown(len(runs), done).part_done if len(runs) > 1 else done
    for start, end, zero in runs:
        if zero:
            unmap = may_unmap(offset + start, end - start, granularity) and not disk.allocated
            disk.zero(offset + start, end - start, unmap, part)
        elif len(runs) == 1:
            disk.write(offset, data, part)
        else:
            disk.write(offset + start, memoryview(data)[start:end], part)
