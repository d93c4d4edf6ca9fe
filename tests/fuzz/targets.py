"""Everything that reads bytes from outside, each as one function of bytes.

A target takes any input. It returns, or raises one of the errors that its parser is documented to
raise for bad input; anything else is a defect: another exception, no end within a second or so, or
memory out of proportion. Where a decoder has an encoder, what was accepted must come out the same.

Rules: a target keeps nothing from one input to the next; the same input does the same each time.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack

from nbd_plugin.native import wire
from nbd_plugin.native.handshake import Handshake, Phase, Tls
from nbd_plugin.native.inbox import Inbox
from nbd_plugin.native.transmission import Transmission
from protocol.bitmaps import BitmapReceiver
from protocol.errors import WireError
from protocol.extensions import HELLO, REFUSAL, decode_extension, encode_extension
from protocol.framing import Frame, FrameReader
from protocol.packets import MAGIC_100, SPECS, Command, decode, encode
from protocol.states import Disk
from replicator import config
from replicator.errors import ReplicatorError, UsageError
from replicator.metadata.activity_log import replay
from replicator.metadata.dump import parse_dump
from replicator.metadata.gi import set_gi, show_gi
from replicator.metadata.layout import BLOCK, Placement, geometry
from replicator.metadata.signatures import detect
from replicator.metadata.superblock import Superblock
from replicator.runtime import control
from replicator.runtime.control_server import ControlServer
from tests import vectors
from tests.simulation.pair import Pair
from tests.simulation.scripted import ScriptedPeer, synced_alice

DEVICE = 64 << 20
CORPUS = Path(__file__).parent / "corpus"
LARGEST = 1 << 16
"""Bytes of an input."""
MOST_PACKETS = 60
"""Of one input to a whole engine: more takes long and finds little."""

Run = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """run: the parser; refusals: what it may raise; seeds: inputs to begin with."""

    run: Run
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[], Iterator[bytes]]


TARGETS: dict[str, Target] = {}


def target(
    *refusals: type[Exception], seeds: Callable[[], Iterator[bytes]]
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        TARGETS[run.__name__.replace("_", "-")] = Target(run, refusals, seeds)
        return run

    return add


# ---- the peer's wire


@cache
def _streams() -> tuple[vectors.Stream, ...]:
    return tuple(stream for name in vectors.names() for stream in vectors.load(name).streams)


def _stream_seeds() -> Iterator[bytes]:
    for stream in _streams():
        yield bytes([stream.socket == "m"]) + stream.data[:4096]


@target(WireError, seeds=_stream_seeds)
def wire_stream(data: bytes) -> None:
    """A connection from its first byte: frames, both headers, every packet. The first byte chooses
    the socket and into what pieces the stream is cut."""
    if not data:
        return
    reader = FrameReader("dm"[data[0] & 1])
    size = (data[0] >> 1) or len(data)
    stream = data[1:]
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
        while (frame := reader.next_frame()) is not None:
            if frame.command == Command.CONNECTION_FEATURES:
                reader.switch_to_h100()
            with suppress(WireError):
                _decoded_is_encoded(frame.command, frame.volume, frame.payload)


def _packet_seeds() -> Iterator[bytes]:
    seen = set()
    for stream in _streams():
        for recorded in stream.frames():
            frame = recorded.frame
            if (frame.command, len(frame.payload)) not in seen and len(frame.payload) < 5000:
                seen.add((frame.command, len(frame.payload)))
                yield frame.command.to_bytes(2, "big") + b"\0" + frame.payload


@target(WireError, seeds=_packet_seeds)
def wire_packet(data: bytes) -> None:
    """One payload: command, a byte of circumstances, payload."""
    command, how, payload = int.from_bytes(data[:2], "big"), data[2:3] or b"\0", data[3:]
    wsame, digest = not how[0] & 1, how[0] >> 1
    packet = decode(command, payload, digest_size=digest, wsame=wsame)
    if not digest:
        again = decode(command, encode(0, command, packet, wsame=wsame)[16:], wsame=wsame)
        assert again == packet, (packet, again)


def _decoded_is_encoded(command: int, volume: int, payload: bytes) -> None:
    packet = decode(command, payload)
    early = SPECS[command].early
    if not early and volume <= 0xFFFF:
        frame = encode(volume, command, packet)
        assert decode(command, frame[16:]) == packet


def _bitmap_seeds() -> Iterator[bytes]:
    wanted = (Command.BITMAP, Command.COMPRESSED_BITMAP)
    for stream in _streams():
        for recorded in stream.frames():
            if recorded.frame.command in wanted:
                plain = recorded.frame.command == Command.BITMAP
                yield bytes([plain, 0, 96]) + recorded.frame.payload[:4096]


@target(WireError, seeds=_bitmap_seeds)
def bitmap(data: bytes) -> None:
    """The peer's bitmap: kind, number of bits, then packets of one kind of up to 4 KiB."""
    kind = Command.BITMAP if data[:1] > b"\0" else Command.COMPRESSED_BITMAP
    bits = int.from_bytes(data[1:3], "big") * 64 + 1
    receiver, at = BitmapReceiver(bits), 3
    last = 0
    while at < len(data) and not receiver.complete:
        for first, count in receiver.receive(kind, data[at : at + 4096]):
            assert count > 0 and last <= first and first + count <= bits
            last = first + count
        at += 4096


