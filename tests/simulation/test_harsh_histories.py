"""Histories at their worst: a fixed set, and those that found something."""

from __future__ import annotations

import pytest

from tests.simulation.harsh_histories import HarshHistory

FOUND = (9, 84, 94, 113, 153, 1138, 1360, 1863)
"""Each of these once ended with copies that differed, or with sound nodes accusing each other."""


@pytest.mark.parametrize("seed", sorted({*range(30), *FOUND}))
def test_no_fault_at_a_moment_that_matters_loses_what_was_promised(seed):
    HarshHistory(seed).run()
