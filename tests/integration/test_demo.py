"""The demo keeps its promises: it ends well, and it leaves nothing behind when it is interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration import processes

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--size", "256"]


def directory_of(output: str) -> Path:
    found = re.search(r"everything is in (/tmp/replicator-pair-\S+);", output)
    assert found, output
    return Path(found.group(1))


@pytest.mark.needs("nbdkit", "nbdsh", "nbdinfo", "mkfs.ext4")
@pytest.mark.parametrize("options", [[], ["--no-mount"]], ids=["as usual", "without mounting"])
def test_the_demo_passes_and_clears_up(options: list[str]) -> None:
    done = subprocess.run(
        [*DEMO, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DEMO PASSED" in done.stdout
    assert done.stdout.count("  held: ") == 5, done.stdout
    directory = directory_of(done.stdout)
    assert not directory.exists()
    assert processes.leftovers(directory) == []


@pytest.mark.needs("nbdkit", "mkfs.ext4")
@pytest.mark.parametrize("step", ["replicator up", "replicator wait-sync", "kill -9"])
def test_a_demo_that_is_terminated_at_any_step_leaves_nothing_behind(
    step: str, tmp_path: Path
) -> None:
    log = tmp_path / "output"
    with log.open("w") as output:
        demo = subprocess.Popen(
            DEMO, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            assert processes.wait_until(lambda: f"# {step}" in log.read_text(), 60), log.read_text()
            time.sleep(0.2)
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(60) == 130, log.read_text()
        finally:
            demo.kill()
            demo.wait()
    directory = directory_of(log.read_text())
    assert not directory.exists()
    assert processes.leftovers(directory) == []
