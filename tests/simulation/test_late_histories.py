"""A fixed set of histories in which something comes late: nothing that was promised is lost by it."""

from __future__ import annotations

import pytest

from tests.simulation.late_histories import LateHistory


@pytest.mark.parametrize("seed", range(12))
def test_what_comes_late_costs_nothing_that_was_promised(seed: int) -> None:
    LateHistory(seed).run()
