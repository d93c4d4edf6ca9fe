"""Reads the recorded conversations of kernel DRBD nodes, with each other or with us; README.md says how they were made.

Knows the files' format and how a stream is cut into frames; what must be true of the frames is for
the tests to say.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgpack

from protocol.framing import Frame, FrameReader
from protocol.packets import Command

CAPTURES = Path(__file__).parent / "captures"
"""Two kernels."""
MIXED = Path(__file__).parent / "mixed"
"""A replicator (alpha) and a kernel (beta)."""

EARLY = (Command.INITIAL_DATA, Command.INITIAL_META, Command.CONNECTION_FEATURES)


class Recorded(NamedTuple):
    """One frame and its bytes, header and all."""

    frame: Frame
    raw: bytes


class Stream(NamedTuple):
    """One direction of a TCP connection. socket: "d" or "m"; sender: the IP address, which is the
    node's name: 127.0.0.1 is alpha, 127.0.0.2 beta; dialled: whether the sender had connected."""

    connection: int
    socket: str
    sender: str
    dialled: bool
    data: bytes

    def reader(self) -> FrameReader:
        """A reader in the state that a node's own has when this stream begins."""
        reader = FrameReader(self.socket)
        if self.socket == "m" and not self.dialled:
            # Who accepts a meta socket sends nothing on it before the handshake is over.
            reader.switch_to_h100(extensions=False)
        return reader

    def frames(self, piece: int = 0) -> list[Recorded]:
        """All frames, fed in pieces of that many bytes (0: all at once). Raises WireError."""
        reader, found, at = self.reader(), [], 0
        last = Command.INITIAL_META if self.socket == "m" else Command.CONNECTION_FEATURES
        size = piece or max(1, len(self.data))
        for start in range(0, len(self.data), size):
            reader.feed(self.data[start : start + size])
            while frame := reader.next_frame():
                header = 8 if frame.command in EARLY else 16
                end = at + header + len(frame.payload)
                found.append(Recorded(frame, self.data[at:end]))
                at = end
                if frame.command == last:
                    reader.switch_to_h100(extensions=False)
        assert reader.buffered == len(self.data) - at
        return found


class Conversation(NamedTuple):
    """order: (index of the stream, bytes), as they were captured."""

    name: str
    streams: tuple[Stream, ...]
    order: tuple[tuple[int, int], ...]

    def peer_of(self, stream: Stream) -> Stream:
        """The other direction of the same connection."""
        (other,) = (
            one
            for one in self.streams
            if one.connection == stream.connection and one.sender != stream.sender
        )
        return other


def names(directory: Path = CAPTURES) -> list[str]:
    return sorted(path.name.removesuffix(".msgpack.gz") for path in directory.glob("*.msgpack.gz"))


@cache
def load(name: str) -> Conversation:
    path = next(one for one in (CAPTURES, MIXED) if (one / f"{name}.msgpack.gz").exists())
    raw = msgpack.unpackb(gzip.decompress((path / f"{name}.msgpack.gz").read_bytes()))
    streams = tuple(Stream(**one) for one in raw["streams"])
    return Conversation(name, streams, tuple((index, count) for index, count in raw["order"]))
