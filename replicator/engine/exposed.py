"""The name of the data that this node had, or showed to its applications, last; and what follows from it
when the node has lost its disk.

DRBD keeps that name ("exposed data UUID") for a Primary without disk, whose applications must not
suddenly work on other data. Here it is kept for a Secondary, too. One that has lost its disk does not take
a copy for UpToDate that lacks what this node had: its next promotion would show older data, and
nobody would be told before the disk is attached again, if it ever is.

What this file must not know: packets, how generations begin, how disks are attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role, StateWord

if TYPE_CHECKING:
    from replicator.engine.generations import UuidSet
    from replicator.engine.volume import Volume

ACCEPTED = (Disk.Inconsistent, Disk.Consistent, Disk.UpToDate)
"""Disk states of a connected peer that has been looked at, or is being synchronised from here."""


def follow(volume: Volume, old: StateWord, new: StateWord) -> None:
    """The name of the own data, as long as the disk is good. A Secondary's copy that is about to be
    overwritten is given up."""
    if new.conn >= Conn.Connected:
        volume.named_alone = 0
    if volume.store is None:
        return
    current = volume.store.uuids.current
    if new.disk >= Disk.Consistent:
        volume.exposed_uuid = current
    elif new.role is Role.Secondary and new.disk is Disk.Inconsistent:
        if old.disk > Disk.Inconsistent or new.conn > Conn.Connected:
            volume.exposed_uuid = 0
    elif new.role is Role.Secondary and old.disk >= Disk.Consistent:
        volume.exposed_uuid = current


def told(volume: Volume, peer: UuidSet) -> str:
    """The peer's UUIDs have come. The reason to refuse it, or ""."""
    state, exchange = volume.state, volume.exchange
    if state.disk > Disk.Failed:
        return ""
    if state.role is not Role.Primary:
        if volume.resource.discard_my_data:
            volume.exposed_uuid = 0
        elif volume.exposed_uuid and peer.knows(volume.exposed_uuid):
            volume.exposed_uuid = peer.current
        return ""
    if exchange.decided and state.pdsk > Disk.Failed:
        volume.exposed_uuid = peer.current
    elif volume.exposed_uuid and (volume.exposed_uuid ^ peer.current) >> 1:
        name = volume.resource.settings.name
        return (
            f"{volume.name}: this Primary has no disk and its applications use generation "
            f"{volume.exposed_uuid:016X}, but the peer has {peer.current:016X}; "
            f"to use that: replicator secondary {name}, then "
            f"replicator connect --discard-my-data {name}"
        )
    return ""


def peer_disk(volume: Volume, reported: Disk) -> Disk:
    """What the disk that the peer reports is to this node: at best Outdated, if this node is a
    Secondary without disk and had newer data, or other ones."""
    state, peer = volume.state, volume.exchange.peer_uuids
    looked_at = state.conn >= Conn.Connected and state.pdsk in ACCEPTED
    if state.disk > Disk.Failed or state.role is Role.Primary or looked_at:
        return reported
    known = peer is None or not volume.exposed_uuid or peer.knows(volume.exposed_uuid)
    if known or reported <= Disk.Outdated:
        return reported
    assert peer is not None
    if state.pdsk is not Disk.Outdated or state.conn < Conn.Connected:
        volume.log(
            "warning",
            f"the peer's data (generation {peer.current:016X}) lack what this node's disk had "
            f"(generation {volume.exposed_uuid:016X}): its disk is taken for Outdated",
        )
    return Disk.Outdated


def without_peer(old: StateWord, wanted: StateWord) -> StateWord:
    """What was Outdated to a node without disk is not known to be so once the connection has ended: that
    node may be promoted all the same."""
    lost = old.conn >= Conn.Connected > wanted.conn
    if lost and old.disk <= Disk.Failed and wanted.pdsk is Disk.Outdated:
        return wanted._replace(pdsk=Disk.DUnknown)
    return wanted


def own_disk(volume: Volume, disk: Disk) -> Disk:
    """What a disk that is attached, and cannot be compared with the peer's, is to this node: at best
    Outdated, if the peer's copy has gone on from it, as this node has heard while it had none."""
    store, exposed = volume.store, volume.exposed_uuid
    if volume.state.role is Role.Primary or store is None or not exposed:
        return disk
    if disk <= Disk.Outdated or store.uuids.knows(exposed):
        return disk
    return Disk.Outdated
