"""A recorded conversation of two nodes, at least one of them a kernel, as one timeline, split into
sessions (one for each time the two were connected), with what has to be known in advance to take
one node's place.

Knows the recordings only; the engine and the pretended world are for `replayed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol import digests
from protocol.bitmaps import BitmapReceiver
from protocol.packets import (
    BlockAck,
    BlockDesc,
    Command,
    Data,
    Features,
    Packet,
    ProtocolParams,
    Raw,
    StateReport,
    SyncParam,
    SyncUuid,
    Trim,
    Uuids,
    decode,
)
from tests.vectors import Conversation, Recorded, load

DEVICE_BITS = 1014
BLOCK = 4096
ROLE_MARK = 1
ALPHA, BETA = "127.0.0.1", "127.0.0.2"
BITMAPS = (Command.BITMAP, Command.COMPRESSED_BITMAP)


class Step(NamedTuple):
    """One packet, in the order in which they were captured."""

    sender: str
    socket: str
    recorded: Recorded
    packet: Packet

    @property
    def command(self) -> int:
        return self.recorded.frame.command

    @property
    def volume(self) -> int:
        return self.recorded.frame.volume


@dataclass
class Session:
    """From the first packet on a new data connection to the last before the next one."""

    steps: list[Step] = field(default_factory=list)

    def of(self, sender: str, *commands: int) -> Iterator[Step]:
        return (s for s in self.steps if s.sender == sender and s.command in commands)


def sessions(name: str) -> list[Session]:
    """Connections that came to nothing (both had dialled) are left out."""
    found: list[Session] = []
    data_connection = -1
    conversation = load(name)
    for index, step in _timeline(conversation):
        connection = conversation.streams[index].connection
        if step.command == Command.CONNECTION_FEATURES and connection != data_connection:
            data_connection = connection
            found.append(Session())
        if found and step.command not in (Command.INITIAL_DATA, Command.INITIAL_META):
            found[-1].steps.append(step)
    return found


def _timeline(conversation: Conversation) -> Iterator[tuple[int, Step]]:
    """(index of the stream, step): a packet stands where its last byte was captured."""
    streams = conversation.streams
    frames = [stream.frames() for stream in streams]
    arrived, taken, ends = ([0] * len(streams) for _ in range(3))
    digest_sizes = [0] * len(streams)
    for index, count in conversation.order:
        arrived[index] += count
        while taken[index] < len(frames[index]):
            recorded = frames[index][taken[index]]
            end = ends[index] + len(recorded.raw)
            if end > arrived[index]:
                break
            ends[index] = end
            taken[index] += 1
            frame = recorded.frame
            packet = decode(frame.command, frame.payload, digest_size=digest_sizes[index])
            if isinstance(packet, ProtocolParams):
                digest_sizes[index] = digests.digest_size(packet.integrity_alg)
            stream = streams[index]
            yield index, Step(stream.sender, stream.socket, recorded, packet)


def is_replicator(all_sessions: list[Session], sender: str) -> bool:
    """Whether this node is one of ours, by the mark in what it announces; else it is a kernel."""
    steps = all_sessions[0].of(sender, Command.CONNECTION_FEATURES)
    return any(isinstance(s.packet, Features) and bool(s.packet.replicator) for s in steps)


def parameters(session: Session, sender: str) -> tuple[ProtocolParams, SyncParam]:
    """What the node was configured with at first; the defaults if it never got as far as saying."""
    protocol = next((s.packet for s in session.of(sender, Command.PROTOCOL)), ProtocolParams(3))
    sync = next((s.packet for s in session.of(sender, Command.SYNC_PARAM89)), SyncParam(250))
    assert isinstance(protocol, ProtocolParams)
    assert isinstance(sync, SyncParam)
    return protocol, sync


def chosen_uuids(all_sessions: list[Session], sender: str) -> list[int]:
    """The names this node gave to generations and resyncs, in order."""
    chosen: list[int] = []
    known = {4}
    for session in all_sessions:
        for step in session.steps:
            packet = step.packet
            if isinstance(packet, Uuids):
                name = packet.current & ~ROLE_MARK
                if step.sender == sender and name not in known:
                    chosen.append(name)
                known.add(name)
            elif isinstance(packet, SyncUuid) and step.sender == sender:
                chosen.append(packet.uuid & ~ROLE_MARK)
    return chosen


def marked_blocks(session: Session, sender: str, volume: int) -> list[int] | None:
    """The blocks of the first bitmap this node sent in the session; None if it sent none."""
    receiver = BitmapReceiver(DEVICE_BITS)
    blocks: list[int] = []
    for step in session.of(sender, *BITMAPS):
        if step.volume != volume:
            continue
        assert isinstance(step.packet, Raw)
        for first, count in receiver.receive(step.command, step.packet.payload):
            blocks += range(first, first + count)
        if receiver.complete:
            return blocks
    return None


def sent_blocks(session: Session, sender: str, volume: int) -> dict[int, bytes]:
    """Content of every whole block that this node sent as source of a resync."""
    found = {}
    for step in session.of(sender, Command.RS_DATA_REPLY, Command.RS_DEALLOCATED):
        if step.volume == volume:
            sector, data = _shown(step.packet)
            for at in range(0, len(data), BLOCK):
                found[(sector * 512 + at) // BLOCK] = data[at : at + BLOCK]
    return found


def _shown(packet: Packet) -> tuple[int, bytes]:
    """Sector and content that a packet shows."""
    if isinstance(packet, Data):
        return packet.sector, packet.data
    assert isinstance(packet, Trim | BlockDesc)
    return packet.sector, bytes(packet.size)


def first_content(all_sessions: list[Session], node: str, peer: str, volume: int) -> bytes:
    """What this node's disk held before: its own lines, but its peer's where a resync by checksum
    found nothing to copy, and nothing where it said so."""
    image, other = bytearray(content(node)), content(peer)
    for step in all_sessions[0].of(node, Command.RS_DEALLOCATED):
        if step.volume == volume:
            sector, data = _shown(step.packet)
            image[sector * 512 : sector * 512 + len(data)] = data
    for step in all_sessions[0].of(peer, Command.RS_IS_IN_SYNC):
        packet = step.packet
        if step.volume == volume and isinstance(packet, BlockAck):
            start = packet.sector * 512
            end = start + packet.blksize
            image[start:end] = other[start:end]
    return bytes(image)


def final_content(all_sessions: list[Session], node: str, peer: str, volume: int) -> bytes:
    """What this node's disk held at the end, as far as packets show: its own and its peer's writes,
    what it fetched as target, and what it turned out to have when it was source."""
    image = bytearray(first_content(all_sessions, node, peer, volume))
    writes = (Command.DATA, Command.TRIM, Command.ZEROES)
    fetched = (Command.RS_DATA_REPLY, Command.RS_DEALLOCATED)
    for session in all_sessions:
        for block, data in sent_blocks(session, node, volume).items():
            image[block * BLOCK : (block + 1) * BLOCK] = data
        for step in session.steps:
            mine = step.command in writes or (step.command in fetched and step.sender == peer)
            if mine and step.volume == volume:
                sector, data = _shown(step.packet)
                image[sector * 512 : sector * 512 + len(data)] = data
    return bytes(image)


def first_state(session: Session, sender: str, volume: int) -> int | None:
    for step in session.of(sender, Command.STATE):
        if step.volume == volume and isinstance(step.packet, StateReport):
            return step.packet.word
    return None


def content(sender: str, blocks: int = DEVICE_BITS) -> bytes:
    """What the disks held at the beginning: every line says whose block it is and which."""
    name = "alpha" if sender == ALPHA else "beta"
    return b"".join(f"{name:<7}{block:08d}\n".encode() * (BLOCK // 16) for block in range(blocks))
