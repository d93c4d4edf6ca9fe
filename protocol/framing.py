"""Byte stream to frames: finds the packets in what a socket delivers, in whatever pieces.

Rules:
1. A length is checked against the table as soon as its header is there, before anything waits for
   the payload: at most one largest packet is ever buffered.
2. Every byte is copied a bounded number of times, however the stream is cut up.
3. The first error is final: the stream has lost its frame boundaries, the connection must end.
4. What a payload means is not known here.

Two header formats are spoken: h80 (8 bytes) until both nodes have announced their features, h100
(16 bytes) from then on. h95 belongs to protocol versions we do not announce.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from protocol.commands import (
    SPECS,
    Command,
    command_name,
    expected_length,
)
from protocol.errors import (
    BadHeader,
    BadLength,
    BadMagic,
    UnknownCommand,
    WireError,
    WrongPhase,
    WrongSocket,
)
from protocol.lent import lend
from protocol.packets import MAGIC_80, MAGIC_100
from protocol.quick import FRAME_SIZE, block

_MAGIC_95 = 0x835A
_H80_UNPACK = Struct(">IHH").unpack_from
_H100_UNPACK = Struct(">IHHII").unpack_from
_MAGIC_UNPACK: Final = Struct(">I").unpack_from
_BLOCK_UNPACK: Final = Struct(">IHHIIQQII").unpack_from
_H80_SIZE = 8
_H100_SIZE = 16
_SOCKETS = {"d": "data socket", "m": "meta socket"}


DATA: Final = int(Command.DATA)
WITH_DATA: Final = frozenset({DATA, int(Command.RS_DATA_REPLY)})
DIRECT: Final = WITH_DATA | {int(Command.WRITE_ACK), int(Command.RECV_ACK)}
"""Commands for next_block()."""

LARGE: Final = 128 * 1024
"""Bytes of data that are received where they stay, if the rest of a frame has not come yet. For less it
is not worth the memory's being cleared first."""


Block = tuple[int, int, int, int, int, int, bytes | memoryview]
"""Command, volume, sector, block id, two numbers (with data: sequence number and flags; acknowledgements:
size in bytes and sequence number), data. Not a NamedTuple: making one costs as much as the parsing."""


class Frame(NamedTuple):
    """One packet, still encoded. `volume` is 0 with the h80 header."""

    command: int
    volume: int
    payload: bytes


_new_frame = tuple.__new__


