"""Generation identifiers as people read and write them: get-gi, show-gi, set-gi.

What this file must not know: devices; when generations change.
"""

from __future__ import annotations

import re
from dataclasses import replace

from replicator.errors import UsageError
from replicator.metadata.superblock import GI_FLAGS, Flags, Superblock

_UUID_FIELDS = ("current", "bitmap", "history0", "history1")
_UUID_WORDS = (
    "current data generation",
    "generation the bitmap counts from",
    "younger history",
    "older history",
)
_FLAG_WORDS = (
    "data is consistent",
    "data was up to date",
    "was Primary",
    "was connected",
    "bitmap was being filled: full sync needed",
    "peer's disk was Outdated or Inconsistent",
    "crashed as Primary, not in sync with the peer since",
)
_UUID_WIDTH = 17


def show_gi(superblock: Superblock) -> str:
    """The get-gi line under a legend, and what it amounts to; several lines, ending in one."""
    lines = [""]
    for i, words in enumerate(_UUID_WORDS):
        arms = "".join("|".ljust(_UUID_WIDTH) for _ in range(i))
        lines.append(f"{arms}+-- {words}")
    lines.append("".join("v".ljust(_UUID_WIDTH) for _ in _UUID_WORDS).rstrip())
    lines.append(superblock.gi_line())
    start = _UUID_WIDTH * len(_UUID_WORDS)
    count = len(_FLAG_WORDS)
    lines.append(" " * start + " ".join("^" * count))
    for i, words in enumerate(_FLAG_WORDS):
        lines.append(f"{words} --+".rjust(start + 2 * i + 1) + " |" * (count - i - 1))
    lines += ["", f"flags: {_flag_summary(superblock.flags)}"]
    lines.append("meta-data: " + _cleanliness(superblock.flags))
    if superblock.la_size_sect:
        size = human_size(superblock.la_size_sect // 2)
        lines.append(f"last agreed size: {size} ({superblock.la_size_sect} sectors)")
        lines.append(f"last agreed max bio size: {superblock.la_peer_max_bio_size} Byte")
    else:
        lines.append("zero size device: no peer has been seen yet")
    return "\n".join(lines) + "\n"


def set_gi(superblock: Superblock, text: str) -> Superblock:
    """A copy with the fields that `text` gives, in get-gi's syntax. Empty fields keep their value,
    and the list may end early. Raises UsageError naming the field."""
    values = text.strip().split(":")
    names = [*_UUID_FIELDS, *(str(flag.name) for flag in GI_FLAGS)]
    if len(values) > len(names):
        raise UsageError(
            f"generation identifiers: expected at most {len(names)} fields, found {len(values)}"
        )
    result = replace(superblock)
    for name, value in zip(names, values, strict=False):
        if not value:
            continue
        if name in _UUID_FIELDS:
            if not re.fullmatch("[0-9A-Fa-f]{1,16}", value):
                raise UsageError(f"{name}: expected 1 to 16 hex digits, found {value!r}")
            setattr(result, name, int(value, 16))
        elif value == "1":
            result.flags |= Flags[name]
        elif value == "0":
            result.flags &= ~Flags[name]
        else:
            raise UsageError(f"{name}: expected 0 or 1, found {value!r}")
    return result


def human_size(kib: int) -> str:
    """A size as `NNNN unit`, at most four digits: 2000000 is "1953 MB"."""
    units = ("KB", "MB", "GB", "TB", "PB", "EB")
    unit = 0
    while kib >= 10000 and unit < len(units) - 1:
        kib = (kib >> 10) + (kib >> 9 & 1)
        unit += 1
    return f"{kib} {units[unit]}"


def _flag_summary(flags: Flags) -> str:
    crashed = "crashed " if flags & Flags.CRASHED_PRIMARY else ""
    if not flags & Flags.CONSISTENT:
        data = "Inconsistent"
    else:
        data = "UpToDate" if flags & Flags.WAS_UP_TO_DATE else "Outdated"
    return (
        f"{crashed}{'Primary' if flags & Flags.PRIMARY_IND else 'Secondary'}, "
        f"{'Connected' if flags & Flags.CONNECTED_IND else 'StandAlone'}, {data}"
        f"{', need full sync' if flags & Flags.FULL_SYNC else ''}"
        f"{', peer Outdated' if flags & Flags.PEER_OUT_DATED else ''}"
    )


def _cleanliness(flags: Flags) -> str:
    return "clean" if flags & Flags.AL_CLEAN else "need apply-al"
