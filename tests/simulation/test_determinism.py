"""One seed, one history: the same messages, state changes and disk writes in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.simulation.campaign import KINDS

ROOT = Path(__file__).parents[2]
SEEDS = 16


def digests(hash_seed: int) -> list[str]:
    command = [sys.executable, "-m", "tests.simulation.explore", "--digests"]
    done = subprocess.run(
        [*command, "--from", "100", "--to", str(100 + SEEDS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.splitlines()


def test_a_seed_plays_the_same_history_in_processes_that_hash_differently():
    one, other = digests(1), digests(2)
    assert len(set(one)) == len(KINDS) * SEEDS, "some histories have the same digest"
    assert one == other
