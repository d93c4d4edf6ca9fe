"""wait-connect and wait-sync: wait with a time limit, and show what is waited for.

Rules: the limits are drbdsetup's three start-up times unless --timeout is given; 0 waits without
end, as there. A resource that is StandAlone will not connect by itself, so waiting ends at once
unless --wait-after-sb says otherwise. Exit code 5 when the time is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.cli.context import Context, Target
from replicator.cli.daemon_link import NOT_UP, POLL_INTERVAL, look, require_daemon
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.errors import DaemonError, StateRefused, WaitTimeout
from replicator.status.human import CONNECTED_STATES
from replicator.status.progress import RUNNING_STATES, progress_lines

PLAIN_INTERVAL = 5.0
"""Seconds between lines where no bar can be drawn."""
SILENCE_PATIENCE = 30.0
"""Seconds a daemon that runs may leave unanswered before waiting for it makes no sense."""
RESYNC_ENDED_STATES = frozenset({"Connected", "VerifyS", "VerifyT"})
SETTLED_DISKS = frozenset({"UpToDate", "Diskless"})
"""Any other disk state of a connected pair still needs a resync, even if it has not begun yet."""


@dataclass(slots=True)
class _Waiting:
    """One wait of one resource. what: "connection" or "resync"; times are those of world.now()."""

    context: Context
    target: Target
    what: str
    started: float
    next_plain_line: float
    limit: float | None
    """Seconds, 0 for no end; None until the first snapshot has told which time counts."""

    def volumes(self, found: ResourceSnapshot) -> list[VolumeSnapshot]:
        return [volume for volume in found.volumes if volume.volume in self.target.numbers]

    def reached(self, found: ResourceSnapshot) -> bool:
        volumes = self.volumes(found)
        if self.what == "connection":
            return bool(volumes) and all(volume.cs in CONNECTED_STATES for volume in volumes)
        return bool(volumes) and all(_in_sync(volume) for volume in volumes)


def _in_sync(volume: VolumeSnapshot) -> bool:
    return volume.cs in RESYNC_ENDED_STATES and {volume.disk, volume.peer_disk} <= SETTLED_DISKS


def wait_connect(context: Context) -> int:
    return context.for_each(context.targets(), lambda target: _wait(context, target, "connection"))


def wait_sync(context: Context) -> int:
    return context.for_each(context.targets(), lambda target: _wait(context, target, "resync"))


def _wait(context: Context, target: Target, what: str) -> None:
    """Raises WaitTimeout, StateRefused when StandAlone, DaemonError when the daemon ends."""
    now = context.world.now()
    waiting = _Waiting(context, target, what, now, now + PLAIN_INTERVAL, context.options["timeout"])
    while True:
        found = _next_snapshot(waiting)
        if waiting.reached(found):
            _finished(waiting, found)
            return
        _refuse_stand_alone(context, target, found)
        if waiting.limit is None:
            waiting.limit = time_limit(context, target, found)
        limit = waiting.limit
        elapsed = context.world.now() - waiting.started
        if limit and elapsed >= limit:
            context.terminal.keep_live()
            raise _timed_out(waiting, found, limit)
        _show(waiting, found)
        context.world.sleep(min(POLL_INTERVAL, limit - elapsed) if limit else POLL_INTERVAL)


def _next_snapshot(waiting: _Waiting) -> ResourceSnapshot:
    """A busy daemon may be late with an answer; that alone does not end the waiting."""
    context, resource = waiting.context, waiting.target.resource
    deadline = context.world.now() + SILENCE_PATIENCE
    if waiting.limit:
        deadline = min(deadline, waiting.started + waiting.limit)
    while True:
        state = look(context, resource)
        if state.snapshot is not None and not state.stale:
            return state.snapshot
        if state.reason == NOT_UP:
            require_daemon(context, resource)
        if context.world.now() >= deadline:
            raise DaemonError(state.reason)
        context.world.sleep(POLL_INTERVAL)


def _refuse_stand_alone(context: Context, target: Target, found: ResourceSnapshot) -> None:
    wait = context.options["wait_after_sb"] or target.view.startup.wait_after_sb
    if found.cstate != "StandAlone" or wait:
        return
    reason = f": {found.last_error}" if found.last_error else ""
    raise StateRefused(
        f"{found.name} is StandAlone and will not connect by itself{reason}",
        hint=f"Connect it with: replicator connect {found.name}",
    )


def time_limit(context: Context, target: Target, found: ResourceSnapshot) -> float:
    """Seconds, 0 for none: the start-up time for the state that the cluster was in."""
    name = startup_class(found)
    given = context.options[name]
    if given is None and context.options["wfc_timeout"] is not None:
        given = context.options["wfc_timeout"]
    return float(given if given is not None else getattr(target.view.startup, name))


def startup_class(found: ResourceSnapshot) -> str:
    """Which start-up time counts: outdated_wfc_timeout, degr_wfc_timeout or wfc_timeout."""
    volumes = found.volumes
    if any(volume.peer_disk == "Outdated" for volume in volumes):
        return "outdated_wfc_timeout"
    if any(_was_degraded(volume) for volume in volumes):
        return "degr_wfc_timeout"
    return "wfc_timeout"


def _was_degraded(volume: VolumeSnapshot) -> bool:
    """Not Primary now, but was when it stopped, and was already alone then."""
    flags = volume.gi_flags.split(":")
    if volume.role == "Primary" or len(flags) != 7:
        return False
    return flags[2] == "1" and flags[3] == "0"


def _timed_out(waiting: _Waiting, found: ResourceSnapshot, limit: float) -> WaitTimeout:
    now = "; ".join(
        f"volume {volume.volume} is {volume.cs}"
        + (f" ({volume.waiting_for})" if volume.waiting_for else "")
        for volume in waiting.volumes(found)
    )
    wanted = "a connection" if waiting.what == "connection" else "the end of the resync"
    reason = found.last_error or found.waiting_for
    return WaitTimeout(
        f"{found.name}: waited {limit:g} s for {wanted}: {now}{f'; {reason}' if reason else ''}",
        hint=f"Look at: replicator status {found.name}",
    )


def _show(waiting: _Waiting, found: ResourceSnapshot) -> None:
    """A bar in place on a terminal, else a line every few seconds."""
    terminal, now = waiting.context.terminal, waiting.context.world.now()
    if terminal.live:
        terminal.redraw([line for one in waiting.volumes(found) for line in _lines(found, one)])
    elif now >= waiting.next_plain_line:
        waiting.next_plain_line = now + PLAIN_INTERVAL
        for volume in waiting.volumes(found):
            terminal.say(" ".join(_lines(found, volume)))


def _lines(found: ResourceSnapshot, volume: VolumeSnapshot) -> list[str]:
    label = f"{found.name}/{volume.volume}"
    if volume.progress is not None and volume.cs in RUNNING_STATES:
        first, second = progress_lines(volume.cs, volume.progress)
        return [f"{label} {first}", f"{' ' * len(label)} {second}"]
    reason = volume.waiting_for or found.waiting_for
    states = f"{label} {volume.cs} {volume.disk}/{volume.peer_disk}"
    return [f"{states}: {reason}" if reason else states]


def _finished(waiting: _Waiting, found: ResourceSnapshot) -> None:
    terminal = waiting.context.terminal
    terminal.clear_live()
    if waiting.what == "resync" and terminal.live:
        for volume in waiting.volumes(found):
            label = f"{found.name}/{volume.volume}"
            terminal.say(f"{label} {volume.cs} {volume.disk}/{volume.peer_disk}")
