"""Where the command line finds its configuration, what looking commands print, how the program ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from replicator.cli import main as entry
from replicator.errors import ConfigSyntaxError, DaemonError, ReplicatorError, StateRefused
from tests.unit.cli_world import PretendWorld, Run, refusal, resource_snapshot, volume_snapshot

# -- where configuration and node come from


def test_the_configuration_is_the_option_else_the_variable_else_the_usual_files(
    world: PretendWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("sh-nop").code == 0
    assert world.loaded == "/etc/drbd.conf"
    world.files.add("/etc/replicator.conf")
    run("sh-nop")
    assert world.loaded == "/etc/replicator.conf"
    monkeypatch.setenv("REPLICATOR_CONF", "/from/variable")
    run("sh-nop")
    assert world.loaded == "/from/variable"
    run("-c /from/option sh-nop")
    assert world.loaded == "/from/option"


def test_no_configuration_anywhere_names_the_places_that_were_tried(
    world: PretendWorld, run: Run
) -> None:
    world.files.clear()
    result = run("sh-nop")
    assert result.code == 10
    assert "/etc/replicator.conf" in result.err
    assert "/etc/drbd.conf" in result.err
    assert "-c FILE" in result.err


def test_help_needs_no_configuration(world: PretendWorld, run: Run) -> None:
    world.files.clear()
    assert run("--help").code == 0
    assert run("up --help").out.startswith("usage: replicator [options] up")
    shown = run("--version").out
    assert re.fullmatch(r"replicator \d+\.\d+\.\d+\nengine: (compiled|pure Python \(.+\))\n", shown)


# -- answers from the configuration


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("sh-nop", ""),
        ("sh-resources", "r0 pair\n"),
        ("sh-dev all", "/dev/drbd0\n/dev/drbd1\n/dev/drbd4\n"),
        ("sh-dev pair/3", "/dev/drbd4\n"),
        ("sh-minor pair", "1\n4\n"),
        ("sh-ll-dev r0", "/dev/sda7\n"),
        ("sh-md-dev pair", "/dev/sda8\n/dev/md\n"),
        ("sh-md-idx pair", "internal\n2\n"),
        ("sh-ip r0", "127.0.0.1\n"),
        ("dump r0", "# text of r0\n"),
        ("dump", "# text of everything\n"),
        ("dump all", "# text of everything\n"),
    ],
)
def test_script_commands_print_what_drbdadm_prints(run: Run, line: str, out: str) -> None:
    result = run(line)
    assert (result.code, result.out, result.err) == (0, out, "")


def test_warnings_go_to_standard_error(world: PretendWorld, run: Run) -> None:
    world.config.warnings.append("x.conf:3: option sndbuf-size has no effect")
    result = run("dump r0")
    assert result.out == "# text of r0\n"
    assert result.err == "warning: x.conf:3: option sndbuf-size has no effect\n"


@pytest.mark.parametrize("name", ["nosuch", "r0/7", "pair/1", "r0/x", "r0/", "all/0", "r0/-1"])
def test_an_unknown_resource_or_volume_is_a_usage_error_and_nothing_is_done(
    world: PretendWorld, run: Run, name: str
) -> None:
    result = run(f"up r0 {name}")
    assert result.code == 1
    assert f"'{name}" in result.err
    assert world.done == []


def test_a_whole_resource_command_refuses_one_volume_of_several(run: Run) -> None:
    result = run("up pair/0")
    assert result.code == 1
    assert "up pair" in result.err


# -- role, cstate, dstate


def test_states_read_like_drbdadm(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    assert run("role r0").out == "Primary/Secondary\n"
    assert run("cstate r0").out == "Connected\n"
    assert run("dstate r0").out == "UpToDate/UpToDate\n"


@pytest.mark.parametrize("command", ["role", "cstate", "dstate"])
def test_without_a_daemon_every_volume_is_unconfigured(run: Run, command: str) -> None:
    result = run(f"{command} all")
    assert (result.code, result.out, result.err) == (0, "Unconfigured\n" * 3, "")


@pytest.mark.parametrize("command", ["role", "cstate", "dstate"])
def test_a_volume_without_disk_network_and_role_is_unconfigured(
    world: PretendWorld, run: Run, command: str
) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(cs="StandAlone", disk="Diskless"))
    assert run(f"{command} r0").out == "Unconfigured\n"


def test_role_is_primary_while_a_dead_daemons_device_is_mounted(
    world: PretendWorld, run: Run
) -> None:
    world.users["r0/0"] = ["mounted on /drbd"]
    result = run("role r0")
    assert (result.code, result.out) == (0, "Primary/Unknown\n")
    assert "mounted on /drbd" in result.err


def test_a_hanging_daemon_answers_with_its_last_known_state(world: PretendWorld, run: Run) -> None:
    world.hanging.add("r0")
    world.written["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"), pid=42)
    result = run("role r0")
    assert (result.code, result.out) == (0, "Primary/Secondary\n")
    assert "last known" in result.err
    assert "  last known state: r0: no answer" in run("status r0").out


def test_the_last_words_of_an_earlier_daemon_do_not_count(world: PretendWorld, run: Run) -> None:
    world.hanging.add("r0")
    world.written["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"), pid=7)
    assert run("role r0").out == "Unconfigured\n"


# -- status


def test_status_shows_all_resources_and_how_to_start_those_that_are_down(
    world: PretendWorld, run: Run
) -> None:
    world.up["r0"] = resource_snapshot("r0")
    result = run("status")
    assert result.code == 0
    assert result.out == (
        "r0 role:Secondary\n"
        "  disk:UpToDate\n"
        "  peer role:Secondary node:bob\n"
        "    replication:Established peer-disk:UpToDate\n"
        "\n"
        "pair role:Unconfigured\n"
        "  not up; start it with: replicator up pair\n"
        "\n"
    )


def test_status_as_json_is_one_document(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    document = json.loads(run("status --json").out)
    assert [one["name"] for one in document["resources"]] == ["r0", "pair"]
    assert [one["running"] for one in document["resources"]] == [True, False]


def test_status_as_proc_text_has_the_minors(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    assert " 0: cs:Connected ro:Secondary/Secondary ds:UpToDate/UpToDate C r-----\n" in run(
        "status --proc r0"
    ).out  # fmt: skip


def test_watching_draws_every_second_until_interrupted(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    times: list[float] = []

    def tick() -> None:
        times.append(world.clock)
        if len(times) == 3:
            raise KeyboardInterrupt

    world.on_sleep = tick
    result = run("status --watch r0")
    assert result.code == 130
    assert result.out.count("r0 role:Secondary") == 3
    assert times == [101.0, 102.0, 103.0]


def test_nbd_uris_are_printed_by_volume(world: PretendWorld, run: Run) -> None:
    world.up["pair"] = resource_snapshot(
        "pair",
        volume_snapshot(0, 1),
        volume_snapshot(3, 4),
        nbd_uris=["nbd+unix:///0", "nbd+unix:///3"],
    )
    assert run("nbd-uri pair").out == "nbd+unix:///0\nnbd+unix:///3\n"
    assert run("nbd-uri pair/3").out == "nbd+unix:///3\n"
    result = run("nbd-uri r0")
    assert (result.code, result.out) == (20, "")
    assert "replicator up r0" in result.err


def test_a_daemon_that_listens_on_tcp_as_well_has_its_local_nbd_uris_printed(
    world: PretendWorld, run: Run
) -> None:
    world.up["pair"] = resource_snapshot(
        "pair",
        volume_snapshot(0, 1),
        volume_snapshot(3, 4),
        nbd_uris=["nbd+unix:///0", "nbd+unix:///3", "nbd://[::1]:10809/0", "nbd://[::1]:10809/3"],
    )
    assert run("nbd-uri pair").out == "nbd+unix:///0\nnbd+unix:///3\n"
    assert run("nbd-uri pair/3").out == "nbd+unix:///3\n"


# -- the ends of the program


def test_an_error_of_the_configuration_keeps_its_exit_code(
    world: PretendWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> object:
        raise ConfigSyntaxError(f"{path}:3:7: expected ';'")

    monkeypatch.setattr(world, "load_config", broken)
    result = run("sh-nop")
    assert (result.code, result.out) == (2, "")
    assert result.err == "replicator: /etc/drbd.conf:3:7: expected ';'\n"


def test_an_unexpected_error_is_one_line_and_details_only_with_debug(
    world: PretendWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world.refuse = {"start r0": ZeroDivisionError("oops")}
    assert entry.main(["up", "r0"]) == 20
    quiet = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oops" in quiet
    assert "please report" in quiet
    assert "Traceback" not in quiet
    assert entry.main(["--debug", "up", "r0"]) == 20
    assert "Traceback" in capsys.readouterr().err


def test_interruption_ends_with_130_and_silence(world: PretendWorld, run: Run) -> None:
    world.refuse = {"start r0": KeyboardInterrupt()}
    result = run("up r0")
    assert (result.code, result.out, result.err) == (130, "", "")


@pytest.mark.parametrize("error", [ReplicatorError("r0 x"), StateRefused("r0 x"), DaemonError("x")])
def test_each_class_of_error_ends_with_its_own_code(
    world: PretendWorld, run: Run, error: ReplicatorError
) -> None:
    world.refuse = refusal(error, "start r0")
    assert run("up r0").code == error.exit_code


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "replicator", "--help"],
        stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=30,
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")
