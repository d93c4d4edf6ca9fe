"""wait-connect and wait-sync: when they end, with which code, and what they show meanwhile."""

from __future__ import annotations

import io

import pytest

from replicator.cli import main as entry
from replicator.engine.snapshot import Progress
from tests.unit.cli_world import PretendWorld, Run, resource_snapshot, volume_snapshot

# -- waiting


def test_wait_connect_returns_when_all_volumes_are_connected(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(cs="WFConnection"))

    def arrive() -> None:
        if world.clock > 103:
            world.up["r0"] = resource_snapshot("r0")

    world.on_sleep = arrive
    assert run("wait-connect r0").code == 0
    assert 103 < world.clock < 104


@pytest.mark.parametrize(
    ("options", "cs", "flags", "peer_disk", "waited"),
    [
        ("--timeout 2", "WFConnection", "", "DUnknown", 2),
        ("-t 3", "WFConnection", "1:1:0:1:0:0:0", "DUnknown", 3),
        ("-t 3 --degr-wfc-timeout 4", "WFConnection", "1:1:1:0:0:0:0", "DUnknown", 4),
        ("-t 3 --degr-wfc-timeout 4", "WFConnection", "1:1:1:1:0:0:0", "DUnknown", 3),
        ("-t 3 --outdated-wfc-timeout 6", "WFConnection", "1:1:1:0:0:1:0", "Outdated", 6),
        ("", "WFConnection", "1:1:0:0:0:0:0", "DUnknown", 11),
        ("", "WFConnection", "1:1:1:0:0:0:0", "DUnknown", 12),
        ("", "WFConnection", "1:1:0:0:0:1:0", "Outdated", 13),
    ],
)
def test_wait_connect_gives_up_after_the_time_for_the_state_of_the_cluster(
    world: PretendWorld, run: Run, options: str, cs: str, flags: str, peer_disk: str, waited: int
) -> None:
    startup = world.config.found["r0"].startup
    startup.wfc_timeout, startup.degr_wfc_timeout, startup.outdated_wfc_timeout = 11, 12, 13
    volume = volume_snapshot(cs=cs, gi_flags=flags, peer_disk=peer_disk)
    world.up["r0"] = resource_snapshot("r0", volume, last_error="connection refused")
    result = run(f"wait-connect {options} r0")
    assert result.code == 5
    assert world.clock == pytest.approx(100 + waited)
    assert f"waited {waited} s" in result.err
    assert "volume 0 is WFConnection" in result.err
    assert "connection refused" in result.err


def test_waiting_ends_at_once_when_stand_alone(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot(
        "r0", volume_snapshot(cs="StandAlone"), last_error="split brain"
    )
    result = run("wait-connect r0")
    assert result.code == 11
    assert "split brain" in result.err
    assert world.clock == 100
    assert run("wait-connect --wait-after-sb --timeout 1 r0").code == 5
    world.config.found["r0"].startup.wait_after_sb = True
    assert run("wait-connect --timeout 1 r0").code == 5


def test_waiting_ends_when_the_daemon_ends(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(cs="WFConnection"))
    world.on_sleep = lambda: world.up.clear()
    assert run("wait-connect r0").code == 20


def test_a_late_answer_does_not_end_the_waiting_but_long_silence_does(
    world: PretendWorld, run: Run
) -> None:
    world.hanging.add("r0")

    def answer() -> None:
        if world.clock > 110:
            world.hanging.clear()
            world.up["r0"] = resource_snapshot("r0")

    world.on_sleep = answer
    assert run("wait-connect r0").code == 0
    world.hanging.add("r0")
    world.on_sleep = lambda: None
    assert run("wait-connect r0").code == 20
    before = world.clock
    assert run("wait-connect --timeout 2 r0").code == 20
    assert world.clock == pytest.approx(before + 2, abs=0.3)


def syncing(left: int) -> object:
    progress = Progress(False, 25590, left, 2.0, 2.0, 25590, 8192)
    return resource_snapshot("r0", volume_snapshot(cs="SyncTarget", progress=progress))


@pytest.mark.parametrize(
    ("cs", "disk", "peer_disk", "code"),
    [
        ("Connected", "UpToDate", "UpToDate", 0),
        ("VerifyS", "UpToDate", "UpToDate", 0),
        ("Connected", "UpToDate", "Diskless", 0),
        ("Connected", "Inconsistent", "Inconsistent", 5),
        ("Connected", "UpToDate", "Inconsistent", 5),
        ("PausedSyncT", "Inconsistent", "UpToDate", 5),
        ("WFConnection", "UpToDate", "DUnknown", 5),
    ],
)
def test_wait_sync_ends_only_when_nothing_is_left_to_sync(
    world: PretendWorld, run: Run, cs: str, disk: str, peer_disk: str, code: int
) -> None:
    volume = volume_snapshot(cs=cs, disk=disk, peer_disk=peer_disk)
    world.up["r0"] = resource_snapshot("r0", volume)
    result = run("wait-sync --timeout 2 r0")
    assert result.code == code
    assert (cs in result.err) == bool(code)


def test_wait_sync_reports_every_few_seconds_without_a_terminal(
    world: PretendWorld, run: Run
) -> None:
    world.up["r0"] = syncing(20470)  # type: ignore[assignment]

    def progress() -> None:
        if world.clock >= 111:
            world.up["r0"] = resource_snapshot("r0")

    world.on_sleep = progress
    result = run("wait-sync r0")
    assert (result.code, result.out) == (0, "")
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("r0/0 [===>................] sync'ed: 24.0% (81880/102360)K")


def test_wait_sync_draws_a_bar_in_place_on_a_terminal(
    world: PretendWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TerminalStream(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = TerminalStream()
    monkeypatch.setattr("sys.stderr", screen)
    world.up["r0"] = syncing(20470)  # type: ignore[assignment]

    def progress() -> None:
        if world.clock >= 101:
            world.up["r0"] = resource_snapshot("r0")

    world.on_sleep = progress
    assert entry.main(["wait-sync", "r0"]) == 0
    text = screen.getvalue()
    bars = text.count("sync'ed: 24.0%")
    assert bars >= 4
    assert text.count("\x1b[2F\x1b[J") == bars, "every bar is wiped before the next"
    assert text.endswith("r0/0 Connected UpToDate/UpToDate\n")
