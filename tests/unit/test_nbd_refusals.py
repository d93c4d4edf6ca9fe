"""What nbdkit writes to the log when a request is refused, and when the plugin has a defect."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator

import pytest

from nbd_plugin import refusals
from nbd_plugin.refusals import Refusal


@pytest.fixture(autouse=True)
def shortened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(traceback, "format_exception", traceback.format_exception)
    refusals.shorten()
    yield


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as found:
        return found


def test_a_refusal_is_one_line() -> None:
    error = caught(Refusal(errno.EROFS, "r0/0: this node is Secondary\n  replicator primary r0"))
    as_nbdkit = traceback.format_exception(type(error), error, error.__traceback__)
    assert as_nbdkit == ["r0/0: this node is Secondary; replicator primary r0"]
    assert traceback.format_exception(error) == as_nbdkit


def test_a_defect_keeps_its_traceback() -> None:
    error = caught(KeyError("x"))
    for lines in (
        traceback.format_exception(type(error), error, error.__traceback__),
        traceback.format_exception(error),
    ):
        assert lines[0].startswith("Traceback")
        assert lines[-1] == "KeyError: 'x'\n"
