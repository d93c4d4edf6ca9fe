"""docs/configuration.md says what the option table says, and its examples work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.config.option_table import ALL_OPTIONS
from replicator.errors import ConfigSyntaxError
from tests.unit.config_texts import load_text

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()


def test_the_option_tables_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "configuration_reference.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_option_has_a_row() -> None:
    rows = re.findall(r"(?m)^\| `([a-z0-9-]+)`", DOCUMENT)
    assert {option.name for option in ALL_OPTIONS} <= set(rows)


def test_the_first_example_is_valid_and_earns_no_warning() -> None:
    examples = re.findall(r"```\n(.*?)```", DOCUMENT, re.DOTALL)
    first = load_text(examples[0])
    assert first.warnings == []
    assert first.view("r0", "alice").net.cram_hmac_alg == "sha256"
    assert load_text(examples[1]).view("r1", "bob").volumes[0].disk == "/dev/sdb1"


def test_the_example_of_a_mistake_is_what_is_printed() -> None:
    with pytest.raises(ConfigSyntaxError) as caught:
        load_text("\nresource r0 {\n    net { protcol C; }\n}")
    shown = str(caught.value).replace("drbd.conf", "/etc/drbd.conf")
    assert shown in DOCUMENT