def _extension_seeds() -> Iterator[bytes]:
    hello = {"software": "replicator 0.1.0", "node": "alice", "resource": "r0"}
    yield encode_extension(HELLO, {**hello, "volumes": {0: 1 << 30, 1: 0}})
    yield encode_extension(REFUSAL, {"reason": "two\nlines"})


@target(WireError, seeds=_extension_seeds)
def extension(data: bytes) -> None:
    """Our own packets between two replicators."""
    found = decode_extension(data)
    assert decode_extension(encode_extension(found.kind, found.fields)) == found


COMMANDS = [command for command in Command if not SPECS[int(command)].early]
CONNECTED = 1
PRIMARY = 2


def _peer_seeds() -> Iterator[bytes]:
    """What a node of some recorded conversations said, behind a finished handshake."""
    for name in vectors.names()[::2]:
        for stream in vectors.load(name).streams[:2]:
            records = [
                _record(stream.socket, recorded.frame)
                for recorded in stream.frames()
                if recorded.frame.command in COMMANDS and len(recorded.frame.payload) < 5000
            ]
            yield bytes([CONNECTED | PRIMARY]) + b"".join(records[:30])


def _record(socket: str, frame: Frame) -> bytes:
    index = COMMANDS.index(Command(frame.command)) | (socket == "m") << 7
    return bytes([index]) + len(frame.payload).to_bytes(2, "big") + frame.payload


@target(seeds=_peer_seeds)
def peer(data: bytes) -> None:
    """A peer of a whole engine, in the simulator: packets that are well framed, in any order and of
    any content. The first byte says how far the two are when it begins."""
    how, at, sent = data[0] if data else 0, 1, 0
    pair = Pair(0)
    known = synced_alice(pair, primary=bool(how & PRIMARY))
    other = ScriptedPeer(pair)
    if how & CONNECTED:
        other.connect(known, Disk.UpToDate)
    else:
        other.features()
    while at + 3 <= len(data) and sent < MOST_PACKETS:
        command = COMMANDS[(data[at] & 127) % len(COMMANDS)]
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        payload = data[at + 3 : at + 3 + length]
        header = struct.pack(">IHHII", MAGIC_100, 0, command, len(payload), 0)
        other.raw("dm"[data[at] >> 7], header + payload)
        pair.run(0.01)
        at, sent = at + 3 + length, sent + 1
    pair.run(1)
    pair.alice.r.snapshot()


# ---- metadata


def _superblock_seeds() -> Iterator[bytes]:
    yield Superblock.fresh(geometry(DEVICE, Placement("internal"))).encode()


@target(ReplicatorError, seeds=_superblock_seeds)
def superblock(data: bytes) -> None:
    """A superblock from any disk, looked at as if it had been found at each placement."""
    found = Superblock.decode(data[:BLOCK].ljust(BLOCK, b"\0"))
    assert Superblock.decode(found.encode()) == found
    show_gi(found)
    for placement in (Placement("internal"), Placement("flexible"), Placement("indexed", 3)):
        with suppress(ReplicatorError):
            found.validate(found.geometry(DEVICE << 4, placement))


