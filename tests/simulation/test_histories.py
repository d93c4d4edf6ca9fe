"""A fixed set of invented histories: nothing promised is lost, and both copies come together."""

from __future__ import annotations

import pytest

from tests.simulation.histories import History

MISJUDGED = (60656, 70423)
"""Once taken for a split brain that nobody had caused (a failover to a node that had just missed a
generation without writes), and for a pair that never meets again (one was told to connect in the moment in
which the other refused it)."""


@pytest.mark.parametrize("seed", [*range(40), *MISJUDGED])
def test_a_history_of_faults_loses_nothing_and_ends_with_equal_copies(seed):
    History(seed).run()
