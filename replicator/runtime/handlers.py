"""The Handlers port: run the administrator's programs of the `handlers` section.

Each runs as `bash -c COMMAND` with the environment that DRBD's handlers know, in a thread and a
session of its own, for at most HANDLER_SECONDS. bash and not sh, because handlers may rely on
exported functions, which dash drops. Output goes to stderr, which the daemon has pointed at its
log: not through a pipe, which a program that the handler leaves behind would keep open.

They run one after the other, in the order of the events; only fence-peer and unfence-peer have a
lane of their own, because a mail program that hangs must not keep a node from failing over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from replicator.engine.ports import Log

HANDLER_SECONDS = 180.0
"""The fencing scripts of cluster managers wait up to 90 s themselves; this is the backstop."""

STDERR = 2

TIMED_OUT = 124
"""Exit status reported for a handler that was stopped, as timeout(1) does."""

NOT_RUN = 127
"""Exit status reported for a handler that could not be started."""

WAITING_MAX = 32
"""Handlers of one lane that may wait for their turn; more are not run."""

FENCING_LANE = frozenset({"fence-peer", "unfence-peer"})

SEARCH_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"
"""Added to PATH: a daemon that a cluster manager started may have next to none."""


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
    node: str = ""
    run_dir: str = ""


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
        # For a handler that calls `replicator`: the same node, files and sockets as this daemon's.
        "REPLICATOR_CONF": context.config_path,
        "REPLICATOR_NODE": context.node,
        "REPLICATOR_RUN_DIR": context.run_dir,
        "PATH": f"{os.environ.get('PATH', '')}:{SEARCH_PATH}".lstrip(":"),
    }


class _Call(NamedTuple):
    event: str
    command: str
    extra: dict[str, str]
    done: Callable[[int], None] | None


class _Lane:
    """Handlers that run one after the other. For the loop's thread only."""

    def __init__(self) -> None:
        self.running: _Call | None = None
        self.since = 0.0
        self.waiting: deque[_Call] = deque()


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
        self._fencing = _Lane()
        self._others = _Lane()

    def call(self, event: str, volume: int | None, done: Callable[[int], None] | None) -> None:
        command = self._context.commands.get(event, "")
        if not command:
            if done is not None:
                self._loop.call_soon(done, 0)
            return
        lane = self._fencing if event in FENCING_LANE else self._others
        if len(lane.waiting) >= WAITING_MAX:
            self._log.log("error", f"handler {event} is not run: {WAITING_MAX} others wait already")
            if done is not None:
                self._loop.call_soon(done, NOT_RUN)
            return
        lane.waiting.append(_Call(event, command, environment(self._context, volume), done))
        self._next(lane)

    def running(self) -> list[str]:
        """What runs now, for people: "fence-peer, for 3 s (at most 180 s)"."""
        now = self._loop.time()
        return [
            f"{lane.running.event}, for {now - lane.since:.0f} s (at most {self._seconds:g} s)"
            for lane in (self._fencing, self._others)
            if lane.running is not None
        ]

    def _next(self, lane: _Lane) -> None:
        if lane.running is not None or not lane.waiting:
            return
        lane.running = call = lane.waiting.popleft()
        lane.since = self._loop.time()
        self._log.log("info", f"handler {call.event}: {call.command}")
        threading.Thread(
            target=self._run, args=(lane, call), name=f"handler-{call.event}", daemon=True
        ).start()

    def _run(self, lane: _Lane, call: _Call) -> None:
        status = run_shell(call.command, {**os.environ, **call.extra}, self._seconds)
        # RuntimeError: the loop has been closed, nobody waits for the status any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, lane, call, status)

    def _finish(self, lane: _Lane, call: _Call, status: int) -> None:
        lane.running = None
        if status == TIMED_OUT:
            text = f"handler {call.event} was stopped after {self._seconds:g} s"
            self._log.log("warning", text)
        else:
            self._log.log("info", f"handler {call.event} ended with exit status {status}")
        self._next(lane)
        if call.done is not None:
            call.done(status)


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
        return NOT_RUN
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return TIMED_OUT
    return status if status >= 0 else 128 - status
