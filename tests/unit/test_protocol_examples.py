"""Packets written down byte by byte from the rules of the protocol, apart from our own encoder."""

from __future__ import annotations

import pytest

from protocol.commands import DpFlags
from protocol.framing import FrameReader
from protocol.packets import (
    IN_SYNC,
    SYNCER_ID,
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
    decode,
    encode,
    encode_h80,
)
from protocol.states import Conn, Disk, Role, StateWord

C = Command
HANDLE = 0xC0AB34128088FFFF
WRITE_ACK = DpFlags.SEND_WRITE_ACK


def unhex(text: str) -> bytes:
    """Hexadecimal with blanks; "00*8" is a byte repeated, "|" divides for the eye."""
    parts = [part.split("*") for part in text.replace("|", " ").split()]
    return b"".join(bytes.fromhex(part[0]) * int(part[1] if part[1:] else 1) for part in parts)


def h100(command: str, length: str) -> str:
    return f"86 20 ec 20 00 00 00 {command} {length} 00*4 | "


EARLY: list[tuple[Command, Packet, str]] = [
    (C.INITIAL_DATA, Empty(), "83 74 02 67 ff f2 00 00"),
    (C.INITIAL_META, Empty(), "83 74 02 67 ff f1 00 00"),
    (
        C.CONNECTION_FEATURES,
        Features(86, 15, 101),
        "83 74 02 67 ff fe 00 48 | 00 00 00 56 | 00 00 00 0f | 00 00 00 65 | 00*60",
    ),
    (
        C.CONNECTION_FEATURES,
        Features(100, 5, 101),
        "83 74 02 67 ff fe 00 48 | 00 00 00 64 | 00 00 00 05 | 00 00 00 65 | 00*60",
    ),
]

LIMITS = {"io_opt": 0, "alignment_offset": 0}
KERNEL_SIZES = Sizes(
    *(262144, 0, 262144, 1048576, 0, 0),
    **LIMITS,
    physical_block_size=4096,
    logical_block_size=512,
    io_min=4096,
    discard_enabled=1,
)
FRESH_SIZES = Sizes(262144, 0, 0, 1048576)