class FrameReader:
    """Reads one direction of one socket: feed it what arrives, take frames until there are none.

    socket: "d" (data) or "m" (meta); "" accepts the commands of both, for an accepted connection
    that has not said yet which it is. May be set later.
    """

    def __init__(self, socket: str = "") -> None:
        self._h100 = False
        self._extensions = False
        self._chunk = b""
        self._at = 0
        self._later: list[bytes] = []
        self._later_size = 0
        self._need = 0
        self._large: Block | None = None
        """A frame whose data is received where it stays; of that, this much is not here yet:"""
        self._missing = memoryview(b"")
        self._error: WireError | None = None
        self._bounds: dict[int, tuple[int, int]] = {}
        self._direct = 0
        """Bit n: command n is one for next_block()."""
        self.socket = socket

    @property
    def socket(self) -> str:
        return self._socket

    @socket.setter
    def socket(self, name: str) -> None:
        if name not in ("", "d", "m"):
            raise ValueError(f'socket must be "d", "m" or "", not {name!r}')
        self._socket = name
        self._rebuild_bounds()

    @property
    def buffered(self) -> int:
        """Bytes fed that no frame has been made of yet."""
        large = len(self._large[6]) - len(self._missing) if self._large is not None else 0
        return len(self._chunk) - self._at + self._later_size + large

    def switch_to_h100(self, *, extensions: bool = True) -> None:
        """The features handshake is over: frames not yet taken have the h100 header.

        extensions: whether the peer may send our extension packets (it is a replicator).
        """
        self._h100 = True
        self._need = 0
        self._extensions = extensions
        self._rebuild_bounds()

    def space(self) -> memoryview | None:
        """Where the next bytes of the stream may be received directly, instead of being fed: the rest
        of a large frame. None: there is no such frame. Tell with filled() how many have come."""
        return self._missing or None

    def filled(self, count: int) -> None:
        """So many bytes have been put where space() said."""
        self._missing = self._missing[count:]

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what the socket delivered: any number of bytes, cut anywhere."""
        if (space := self.space()) is not None:
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.filled(count)
            data = data[count:]
        if not isinstance(data, bytes):
            data = bytes(data)
        if self._at == len(self._chunk) and not self._later:
            self._chunk = data
            self._at = 0
        elif data:
            self._later.append(data)
            self._later_size += len(data)

    def next_frame(self) -> Frame | None:
        """The next complete frame, None if it has not arrived yet. Raises WireError, every time."""
        if self._large is not None:
            return None
        header_size = _H100_SIZE if self._h100 else _H80_SIZE
        at = self._at
        here = len(self._chunk) - at
        need = self._need or header_size
        if here < need:
            # Joined only once all that is needed has come, so that pieces are joined once each.
            if here + self._later_size < need:
                return None
            self._join()
            at, here = 0, len(self._chunk)
        command, volume, length = self._header(at)
        end = header_size + length
        if here < end:
            self._need = end
            if here + self._later_size < end:
                return None
            self._join()
            at = 0
        chunk = self._chunk
        payload = chunk[at + header_size : at + end] if length else b""
        self._need = 0
        self._at = at + end
        if self._at == len(chunk):
            self._all_taken()
        return _new_frame(Frame, (command, volume, payload))

    def next_block(self) -> Block | None:
        """The next frame, if it is one of the few that make up nearly all traffic (DIRECT), is all
        here and is plainly correct: the same as `decode` of next_frame() gives, at a fraction of the
        cost. None: nothing has been taken, ask next_frame()."""
        if self._large is not None:
            return self._take_large()
        if self._error is not None:
            return None
        found = block(self._chunk, self._at, self._direct)
        if found is None:
            return None
        if isinstance(found, int):
            return self._cut_block(found)
        self._need = 0
        self._at += FRAME_SIZE + len(found[6])
        if self._at == len(self._chunk):
            self._all_taken()
        return found

    def _cut_block(self, length: int) -> Block | None:
        """A frame of so many bytes, some of which are in later pieces or have not come."""
        end = self._at + length
        size = length - FRAME_SIZE
        _, volume, command, _, _, sector, block_id, third, fourth = _BLOCK_UNPACK(
            self._chunk, self._at
        )
        if end - len(self._chunk) > self._later_size:
            if size >= LARGE:
                self._begin_large((command, volume, sector, block_id, third, fourth), size)
            return None
        self._need = 0
        data = self._take_across(self._at + FRAME_SIZE, end)
        if self._at == len(self._chunk):
            self._all_taken()
        return command, volume, sector, block_id, third, fourth, data

    def _begin_large(self, head: tuple[int, int, int, int, int, int], size: int) -> None:
        """What is here of a frame's data goes where the rest will be received."""
        self._missing = lend(size)
        self._large = (*head, self._missing)
        self._need = 0
        pieces = [self._chunk[self._at + FRAME_SIZE :], *self._later]
        self._chunk, self._at = b"", 0
        self._later.clear()
        self._later_size = 0
        for piece in pieces:
            self.feed(piece)

    def _take_large(self) -> Block | None:
        block = self._large
        if self._missing:
            return None
        self._large, self._missing = None, memoryview(b"")
        return block

    def _take_across(self, start: int, end: int) -> bytes:
        """Bytes [start, end), counted from the chunk's beginning, that end in a later piece: each is
        copied once, which for large payloads is what receiving costs."""
        parts = [memoryview(self._chunk)[start:]]
        left = end - len(self._chunk)
        later = self._later
        count = 0
        while left > len(later[count]):
            parts.append(memoryview(later[count]))
            left -= len(later[count])
            count += 1
        self._chunk, self._at = later[count], left
        parts.append(memoryview(self._chunk)[:left])
        del later[: count + 1]
        self._later_size = sum(map(len, later))
        return b"".join(parts)

    def _all_taken(self) -> None:
        """Not to keep a large buffer alive while the connection idles."""
        self._chunk = b""
        self._at = 0
        if self._later:
            self._join()

    def _join(self) -> None:
        self._chunk = b"".join((memoryview(self._chunk)[self._at :], *self._later))
        self._at = 0
        self._later.clear()
        self._later_size = 0

    def _header(self, at: int) -> tuple[int, int, int]:
        """Command, volume and payload length of the header at `at`, all checked."""
        if self._error is not None:
            raise self._error
        pad = 0
        if self._h100:
            magic, volume, command, length, pad = _H100_UNPACK(self._chunk, at)
            wanted = MAGIC_100
        else:
            magic, command, length = _H80_UNPACK(self._chunk, at)
            volume, wanted = 0, MAGIC_80
        bounds = self._bounds.get(command)
        if magic == wanted and bounds and bounds[0] <= length <= bounds[1] and not pad:
            return command, volume, length
        self._error = self._what_is_wrong(magic, wanted, command, length, pad)
        raise self._error

    def _what_is_wrong(
        self, magic: int, wanted: int, command: int, length: int, pad: int
    ) -> WireError:
        if magic != wanted:
            return _bad_magic(magic, wanted)
        name = command_name(command)
        spec = SPECS.get(command)
        if spec is None:
            where = _SOCKETS.get(self._socket, "new connection")
            return UnknownCommand(f"{where}: expected a known command, found {name}")
        if command not in self._bounds:
            if self._socket and self._socket not in spec.socket:
                proper, actual = _SOCKETS[spec.socket], _SOCKETS[self._socket]
                return WrongSocket(f"{name}: expected on the {proper}, found on the {actual}")
            if spec.early:
                return WrongPhase(f"{name}: expected before the features handshake, found after it")
            if self._h100:
                return UnknownCommand(
                    f"{name}: expected only from a replicator, found from another"
                )
            return WrongPhase(f"{name}: expected after the features handshake, found before it")
        if pad:
            return BadHeader(f"{name}: expected a header with pad 0, found {pad:#x}")
        return BadLength(f"{name}: expected {expected_length(command)}, found a length of {length}")

    def _rebuild_bounds(self) -> None:
        self._bounds = {
            command: (spec.min_payload, spec.max_payload)
            for command, spec in SPECS.items()
            if spec.early != self._h100
            and (not self._socket or self._socket in spec.socket)
            and (self._extensions or not spec.name.endswith("EXTENSION"))
        }
        # All of them are packets of the h100 header.
        self._direct = sum(1 << command for command in DIRECT if command in self._bounds)


def _bad_magic(magic: int, wanted: int) -> BadMagic:
    known = {MAGIC_80: "h80", MAGIC_100: "h100"}
    found = f"{magic:#010x}"
    if magic in known:
        found += f" (an {known[magic]} header)"
    elif magic >> 16 == _MAGIC_95:
        found += " (an h95 header: protocol 95 to 99, which we do not speak)"
    return BadMagic(f"header: expected magic {wanted:#010x} ({known[wanted]}), found {found}")
