"""Words in messages: the nearest known one, and text made safe to print.

Rules: strings in, strings out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_SHOWN = 80


def nearest(text: str, words: Iterable[str]) -> str:
    """The word most like `text`, "" if none is like it."""
    found = difflib.get_close_matches(text[:128], list(words), n=1, cutoff=0.6)
    return found[0] if found else ""


def printable(text: str) -> str:
    """Safe for a terminal and for any encoding; long text is cut."""
    safe = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text[:_MAX_SHOWN])
    return safe + ("..." if len(text) > _MAX_SHOWN else "")
