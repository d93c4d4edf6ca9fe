"""Frames out of a byte stream: however it is cut, in linear time, and nothing but frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import SPECS
from protocol.errors import (
    BadHeader,
    BadLength,
    BadMagic,
    UnknownCommand,
    WireError,
    WrongPhase,
    WrongSocket,
)
from protocol.framing import Frame, FrameReader
from protocol.packets import (
    Command,
    Empty,
    Features,
    Packet,
    Raw,
    StateReport,
    block_ack,
    data_header,
    encode,
    encode_h80,
)
from tests.vectors.strategies import packets

FEATURES = encode_h80(Command.CONNECTION_FEATURES, Features(100, 5, 101))
PING = encode(0, Command.PING, Empty())
STATE = encode(3, Command.STATE, StateReport(0xD091))


def established(socket: str = "") -> FrameReader:
    reader = FrameReader(socket)
    reader.switch_to_h100()
    return reader


def drain(reader: FrameReader) -> list[Frame]:
    frames = []
    while frame := reader.next_frame():
        frames.append(frame)
    return frames


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[start:end] for start, end in zip(edges, edges[1:], strict=False)]


def test_an_empty_reader_has_no_frame() -> None:
    reader = FrameReader()
    assert reader.next_frame() is None
    reader.feed(b"")
    assert reader.next_frame() is None
    assert reader.buffered == 0


@given(st.lists(packets(), max_size=6), st.lists(st.integers(0, 100_000), max_size=12))
def test_the_frames_are_the_same_however_the_stream_is_cut(
    cases: list[tuple[Command, Packet]], places: list[int]
) -> None:
    raws = [encode(number, *case) for number, case in enumerate(cases)]
    expected = [
        Frame(int(case[0]), number, raw[16:])
        for number, (case, raw) in enumerate(zip(cases, raws, strict=True))
    ]
    reader, frames = established(), []
    for piece in cut(b"".join(raws), places):
        reader.feed(piece)
        frames += drain(reader)
    assert frames == expected
    assert reader.buffered == 0


@given(st.lists(packets(), max_size=4), st.lists(st.integers(0, 100_000), max_size=8))
def test_frames_may_also_be_taken_one_at_a_time_while_the_stream_runs_ahead(
    cases: list[tuple[Command, Packet]], places: list[int]
) -> None:
    raws = [encode(0, *case) for case in cases]
    reader, frames = established(), []
    for piece in cut(b"".join(raws), places):
        reader.feed(piece)
        frames += [frame] if (frame := reader.next_frame()) else []
    frames += drain(reader)
    assert [frame.payload for frame in frames] == [raw[16:] for raw in raws]


@given(st.binary(max_size=200), st.sampled_from(["", "d", "m"]), st.booleans())
def test_garbage_is_refused_or_awaits_more_but_never_crashes(
    raw: bytes, socket: str, switched: bool
) -> None:
    reader = established(socket) if switched else FrameReader(socket)
    reader.feed(raw)
    try:
        frames = drain(reader)
    except WireError:
        return
    assert len(raw) == reader.buffered + sum(
        len(frame.payload) + (16 if switched else 8) for frame in frames
    )


@given(st.data())
def test_one_flipped_bit_in_a_header_is_an_error_or_another_bounded_frame(
    draw: st.DataObject,
) -> None:
    raw = bytearray(STATE + PING)
    place = draw.draw(st.integers(0, 16 * 8 - 1))
    raw[place >> 3] ^= 1 << (place & 7)
    reader = established()
    reader.feed(bytes(raw))
    try:
        frame = reader.next_frame()
    except WireError:
        return
    if frame is not None:
        spec = SPECS[frame.command]
        assert spec.min_payload <= len(frame.payload) <= spec.max_payload


def test_a_mutable_buffer_may_be_used_again_after_feeding() -> None:
    buffer = bytearray(PING)
    reader = established()
    reader.feed(buffer)
    buffer[:] = bytes(16)
    assert reader.next_frame() == Frame(Command.PING, 0, b"")


# --- switching formats ----------------------------------------------------------------------------


def test_bytes_that_came_with_the_features_are_read_in_the_new_format() -> None:
    reader = FrameReader("d")
    reader.feed(FEATURES + STATE + STATE[:10])
    first = reader.next_frame()
    assert first is not None and first.command == Command.CONNECTION_FEATURES
    reader.switch_to_h100()
    assert reader.next_frame() == Frame(Command.STATE, 3, STATE[16:])
    assert reader.next_frame() is None
    reader.feed(STATE[10:])
    assert reader.next_frame() == Frame(Command.STATE, 3, STATE[16:])


def test_a_connection_says_by_its_first_packet_which_socket_it_is() -> None:
    for command, socket in ((Command.INITIAL_DATA, "d"), (Command.INITIAL_META, "m")):
        reader = FrameReader()
        reader.feed(encode_h80(command, Empty()))
        assert drain(reader) == [Frame(command, 0, b"")]
        reader.socket = socket
        assert reader.socket == socket


def test_a_socket_has_one_of_two_letters() -> None:
    with pytest.raises(ValueError, match="meta"):
        FrameReader("meta")


# --- refusals -------------------------------------------------------------------------------------


def refused(reader: FrameReader, raw: bytes, kind: type[WireError], match: str) -> None:
    reader.feed(raw)
    with pytest.raises(kind, match=match):
        reader.next_frame()


def test_another_magic_is_refused_and_a_known_one_is_named() -> None:
    refused(established("d"), b"GET / HTTP/1.1\r\n", BadMagic, r"0x8620ec20 \(h100\), found 0x4745")
    refused(established("d"), FEATURES, BadMagic, "an h80 header")
    refused(FrameReader("d"), STATE, BadMagic, "an h100 header")
    refused(FrameReader("d"), bytes.fromhex("835a000000000018"), BadMagic, "h95")


def test_the_pad_of_a_header_is_zero() -> None:
    refused(established("m"), PING[:12] + b"\0\0\0\1", BadHeader, "P_PING: .*pad 0, found 0x1")


def test_a_command_on_the_wrong_socket_is_refused_by_name() -> None:
    match = "P_STATE: expected on the data socket, found on the meta socket"
    refused(established("m"), STATE, WrongSocket, match)
    refused(established("d"), PING, WrongSocket, "P_PING: expected on the meta socket")
    probe = encode(0, Command.DELAY_PROBE, Raw(bytes(8)))
    for socket in "dm":
        reader = established(socket)
        reader.feed(probe)
        assert drain(reader)


def test_an_unknown_command_is_refused_by_number() -> None:
    raw = bytes.fromhex("8620ec20000000400000000000000000")
    refused(established("d"), raw, UnknownCommand, "data socket: .*found command 0x0040")


def test_the_first_packets_do_not_come_again_and_no_other_comes_before_the_features() -> None:
    late = bytes.fromhex("8620ec200000fffe0000004800000000")
    refused(established("d"), late, WrongPhase, "P_CONNECTION_FEATURES: .*found after it")
    early = bytes.fromhex("83740267000e0004")
    refused(FrameReader("d"), early, WrongPhase, "P_STATE: .*found before it")


def test_extension_packets_are_for_replicators_only() -> None:
    raw = encode(0, Command.EXTENSION, Raw(b"\x80"))
    assert drain_all(established("d"), raw)[0].command == Command.EXTENSION
    kernel = FrameReader("d")
    kernel.switch_to_h100(extensions=False)
    refused(kernel, raw, UnknownCommand, "P_EXTENSION")


def drain_all(reader: FrameReader, raw: bytes) -> list[Frame]:
    reader.feed(raw)
    return drain(reader)


@pytest.mark.parametrize("command", [one for one in Command if not SPECS[one].early])
def test_a_length_out_of_bounds_is_refused_before_the_payload_has_come(command: Command) -> None:
    spec = SPECS[command]
    for length in {spec.max_payload + 1, spec.min_payload - 1, 0xFFFFFFFF} - {-1}:
        header = b"\x86\x20\xec\x20\0\0" + int(command).to_bytes(2, "big")
        refused(established(), header + length.to_bytes(4, "big") + bytes(4), BadLength, spec.name)


def test_after_an_error_the_stream_stays_refused() -> None:
    reader = established("d")
    refused(reader, PING, WrongSocket, "P_PING")
    refused(reader, STATE, WrongSocket, "P_PING")


# --- speed and memory -----------------------------------------------------------------------------


def copied_bytes(monkeypatch: pytest.MonkeyPatch, frames: int, piece: int, raw: bytes) -> int:
    """How many bytes the reader joined, over and over, on the way through the stream."""
    joined = 0
    join = FrameReader._join

    def counting(reader: FrameReader) -> None:
        nonlocal joined
        joined += reader.buffered
        join(reader)

    monkeypatch.setattr(FrameReader, "_join", counting)
    reader, count = established(), 0
    for at in range(0, len(raw), piece):
        reader.feed(raw[at : at + piece])
        while reader.next_frame():
            count += 1
    assert count == frames
    return joined


def test_many_small_packets_in_one_piece_are_not_joined_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ack = block_ack(0, Command.WRITE_ACK, 8, 1, 4096, 1)
    assert copied_bytes(monkeypatch, 2_000, 1 << 30, ack * 2_000) <= len(ack) * 2_000


def test_a_large_packet_in_small_pieces_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    header = data_header(0, Command.DATA, 0, 1, 1, 0, b"", 1 << 20)
    raw = header + bytes(1 << 20)
    assert copied_bytes(monkeypatch, 1, 64, raw) <= len(raw) + 2 * 64


def test_nothing_is_kept_of_a_stream_that_has_been_read() -> None:
    reader = established()
    reader.feed(PING * 1000 + STATE[:5])
    assert len(drain(reader)) == 1000
    assert reader.buffered == 5
    reader.feed(STATE[5:])
    assert len(drain(reader)) == 1
    assert reader.buffered == 0
