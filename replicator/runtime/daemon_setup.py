"""What a resource daemon needs before its loop runs: options, configuration, run directory, lock.

Blocking, in the main thread, before other threads exist. Whatever fails here is reported through
the readiness pipe, so that `up` shows it as its own error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from replicator import config
from replicator.config.model import NodeView
from replicator.errors import ReplicatorError, UsageError
from replicator.runtime import lock, paths
from replicator.runtime.paths import RunFiles
from replicator.runtime.ready import ReadyPipe

NBDKIT = "nbdkit"
NATIVE = "native"
NO_FRONTEND = "none"
FRONTENDS = (NBDKIT, NATIVE, NO_FRONTEND)
"""What can serve a daemon's volumes; "none" serves no block device (tests, diskless helpers)."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the process was asked to start. lock_fd, ready_fd: inherited descriptors, if any."""

    config_path: str
    node: str
    resource: str
    run_dir: str
    frontend: str = NBDKIT
    lock_fd: int | None = None
    ready_fd: int | None = None

    @classmethod
    def parse(cls, pairs: dict[str, str]) -> DaemonOptions:
        """From key=value pairs as spawn gives them. Raises UsageError naming the key."""
        known = {"config", "node", "resource", "run_dir", "frontend", "lock_fd", "ready_fd"}
        for key in pairs:
            if key not in known:
                raise UsageError(
                    f"unknown key '{key}'", hint=f"Known keys: {', '.join(sorted(known))}"
                )
        for key in ("config", "node", "resource", "run_dir"):
            if not pairs.get(key):
                raise UsageError(f"the key '{key}' is missing: give {key}=VALUE")
        frontend = pairs.get("frontend", NBDKIT)
        if frontend not in FRONTENDS:
            raise UsageError(f"frontend={frontend}: expected one of {', '.join(FRONTENDS)}")
        return cls(
            config_path=pairs["config"],
            node=pairs["node"],
            resource=pairs["resource"],
            run_dir=pairs["run_dir"],
            frontend=frontend,
            lock_fd=_descriptor(pairs, "lock_fd"),
            ready_fd=_descriptor(pairs, "ready_fd"),
        )


@dataclass(slots=True)
class DaemonSetup:
    """All that was found out and taken."""

    options: DaemonOptions
    view: NodeView
    files: RunFiles
    lock_fd: int
    ready: ReadyPipe
    warnings: list[str]


def prepare(options: DaemonOptions) -> DaemonSetup:
    """Read the configuration, make the run directory, take the lock, write the pid.
    Raises ReplicatorError, after having reported it to whoever waits for readiness."""
    ready = ReadyPipe(options.ready_fd)
    try:
        loaded = config.load(options.config_path)
        view = loaded.view(options.resource, options.node)
        paths.prepare(options.run_dir)
        files = RunFiles(options.run_dir, options.resource)
        if options.lock_fd is None:
            lock_fd = lock.acquire(files)
        else:
            lock_fd = options.lock_fd
            os.set_inheritable(lock_fd, False)
        lock.write_pid(lock_fd, os.getpid())
    except ReplicatorError as error:
        ready.failed(error)
        raise
    return DaemonSetup(options, view, files, lock_fd, ready, list(loaded.warnings))


def _descriptor(pairs: dict[str, str], key: str) -> int | None:
    text = pairs.get(key, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{key}={text}: expected the number of an open descriptor")
    return int(text)
