"""The commands of DRBD 8.4's protocol: codes, sockets and payload bounds, in one table.

Rules:
1. Codes and bounds are facts of protocol versions 100 and 101; they never change.
2. Every payload length is checked against `SPECS` before anything else looks at the payload, so
   nobody ever waits for, or allocates, more than a command may carry.
3. Nothing here knows what a payload contains; `packets.py` does.

Sockets: "d" is the data socket, "m" the meta socket (acknowledgements and keep-alives), "dm" both.
Lengths are payload bytes, without the header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

SECTOR = 512
MAX_DATA = 1 << 20
"""Largest data of one P_DATA, read or resync request, in bytes."""
MAX_TRIM = 128 << 20
"""Largest P_TRIM or P_ZEROES, in bytes."""
MAX_SECTORS = 1 << 51
"""Largest device, in sectors."""
MAX_DIGEST = 64
MAX_NAME = 64
"""Algorithm names, with their NUL."""
MAX_BITMAP_PAYLOAD = 4080
"""A bitmap packet with its 16-byte header fits 4096 bytes."""
MIN_CHALLENGE = 64
MAX_CHALLENGE = 128
MAX_EXTENSION = 64 << 10
MAX_WSAME_BLOCK = 64 << 10
MAX_VOLUME = 0xFFFE
CONNECTION_VOLUME = 0xFFFF
"""What DRBD 9 puts into the volume field of connection-wide packets; 8.4 puts 0."""


class Command(IntEnum):
    DATA = 0x00
    DATA_REPLY = 0x01
    RS_DATA_REPLY = 0x02
    BARRIER = 0x03
    BITMAP = 0x04
    UNPLUG_REMOTE = 0x07
    DATA_REQUEST = 0x08
    RS_DATA_REQUEST = 0x09
    PROTOCOL = 0x0B
    UUIDS = 0x0C
    SIZES = 0x0D
    STATE = 0x0E
    SYNC_UUID = 0x0F
    AUTH_CHALLENGE = 0x10
    AUTH_RESPONSE = 0x11
    STATE_CHG_REQ = 0x12
    PING = 0x13
    PING_ACK = 0x14
    RECV_ACK = 0x15
    WRITE_ACK = 0x16
    RS_WRITE_ACK = 0x17
    SUPERSEDED = 0x18
    NEG_ACK = 0x19
    NEG_DREPLY = 0x1A
    NEG_RS_DREPLY = 0x1B
    BARRIER_ACK = 0x1C
    STATE_CHG_REPLY = 0x1D
    OV_REQUEST = 0x1E
    OV_REPLY = 0x1F
    OV_RESULT = 0x20
    CSUM_RS_REQUEST = 0x21
    RS_IS_IN_SYNC = 0x22
    SYNC_PARAM89 = 0x23
    COMPRESSED_BITMAP = 0x24
    DELAY_PROBE = 0x27
    OUT_OF_SYNC = 0x28
    RS_CANCEL = 0x29
    CONN_ST_CHG_REQ = 0x2A
    CONN_ST_CHG_REPLY = 0x2B
    RETRY_WRITE = 0x2C
    PROTOCOL_UPDATE = 0x2D
    TRIM = 0x31
    RS_THIN_REQ = 0x32
    RS_DEALLOCATED = 0x33
    WSAME = 0x34
    ZEROES = 0x36
    EXTENSION = 0x7A01
    """Ours, data socket: only between two replicators (`extensions.py`)."""
    META_EXTENSION = 0x7A02
    """Ours, meta socket."""
    INITIAL_META = 0xFFF1
    INITIAL_DATA = 0xFFF2
    CONNECTION_FEATURES = 0xFFFE


class DpFlags:
    """Bits of `dp_flags` in data packets. Plain numbers: they are tested once per write."""

    RW_SYNC: Final = 2
    MAY_SET_IN_SYNC: Final = 4
    FUA: Final = 16
    FLUSH: Final = 32
    DISCARD: Final = 64
    SEND_RECEIVE_ACK: Final = 128
    SEND_WRITE_ACK: Final = 256
    WSAME: Final = 512
    ZEROES: Final = 1024


class CommandSpec(NamedTuple):
    """One row of the table. `fixed` is the length of the part every packet has."""

    name: str
    socket: str
    fixed: int
    variable: bool
    min_payload: int
    max_payload: int
    early: bool
    """Travels with the h80 header, before the features handshake has ended."""
    connection_wide: bool
    """About the connection as a whole: the header's volume means nothing."""


SPECS: dict[int, CommandSpec] = {}


