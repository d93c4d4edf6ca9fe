"""The measurement of the engines alone still fits the engine."""

from __future__ import annotations

import pytest

from benchmarks import engine_cost


def test_the_engines_mirror_writes_without_a_world_around_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cost, "WRITES", 256)
    engine_cost.main(["--depth", "8", "--rounds", "2"])
    said = capsys.readouterr().out
    assert "8 at a time" in said and "on the Primary" in said and "on the Secondary" in said
