"""Fencing: before this node goes on alone, make sure that the peer, out of reach, does not as well.

The administrator's `fence-peer` handler does that by other means than our connection, and says by
its exit status how it ended (OUTCOMES). `unfence-peer` takes back what it may have left behind.

Rules:
1. One handler at a time. Its answer counts only for the loss that it was called for: if the
   connection was there again meanwhile it is ignored.
2. What an answer does not prove is not assumed: I/O that is frozen stays frozen, a promotion is
   refused, until the peer is back or an administrator decides.
3. A node whose own data are not even consistent fences nobody.
What this file must not know: how a handler is run, how I/O is frozen (`states`, `application`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from protocol.states import Conn, Disk, Role
from replicator.engine.requests import Countdown
from replicator.engine.states import FENCING

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

DONT_CARE, RESOURCE_ONLY, STONITH = FENCING

Fenced = Callable[[bool], None]
"""Whether the peer is known to be out of the way."""


class Outcome(NamedTuple):
    """An exit status of fence-peer. pdsk: what the peer's disk is known to be from now on."""

    text: str
    pdsk: Disk | None = None


PEER_UNREACHABLE, PEER_IS_PRIMARY, PEER_SHOT = 5, 6, 7

OUTCOMES: dict[int, Outcome] = {
    3: Outcome("the peer's data are inconsistent anyway", Disk.Inconsistent),
    4: Outcome("the peer is outdated", Disk.Outdated),
    PEER_UNREACHABLE: Outcome("the peer is unreachable, taken for dead", Disk.Outdated),
    PEER_IS_PRIMARY: Outcome("the peer is Primary"),
    PEER_SHOT: Outcome("the peer was shot", Disk.Outdated),
}
"""By exit status, as for DRBD; with any other the handler has failed."""


def needs_outdated_peer(volume: Volume) -> bool:
    """This Primary would not know what its peer does, were the connection given up as it is."""
    state, fencing = volume.state, volume.settings.disk.fencing
    good = state.disk is Disk.UpToDate
    return (
        state.role is Role.Primary and good and fencing != DONT_CARE and state.pdsk > Disk.Outdated
    )


def outdate_to_part(volumes: list[Volume], then: Fenced) -> None:
    """Mark these copies of a Secondary as old, durably, while the connection still stands: once it
    is given up the peer counts on it. then(False) for the source of a resync, whose copy is the good
    one, and if it cannot be written."""
    for volume in volumes:
        if volume.state.conn in (Conn.Connected, Conn.VerifyS, Conn.VerifyT):
            volume.change(conn=Conn.Connected, disk=Disk.Outdated)
    good = all(volume.state.disk <= Disk.Outdated for volume in volumes)
    stable = Countdown(len(volumes), lambda errno: then(good and not errno)).part_done
    for volume in volumes:
        volume.write_superblock(stable)