ESTABLISHED: list[tuple[Command, Packet, str]] = [
    (C.PROTOCOL, ProtocolParams(3), h100("0b", "00 00 00 19") + "00 00 00 03 00*20 | 00"),
    (
        C.SYNC_PARAM89,
        SyncParam(250),
        h100("23", "00 00 00 94")
        + "00 00 00 fa | 00*128 | 00 00 00 14 00 00 00 0a 00 00 00 64 00 01 90 00",
    ),
    (
        C.SYNC_PARAM89,
        SyncParam(0x100000, c_plan_ahead=0, c_max_rate=0x100000),
        h100("23", "00 00 00 94")
        + "00 10 00 00 00*128 00 00 00 00 00 00 00 0a 00 00 00 64 00 10 00 00",
    ),
    (
        C.SIZES,
        KERNEL_SIZES,
        h100("0d", "00 00 00 38")
        + "00 00 00 00 00 04 00 00 | 00*8 | 00 00 00 00 00 04 00 00 | 00 10 00 00 | 00 00 00 00 |"
        "00 00 10 00 00 00 02 00 00 00 00 00 00 00 10 00 00 00 00 00 01 00 00 00",
    ),
    (
        C.SIZES,
        FRESH_SIZES,
        h100("0d", "00 00 00 38")
        + "00 00 00 00 00 04 00 00 | 00*8 | 00*8 | 00 10 00 00 | 00 00 00 00 |"
        "00 00 02 00 00 00 02 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 00 00",
    ),
    (
        C.UUIDS,
        Uuids(4, 0, 0, 0, 0x8000, 0),
        h100("0c", "00 00 00 30") + "00*7 04 | 00*8 | 00*8 | 00*8 | 00*6 80 00 | 00*8",
    ),
    (
        C.UUIDS,
        Uuids(0x0102030405060709, 0, 0, 0),
        h100("0c", "00 00 00 30") + "01 02 03 04 05 06 07 09 | 00*40",
    ),
    (C.STATE, StateReport(0xC892), h100("0e", "00 00 00 04") + "00 00 c8 92"),
    (
        C.SYNC_UUID,
        SyncUuid(0xA0B1C2D3E4F50617),
        h100("0f", "00 00 00 08") + "a0 b1 c2 d3 e4 f5 06 17",
    ),
    (
        C.AUTH_CHALLENGE,
        Raw(bytes(range(64))),
        h100("10", "00 00 00 40") + " ".join(f"{n:02x}" for n in range(64)),
    ),
    (C.AUTH_RESPONSE, Raw(b"\x20" * 20), h100("11", "00 00 00 14") + "20*20"),
    (
        C.COMPRESSED_BITMAP,
        Raw(unhex("b2 7f cf 5e 00")),
        h100("24", "00 00 00 05") + "b2 7f cf 5e 00",
    ),
    (C.BITMAP, Raw(bytes(4080)), h100("04", "00 00 0f f0") + "00*4080"),
    (C.BITMAP, Raw(bytes(16)), h100("04", "00 00 00 10") + "00*16"),
    (C.BITMAP, Raw(b""), "86 20 ec 20 00 00 00 04 00 00 00 00 00 00 00 00"),
    (
        C.RS_DATA_REQUEST,
        BlockRequest(0, SYNCER_ID, 65536),
        h100("09", "00 00 00 18") + "00*8 ff*8 00 01 00 00 00 00 00 00",
    ),
    (
        C.RS_DATA_REPLY,
        Data(0, SYNCER_ID, 0, 0, b"", b"\x5a" * 65536),
        h100("02", "00 01 00 18") + "00*8 ff*8 00 00 00 00 00 00 00 00 | 5a*65536",
    ),
    (
        C.RS_WRITE_ACK,
        BlockAck(0, SYNCER_ID, 65536, 1),
        h100("17", "00 00 00 18") + "00*8 ff*8 00 01 00 00 00 00 00 01",
    ),
    (
        C.OUT_OF_SYNC,
        BlockDesc(2048, 4096),
        h100("28", "00 00 00 10") + "00 00 00 00 00 00 08 00 | 00 00 10 00 | 00 00 00 00",
    ),
    (
        C.RS_THIN_REQ,
        BlockRequest(0, SYNCER_ID, 1 << 20),
        h100("32", "00 00 00 18") + "00*8 ff*8 00 10 00 00 00 00 00 00",
    ),
    (
        C.RS_DEALLOCATED,
        BlockDesc(0, 1 << 20),
        h100("33", "00 00 00 10") + "00*8 00 10 00 00 00 00 00 00",
    ),
    (
        C.DATA,
        Data(2048, HANDLE, 1, DpFlags.RW_SYNC | WRITE_ACK, b"", b"\x33" * 4096),
        h100("00", "00 00 10 18")
        + "00 00 00 00 00 00 08 00 | c0 ab 34 12 80 88 ff ff | 00 00 00 01 | 00 00 01 02 | 33*4096",
    ),
    (
        C.DATA,
        Data(2048, 1, 1, WRITE_ACK, b"", bytes(4096)),
        h100("00", "00 00 10 18")
        + "00 00 00 00 00 00 08 00 | 00*7 01 | 00 00 00 01 | 00 00 01 00 | 00*4096",
    ),
    (
        C.WRITE_ACK,
        BlockAck(2048, HANDLE, 4096, 0x202),
        h100("16", "00 00 00 18")
        + "00 00 00 00 00 00 08 00 | c0 ab 34 12 80 88 ff ff | 00 00 10 00 | 00 00 02 02",
    ),
    (C.BARRIER, Barrier(0x01000000), h100("03", "00 00 00 08") + "01 00 00 00 | 00 00 00 00"),
    (
        C.BARRIER_ACK,
        BarrierAck(0x01000000, 1),
        h100("1c", "00 00 00 08") + "01 00 00 00 | 00 00 00 01",
    ),
    (
        C.DATA_REQUEST,
        BlockRequest(2048, HANDLE, 4096),
        h100("08", "00 00 00 18")
        + "00 00 00 00 00 00 08 00 | c0 ab 34 12 80 88 ff ff | 00 00 10 00 | 00*4",
    ),
    (
        C.DATA_REPLY,
        Data(2048, HANDLE, 0, 0, b"", b"\x44" * 4096),
        h100("01", "00 00 10 18")
        + "00 00 00 00 00 00 08 00 | c0 ab 34 12 80 88 ff ff | 00*8 | 44*4096",
    ),
    (
        C.TRIM,
        Trim(8192, HANDLE, 2, DpFlags.DISCARD | WRITE_ACK, 1 << 20),
        h100("31", "00 00 00 1c")
        + "00 00 00 00 00 00 20 00 | c0 ab 34 12 80 88 ff ff | 00 00 00 02 | 00 00 01 40 |"
        "00 10 00 00",
    ),
    (
        C.OV_REQUEST,
        BlockRequest(0, SYNCER_ID, 4096),
        h100("1e", "00 00 00 18") + "00*8 ff*8 00 00 10 00 00 00 00 00",
    ),
    (
        C.OV_REPLY,
        BlockRequest(0, SYNCER_ID, 4096, b"\x77" * 20),
        h100("1f", "00 00 00 2c") + "00*8 ff*8 00 00 10 00 00 00 00 00 | 77*20",
    ),
    (
        C.OV_RESULT,
        BlockAck(0, IN_SYNC, 4096, 1),
        h100("20", "00 00 00 18") + "00*8 | 00 00 00 00 00 00 12 67 | 00 00 10 00 00 00 00 01",
    ),
    (C.UNPLUG_REMOTE, Empty(), h100("07", "00 00 00 00")),
    (C.PING, Empty(), h100("13", "00 00 00 00")),
    (C.PING_ACK, Empty(), h100("14", "00 00 00 00")),
    (
        C.STATE_CHG_REQ,
        StateRequest(3, 1),
        h100("12", "00 00 00 08") + "00 00 00 03 | 00 00 00 01",
    ),
    (C.STATE_CHG_REPLY, StateReply(1), h100("1d", "00 00 00 04") + "00 00 00 01"),
    (C.STATE_CHG_REPLY, StateReply(-1), h100("1d", "00 00 00 04") + "ff ff ff ff"),
    (
        C.CONN_ST_CHG_REQ,
        StateRequest(0x1F0, 0x10),
        h100("2a", "00 00 00 08") + "00 00 01 f0 | 00 00 00 10",
    ),
    (C.CONN_ST_CHG_REPLY, StateReply(1), h100("2b", "00 00 00 04") + "00 00 00 01"),
]


