"""Every command's payload: what is encoded is what is decoded, and what is wrong is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import (
    CONNECTION_VOLUME,
    MAX_DATA,
    MAX_SECTORS,
    MAX_TRIM,
    SPECS,
    command_name,
)
from protocol.errors import BadLength, BadValue, UnknownCommand, WireError, WrongPhase
from protocol.packets import (
    SYNCER_ID,
    Barrier,
    BlockAck,
    BlockDesc,
    BlockRequest,
    Command,
    Data,
    DpFlags,
    Empty,
    Features,
    Packet,
    ProtocolParams,
    Raw,
    Sizes,
    StateReport,
    SyncParam,
    Trim,
    WriteSame,
    block_ack,
    block_request,
    data_header,
    decode,
    encode,
    encode_h80,
)
from tests.vectors.strategies import BY_COMMAND, EARLY, digest_size_of, packets

COMMANDS = list(Command)


def frame_of(command: Command, packet: Packet, volume: int = 0) -> bytes:
    if command in EARLY:
        return encode_h80(command, packet)
    return encode(volume, command, packet)


def payload_of(command: Command, packet: Packet) -> bytes:
    return frame_of(command, packet)[8 if command in EARLY else 16 :]


def test_every_command_has_bounds_a_layout_and_a_strategy() -> None:
    assert set(SPECS) == set(COMMANDS) == set(BY_COMMAND)


@given(packets(early=True))
def test_decoding_gives_back_what_was_encoded(case: tuple[Command, Packet]) -> None:
    command, packet = case
    payload = payload_of(command, packet)
    if isinstance(packet, Features) and not packet.replicator:
        assert payload[16:] == bytes(56)
    assert decode(command, payload, digest_size=digest_size_of(packet)) == packet


@given(packets(early=True))
def test_every_encoded_length_is_within_the_bounds_of_the_table(
    case: tuple[Command, Packet],
) -> None:
    spec = SPECS[case[0]]
    assert spec.min_payload <= len(payload_of(*case)) <= spec.max_payload


@given(packets(early=True), st.data())
def test_a_truncated_payload_is_refused_or_is_another_valid_packet(
    case: tuple[Command, Packet], draw: st.DataObject
) -> None:
    command, packet = case
    payload = payload_of(command, packet)
    cut = draw.draw(st.integers(0, max(0, len(payload) - 1)))
    try:
        shorter = decode(command, payload[:cut], digest_size=digest_size_of(packet))
    except WireError as error:
        assert command_name(command) in str(error)
        return
    assert SPECS[command].variable or not payload
    assert shorter != packet or not payload


@given(st.sampled_from(COMMANDS), st.data())
def test_garbage_raises_nothing_but_a_wire_error(command: Command, draw: st.DataObject) -> None:
    spec = SPECS[command]
    length = spec.min_payload + draw.draw(st.integers(-2, 400))
    payload = draw.draw(st.binary(min_size=max(0, length), max_size=max(0, length)))
    digest_size = draw.draw(st.integers(0, 64))
    wsame = draw.draw(st.booleans())
    try:
        decode(command, payload, digest_size=digest_size, wsame=wsame)
    except WireError as error:
        assert command_name(command) in str(error)


@given(st.integers(0, 0xFFFF).filter(lambda code: code not in SPECS), st.binary(max_size=100))
def test_an_unknown_command_is_refused_by_its_number(code: int, payload: bytes) -> None:
    with pytest.raises(UnknownCommand, match=f"{code:#06x}"):
        decode(code, payload)


@given(packets(early=True), st.binary(min_size=1, max_size=8))
def test_a_fixed_payload_with_bytes_after_it_is_refused(
    case: tuple[Command, Packet], extra: bytes
) -> None:
    command, packet = case
    if not SPECS[command].variable:
        with pytest.raises(BadLength):
            decode(command, payload_of(command, packet) + extra)


# --- fast paths -----------------------------------------------------------------------------------


@given(packets(), st.integers(0, CONNECTION_VOLUME))
def test_the_fast_paths_make_the_same_bytes_as_encode(
    case: tuple[Command, Packet], volume: int
) -> None:
    command, packet = case
    if isinstance(packet, Data):
        fast = data_header(volume, command, *packet[:5], len(packet.data)) + packet.data
    elif isinstance(packet, BlockAck):
        fast = block_ack(volume, command, *packet)
    elif isinstance(packet, BlockRequest):
        fast = block_request(volume, command, *packet)
    else:
        return
    assert fast == encode(volume, command, packet)


# --- data -----------------------------------------------------------------------------------------

FIRST = Data(8, 1, 1, DpFlags.SEND_WRITE_ACK, b"", bytes(512))


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(FIRST._replace(data=bytes(511)), id="not whole sectors"),
        pytest.param(FIRST._replace(data=bytes(MAX_DATA + 512)), id="more than 1 MiB"),
        pytest.param(FIRST._replace(digest=bytes(65)), id="digest longer than any"),
        pytest.param(FIRST._replace(sector=1 << 64), id="sector of more than 64 bits"),
        pytest.param(FIRST._replace(seq_num=-1), id="negative"),
    ],
)
def test_data_that_must_not_be_sent_is_refused(packet: Data) -> None:
    with pytest.raises(WireError, match="P_DATA"):
        encode(0, Command.DATA, packet)


def test_the_largest_data_packet_goes_through_with_the_largest_digest() -> None:
    largest = FIRST._replace(digest=bytes(64), data=bytes(MAX_DATA))
    payload = payload_of(Command.DATA, largest)
    assert len(payload) == SPECS[Command.DATA].max_payload
    assert decode(Command.DATA, payload, digest_size=64) == largest


def test_one_sector_more_than_the_largest_is_refused_even_without_a_digest() -> None:
    head = data_header(0, Command.DATA, 0, 1, 1, 0, b"", MAX_DATA)[16:]
    with pytest.raises(BadLength, match="up to 1048576 bytes"):
        decode(Command.DATA, head + bytes(MAX_DATA + 64))


def test_a_missing_digest_shows_as_a_wrong_length() -> None:
    payload = payload_of(Command.DATA, FIRST)
    with pytest.raises(BadLength, match="a digest of 4"):
        decode(Command.DATA, payload, digest_size=4)


def test_an_empty_write_is_a_flush_or_an_error() -> None:
    flush = Data(0, 7, 1, DpFlags.FLUSH, b"", b"")
    assert decode(Command.DATA, payload_of(Command.DATA, flush)) == flush
    with pytest.raises(BadValue, match="at least 512 bytes"):
        decode(Command.DATA, payload_of(Command.DATA, flush._replace(dp_flags=0)))
    with pytest.raises(BadValue, match="P_DATA_REPLY"):
        decode(Command.DATA_REPLY, payload_of(Command.DATA_REPLY, flush))


def test_data_beyond_the_largest_device_is_refused() -> None:
    last = FIRST._replace(sector=MAX_SECTORS - 1)
    assert decode(Command.DATA, payload_of(Command.DATA, last)) == last
    with pytest.raises(BadValue, match="sector"):
        decode(Command.DATA, payload_of(Command.DATA, FIRST._replace(sector=MAX_SECTORS)))


def test_a_block_id_is_eight_bytes_in_the_order_of_the_wire() -> None:
    handle = bytes.fromhex("c0ab34128088ffff")
    frame = block_ack(0, Command.WRITE_ACK, 0, int.from_bytes(handle, "big"), 4096, 1)
    assert frame[24:32] == handle


# --- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 511, 513, MAX_DATA + 512])
def test_a_request_is_512_bytes_to_1_mib_in_whole_sectors(size: int) -> None:
    payload = block_request(0, Command.DATA_REQUEST, 0, 1, size)[16:]
    with pytest.raises(BadValue, match=f"P_DATA_REQUEST: size: .*found {size}"):
        decode(Command.DATA_REQUEST, payload)
    with pytest.raises(BadValue):
        encode(0, Command.DATA_REQUEST, BlockRequest(0, 1, size))


@pytest.mark.parametrize("size", [0, 100, MAX_TRIM + 512])
@pytest.mark.parametrize("command", [Command.TRIM, Command.ZEROES])
def test_a_trim_is_512_bytes_to_128_mib_in_whole_sectors(command: Command, size: int) -> None:
    payload = payload_of(command, Trim(0, 1, 1, 64, 512))[:24] + size.to_bytes(4, "big")
    with pytest.raises(BadValue, match="size"):
        decode(command, payload)
    with pytest.raises(BadValue, match="size"):
        encode(0, command, Trim(0, 1, 1, 64, size))


def test_an_acknowledgement_may_be_as_large_as_the_largest_trim_or_empty() -> None:
    for size in (0, MAX_TRIM):
        ack = BlockAck(0, 1, size, 1)
        assert decode(Command.WRITE_ACK, payload_of(Command.WRITE_ACK, ack)) == ack
    too_large = block_ack(0, Command.WRITE_ACK, 0, 1, MAX_TRIM + 512, 1)[16:]
    with pytest.raises(BadValue, match="P_WRITE_ACK"):
        decode(Command.WRITE_ACK, too_large)


def test_a_verdict_is_one_of_two_numbers() -> None:
    payload = block_ack(0, Command.OV_RESULT, 0, SYNCER_ID, 4096, 1)[16:]
    with pytest.raises(BadValue, match=r"P_OV_RESULT: verdict: expected 0x1267 .* or 0x1268"):
        decode(Command.OV_RESULT, payload)


@pytest.mark.parametrize("command", [Command.OV_REPLY, Command.CSUM_RS_REQUEST])
def test_a_digest_where_there_must_be_one_may_not_be_missing(command: Command) -> None:
    payload = block_request(0, command, 0, SYNCER_ID, 4096)[16:]
    with pytest.raises(BadLength, match="a digest"):
        decode(command, payload)


@pytest.mark.parametrize(
    ("command", "packet", "pad"),
    [
        (Command.RS_DATA_REQUEST, BlockRequest(8, SYNCER_ID, 4096), slice(20, 24)),
        (Command.OUT_OF_SYNC, BlockDesc(8, 4096), slice(12, 16)),
        (Command.BARRIER, Barrier(0x01000000), slice(4, 8)),
    ],
)
def test_pads_are_sent_as_zero_and_ignored_when_read(
    command: Command, packet: Packet, pad: slice
) -> None:
    payload = bytearray(payload_of(command, packet))
    assert not any(payload[pad])
    payload[pad] = b"\xde\xad\xbe\xef"
    assert decode(command, bytes(payload)) == packet


# --- parameters -----------------------------------------------------------------------------------


def test_sizes_has_56_bytes_with_the_wsame_feature_and_32_without() -> None:
    sizes = Sizes(8112, 0, 8112, physical_block_size=4096)
    long = encode(0, Command.SIZES, sizes)[16:]
    short = encode(0, Command.SIZES, sizes, wsame=False)[16:]
    assert (len(long), len(short)) == (56, 32)
    assert decode(Command.SIZES, long) == sizes
    assert decode(Command.SIZES, short, wsame=False) == Sizes(8112, 0, 8112)
    with pytest.raises(BadLength, match=r"expected 32 bytes \(feature WSAME is not agreed\)"):
        decode(Command.SIZES, long, wsame=False)
    with pytest.raises(BadLength, match=r"expected 56 bytes \(feature WSAME is agreed\)"):
        decode(Command.SIZES, short)


def test_a_device_larger_than_any_is_refused() -> None:
    payload = bytearray(payload_of(Command.SIZES, Sizes(0, 0, 0)))
    payload[0:8] = (MAX_SECTORS + 1).to_bytes(8, "big")
    with pytest.raises(BadValue, match="d_size"):
        decode(Command.SIZES, bytes(payload))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", 0),
        ("protocol", 4),
        ("after_sb_0p", 11),
        ("after_sb_1p", 11),
        ("after_sb_2p", 99),
        ("two_primaries", 2),
        ("integrity_alg", "x" * 64),
        ("integrity_alg", "sha 1"),
        ("integrity_alg", "schlüssel"),
    ],
)
def test_protocol_parameters_outside_their_range_are_refused(field: str, value: Any) -> None:
    params = ProtocolParams(3)._replace(**{field: value})
    with pytest.raises(BadValue, match=rf"P_PROTOCOL: {field}"):
        encode(0, Command.PROTOCOL, params)


def test_a_name_needs_its_nul() -> None:
    payload = payload_of(Command.PROTOCOL, ProtocolParams(3, integrity_alg="crc32c"))
    with pytest.raises(BadValue, match="NUL"):
        decode(Command.PROTOCOL, payload[:-1])
    unterminated = bytearray(payload_of(Command.SYNC_PARAM89, SyncParam(250)))
    unterminated[68:132] = b"x" * 64
    with pytest.raises(BadValue, match=r"P_SYNC_PARAM89: csums_alg"):
        decode(Command.SYNC_PARAM89, bytes(unterminated))


def test_a_name_of_unprintable_bytes_is_refused_and_shown_escaped() -> None:
    payload = payload_of(Command.PROTOCOL, ProtocolParams(3)) + b"\0"
    with pytest.raises(BadValue, match=r"\\x1b"):
        decode(Command.PROTOCOL, payload[:24] + b"\x1b[31m\0")


def test_features_of_version_0_mean_the_minimum_and_a_reversed_range_is_refused() -> None:
    payload = bytearray(payload_of(Command.CONNECTION_FEATURES, Features(100, 5, 101)))
    payload[8:12] = bytes(4)
    assert decode(Command.CONNECTION_FEATURES, bytes(payload)) == Features(100, 5, 100)
    payload[8:12] = (99).to_bytes(4, "big")
    with pytest.raises(BadValue, match="protocol_max"):
        decode(Command.CONNECTION_FEATURES, bytes(payload))


def test_the_mark_of_a_replicator_is_at_the_very_end_and_without_it_there_is_no_extension() -> None:
    payload = payload_of(Command.CONNECTION_FEATURES, Features(100, 5, 101, replicator=3))
    assert payload[12:64] == bytes(52)
    assert payload[64:] == b"rplc\0\0\0\3"
    unmarked = payload[:64] + bytes(4) + payload[68:]
    assert decode(Command.CONNECTION_FEATURES, unmarked) == Features(100, 5, 101, 0)


def test_the_node_ids_of_a_drbd_9_kernel_are_not_taken_for_a_mark() -> None:
    payload = bytearray(payload_of(Command.CONNECTION_FEATURES, Features(86, 0x1FF, 122)))
    payload[12:20] = bytes.fromhex("0000000100000002")
    assert decode(Command.CONNECTION_FEATURES, bytes(payload)) == Features(86, 0x1FF, 122)


# --- what may be encoded at all -------------------------------------------------------------------


def test_a_packet_of_another_layout_is_refused() -> None:
    with pytest.raises(BadValue, match="P_STATE: packet: expected StateReport, found Empty"):
        encode(0, Command.STATE, Empty())


def test_only_the_first_packets_have_the_short_header() -> None:
    with pytest.raises(WrongPhase, match="P_STATE"):
        encode_h80(Command.STATE, StateReport(0))
    with pytest.raises(WrongPhase, match="command 0x7a03"):
        encode_h80(0x7A03, Empty())


def test_a_volume_number_has_16_bits() -> None:
    for volume in (-1, 0x10000):
        with pytest.raises(BadValue, match="volume"):
            encode(volume, Command.STATE, StateReport(0))


def test_a_bitmap_packet_is_bounded() -> None:
    with pytest.raises(BadLength, match="P_BITMAP: expected 0 to 4080 bytes"):
        encode(0, Command.BITMAP, Raw(bytes(4088)))


def test_write_same_repeats_one_logical_block_that_fits_the_range() -> None:
    packet = WriteSame(0, 1, 1, DpFlags.WSAME, 4096, b"abcd", bytes(512))
    payload = payload_of(Command.WSAME, packet)
    assert decode(Command.WSAME, payload, digest_size=4) == packet
    with pytest.raises(BadLength, match="one logical block"):
        decode(Command.WSAME, payload)