def _row(
    command: Command,
    socket: str,
    fixed: int,
    low: int | None = None,
    high: int | None = None,
    *,
    early: bool = False,
    wide: bool = False,
) -> None:
    """low and high: bounds of a payload of variable length; without them it is `fixed` exactly."""
    low = fixed if low is None else low
    variable = high is not None
    high = fixed if high is None else high
    name = "P_" + command.name
    SPECS[int(command)] = CommandSpec(name, socket, fixed, variable, low, high, early, wide)


_C = Command
_row(_C.DATA, "d", 24, 24, 24 + MAX_DIGEST + MAX_DATA)
_row(_C.DATA_REPLY, "d", 24, 24, 24 + MAX_DIGEST + MAX_DATA)
_row(_C.RS_DATA_REPLY, "d", 24, 24, 24 + MAX_DIGEST + MAX_DATA)
_row(_C.BARRIER, "d", 8, wide=True)
_row(_C.BITMAP, "d", 0, 0, MAX_BITMAP_PAYLOAD)
_row(_C.UNPLUG_REMOTE, "d", 0)
_row(_C.DATA_REQUEST, "d", 24)
_row(_C.RS_DATA_REQUEST, "d", 24)
_row(_C.PROTOCOL, "d", 24, 25, 24 + MAX_NAME, wide=True)
_row(_C.UUIDS, "d", 48)
_row(_C.SIZES, "d", 32, 32, 56)
_row(_C.STATE, "d", 4)
_row(_C.SYNC_UUID, "d", 8)
_row(_C.AUTH_CHALLENGE, "d", 0, MIN_CHALLENGE, MAX_CHALLENGE, wide=True)
_row(_C.AUTH_RESPONSE, "d", 0, 1, MAX_DIGEST, wide=True)
_row(_C.STATE_CHG_REQ, "d", 8)
_row(_C.PING, "m", 0, wide=True)
_row(_C.PING_ACK, "m", 0, wide=True)
_row(_C.RECV_ACK, "m", 24)
_row(_C.WRITE_ACK, "m", 24)
_row(_C.RS_WRITE_ACK, "m", 24)
_row(_C.SUPERSEDED, "m", 24)
_row(_C.NEG_ACK, "m", 24)
_row(_C.NEG_DREPLY, "m", 24)
_row(_C.NEG_RS_DREPLY, "m", 24)
_row(_C.BARRIER_ACK, "m", 8, wide=True)
_row(_C.STATE_CHG_REPLY, "m", 4)
_row(_C.OV_REQUEST, "d", 24)
_row(_C.OV_REPLY, "d", 24, 24, 24 + MAX_DIGEST)
_row(_C.OV_RESULT, "m", 24)
_row(_C.CSUM_RS_REQUEST, "d", 24, 24, 24 + MAX_DIGEST)
_row(_C.RS_IS_IN_SYNC, "m", 24)
_row(_C.SYNC_PARAM89, "d", 148)
_row(_C.COMPRESSED_BITMAP, "d", 1, 2, MAX_BITMAP_PAYLOAD)
_row(_C.DELAY_PROBE, "dm", 8)
_row(_C.OUT_OF_SYNC, "d", 16)
_row(_C.RS_CANCEL, "m", 24)
_row(_C.CONN_ST_CHG_REQ, "d", 8, wide=True)
_row(_C.CONN_ST_CHG_REPLY, "m", 4, wide=True)
_row(_C.RETRY_WRITE, "m", 24)
_row(_C.PROTOCOL_UPDATE, "d", 24, 25, 24 + MAX_NAME, wide=True)
_row(_C.TRIM, "d", 28)
_row(_C.RS_THIN_REQ, "d", 24)
_row(_C.RS_DEALLOCATED, "d", 16)
_row(_C.WSAME, "d", 28, 28 + SECTOR, 28 + MAX_DIGEST + MAX_WSAME_BLOCK)
_row(_C.ZEROES, "d", 28)
_row(_C.EXTENSION, "d", 0, 1, MAX_EXTENSION, wide=True)
_row(_C.META_EXTENSION, "m", 0, 1, MAX_EXTENSION, wide=True)
_row(_C.INITIAL_META, "m", 0, early=True, wide=True)
_row(_C.INITIAL_DATA, "d", 0, early=True, wide=True)
_row(_C.CONNECTION_FEATURES, "d", 72, early=True, wide=True)


def command_name(command: int) -> str:
    """Returns "P_DATA", or "command 0x1234" for a code that is not in the table."""
    spec = SPECS.get(command)
    return spec.name if spec else f"command {command:#06x}"


def expected_length(command: int) -> str:
    """For messages: "24 bytes", or "24 to 88 bytes"."""
    spec = SPECS[command]
    if spec.min_payload == spec.max_payload:
        return f"{spec.min_payload} bytes"
    return f"{spec.min_payload} to {spec.max_payload} bytes"