def ids(rows: list[tuple[Command, Packet, str]]) -> list[str]:
    return [command.name for command, _, _ in rows]


@pytest.mark.parametrize(("command", "packet", "text"), EARLY, ids=ids(EARLY))
def test_the_first_packets_have_these_bytes(command: Command, packet: Packet, text: str) -> None:
    raw = unhex(text)
    assert encode_h80(command, packet) == raw
    reader = FrameReader()
    reader.feed(raw)
    frame = reader.next_frame()
    assert frame and (frame.command, frame.volume) == (command, 0)
    assert decode(command, frame.payload) == packet


@pytest.mark.parametrize(("command", "packet", "text"), ESTABLISHED, ids=ids(ESTABLISHED))
def test_an_established_connections_packets_have_these_bytes(
    command: Command, packet: Packet, text: str
) -> None:
    raw = unhex(text)
    assert encode(0, command, packet) == raw
    reader = FrameReader()
    reader.switch_to_h100()
    reader.feed(raw)
    frame = reader.next_frame()
    assert frame and (frame.command, frame.volume) == (command, 0)
    assert decode(command, frame.payload) == packet


S, P = Role.Secondary, Role.Primary
UP, INCONSISTENT, UNKNOWN = Disk.UpToDate, Disk.Inconsistent, Disk.DUnknown


@pytest.mark.parametrize(
    ("word", "state"),
    [
        (0x0000D081, StateWord(P, Role.Unknown, Conn.WFConnection, UP, UNKNOWN)),
        (0x0000C892, StateWord(S, Role.Unknown, Conn.WFReportParams, INCONSISTENT, UNKNOWN)),
        (0x0000D092, StateWord(S, Role.Unknown, Conn.WFReportParams, UP, UNKNOWN)),
        (0x0000D091, StateWord(P, Role.Unknown, Conn.WFReportParams, UP, UNKNOWN)),
        (0x000090D9, StateWord(P, S, Conn.WFBitMapS, UP, INCONSISTENT)),
        (0x000108E6, StateWord(S, P, Conn.WFBitMapT, INCONSISTENT, UP)),
        (0x00010AE6, StateWord(S, P, Conn.WFBitMapT, Disk.Outdated, UP)),
        (0x00009109, StateWord(P, S, Conn.SyncSource, UP, INCONSISTENT)),
        (0x00010916, StateWord(S, P, Conn.SyncTarget, INCONSISTENT, UP)),
        (0x000110A6, StateWord(S, P, Conn.Connected, UP, UP)),
        (0x000110A9, StateWord(P, S, Conn.Connected, UP, UP)),
        (0x000110AA, StateWord(S, S, Conn.Connected, UP, UP)),
        (0x0000F169, StateWord(P, S, Conn.Ahead, UP, Disk.Consistent)),
    ],
)
def test_state_words_of_common_situations(word: int, state: StateWord) -> None:
    assert state.pack() == word
    assert StateWord.unpack(word) == state


def test_bit_23_of_a_state_word_is_drbd_9s_business_and_ignored() -> None:
    assert StateWord.unpack(0x110A9 | 1 << 23) == StateWord.unpack(0x110A9)
