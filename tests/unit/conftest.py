"""Fixtures of the tests of the command line: a pretend world, and a way to run command lines in it."""

from __future__ import annotations

import pytest

from replicator.cli import main as entry
from replicator.cli import world as world_module
from tests.unit.cli_world import PretendWorld, Result, Run


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> PretendWorld:
    """What the command line takes for the outside world; no variable of ours reaches it."""
    pretend = PretendWorld(files={"/etc/drbd.conf"})
    monkeypatch.setattr(world_module, "World", lambda: pretend)
    for variable in ("REPLICATOR_CONF", "REPLICATOR_NODE"):
        monkeypatch.delenv(variable, raising=False)
    return pretend


@pytest.fixture
def run(world: PretendWorld, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("primary --force r0") -> Result."""

    def command(line: str) -> Result:
        code = entry.main(line.split())
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Result(code, printed.out, printed.err)

    return command
