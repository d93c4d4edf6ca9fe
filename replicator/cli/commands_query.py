"""Commands that look: role, cstate, dstate, status, nbd-uri.

Rules: role, cstate and dstate print what drbdadm prints, one line per volume, and never fail for a
resource that the configuration knows: a cluster manager takes a failure for "stopped" and would
start the service a second time. What a dead daemon left mounted is therefore still Primary.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from replicator.cli.context import Context, Target
from replicator.cli.daemon_link import NOT_UP, look, snapshot, states
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.errors import NoDiskError
from replicator.status import proc_text
from replicator.status.document import ResourceState, status_document
from replicator.status.human import resource_text, unconfigured_text
from replicator.status.proc import is_unconfigured

UNCONFIGURED = "Unconfigured"
WATCH_INTERVAL = 1.0


def role(context: Context) -> int:
    return _words(context, lambda volume: f"{volume.role}/{volume.peer_role}", _role_without_daemon)


def cstate(context: Context) -> int:
    return _words(context, lambda volume: volume.cs, _unconfigured)


def dstate(context: Context) -> int:
    return _words(context, lambda volume: f"{volume.disk}/{volume.peer_disk}", _unconfigured)


def _words(
    context: Context,
    word: Callable[[VolumeSnapshot], str],
    without_daemon: Callable[[Context, Target, int], str],
) -> int:
    for target in context.targets():
        state = look(context, target.resource)
        if state.stale:
            context.terminal.say(f"warning: {state.reason}; showing the last known state")
        known = {one.volume: one for one in state.snapshot.volumes} if state.snapshot else {}
        for number in target.numbers:
            volume = known.get(number)
            if volume is None:
                context.terminal.answer(without_daemon(context, target, number))
            else:
                context.terminal.answer(UNCONFIGURED if is_unconfigured(volume) else word(volume))
    return 0


def _unconfigured(context: Context, target: Target, number: int) -> str:
    return UNCONFIGURED


def _role_without_daemon(context: Context, target: Target, number: int) -> str:
    """Primary while a device that a dead daemon served is still mounted or open."""
    users = context.world.device_users(target.view, number, context.run_dir)
    if not users:
        return UNCONFIGURED
    context.terminal.say(
        f"warning: {target.label(number)}: no daemon is running, but its device is in use: "
        f"{', '.join(users)}"
    )
    return "Primary/Unknown"


def status(context: Context) -> int:
    targets = context.targets()
    render = _renderer(context)
    if not context.options["watch"]:
        context.terminal.answer(render(states(context, targets)))
        return 0
    while True:
        context.terminal.page(render(states(context, targets)))
        context.world.sleep(WATCH_INTERVAL)


def _renderer(context: Context) -> Callable[[list[ResourceState]], str]:
    if context.options["json"]:
        indent = None if context.options["watch"] else 2
        return lambda found: (
            json.dumps(status_document(context.node, found), indent=indent, allow_nan=False) + "\n"
        )
    if context.options["proc"]:
        return lambda found: proc_text([one.snapshot for one in found if one.snapshot])
    return lambda found: "".join(_human(one) + "\n" for one in found)


def _human(state: ResourceState) -> str:
    if state.snapshot is None:
        hint = f"; start it with: replicator up {state.name}" if state.reason == NOT_UP else ""
        return unconfigured_text(state.name, f"{state.reason}{hint}")
    text = resource_text(state.snapshot)
    return f"{text}  last known state: {state.reason}\n" if state.stale else text


def nbd_uri(context: Context) -> int:
    """One line per volume. The daemon must be up: it decides where it listens."""

    def show(target: Target) -> None:
        found = snapshot(context, target.resource)
        for number in target.numbers:
            context.terminal.answer(_uri(found, number))

    return context.for_each(context.targets(), show)


def _uri(found: ResourceSnapshot, number: int) -> str:
    """The address on this machine; those of `listen` come after all of these."""
    order = [volume.volume for volume in found.volumes]
    if number not in order or len(found.nbd_uris) < len(order):
        raise NoDiskError(
            f"{found.name}/{number}: the daemon (front end {found.frontend}) serves no NBD export",
            hint="See `frontend` in the section `replicator` of the configuration.",
        )
    return found.nbd_uris[order.index(number)]
