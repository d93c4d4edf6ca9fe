"""`replicator bench` without a pair: what it asks for, what it makes of the times, how it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replicator.cli import world as world_module
from replicator.errors import DaemonError, NoDiskError, StateRefused
from replicator.runtime.disk_probe import DiskTimes
from tests.unit.cli_world import PretendWorld, Run, resource_snapshot, volume_snapshot

TIMES = {"link": 0.0001, "write-here": 0.00002, "write": 0.0003, "write-flush": 0.0053}


class MeasuringWorld(PretendWorld):
    """Each measurement has three steps: half of the time above, it, and ten times as long."""

    direct = True

    def call(
        self, run_dir: str, resource: str, command: str, arguments: dict[str, Any], timeout: float
    ) -> Any:
        answer = super().call(run_dir, resource, command, arguments, timeout)
        if command != "bench":
            return answer
        time = TIMES[arguments["kind"]]
        return [10 * time, time / 2, time]

    def measure_disk(self, data: str, meta: str, count: int, seconds: float) -> DiskTimes:
        self._step(f"measure {data} {meta} {seconds:g}")
        return DiskTimes([0.00008] * 3, [0.004] * 3, self.direct)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> MeasuringWorld:
    world = MeasuringWorld(files={"/etc/drbd.conf"})
    monkeypatch.setattr(world_module, "World", lambda: world)
    world.up["r0"] = resource_snapshot("r0", volume_snapshot(role="Primary"))
    return world


def test_without_write_nothing_is_written(world: MeasuringWorld, run: Run) -> None:
    result = run("bench r0")
    assert result.code == 0
    asked = [step for step in world.done if step.startswith("bench")]
    assert [step for step in asked if "kind=link" not in step] == []
    assert "disk: read 4 KiB" in result.out and "write 4 KiB" not in result.out


def test_a_table_and_where_the_time_goes(world: MeasuringWorld, run: Run) -> None:
    lines = run("bench --write r0").out.splitlines()
    assert lines[0] == "r0/0 Primary, Connected, protocol C"
    (mirrored,) = (line for line in lines if "mirrored  " in line and "flush" not in line)
    assert mirrored.split()[-5:] == ["300", "µs", "3.0", "ms", "3,333/s"]
    (where,) = (line for line in lines if "round trip is 100 µs" in line)
    assert "of 300 µs" in where and "200 µs are the peer's disk" in where
    assert any("a flush adds 5.0 ms" in line for line in lines)


def test_json_has_the_same_in_microseconds(world: MeasuringWorld, run: Run) -> None:
    document = json.loads(run("bench --write --json --seconds 0.5 r0").out)
    (volume,) = document["volumes"]
    assert (document["schema"], volume["name"], volume["role"]) == (1, "r0/0", "Primary")
    assert volume["measured"]["link"] == {
        "samples": 3,
        "min_us": 50.0,
        "p50_us": 100.0,
        "p99_us": 1000.0,
        "max_us": 1000.0,
    }
    assert set(volume["measured"]) == {"disk-read", "disk-flush", *TIMES}
    assert volume["missing"] == {}


def test_what_cannot_be_measured_is_said_and_the_rest_is_measured(
    world: MeasuringWorld, run: Run
) -> None:
    world.refuse["measure /dev/sda7 /dev/sda7 1"] = NoDiskError("/dev/sda7: cannot be opened")
    world.refuse["bench r0 volume=0 kind=write count=1000 seconds=1.0"] = StateRefused("no mirror")
    result = run("bench --write r0")
    assert result.code == 0
    assert "not measured: /dev/sda7: cannot be opened" in result.out
    assert "not measured: no mirror" in result.out
    assert "link: round trip" in result.out


def test_reads_that_may_come_from_the_cache_are_told(world: MeasuringWorld, run: Run) -> None:
    world.direct = False
    assert "may come from the page cache" in run("bench r0").out


@pytest.mark.parametrize("seconds", ["0", "21"])
def test_a_time_out_of_bounds_is_refused_at_once(
    world: MeasuringWorld, run: Run, seconds: str
) -> None:
    result = run(f"bench --seconds {seconds} r0")
    assert result.code == 1
    assert "at most 20 s" in result.err
    assert world.done == []


def test_a_resource_that_is_not_up_says_how_to_start_it(world: MeasuringWorld, run: Run) -> None:
    del world.up["r0"]
    result = run("bench r0")
    assert result.code == DaemonError.exit_code
    assert "replicator up r0" in result.err
