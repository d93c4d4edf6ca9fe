"""Primary and Secondary: each change of role as its steps, with the refusals that DRBD gives.

Rules:
1. A change ends exactly once, with None or an error that says why and what to do next.
2. Steps that involve the peer end with its answer, or with the connection; fencing ends with its
   handler, which has a time limit. So none waits for ever.
3. A promotion is answered when the new identity is durable, not before.
What this file must not know: the control socket, how errors are printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.states import DISK_MASK, DISK_SHIFT, ROLE_MASK, Conn, Disk, Role, StateFields
from replicator.engine.cluster import CONCURRENT, SUCCESS
from replicator.engine.refusals import (
    IN_USE,
    NEED_UP_TO_DATE,
    PEER_NOT_OUTDATED,
    TRANSIENT,
    TWO_PRIMARIES,
    refusal,
    soon,
)
from replicator.engine.requests import Countdown
from replicator.engine.states import adjust, refusal_code
from replicator.errors import NoDiskError, StateRefused

if TYPE_CHECKING:
    from replicator.engine.generations import UuidSet
    from replicator.engine.resource import Resource
    from replicator.engine.volume import AdminDone, Volume

PROMOTION_TRIES = 4
STEP_WAIT = 0.02
STEP_WAITS_MAX = 250
"""A change of role waits up to 5 s for a handshake or for requests that are under way."""
OPEN_WAITS_MAX = 100
"""A demotion waits up to 2 s for who just closed the device: an NBD client's goodbye arrives after
it has gone on, and after umount others (udev, multipathd) look at the device for a moment."""


class Promotion:
    """primary: the algorithm of `generations`, part II, for all volumes of the resource."""

    def __init__(self, resource: Resource, force: bool, done: AdminDone) -> None:
        self._resource = resource
        self._force = force
        self._done = done
        self._tries = 0
        self._waits = 0
        self._forced: set[int] = set()
        self._fencing_tried = False
        self._assumed: dict[int, StateFields] = {}
        """Disk states of volumes that fencing has proved, or that --force takes for granted."""
        self._asking: list[Volume] = []
        self._granted: list[Volume] = []
        """Volumes for which the peer has agreed."""

    def start(self) -> None:
        resource = self._resource
        if resource.role is Role.Primary:
            soon(resource, self._done)
            return
        if self._too_early():
            self._wait()
            return
        link = resource.replication.link
        if link is not None:
            resource.cluster.ping(link, self._judge)
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
            if _fencing_helps(volume, code) and not self._fencing_tried:
                self._fencing_tried = True
                resource.fencing.fence(self._after_fencing)
                return
            if code:
                self._refuse(volume, code)
                return
        self._asking = [v for v in resource.volumes.values() if v.state.conn >= Conn.Connected]
        self._ask_next()

    def _after_fencing(self, fenced: bool) -> None:
        """The peer will not go on alone: this copy is the one that counts. Or so says --force."""
        for volume in self._resource.volumes.values():
            if volume.state.conn >= Conn.Connected:
                continue
            if fenced and volume.state.disk is Disk.Consistent:
                self._assumed[volume.number] = {"disk": Disk.UpToDate}
            elif not fenced and self._force and volume.state.pdsk is Disk.DUnknown:
                self._assumed[volume.number] = {"pdsk": Disk.Outdated}
                volume.log("warning", "promoted by force although the peer could not be fenced")
        self.start()

    def _code(self, volume: Volume) -> int:
        old = volume.state
        if volume.state.conn >= Conn.Connected:
            self._assumed.pop(volume.number, None)
        wanted = old._replace(**self._assumed.get(volume.number, {}))._replace(role=Role.Primary)
        if volume.number in self._forced:
            wanted = wanted._replace(disk=Disk.UpToDate)
        new = adjust(wanted, old=old)
        net = volume.resource.settings.net
        return refusal_code(
            old,
            new,
            two_primaries=net.allow_two_primaries,
            fencing=volume.settings.disk.fencing,
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
            mask |= DISK_MASK << DISK_SHIFT
            val |= Disk.UpToDate << DISK_SHIFT

        def answered(code: int | None) -> None:
            if code is None or code == CONCURRENT:
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
        stable = Countdown(len(resource.volumes), self._announce).part_done
        for volume in resource.volumes.values():
            volume.change(**self._assumed.get(volume.number, {}))
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


def _fencing_helps(volume: Volume, code: int) -> bool:
    """Refused only because the peer, out of reach, might have the newer data or go on alone."""
    state = volume.state
    in_doubt = code == NEED_UP_TO_DATE and state.disk is Disk.Consistent
    return code == PEER_NOT_OUTDATED or (in_doubt and state.pdsk is Disk.DUnknown)


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
        if forced:
            # First: no superblock may call the copy good by its old name.
            _declare_good(volume, store.uuids)
    volume.change(role=Role.Primary, disk=disk)
    if store is None or volume.state.disk <= Disk.Failed:
        volume.exposed_uuid = _peer_generation(volume) or volume.exposed_uuid
        volume.resource.soon(lambda: stable(0))
    elif forced:
        volume.generation_begun(stable)
    elif alone and disk is Disk.UpToDate:
        volume.new_generation(stable)
    else:
        store.uuids.mark_role(True)
        volume.exposed_uuid = store.uuids.current
        volume.write_superblock(stable)


def _declare_good(volume: Volume, uuids: UuidSet) -> None:
    name = volume.resource.random_uuid()
    if volume.state.disk is not Disk.Inconsistent:
        uuids.new_current(name, primary=True)
        return
    if not uuids.just_created:
        volume.log(
            "warning",
            "an Inconsistent copy was declared good by force: check the file system; a copy that "
            "returns is a split brain, and a person has to say which of the two is given up",
        )
    uuids.declare_good(name, primary=True)


def _peer_generation(volume: Volume) -> int:
    peer = volume.exchange.peer_uuids
    return peer.current if peer is not None else 0


def secondary(resource: Resource, done: AdminDone) -> None:
    """Refused if anybody keeps a device open; waits for requests under way, and for the peer to have
    what was written on stable storage."""
    if resource.role is Role.Secondary:
        soon(resource, done)
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
        if opened and waits > OPEN_WAITS_MAX:
            done(refusal(opened[0], IN_USE))
        elif busy and late:
            done(_still_busy(busy[0]))
        elif opened or busy or (resource.replication.log.unacknowledged and not late):
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
    """Become Secondary without further questions; what still waits for better times fails."""
    for volume in resource.volumes.values():
        volume.application.give_up()
    resource.role = Role.Secondary
    stable = Countdown(len(resource.volumes), lambda _errno: done(None)).part_done
    for volume in resource.volumes.values():
        if volume.store is not None:
            volume.store.uuids.mark_role(False)
        volume.change(role=Role.Secondary)
        volume.exchange.send_state()
        if volume.store is not None and volume.state.disk > Disk.Failed:
            volume.settle(stable)
        else:
            resource.soon(lambda: stable(0))
