"""The few packets that make up nearly all traffic: mirrored writes, resync data, acknowledgements.

Its compiled twin is not made from this file but written by hand, in quick.c (replicator/compiled.py).
Rules: both give the same results for all input; what is not plainly correct is not judged here.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from protocol.commands import MAX_DATA, MAX_SECTORS, MAX_TRIM, Command

if TYPE_CHECKING:
    from protocol.framing import Block

MAGIC_100: Final = 0x8620EC20
FRAME_SIZE: Final = 40
"""Bytes of a frame in front of its data, or of an acknowledgement."""

_HEADER: Final = 16
_FIELDS: Final = 24
_DATA: Final = int(Command.DATA)
_WITH_DATA: Final = frozenset({_DATA, int(Command.RS_DATA_REPLY)})
_FRAME: Final = Struct(">IHHIIQQII")
assert _FRAME.size == FRAME_SIZE


def block(chunk: bytes, at: int, commands: int) -> Block | int | None:
    """The frame that begins at `at`, if its command is one of `commands` (bit n: command n) and it is
    plainly correct. An int: such a frame of so many bytes, of which not all is here. Else None."""
    if at < 0 or len(chunk) - at < FRAME_SIZE:
        return None
    fields: tuple[int, ...] = _FRAME.unpack_from(chunk, at)
    magic, volume, command, length, pad, sector, block_id, third, fourth = fields
    if magic != MAGIC_100 or pad or not commands >> command & 1:
        return None
    if length == _FIELDS:
        size = third
        if command in _WITH_DATA:
            return None
    else:
        size = length - _FIELDS
        if command not in _WITH_DATA or not 0 < size <= MAX_DATA:
            return None
    if size & 511 or size > MAX_TRIM or sector + (size >> 9) > MAX_SECTORS:
        return None
    end = at + _HEADER + length
    if end > len(chunk):
        return end - at
    return command, volume, sector, block_id, third, fourth, chunk[at + FRAME_SIZE : end]


def data_packet(
    volume: int, sector: int, block_id: int, seq: int, flags: int, data: bytes
) -> bytes:
    """A whole P_DATA, without a digest. Raises struct.error for numbers that do not fit."""
    length = _FIELDS + len(data)
    return _FRAME.pack(MAGIC_100, volume, _DATA, length, 0, sector, block_id, seq, flags) + data


def block_ack(volume: int, command: int, sector: int, block_id: int, size: int, seq: int) -> bytes:
    """A whole frame of any command that carries a BlockAck. Raises struct.error."""
    return _FRAME.pack(MAGIC_100, volume, command, _FIELDS, 0, sector, block_id, size, seq)