def _ring_seeds() -> Iterator[bytes]:
    from replicator.metadata.activity_log import encode_transaction, initialized_block

    yield initialized_block() * 2
    yield encode_transaction(1, [(0, 7)], [7, 8], 0) + encode_transaction(2, [(1, 9)], [7, 9], 0)


@target(ReplicatorError, seeds=_ring_seeds)
def activity_log(data: bytes) -> None:
    """The ring of an activity log, whatever a crash or another program left there."""
    blocks = [data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK)]
    found = replay(blocks)
    assert len(found.active_extents) <= 1 << 16


def _dump_seeds() -> Iterator[bytes]:
    from replicator.metadata.dump import dump_text

    place = geometry(DEVICE, Placement("internal"))
    yield dump_text(Superblock.fresh(place), place, bytes(4096)).encode()


@target(ReplicatorError, seeds=_dump_seeds)
def dump_text(data: bytes) -> None:
    """What restore-md is given."""
    found = parse_dump(data.decode("utf-8", "surrogateescape"))
    for _at, _chunk in found.chunks(1 << 16, 1 << 20):
        pass


@target(ReplicatorError, seeds=lambda: iter([b"4:0:0:0:1:1:0:0:0:0", b"A:B:C:D"]))
def generations(data: bytes) -> None:
    """What set-gi is given."""
    place = geometry(DEVICE, Placement("internal"))
    show_gi(set_gi(Superblock.fresh(place), data.decode("utf-8", "surrogateescape")))


@target(seeds=lambda: iter([bytes(2048), b"LUKS\xba\xbe\0\1", b"XFSB"]))
def signatures(data: bytes) -> None:
    """The beginning of a disk that is to get metadata: anything may be there."""
    detect(data)


# ---- configuration and control

CONFIGURATION = b"""global { usage-count no; }
common { net { protocol C; } }
resource "r0" {
  options { on-no-data-accessible io-error; }
  net { cram-hmac-alg sha1; shared-secret "x"; after-sb-0pri discard-zero-changes; }
  disk { resync-rate 33M; al-extents 257; }
  handlers { split-brain "/bin/true # not much"; }
  on alice { address ipv4 10.0.0.1:7789;
    volume 0 { device /dev/drbd0 minor 0; disk /dev/sda1; meta-disk internal; } }
  on bob { address ipv6 [fd00::2]:7789;
    volume 0 { device minor 1; disk "/dev/sdb1"; flexible-meta-disk /dev/sdc; } }
}
"""


class _OneFile:
    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, path: str) -> str:
        return self._text

    def expand(self, pattern: str) -> list[str]:
        return [f"{len(pattern)}.conf"] if len(pattern) < 50 else []


@target(ReplicatorError, seeds=lambda: iter([CONFIGURATION, b'include "x*"; resource a { }']))
def configuration(data: bytes) -> None:
    """A file of any content, which may include itself under any name; and what is printed of it
    must be read as the same."""
    text = data.decode("utf-8", "surrogateescape")
    found = config.load("r.conf", files=_OneFile(text), is_local=lambda address: True)
    found.views("alice")
    printed = found.dump()
    again = config.load("r.conf", files=_OneFile(printed), is_local=lambda address: True)
    assert _without_comments(again.dump()) == _without_comments(printed)


def _without_comments(text: str) -> list[str]:
    """They say where each resource was defined."""
    return [line for line in text.splitlines() if not line.startswith("#")]


class _Transport(asyncio.Transport):
    """Takes answers; nothing is listening."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class _Loop:
    """Timers that never fire."""

    def call_later(self, _delay: float, _action: object) -> asyncio.Handle:
        return self.call_soon(_action)

    def call_soon(self, _action: object) -> asyncio.Handle:
        return _HANDLE


class _Handle:
    def cancel(self) -> None:
        pass


_HANDLE = _Handle()


def _control_seeds() -> Iterator[bytes]:
    yield control.encode_frame({"cmd": "primary", "args": {"force": False}})
    yield control.encode_frame({"cmd": "status"}) * 3


@target(seeds=_control_seeds)
def control_socket(data: bytes) -> None:
    """A client of the daemon's control socket: answered or thrown out, whatever it sends."""

    def dispatch(cmd: str, args: dict[str, object], reply: Callable[..., None]) -> None:
        if cmd not in ("status", "primary"):
            raise UsageError(f"the daemon knows no command '{cmd}'")
        reply({"args": sorted(map(repr, args))}, None)

    server = ControlServer(_Loop(), Path("/nowhere"), dispatch, lambda cmd: 1.0, lambda: "")
    connection, transport = server._connect(), _Transport()
    connection.connection_made(transport)
    for start in range(0, len(data), 1000):
        if not transport.closed:
            connection.data_received(data[start : start + 1000])
    for answer in _answers(bytes(transport.sent)):
        assert answer["ok"] in (True, False)


