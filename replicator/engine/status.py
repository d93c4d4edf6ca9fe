"""The snapshot of a resource: every number that status shows, taken from its one source.

What this file must not know: how it is printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

WAITING = {
    Conn.WFConnection: "the peer",
    Conn.WFReportParams: "the peer's parameters",
    Conn.StartingSyncS: "the bitmap to be set",
    Conn.StartingSyncT: "the bitmap to be set",
    Conn.WFBitMapS: "the exchange of bitmaps",
    Conn.WFBitMapT: "the exchange of bitmaps",
    Conn.WFSyncUUID: "the source to start the resync",
    Conn.Ahead: "the peer to catch up (on-congestion pull-ahead)",
    Conn.Behind: "the peer, which is ahead, to send what was left out",
}


def snapshot(resource: Resource) -> ResourceSnapshot:
    link = resource.replication.link
    waiting = WAITING.get(resource.conn, "")
    trouble = resource.establisher.last_error
    if resource.conn is Conn.WFConnection and trouble:
        waiting += f" ({trouble})"
    writes = resource.peer_writes
    errors = [resource.establisher.listen_error, resource.last_error]
    return ResourceSnapshot(
        name=resource.settings.name,
        node=resource.settings.node,
        peer=resource.settings.peer,
        cstate=_worst_conn(resource).name,
        protocol="" if resource.conn is Conn.StandAlone else resource.settings.net.protocol,
        volumes=[_volume(resource, volume) for volume in resource.volumes.values()],
        peer_software=resource.peer_software if link is not None else "",
        agreed_version=link.version if link is not None else 0,
        since=resource.clock.now() - resource.conn_since,
        waiting_for=waiting,
        unsent=link.data.channel.unsent if link is not None else 0,
        unstable=resource.replication.log.unacknowledged,
        unwritten=writes.bytes_held if writes is not None else 0,
        last_error="; ".join(error for error in errors if error),
        frontend=resource.settings.frontend,
    )


def _worst_conn(resource: Resource) -> Conn:
    return min((v.state.conn for v in resource.volumes.values()), default=resource.conn)


def _volume(resource: Resource, volume: Volume) -> VolumeSnapshot:
    state, counters, store = volume.state, volume.counters, volume.store
    application, resync = volume.application, volume.resync
    writes = resource.peer_writes
    receiving = writes.unacknowledged.get(volume, 0) if writes is not None else 0
    uuids = store.uuids if store is not None else None
    local = volume.locks.count
    return VolumeSnapshot(
        volume=volume.number,
        minor=volume.settings.minor,
        device=volume.settings.device,
        disk_path=volume.settings.disk_path,
        size_sectors=volume.size_sectors,
        cs=state.conn.name,
        role=state.role.name,
        peer_role=state.peer.name,
        disk=state.disk.name,
        peer_disk=state.pdsk.name,
        susp=state.susp,
        susp_nod=state.susp_nod,
        susp_fen=state.susp_fen,
        aftr_isp=state.aftr_isp,
        peer_isp=state.peer_isp,
        user_isp=state.user_isp,
        ns=counters.sent >> 1,
        nr=counters.received >> 1,
        dw=counters.written >> 1,
        dr=counters.read >> 1,
        al=volume.activity_log_object.transactions if volume.activity_log_object else 0,
        bm=store.bitmaps.pages_written if store is not None else 0,
        lo=local,
        pe=resource.replication.pending(volume) + resync.outstanding + volume.verify.outstanding,
        ua=receiving
        + resync.unacknowledged
        + volume.resync_source.answering
        + volume.verify_target.answering,
        ap=application.pending,
        ep=len(writes.epochs) if writes is not None else 1,
        wo=_write_ordering(resource),
        oos=4 * store.bitmap.weight if store is not None else 0,
        uuids=[f"{u:016X}" for u in (uuids.current, uuids.bitmap, uuids.history0, uuids.history1)]
        if uuids is not None
        else [],
        gi_flags=_gi_flags(volume),
        progress=resync.progress() or volume.verify.progress(),
        open_count=volume.users,
        disk_error=volume.disk_error,
        waiting_for=_waiting(volume),
    )


def _write_ordering(resource: Resource) -> str:
    """The weakest method over all volumes: f(lush), d(rain) or n(one)."""
    disks = [v.settings.disk for v in resource.volumes.values()]
    if all(d.disk_flushes for d in disks):
        return "f"
    return "d" if all(d.disk_drain for d in disks) else "n"


def _gi_flags(volume: Volume) -> str:
    if volume.store is None:
        return ""
    return volume.store.superblock.gi_flags()


def _suspension(volume: Volume) -> str:
    """What ends the suspension of I/O."""
    state, name = volume.state, volume.resource.settings.name
    reasons = []
    if state.susp_fen:
        reasons.append(volume.resource.fencing.reason())
    if state.susp_nod:
        reasons.append(
            f"good data are back, here or at the peer (replicator resume-io {name}: errors instead)"
        )
    if state.susp:
        reasons.append(f"replicator resume-io {name}")
    count = volume.application.frozen
    return f"I/O is frozen ({count} requests) until: {'; and '.join(reasons)}"


def _room_awaited(volume: Volume) -> str:
    """Whether writes wait because the peer's disk does not keep up."""
    replication = volume.resource.replication
    if not replication.waiting:
        return ""
    unstable = replication.log.unacknowledged
    return f"the peer's disk: {unstable} writes are not stable there, more would fill the memory"


def _waiting(volume: Volume) -> str:
    """Why I/O or the resync of this volume waits right now."""
    state, application = volume.state, volume.application
    if state.suspended:
        return _suspension(volume)
    if application.frozen:
        unindicated = state.role is Role.Primary and not volume.indicated
        cause = "for the metadata to say Primary" if unindicated else f"while {state.conn.name}"
        return f"{application.frozen} requests wait {cause}"
    if volume.generation_pending:
        return "a new generation UUID to be stable"
    if reason := _room_awaited(volume):
        return reason
    paused_by = " and ".join(
        name
        for name, flag in (
            ("this node's administrator", state.user_isp),
            ("the peer", state.peer_isp),
            ("another resync", state.aftr_isp),
        )
        if flag
    )
    if state.conn in (Conn.PausedSyncS, Conn.PausedSyncT):
        return f"resync paused by {paused_by}"
    if state.conn in (Conn.VerifyS, Conn.VerifyT) and paused_by:
        return f"verify paused by {paused_by}"
    if state.disk is Disk.Negotiating:
        return "the handshake about the attached disk"
    if state.role is Role.Primary and volume.activity_log and volume.activity_log.waiting:
        return f"{volume.activity_log.waiting} writes wait for the activity log"
    return WAITING.get(state.conn, "")
