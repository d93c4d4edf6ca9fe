"""A fixed set of invented histories: nothing promised is lost, and both copies come together."""

from __future__ import annotations

import pytest

from tests.simulation.histories import History


@pytest.mark.parametrize("seed", range(40))
def test_a_history_of_faults_loses_nothing_and_ends_with_equal_copies(seed):
    History(seed).run()
