"""What an administrator orders: each command as its steps, with the refusals DRBD gives.

Rules:
1. A command ends exactly once, with None or an error that says why and what to do next.
2. Steps that involve the peer end with its answer, or with the connection; so none waits for ever.
3. Changes of role are in `roles`.
What this file must not know: the control socket, how errors are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from protocol.states import CONN_MASK, CONN_SHIFT, DISK_MASK, DISK_SHIFT, Conn, Disk, Role
from replicator.engine.cluster import SUCCESS
from replicator.engine.outdating import part
from replicator.engine.refusals import (
    NEED_UP_TO_DATE,
    NO_LOCAL_DISK,
    NO_REMOTE_DISK,
    NOT_CONNECTED,
    TRANSIENT,
    refusal,
    soon,
)
from replicator.engine.requests import Countdown
from replicator.engine.roles import STEP_WAIT, STEP_WAITS_MAX, demote, secondary
from replicator.engine.states import adjust, refusal_code
from replicator.errors import ConfigError, DaemonError, NoDiskError, ReplicatorError

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import AdminDone, Volume


# --- connection -------------------------------------------------------------------------------


def connect(resource: Resource, discard_my_data: bool, done: AdminDone) -> None:
    name = resource.settings.name
    if resource.conn is not Conn.StandAlone:
        error = ConfigError(
            f"{name}: Failure: (125) Device has a net-config (use disconnect first); "
            f"the connection is {resource.conn.name}",
            hint=f"replicator disconnect {name}",
        )
        soon(resource, done, error)
        return
    if discard_my_data and resource.role is Role.Primary:
        error = ConfigError(
            f"{name}: Failure: (123) --discard-my-data not allowed when primary.",
            hint=f"replicator secondary {name}",
        )
        soon(resource, done, error)
        return
    resource.discard_my_data = discard_my_data
    resource.last_error = ""
    resource.search()
    soon(resource, done)


def disconnect(resource: Resource, force: bool, done: AdminDone) -> None:
    """StandAlone afterwards; the peer is asked, so that it does not take it for a failure."""
    link = resource.replication.link
    if link is None or force:
        if resource.link is not None:
            resource.link.fail(Conn.Disconnecting, "disconnected by force", stand_alone=True)
        else:
            resource.stand_alone()
        _after_generations(resource, done)
        return

    def agreed(code: int) -> None:
        if code < SUCCESS:
            done(refusal(next(iter(resource.volumes.values())), code))
            return
        if not link.closed:
            link.fail(Conn.Disconnecting, "disconnected on request", stand_alone=True)
        else:
            resource.stand_alone()
        resource.last_error = ""
        _after_generations(resource, done)

    part(resource, agreed)


def _after_generations(resource: Resource, done: AdminDone) -> None:
    """Answer when every volume that had to start a new generation has it on stable storage."""
    parts = Countdown(len(resource.volumes) + 1, lambda _errno: done(None))
    one = partial(parts.part_done, 0)
    for volume in resource.volumes.values():
        volume.after_generation(one)
    resource.soon(one)


# --- suspension of I/O -------------------------------------------------------------------------


def suspend_io(resource: Resource, done: AdminDone) -> None:
    """Freeze I/O until resume_io: requests wait, those under way are not completed."""
    for volume in resource.volumes.values():
        volume.change(susp=True)
    soon(resource, done)


def resume_io(resource: Resource, done: AdminDone) -> None:
    """Let I/O go on, whatever it was suspended for. Where the peer missed writes meanwhile, this
    data first gets a new generation; where there is no good data, requests fail."""
    for volume in resource.volumes.values():
        volume.change(susp=False, susp_nod=False, susp_fen=False)
    _after_generations(resource, done)


# --- disks ------------------------------------------------------------------------------------


def detach(volume: Volume, force: bool, done: AdminDone) -> None:
    """Give the disk back. A Primary keeps going on the peer's, if that is UpToDate."""
    resource, state = volume.resource, volume.state
    if state.disk is Disk.Diskless:
        soon(resource, done)
        return

    def needed() -> bool:
        now = volume.state
        return not force and now.role is Role.Primary and now.pdsk is not Disk.UpToDate

    def ask() -> None:
        if volume.state.conn >= Conn.Connected and not force:
            mask, val = DISK_MASK << DISK_SHIFT, Disk.Failed << DISK_SHIFT
            resource.cluster.ask(volume, mask, val, answered)
        else:
            answered(SUCCESS)

    def answered(code: int | None) -> None:
        # The connection, and with it the other copy, may have gone meanwhile.
        if needed():
            done(refusal(volume, NEED_UP_TO_DATE))
        elif code is not None and code < SUCCESS and not force:
            done(refusal(volume, code))
        else:
            volume.drop_disk(lambda: done(None))

    if needed():
        soon(resource, done, refusal(volume, NEED_UP_TO_DATE))
    elif state.role is Role.Primary and not force:
        # What only this disk has on stable storage, as a flush under A and B leaves it, must not
        # go with it.
        resource.replication.when_stable(ask)
    else:
        ask()


