"""The straight ways of the data path give what the general ones give, step for step."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import WireError
from protocol.framing import DIRECT, LARGE, WITH_DATA, FrameReader
from protocol.packets import Command, block_ack, data_header, decode
from replicator.engine.application import Application
from replicator.engine.settings import DiskSettings, NetSettings
from tests.simulation.pair import Pair

BLOCK = 4096


def story(seed: int, protocol: str, al_updates: bool) -> tuple[Any, ...]:
    """Writes of every shape on a synced pair, among flushes and trims; the network fails once.
    Everything that can be seen of it: results in their order, data, counters, what was marked."""
    pair = Pair(
        seed=seed,
        size=16 << 20,
        net=NetSettings(protocol=protocol, max_epoch_size=20),
        disk=DiskSettings(al_extents=67, c_max_rate=0, al_updates=al_updates),
    )
    pair.up_synced()
    rng = random.Random(seed)
    results: list[tuple[int, int]] = []
    volume = pair.alice.volume()
    for number in range(250):
        offset = 512 * rng.randrange(volume.size // 512 - 64)
        if rng.random() < 0.3:
            offset = offset % (64 * BLOCK) // BLOCK * BLOCK
        length = BLOCK if rng.random() < 0.5 else 512 * rng.randrange(1, 64)

        def done(errno: int, number: int = number) -> None:
            results.append((number, errno))

        kind = rng.randrange(20)
        if kind == 0:
            volume.flush(done)
        elif kind == 1:
            volume.trim(offset, length, False, done)
        else:
            volume.write(offset, rng.randbytes(length), kind == 2, done)
        if rng.random() < 0.1:
            pair.run(0.0004 * rng.random())
        if number == 180:
            pair.network.break_all()
    sent = (volume.counters, pair.bob.volume().counters)
    pair.run(1)
    pair.settle()
    pair.run(2)
    assert pair.alice.data() == pair.bob.data()
    return (results, pair.alice.data(), sent, volume.application.pending, pair.alice.r.snapshot())


@pytest.mark.python_engine
@pytest.mark.parametrize("protocol", ["A", "B", "C"])
@pytest.mark.parametrize("seed", range(3))
def test_a_write_ends_the_same_way_whether_it_went_straight_or_step_by_step(
    seed: int, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = 0
    original = Application._write_straight

    def counted(self: Application, *arguments: Any) -> bool:
        nonlocal straight
        went = original(self, *arguments)
        straight += went
        return went

    monkeypatch.setattr(Application, "_write_straight", counted)
    fast = story(seed, protocol, al_updates=seed != 2)
    assert straight > 20
    monkeypatch.setattr(Application, "_write_straight", lambda *_arguments: False)
    assert story(seed, protocol, al_updates=seed != 2) == fast


def test_a_refused_write_is_refused_before_it_goes_anywhere() -> None:
    pair = Pair()
    pair.up_synced()
    volume, results = pair.alice.volume(), []
    assert volume.application.straight
    for offset, length in ((-512, 512), (1, 512), (0, 0), (0, 100), (volume.size - 512, 1024)):
        volume.write(offset, bytes(length), False, results.append)
    assert not results, "completions come later, never from inside the call"
    pair.run(1)
    assert len(results) == 5 and 0 not in results
    assert volume.application.pending == 0 and volume.locks.count == 0


# --- frames --------------------------------------------------------------------------------------


def established(stream: bytes, socket: str) -> FrameReader:
    reader = FrameReader(socket)
    reader.switch_to_h100()
    reader.feed(stream)
    return reader


WITH_DATA_OR_NOT = (Command.DATA, Command.RS_DATA_REPLY, Command.DATA_REPLY, Command.WRITE_ACK)
numbers = st.integers(0, 2**64 - 1)
sectors = st.one_of(numbers, st.integers(0, 1 << 20))
sizes = st.one_of(st.sampled_from([0, 512, 4096, 1 << 20]), st.integers(0, 2**32 - 1))
acks = st.builds(
    block_ack,
    st.integers(0, 5),
    st.sampled_from([Command.WRITE_ACK, Command.RECV_ACK, Command.NEG_ACK, Command.PING]),
    sectors,
    numbers,
    sizes,
    st.integers(0, 2**32 - 1),
)


@st.composite
def writes(draw: st.DrawFn) -> bytes:
    length = draw(st.sampled_from([0, 1, 511, 512, 4096, 5000]))
    header = data_header(
        draw(st.integers(0, 3)),
        draw(st.sampled_from(WITH_DATA_OR_NOT)),
        draw(sectors),
        draw(numbers),
        7,
        draw(st.integers(0, 2**32 - 1)),
        b"",
        length,
    )
    return header + b"\x5a" * length


def told_directly(reader: FrameReader) -> list[Any]:
    """What a reader gives when it is first asked for blocks, as (command, volume, packet)."""
    found: list[Any] = []
    try:
        while True:
            block = reader.next_block()
            if block is not None:
                command, volume, sector, block_id, third, fourth, data = block
                assert command in DIRECT
                fields = (sector, block_id, third, fourth)
                packet = (*fields, b"", data) if command in WITH_DATA else fields
                found.append((command, volume, packet))
                continue
            frame = reader.next_frame()
            if frame is None:
                return found
            found.append((frame.command, frame.volume, decode(frame.command, frame.payload)))
    except WireError as error:
        return [*found, str(error)]


def told_generally(reader: FrameReader) -> list[Any]:
    found: list[Any] = []
    try:
        while (frame := reader.next_frame()) is not None:
            found.append((frame.command, frame.volume, decode(frame.command, frame.payload)))
    except WireError as error:
        return [*found, str(error)]
    return found


@given(
    st.lists(st.one_of(acks, writes()), max_size=6),
    st.sampled_from(["d", "m"]),
    st.integers(0, 40),
    st.integers(0, 200),
)
def test_a_block_is_what_the_general_reader_and_decoder_make_of_it(
    frames: list[bytes], socket: str, damaged: int, position: int
) -> None:
    stream = bytearray(b"".join(frames))
    if position < len(stream) and damaged:
        stream[position] ^= damaged
    for end in (len(stream), max(0, len(stream) - 1 - position)):
        part = bytes(stream[:end])
        assert told_directly(established(part, socket)) == told_generally(established(part, socket))


LARGE_BLOCKS = [
    bytes([n]) * size for n, size in enumerate([LARGE, 512, 3 * LARGE, LARGE - 512, 4096, 1 << 20])
]


@given(st.lists(st.tuples(st.integers(1, 2 * LARGE), st.booleans()), min_size=1, max_size=40))
def test_large_data_is_the_same_whether_it_is_fed_or_received_in_place(
    pieces: list[tuple[int, bool]],
) -> None:
    stream = b"".join(
        data_header(0, Command.RS_DATA_REPLY, 8 * n, n, n, 0, b"", len(data)) + data
        for n, data in enumerate(LARGE_BLOCKS)
    )
    reader = established(b"", "d")
    found: list[Any] = []
    at = number = 0
    while at < len(stream):
        size, in_place = pieces[number % len(pieces)]
        number += 1
        space = reader.space() if in_place else None
        piece = stream[at : at + (size if space is None else min(size, len(space)))]
        if space is None:
            reader.feed(piece)
        else:
            space[: len(piece)] = piece
            reader.filled(len(piece))
        at += len(piece)
        found += told_directly(reader)
        assert sum(len(packet[-1]) + 40 for _, _, packet in found) + reader.buffered <= at
    assert [bytes(packet[-1]) for _command, _volume, packet in found] == LARGE_BLOCKS
    assert reader.buffered == 0 and reader.space() is None


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=40), st.integers(1, 4))
def test_blocks_may_arrive_in_any_pieces(sizes: list[int], at_once: int) -> None:
    payloads = [bytes([n]) * (BLOCK * (1 + 3 * (n % 2))) for n in range(6)]
    stream = b"".join(
        data_header(0, Command.DATA, 8 * n, n, n, 256, b"", len(data)) + data
        for n, data in enumerate(payloads)
    )
    reader = established(b"", "d")
    found: list[Any] = []
    at = number = 0
    while at < len(stream):
        size = sizes[number % len(sizes)]
        reader.feed(stream[at : at + size])
        at += size
        number += 1
        if number % at_once == 0:
            found += told_directly(reader)
    found += told_directly(reader)
    assert [packet[1] for _command, _volume, packet in found] == list(range(6))
    assert [packet[5] for _command, _volume, packet in found] == payloads
    assert reader.buffered == 0
