"""A short form of the torture: whatever happens to two nodes under load, nothing is lost, both copies
are equal again, and the metadata is whole. For as long as one likes: make torture MINUTES=60
"""

from __future__ import annotations

import os
import random

import pytest

from tests.integration.torture import Game, play

pytestmark = [
    pytest.mark.needs("nbdkit", "nbdfuse", "losetup", "mount", "umount", "drbdmeta"),
    pytest.mark.timeout(110),
]
LONGEST = 1.0


@pytest.fixture
def seed() -> int:
    return 1 if os.environ.get("CI") else random.SystemRandom().randrange(1 << 32)


@pytest.mark.parametrize(
    ("protocol", "frontends", "disks", "rounds"),
    [
        (
            "C",
            {"alice": "nbdkit", "bob": "native"},
            {"alice": "errors", "bob": "small"},
            ["many-faults", "primary-killed-among-faults", "split-brain"],
        ),
        (
            "B",
            {"alice": "native", "bob": "nbdkit"},
            {"alice": "locked", "bob": "loop"},
            ["one-fault", "frozen-primary-replaced"],
        ),
    ],
    ids=["disks-with-errors", "disks-that-fill"],
)
def test_no_fault_loses_what_was_acknowledged_or_leaves_the_copies_different(
    protocol: str,
    frontends: dict[str, str],
    disks: dict[str, str],
    rounds: list[str],
    seed: int,
) -> None:
    played = play(Game(f"{seed}/{protocol}", protocol, frontends, disks, rounds, LONGEST))
    assert played.tally.rounds == len(rounds)
    assert played.tally.others > 0, "nothing was written"
