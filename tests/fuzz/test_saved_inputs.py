"""What fuzzers found interesting, and inputs from real use, played again without a fuzzer: every
parser takes them or refuses them as it says it does, in bounded time and memory.
"""

from __future__ import annotations

import tracemalloc

import pytest

from tests.fuzz.targets import TARGETS, saved

pytestmark = pytest.mark.timeout(60)
"""Of all inputs of a target; a second is much."""

MEMORY = 48 << 20
"""Bytes that one input may make a parser hold: one NBD payload of 32 MiB, and what is around it."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_saved_input_is_taken_or_refused_properly_in_bounded_memory(name: str) -> None:
    target = TARGETS[name]
    inputs = [*target.seeds(), *saved(name)]
    assert inputs
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            try:
                target.run(data)
            except target.refusals:
                pass
            grown = tracemalloc.get_traced_memory()[1] - before
            assert grown < MEMORY, f"{len(data)} bytes made it hold {grown}: {data[:80]!r}"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_from_real_use_are_not_refused(name: str) -> None:
    """Otherwise a target that refuses everything would find no defect."""
    target = TARGETS[name]
    accepted = 0
    for data in target.seeds():
        try:
            target.run(data)
            accepted += 1
        except target.refusals:
            pass
    assert accepted
