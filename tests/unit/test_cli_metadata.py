"""The metadata commands through the whole command line, on real files and a real configuration."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from replicator.cli import world as world_module
from replicator.cli.world import World
from replicator.config import Config
from replicator.runtime import metadata_files
from tests.unit.cli_world import PretendWorld, Run, resource_snapshot, volume_snapshot

FRESH = "0000000000000004" + 3 * ":0000000000000000" + 7 * ":0"

CONFIG = """
resource r0 {{
    on alice {{
        address 127.0.0.1:7789;
        volume 0 {{ device minor 0; disk {folder}/data0; meta-disk internal; }}
        volume 1 {{ device minor 1; disk {folder}/data1; flexible-meta-disk {folder}/meta1; }}
    }}
    on bob {{
        address 127.0.0.1:7790;
        volume 0 {{ device minor 10; disk {folder}/b0; meta-disk internal; }}
        volume 1 {{ device minor 11; disk {folder}/b1; flexible-meta-disk {folder}/bmeta1; }}
    }}
}}
"""


class WorldWithDaemon(PretendWorld):
    """Pretend daemons, the real configuration."""

    def load_config(self, path: str) -> Config:
        return World.load_config(self, path)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PretendWorld:
    pretend = WorldWithDaemon()
    monkeypatch.setattr(world_module, "World", lambda: pretend)
    (tmp_path / "r.conf").write_text(CONFIG.format(folder=tmp_path))
    for name, size in (("data0", 8 << 20), ("data1", 8 << 20), ("meta1", 1 << 20)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    monkeypatch.setenv("REPLICATOR_CONF", str(tmp_path / "r.conf"))
    monkeypatch.setenv("REPLICATOR_NODE", "alice")
    return pretend


def test_fresh_metadata_appears_on_every_volume_and_its_own_disk(run: Run, tmp_path: Path) -> None:
    code, out, err = run("create-md r0")
    assert (code, out) == (0, "")
    assert f"{tmp_path}/data0" in err
    assert f"{tmp_path}/meta1" in err
    assert run("get-gi r0") == (0, f"{FRESH}\n{FRESH}\n", "")
    assert (tmp_path / "data1").read_bytes() == bytes(8 << 20)


def test_existing_metadata_is_replaced_only_after_a_yes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("create-md r0/0")
    before = (tmp_path / "data0").read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    code, out, err = run("create-md r0/0")
    assert (code, out) == (1, "")
    assert "overwrite it?" in err
    assert (tmp_path / "data0").read_bytes() == before
    assert run("create-md --force r0/0")[0] == 0


def test_data_that_would_be_destroyed_ends_with_40(run: Run, tmp_path: Path) -> None:
    with open(tmp_path / "data0", "r+b") as file:
        file.seek(0x404)
        file.write((8192).to_bytes(4, "little"))
        file.seek(0x438)
        file.write(b"\x53\xef")
    code, _, err = run("create-md r0/0 --force")
    assert code == 40
    assert "ext" in err


def test_dump_and_restore_round_trip(run: Run, tmp_path: Path) -> None:
    run("create-md --al-stripes 2 --al-stripe-size-kB 64 r0/0")
    code, text, err = run("dump-md r0/0")
    assert (code, err) == (0, "")
    assert "al-stripes 2;" in text
    assert "al-stripe-size-4k 16;" in text
    (tmp_path / "dump").write_text(text)
    run("wipe-md --force r0/0")
    assert run("get-gi r0/0")[0] == 1
    assert run(f"restore-md r0/0 {tmp_path}/dump")[0] == 0
    body = [line for line in run("dump-md r0/0")[1].splitlines() if not line.startswith("#")]
    assert body == [line for line in text.splitlines() if not line.startswith("#")]


def test_a_dump_is_read_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("create-md r0/0")
    text = run("dump-md r0/0")[1]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert run("restore-md --force r0/0")[0] == 0


@pytest.mark.parametrize(
    ("line", "code", "part"),
    [
        ("restore-md r0", 1, "one volume"),
        ("restore-md all FILE", 1, "one volume"),
        ("restore-md r0/0 /nosuch/dump", 1, "/nosuch/dump"),
        ("create-md --al-stripe-size-kB 33 r0", 1, "multiple of 4"),
        ("create-md --al-stripes 0 r0", 1, "al-stripes"),
        ("create-md --al-stripes 9999 r0/0", 10, "9999"),
        ("create-md --peer-max-bio-size 9999999 r0/0", 10, "peer-max-bio-size"),
        ("get-gi r0/0", 1, "data0"),
        ("show-gi r0/0", 1, "data0"),
        ("dump-md r0/0", 1, "data0"),
        ("apply-al r0/0", 1, "data0"),
    ],
)
def test_what_cannot_be_done_names_its_reason(run: Run, line: str, code: int, part: str) -> None:
    found, out, err = run(line)
    assert (found, out) == (code, "")
    assert part in err


def test_a_missing_disk_ends_with_16(run: Run, tmp_path: Path) -> None:
    os.unlink(tmp_path / "data0")
    code, _, err = run("create-md r0")
    assert code == 16
    assert f"{tmp_path}/data0" in err
    assert run("get-gi r0/1") == (0, f"{FRESH}\n", ""), (
        "the second volume of the failed line was still served"
    )


def test_a_disk_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    run("create-md r0/0")
    with metadata_files.open_backing(str(tmp_path / "data0")):
        code, _, err = run("wipe-md --force r0/0")
        assert code != 0
        assert "in use" in err
        assert run("get-gi r0/0")[0] == 0


def test_identifiers_of_an_attached_disk_come_from_its_daemon(
    world: PretendWorld, run: Run
) -> None:
    run("create-md r0")
    uuids = ["8CAF810B8544D62D", "2DAFF68877771D1A", "0000000000000004", "0000000000000000"]
    world.up["r0"] = resource_snapshot(
        "r0",
        volume_snapshot(uuids=uuids, gi_flags="1:1:1:1:0:1:0"),
        volume_snapshot(1, disk="Diskless"),
    )
    line = ":".join(uuids) + ":1:1:1:1:0:1:0"
    assert run("get-gi r0")[1] == f"{line}\n{FRESH}\n"
    legend = run("show-gi r0/0")[1]
    assert f"\n{line}\n" in legend
    assert "flags: Primary, Connected, UpToDate, peer Outdated\n" in legend


def test_one_bad_volume_does_not_keep_the_next_resource_from_its_turn(
    world: PretendWorld, run: Run
) -> None:
    run("create-md r0/1")
    code, out, _ = run("get-gi r0/0 r0/1")
    assert (code, out) == (1, f"{FRESH}\n")
