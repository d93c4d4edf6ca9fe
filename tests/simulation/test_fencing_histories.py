"""A fixed set of histories under fencing: no split brain, nothing promised is lost."""

from __future__ import annotations

import pytest

from tests.simulation.fencing_histories import FencingHistory

FOUND_SOMETHING = (134, 225, 482, 2176, 5928, 6843, 6966)
"""A disconnect that the dead peer did not answer; frozen writes that younger ones overtook (twice); a
power loss right after the consent to be Outdated; a disconnect in the moment in which a resync ends; a
disk outdated while it is being attached; I/O resumed before the peer has noted that its copy is old."""


@pytest.mark.parametrize("seed", [*range(30), *FOUND_SOMETHING])
def test_a_history_under_fencing_ends_without_split_brain_and_without_loss(seed: int) -> None:
    FencingHistory(seed).run()
