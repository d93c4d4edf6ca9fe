"""The command reference says what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.cli.command_table import COMMANDS, GLOBAL_OPTIONS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "commands.md"


def section(name: str) -> str:
    """The text below `### name`, up to the next heading."""
    text = DOCUMENT.read_text()
    found = re.search(rf"^### {re.escape(name)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        pytest.fail(f"{DOCUMENT.name} has no section for {name}", pytrace=False)
    return found.group(1)


def test_the_command_reference_is_the_one_the_program_would_write() -> None:
    program = "import command_reference as c; print(c.reference(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert DOCUMENT.read_text() == done.stdout, "run scripts/command_reference.py"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_described_with_each_of_its_options(name: str) -> None:
    text = section(name)
    missing = [n for option in COMMANDS[name].options for n in option.names if f"`{n}`" not in text]
    assert not missing


def test_every_general_option_is_described() -> None:
    text = DOCUMENT.read_text()
    missing = [n for option in GLOBAL_OPTIONS for n in option.names if f"`{n}`" not in text]
    assert not missing


def test_every_command_that_the_overview_lists_is_described() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "replicator", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    listed = re.findall(r"^  ([a-z][a-z-]+) {2,}\S", done.stdout, re.MULTILINE)
    assert len(listed) > 20, done.stdout + done.stderr
    for name in listed:
        section(name)
