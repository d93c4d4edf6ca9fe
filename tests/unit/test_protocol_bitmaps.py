"""The bitmap exchange: any bitmap goes through, in the packets a kernel would send and take."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import bitmaps as bitmaps_module
from protocol.bitmaps import (
    CODE_BITS,
    LEVELS,
    PLAIN_WORDS,
    BitmapReceiver,
    BitmapSender,
    Buffer,
)
from protocol.errors import BadLength, BadValue, WireError, WrongPhase
from protocol.packets import Command

PLAIN, RLE = Command.BITMAP, Command.COMPRESSED_BITMAP


def bitmap_of(bits: int, runs: list[tuple[int, int]]) -> bytearray:
    """An independent, slow way to set runs of bits."""
    value = 0
    for first, count in runs:
        value |= ((1 << count) - 1) << first
    return bytearray(value.to_bytes(((bits + 63) >> 6) * 8, "little"))


def send(bits: int, bitmap: Buffer, use_rle: bool = True) -> list[tuple[int, bytes]]:
    return list(BitmapSender(bits, bitmap, use_rle))


def receive(bits: int, packets: list[tuple[int, bytes]]) -> bytearray:
    receiver = BitmapReceiver(bits)
    runs: list[tuple[int, int]] = []
    for command, payload in packets:
        assert not receiver.complete
        runs += receiver.receive(command, payload)
    assert receiver.complete
    assert receiver.bits_received == bits
    return bitmap_of(bits, runs)


@st.composite
def bitmaps(draw: st.DrawFn) -> tuple[int, bytearray]:
    """Of up to some packets; made of runs of all lengths, or of noise, or of both."""
    bits = draw(st.integers(1, 90_000))
    runs: list[tuple[int, int]] = []
    at, value = 0, draw(st.integers(0, 1))
    while at < bits and len(runs) < 40:
        length = draw(st.one_of(st.integers(1, 70), st.integers(1, 40_000)))
        if value:
            runs.append((at, min(length, bits - at)))
        at += length
        value ^= 1
    bitmap = bitmap_of(bits, runs)
    if draw(st.booleans()):
        noise = random.Random(draw(st.integers(0, 1000)))
        start = draw(st.integers(0, len(bitmap)))
        end = draw(st.integers(start, len(bitmap)))
        bitmap[start:end] = noise.randbytes(end - start)
    masked = int.from_bytes(bitmap, "little") & ((1 << bits) - 1)
    return bits, bytearray(masked.to_bytes(len(bitmap), "little"))


@given(bitmaps(), st.booleans())
def test_every_bitmap_arrives_as_it_was_sent(case: tuple[int, bytearray], use_rle: bool) -> None:
    bits, bitmap = case
    assert receive(bits, send(bits, bitmap, use_rle)) == bitmap


@given(bitmaps(), st.booleans())
def test_a_transfer_keeps_the_rules_of_the_exchange(
    case: tuple[int, bytearray], use_rle: bool
) -> None:
    bits, bitmap = case
    packets = send(bits, bitmap, use_rle)
    words = (bits + 63) >> 6
    for command, payload in packets[:-1]:
        assert 2 <= len(payload) <= 4080
        assert command in (PLAIN, RLE)
    # An empty plain packet ends a transfer whose last packet was plain, and only that.
    ends_compressed = packets[-1][0] == RLE
    assert ends_compressed or packets[-1] == (PLAIN, b"")
    assert ends_compressed or packets[-2][0] == PLAIN
    assert all(payload for _, payload in packets[:-1])
    if not use_rle:
        sizes = [len(payload) for _, payload in packets]
        full, rest = divmod(words, PLAIN_WORDS)
        assert sizes == [4080] * full + [rest * 8] * bool(rest) + [0]
    assert len(packets) <= words // PLAIN_WORDS * 2 + 20


@given(bitmaps())
def test_compression_never_makes_a_transfer_much_longer(case: tuple[int, bytearray]) -> None:
    bits, bitmap = case
    plain = sum(len(payload) for _, payload in send(bits, bitmap, False))
    packed = sum(len(payload) for _, payload in send(bits, bitmap))
    assert packed <= plain + 64


def test_bits_after_the_end_of_the_device_are_neither_sent_nor_taken() -> None:
    for bits in (1, 63, 65, 1014, 32641):
        dirty = bytearray(b"\xff" * (((bits + 63) >> 6) * 8 + 100))
        assert receive(bits, send(bits, dirty, False)) == bitmap_of(bits, [(0, bits)])
        assert receive(bits, send(bits, dirty, True)) == bitmap_of(bits, [(0, bits)])
    receiver = BitmapReceiver(70)
    assert receiver.receive(PLAIN, b"\xff" * 16) == [(0, 70)]


def test_any_kind_of_buffer_can_be_sent_even_one_shorter_than_whole_words() -> None:
    for buffer in (b"\x81\x01", bytearray(b"\x81\x01"), memoryview(b"\x81\x01")):
        runs = BitmapReceiver(9).receive(*send(9, buffer)[0])
        assert runs == [(0, 1), (7, 2)]


def test_a_plain_packet_has_whole_words_even_where_the_buffer_has_not() -> None:
    assert send(9, b"\x81\x01", False) == [(PLAIN, b"\x81\x01" + bytes(6)), (PLAIN, b"")]


def test_a_bitmap_that_changes_while_it_is_sent_still_makes_a_complete_transfer() -> None:
    bits = 300_000
    noise = random.Random(3)
    bitmap = bytearray(((bits + 63) >> 6) * 8)
    receiver = BitmapReceiver(bits)
    for command, payload in BitmapSender(bits, bitmap):
        receiver.receive(command, payload)
        for _ in range(50):
            bitmap[noise.randrange(len(bitmap))] ^= noise.randrange(256)
    assert receiver.complete


# --- the code -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "runs", "payload"),
    [
        (256, [(0, 256)], "a2df33"),
        (32768, [(0, 32768)], "b27fcf5e00"),
        (32768, [], "327fcf5e00"),
        (256, [(5, 3), (100, 1)], "2223df0a9f1a"),
    ],
)
def test_whole_bitmaps_have_these_codes(
    bits: int, runs: list[tuple[int, int]], payload: str
) -> None:
    assert send(bits, bitmap_of(bits, runs)) == [(RLE, bytes.fromhex(payload))]
    assert BitmapReceiver(bits).receive(RLE, bytes.fromhex(payload)) == runs


@pytest.mark.parametrize(
    ("run", "stream"),
    [
        (1, "00"),
        (2, "01"),
        (3, "100"),
        (4, "101"),
        (5, "11000"),
        (16, "1110111"),
        (17, "1111000000"),
        (304, "11111011111111"),
        (305, "111111000000000000000"),
        (32768, "11111110111100110111101000000"),
        (10**9, "111111011111001100010101010111101101110000"),
    ],
)
def test_a_run_length_has_this_code(run: int, stream: str) -> None:
    # First bit on the wire left: the least significant of the first byte.
    pad = -len(stream) % 8
    code = int((stream + "0" * pad)[::-1], 2).to_bytes((len(stream) + pad) // 8, "little")
    receiver = BitmapReceiver(run)
    assert receiver.receive(RLE, bytes([0x80 | pad << 4 | 2]) + code) == [(0, run)]
    assert receiver.complete


def test_every_level_of_the_code_begins_where_the_one_before_ends() -> None:
    assert [(level.first, level.last) for level in LEVELS] == [
        (1, 2),
        (3, 4),
        (5, 8),
        (9, 16),
        (17, 48),
        (49, 304),
        (305, 8496),
        (8497, 2105648),
        (2105649, 17181974832),
        (17181974833, 72057611219902768),
    ]


@given(
    st.sampled_from(LEVELS).flatmap(
        lambda level: (
            st.integers(level.first, min(level.last, 1 << 26))
            if level.first < 1 << 26
            else st.just(1)
        )
    ),
    st.integers(1, 300),
)
def test_runs_around_every_level_go_through(run: int, after: int) -> None:
    bits = run + after
    receiver, found = BitmapReceiver(bits), []
    for command, payload in send(bits, bitmap_of(bits, [(0, run)])):
        found += receiver.receive(command, payload)
    assert found == [(0, run)]
    assert receiver.complete


def test_plain_packets_of_a_128_mib_device_carry_510_and_2_words_and_none() -> None:
    packets = send(32768, bytes(4096), use_rle=False)
    assert [(command, len(payload)) for command, payload in packets] == [
        (PLAIN, 4080),
        (PLAIN, 16),
        (PLAIN, 0),
    ]


def test_alternating_bits_are_not_compressed() -> None:
    packets = send(1014, b"\x55" * 128)
    assert [command for command, _ in packets] == [PLAIN, PLAIN]


def test_a_code_that_takes_as_much_room_as_plain_bits_is_used_and_a_longer_one_is_not() -> None:
    # Both runs have codes of five bits, so one byte.
    assert send(8, b"\xff")[0][0] == RLE
    assert send(7, b"\x7f")[0][0] == PLAIN


def test_after_a_compressed_packet_plain_ones_begin_at_the_word_it_ended_in() -> None:
    # One long run, then noise: the code ends between two runs, mostly not at a word's edge.
    noise = random.Random(7)
    bitmap = bytearray(20_000) + bytearray(noise.randbytes(20_000))
    bits = len(bitmap) * 8
    packets = send(bits, bitmap)
    assert {command for command, _ in packets} == {PLAIN, RLE}
    assert receive(bits, packets) == bitmap


def test_a_kernels_mixture_of_both_kinds_is_understood() -> None:
    # 70 clear bits compressed, then all words from the second on: 58 bits are sent twice.
    code = bytes([0x02 | 2 << 4]) + (21 << 6 | 0x1F).to_bytes(2, "little")
    receiver = BitmapReceiver(192)
    assert receiver.receive(RLE, code) == []
    assert receiver.bits_received == 70
    assert receiver.receive(PLAIN, b"\x01" + bytes(14) + b"\x80") == [(64, 1), (191, 1)]
    assert not receiver.complete
    assert receiver.receive(PLAIN, b"") == []
    assert receiver.complete


# --- refusals -------------------------------------------------------------------------------------


@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.sampled_from([PLAIN, RLE]), st.binary(max_size=40)), max_size=6),
)
def test_garbage_raises_nothing_but_a_wire_error(
    bits: int, packets: list[tuple[Command, bytes]]
) -> None:
    receiver = BitmapReceiver(bits)
    for command, payload in packets:
        try:
            for first, count in receiver.receive(command, payload):
                assert 0 <= first < first + count <= bits
        except WireError:
            return


@given(bitmaps(), st.data())
def test_a_transfer_for_another_size_of_device_never_completes_unnoticed(
    case: tuple[int, bytearray], draw: st.DataObject
) -> None:
    bits, bitmap = case
    # Plain packets have whole words, so sizes with equally many words cannot be told apart.
    other = bits + draw.draw(st.sampled_from([64, 128, 100_000]))
    receiver = BitmapReceiver(other)
    with pytest.raises(WireError):
        for command, payload in send(bits, bitmap):
            receiver.receive(command, payload)
        assert not receiver.complete
        receiver.receive(PLAIN, b"")


@pytest.mark.parametrize(
    ("command", "payload", "kind", "match"),
    [
        (PLAIN, bytes(8), BadLength, "expected 16 bytes at word 0 of 2, found 8"),
        (PLAIN, b"", BadLength, "expected 16 bytes"),
        (RLE, b"\x02", BadLength, "2 to 4080 bytes"),
        (RLE, bytes(4081), BadLength, "2 to 4080 bytes"),
        (RLE, b"\x01\x00", BadValue, "expected encoding 2, found 1"),
        (RLE, b"\xd2\xff", BadValue, "expected a code of 64 bits, found 3 left"),
        (RLE, b"\x02" + b"\xff" * 8, BadValue, "runs within 100 bits"),
        (Command.STATE, bytes(4), WrongPhase, "P_STATE: expected P_BITMAP"),
    ],
)
def test_a_broken_packet_is_refused(
    command: Command, payload: bytes, kind: type[WireError], match: str
) -> None:
    with pytest.raises(kind, match=match):
        BitmapReceiver(100).receive(command, payload)


def test_a_run_beyond_the_last_bit_is_refused_be_it_set_or_clear() -> None:
    for polarity in (0x80, 0):
        code = bytes([0x02 | 2 << 4 | polarity]) + (52 << 6 | 0x1F).to_bytes(2, "little")
        with pytest.raises(BadValue, match="found one of 101 at bit 0"):
            BitmapReceiver(100).receive(RLE, code)


def test_nothing_may_follow_a_complete_bitmap() -> None:
    receiver = BitmapReceiver(256)
    receiver.receive(RLE, bytes.fromhex("a2df33"))
    with pytest.raises(WrongPhase, match="complete"):
        receiver.receive(PLAIN, b"")


def test_a_bitmap_without_bits_or_bytes_is_a_mistake_of_the_caller() -> None:
    for bits, buffer in ((0, b""), (9, b"\0"), (-1, b"")):
        with pytest.raises(ValueError, match="bits"):
            BitmapSender(bits, buffer)
    with pytest.raises(ValueError, match="bits"):
        BitmapReceiver(0)


# --- speed ----------------------------------------------------------------------------------------


def test_the_bitmap_of_a_16_tib_device_takes_one_packet_and_no_bit_loop() -> None:
    bits = 1 << 32
    bitmap = bytearray(bits >> 3)
    start = time.perf_counter()
    packets = send(bits, bitmap)
    assert BitmapReceiver(bits).receive(*packets[0]) == []
    taken = time.perf_counter() - start
    assert len(packets) == 1 and len(packets[0][1]) == 7
    assert taken < 20, f"{taken:.1f} s for 4 Gi clear bits"


@pytest.mark.python_engine
def test_a_large_bitmap_of_noise_goes_plain_and_does_not_try_to_compress_every_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = 0

    class CountedRuns(bitmaps_module._Runs):
        def __init__(self, bitmap: Buffer, bits: int, start: int) -> None:
            nonlocal attempts
            attempts += 1
            super().__init__(bitmap, bits, start)

    monkeypatch.setattr(bitmaps_module, "_Runs", CountedRuns)
    bits = 1 << 24
    bitmap = random.Random(5).randbytes(bits >> 3)
    packets = send(bits, bitmap)
    assert all(command == PLAIN for command, _ in packets)
    assert len(packets) == (bits >> 6) // PLAIN_WORDS + 2
    assert 5 <= attempts <= len(packets) // 10


def test_one_packet_never_covers_more_code_than_fits() -> None:
    # Single bits, 40 apart: 2 and 10 bits of code each, so packets fill up.
    bitmap = bitmap_of(2_000_000, [(n, 1) for n in range(0, 2_000_000, 41)])
    packets = send(2_000_000, bitmap)
    assert max(len(payload) for _, payload in packets) == CODE_BITS // 8 + 1
    assert receive(2_000_000, packets) == bitmap
