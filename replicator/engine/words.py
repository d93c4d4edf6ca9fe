"""Small words for people that several engine modules print. No state, no decisions."""

from __future__ import annotations

from errno import errorcode

_TEXTS = {
    "EIO": "input/output error",
    "ENOSPC": "no space left on device",
    "EROFS": "read-only",
    "EINVAL": "invalid argument",
    "ETIMEDOUT": "timed out",
    "EBADF": "the disk has been closed",
}


def errno_text(errno: int) -> str:
    """An errno for people, e.g. "input/output error (EIO)"."""
    name = errorcode.get(errno, str(errno))
    text = _TEXTS.get(name)
    return f"{text} ({name})" if text else name
