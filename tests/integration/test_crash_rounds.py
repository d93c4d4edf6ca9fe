"""A daemon killed in the middle of writes loses nothing that was promised, and both copies are equal
again afterwards. Many more rounds, by hand: python -m tests.integration.crash_rounds
"""

from __future__ import annotations

import os
import random

import pytest

from tests.integration.crash_rounds import play

pytestmark = [pytest.mark.needs("nbdkit"), pytest.mark.timeout(110)]


@pytest.fixture
def seed() -> int:
    """Another one in each run, but the same in CI; a failure names it."""
    return 20 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)


@pytest.mark.parametrize(
    ("protocol", "frontend", "disk_io"),
    [
        ("C", "nbdkit", "buffered"),
        ("C", "native", "direct"),
        ("B", "native", "buffered"),
        ("A", "nbdkit", "direct"),
    ],
)
def test_the_peer_of_a_killed_primary_has_what_its_protocol_promises(
    protocol: str, frontend: str, disk_io: str, seed: int
) -> None:
    tally = play(3, protocol, "primary", seed=seed, frontend=frontend, disk_io=disk_io)
    assert (tally.rounds, tally.lost, tally.different) == (3, 0, 0)
    assert tally.acknowledged > 0, "no write was cut short: the kills came too early"


def test_a_primary_whose_secondary_is_killed_fails_no_write_and_resynchronises_it(
    seed: int,
) -> None:
    tally = play(3, "C", "secondary", seed=seed, frontend="native")
    assert (tally.rounds, tally.lost, tally.different) == (3, 0, 0)
    assert tally.others > 0


def test_after_both_were_killed_either_has_every_acknowledged_write(seed: int) -> None:
    tally = play(2, "C", "both", seed=seed)
    assert (tally.rounds, tally.lost, tally.different) == (2, 0, 0)
