"""Run directory, lock, readiness, handlers, status files, spawn's environment: with real files."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.errors import ConfigError, DaemonError, StateRefused, UsageError
from replicator.runtime import handlers, lock, paths, ready, spawn, status_files
from replicator.runtime.daemon_setup import DaemonOptions
from replicator.runtime.handlers import HandlerContext, HandlerRunner
from replicator.runtime.log import LineLog
from replicator.runtime.paths import RunFiles
from replicator.runtime.status_writer import StatusWriter


def snapshot(name: str = "r0", minor: int = 0) -> ResourceSnapshot:
    volume = VolumeSnapshot(
        volume=0,
        minor=minor,
        device=f"/dev/drbd{minor}",
        disk_path="/disk",
        size_sectors=8,
        cs="Connected",
        role="Primary",
        peer_role="Secondary",
        disk="UpToDate",
        peer_disk="UpToDate",
    )
    return ResourceSnapshot(name, "alice", "bob", "Connected", "C", [volume])


# Run directory


def test_the_run_directory_is_the_option_then_the_variable_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(paths.VARIABLE, "/from/variable")
    assert paths.run_dir("/from/option") == "/from/option"
    assert paths.run_dir(None) == "/from/variable"
    monkeypatch.delenv(paths.VARIABLE)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.run_dir(None) == "/run/replicator"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.run_dir(None) == "/run/user/1000/replicator"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(DaemonError, match="XDG_RUNTIME_DIR is not set"):
        paths.run_dir(None)


def test_a_run_directory_that_cannot_be_made_is_named(run_dir: Path) -> None:
    (run_dir / "file").write_text("")
    with pytest.raises(DaemonError, match="cannot create the run directory .*file/run"):
        paths.prepare(str(run_dir / "file" / "run"))
    paths.prepare(str(run_dir / "a" / "b"))
    assert (run_dir / "a" / "b").is_dir()


# Lock


def test_the_lock_admits_one_and_names_the_holder(run_dir: Path) -> None:
    files = RunFiles(str(run_dir), "r0")
    assert lock.daemon_pid(str(run_dir), "r0") is None
    fd = lock.acquire(files)
    assert lock.daemon_pid(str(run_dir), "r0") == 0
    lock.write_pid(fd, 4711)
    assert lock.daemon_pid(str(run_dir), "r0") == 4711
    with pytest.raises(DaemonError, match="runs already \\(pid 4711\\)"):
        lock.acquire(files)
    os.close(fd)
    assert lock.daemon_pid(str(run_dir), "r0") is None
    os.close(lock.acquire(files))


def test_the_lock_is_free_when_its_process_was_killed(run_dir: Path) -> None:
    script = (
        "import sys, time; from replicator.runtime import lock, paths;"
        "fd = lock.acquire(paths.RunFiles(sys.argv[1], 'r0')); print('held', flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run_dir)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert lock.daemon_pid(str(run_dir), "r0") is not None
        process.kill()
    assert lock.daemon_pid(str(run_dir), "r0") is None


def test_a_lock_file_unlinked_by_its_holder_does_not_admit_two(run_dir: Path) -> None:
    files = RunFiles(str(run_dir), "r0")
    first = lock.acquire(files)
    files.pid.unlink()
    second = lock.acquire(files)
    assert lock.try_acquire(files) is None
    os.close(first)
    assert lock.try_acquire(files) is None
    os.close(second)


# Readiness


def test_readiness_and_errors_travel_through_the_pipe() -> None:
    read, write = os.pipe()
    ready.ReadyPipe(write).ready(99)
    assert ready.wait_ready(read, 1) == 99
    os.close(read)
    read, write = os.pipe()
    ready.ReadyPipe(write).failed(StateRefused("no", code=-12, hint="wait"))
    with pytest.raises(StateRefused) as refused:
        ready.wait_ready(read, 1)
    assert (refused.value.code, refused.value.hint) == (-12, "wait")
    os.close(read)


def test_a_daemon_that_dies_or_hangs_before_it_is_ready_is_noticed() -> None:
    read, write = os.pipe()
    started = time.monotonic()
    with pytest.raises(DaemonError, match="not ready within 0.1 s"):
        ready.wait_ready(read, 0.1)
    assert time.monotonic() - started < 2
    os.close(write)
    with pytest.raises(DaemonError, match="ended before it was ready"):
        ready.wait_ready(read, 5)
    os.close(read)


def test_garbage_on_the_readiness_pipe_is_an_error() -> None:
    read, write = os.pipe()
    os.write(write, b"\0\0\0\1\7")
    os.close(write)
    with pytest.raises(DaemonError, match="cannot be read"):
        ready.wait_ready(read, 1)
    os.close(read)


# Arguments of the daemon


def test_the_daemons_arguments_are_checked_by_name() -> None:
    good = {"config": "/c", "node": "alice", "resource": "r0", "run_dir": "/r", "lock_fd": "5"}
    assert DaemonOptions.parse(good).lock_fd == 5
    with pytest.raises(UsageError, match="unknown key 'colour'"):
        DaemonOptions.parse({**good, "colour": "red"})
    with pytest.raises(UsageError, match="'node' is missing"):
        DaemonOptions.parse({**good, "node": ""})
    with pytest.raises(UsageError, match="lock_fd=x"):
        DaemonOptions.parse({**good, "lock_fd": "x"})
    with pytest.raises(UsageError, match="frontend=none2"):
        DaemonOptions.parse({**good, "frontend": "none2"})


def test_the_daemon_finds_the_modules_that_we_use() -> None:
    roots = spawn.daemon_environment()["PYTHONPATH"].split(":")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    script = "import replicator, protocol, nbd_plugin, msgpack, uvloop; print('found')"
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-c", script],
        env={**clean, "PYTHONPATH": ":".join(roots)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "found\n", done.stderr


def test_a_front_end_that_there_is_not_is_refused(run_dir: Path) -> None:
    path = run_dir / "r0.conf"
    path.write_text(
        "resource r0 { device /dev/drbd0; disk /tmp/x; meta-disk internal;"
        " on a { address 127.0.0.1:1000; } on b { address 127.0.0.1:1001; } }"
    )
    from replicator import config

    view = config.load(str(path)).view("r0", "a")
    with pytest.raises(
        ConfigError, match="there is no frontend sftp; there are nbdkit, native, none"
    ):
        spawn.start_daemon(view, str(path), "a", str(run_dir), frontend="sftp")


def test_the_built_in_server_without_sockets_says_how_it_is_started(run_dir: Path) -> None:
    path = run_dir / "r0.conf"
    path.write_text(
        "resource r0 { device /dev/drbd0; disk /tmp/x; meta-disk internal;"
        " on a { address 127.0.0.1:1000; } on b { address 127.0.0.1:1001; } }"
    )
    pairs = (f"config={path}", "node=a", "resource=r0", f"run_dir={run_dir}", "frontend=native")
    done = subprocess.run(
        [sys.executable, "-m", "nbd_plugin.native", *pairs],
        env={key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == DaemonError.exit_code
    assert "no NBD sockets were handed over" in done.stderr
    assert "replicator up" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_daemon_keeps_the_memory_that_large_requests_need_again_and_again() -> None:
    script = (
        "import resource, sys; from replicator.runtime import hardening\n"
        "if len(sys.argv) > 1: hardening.protect_process()\n"
        "for _ in range(200): bytes(bytearray(1 << 20))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )

    def faults(*arguments: str) -> int:
        words = [sys.executable, "-c", script, *arguments]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert faults("protect") < faults() / 3


# Handlers

CONTEXT = HandlerContext(
    resource="r0",
    peer="bob",
    peer_host="10.0.0.3",
    config_path="/etc/replicator.conf",
    commands={
        "first": "sleep 0.3; echo first >> $OUT",
        "second": "echo second >> $OUT",
        "fence-peer": "echo fence-peer >> $OUT",
        "replicator": "env | grep -E ^REPLICATOR_ | sort > $OUT; echo $PATH >> $OUT",
        "env": "env | grep ^DRBD_ | sort > $OUT",
        "seven": "exit 7",
        "killed": "kill -9 $$",
        "hang": "sleep 100",
        "daemon": "sleep 100 & exit 3",
    },
    volumes={0: (10, "/dev/sda7"), 1: (11, "/dev/sda8")},
    node="alice",
    run_dir="/run/replicator",
)


async def run_handler(event: str, volume: int | None = None, seconds: float = 10.0) -> int:
    loop = asyncio.get_running_loop()
    runner = HandlerRunner(loop, CONTEXT, LineLog("r0"), seconds)
    status: asyncio.Future[int] = loop.create_future()
    runner.call(event, volume, status.set_result)
    assert not status.done()
    return await asyncio.wait_for(status, 10)


async def test_a_handlers_exit_status_is_reported() -> None:
    assert await run_handler("seven") == 7
    assert await run_handler("killed") == 128 + signal.SIGKILL
    assert await run_handler("no-such-handler") == 0


async def test_a_handler_that_hangs_is_stopped() -> None:
    assert await run_handler("hang", seconds=0.2) == handlers.TIMED_OUT


async def test_a_handler_that_leaves_a_process_behind_is_not_waited_for() -> None:
    started = time.monotonic()
    assert await run_handler("daemon") == 3
    assert time.monotonic() - started < 5


async def test_a_handler_gets_drbds_environment(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(run_dir / "out"))
    await run_handler("env", 1)
    assert (run_dir / "out").read_text().splitlines() == [
        "DRBD_CONF=/etc/replicator.conf",
        "DRBD_LL_DISK=/dev/sda8",
        "DRBD_MINOR=11",
        "DRBD_PEER=bob",
        "DRBD_PEERS=bob",
        "DRBD_PEER_ADDRESS=10.0.0.3",
        "DRBD_PEER_AF=ipv4",
        "DRBD_RESOURCE=r0",
        "DRBD_VOLUME=1",
    ]
    await run_handler("env", None)
    text = (run_dir / "out").read_text()
    assert "DRBD_MINOR=10 11\n" in text
    assert "DRBD_LL_DISK=/dev/sda7 /dev/sda8\n" in text


async def test_a_handler_can_call_replicator_for_the_same_node(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(run_dir / "out"))
    await run_handler("replicator")
    *settings, path = (run_dir / "out").read_text().splitlines()
    assert settings == [
        "REPLICATOR_CONF=/etc/replicator.conf",
        "REPLICATOR_NODE=alice",
        "REPLICATOR_RUN_DIR=/run/replicator",
    ]
    assert path.endswith("/sbin:/usr/sbin:/bin:/usr/bin")


async def test_handlers_run_in_the_order_of_the_events_but_fencing_does_not_wait(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(run_dir / "out"))
    loop = asyncio.get_running_loop()
    runner = HandlerRunner(loop, CONTEXT, LineLog("r0"))
    ended: asyncio.Future[int] = loop.create_future()
    runner.call("first", None, None)
    runner.call("second", None, ended.set_result)
    runner.call("fence-peer", None, lambda _status: None)
    assert [line.partition(",")[0] for line in runner.running()] == ["fence-peer", "first"]
    assert await asyncio.wait_for(ended, 10) == 0
    assert (run_dir / "out").read_text().split() == ["fence-peer", "first", "second"]
    assert runner.running() == []


async def test_handlers_that_wait_are_bounded() -> None:
    loop = asyncio.get_running_loop()
    runner = HandlerRunner(loop, CONTEXT, LineLog("r0"), seconds=0.2)
    statuses: list[int] = []
    for _ in range(handlers.WAITING_MAX + 2):
        runner.call("hang", None, statuses.append)
    await asyncio.sleep(0.05)
    assert statuses == [handlers.NOT_RUN], "one runs, WAITING_MAX wait"


# Status files


async def test_the_status_writer_ends_also_when_a_change_comes_with_the_order_to_end(
    run_dir: Path,
) -> None:
    """A daemon that was told to go down while its state changed never ended."""
    os.close(lock.acquire(RunFiles(str(run_dir), "r0")))
    writer = StatusWriter(str(run_dir), snapshot, LineLog("r0"))
    task = asyncio.create_task(writer.run())
    await asyncio.sleep(0.2)
    writer.changed()
    await asyncio.sleep(0)
    task.cancel()
    _, still_running = await asyncio.wait({task}, timeout=2)
    task.cancel()
    assert not still_running


def test_the_status_text_has_only_resources_whose_daemon_lives(run_dir: Path) -> None:
    held = lock.acquire(RunFiles(str(run_dir), "r0"))
    status_files.write_snapshot(str(run_dir), snapshot("r0", 0))
    other = lock.acquire(RunFiles(str(run_dir), "r1"))
    status_files.write_snapshot(str(run_dir), snapshot("r1", 1))
    text = (run_dir / "status").read_text()
    assert " 0: cs:Connected ro:Primary/Secondary" in text
    assert " 1: cs:Connected" in text
    os.close(other)
    status_files.write_node_text(str(run_dir))
    assert " 1: cs:" not in (run_dir / "status").read_text()
    found = status_files.last_snapshot(str(run_dir), "r1")
    assert found is not None
    assert found.volumes[0].minor == 1
    status_files.clean_run_dir(str(run_dir), "r1")
    assert status_files.last_snapshot(str(run_dir), "r1") is None
    status_files.clean_run_dir(str(run_dir), "r0")
    assert status_files.last_snapshot(str(run_dir), "r0") is not None
    os.close(held)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', '{"volumes": [{"x": 1}]}'])
def test_a_snapshot_of_another_version_is_left_out(run_dir: Path, text: str) -> None:
    (run_dir / "r0.status.json").write_text(text)
    held = lock.acquire(RunFiles(str(run_dir), "r0"))
    assert status_files.last_snapshot(str(run_dir), "r0") is None
    assert status_files.living_snapshots(str(run_dir)) == []
    os.close(held)


def test_files_appear_as_a_whole(run_dir: Path) -> None:
    path = run_dir / "file"
    status_files.replace_file(path, "one")
    before = path.stat().st_ino
    status_files.replace_file(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_ino != before
    assert [one.name for one in run_dir.iterdir()] == ["file"]
