"""The arithmetic of a running resync or verify: per mille, bar, speeds, time left.

Rules: integer arithmetic exactly as /proc/drbd of DRBD 8.4 shows it, for any input, without ever
leaving 0..1000 per mille or a negative number. Amounts are bits (4 KiB blocks) unless named
otherwise. Where these numbers come from is none of this file's business.
"""

from __future__ import annotations

from typing import NamedTuple

from replicator.engine.snapshot import Progress

BITS_SHIFT = 10
BITS_SHIFT_HUGE = 16
"""For 2^32 bits (16 TiB) and more, so that the reference's 32-bit arithmetic does not overflow."""
HUGE_BITS = 1 << 32
KIB_PER_BIT = 4
MIB_UNIT_BITS = 1 << 20
"""Above so many bits (4 GiB) amounts are shown in MiB."""
STALLED_AFTER = 180
"""Seconds without a new mark after which a run is called stalled."""
BAR_STEPS = 20
RESYNC_STATES = frozenset({"SyncSource", "SyncTarget"})
VERIFY_STATES = frozenset({"VerifyS", "VerifyT"})
RUNNING_STATES = RESYNC_STATES | VERIFY_STATES
REQUESTING_STATES = frozenset({"SyncTarget", "VerifyS"})
"""The side that asks for blocks, and so has a wanted rate."""


class Speeds(NamedTuple):
    """recent, average: KiB/s; seconds_left: at the recent speed; stalled: no progress for minutes."""

    recent: int
    average: int
    seconds_left: int
    stalled: bool


def per_mille(total: int, left: int) -> int:
    """How much is done, 0 to 1000. More left than there was to do counts as nothing done."""
    if left > total:
        return 0
    left = max(left, 0)
    shift = BITS_SHIFT_HUGE if total >= HUGE_BITS else BITS_SHIFT
    return 1000 - (left >> shift) * 1000 // ((total >> shift) + 1)


def percent_text(mille: int) -> str:
    """Width 5, as in ` 24.0` and `100.0`."""
    return f"{mille // 10:3d}.{mille % 10}"


def bar(mille: int) -> str:
    """20 characters between the brackets; 21 below five per cent, as administrators know it."""
    x = mille // (1000 // BAR_STEPS)
    return "[" + "=" * max(0, x - 1) + ">" + "." * (BAR_STEPS - x) + "]"


def speeds(progress: Progress) -> Speeds:
    mark_seconds = max(int(progress.mark_age), 0)
    stalled = mark_seconds > STALLED_AFTER
    mark_seconds = max(mark_seconds, 1)
    left = max(progress.left, 0)
    since_mark = max(progress.mark_left - left, 0)
    since_start = max(progress.total - left, 0)
    return Speeds(
        recent=KIB_PER_BIT * (since_mark // mark_seconds),
        average=KIB_PER_BIT * (since_start // max(int(progress.elapsed), 1)),
        seconds_left=mark_seconds * (left // (since_mark // 100 + 1)) // 100,
        stalled=stalled,
    )


def duration_text(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def amounts_text(total: int, left: int) -> str:
    """`(left/total)K` or, for large runs, `(left/total)M`."""
    left = max(left, 0)
    if total > MIB_UNIT_BITS:
        return f"({KIB_PER_BIT * (left >> 10)}/{KIB_PER_BIT * (total >> 10)})M"
    return f"({KIB_PER_BIT * left}/{KIB_PER_BIT * total})K"


def progress_lines(cs: str, progress: Progress) -> tuple[str, str]:
    """The bar line and the finish line, without indentation and line ends.

    cs: the connection state; it decides the word and whether the wanted rate is shown.
    """
    mille = per_mille(progress.total, progress.left)
    word = "verified:" if cs in VERIFY_STATES else "sync'ed:"
    first = (
        f"{bar(mille)} {word}{percent_text(mille)}% {amounts_text(progress.total, progress.left)}"
    )
    rate = speeds(progress)
    want = ""
    if cs in REQUESTING_STATES and progress.want is not None:
        want = f" want: {progress.want:,}"
    second = (
        f"finish: {duration_text(rate.seconds_left)} speed: {rate.recent:,} ({rate.average:,})"
        f"{want} K/sec{' (stalled)' if rate.stalled else ''}"
        f"{f' ({progress.reason})' if progress.reason else ''}"
    )
    return first, second


def done_percent(progress: Progress) -> float:
    """Percent done without the rounding of the bar, 0.0 to 100.0 in hundredths."""
    if progress.total <= 0:
        return 100.0
    left = min(max(progress.left, 0), progress.total)
    return 10000 * (progress.total - left) // progress.total / 100
