"""The client's half of the NBD protocol as bytes: for tests of a server, by hand and with mistakes.

Written from the protocol document and not from the product: nothing is imported from there.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO = 1, 2, 3, 5, 6, 7
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = 8, 9, 10, 11
ACK, SERVER, REP_INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID = 1 << 31 | 1, 1 << 31 | 2, 1 << 31 | 3
ERR_UNKNOWN, ERR_TOO_BIG = 1 << 31 | 6, 1 << 31 | 9
ERR_TLS_REQD = 1 << 31 | 5
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF


def client_flags(flags: int = FIXED_NEWSTYLE | NO_ZEROES) -> bytes:
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    """`length`: what to claim instead of the truth."""
    claimed = len(data) if length is None else length
    return b"IHAVEOPT" + struct.pack(">II", number, claimed) + data


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(encoded)) + encoded


def go(name: str = "", infos: tuple[int, ...] = (), *, number: int = GO) -> bytes:
    data = text(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)
    return option(number, data)


def meta_context(number: int, name: str, *queries: str) -> bytes:
    return option(
        number, text(name) + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
    )


def request(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


def write(offset: int, data: bytes, *, flags: int = 0, cookie: int = 0) -> bytes:
    return request(WRITE, offset, len(data), flags=flags, cookie=cookie) + data


class OptionReply(NamedTuple):
    option: int
    kind: int
    data: bytes


class Reply(NamedTuple):
    """A reply to a request. code: errno; offset: of the data; data: of a READ, or of an error."""

    cookie: int
    code: int
    data: bytes = b""
    kind: int = 0


GREETING = b"NBDMAGICIHAVEOPT\x00\x03"


def option_replies(data: bytes) -> list[OptionReply]:
    """All of them, with nothing left over."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x3E889045565A9, data[:20]
        found.append(OptionReply(number, kind, data[20 : 20 + length]))
        assert len(data) >= 20 + length
        data = data[20 + length :]
    return found


def simple_replies(data: bytes, reads: dict[int, int]) -> list[Reply]:
    """Simple replies. reads: cookie -> length, of the READs among them."""
    found = []
    while data:
        magic, code, cookie = struct.unpack_from(">IIQ", data)
        assert magic == SIMPLE, data[:16]
        length = reads.get(cookie, 0) if not code else 0
        found.append(Reply(cookie, code, data[16 : 16 + length]))
        assert len(data) >= 16 + length
        data = data[16 + length :]
    return found


def chunk_length(header: bytes) -> int:
    """Bytes that follow a structured chunk's header of 20 bytes."""
    return int(struct.unpack_from(">I", header, 16)[0])


def mixed_replies(data: bytes) -> list[Reply]:
    """Where structured replies were agreed: simple ones (never with data) and chunks."""
    found = []
    while data:
        if struct.unpack_from(">I", data)[0] == SIMPLE:
            _, code, cookie = struct.unpack_from(">IIQ", data)
            found.append(Reply(cookie, code))
            data = data[16:]
            continue
        magic, flags, kind, cookie, length = struct.unpack_from(">IHHQI", data)
        assert (magic, flags) == (STRUCTURED, 1), data[:20]
        body = data[20 : 20 + length]
        assert len(body) == length
        if kind == 0x8001:
            code, size = struct.unpack_from(">IH", body)
            assert len(body) == 6 + size
            found.append(Reply(cookie, code, body[6:], kind))
        else:
            found.append(Reply(cookie, 0, body, kind))
        data = data[20 + length :]
    return found
