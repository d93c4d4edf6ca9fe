"""The command of `make bench`, for real but as short as can be: what it runs, writes and says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--quick", "--rounds=1", "--seconds=0.1", "--size=32", "--no-scenarios")


@pytest.mark.needs("fio", "nbdkit")
def test_a_short_run_measures_and_writes_page_picture_and_json(run_dir: Path) -> None:
    out = run_dir / "out"
    chosen = ("--only=native-C", "--only=one-copy", f"--dir={run_dir}", f"--out={out}")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *SHORT, *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "benchmarks.json").read_text())
    assert document["missing"] == {}
    for found in document["fio"].values():
        assert set(found) == {"native-C", "one-copy"}
        for (one,) in found.values():
            assert min(one.values()) > 0, "something was measured as nothing"
    assert "native: 4 KiB random read, depth 32 / one nbdkit copy" in done.stdout
    assert "not measured" in (out / "benchmarks.md").read_text(), "qemu was left out and said to be"
    assert (out / "benchmarks.svg").read_text().startswith("<svg")
    assert [path.name for path in run_dir.iterdir()] == ["out"], "left something behind"
