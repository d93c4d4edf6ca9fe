"""A fixed set of invented histories with online verifies: none finds a difference that is none."""

from __future__ import annotations

import pytest

from tests.simulation.verify_histories import VerifyHistory


@pytest.mark.parametrize("seed", range(12))
def test_verifies_among_faults_raise_no_false_alarm(seed: int) -> None:
    history = VerifyHistory(seed)
    history.run()


def test_such_histories_verify_to_the_end_and_are_cut_off() -> None:
    lines: list[str] = []
    for seed in (3, 4):
        history = VerifyHistory(seed, steps=120)
        history.run()
        lines += history.pair.lines
    assert any("online verify done (" in line for line in lines)
    assert any("online verify cut off" in line for line in lines)
