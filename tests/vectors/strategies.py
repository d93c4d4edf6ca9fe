"""Any packet of any command, for property tests: hypothesis strategies and nothing else."""

from __future__ import annotations

from typing import cast

from hypothesis import strategies as st

from protocol.bitmaps import PLAIN_WORDS
from protocol.commands import MAX_SECTORS, MAX_TRIM
from protocol.packets import (
    IN_SYNC,
    OUT_OF_SYNC_VERDICT,
    Barrier,
    BarrierAck,
    BlockAck,
    BlockDesc,
    BlockRequest,
    Command,
    Data,
    Empty,
    Features,
    Packet,
    ProtocolParams,
    Raw,
    Sizes,
    StateReply,
    StateReport,
    StateRequest,
    SyncParam,
    SyncUuid,
    Trim,
    Uuids,
    WriteSame,
)

C = Command

u8 = st.integers(0, 255)
u16 = st.integers(0, (1 << 16) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
size_in_sectors = st.integers(0, MAX_SECTORS)
# Room for the largest request after it.
sector = st.integers(0, MAX_SECTORS - (MAX_TRIM >> 9))
name = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=63)
digest = st.binary(min_size=1, max_size=64)


def sectors_up_to(count: int) -> st.SearchStrategy[int]:
    """A size in bytes of 1 to `count` sectors."""
    return st.integers(1, count).map(lambda n: n << 9)


def content(sectors: int) -> st.SearchStrategy[bytes]:
    """Data of that many sectors; what is in them does not matter."""
    return st.builds(lambda byte: bytes([byte]) * (sectors << 9), u8)


data = st.sampled_from([1, 2, 8, 33]).flatmap(content)
small_digest = st.one_of(st.just(b""), digest)
acks = st.builds(BlockAck, sector, u64, st.integers(0, MAX_TRIM >> 9).map(lambda n: n << 9), u32)
requests = st.builds(BlockRequest, sector, u64, sectors_up_to(2048), st.just(b""))
params = st.builds(
    ProtocolParams,
    st.integers(1, 3),
    *(st.integers(0, 10),) * 3,
    u32,
    st.integers(0, 1),
    name,
)
versions = st.tuples(st.integers(1, 200), st.integers(0, 100))

LAYOUTS: dict[tuple[Command, ...], st.SearchStrategy[Packet]] = {
    (C.DATA, C.DATA_REPLY, C.RS_DATA_REPLY): st.builds(
        Data, sector, u64, u32, u32, small_digest, data
    ),
    (C.TRIM, C.ZEROES): st.builds(Trim, sector, u64, u32, u32, sectors_up_to(MAX_TRIM >> 9)),
    (C.WSAME,): st.builds(
        WriteSame, sector, u64, u32, u32, sectors_up_to(8).map(lambda n: n * 8), st.just(b""), data
    ).map(lambda one: one._replace(data=one.data[:512])),
    (
        *(C.RECV_ACK, C.WRITE_ACK, C.RS_WRITE_ACK, C.SUPERSEDED, C.NEG_ACK, C.NEG_DREPLY),
        *(C.NEG_RS_DREPLY, C.RS_IS_IN_SYNC, C.RS_CANCEL, C.RETRY_WRITE),
    ): acks,
    (C.OV_RESULT,): st.builds(
        lambda ack, verdict: ack._replace(block_id=verdict),
        acks,
        st.sampled_from([IN_SYNC, OUT_OF_SYNC_VERDICT]),
    ),
    (C.DATA_REQUEST, C.RS_DATA_REQUEST, C.OV_REQUEST, C.RS_THIN_REQ): requests,
    (C.OV_REPLY, C.CSUM_RS_REQUEST): st.builds(
        lambda request, value: request._replace(digest=value), requests, digest
    ),
    (C.BARRIER,): st.builds(Barrier, u32),
    (C.BARRIER_ACK,): st.builds(BarrierAck, u32, u32),
    (C.PROTOCOL, C.PROTOCOL_UPDATE): params,
    (C.SYNC_PARAM89,): st.builds(SyncParam, u32, name, name, u32, u32, u32, u32),
    (C.UUIDS,): st.builds(Uuids, *(u64,) * 6),
    (C.SIZES,): st.builds(Sizes, *(size_in_sectors,) * 3, u32, u16, u16, *(u32,) * 5, *(u8,) * 3),
    (C.STATE,): st.builds(StateReport, u32),
    (C.STATE_CHG_REQ, C.CONN_ST_CHG_REQ): st.builds(StateRequest, u32, u32),
    (C.STATE_CHG_REPLY, C.CONN_ST_CHG_REPLY): st.builds(
        StateReply, st.integers(-(1 << 31), (1 << 31) - 1)
    ),
    (C.SYNC_UUID,): st.builds(SyncUuid, u64),
    (C.OUT_OF_SYNC, C.RS_DEALLOCATED): st.builds(BlockDesc, sector, sectors_up_to(MAX_TRIM >> 9)),
    (C.CONNECTION_FEATURES,): st.builds(
        lambda low_high, flags, extension: Features(low_high[0], flags, sum(low_high), extension),
        versions,
        u32,
        u32,
    ),
    (C.BITMAP,): st.builds(Raw, st.binary(max_size=PLAIN_WORDS)),
    (C.COMPRESSED_BITMAP,): st.builds(Raw, st.binary(min_size=2, max_size=4080)),
    (C.AUTH_CHALLENGE,): st.builds(Raw, st.binary(min_size=64, max_size=128)),
    (C.AUTH_RESPONSE,): st.builds(Raw, digest),
    (C.DELAY_PROBE,): st.builds(Raw, st.binary(min_size=8, max_size=8)),
    (C.EXTENSION, C.META_EXTENSION): st.builds(Raw, st.binary(min_size=1, max_size=200)),
    (C.UNPLUG_REMOTE, C.PING, C.PING_ACK, C.INITIAL_META, C.INITIAL_DATA): st.just(Empty()),
}

BY_COMMAND = {command: layout for commands, layout in LAYOUTS.items() for command in commands}

EARLY = (Command.INITIAL_DATA, Command.INITIAL_META, Command.CONNECTION_FEATURES)


def packets(*, early: bool = False) -> st.SearchStrategy[tuple[Command, Packet]]:
    """(command, packet) of every command; without `early` only those with an h100 header."""
    commands = [command for command in BY_COMMAND if early or command not in EARLY]

    def with_command(command: Command) -> st.SearchStrategy[tuple[Command, Packet]]:
        return BY_COMMAND[command].map(lambda packet: (command, packet))

    return st.sampled_from(commands).flatmap(with_command)


def digest_size_of(packet: Packet) -> int:
    return len(cast(Data, packet).digest) if isinstance(packet, (Data, WriteSame)) else 0
