"""What an administrator orders: each command as its steps, with the refusals DRBD gives.

Rules:
1. A command ends exactly once, with None or an error that says why and what to do next.
2. Steps that involve the peer end with its answer, or with the connection; so none waits for ever.
3. A promotion is answered when the new identity is durable, not before.
What this file must not know: the control socket, how errors are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.states import CONN_SHIFT, DISK_SHIFT, ROLE_MASK, Conn, Disk, Role
from replicator.engine.cluster import SUCCESS
from replicator.engine.states import REFUSALS, adjust, permitted, possible, valid
from replicator.errors import (
    ConfigError,
    DaemonError,
    NoDiskError,
    NoUsableDataError,
    ReplicatorError,
    StateRefused,
)

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import AdminDone, Volume

MASK_CONN = 0x1F << CONN_SHIFT
MASK_DISK = 0xF << DISK_SHIFT
PROMOTION_TRIES = 4
STEP_WAIT = 0.02
STEP_WAITS_MAX = 250
"""A change of role waits up to 5 s for a handshake or for requests that are under way."""
DISCONNECT_PINGS = 4

NEED_UP_TO_DATE, TWO_PRIMARIES, IN_USE, TRANSIENT = -2, -1, -12, -18
NO_LOCAL_DISK, NO_REMOTE_DISK = -4, -5


def refusal(volume: Volume, code: int) -> ReplicatorError:
    """The error for a state-change code, with the next safe command where there is one."""
    name = volume.resource.settings.name
    text = f"{volume.name}: State change failed: ({code}) {REFUSALS.get(code, 'refused')}"
    state = volume.state
    if code == NEED_UP_TO_DATE:
        found = f"this disk is {state.disk.name}, the peer's {state.pdsk.name}"
        if state.disk <= Disk.Failed:
            other = f"attach the disk: replicator attach {volume.name}"
        else:
            other = f"if this copy is to count as the good one: replicator primary --force {name}"
        return NoUsableDataError(
            f"{text} ({found})",
            hint=f"connect to a peer that has UpToDate data; or, {other}",
        )
    hints = {
        TWO_PRIMARIES: f"on the node that is Primary now: replicator secondary {name}",
        IN_USE: "unmount the file system or stop what uses the device, then try again",
        TRANSIENT: "try again in a moment",
    }
    return StateRefused(text, code=code, hint=hints.get(code, ""))


def _soon(resource: Resource, done: AdminDone, error: ReplicatorError | None = None) -> None:
    resource.soon(lambda: done(error))


# --- connection -------------------------------------------------------------------------------


def connect(resource: Resource, discard_my_data: bool, done: AdminDone) -> None:
    name = resource.settings.name
    if resource.conn is not Conn.StandAlone:
        error = ConfigError(
            f"{name}: Failure: (125) Device has a net-config (use disconnect first); "
            f"the connection is {resource.conn.name}",
            hint=f"replicator disconnect {name}",
        )
        _soon(resource, done, error)
        return
    if discard_my_data and resource.role is Role.Primary:
        error = ConfigError(
            f"{name}: Failure: (123) --discard-my-data not allowed when primary.",
            hint=f"replicator secondary {name}",
        )
        _soon(resource, done, error)
        return
    resource.discard_my_data = discard_my_data
    resource.last_error = ""
    resource.search()
    _soon(resource, done)


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
    ended = False

    def answered(code: int | None) -> None:
        nonlocal ended
        if ended:
            return
        ended = True
        timer.cancel()
        if code is not None and code < SUCCESS:
            volume = next(iter(resource.volumes.values()))
            done(refusal(volume, code))
            return
        if not link.closed:
            link.fail(Conn.Disconnecting, "disconnected on request", stand_alone=True)
        else:
            resource.stand_alone()
        resource.last_error = ""
        _after_generations(resource, done)

    wait = DISCONNECT_PINGS * resource.settings.net.ping_timeout
    timer = resource.clock.call_later(wait, lambda: answered(None))
    resource.cluster.ask_to_disconnect(MASK_CONN, Conn.Disconnecting << CONN_SHIFT, answered)


def _after_generations(resource: Resource, done: AdminDone) -> None:
    """Answer when every volume that had to start a new generation has it on stable storage."""
    left = len(resource.volumes) + 1

    def one() -> None:
        nonlocal left
        left -= 1
        if not left:
            done(None)

    for volume in resource.volumes.values():
        volume.after_generation(one)
    resource.soon(one)


# --- roles ------------------------------------------------------------------------------------


class Promotion:
    """primary: the algorithm of `generations`, part II, for all volumes of the resource."""

    def __init__(self, resource: Resource, force: bool, done: AdminDone) -> None:
        self._resource = resource
        self._force = force
        self._done = done
        self._tries = 0
        self._waits = 0
        self._forced: set[int] = set()
        self._asking: list[Volume] = []
        self._granted: list[Volume] = []
        """Volumes for which the peer has agreed."""

    def start(self) -> None:
        resource = self._resource
        if resource.role is Role.Primary:
            _soon(resource, self._done)
            return
        if self._too_early():
            self._wait()
            return
        link = resource.replication.link
        if link is not None:
            self._ping(self._judge)
        else:
            resource.soon(self._judge)

    def _too_early(self) -> bool:
        """A promotion must not slip between a report and its evaluation, nor overtake writes that a
        Primary that is gone has left behind."""
        resource = self._resource
        volumes = resource.volumes.values()
        left_behind = resource.replication.link is None and any(v.locks.count for v in volumes)
        return left_behind or any(v.state.conn is Conn.WFReportParams for v in volumes)

    def _wait(self) -> None:
        self._waits += 1
        if self._waits > STEP_WAITS_MAX:
            self._refuse(next(iter(self._resource.volumes.values())), TRANSIENT)
        else:
            self._resource.clock.call_later(STEP_WAIT, self.start)

    def _ping(self, then: Callable[[], None]) -> None:
        """Is the peer alive? Goes on with the answer, or when the connection has ended."""
        resource = self._resource
        link = resource.replication.link
        assert link is not None
        went_on = False

        def go_on() -> None:
            nonlocal went_on
            if not went_on:
                went_on = True
                timer.cancel()
                then()

        wait = 2 * resource.settings.net.ping_timeout + 0.1
        timer = resource.clock.call_later(wait, go_on)
        link.ping(go_on)

    def _judge(self) -> None:
        """Would every volume allow it, as things stand here?"""
        resource = self._resource
        if self._too_early():
            self._wait()
            return
        self._forced.clear()
        for volume in resource.volumes.values():
            code = self._code(volume)
            if code == NEED_UP_TO_DATE and self._force and _can_be_forced(volume):
                self._forced.add(volume.number)
                code = self._code(volume)
            if code == TWO_PRIMARIES and self._tries == 0:
                self._again()
                return
            if code:
                self._refuse(volume, code)
                return
        self._asking = [v for v in resource.volumes.values() if v.state.conn >= Conn.Connected]
        self._ask_next()

    def _code(self, volume: Volume) -> int:
        old = volume.state
        disk = Disk.UpToDate if volume.number in self._forced else old.disk
        new = adjust(old._replace(role=Role.Primary, disk=disk), old=old)
        net = volume.resource.settings.net
        return (
            possible(old, new)
            or valid(
                new,
                two_primaries=net.allow_two_primaries,
                fencing=volume.settings.disk.fencing,
                old=old,
            )
            or permitted(old, new)
        )

    def _again(self) -> None:
        """The peer may be dying at this moment: look once more a little later."""
        self._tries += 1
        wait = self._resource.settings.net.ping_timeout
        self._resource.clock.call_later(wait, self.start)

    def _ask_next(self) -> None:
        """The peer has a say for every connected volume."""
        if not self._asking:
            self._promote()
            return
        volume = self._asking.pop(0)
        mask, val = ROLE_MASK, int(Role.Primary)
        if volume.number in self._forced:
            mask, val = mask | MASK_DISK, val | Disk.UpToDate << DISK_SHIFT

        def answered(code: int | None) -> None:
            if code is None or code == -19:
                if self._tries >= PROMOTION_TRIES:
                    self._refuse(volume, TRANSIENT)
                else:
                    self._again()
            elif code < SUCCESS:
                if code == TWO_PRIMARIES and self._tries == 0:
                    self._again()
                else:
                    self._refuse(volume, code)
            else:
                self._granted.append(volume)
                self._ask_next()

        self._resource.cluster.ask(volume, mask, val, answered)

    def _refuse(self, volume: Volume, code: int) -> None:
        # The peer has noted a Primary where it agreed: it hears that there is none.
        for granted in self._granted:
            granted.exchange.send_state()
        self._done(refusal(volume, code))

    def _promote(self) -> None:
        """Nobody objects: new identity where there must be one, made durable, then told."""
        resource = self._resource
        if resource.role is Role.Primary:
            self._done(None)  # somebody else has ordered it, too
            return
        resource.role = Role.Primary
        resource.discard_my_data = False
        left = len(resource.volumes)
        failed = 0

        def stable(errno: int) -> None:
            nonlocal left, failed
            failed = failed or errno
            left -= 1
            if not left:
                self._announce(failed)

        for volume in resource.volumes.values():
            _become_primary(volume, volume.number in self._forced, stable)

    def _announce(self, failed: int) -> None:
        for volume in self._resource.volumes.values():
            if volume.state.conn >= Conn.Connected:
                if volume.number in self._forced:
                    volume.exchange.send_uuids()
                volume.exchange.send_state()
        if failed:
            self._done(
                NoDiskError(
                    f"{self._resource.settings.name}: the metadata could not be written; "
                    "the disk was given up"
                )
            )
        else:
            self._done(None)


def _can_be_forced(volume: Volume) -> bool:
    """A disk that holds something, though nobody vouches for it."""
    return Disk.Inconsistent <= volume.state.disk < Disk.UpToDate and volume.state.conn in (
        Conn.StandAlone,
        Conn.Unconnected,
        Conn.WFConnection,
        Conn.Connected,
    )


def _become_primary(volume: Volume, forced: bool, stable: Callable[[int], None]) -> None:
    store = volume.store
    disk = Disk.UpToDate if forced else volume.state.disk
    alone = volume.state.conn < Conn.Connected or volume.state.pdsk <= Disk.Failed
    if store is not None:
        store.uuids.mark_role(False)
    volume.change(role=Role.Primary, disk=disk)
    if store is None or volume.state.disk <= Disk.Failed:
        volume.exposed_uuid = _peer_generation(volume) or volume.exposed_uuid
        volume.resource.soon(lambda: stable(0))
    elif forced or (alone and disk is Disk.UpToDate):
        volume.new_generation(stable, forced=forced)
    else:
        store.uuids.mark_role(True)
        volume.exposed_uuid = store.uuids.current
        volume.write_superblock(stable)
    if volume.state.disk is not Disk.UpToDate and volume.state.pdsk is not Disk.UpToDate:
        volume.resource.handlers.call("pri-on-incon-degr", volume.number, None)


def _peer_generation(volume: Volume) -> int:
    peer = volume.exchange.peer_uuids
    return peer.current if peer is not None else 0


def secondary(resource: Resource, done: AdminDone) -> None:
    """Refused while anybody holds a device open; waits for requests under way, and for the peer to
    have what was written on stable storage."""
    if resource.role is Role.Secondary:
        _soon(resource, done)
        return
    waits = 0

    def look() -> None:
        nonlocal waits
        waits += 1
        late = waits > STEP_WAITS_MAX
        volumes = resource.volumes.values()
        resource.replication.close_epoch()
        opened = [v for v in volumes if v.users]
        busy = [v for v in volumes if v.application.pending]
        if opened:
            done(refusal(opened[0], IN_USE))
        elif busy and late:
            done(_still_busy(busy[0]))
        elif busy or (resource.replication.log.unacknowledged and not late):
            resource.clock.call_later(STEP_WAIT, look)
        else:
            demote(resource, done)

    resource.soon(look)


def _still_busy(volume: Volume) -> StateRefused:
    return StateRefused(
        f"{volume.name}: {volume.application.pending} requests are still under way",
        code=TRANSIENT,
        hint="see what they wait for: replicator status",
    )


def demote(resource: Resource, done: AdminDone) -> None:
    """Become Secondary without further questions."""
    resource.role = Role.Secondary
    left = len(resource.volumes)

    def stable(_errno: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            done(None)

    for volume in resource.volumes.values():
        if volume.store is not None:
            volume.store.uuids.mark_role(False)
        volume.change(role=Role.Secondary)
        volume.exchange.send_state()
        if volume.store is not None and volume.state.disk > Disk.Failed:
            volume.settle(stable)
        else:
            resource.soon(lambda: stable(0))


# --- disks ------------------------------------------------------------------------------------


def detach(volume: Volume, force: bool, done: AdminDone) -> None:
    """Give the disk back. A Primary keeps going on the peer's, if that is UpToDate."""
    resource, state = volume.resource, volume.state
    if state.disk is Disk.Diskless:
        _soon(resource, done)
        return

    def needed() -> bool:
        now = volume.state
        return not force and now.role is Role.Primary and now.pdsk is not Disk.UpToDate

    def ask() -> None:
        if volume.state.conn >= Conn.Connected and not force:
            resource.cluster.ask(volume, MASK_DISK, Disk.Failed << DISK_SHIFT, answered)
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
        _soon(resource, done, refusal(volume, NEED_UP_TO_DATE))
    elif state.role is Role.Primary and not force:
        # What only this disk has on stable storage, as a flush under A and B leaves it, must not
        # go with it.
        resource.replication.when_stable(ask)
    else:
        ask()


