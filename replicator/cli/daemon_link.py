"""What a command asks of a resource daemon, with its time limits, and what it knows without one.

Rules: looking never fails and never waits longer than LOOK_TIMEOUT for each resource, because
cluster managers act on the answers; changing raises the daemon's own error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replicator.cli.context import Context, Target
from replicator.engine.snapshot import ResourceSnapshot
from replicator.errors import DaemonError, ReplicatorError
from replicator.status.document import ResourceState

if TYPE_CHECKING:
    from replicator.config import NodeView

NOT_UP = "not up"
LOOK_TIMEOUT = 3.0
CHANGE_TIMEOUT = 60.0
"""The daemon answers within its own, shorter limits; this one is for a daemon that hangs."""
START_PATIENCE = 30.0
POLL_INTERVAL = 0.2
ROLE_TIMEOUT = 240.0
"""A promotion or demotion may have to wait for a fencing handler and for outstanding requests."""
FORCED_DOWN_TIMEOUT = 15.0
"""More than a daemon takes to leave out the orderly way; one that hangs is killed after that."""


def ask(
    context: Context, resource: str, command: str, timeout: float = CHANGE_TIMEOUT, **arguments: Any
) -> Any:
    """The daemon's answer. Raises DaemonError without a daemon, else what the daemon reports."""
    require_daemon(context, resource)
    return context.world.call(context.run_dir, resource, command, arguments, timeout)


def require_daemon(context: Context, resource: str) -> None:
    if context.world.daemon_pid(context.run_dir, resource) is None:
        raise DaemonError(
            f"{resource} is not up on this node ({context.node}, run directory {context.run_dir})",
            hint=f"Start it with: replicator up {resource}",
        )


def look(context: Context, resource: str) -> ResourceState:
    """The state now; never raises. Without an answer the last state that the daemon wrote down."""
    pid = None
    try:
        pid = context.world.daemon_pid(context.run_dir, resource)
        if pid is None:
            return ResourceState(resource, None, reason=NOT_UP)
        answer = context.world.call(context.run_dir, resource, "status", {}, LOOK_TIMEOUT)
        return ResourceState(resource, ResourceSnapshot.from_dict(answer))
    except ReplicatorError as error:
        last = _last_snapshot(context, resource, pid)
        return ResourceState(resource, last, stale=last is not None, reason=error.message)


def _last_snapshot(context: Context, resource: str, pid: int | None) -> ResourceSnapshot | None:
    """Of the daemon that is running; an earlier one's would tell of another life."""
    last = context.world.last_snapshot(context.run_dir, resource) if pid else None
    return last if last is not None and last.pid == pid else None


def snapshot(context: Context, resource: str) -> ResourceSnapshot:
    """A fresh one. Raises DaemonError if there is none."""
    answer = ask(context, resource, "status", LOOK_TIMEOUT)
    return ResourceSnapshot.from_dict(answer)


def wait_answering(context: Context, resource: str) -> bool:
    """Somebody else may just be starting the daemon, or ending it: False when it has ended.
    Raises DaemonError if it stays silent."""
    deadline = context.world.now() + START_PATIENCE
    while True:
        try:
            ask(context, resource, "ping", LOOK_TIMEOUT)
            return True
        except DaemonError:
            if context.world.daemon_pid(context.run_dir, resource) is None:
                return False
            if context.world.now() >= deadline:
                raise
        context.world.sleep(POLL_INTERVAL)


def is_up(context: Context, view: NodeView) -> bool:
    return context.world.daemon_pid(context.run_dir, view.resource) is not None


def states(context: Context, targets: list[Target]) -> list[ResourceState]:
    return [look(context, target.resource) for target in targets]