@target(control.FrameError, seeds=_control_seeds)
def control_answer(data: bytes) -> None:
    """What the command line is answered, by something that may be no daemon."""
    length = control.frame_length(data[:4].ljust(4, b"\0"))
    answer = control.decode_body(data[4 : 4 + length])
    str(control.error_from_map(answer.get("error")))


def _answers(sent: bytes) -> Iterator[dict[str, object]]:
    stream = io.BytesIO(sent)
    while header := stream.read(4):
        yield control.decode_body(stream.read(control.frame_length(header)))


# ---- NBD


def _nbd_seeds() -> Iterator[bytes]:
    flags = wire.CLIENT_FLAGS.pack(3)
    name = b"0"
    info = len(name).to_bytes(4, "big") + name + (0).to_bytes(2, "big")
    context = len(name).to_bytes(4, "big") + name + (1).to_bytes(4, "big")
    context += (15).to_bytes(4, "big") + b"base:allocation"

    def option(number: int, data: bytes) -> bytes:
        return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data

    def request(command: int, offset: int, length: int, data: bytes = b"") -> bytes:
        return wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, 7, offset, length) + data

    io = request(1, 512, 512, b"x" * 512) + request(0, 0, 4096) + request(3, 0, 0)
    io += request(4, 0, 1 << 20) + request(6, 4096, 4096) + request(7, 0, 4096) + request(2, 0, 0)
    go = option(8, b"") + option(10, context) + option(7, info)
    for first in (0, 1, 2):
        yield bytes([first]) + flags + go + io
        yield bytes([first]) + flags + option(3, b"") + option(1, name) + io


@target(seeds=_nbd_seeds)
def nbd_client(data: bytes) -> None:
    """A client of the native NBD server, from its flags to its last request. The first byte chooses
    the TLS policy and into what pieces the stream is cut."""
    if not data:
        return
    inbox = Inbox()
    policy = list(Tls)[data[0] % len(Tls)]
    handshake = Handshake(inbox, [(0, "first"), (7, "")], policy)
    stream, size = io.BytesIO(data[1:]), (data[0] >> 2) + 1 if data[0] & 2 else 1 << 16
    transmission: Transmission | None = None
    while _receive(inbox, stream, size):
        if transmission is None:
            while handshake.next() is not None:
                handshake.grant(DEVICE)
            handshake.take_output()
            if handshake.phase is Phase.SECURING:
                handshake.secured()
            if handshake.phase is Phase.ENDED:
                return
            if handshake.phase is Phase.TRANSMISSION:
                transmission = Transmission(
                    inbox,
                    DEVICE,
                    structured=handshake.structured,
                    allocation=handshake.allocation,
                )
        if transmission is not None:
            for request in transmission.take(64 << 20):
                if not request.error and request.command <= 1:
                    assert request.offset + request.length <= DEVICE
                if request.command == 1 and not request.error:
                    assert len(request.data) == request.length
            if transmission.ended is not None:
                return


def _receive(inbox: Inbox, stream: io.BytesIO, size: int) -> int:
    space = inbox.get_space()
    assert len(space), "no room is left: the client could never go on"
    piece = stream.read(min(size, len(space)))
    space[: len(piece)] = piece
    inbox.received(len(piece))
    return len(piece)


def saved(name: str) -> list[bytes]:
    """The committed inputs of a target: what a fuzzer found to be different from each other."""
    path = CORPUS / f"{name}.msgpack.gz"
    found: list[bytes] = (
        msgpack.unpackb(gzip.decompress(path.read_bytes())) if path.exists() else []
    )
    return found
