"""Which packet of an established connection goes where: one table, one function each.

Rules: a handler gets the decoded packet; what it cannot accept it raises as WireError, and the
connection ends with that reason. A packet about an unknown volume is skipped if it is part of the
initial report, and ends the connection otherwise.
What this file must not know: what the packets lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from protocol import digests
from protocol.errors import WireError
from protocol.framing import DATA
from protocol.packets import SYNCER_ID, BlockAck, Command, decode
from protocol.states import Conn, Role
from replicator.engine.adoption import adopt_protocol
from replicator.engine.requests import Kind

if TYPE_CHECKING:
    from protocol.framing import Block
    from protocol.packets import (
        Barrier,
        BarrierAck,
        BlockDesc,
        BlockRequest,
        Data,
        StateReply,
        StateRequest,
        Trim,
    )
    from replicator.engine.link import Link
    from replicator.engine.peer_writes import PeerWrites
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

WRITE: Final = Kind.WRITE
PRIMARY: Final = Role.Primary

SKIPPED_FOR_UNKNOWN_VOLUMES = frozenset(
    {Command.SYNC_PARAM89, Command.SIZES, Command.UUIDS, Command.STATE}
)
CARRIES_DATA = frozenset({Command.DATA, Command.DATA_REPLY, Command.RS_DATA_REPLY})
"""Packets that a data digest precedes, if one is configured."""
IGNORED = frozenset({Command.UNPLUG_REMOTE, Command.DELAY_PROBE})

VolumeHandler = Callable[["Volume", int, Any], None]
ResourceHandler = Callable[["Resource", int, Any], None]


def dispatch(resource: Resource, link: Link, command: int, number: int, payload: bytes) -> None:
    """Handle one packet. Raises WireError."""
    if command in IGNORED:
        return
    if command in (Command.BITMAP, Command.COMPRESSED_BITMAP):
        _known_volume(resource, command, number).exchange.got_bitmap(command, payload)
        return
    digest_size = 0
    if command in CARRIES_DATA and link.peer_integrity:
        digest_size = digests.digest_size(link.peer_integrity)
    packet = decode(command, payload, digest_size=digest_size, wsame=link.with_wsame)
    handler = VOLUME_HANDLERS.get(command)
    if handler is not None:
        volume = resource.volumes.get(number)
        if volume is None and command in SKIPPED_FOR_UNKNOWN_VOLUMES:
            resource.log.log("warning", f"the peer has a volume {number}, this node has not")
            return
        handler(_known_volume(resource, command, number), command, packet)
        return
    general = RESOURCE_HANDLERS.get(command)
    if general is None:
        raise WireError(f"{Command(command).name} was not agreed upon")
    general(resource, command, packet)


def dispatch_block(resource: Resource, block: Block) -> None:
    """As dispatch, for what FrameReader.next_block() gives: a write of the peer, its acknowledgement
    of one of ours, or data of a resync."""
    command, number, sector, block_id, third, fourth, data = block
    volume = _known_volume(resource, command, number)
    if command == DATA:
        nsectors = len(data) >> 9
        _in_range(volume, command, sector, nsectors)
        _receiver(volume, command).write(volume, WRITE, sector, nsectors, data, block_id, fourth)
    elif command == Command.RS_DATA_REPLY:
        volume.resync.got_data(sector, data)
    elif block_id == SYNCER_ID:
        volume.resync_source.got_ack(command, BlockAck(sector, block_id, third, fourth))
    else:
        resource.replication.acknowledged(volume, command, sector, block_id)


def _known_volume(resource: Resource, command: int, number: int) -> Volume:
    volume = resource.volumes.get(number)
    if volume is None:
        known = ", ".join(str(n) for n in resource.volumes)
        raise WireError(f"{Command(command).name} for volume {number}; this node has {known}")
    return volume


# --- mirrored writes and reads ----------------------------------------------------------------


def _in_range(volume: Volume, command: int, sector: int, nsectors: int) -> None:
    if sector + nsectors > volume.size_sectors:
        raise WireError(
            f"{Command(command).name} for sectors {sector} to {sector + nsectors}: "
            f"volume {volume.number} has {volume.size_sectors}"
        )


def _checked(volume: Volume, command: int, packet: Data) -> None:
    """The data must have the digest that came with it."""
    link = volume.resource.replication.link
    algorithm = link.peer_integrity if link is not None else ""
    if algorithm and digests.digest(algorithm, packet.data) != packet.digest:
        raise WireError(
            f"{Command(command).name} for sector {packet.sector}: the {algorithm} digest does not "
            "match the data"
        )


def _receiver(volume: Volume, command: int) -> PeerWrites:
    """Who takes a write of the peer. There are never two writers unless that is configured."""
    resource = volume.resource
    if volume.state.role is PRIMARY and not resource.settings.net.allow_two_primaries:
        raise WireError(f"{Command(command).name}: the peer writes, although this node is Primary")
    assert resource.peer_writes is not None
    return resource.peer_writes


def _data(volume: Volume, command: int, packet: Data) -> None:
    nsectors = len(packet.data) >> 9
    _in_range(volume, command, packet.sector, nsectors)
    _checked(volume, command, packet)
    writes = _receiver(volume, command)
    writes.write(
        volume,
        Kind.WRITE,
        packet.sector,
        nsectors,
        packet.data,
        packet.block_id,
        packet.dp_flags,
    )


def _trim(volume: Volume, command: int, packet: Trim) -> None:
    nsectors = packet.size >> 9
    _in_range(volume, command, packet.sector, nsectors)
    writes = _receiver(volume, command)
    kind = Kind.TRIM if command == Command.TRIM else Kind.ZERO_UNMAP
    writes.write(volume, kind, packet.sector, nsectors, b"", packet.block_id, packet.dp_flags)


def _data_request(volume: Volume, command: int, packet: BlockRequest) -> None:
    _in_range(volume, command, packet.sector, packet.blksize >> 9)
    reads = volume.resource.peer_reads
    assert reads is not None
    reads.serve(volume, packet)


def _data_reply(volume: Volume, command: int, packet: Data) -> None:
    _checked(volume, command, packet)
    volume.resource.replication.data_reply(volume, packet)


def _negative_reply(volume: Volume, _command: int, packet: BlockAck) -> None:
    volume.resource.replication.read_refused(volume, packet)


def _write_ack(volume: Volume, command: int, packet: BlockAck) -> None:
    if packet.block_id == SYNCER_ID:
        volume.resync_source.got_ack(command, packet)
        return
    replication = volume.resource.replication
    if command == Command.NEG_ACK and packet.block_id not in replication.log.by_id:
        replication.negative_without_request(volume, packet)
        return
    replication.acknowledged(volume, command, packet.sector, packet.block_id)


# --- resync -----------------------------------------------------------------------------------


def _thin_request(volume: Volume, command: int, packet: BlockRequest) -> None:
    _thin_agreed(volume, command)
    volume.resync_source.got_request(command, packet)


def _deallocated(volume: Volume, command: int, packet: BlockDesc) -> None:
    _thin_agreed(volume, command)
    volume.resync.got_deallocated(packet)


def _thin_agreed(volume: Volume, command: int) -> None:
    link = volume.resource.replication.link
    if link is None or not link.with_thin_resync:
        raise WireError(f"{Command(command).name}: THIN_RESYNC was not agreed upon")


def _resync_request(volume: Volume, command: int, packet: BlockRequest) -> None:
    volume.resync_source.got_request(command, packet)


def _resync_reply(volume: Volume, command: int, packet: Data) -> None:
    _checked(volume, command, packet)
    volume.resync.got_data(packet.sector, packet.data)


def _out_of_sync(volume: Volume, command: int, packet: BlockDesc) -> None:
    _in_range(volume, command, packet.sector, packet.size >> 9)
    volume.mark_out_of_sync(packet.sector, packet.size >> 9)


def _not_read(volume: Volume, _command: int, packet: BlockAck) -> None:
    if volume.state.conn is Conn.VerifyS:
        volume.verify.got_negative(packet)
    else:
        volume.resync.got_negative(packet)


# --- reports and requests ---------------------------------------------------------------------


def _state_request(volume: Volume, _command: int, packet: StateRequest) -> None:
    volume.resource.cluster.requested(volume, packet)


def _state_reply(resource: Resource, command: int, packet: StateReply) -> None:
    resource.cluster.replied(command, packet)


def _disconnect_request(resource: Resource, _command: int, packet: StateRequest) -> None:
    resource.cluster.disconnect_requested(packet)


def _barrier(resource: Resource, _command: int, packet: Barrier) -> None:
    writes = resource.peer_writes
    assert writes is not None
    if not writes.epochs[-1].count:
        raise WireError(f"BARRIER {packet.barrier} for an epoch without writes")
    writes.barrier(packet.barrier)


def _barrier_ack(resource: Resource, _command: int, packet: BarrierAck) -> None:
    resource.replication.barrier_acknowledged(packet)


VOLUME_HANDLERS: dict[int, VolumeHandler] = {
    Command.DATA: _data,
    Command.TRIM: _trim,
    Command.ZEROES: _trim,
    Command.WRITE_ACK: _write_ack,
    Command.RECV_ACK: _write_ack,
    Command.RS_WRITE_ACK: _write_ack,
    Command.NEG_ACK: _write_ack,
    Command.DATA_REQUEST: _data_request,
    Command.DATA_REPLY: _data_reply,
    Command.NEG_DREPLY: _negative_reply,
    Command.RS_DATA_REQUEST: _resync_request,
    Command.CSUM_RS_REQUEST: _resync_request,
    Command.RS_THIN_REQ: _thin_request,
    Command.RS_DEALLOCATED: _deallocated,
    Command.RS_DATA_REPLY: _resync_reply,
    Command.RS_IS_IN_SYNC: lambda volume, _command, ack: volume.resync.got_in_sync(ack),
    Command.NEG_RS_DREPLY: _not_read,
    Command.RS_CANCEL: lambda volume, _command, ack: volume.resync.got_cancel(ack),
    Command.OUT_OF_SYNC: _out_of_sync,
    Command.OV_REQUEST: lambda volume, _command, p: volume.verify_target.got_request(p),
    Command.OV_REPLY: lambda volume, _command, p: volume.verify.got_reply(p),
    Command.OV_RESULT: lambda volume, _command, ack: volume.verify_target.got_verdict(ack),
    Command.SYNC_PARAM89: lambda volume, _command, p: volume.exchange.got_sync_param(p),
    Command.SIZES: lambda volume, _command, p: volume.exchange.got_sizes(p),
    Command.UUIDS: lambda volume, _command, p: volume.exchange.got_uuids(p),
    Command.STATE: lambda volume, _command, p: volume.exchange.got_state(p),
    Command.SYNC_UUID: lambda volume, _command, p: volume.exchange.got_sync_uuid(p),
    Command.STATE_CHG_REQ: _state_request,
}

RESOURCE_HANDLERS: dict[int, ResourceHandler] = {
    Command.PROTOCOL: lambda resource, _command, p: resource.got_protocol(p),
    Command.PROTOCOL_UPDATE: lambda resource, _command, p: adopt_protocol(resource, p),
    Command.BARRIER: _barrier,
    Command.BARRIER_ACK: _barrier_ack,
    Command.STATE_CHG_REPLY: _state_reply,
    Command.CONN_ST_CHG_REPLY: _state_reply,
    Command.CONN_ST_CHG_REQ: _disconnect_request,
    Command.EXTENSION: lambda resource, _command, p: resource.got_extension(p.payload),
}
