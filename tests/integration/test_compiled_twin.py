"""The compiled twin does what the Python modules do: it is made here if it is not there yet, plays the
same histories to the same digests, and passes the tests of engine, protocol, metadata, disks, TCP and NBD."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from replicator import compiled
from tests.integration.pair import Pair
from tests.simulation.campaign import KINDS

pytestmark = pytest.mark.timeout(900)  # to compile takes long on a busy machine

ROOT = Path(__file__).parents[2]
SEEDS = 10
TESTS = (
    "engine",
    "protocol",
    "metadata",
    "native",
    "runtime_disk",
    "runtime_inner",
    "runtime_net",
    "runtime_turns",
)
"""Names of unit tests begin with what they are about."""


@pytest.fixture(scope="module")
def twin() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "compile_engine.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert compiled.place().is_dir()


def run(command: list[str], engine: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REPLICATOR_TEST_ENGINE": engine}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def digests(engine: str) -> list[str]:
    seeds = ["--from", "2000", "--to", str(2000 + SEEDS)]
    done = run(["tests.simulation.explore", "--digests", *seeds], engine)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("frontend", ["nbdkit", "native"])
@pytest.mark.needs("nbdkit", "fio")
def test_a_compiled_node_and_one_in_python_mirror_each_other_and_say_what_they_are(
    twin: None, frontend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(compiled.PURE, raising=False)
    with Pair(frontend=frontend) as pair:
        pair.start_synced()
        pair.bob.down()
        monkeypatch.setenv(compiled.PURE, "1")
        pair.bob.up()
        pair.alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
        engines = [node.status()["engine"] for node in pair.nodes]
        assert engines == ["compiled", "pure Python (REPLICATOR_PURE is set)"]
        assert "engine: compiled\n" in pair.alice.log()
        pair.alice.write(0, b"written by the one, kept by the other...." * 1024)
        pair.alice.down()
        pair.bob.down()
        assert pair.difference(size=1 << 20) is None


def test_a_seed_plays_the_same_history_in_python_and_compiled(twin: None) -> None:
    """The digest has all messages, disk writes and lines of the log."""
    found = digests("compiled")
    assert len(found) == len(KINDS) * SEEDS
    assert found == digests("python")


def test_the_tests_of_the_engine_pass_with_the_compiled_twin_too(twin: None) -> None:
    files = [f"{path}" for name in TESTS for path in (ROOT / "tests/unit").glob(f"test_{name}*.py")]
    assert len(files) >= len(TESTS)
    done = run(["pytest", "-q", "-p", "no:cacheprovider", *files, "tests/simulation"], "compiled")
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