def invalidate(volume: Volume, done: AdminDone) -> None:
    """The local copy counts for nothing: full resync from the peer."""
    if volume.state.conn >= Conn.Connected:
        _start_full_sync(volume, Conn.StartingSyncT, done)
        return
    if volume.state.disk < Disk.Inconsistent:
        _soon(volume.resource, done, NoDiskError(f"{volume.name}: there is no local disk"))
        return
    if volume.state.role is Role.Primary:
        _soon(volume.resource, done, refusal(volume, NEED_UP_TO_DATE))
        return
    volume.change(disk=Disk.Inconsistent)
    volume.mark_all(lambda errno: done(_metadata_error(volume, errno)))


def invalidate_remote(volume: Volume, done: AdminDone) -> None:
    """The peer's copy counts for nothing: full resync to the peer."""
    if volume.state.conn >= Conn.Connected:
        _start_full_sync(volume, Conn.StartingSyncS, done)
        return
    if volume.state.role is not Role.Primary or volume.state.disk is not Disk.UpToDate:
        _soon(volume.resource, done, refusal(volume, -15))
        return
    volume.change(pdsk=Disk.Inconsistent)
    volume.mark_all(lambda errno: done(_metadata_error(volume, errno)))


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
        return possible(old, new) or valid(new, old=old) or permitted(old, new)

    code = own_code()
    if code:
        _soon(volume.resource, done, refusal(volume, code))
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

    volume.resource.cluster.ask(volume, MASK_CONN, conn << CONN_SHIFT, answered)


def pause_sync(volume: Volume, pause: bool, done: AdminDone) -> None:
    if volume.state.user_isp is pause:
        code, word = (138, "set") if pause else (139, "cleared")
        error = ConfigError(f"{volume.name}: Failure: ({code}) Sync-pause flag is already {word}")
        _soon(volume.resource, done, error)
        return
    volume.change(user_isp=pause)
    volume.exchange.send_state()
    _soon(volume.resource, done)


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
        left = len(attached) + 1

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                done(None)

        for volume in attached:
            volume.drop_disk(one)
        resource.soon(one)

    if force and resource.role is Role.Primary:
        demote(resource, demoted)
    else:
        secondary(resource, demoted)
