"""Commands that change something: up, down, primary, secondary, connect, invalidate and so on.

Rules: each is safe to repeat and ends with 0 if all is already as wanted. The daemon decides about
states; this file only orders the steps around it (start the process, attach and detach the block
device) so that a failure in between leaves no half-done state.
"""

from __future__ import annotations

from typing import Any

from replicator.cli.context import Context, Target
from replicator.cli.daemon_link import (
    CHANGE_TIMEOUT,
    FORCED_DOWN_TIMEOUT,
    ROLE_TIMEOUT,
    ask,
    is_up,
    look,
    snapshot,
    wait_answering,
)
from replicator.engine.snapshot import ResourceSnapshot
from replicator.errors import DaemonError, DeviceError, ReplicatorError


def up(context: Context) -> int:
    """Of `all` also those resources count that the configuration knows but nobody could run."""
    context.show_warnings()
    code = context.for_each(context.targets(), lambda target: _up(context, target))
    return code or context.refuse_unusable()


def _up(context: Context, target: Target) -> None:
    if is_up(context, target.view) and wait_answering(context, target.resource):
        _complete(context, target)
        return
    release_devices(context, target)
    context.world.start_daemon(target.view, context.config_path, context.node, context.run_dir)
    found = look(context, target.resource).snapshot
    if found is not None and found.last_error:
        context.terminal.say(f"warning: {target.resource}: {found.last_error}")


def _complete(context: Context, target: Target) -> None:
    """What is missing on a resource that is up: detached disks, a connection that was given up."""
    found = snapshot(context, target.resource)
    for volume in found.volumes:
        if volume.disk == "Diskless":
            ask(context, target.resource, "attach", volume=volume.volume)
    if found.cstate == "StandAlone":
        ask(context, target.resource, "connect", discard_my_data=False)


def down(context: Context) -> int:
    return context.for_each(context.targets(), lambda target: _down(context, target))


def _down(context: Context, target: Target) -> None:
    force = bool(context.options["force"])
    released = release_devices(context, target)
    if is_up(context, target.view):
        try:
            patience = FORCED_DOWN_TIMEOUT if force else ROLE_TIMEOUT
            ask(context, target.resource, "down", patience, force=force)
        except ReplicatorError as error:
            if not (force and isinstance(error, DaemonError)):
                _attach_again(context, target, released)
                raise
        context.world.wait_daemon_ended(context.run_dir, target.resource, force)
    try:
        context.world.clean_run_dir(context.run_dir, target.resource)
    except OSError as error:
        # The resource is down all the same, and a cluster manager must not read anything else.
        context.terminal.say(f"warning: {target.resource} is down, but clearing up failed: {error}")


def primary(context: Context) -> int:
    force = context.options["force"] or context.options["overwrite_data_of_peer"]
    return context.for_each(
        context.targets(), lambda target: _primary(context, target, bool(force))
    )


def _primary(context: Context, target: Target, force: bool) -> None:
    """Promote, then attach; if attaching fails a node that was not Primary before is not after."""
    was_primary = _is_primary(snapshot(context, target.resource))
    ask(context, target.resource, "primary", ROLE_TIMEOUT, force=force)
    try:
        for volume in target.view.volumes:
            _attach_device(context, target, volume.number)
    except ReplicatorError:
        if not was_primary:
            _step_back(context, target)
        raise


def _attach_device(context: Context, target: Target, number: int) -> None:
    missing = context.world.attach_device(target.view, number, context.run_dir)
    if missing:
        label = target.label(number)
        context.terminal.say(
            f"{label}: no block device: {missing}; over NBD: replicator nbd-uri {label}"
        )


def _step_back(context: Context, target: Target) -> None:
    """Undo a promotion. What goes wrong here is said, the reason for it is the error that counts."""
    try:
        release_devices(context, target)
        ask(context, target.resource, "secondary", ROLE_TIMEOUT)
    except ReplicatorError as error:
        context.terminal.error(error, target.resource)
        context.terminal.say(f"{target.resource} stays Primary")


def _is_primary(found: ResourceSnapshot) -> bool:
    return any(volume.role == "Primary" for volume in found.volumes)


def secondary(context: Context) -> int:
    return context.for_each(context.targets(), lambda target: _secondary(context, target))


def _secondary(context: Context, target: Target) -> None:
    released = release_devices(context, target)
    if not is_up(context, target.view):
        return
    try:
        ask(context, target.resource, "secondary", ROLE_TIMEOUT)
    except ReplicatorError:
        _attach_again(context, target, released)
        raise


def _attach_again(context: Context, target: Target, volumes: list[int]) -> None:
    """A refused demotion leaves the device as it was."""
    try:
        for number in volumes:
            _attach_device(context, target, number)
    except DeviceError as error:
        context.terminal.error(error, target.resource)


def release_devices(context: Context, target: Target) -> list[int]:
    """Detach the block devices of all volumes; returns the volumes that had one.

    Raises StateRefused while one is mounted or open; those detached before are attached again.
    """
    released: list[int] = []
    try:
        for volume in target.view.volumes:
            if context.world.detach_device(target.view, volume.number, context.run_dir):
                released.append(volume.number)
    except ReplicatorError:
        if is_up(context, target.view):
            _attach_again(context, target, released)
        raise
    return released


def connect(context: Context) -> int:
    discard = bool(context.options["discard_my_data"])
    return _for_resources(context, "connect", discard_my_data=discard)


def disconnect(context: Context) -> int:
    return _for_resources(context, "disconnect", force=bool(context.options["force"]))


def attach(context: Context) -> int:
    return _for_volumes(context, "attach")


def detach(context: Context) -> int:
    return _for_volumes(context, "detach", force=bool(context.options["force"]))


def new_current_uuid(context: Context) -> int:
    clear = bool(context.options["clear_bitmap"])
    return _for_volumes(context, "new-current-uuid", clear_bitmap=clear)


def invalidate(context: Context) -> int:
    return _for_volumes(context, "invalidate")


def invalidate_remote(context: Context) -> int:
    return _for_volumes(context, "invalidate-remote")


def verify(context: Context) -> int:
    given = {word: context.options[word] for word in ("start", "stop")}
    # Only what was named: the daemon knows where the last run was cut off.
    return _for_volumes(context, "verify", **{w: v for w, v in given.items() if v is not None})


def pause_sync(context: Context) -> int:
    return _for_volumes(context, "pause-sync")


def resume_sync(context: Context) -> int:
    return _for_volumes(context, "resume-sync")


def suspend_io(context: Context) -> int:
    return _for_resources(context, "suspend-io")


def resume_io(context: Context) -> int:
    return _for_resources(context, "resume-io")


def _for_resources(context: Context, command: str, **arguments: Any) -> int:
    def change(target: Target) -> None:
        ask(context, target.resource, command, CHANGE_TIMEOUT, **arguments)

    return context.for_each(context.targets(), change)


def _for_volumes(context: Context, command: str, **arguments: Any) -> int:
    def change(target: Target) -> None:
        volume = target.volume
        ask(context, target.resource, command, CHANGE_TIMEOUT, volume=volume, **arguments)

    return context.for_each(context.volume_targets(), change)
