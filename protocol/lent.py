"""Memory for large payloads, used again: to make a new bytearray of 1 MiB means to clear it, which takes
half as long as to receive into it.

Rules:
1. Who has borrowed memory just drops it: it is lent again when no view of it is left, so nobody's
   data changes under their hands, whatever they keep, and nothing has to be handed back.
2. What is kept for the next borrower is bounded: KEPT bytes of each size.
3. One thread lends; any thread may be the last to drop a view.
"""

from __future__ import annotations

from sys import getrefcount

SIZES = tuple(1 << bits for bits in range(17, 21))
"""Bytes: 128 KiB to 1 MiB. What is smaller costs little, what is larger is rare."""

KEPT = 4 << 20

_kept: dict[int, list[bytearray]] = {size: [] for size in SIZES}


def lend(size: int) -> memoryview:
    """`size` bytes of any content."""
    for fits in SIZES:
        if size <= fits:
            return memoryview(_memory(fits))[:size]
    return memoryview(bytearray(size))


def _memory(size: int) -> bytearray:
    kept = _kept[size]
    for number in range(len(kept)):
        if _users(kept, number) == _NOBODY:
            return kept[number]
    memory = bytearray(size)
    if len(kept) < KEPT // size:
        kept.append(memory)
    return memory


def _users(kept: list[bytearray], number: int) -> int:
    """A view counts as a user, and so do the list and this function."""
    return getrefcount(kept[number])


_NOBODY = _users([bytearray(1)], 0)
