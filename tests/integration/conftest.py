"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.pair import Pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two configured nodes with 64 MiB each, not started; stopped and removed afterwards."""
    with Pair() as fresh:
        yield fresh
