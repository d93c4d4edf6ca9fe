"""The payload layouts: a reader and a writer for each, and the table of which command has which.

Rules:
1. A reader may trust the length's bounds of `commands.SPECS`, which `packets.decode` has checked;
   what depends on the content or on what was agreed it checks itself.
2. Pad bytes that the kernel leaves uninitialised are ignored when read and sent as zero.
3. Integers are unsigned and big-endian, except `StateReply.retcode`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from protocol.commands import (
    MAX_DATA,
    MAX_DIGEST,
    MAX_NAME,
    MAX_SECTORS,
    MAX_TRIM,
    Command,
    DpFlags,
    command_name,
)
from protocol.errors import BadLength, BadValue
from protocol.messages import (
    IN_SYNC,
    OUT_OF_SYNC_VERDICT,
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

_BLOCK = Struct(">QQII")
_TRIM = Struct(">QQIII")
_PAIR = Struct(">II")
_PROTOCOL = Struct(">6I")
_SYNC_PARAM = Struct(">I64s64s4I")
_UUIDS = Struct(">6Q")
_SIZES = Struct(">QQQIHH")
_LIMITS = Struct(">5I3Bx")
_U32 = Struct(">I")
_S32 = Struct(">i")
_U64 = Struct(">Q")
_DESC = Struct(">QII")
_FEATURES = Struct(">4I48xII")

REPLICATOR_MARK = 0x72706C63
"""Bytes 64 to 67 of our P_CONNECTION_FEATURES ("rplc"); the extension version follows. A kernel
sends zeroes there and ignores what it gets: 8.4 reserves bytes 16 to 71, 9.x those from 20 on."""

_block_unpack = _BLOCK.unpack
_block_unpack_from = _BLOCK.unpack_from


# --- checks ---------------------------------------------------------------------------------------


def bad_value(command: int, field: str, expected: str, found: object) -> BadValue:
    return BadValue(f"{command_name(command)}: {field}: expected {expected}, found {found}")


def _check_range(command: int, sector: int, size: int, smallest: int, largest: int) -> None:
    if size & 511 or not smallest <= size <= largest:
        wanted = f"a multiple of 512 from {smallest} to {largest} bytes"
        raise bad_value(command, "size", wanted, size)
    if sector + (size >> 9) > MAX_SECTORS:
        raise bad_value(command, "sector", f"an end within {MAX_SECTORS} sectors", sector)


def _text(command: int, field: str, raw: bytes) -> str:
    """The string before the first NUL, which must be there."""
    end = raw.find(b"\0")
    if end < 0:
        raise bad_value(command, field, "a NUL-terminated name", f"{len(raw)} bytes without NUL")
    text = raw[:end]
    if not all(33 <= byte < 127 for byte in text):
        raise bad_value(command, field, "a name in printable ASCII", ascii(text))
    return text.decode("ascii")


def _name_bytes(command: int, field: str, text: str) -> bytes:
    """Text with its NUL, as the wire has it."""
    if not (text.isascii() and all(33 <= ord(letter) < 127 for letter in text)):
        raise bad_value(command, field, "a name in printable ASCII", ascii(text))
    if len(text) >= MAX_NAME:
        raise bad_value(command, field, f"at most {MAX_NAME - 1} characters", len(text))
    return text.encode("ascii") + b"\0"


def _check_digest_size(command: int, digest_size: int) -> None:
    if not 0 <= digest_size <= MAX_DIGEST:
        raise bad_value(command, "digest size", f"0 to {MAX_DIGEST} bytes", digest_size)


# --- decoders: (command, payload, digest size, wsame) -> packet -----------------------------------

Decoder = Callable[[int, bytes, int, bool], Packet]


def _get_data(command: int, payload: bytes, digest_size: int, wsame: bool) -> Data:
    start = 24 + digest_size
    length = len(payload) - start
    if length < 0 or length & 511 or length > MAX_DATA:
        raise BadLength(
            f"{command_name(command)}: expected 24 bytes, a digest of {digest_size} and up to "
            f"{MAX_DATA} bytes of data in whole sectors, found {len(payload)} bytes"
        )
    sector, block_id, seq_num, dp_flags = _block_unpack_from(payload)
    if sector + (length >> 9) > MAX_SECTORS:
        raise bad_value(command, "sector", f"an end within {MAX_SECTORS} sectors", sector)
    if not length and not (command == Command.DATA and dp_flags & DpFlags.FLUSH):
        raise bad_value(command, "data", "at least 512 bytes", 0)
    return Data(sector, block_id, seq_num, dp_flags, payload[24:start], payload[start:])


def _get_trim(command: int, payload: bytes, digest_size: int, wsame: bool) -> Trim:
    packet = Trim._make(_TRIM.unpack(payload))
    _check_range(command, packet.sector, packet.size, 512, MAX_TRIM)
    return packet


def _get_write_same(command: int, payload: bytes, digest_size: int, wsame: bool) -> WriteSame:
    sector, block_id, seq_num, dp_flags, size = _TRIM.unpack_from(payload)
    _check_range(command, sector, size, 512, MAX_TRIM)
    start = 28 + digest_size
    length = len(payload) - start
    if length < 512 or length & (length - 1) or size % length:
        expected = f"28 bytes, a digest of {digest_size} and one logical block"
        raise BadLength(f"{command_name(command)}: expected {expected}, found {len(payload)} bytes")
    digest, block = payload[28:start], payload[start:]
    return WriteSame(sector, block_id, seq_num, dp_flags, size, digest, block)


def _get_block_ack(command: int, payload: bytes, digest_size: int, wsame: bool) -> BlockAck:
    packet = BlockAck._make(_block_unpack(payload))
    size = packet.blksize
    if size & 511 or size > MAX_TRIM or packet.sector + (size >> 9) > MAX_SECTORS:
        _check_range(command, packet.sector, size, 0, MAX_TRIM)
    return packet


def _get_verdict(command: int, payload: bytes, digest_size: int, wsame: bool) -> BlockAck:
    packet = _get_block_ack(command, payload, digest_size, wsame)
    if packet.block_id not in (IN_SYNC, OUT_OF_SYNC_VERDICT):
        expected = f"{IN_SYNC:#x} (equal) or {OUT_OF_SYNC_VERDICT:#x} (different)"
        raise bad_value(command, "verdict", expected, hex(packet.block_id))
    return packet


def _get_request(command: int, payload: bytes, digest_size: int, wsame: bool) -> BlockRequest:
    sector, block_id, size, _ = _block_unpack_from(payload)
    if size & 511 or not 512 <= size <= MAX_DATA or sector + (size >> 9) > MAX_SECTORS:
        _check_range(command, sector, size, 512, MAX_DATA)
    return BlockRequest(sector, block_id, size)


def _get_digest_request(
    command: int, payload: bytes, digest_size: int, wsame: bool
) -> BlockRequest:
    packet = _get_request(command, payload, digest_size, wsame)
    if len(payload) == 24:
        raise BadLength(f"{command_name(command)}: expected 24 bytes and a digest, found 24 bytes")
    return packet._replace(digest=payload[24:])


def _get_barrier(command: int, payload: bytes, digest_size: int, wsame: bool) -> Barrier:
    return Barrier(_PAIR.unpack(payload)[0])


def _get_barrier_ack(command: int, payload: bytes, digest_size: int, wsame: bool) -> BarrierAck:
    return BarrierAck._make(_PAIR.unpack(payload))


def _get_protocol(command: int, payload: bytes, digest_size: int, wsame: bool) -> ProtocolParams:
    numbers = _PROTOCOL.unpack_from(payload)
    _check_protocol(command, numbers)
    protocol, sb0, sb1, sb2, flags, two = numbers
    integrity_alg = _text(command, "integrity_alg", payload[24:])
    return ProtocolParams(protocol, sb0, sb1, sb2, flags, two, integrity_alg)


def _check_protocol(command: int, numbers: tuple[int, ...]) -> None:
    if not 1 <= numbers[0] <= 3:
        raise bad_value(command, "protocol", "1 (A), 2 (B) or 3 (C)", numbers[0])
    for index, code in enumerate(numbers[1:4]):
        if code > 10:
            raise bad_value(command, f"after_sb_{index}p", "a code from 0 to 10", code)
    if numbers[5] > 1:
        raise bad_value(command, "two_primaries", "0 or 1", numbers[5])


def _get_sync_param(command: int, payload: bytes, digest_size: int, wsame: bool) -> SyncParam:
    rate, verify, csums, plan, delay, fill, most = _SYNC_PARAM.unpack(payload)
    verify_alg = _text(command, "verify_alg", verify)
    csums_alg = _text(command, "csums_alg", csums)
    return SyncParam(rate, verify_alg, csums_alg, plan, delay, fill, most)


def _get_uuids(command: int, payload: bytes, digest_size: int, wsame: bool) -> Uuids:
    return Uuids._make(_UUIDS.unpack(payload))


def _get_sizes(command: int, payload: bytes, digest_size: int, wsame: bool) -> Sizes:
    wanted = 56 if wsame else 32
    if len(payload) != wanted:
        why = "agreed" if wsame else "not agreed"
        raise BadLength(
            f"P_SIZES: expected {wanted} bytes (feature WSAME is {why}), found {len(payload)} bytes"
        )
    fields = _SIZES.unpack_from(payload)
    for name, value in zip(("d_size", "u_size", "c_size"), fields, strict=False):
        if value > MAX_SECTORS:
            raise bad_value(command, name, f"at most {MAX_SECTORS} sectors", value)
    if wsame:
        return Sizes(*fields, *_LIMITS.unpack_from(payload, 32))
    return Sizes(*fields)


def _get_state(command: int, payload: bytes, digest_size: int, wsame: bool) -> StateReport:
    return StateReport(_U32.unpack(payload)[0])


def _get_state_request(command: int, payload: bytes, digest_size: int, wsame: bool) -> StateRequest:
    return StateRequest._make(_PAIR.unpack(payload))


def _get_state_reply(command: int, payload: bytes, digest_size: int, wsame: bool) -> StateReply:
    return StateReply(_S32.unpack(payload)[0])


def _get_sync_uuid(command: int, payload: bytes, digest_size: int, wsame: bool) -> SyncUuid:
    return SyncUuid(_U64.unpack(payload)[0])


def _get_desc(command: int, payload: bytes, digest_size: int, wsame: bool) -> BlockDesc:
    sector, size, _ = _DESC.unpack(payload)
    _check_range(command, sector, size, 512, MAX_TRIM)
    return BlockDesc(sector, size)


def _get_features(command: int, payload: bytes, digest_size: int, wsame: bool) -> Features:
    low, flags, high, _, mark, extension = _FEATURES.unpack(payload)
    high = high or low
    if low > high:
        raise bad_value(command, "protocol_max", f"at least protocol_min {low}", high)
    return Features(low, flags, high, extension if mark == REPLICATOR_MARK else 0)


def _get_raw(command: int, payload: bytes, digest_size: int, wsame: bool) -> Raw:
    return Raw(payload)


def _get_empty(command: int, payload: bytes, digest_size: int, wsame: bool) -> Empty:
    return _EMPTY


_EMPTY = Empty()


# --- encoders: (command, packet, wsame) -> payload ------------------------------------------------


def _put_data(command: int, packet: Data, wsame: bool) -> bytes:
    head = _BLOCK.pack(packet.sector, packet.block_id, packet.seq_num, packet.dp_flags)
    _check_digest_size(command, len(packet.digest))
    if len(packet.data) & 511:
        raise bad_value(command, "data", "whole sectors of 512 bytes", len(packet.data))
    return b"".join((head, packet.digest, packet.data))


def _put_trim(command: int, packet: Trim, wsame: bool) -> bytes:
    _check_range(command, packet.sector, packet.size, 512, MAX_TRIM)
    return _TRIM.pack(*packet)


def _put_write_same(command: int, packet: WriteSame, wsame: bool) -> bytes:
    return _TRIM.pack(*packet[:5]) + packet.digest + packet.data


def _put_block_ack(command: int, packet: BlockAck, wsame: bool) -> bytes:
    return _BLOCK.pack(*packet)


def _put_request(command: int, packet: BlockRequest, wsame: bool) -> bytes:
    _check_range(command, packet.sector, packet.blksize, 512, MAX_DATA)
    return _BLOCK.pack(packet.sector, packet.block_id, packet.blksize, 0) + packet.digest


def _put_barrier(command: int, packet: Barrier, wsame: bool) -> bytes:
    return _PAIR.pack(packet.barrier, 0)


def _put_pair(command: int, packet: BarrierAck | StateRequest, wsame: bool) -> bytes:
    return _PAIR.pack(*packet)


def _put_protocol(command: int, packet: ProtocolParams, wsame: bool) -> bytes:
    _check_protocol(command, packet[:6])
    numbers = _PROTOCOL.pack(*packet[:6])
    return numbers + _name_bytes(command, "integrity_alg", packet.integrity_alg)


def _put_sync_param(command: int, packet: SyncParam, wsame: bool) -> bytes:
    return _SYNC_PARAM.pack(
        packet.resync_rate,
        _name_bytes(command, "verify_alg", packet.verify_alg),
        _name_bytes(command, "csums_alg", packet.csums_alg),
        *packet[3:],
    )


def _put_uuids(command: int, packet: Uuids, wsame: bool) -> bytes:
    return _UUIDS.pack(*packet)


def _put_sizes(command: int, packet: Sizes, wsame: bool) -> bytes:
    payload = _SIZES.pack(*packet[:6])
    return payload + _LIMITS.pack(*packet[6:]) if wsame else payload


def _put_state(command: int, packet: StateReport, wsame: bool) -> bytes:
    return _U32.pack(packet.word)


def _put_state_reply(command: int, packet: StateReply, wsame: bool) -> bytes:
    return _S32.pack(packet.retcode)


def _put_sync_uuid(command: int, packet: SyncUuid, wsame: bool) -> bytes:
    return _U64.pack(packet.uuid)


def _put_desc(command: int, packet: BlockDesc, wsame: bool) -> bytes:
    _check_range(command, packet.sector, packet.size, 512, MAX_TRIM)
    return _DESC.pack(packet.sector, packet.size, 0)


def _put_features(command: int, packet: Features, wsame: bool) -> bytes:
    mark = REPLICATOR_MARK if packet.replicator else 0
    low, flags, high, extension = packet
    return _FEATURES.pack(low, flags, high, 0, mark, extension)


def _put_raw(command: int, packet: Raw, wsame: bool) -> bytes:
    return packet.payload


def _put_empty(command: int, packet: Empty, wsame: bool) -> bytes:
    return b""


# --- the table ------------------------------------------------------------------------------------

Encoder = Callable[[int, Any, bool], bytes]
Layout = tuple[type[Packet], Decoder, Encoder]

_DATA: Layout = (Data, _get_data, _put_data)
_TRIMS: Layout = (Trim, _get_trim, _put_trim)
_ACK: Layout = (BlockAck, _get_block_ack, _put_block_ack)
_REQUEST: Layout = (BlockRequest, _get_request, _put_request)
_DIGEST_REQUEST: Layout = (BlockRequest, _get_digest_request, _put_request)
_PARAMS: Layout = (ProtocolParams, _get_protocol, _put_protocol)
_STATE_REQUEST: Layout = (StateRequest, _get_state_request, _put_pair)
_STATE_REPLY: Layout = (StateReply, _get_state_reply, _put_state_reply)
_BLOCK_DESC: Layout = (BlockDesc, _get_desc, _put_desc)
_RAW: Layout = (Raw, _get_raw, _put_raw)
_NOTHING: Layout = (Empty, _get_empty, _put_empty)

LAYOUTS: dict[int, Layout] = {
    Command.DATA: _DATA,
    Command.DATA_REPLY: _DATA,
    Command.RS_DATA_REPLY: _DATA,
    Command.BARRIER: (Barrier, _get_barrier, _put_barrier),
    Command.BITMAP: _RAW,
    Command.UNPLUG_REMOTE: _NOTHING,
    Command.DATA_REQUEST: _REQUEST,
    Command.RS_DATA_REQUEST: _REQUEST,
    Command.PROTOCOL: _PARAMS,
    Command.UUIDS: (Uuids, _get_uuids, _put_uuids),
    Command.SIZES: (Sizes, _get_sizes, _put_sizes),
    Command.STATE: (StateReport, _get_state, _put_state),
    Command.SYNC_UUID: (SyncUuid, _get_sync_uuid, _put_sync_uuid),
    Command.AUTH_CHALLENGE: _RAW,
    Command.AUTH_RESPONSE: _RAW,
    Command.STATE_CHG_REQ: _STATE_REQUEST,
    Command.PING: _NOTHING,
    Command.PING_ACK: _NOTHING,
    Command.RECV_ACK: _ACK,
    Command.WRITE_ACK: _ACK,
    Command.RS_WRITE_ACK: _ACK,
    Command.SUPERSEDED: _ACK,
    Command.NEG_ACK: _ACK,
    Command.NEG_DREPLY: _ACK,
    Command.NEG_RS_DREPLY: _ACK,
    Command.BARRIER_ACK: (BarrierAck, _get_barrier_ack, _put_pair),
    Command.STATE_CHG_REPLY: _STATE_REPLY,
    Command.OV_REQUEST: _REQUEST,
    Command.OV_REPLY: _DIGEST_REQUEST,
    Command.OV_RESULT: (BlockAck, _get_verdict, _put_block_ack),
    Command.CSUM_RS_REQUEST: _DIGEST_REQUEST,
    Command.RS_IS_IN_SYNC: _ACK,
    Command.SYNC_PARAM89: (SyncParam, _get_sync_param, _put_sync_param),
    Command.COMPRESSED_BITMAP: _RAW,
    Command.DELAY_PROBE: _RAW,
    Command.OUT_OF_SYNC: _BLOCK_DESC,
    Command.RS_CANCEL: _ACK,
    Command.CONN_ST_CHG_REQ: _STATE_REQUEST,
    Command.CONN_ST_CHG_REPLY: _STATE_REPLY,
    Command.RETRY_WRITE: _ACK,
    Command.PROTOCOL_UPDATE: _PARAMS,
    Command.TRIM: _TRIMS,
    Command.RS_THIN_REQ: _REQUEST,
    Command.RS_DEALLOCATED: _BLOCK_DESC,
    Command.WSAME: (WriteSame, _get_write_same, _put_write_same),
    Command.ZEROES: _TRIMS,
    Command.EXTENSION: _RAW,
    Command.META_EXTENSION: _RAW,
    Command.INITIAL_META: _NOTHING,
    Command.INITIAL_DATA: _NOTHING,
    Command.CONNECTION_FEATURES: (Features, _get_features, _put_features),
}
