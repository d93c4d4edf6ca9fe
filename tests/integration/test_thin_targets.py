"""A sparse disk is copied as a sparse disk, by real daemons between real files."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.pair import MIB, Pair

SIZE = 1024 * MIB
DATA = (5 * MIB + 4096, 300 * MIB, 1000 * MIB)
"""Where the source has 64 KiB each."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(sizes=[SIZE]) as made:
        with made.alice.backing().open("r+b") as file:
            for offset in DATA:
                os.pwrite(file.fileno(), os.urandom(65536), offset)
        yield made


def allocated(pair: Pair) -> int:
    return os.stat(pair.bob.backing()).st_blocks * 512


def test_a_sparse_gibibyte_stays_sparse_in_a_full_resync_and_under_trim(pair: Pair) -> None:
    with pair.bob.backing().open("r+b") as file:
        os.pwrite(file.fileno(), os.urandom(8 * MIB), 500 * MIB)  # what the source has not
    pair.start_synced()
    assert pair.difference(size=SIZE - 4 * MIB) is None
    assert allocated(pair) < MIB
    pair.alice.write(600 * MIB, os.urandom(16 * MIB))
    assert allocated(pair) > 16 * MIB
    with pair.alice.nbd() as handle:
        handle.trim(16 * MIB, 600 * MIB)
        handle.flush()
    assert allocated(pair) < MIB
    assert pair.difference(size=SIZE - 4 * MIB) is None
