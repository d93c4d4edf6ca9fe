"""A daemon that has a defect while it starts: its starter hears of it at once."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from replicator.engine.resource import Resource
from replicator.errors import DaemonError
from replicator.metadata.layout import Placement
from replicator.runtime import metadata_files
from replicator.runtime.daemon import ResourceDaemon
from replicator.runtime.daemon_setup import DaemonOptions, prepare
from replicator.runtime.ready import wait_ready

CONFIG = """resource r0 {
    device /dev/drbd950; disk %s; meta-disk internal;
    on alice { address 127.0.0.1:7788; }
    on bob { address 127.0.0.1:7789; }
}
"""


async def test_a_defect_while_disks_are_attached_is_reported_at_once(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, config = run_dir / "disk", run_dir / "conf"
    disk.touch()
    os.truncate(disk, 1 << 20)
    metadata_files.create_md(str(disk), Placement("internal"), ask=lambda question: True)
    config.write_text(CONFIG % disk)

    def attach(resource: Resource, *arguments: object) -> None:
        def broken() -> None:
            raise NameError("on purpose")

        resource.soon(broken)

    monkeypatch.setattr(Resource, "attach", attach)
    read, write = os.pipe()
    options = DaemonOptions(str(config), "alice", "r0", str(run_dir), "none", ready_fd=write)
    started = time.monotonic()
    setup = prepare(options)
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
