"""What each changing command asks of daemon and devices, in which order, and how it ends."""

from __future__ import annotations

import pytest

from replicator.errors import DaemonError, DeviceError, NoUsableDataError, StateRefused
from tests.unit.cli_world import PretendWorld, Run, refusal, resource_snapshot, volume_snapshot

# -- up and down


def test_up_starts_the_daemon_and_up_again_is_fine(world: PretendWorld, run: Run) -> None:
    assert run("up r0").code == 0
    assert run("up r0").code == 0
    assert world.done == ["start r0"]


def test_up_releases_what_a_dead_daemon_left_attached_first(world: PretendWorld, run: Run) -> None:
    world.attached.add("r0/0")
    run("up r0")
    assert world.done == ["detach device r0/0", "start r0"]


def test_up_completes_a_resource_that_is_half_up(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(cs="StandAlone", disk="Diskless"))
    assert run("up r0").code == 0
    assert world.done == ["attach r0 volume=0", "connect r0 discard_my_data=False"]


def test_up_waits_for_a_daemon_that_somebody_else_is_starting(
    world: PretendWorld, run: Run
) -> None:
    world.hanging.add("r0")

    def started() -> None:
        if world.clock > 105:
            world.hanging.clear()
            world.up["r0"] = resource_snapshot("r0")

    world.on_sleep = started
    assert run("up r0").code == 0
    world.up.clear()
    world.hanging.add("r0")
    world.on_sleep = lambda: None
    result = run("up r0")
    assert result.code == 20
    assert "no answer" in result.err


def test_up_waits_for_a_daemon_that_is_ending_and_starts_the_next(
    world: PretendWorld, run: Run
) -> None:
    world.hanging.add("r0")

    def ended() -> None:
        if world.clock > 105:
            world.hanging.clear()

    world.on_sleep = ended
    assert run("up r0").code == 0
    assert world.done == ["start r0"]


def test_up_all_goes_on_after_a_failure_and_ends_with_its_code(
    world: PretendWorld, run: Run
) -> None:
    world.refuse = refusal(DaemonError("r0: no metadata", hint="Try: create-md r0"), "start r0")
    result = run("up all")
    assert result.code == 20
    assert world.done == ["start pair"]
    assert result.err == "replicator: r0: no metadata\n  Try: create-md r0\n"


def test_up_all_says_which_resources_cannot_run(world: PretendWorld, run: Run) -> None:
    world.config.broken["stacked"] = "it is stacked on r0"
    result = run("up all")
    assert result.code == 10
    assert result.err == "replicator: resource stacked cannot be used: it is stacked on r0\n"
    assert world.done == ["start r0", "start pair"]


