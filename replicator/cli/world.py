"""Everything outside the command line: files, daemons, devices, metadata, time. Tests replace it.

Rules: thin calls only, no decisions. Imports happen inside the functions: a command pays only for
what it uses, and cluster managers run many short commands.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from replicator.engine.snapshot import ResourceSnapshot

if TYPE_CHECKING:
    from replicator.config import Config, NodeView
    from replicator.runtime.disk_probe import DiskTimes


class World:
    """The real one. Methods raise classes of replicator.errors."""

    def file_exists(self, path: str) -> bool:
        return os.path.exists(path)

    def node_name(self) -> str:
        return os.uname().nodename

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def load_config(self, path: str) -> Config:
        from replicator import config

        return config.load(path)

    def read_text(self, path: str) -> str:
        """All of a file, of standard input for "-". Raises OSError, UnicodeDecodeError."""
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()

    def run_dir(self, option: str | None) -> str:
        from replicator.runtime import paths

        return paths.run_dir(option)

    def call(
        self, run_dir: str, resource: str, command: str, arguments: dict[str, Any], timeout: float
    ) -> Any:
        from replicator.runtime import control

        return control.call(run_dir, resource, command, arguments, timeout)

    def daemon_pid(self, run_dir: str, resource: str) -> int | None:
        """None without a daemon; 0 while it starts or stops."""
        from replicator.runtime import lock

        return lock.daemon_pid(run_dir, resource)

    def last_snapshot(self, run_dir: str, resource: str) -> ResourceSnapshot | None:
        """What the daemon wrote down last."""
        from replicator.runtime import status_files

        return status_files.last_snapshot(run_dir, resource)

    def start_daemon(self, view: NodeView, config_path: str, node: str, run_dir: str) -> None:
        """Returns when the daemon is ready; raises what it reported if it is not."""
        from replicator.runtime import spawn

        spawn.start_daemon(view, config_path, node, run_dir)

    def measure_disk(self, data: str, meta: str, count: int, seconds: float) -> DiskTimes:
        """Times of reading and flushing; raises NoDiskError."""
        from replicator.runtime import disk_probe

        return disk_probe.measure(data, meta, count, seconds)

    def wait_daemon_ended(self, run_dir: str, resource: str, force: bool) -> None:
        from replicator.runtime import spawn

        spawn.wait_daemon_ended(run_dir, resource, force)

    def clean_run_dir(self, run_dir: str, resource: str) -> None:
        from replicator.runtime import status_files

        status_files.clean_run_dir(run_dir, resource)

    def attach_device(self, view: NodeView, volume: int, run_dir: str) -> str:
        """Returns why there is no block device although the configuration allows one, "" if there is."""
        from replicator.runtime import attach

        attached = attach.attach_device(view, volume, run_dir)
        return "" if view.replicator.attach == attach.NONE else attached.reason

    def detach_device(self, view: NodeView, volume: int, run_dir: str) -> bool:
        """False if there was none. Raises StateRefused while it is mounted or open."""
        from replicator.runtime import attach

        return attach.detach_device(view, volume, run_dir)

    def device_users(self, view: NodeView, volume: int, run_dir: str) -> list[str]:
        """Who has the attached device open, in words; empty if nobody or if there is none."""
        from replicator.runtime import attach

        return attach.device_users(view, volume, run_dir)
