"""Histories at their worst: a fixed set, and those that found something."""

from __future__ import annotations

import pytest

from protocol.states import Disk
from tests.simulation.harsh_histories import HarshHistory

FOUND = (9, 84, 94, 113, 153, 1138, 1360, 1863, 20591)
"""Each of these once ended with copies that differed, with sound nodes accusing each other, or (the last)
with a promise that the account expected of the wrong copy."""


@pytest.mark.parametrize("seed", sorted({*range(30), *FOUND}))
def test_no_fault_at_a_moment_that_matters_loses_what_was_promised(seed):
    HarshHistory(seed).run()


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("invalidated", [False, True])
def test_no_disk_is_replaced_while_the_other_copy_is_half_overwritten(invalidated, detached):
    history = HarshHistory(1, acts=[])
    alice, bob = history.nodes
    history.pair.up_synced()
    history.current = {"alice", "bob"}
    alice.secondary()
    if invalidated:
        for number in bob.r.volumes:
            bob.do(lambda done, n=number: bob.r.invalidate(n, done))
        assert bob.is_(disk=Disk.Inconsistent)
    alice.kill()
    history.pair.run(5)
    if detached:
        for number in bob.r.volumes:
            bob.do(lambda done, n=number: bob.r.detach(n, False, done))
    history._replace_disk()
    assert history.blank == (set() if invalidated else {"alice"})
