"""The Handlers port: run the administrator's programs of the `handlers` section.

Each runs as `bash -c COMMAND` with the environment that DRBD's handlers know, in a thread and a
session of its own, for at most HANDLER_SECONDS. bash and not sh, because handlers may rely on
exported functions, which dash drops. Output goes to stderr, which the daemon has pointed at its
log: not through a pipe, which a program that the handler leaves behind would keep open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from replicator.engine.ports import Log

HANDLER_SECONDS = 180.0
"""The fencing scripts of cluster managers wait up to 90 s themselves; this is the backstop."""

STDERR = 2

TIMED_OUT = 124
"""Exit status reported for a handler that was stopped, as timeout(1) does."""


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """What the environment of a handler is made of."""

    resource: str
    peer: str
    peer_host: str
    config_path: str
    commands: Mapping[str, str]
    volumes: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    """Volume number -> (minor, path of the backing disk)."""


def environment(context: HandlerContext, volume: int | None) -> dict[str, str]:
    """The variables for a handler of one volume, or of the whole resource (lists of all)."""
    chosen = sorted(context.volumes) if volume is None else [volume]
    return {
        "DRBD_RESOURCE": context.resource,
        "DRBD_VOLUME": " ".join(str(number) for number in chosen),
        "DRBD_MINOR": " ".join(str(context.volumes[number][0]) for number in chosen),
        "DRBD_LL_DISK": " ".join(context.volumes[number][1] for number in chosen),
        "DRBD_PEER": context.peer,
        "DRBD_PEERS": context.peer,
        "DRBD_PEER_AF": "ipv6" if ":" in context.peer_host else "ipv4",
        "DRBD_PEER_ADDRESS": context.peer_host,
        "DRBD_CONF": context.config_path,
    }


class HandlerRunner:
    """Runs handlers without ever blocking the loop; `done` is called on the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: HandlerContext,
        log: Log,
        seconds: float = HANDLER_SECONDS,
    ) -> None:
        self._loop = loop
        self._context = context
        self._log = log
        self._seconds = seconds

    def call(self, event: str, volume: int | None, done: Callable[[int], None] | None) -> None:
        command = self._context.commands.get(event, "")
        if not command:
            if done is not None:
                self._loop.call_soon(done, 0)
            return
        extra = environment(self._context, volume)
        self._log.log("info", f"handler {event}: {command}")
        threading.Thread(
            target=self._run,
            args=(event, command, extra, done),
            name=f"handler-{event}",
            daemon=True,
        ).start()

    def _run(
        self,
        event: str,
        command: str,
        extra: dict[str, str],
        done: Callable[[int], None] | None,
    ) -> None:
        status = run_shell(command, {**os.environ, **extra}, self._seconds)
        # RuntimeError: the loop has been closed, nobody waits for the status any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, event, status, done)

    def _finish(self, event: str, status: int, done: Callable[[int], None] | None) -> None:
        if status == TIMED_OUT:
            self._log.log("warning", f"handler {event} was stopped after {self._seconds:g} s")
        else:
            self._log.log("info", f"handler {event} ended with exit status {status}")
        if done is not None:
            done(status)


def run_shell(command: str, env: dict[str, str], seconds: float) -> int:
    """Exit status; 128 + signal if killed, 124 if stopped, 127 if it cannot be started."""
    shell = shutil.which("bash") or "/bin/sh"
    try:
        process = subprocess.Popen(
            [shell, "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=STDERR,
            stderr=STDERR,
            env=env,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return 127
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return TIMED_OUT
    return status if status >= 0 else 128 - status