def invalidate(volume: Volume, done: AdminDone, waits: int = 0) -> None:
    """The local copy counts for nothing: full resync from the peer."""
    if volume.state.conn is Conn.WFReportParams:
        # What it is worth has been reported: the peer goes by that until both have decided.
        _once_more(volume, partial(invalidate, volume, done), waits, done)
        return
    if volume.state.conn >= Conn.Connected:
        _start_full_sync(volume, Conn.StartingSyncT, done)
        return
    if volume.state.disk < Disk.Inconsistent:
        soon(volume.resource, done, NoDiskError(f"{volume.name}: there is no local disk"))
        return
    if volume.state.role is Role.Primary:
        soon(volume.resource, done, refusal(volume, NEED_UP_TO_DATE))
        return
    volume.change(disk=Disk.Inconsistent)
    volume.mark_all(lambda errno: done(_metadata_error(volume, errno)))


def invalidate_remote(volume: Volume, done: AdminDone, waits: int = 0) -> None:
    """The peer's copy counts for nothing: full resync to the peer."""
    if volume.state.conn is Conn.WFReportParams:
        _once_more(volume, partial(invalidate_remote, volume, done), waits, done)
        return
    if volume.state.conn >= Conn.Connected:
        _start_full_sync(volume, Conn.StartingSyncS, done)
        return
    if volume.state.role is not Role.Primary or volume.state.disk is not Disk.UpToDate:
        soon(volume.resource, done, refusal(volume, NOT_CONNECTED))
        return
    volume.change(pdsk=Disk.Inconsistent)
    volume.mark_all(lambda errno: done(_metadata_error(volume, errno)))


def _once_more(volume: Volume, order: Callable[[int], None], waits: int, done: AdminDone) -> None:
    if waits >= STEP_WAITS_MAX:
        done(refusal(volume, TRANSIENT))
    else:
        volume.resource.clock.call_later(STEP_WAIT, partial(order, waits + 1))


def _metadata_error(volume: Volume, errno: int) -> ReplicatorError | None:
    if not errno:
        return None
    return NoDiskError(f"{volume.name}: the bitmap could not be written")


def _start_full_sync(volume: Volume, conn: Conn, done: AdminDone) -> None:
    def own_code() -> int:
        old = volume.state
        new = adjust(old._replace(conn=conn), old=old)
        if new.conn is not conn:
            # A resync that cannot be: one of the disks is missing.
            return NO_LOCAL_DISK if old.disk < Disk.Inconsistent else NO_REMOTE_DISK
        return refusal_code(old, new)

    code = own_code()
    if code:
        soon(volume.resource, done, refusal(volume, code))
        return

    def answered(code: int | None) -> None:
        if code is None:
            done(DaemonError(f"{volume.name}: the connection was lost before the peer answered"))
            return
        # The disk may have gone while the peer was asked; it hears of that by our state.
        code = code if code < SUCCESS else own_code()
        if code:
            done(refusal(volume, code))
        else:
            volume.start_full_sync(conn, lambda errno: done(_metadata_error(volume, errno)))

    volume.resource.cluster.ask(volume, CONN_MASK << CONN_SHIFT, conn << CONN_SHIFT, answered)


def pause_sync(volume: Volume, pause: bool, done: AdminDone) -> None:
    if volume.state.user_isp is pause:
        code, word = (138, "set") if pause else (139, "cleared")
        error = ConfigError(f"{volume.name}: Failure: ({code}) Sync-pause flag is already {word}")
        soon(volume.resource, done, error)
        return
    volume.change(user_isp=pause)
    volume.exchange.send_state()
    soon(volume.resource, done)


# --- the end ----------------------------------------------------------------------------------


def shutdown(resource: Resource, force: bool, done: AdminDone) -> None:
    """down: Secondary, StandAlone, Diskless."""

    def demoted(error: ReplicatorError | None) -> None:
        if error is not None and not force:
            done(error)
        else:
            disconnect(resource, force, disconnected)

    def disconnected(error: ReplicatorError | None) -> None:
        if error is not None and not force:
            done(error)
            return
        attached = [v for v in resource.volumes.values() if v.state.disk > Disk.Diskless]
        parts = Countdown(len(attached) + 1, lambda _errno: done(None))
        one = partial(parts.part_done, 0)
        for volume in attached:
            volume.drop_disk(one)
        resource.soon(one)

    if force and resource.role is Role.Primary:
        demote(resource, demoted)
    else:
        secondary(resource, demoted)
