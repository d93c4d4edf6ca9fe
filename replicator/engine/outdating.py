"""Outdated: a copy that is consistent but known to be old, so that nobody takes it for the good one.

Three ways lead there besides the handshake: the command `outdate` (which the other node's fence-peer
handler gives), a disconnect that leaves a Primary alone under a fencing policy, and fence-peer
itself (`fencing`).
Rules:
1. A copy is outdated only while nobody uses it and no peer keeps it current.
2. With fencing, a Primary and its peer part only when the peer's copy is Outdated: whoever of them
   orders the disconnect, the Secondary has marked its disk, on stable storage, before they part.
What this file must not know: how a handler is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.states import (
    CONN_MASK,
    CONN_SHIFT,
    DISK_MASK,
    DISK_SHIFT,
    PDSK_SHIFT,
    Conn,
    Disk,
    Role,
)
from replicator.engine.cluster import SUCCESS, Answer
from replicator.engine.fencing import DONT_CARE, needs_outdated_peer, outdate_to_part
from replicator.engine.refusals import CANNOT_BE_OUTDATED, TRANSIENT, refusal
from replicator.engine.states import adjust, refusal_code
from replicator.errors import NoDiskError, NoUsableDataError, WorseThanOutdated

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import AdminDone, Volume

PARTING_PINGS = 4
"""Times ping-timeout that the peer has for its answer to a disconnect."""

Parted = Callable[[int], None]
"""SUCCESS, or why the peer does not agree. One that does not answer cannot object."""


# --- the command ------------------------------------------------------------------------------


def outdate(volume: Volume, done: AdminDone) -> None:
    """Mark the local data as old, durably. A peer that is connected is pinged first: the Primary may
    have lost the link, and be asking for this, before this node has noticed."""
    resource = volume.resource
    link = resource.replication.link
    if volume.state.conn < Conn.Connected or link is None or volume.state.role is Role.Primary:
        resource.soon(lambda: _outdate_now(volume, done))
        return
    resource.cluster.ping(link, lambda: _outdate_now(volume, done))


def _outdate_now(volume: Volume, done: AdminDone) -> None:
    old = volume.state
    if old.disk is Disk.Outdated:
        done(None)
        return
    if old.disk in (Disk.Attaching, Disk.Negotiating):
        done(refusal(volume, TRANSIENT))
        return
    if old.disk < Disk.Outdated:
        done(
            WorseThanOutdated(
                f"{volume.name}: State change failed: (-16) Disk state is lower than outdated "
                f"(it is {old.disk.name})"
            )
        )
        return
    if old.role is Role.Primary:
        text = "State change failed: (-2) Need access to UpToDate data"
        done(NoUsableDataError(f"{volume.name}: {text}: this node is Primary, its data are in use"))
        return
    code = refusal_code(old, adjust(old._replace(disk=Disk.Outdated), old=old))
    if code:
        done(refusal(volume, code))
        return
    volume.change(disk=Disk.Outdated)

    def stable(errno: int) -> None:
        done(NoDiskError(f"{volume.name}: the metadata could not be written") if errno else None)

    volume.write_superblock(stable)


# --- parting ----------------------------------------------------------------------------------


def part(resource: Resource, then: Parted) -> None:
    """Get the peer's consent to a disconnect, with what has to be Outdated afterwards noted; the
    caller then ends the connection. then() comes also if the peer does not answer."""
    volumes = resource.volumes.values()
    if any(needs_outdated_peer(volume) for volume in volumes):
        mask, val = DISK_MASK << PDSK_SHIFT, Disk.Outdated << PDSK_SHIFT
        _ask(resource, mask, val, lambda code: _peer_agreed(resource, code, then))
    elif any(_parts_from_primary(volume) for volume in volumes):
        # Not asked first whether it has to: the Primary may not know yet how good this copy is.
        _outdate_and_ask(resource, then)
    else:
        _ask(resource, 0, 0, lambda code: _peer_answered(resource, code, then))


def _ask(resource: Resource, mask: int, val: int, answer: Answer) -> None:
    """Ask for a disconnect; answer(None) if none comes within some pings."""
    answered = False

    def once(code: int | None) -> None:
        nonlocal answered
        if not answered:
            answered = True
            timer.cancel()
            answer(code)

    wait = PARTING_PINGS * resource.settings.net.ping_timeout
    timer = resource.clock.call_later(wait, lambda: once(None))
    mask |= CONN_MASK << CONN_SHIFT
    resource.cluster.ask_to_disconnect(mask, val | Conn.Disconnecting << CONN_SHIFT, once)


def _peer_agreed(resource: Resource, code: int | None, then: Parted) -> None:
    """Only a peer that has said so is Outdated; another one has to be fenced."""
    link = resource.replication.link
    if code is not None and code >= SUCCESS and link is not None and not link.closed:
        for volume in resource.volumes.values():
            if needs_outdated_peer(volume):
                volume.change(pdsk=Disk.Outdated)
    then(SUCCESS if code is None else code)


def _peer_answered(resource: Resource, code: int | None, then: Parted) -> None:
    """A Primary with a fencing policy refuses at first: it wants this copy to be Outdated."""
    if code is None or code >= SUCCESS or resource.role is Role.Primary:
        then(SUCCESS if code is None else code)
        return
    if any(volume.state.disk > Disk.Outdated for volume in resource.volumes.values()):
        _outdate_and_ask(resource, then)
    else:
        then(SUCCESS)  # there is nothing here that could be taken for good data


def _parts_from_primary(volume: Volume) -> bool:
    state, fencing = volume.state, volume.settings.disk.fencing
    return state.peer is Role.Primary and fencing != DONT_CARE and state.disk > Disk.Outdated


def _outdate_and_ask(resource: Resource, then: Parted) -> None:
    better = [v for v in resource.volumes.values() if v.state.disk > Disk.Outdated]

    def outdated(done: bool) -> None:
        if done:
            _ask(resource, DISK_MASK << DISK_SHIFT, Disk.Outdated << DISK_SHIFT, agreed)
        else:
            then(CANNOT_BE_OUTDATED)

    def agreed(code: int | None) -> None:
        if code is not None and code < SUCCESS:
            for volume in better:
                volume.change(disk=Disk.UpToDate)
        then(SUCCESS if code is None else code)

    outdate_to_part(better, outdated)
