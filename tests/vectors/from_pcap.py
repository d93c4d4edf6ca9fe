"""Make a test vector of a packet capture: the byte streams of each TCP connection, and their order.

    python tests/vectors/from_pcap.py CAPTURE.pcap.gz tests/vectors/captures/NAME.msgpack.gz

`make interop` with --record calls vector() for what it has captured itself.
Reads pcap files (Ethernet, IPv4) only, needs msgpack only, and knows nothing of the protocol but the
first packet of a connection, which tells the data socket from the meta socket. README.md beside it
describes what is written. Exits with a message if a byte of a stream is missing.
"""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgpack

INITIAL = {bytes.fromhex("83740267fff2"): "d", bytes.fromhex("83740267fff1"): "m"}

End = tuple[str, int]


class Segment(NamedTuple):
    """One TCP segment with payload, or a SYN without."""

    source: End
    target: End
    syn: bool
    sequence: int
    payload: bytes


class Stream:
    """One direction of a connection, put together from segments that may repeat or come early."""

    def __init__(self, connection: int, source: End, target: End, dialled: bool) -> None:
        self.connection, self.source, self.target, self.dialled = (
            connection,
            source,
            target,
            dialled,
        )
        self.data = bytearray()
        self.next: int | None = None
        self.early: dict[int, bytes] = {}

    def add(self, sequence: int, payload: bytes) -> int:
        """Take a segment; how many bytes the stream has grown by."""
        before = len(self.data)
        if self.next is None:
            self.next = sequence
        self.early[sequence] = max(self.early.get(sequence, b""), payload, key=len)
        progress = True
        while progress:
            progress = False
            for start, part in sorted(self.early.items()):
                skip = (self.next - start) & 0xFFFFFFFF
                if skip < 1 << 31:
                    del self.early[start]
                    self.data += part[skip:]
                    self.next = (self.next + max(0, len(part) - skip)) & 0xFFFFFFFF
                    progress = True
                    break
        return len(self.data) - before


def segments(raw: bytes) -> list[Segment]:
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(raw[:4])
    if order is None or struct.unpack_from(order + "I", raw, 20)[0] != 1:
        sys.exit("not a pcap file of Ethernet frames")
    found, at = [], 24
    while at + 16 <= len(raw):
        length = struct.unpack_from(order + "I", raw, at + 8)[0]
        frame = raw[at + 16 : at + 16 + length]
        at += 16 + length
        if frame[12:14] != b"\x08\x00" or frame[23] != 6:
            continue
        packet = frame[14 : 14 + struct.unpack_from(">H", frame, 16)[0]]
        tcp = packet[(packet[0] & 15) * 4 :]
        source_port, target_port, sequence = struct.unpack_from(">HHI", tcp)
        source = (".".join(map(str, packet[12:16])), source_port)
        target = (".".join(map(str, packet[16:20])), target_port)
        payload = tcp[(tcp[12] >> 4) * 4 :]
        if payload or tcp[13] & 2:
            found.append(Segment(source, target, bool(tcp[13] & 2), sequence, payload))
    return found


def streams(found: list[Segment]) -> tuple[list[Stream], list[tuple[Stream, int]]]:
    """All streams, and (stream, bytes) in the order in which the bytes were captured."""
    everything: list[Stream] = []
    current: dict[tuple[End, End], Stream] = {}
    order: list[tuple[Stream, int]] = []
    for segment in found:
        key = (segment.source, segment.target)
        if segment.syn:
            if key[::-1] not in current or current[key[::-1]].data:
                number = len(everything) // 2
                pair = (
                    Stream(number, *key, dialled=True),
                    Stream(number, *key[::-1], dialled=False),
                )
                everything += pair
                current[key], current[key[::-1]] = pair
            current[key].next = (segment.sequence + 1) & 0xFFFFFFFF
        elif key in current:
            grown = current[key].add(segment.sequence, segment.payload)
            if grown:
                order.append((current[key], grown))
        else:
            sys.exit(f"the connection {key} was there before the capture began")
    return everything, order


def vector(raw: bytes, names: Mapping[str, str]) -> bytes:
    """The vector's bytes, of those of a pcap file. names: IP addresses, and what to call them."""
    everything, order = streams(segments(raw))
    kept = []
    for pair in zip(everything[::2], everything[1::2], strict=True):
        socket = INITIAL.get(bytes(pair[0].data[:6]))
        if socket is None:
            continue  # refused, or closed before anything was said
        kept += [(stream, socket) for stream in pair]
    if any(stream.early for stream, _ in kept):
        sys.exit("bytes are missing")
    index = {id(stream): number for number, (stream, _) in enumerate(kept)}
    packed = msgpack.packb(
        {
            "streams": [
                {
                    "connection": stream.connection,
                    "socket": socket,
                    "sender": names.get(stream.source[0], stream.source[0]),
                    "dialled": stream.dialled,
                    "data": bytes(stream.data),
                }
                for stream, socket in kept
            ],
            "order": [[index[id(stream)], count] for stream, count in order if id(stream) in index],
        }
    )
    return gzip.compress(packed, 9, mtime=0)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    raw = source.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    target.write_bytes(vector(raw, {}))


if __name__ == "__main__":
    main()
