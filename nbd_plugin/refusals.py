"""Refused requests as one line of the log.

nbdkit writes whatever exception leaves a callback to the log with its traceback. For a request that
failed, or a client that may not open a volume, that is a page about nothing unexpected, once for
every attempt. nbdkit formats with traceback.format_exception, and has no other way to be told.
"""

from __future__ import annotations

import traceback
from typing import Any


class Refusal(OSError):
    """Raised on purpose: its errno is for the client, its text for the log."""


_original = traceback.format_exception


def _format_exception(kind: Any, *rest: Any, **options: Any) -> list[str]:
    """As traceback.format_exception, which is called with (type, error, trace) or with (error)."""
    error = rest[0] if rest else kind
    if isinstance(error, Refusal):
        lines = str(error.strerror).splitlines()
        return ["; ".join(line.strip() for line in lines)]
    return _original(kind, *rest, **options)


def shorten() -> None:
    """From now on, in this process, a Refusal is logged as its text."""
    traceback.format_exception = _format_exception
