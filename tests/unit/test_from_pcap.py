"""tests/vectors/from_pcap.py, with captures made up here: what arrives in any order is put in order."""

from __future__ import annotations

import gzip
import struct

import msgpack
import pytest

from tests.vectors.from_pcap import vector

DATA = bytes.fromhex("83740267fff20000")
"""What whoever dials a data connection sends first."""
DIALLER, LISTENER = ("10.0.2.15", 40001), ("10.0.2.2", 7789)
SYN, ACK = 2, 16

Packet = tuple[tuple[str, int], tuple[str, int], int, int, bytes]


def capture(packets: list[Packet]) -> bytes:
    """A pcap file of (source, target, flags, sequence number, payload)."""
    found = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for source, target, flags, sequence, payload in packets:
        tcp = struct.pack(">HHIIBBHHH", source[1], target[1], sequence, 0, 5 << 4, flags, 0, 0, 0)
        addresses = [bytes(map(int, end[0].split("."))) for end in (source, target)]
        length = 20 + len(tcp) + len(payload)
        ip = struct.pack(">BBHIBBH4s4s", 0x45, 0, length, 0, 64, 6, 0, *addresses)
        frame = bytes(12) + b"\x08\x00" + ip + tcp + payload
        found += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    return found


def hello(dialler: tuple[str, int] = DIALLER, start: int = 99) -> list[Packet]:
    """A connection is made; the numbers of its first bytes are start + 1 and 500."""
    return [
        (dialler, LISTENER, SYN, start, b""),
        (LISTENER, dialler, SYN | ACK, 499, b""),
        (dialler, LISTENER, ACK, start + 1, DATA),
    ]


def unpacked(raw: bytes, names: dict[str, str] | None = None) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = msgpack.unpackb(
        gzip.decompress(vector(raw, names or {}))
    )
    return found


def test_both_directions_are_there_under_the_names_that_were_asked_for() -> None:
    packets = [*hello(), (LISTENER, DIALLER, ACK, 500, b"answer")]
    found = unpacked(capture(packets), {"10.0.2.2": "127.0.0.1"})
    streams = [(s["sender"], s["socket"], s["dialled"], s["data"]) for s in found["streams"]]
    assert streams == [("10.0.2.15", "d", True, DATA), ("127.0.0.1", "d", False, b"answer")]
    assert found["order"] == [[0, 8], [1, 6]]


def test_bytes_that_come_twice_or_too_early_are_put_in_order() -> None:
    late = [
        (DIALLER, LISTENER, ACK, 112, b"efghi"),
        (DIALLER, LISTENER, ACK, 100, DATA),
        (DIALLER, LISTENER, ACK, 108, b"abcdef"),
    ]
    found = unpacked(capture([*hello(), *late]))
    assert found["streams"][0]["data"] == DATA + b"abcdefghi"
    assert sum(count for index, count in found["order"] if index == 0) == 17


def test_sequence_numbers_may_wrap_around() -> None:
    start = (1 << 32) - 5
    more = (DIALLER, LISTENER, ACK, (start + 9) & 0xFFFFFFFF, b"after")
    found = unpacked(capture([*hello(start=start), more]))
    assert found["streams"][0]["data"] == DATA + b"after"


def test_connections_of_other_programs_are_left_out() -> None:
    other = [
        (DIALLER, ("10.0.2.2", 10809), SYN, 99, b""),
        (DIALLER, ("10.0.2.2", 10809), ACK, 100, b"NBDMAGIC"),
    ]
    assert len(unpacked(capture([*other, *hello()]))["streams"]) == 2


def test_a_capture_with_a_hole_is_refused() -> None:
    hole = (DIALLER, LISTENER, ACK, 120, b"after a hole")
    with pytest.raises(SystemExit, match="bytes are missing"):
        vector(capture([*hello(), hole]), {})
