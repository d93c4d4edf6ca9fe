"""The codec: `decode` and `encode` for every command, and fast paths for the three hot ones.

Rules:
1. `decode(encode(packet))` is the packet, and `encode(decode(payload))` the payload, save for pad
   bytes that the kernel leaves uninitialised: those are ignored when read and sent as zero.
2. Only what one packet can show about itself is checked here (lengths, ranges, strings). Whether it
   fits the device, the state of the connection or an earlier packet is the engine's business.
3. Every refusal is a WireError that names the command.

All integers are unsigned and big-endian, except `StateReply.retcode`.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final

from protocol.commands import (
    CONNECTION_VOLUME,
    SPECS,
    Command,
    CommandSpec,
    DpFlags,
    command_name,
    expected_length,
)
from protocol.errors import BadLength, BadValue, UnknownCommand, WrongPhase
from protocol.layouts import LAYOUTS, Decoder, bad_value
from protocol.messages import (
    IN_SYNC,
    OUT_OF_SYNC_VERDICT,
    SYNCER_ID,
    Barrier,
    BarrierAck,
    BlockAck,
    BlockDesc,
    BlockRequest,
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
from protocol.quick import MAGIC_100, block_ack, data_packet

__all__ = [
    "IN_SYNC",
    "MAGIC_80",
    "MAGIC_100",
    "OUT_OF_SYNC_VERDICT",
    "SPECS",
    "SYNCER_ID",
    "Barrier",
    "BarrierAck",
    "BlockAck",
    "BlockDesc",
    "BlockRequest",
    "Command",
    "CommandSpec",
    "Data",
    "DpFlags",
    "Empty",
    "Features",
    "Packet",
    "ProtocolParams",
    "Raw",
    "Sizes",
    "StateReply",
    "StateReport",
    "StateRequest",
    "SyncParam",
    "SyncUuid",
    "Trim",
    "Uuids",
    "WriteSame",
    "block_ack",
    "block_request",
    "command_name",
    "data_header",
    "data_packet",
    "decode",
    "encode",
    "encode_h80",
]

MAGIC_80 = 0x83740267

_H80 = Struct(">IHH")
_H100 = Struct(">IHHII")
_BLOCK_FRAME: Final = Struct(">IHHIIQQII")
_block_frame_pack = _BLOCK_FRAME.pack


# --- fast paths -----------------------------------------------------------------------------------


def data_header(
    volume: int,
    command: int,
    sector: int,
    block_id: int,
    seq: int,
    flags: int,
    digest: bytes,
    data_length: int,
) -> bytes:
    """Everything of a P_DATA, P_DATA_REPLY or P_RS_DATA_REPLY that stands before its data."""
    length = 24 + len(digest) + data_length
    return (
        _block_frame_pack(MAGIC_100, volume, command, length, 0, sector, block_id, seq, flags)
        + digest
    )


def block_request(
    volume: int, command: int, sector: int, block_id: int, size: int, digest: bytes = b""
) -> bytes:
    """A whole frame of any command that carries a BlockRequest."""
    length = 24 + len(digest)
    return (
        _block_frame_pack(MAGIC_100, volume, command, length, 0, sector, block_id, size, 0) + digest
    )


# --- everything ---------------------------------------------------------------------------------

_DECODERS: dict[int, tuple[int, int, Decoder]] = {
    int(command): (SPECS[command].min_payload, SPECS[command].max_payload, layout[1])
    for command, layout in LAYOUTS.items()
}


def decode(command: int, payload: bytes, *, digest_size: int = 0, wsame: bool = True) -> Packet:
    """The payload of one frame as a packet.

    digest_size: bytes of digest before the data of data packets, 0 unless the *sender* uses
    data-integrity-alg (P_OV_REPLY and P_CSUM_RS_REQUEST carry any digest: it is the caller's to
    compare). wsame: whether feature WSAME was agreed, which decides the length of P_SIZES.
    Raises UnknownCommand, BadLength, BadValue.
    """
    row = _DECODERS.get(command)
    if row is None:
        raise UnknownCommand(f"expected a known command, found {command_name(command)}")
    low, high, decoder = row
    if not low <= len(payload) <= high:
        expected = expected_length(command)
        raise BadLength(f"{command_name(command)}: expected {expected}, found {len(payload)} bytes")
    return decoder(command, payload, digest_size, wsame)


def encode(volume: int, command: int, packet: Packet, *, wsame: bool = True) -> bytes:
    """A whole frame with its h100 header. Raises WireError for a packet that must not be sent."""
    payload = _encode_payload(command, packet, wsame)
    if not 0 <= volume <= CONNECTION_VOLUME:
        raise bad_value(command, "volume", f"0 to {CONNECTION_VOLUME}", volume)
    return _H100.pack(MAGIC_100, volume, command, len(payload), 0) + payload


def encode_h80(command: int, packet: Packet) -> bytes:
    """A whole frame with its h80 header: what is sent before the protocol version is agreed."""
    spec = SPECS.get(command)
    if spec is None or not spec.early:
        raise WrongPhase(f"{command_name(command)}: cannot be sent with an h80 header")
    payload = _encode_payload(command, packet, True)
    return _H80.pack(MAGIC_80, command, len(payload)) + payload


def _encode_payload(command: int, packet: Packet, wsame: bool) -> bytes:
    layout = LAYOUTS.get(command)
    if layout is None:
        raise UnknownCommand(f"expected a known command, found {command_name(command)}")
    kind, _, encoder = layout
    if not isinstance(packet, kind):
        raise bad_value(command, "packet", kind.__name__, type(packet).__name__)
    try:
        payload = encoder(command, packet, wsame)
    except StructError as error:
        raise BadValue(f"{command_name(command)}: {packet!r}: {error}") from error
    spec = SPECS[command]
    if not spec.min_payload <= len(payload) <= spec.max_payload:
        expected = expected_length(command)
        raise BadLength(f"{command_name(command)}: expected {expected}, found {len(payload)} bytes")
    return payload
