"""The resource daemon: one resource's engine with its disks, peer link, control socket and status.

It runs on any event loop: in a thread inside nbdkit, or as a process of its own: with the built-in
NBD server (nbd_plugin.native), or as `python -m replicator.runtime.daemon key=value...` without a
front end.
Rules:
1. Start and stop are written here as a sequence; what happens in between is the engine's.
2. A defect stops it at once, without any further write: the loop's state cannot be trusted then,
   and a restart after a crash is a case that the metadata is made for.
3. It knows nothing of NBD: a front end uses `engine.volumes` and is told through `stopping`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from replicator import compiled
from replicator.config.settings import to_settings
from replicator.engine.snapshot import ResourceSnapshot
from replicator.errors import DaemonError, ReplicatorError
from replicator.runtime import commands, hardening, status_files
from replicator.runtime.backing import Backings
from replicator.runtime.clock import LoopClock, SystemEntropy
from replicator.runtime.control_server import ControlServer
from replicator.runtime.daemon_setup import NO_FRONTEND, DaemonOptions, DaemonSetup, prepare
from replicator.runtime.end_signals import EndSignals
from replicator.runtime.engine_api import AdminDone, MakeResource, RuntimePorts, make_resource
from replicator.runtime.handlers import HandlerContext, HandlerRunner
from replicator.runtime.log import LineLog
from replicator.runtime.net import Endpoint, TcpNetwork
from replicator.runtime.probe import Series
from replicator.runtime.status_writer import StatusWriter
from replicator.runtime.turns import TurnLoop

ATTACH_SECONDS = 300.0
"""Reading the bitmap of a very large volume from a slow disk takes its time."""

SHUTDOWN_SECONDS = 20.0
"""For an orderly end after a signal; then the process ends as if killed, which is safe."""

COLLECT_AFTER = 20_000
"""Objects more than there were, before the collector looks for garbage in cycles. Python's 700 are
reached time and again by writes that wait in the transfer log, and there are no cycles among them."""

DISK_SECONDS = 10.0

FORCE_SECONDS = 10.0
"""`down --force`: for the orderly way, before it is left out."""


class FrontEnd(Protocol):
    """What serves the volumes to applications. All is called on the loop."""

    def ready(self) -> None:
        """All is up: begin."""

    def stopping(self) -> None:
        """The daemon is about to end: let go of everything."""

    def force_close(self) -> None:
        """`down --force`: close what is open and fail what is under way."""


MakeFrontEnd = Callable[["DaemonSetup", "ResourceDaemon"], FrontEnd]
"""Raises ReplicatorError if it cannot serve."""


class ResourceDaemon:
    """ready: called on the loop when all is up.
    stopping: called on the loop when the daemon is about to end, so that the front end lets go.
    force_close: called by `down --force`: the front end fails what it has open."""

    def __init__(
        self,
        setup: DaemonSetup,
        loop: asyncio.AbstractEventLoop,
        *,
        make: MakeResource = make_resource,
        ready: Callable[[], None] | None = None,
        stopping: Callable[[], None] | None = None,
        force_close: Callable[[], None] | None = None,
    ) -> None:
        self.name = setup.options.resource
        self.pid = os.getpid()
        self.log = LineLog(self.name)
        self.failure = ""
        self.series: Series | None = None
        """The last measurement of `replicator bench`."""
        self._setup = setup
        self._loop = loop
        self._on_ready = ready
        self._stopping = stopping
        self._force_close = force_close
        self._end = asyncio.Event()
        self._shut_down = False
        self.ending = False
        """Told to end by a signal: it lets go of everything, whatever state that makes."""
        self._backings = Backings(
            loop,
            lambda remark: self.log.log("info", remark),
            direct=setup.view.replicator.disk_io == "direct",
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.settings = to_settings(setup.view)
        # Both nodes see the same two addresses, so they agree who dials first.
        view = setup.view
        self.settings.dials_first = view.address.endpoint < view.peer_address.endpoint
        self.engine = make(self.settings, self._make_ports(), self._backings.close)
        self._writer = StatusWriter(setup.options.run_dir, self.snapshot, self.log)
        self._control = ControlServer(
            loop,
            setup.files.control,
            lambda cmd, args, reply: commands.dispatch(self, cmd, args, reply),
            commands.deadline,
            lambda: self.engine.snapshot().waiting_for,
        )

    def serve_by(self, front_end: FrontEnd) -> None:
        """Before run(): take this front end, in place of what the constructor was given."""
        self._on_ready = front_end.ready
        self._stopping = front_end.stopping
        self._force_close = front_end.force_close

    # Life.

    async def run(self) -> None:
        """Start, report readiness, run until told to stop, shut down.
        Raises ReplicatorError if it could not start (reported to the starter already); after a
        defect it returns at once with `failure` set."""
        self._loop.set_exception_handler(self._defect)
        try:
            await self._start_unless_defect()
        except ReplicatorError as error:
            self.log.log("error", f"cannot start: {error}")
            await self._give_up_start()
            self._setup.ready.failed(error)
            raise
        except Exception as error:
            self._defect(self._loop, {"message": "start", "exception": error})
        if self.failure:
            self._setup.ready.failed(
                DaemonError(
                    f"{self.name}: the daemon failed: {self.failure}",
                    hint=f"See {self._setup.files.log}; please report it.",
                )
            )
        else:
            self._setup.ready.ready(self.pid)
            if self._on_ready is not None:
                self._on_ready()
            await self._end.wait()
        if not self.failure:
            await self._stop()

    def request_stop(self) -> None:
        """Ask for an orderly end. From the loop's thread."""
        self._end.set()

    async def _start_unless_defect(self) -> None:
        """_start(); after a defect nobody answers any more, so that it would wait for nothing."""
        start = self._loop.create_task(self._start())
        ended = self._loop.create_task(self._end.wait())
        await asyncio.wait({start, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if self.failure:
            start.cancel()
        else:
            await start

    async def _start(self) -> None:
        self.log.log("info", f"daemon starts, pid {self.pid}, node {self.settings.node}")
        self.log.log("info", f"engine: {compiled.in_use()}")
        for warning in self._setup.warnings:
            self.log.log("warning", warning)
        for volume in self._setup.view.volumes:
            await self._attach(volume.number)
        await self._control.start()
        await self._engine_call(lambda done: self.engine.connect(False, done), "connect")
        self.engine.on_change = self._writer.changed
        await self._writer.write_now()
        self._spawn(self._writer.run())
        # What exists now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)

    async def _give_up_start(self) -> None:
        self._control.stop()
        await self._backings.close_all(DISK_SECONDS)

    async def _stop(self) -> None:
        if not self._shut_down:
            self.ending = True
            # The process ends whatever its clients want; without them it can end in order.
            if self._force_close is not None:
                self._force_close()
            try:
                await self._engine_call(self.engine.shutdown, "shutdown", SHUTDOWN_SECONDS)
            except ReplicatorError as error:
                self.log.log("warning", f"ends without an orderly shutdown: {error.message}")
        self._control.stop()
        if self._stopping is not None:
            self._stopping()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not await self._backings.close_all(DISK_SECONDS):
            self.log.log("warning", "some disk I/O did not end in time")
        await self._loop.run_in_executor(None, self._remove_files)
        self.log.log("info", "daemon ends")

    def _remove_files(self) -> None:
        """All but the lock: the process still holds it."""
        files = self._setup.files
        try:
            files.status.unlink(missing_ok=True)
            status_files.write_node_text(self._setup.options.run_dir)
        except OSError as error:
            self.log.log("warning", f"cannot remove the status files: {error}")

    def _defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler. I/O errors of sockets are no defects; all else is."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            self.log.log("warning", f"event loop: {context.get('message')}: {error}")
            return
        self.failure = f"{type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))
        self.log.log("error", f"a defect, the daemon stops at once:\n{text}")
        if self._stopping is not None:
            self._stopping()
        self._end.set()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Commands that are more than one call of the engine.

    def start_attach(self, number: int, done: AdminDone) -> None:
        async def work() -> None:
            try:
                await self._attach(number)
            except ReplicatorError as error:
                done(error)
            else:
                done(None)

        self._spawn(work())

    async def _attach(self, number: int) -> None:
        volume = next(one for one in self._setup.view.volumes if one.number == number)
        try:
            opened = await self._backings.open(volume)
        except ReplicatorError as error:
            error.name_target(self.name, number)
            raise
        try:
            await self._engine_call(
                lambda done: self.engine.attach(
                    number, opened.data, opened.meta, opened.placement, done
                ),
                f"attach of volume {number}",
                ATTACH_SECONDS,
            )
        except ReplicatorError:
            self._backings.close(number)
            raise

    def start_down(self, force: bool, done: AdminDone) -> None:
        """Shut the engine down, answer, end. Forced: also when it cannot be done in order."""

        answered = False

        def finished(error: ReplicatorError | None) -> None:
            nonlocal answered
            if answered:
                return
            if error is not None and not force:
                done(error)
                return
            answered = True
            if error is not None:
                self.log.log("warning", f"down --force: {error.message}")
            self._shut_down = True
            done(None)
            self._end.set()

        if force:
            if self._force_close is not None:
                self._force_close()
            late = DaemonError(f"the shutdown did not finish within {FORCE_SECONDS:g} s")
            self._loop.call_later(FORCE_SECONDS, finished, late)
        self.engine.shutdown(finished, force=force)

    async def _engine_call(
        self, start: Callable[[AdminDone], None], what: str, seconds: float = ATTACH_SECONDS
    ) -> None:
        """Wait for an administrative call of the engine. Raises its error, DaemonError after
        `seconds`."""
        answer: asyncio.Future[ReplicatorError | None] = self._loop.create_future()

        def done(error: ReplicatorError | None) -> None:
            if not answer.done():
                answer.set_result(error)

        start(done)
        try:
            async with asyncio.timeout(seconds):
                error = await answer
        except TimeoutError:
            raise DaemonError(f"{self.name}: {what} did not finish within {seconds:g} s") from None
        if error is not None:
            raise error

    # State.

    def snapshot(self) -> ResourceSnapshot:
        """The engine's, with what only the runtime knows: process, handlers and NBD addresses."""
        snapshot = self.engine.snapshot()
        snapshot.pid = self.pid
        snapshot.handlers = self._handlers.running()
        snapshot.frontend = self._setup.options.frontend
        snapshot.engine = str(compiled.in_use())
        snapshot.nbd_uris = self._nbd_uris()
        return snapshot

    def _nbd_uris(self) -> list[str]:
        if self._setup.options.frontend == NO_FRONTEND:
            return []
        view = self._setup.view
        numbers = [volume.number for volume in view.volumes]
        uris = [f"nbd+unix:///{number}?socket={self._setup.files.nbd}" for number in numbers]
        tcp = view.replicator.listen_address
        if tcp is not None:
            scheme = "nbds" if view.replicator.tls_required else "nbd"
            uris += [f"{scheme}://{Endpoint(*tcp)}/{number}" for number in numbers]
        return uris

    def _make_ports(self) -> RuntimePorts:
        view, net = self._setup.view, self.settings.net
        context = HandlerContext(
            resource=view.resource,
            peer=view.peer,
            peer_host=view.peer_address.host,
            config_path=self._setup.options.config_path,
            commands=view.handlers,
            volumes={volume.number: (volume.minor, volume.disk) for volume in view.volumes},
            node=view.node,
            run_dir=self._setup.options.run_dir,
        )
        self._handlers = HandlerRunner(self._loop, context, self.log)
        return RuntimePorts(
            network=TcpNetwork(
                self._loop,
                Endpoint(view.address.host, view.address.port),
                Endpoint(view.peer_address.host, view.peer_address.port),
                sndbuf=net.sndbuf_size,
                rcvbuf=net.rcvbuf_size,
                log=self.log.log,
            ),
            clock=LoopClock(self._loop),
            entropy=SystemEntropy(),
            log=self.log,
            handlers=self._handlers,
        )


def run_alone(options: DaemonOptions, make_front_end: MakeFrontEnd | None = None) -> int:
    """The daemon as a process of its own; returns the exit code."""
    try:
        setup = prepare(options)
    except ReplicatorError as error:
        print(f"replicator: {error}", file=sys.stderr)
        return error.exit_code
    failed = hardening.protect_process()
    signals = EndSignals()
    loop = TurnLoop()

    async def main() -> int:
        daemon = ResourceDaemon(setup, loop)
        for problem in failed:
            daemon.log.log("info", f"not protected: {problem}")
        signals.listen(loop, daemon.request_stop)
        try:
            if make_front_end is not None:
                daemon.serve_by(make_front_end(setup, daemon))
        except ReplicatorError as error:
            daemon.log.log("error", f"cannot start: {error}")
            setup.ready.failed(error)
            return error.exit_code
        try:
            await daemon.run()
        except ReplicatorError as error:
            return error.exit_code
        return 1 if daemon.failure else 0

    return loop.run_turns(main())


def main(arguments: list[str], make_front_end: MakeFrontEnd | None = None) -> int:
    """arguments: key=value, see daemon_setup.DaemonOptions."""
    pairs = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        options = DaemonOptions.parse(pairs)
    except ReplicatorError as error:
        print(f"replicator: {error}", file=sys.stderr)
        return error.exit_code
    return run_alone(options, make_front_end)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
