"""The commands of the control socket: names, arguments, deadlines, and what each calls.

Rules: arguments are checked here, states by the engine. Every command has a deadline, which
control_server keeps; a command that ends later still ends, its answer is only not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import replicator
from replicator.errors import DaemonError, ReplicatorError, StateRefused, UsageError
from replicator.runtime.control_server import Reply
from replicator.runtime.probe import Series, check_bounds

if TYPE_CHECKING:
    from replicator.runtime.daemon import ResourceDaemon

LOOK_SECONDS = 2.0
CHANGE_SECONDS = 50.0
ROLE_SECONDS = 200.0
"""Role changes may have to wait for a fencing handler (at most handlers.HANDLER_SECONDS)."""
BESIDE_A_SERIES = ("ping", "status", "bench")
"""Commands that do not end a measurement that is under way."""
AT_THE_END = ("status", "down")
"""Commands that a daemon that was told to end still takes."""


@dataclass(frozen=True, slots=True)
class Command:
    """arguments: name -> type; flags may be left out (False), a volume may not; optional: others
    that may (None)."""

    run: Callable[[ResourceDaemon, dict[str, Any], Reply], None]
    arguments: dict[str, type]
    seconds: float = CHANGE_SECONDS
    optional: tuple[str, ...] = ()


def deadline(name: str) -> float:
    """Seconds that the command may take; unknown commands are refused at once anyway."""
    command = COMMANDS.get(name)
    return command.seconds if command is not None else LOOK_SECONDS


def dispatch(daemon: ResourceDaemon, name: str, args: dict[str, Any], reply: Reply) -> None:
    """Start a command. Raises UsageError for an unknown command or argument, and what it raises."""
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(
            f"the daemon knows no command '{name}'",
            hint="Known: " + ", ".join(sorted(COMMANDS)),
        )
    checked = _checked(daemon, name, command, args)
    if daemon.ending and name not in AT_THE_END:
        raise _ends(daemon)
    if daemon.series is not None and name not in BESIDE_A_SERIES:
        # Its steps follow each other closely: a demotion would find no moment without one.
        daemon.series.interrupt(f"interrupted by: replicator {name}")
    command.run(daemon, checked, partial(_answer, daemon, reply))


def _answer(
    daemon: ResourceDaemon, reply: Reply, result: object, error: ReplicatorError | None
) -> None:
    """What goes wrong because the daemon lets go of its disks and its peer has that reason alone."""
    reply(result, _ends(daemon) if error is not None and daemon.ending else error)


def _ends(daemon: ResourceDaemon) -> DaemonError:
    return DaemonError(
        f"{daemon.name}: the daemon (pid {daemon.pid}) is ending",
        hint=f"Start it again with: replicator up {daemon.name}",
    )


def _checked(
    daemon: ResourceDaemon, name: str, command: Command, args: dict[str, Any]
) -> dict[str, Any]:
    for key in args:
        if key not in command.arguments:
            raise UsageError(f"{name} has no argument '{key}'")
    checked: dict[str, Any] = {}
    for key, kind in command.arguments.items():
        value = args.get(key, False if kind is bool else None)
        if type(value) is not kind and not (value is None and key in command.optional):
            raise UsageError(f"{name}: argument {key}: expected {kind.__name__}, found {value!r}")
        checked[key] = value
    volume = checked.get("volume")
    if volume is not None and volume not in daemon.engine.volumes:
        known = ", ".join(str(number) for number in sorted(daemon.engine.volumes))
        raise UsageError(f"{daemon.name} has no volume {volume}", hint=f"It has: {known}")
    return checked


def _finish(reply: Reply) -> Callable[[ReplicatorError | None], None]:
    return lambda error: reply(None, error)


def _ping(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    reply({"pid": daemon.pid, "version": replicator.__version__}, None)


def _status(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    reply(daemon.snapshot().to_dict(), None)


def _primary(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.primary(args["force"], _finish(reply))


def _secondary(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.secondary(_finish(reply))


def _connect(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.connect(args["discard_my_data"], _finish(reply))


def _disconnect(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.disconnect(args["force"], _finish(reply))


def _attach(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.start_attach(args["volume"], _finish(reply))


def _detach(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.detach(args["volume"], args["force"], _finish(reply))


def _new_current_uuid(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.new_current_uuid(args["volume"], args["clear_bitmap"], _finish(reply))


def _invalidate(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.invalidate(args["volume"], _finish(reply))


def _invalidate_remote(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.invalidate_remote(args["volume"], _finish(reply))


def _verify(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.verify(args["volume"], args["start"], args["stop"], _finish(reply))


def _outdate(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.outdate(args["volume"], _finish(reply))


def _pause_sync(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.pause_sync(args["volume"], _finish(reply))


def _resume_sync(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.resume_sync(args["volume"], _finish(reply))


def _suspend_io(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.suspend_io(_finish(reply))


def _resume_io(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.engine.resume_io(_finish(reply))


def _bench(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    check_bounds(args["count"], args["seconds"])
    if daemon.series is not None and not daemon.series.over:
        raise StateRefused(f"{daemon.name} is being measured already")
    step = partial(daemon.engine.probe, args["volume"], args["kind"])
    daemon.series = Series(step, args["count"], args["seconds"], reply)


def _down(daemon: ResourceDaemon, args: dict[str, Any], reply: Reply) -> None:
    daemon.start_down(args["force"], _finish(reply))


COMMANDS: dict[str, Command] = {
    "ping": Command(_ping, {}, LOOK_SECONDS),
    "status": Command(_status, {}, LOOK_SECONDS),
    "primary": Command(_primary, {"force": bool}, ROLE_SECONDS),
    "secondary": Command(_secondary, {}, ROLE_SECONDS),
    "connect": Command(_connect, {"discard_my_data": bool}),
    "disconnect": Command(_disconnect, {"force": bool}),
    "attach": Command(_attach, {"volume": int}),
    "detach": Command(_detach, {"volume": int, "force": bool}),
    "new-current-uuid": Command(_new_current_uuid, {"volume": int, "clear_bitmap": bool}),
    "invalidate": Command(_invalidate, {"volume": int}),
    "invalidate-remote": Command(_invalidate_remote, {"volume": int}),
    "verify": Command(
        _verify, {"volume": int, "start": int, "stop": int}, optional=("start", "stop")
    ),
    "outdate": Command(_outdate, {"volume": int}),
    "pause-sync": Command(_pause_sync, {"volume": int}),
    "resume-sync": Command(_resume_sync, {"volume": int}),
    "suspend-io": Command(_suspend_io, {}),
    "resume-io": Command(_resume_io, {}),
    "bench": Command(_bench, {"volume": int, "kind": str, "count": int, "seconds": float}),
    "down": Command(_down, {"force": bool}, ROLE_SECONDS),
}
