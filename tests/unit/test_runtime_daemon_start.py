"""A daemon's first and last moments: a defect while it starts, and commands that come while it ends."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.engine.resource import Resource
from replicator.errors import DaemonError, NoUsableDataError, ReplicatorError
from replicator.metadata.layout import Placement
from replicator.runtime import metadata_files
from replicator.runtime.commands import dispatch
from replicator.runtime.daemon import ResourceDaemon
from replicator.runtime.daemon_setup import DaemonOptions, prepare
from replicator.runtime.engine_api import AdminDone
from replicator.runtime.ready import wait_ready

CONFIG = """resource r0 {
    device /dev/drbd950; disk %s; meta-disk internal;
    on alice { address 127.0.0.1:7788; }
    on bob { address 127.0.0.1:7789; }
}
"""


@pytest.fixture
def options(run_dir: Path) -> DaemonOptions:
    """Of a daemon with one disk of 1 MiB and without a front end."""
    disk, config = run_dir / "disk", run_dir / "conf"
    disk.touch()
    os.truncate(disk, 1 << 20)
    metadata_files.create_md(str(disk), Placement("internal"), ask=lambda question: True)
    config.write_text(CONFIG % disk)
    return DaemonOptions(str(config), "alice", "r0", str(run_dir), "none")


async def test_a_defect_while_disks_are_attached_is_reported_at_once(
    options: DaemonOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def attach(resource: Resource, *arguments: object) -> None:
        def broken() -> None:
            raise NameError("on purpose")

        resource.soon(broken)

    monkeypatch.setattr(Resource, "attach", attach)
    read, write = os.pipe()
    started = time.monotonic()
    setup = prepare(replace(options, ready_fd=write))
    daemon = ResourceDaemon(setup, asyncio.get_running_loop())
    await daemon.run()
    with pytest.raises(DaemonError, match="r0: the daemon failed: NameError: on purpose") as caught:
        wait_ready(read, 1)
    os.close(read)
    os.close(setup.lock_fd)
    await daemon._backings.close_all(5)
    assert time.monotonic() - started < 10
    assert "r0.log" in caught.value.hint
    assert "Traceback" in capsys.readouterr().err, "the log has all there is for a report"


async def test_commands_that_meet_a_daemon_that_ends_hear_that_and_nothing_of_its_state(
    options: DaemonOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = prepare(options)
    loop = asyncio.get_running_loop()
    heard: dict[str, ReplicatorError | None] = {}

    def give(name: str, arguments: dict[str, object]) -> None:
        try:
            dispatch(daemon, name, arguments, lambda _result, error: heard.setdefault(name, error))
        except ReplicatorError as error:
            heard[name] = error

    def primary(_resource: Resource, force: bool, done: AdminDone) -> None:
        under_way.append(done)

    def last_moments(resource: Resource, done: AdminDone, *, force: bool = False) -> None:
        under_way.pop()(NoUsableDataError("r0/0: this disk is Failed"))
        for name in ("secondary", "ping", "status"):
            give(name, {})
        shutdown(resource, done, force=force)

    shutdown = Resource.shutdown
    under_way: list[AdminDone] = []
    monkeypatch.setattr(Resource, "primary", primary)
    monkeypatch.setattr(Resource, "shutdown", last_moments)
    daemon = ResourceDaemon(setup, loop, ready=lambda: loop.call_soon(told_to_end))

    def told_to_end() -> None:
        give("primary", {})
        daemon.request_stop()

    await daemon.run()
    os.close(setup.lock_fd)
    assert heard.pop("status") is None
    for name, error in heard.items():
        assert isinstance(error, DaemonError), (name, error)
        assert "r0: the daemon (pid" in error.message
        assert "is ending" in error.message
        assert error.hint == "Start it again with: replicator up r0"
    assert set(heard) == {"primary", "secondary", "ping"}
