"""Numbers and layouts of the NBD protocol, and the encoding of everything that a server sends.

Names are those of the protocol document of the NBD project, without the prefix NBD_.
Rules: no state, no I/O. All integers are big-endian.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

from nbd_plugin.native import quick

INIT_MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

STRING_MAX: Final = 4096
"""Bytes of a name or of any other text; the protocol promises nothing longer."""
MINIMUM_BLOCK: Final = 512
PREFERRED_BLOCK: Final = 4096
MAXIMUM_BLOCK: Final = 32 << 20
"""Largest payload of a READ or WRITE."""

ALLOCATION: Final = "base:allocation"
ALLOCATION_ID: Final = 1
"""Our id for the one metadata context that there is."""

HANDSHAKE: Final = Struct(">8s8sH")
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">8sII")
OPTION_REPLY: Final = Struct(">QIII")
REQUEST: Final = Struct(">IHHQQI")
CHUNK: Final = Struct(">IHHQI")
DATA_CHUNK: Final = Struct(">IHHQIQ")
ERROR_CHUNK: Final = Struct(">IHHQIIH")
STATUS_CHUNK: Final = Struct(">IHHQIIII")
EXPORT: Final = Struct(">QH")
EXPORT_PADDING: Final = bytes(124)

U16: Final = Struct(">H")
U32: Final = Struct(">I")


class HandshakeFlag(IntFlag):
    """Offered by the server, and taken with the same values by the client."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(IntEnum):
    """Types of option replies."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256


# Commands and their flags. Plain numbers: each request is compared with several of them, and members
# of an enumeration would cost as much as all the rest of the parsing.

CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_CACHE: Final = 5
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

FLAG_FUA: Final = 1
FLAG_NO_HOLE: Final = 2
FLAG_DF: Final = 4
FLAG_REQ_ONE: Final = 8
FLAG_FAST_ZERO: Final = 16

# Structured replies.

CHUNK_OFFSET_DATA: Final = 1
CHUNK_BLOCK_STATUS: Final = 5
CHUNK_ERROR: Final = 0x8001
CHUNK_DONE: Final = 1

_ERRNOS: Final = {
    errno.EPERM: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.EACCES: errno.EPERM,
    errno.EIO: errno.EIO,
    errno.ENOMEM: errno.ENOMEM,
    errno.EINVAL: errno.EINVAL,
    errno.ENOSPC: errno.ENOSPC,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
    errno.EOVERFLOW: errno.EOVERFLOW,
    errno.ENOTSUP: errno.ENOTSUP,
    errno.ESHUTDOWN: errno.ESHUTDOWN,
}
"""The errors that the protocol knows, by the errno they stand for; all else is EIO."""


def wire_errno(code: int) -> int:
    """The number to send for an errno; 0 stays 0."""
    return _ERRNOS.get(code, errno.EIO) if code else 0


# The handshake.


def greeting() -> bytes:
    return HANDSHAKE.pack(
        INIT_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    )


def option_reply(option: int, answer: Answer, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, answer, len(data)) + data


def option_error(option: int, answer: Answer, message: str) -> bytes:
    """`message` is for people; clients show it or log it."""
    return option_reply(option, answer, message.encode()[:STRING_MAX])


def text(value: str) -> bytes:
    """A text with its length in front."""
    encoded = value.encode()
    return U32.pack(len(encoded)) + encoded


def export_info(size: int, flags: int) -> bytes:
    return U16.pack(Info.EXPORT) + EXPORT.pack(size, flags)


def block_size_info() -> bytes:
    sizes = (MINIMUM_BLOCK, PREFERRED_BLOCK, MAXIMUM_BLOCK)
    return U16.pack(Info.BLOCK_SIZE) + b"".join(map(U32.pack, sizes))


def text_info(kind: Info, value: str) -> bytes:
    return U16.pack(kind) + value.encode()


# Transmission.


def simple_reply(cookie: int, code: int) -> bytes:
    """code: an errno or 0. For all requests but READ and BLOCK_STATUS, and for a failed READ."""
    return quick.simple_reply(cookie, wire_errno(code))


def data_header(cookie: int, offset: int, length: int) -> bytes:
    """In front of the data of a successful READ, where structured replies were agreed."""
    return DATA_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC, CHUNK_DONE, CHUNK_OFFSET_DATA, cookie, 8 + length, offset
    )


def error_chunk(cookie: int, code: int, message: str = "") -> bytes:
    encoded = message.encode()[:STRING_MAX]
    return (
        ERROR_CHUNK.pack(
            STRUCTURED_REPLY_MAGIC,
            CHUNK_DONE,
            CHUNK_ERROR,
            cookie,
            6 + len(encoded),
            wire_errno(code),
            len(encoded),
        )
        + encoded
    )


def status_chunk(cookie: int, length: int, status: int) -> bytes:
    """One extent of base:allocation; status 0 is allocated data."""
    return STATUS_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC,
        CHUNK_DONE,
        CHUNK_BLOCK_STATUS,
        cookie,
        12,
        ALLOCATION_ID,
        length,
        status,
    )