class Fencing:
    """One per resource: a handler fences the node, not a volume."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._waiting: list[Fenced] = []
        self._running_since: float | None = None
        self._connections = 0
        """How often a connection has been established."""
        self._to_lift = False
        """A handler was called, and may have left something that keeps the peer away."""
        self._failure = ""

    # --- what happens to the connection -------------------------------------------------------

    def connection_lost(self) -> None:
        """After the states have changed: a Primary that does not know its peer's disk fences it."""
        if self._needed:
            self.fence(lambda _fenced: None)

    def connected(self) -> None:
        """A handshake has ended well."""
        self._connections += 1
        self._failure = ""
        self.lift()

    @property
    def _needed(self) -> bool:
        resource = self._resource
        unknown = any(v.state.pdsk >= Disk.DUnknown for v in resource.volumes.values())
        return resource.role is Role.Primary and unknown and not self._is_connected

    @property
    def _is_connected(self) -> bool:
        return any(v.state.conn >= Conn.WFReportParams for v in self._resource.volumes.values())

    @property
    def policy(self) -> str | None:
        """The strictest of the volumes whose data are consistent; None if there is no such volume."""
        volumes = self._resource.volumes.values()
        policies = [v.settings.disk.fencing for v in volumes if v.state.disk >= Disk.Consistent]
        return max(policies, key=FENCING.index, default=None)

    # --- fencing ------------------------------------------------------------------------------

    def fence(self, then: Fenced) -> None:
        """Fence the peer, if that is the policy; then(whether it is out of the way)."""
        policy = self.policy
        if policy is None:
            self._log("info", "not fencing the peer: the data here are not even consistent")
            self._resume()
        if policy in (None, DONT_CARE):
            self._resource.soon(partial(then, policy is not None))
            return
        self._waiting.append(then)
        if self._running_since is None:
            self._run()

    def _run(self) -> None:
        self._running_since = self._resource.clock.now()
        self._to_lift = True
        self._failure = ""
        ended = partial(self._ended, self._connections)
        self._resource.handlers.call("fence-peer", None, ended)
        self._resource.changed()

    def _ended(self, connections: int, status: int) -> None:
        self._running_since = None
        outcome = OUTCOMES.get(status)
        text = outcome.text if outcome else "the handler failed"
        self._log("info" if outcome else "error", f"fence-peer: exit status {status}: {text}")
        if connections != self._connections or self._is_connected:
            self._log("info", "fence-peer: ignored, the peer was connected meanwhile")
            if self._needed:
                self._run()
                return
        elif outcome is None:
            self._failure = f"fence-peer ended with exit status {status}"
        else:
            self._apply(status, outcome)
        self._tell()

    def _apply(self, status: int, outcome: Outcome) -> None:
        volumes = list(self._resource.volumes.values())
        if status == PEER_IS_PRIMARY:
            self._failure = "fence-peer says that the peer is Primary"
            self._outdate_unless_primary()
            return
        if status == PEER_UNREACHABLE and not any(v.state.disk is Disk.UpToDate for v in volumes):
            self._failure = "fence-peer cannot reach the peer, and the data here may be old"
            return
        if status == PEER_SHOT and self.policy != STONITH:
            self._log("warning", f"fence-peer: exit status 7 although fencing is {self.policy}")
        assert outcome.pdsk is not None
        for volume in volumes:
            volume.change(pdsk=min(volume.state.pdsk, outcome.pdsk))
        self._resume()

    def _outdate_unless_primary(self) -> None:
        """The peer has gone on with newer data. A Primary is in use, and keeps what it has."""
        if self._resource.role is Role.Primary:
            return
        for volume in self._resource.volumes.values():
            if volume.state.disk > Disk.Outdated:
                volume.change(disk=Disk.Outdated)

    def _resume(self) -> None:
        for volume in self._resource.volumes.values():
            volume.change(susp_fen=False)

    def _tell(self) -> None:
        volumes = self._resource.volumes.values()
        fenced = all(v.state.pdsk <= Disk.Outdated for v in volumes)
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(fenced)
        self._resource.changed()

    # --- unfencing ----------------------------------------------------------------------------

    def lift(self, *, after_resync: bool = False) -> None:
        """Call unfence-peer if all volumes are in sync: as DRBD does on the source of a resync, and
        also after a mere interruption in which the peer was fenced."""
        if self.policy in (None, DONT_CARE) or not (after_resync or self._to_lift):
            return
        in_sync = (Conn.Connected, Disk.UpToDate, Disk.UpToDate)
        states = [v.state for v in self._resource.volumes.values()]
        if all((s.conn, s.disk, s.pdsk) == in_sync for s in states):
            self._to_lift = False
            self._resource.handlers.call("unfence-peer", None, None)

    # --- for people ---------------------------------------------------------------------------

    def reason(self) -> str:
        """What ends a suspension of I/O for fencing."""
        if self._running_since is not None:
            seconds = self._resource.clock.now() - self._running_since
            return f"the fence-peer handler ends (running for {seconds:.0f} s)"
        name = self._resource.settings.name
        if self._is_connected:
            return f"the resync has begun (or replicator resume-io {name})"
        why = f"{self._failure}; " if self._failure else ""
        return f"the peer is back ({why}if it is certainly down: replicator resume-io {name})"

    def _log(self, level: str, message: str) -> None:
        self._resource.log.log(level, message)
