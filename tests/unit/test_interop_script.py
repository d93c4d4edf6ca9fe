"""scripts/interop.py, as far as it can be tried without a guest: what it says, what it would write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MIB = 1 << 20


def interop(*words: str, tools: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "REPLICATOR_VM_TOOLS"}
    if tools:
        environment["REPLICATOR_VM_TOOLS"] = tools
    command = [sys.executable, str(SCRIPTS / "interop.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_without_the_guest_tools_it_says_loudly_what_is_missing() -> None:
    done = interop()
    assert done.returncode == 2
    assert "REPLICATOR_VM_TOOLS is not set" in done.stderr


def test_a_directory_without_the_guest_tools_is_named(tmp_path: Path) -> None:
    done = interop(tools=str(tmp_path))
    assert done.returncode == 2
    assert f"there is no program {tmp_path}/run-guest" in done.stderr


def test_an_unknown_scenario_is_named(tmp_path: Path) -> None:
    program = tmp_path / "run-guest"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = interop("no-such-thing", tools=str(tmp_path))
    assert done.returncode == 2
    assert "no such scenario: no-such-thing" in done.stderr


def test_scenarios_are_listed_once_each() -> None:
    names = [line.split()[0] for line in interop("--list").stdout.splitlines()]
    assert {"kernel-primary", "own-primary", "role-switch", "nbd-client"} <= set(names)
    assert len(names) == len(set(names))


def test_a_batch_of_writes_follows_from_its_seed_and_stays_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from interop_writes import batch

    first = list(batch(5, 200, 3 * MIB))
    assert first == list(batch(5, 200, 3 * MIB))
    assert first != list(batch(6, 200, 3 * MIB))
    assert {kind for kind, _, _ in first} == {"write", "flush", "zero", "discard"}
    assert all(offset % 512 == 0 and offset + len(data) <= 3 * MIB for _, offset, data in first)
