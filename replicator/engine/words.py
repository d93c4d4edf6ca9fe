"""Small words for people that engine modules print. No state, no decisions."""

from __future__ import annotations

from errno import errorcode

from protocol.states import StateWord

_TEXTS = {
    "EIO": "input/output error",
    "EPERM": "not permitted: is the device read-only?",
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


def state_change_text(old: StateWord, new: StateWord) -> str:
    """What differs, in the words of DRBD's kernel log: "role( Secondary -> Primary ) susp( 0 -> 1 )"."""
    words = []
    for field, before, after in zip(StateWord._fields, old, new, strict=True):
        if before != after:
            words.append(f"{field}( {_state_word(before)} -> {_state_word(after)} )")
    return " ".join(words)


def _state_word(value: object) -> str:
    return str(getattr(value, "name", None) or int(bool(value)))