def test_down_detaches_stops_and_cleans_up(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    world.attached.add("r0/0")
    assert run("down r0").code == 0
    assert world.done == [
        "detach device r0/0", "down r0 force=False", "wait end r0 force=False", "clean r0",
    ]  # fmt: skip


def test_down_on_what_is_not_up_succeeds_and_cleans_up(world: PretendWorld, run: Run) -> None:
    assert run("down r0").code == 0
    assert world.done == ["clean r0"]


def test_down_is_refused_while_mounted_and_nothing_is_stopped(
    world: PretendWorld, run: Run
) -> None:
    world.up["pair"] = resource_snapshot("pair")
    world.attached |= {"pair/0", "pair/3"}
    held = StateRefused("Device is held open by someone: mounted on /drbd", code=-12)
    world.refuse = refusal(held, "detach device pair/3")
    result = run("down pair")
    assert result.code == 11
    assert "State change failed: (-12) Device is held open by someone" in result.err
    assert world.done == ["detach device pair/0", "attach device pair/0"]
    assert "pair" in world.up


def test_down_refused_by_the_daemon_leaves_the_device_attached(
    world: PretendWorld, run: Run
) -> None:
    world.up["r0"] = resource_snapshot("r0")
    world.attached.add("r0/0")
    world.refuse = refusal(StateRefused("open", code=-12), "down r0 force=False")
    assert run("down r0").code == 11
    assert world.attached == {"r0/0"}


def test_down_of_a_hanging_daemon_needs_force(world: PretendWorld, run: Run) -> None:
    world.hanging.add("r0")
    assert run("down r0").code == 20
    assert "r0" in world.hanging
    world.waited = 0.0
    assert run("down --force r0").code == 0
    assert "r0" not in world.hanging
    assert world.waited < 30, "somebody waits at the terminal for it"


# -- roles


def test_primary_promotes_then_attaches(world: PretendWorld, run: Run) -> None:
    world.up["pair"] = resource_snapshot("pair")
    assert run("primary pair").code == 0
    assert world.done == [
        "primary pair force=False", "attach device pair/0", "attach device pair/3",
    ]  # fmt: skip


def test_primary_says_why_there_is_no_block_device(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    world.no_device = "only root can attach block devices"
    result = run("primary r0")
    assert (result.code, result.out) == (0, "")
    assert "only root can attach block devices" in result.err
    assert "replicator nbd-uri r0/0" in result.err


@pytest.mark.parametrize(
    "line",
    ["primary --force r0", "primary -o r0", "-- --overwrite-data-of-peer primary r0"],
)
def test_all_spellings_force_the_promotion(world: PretendWorld, run: Run, line: str) -> None:
    world.up["r0"] = resource_snapshot("r0")
    run(line)
    assert world.done[0] == "primary r0 force=True"


def test_a_promotion_without_good_data_ends_with_17(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0")
    world.refuse = refusal(
        NoUsableDataError("Need access to UpToDate data"), "primary r0 force=False"
    )
    result = run("primary r0")
    assert result.code == 17
    assert result.err == (
        "replicator: r0: State change failed: (-2) Need access to UpToDate data\n"
    )
    assert world.done == []


def test_a_device_that_cannot_be_attached_undoes_the_promotion(
    world: PretendWorld, run: Run
) -> None:
    world.up["pair"] = resource_snapshot("pair")
    world.refuse = refusal(DeviceError("no free nbd device"), "attach device pair/3")
    assert run("primary pair").code == 20
    assert world.done == [
        "primary pair force=False", "attach device pair/0", "detach device pair/0", "secondary pair",
    ]  # fmt: skip


def test_a_node_that_was_primary_stays_so_when_attaching_fails(
    world: PretendWorld, run: Run
) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    world.refuse = refusal(DeviceError("no free nbd device"), "attach device r0/0")
    assert run("primary r0").code == 20
    assert world.done == ["primary r0 force=False"]


def test_secondary_detaches_then_demotes(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    world.attached.add("r0/0")
    assert run("secondary r0").code == 0
    assert world.done == ["detach device r0/0", "secondary r0"]


def test_secondary_is_refused_while_mounted(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    world.attached.add("r0/0")
    world.refuse = refusal(StateRefused("Device is held open", code=-12), "detach device r0/0")
    assert run("secondary r0").code == 11
    assert world.done == []


def test_a_refused_demotion_leaves_the_device_attached(world: PretendWorld, run: Run) -> None:
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    world.attached.add("r0/0")
    world.refuse = refusal(StateRefused("Device is held open", code=-12), "secondary r0")
    assert run("secondary r0").code == 11
    assert world.attached == {"r0/0"}


def test_secondary_on_what_is_not_up_succeeds(world: PretendWorld, run: Run) -> None:
    assert run("secondary all").code == 0


# -- plain requests


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("connect r0", ["connect r0 discard_my_data=False"]),
        ("connect --discard-my-data r0", ["connect r0 discard_my_data=True"]),
        ("disconnect r0", ["disconnect r0 force=False"]),
        ("disconnect --force r0", ["disconnect r0 force=True"]),
        ("attach pair", ["attach pair volume=0", "attach pair volume=3"]),
        ("detach pair/3", ["detach pair volume=3 force=False"]),
        ("detach -f pair/3", ["detach pair volume=3 force=True"]),
        ("invalidate pair/0", ["invalidate pair volume=0"]),
        ("invalidate-remote r0", ["invalidate-remote r0 volume=0"]),
        ("pause-sync r0", ["pause-sync r0 volume=0"]),
        ("verify r0", ["verify r0 volume=0"]),
        ("verify --start 4M -S 9000s pair/3", ["verify pair volume=3 start=8192 stop=9000"]),
        ("resume-sync all", [
            "resume-sync r0 volume=0", "resume-sync pair volume=0", "resume-sync pair volume=3",
        ]),
    ],
)  # fmt: skip
def test_requests_reach_the_daemon(
    world: PretendWorld, run: Run, line: str, steps: list[str]
) -> None:
    world.up |= {"r0": resource_snapshot("r0"), "pair": resource_snapshot("pair")}
    result = run(line)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert world.done == steps


@pytest.mark.parametrize(
    "command",
    ["connect", "disconnect", "attach", "invalidate", "pause-sync", "primary", "wait-connect"],
)
def test_requests_without_a_daemon_name_the_command_that_starts_it(run: Run, command: str) -> None:
    result = run(f"{command} r0")
    assert result.code == 20
    assert "replicator up r0" in result.err
