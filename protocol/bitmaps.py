"""The bitmap exchange: a bitmap to packets and packets to runs of set bits.

Rules:
1. A transfer covers the bits in ascending order, by plain packets (P_BITMAP: 64-bit words) and
   run-length coded ones (P_COMPRESSED_BITMAP), mixed as the sender likes.
2. It is complete when a compressed packet ends exactly at the last bit, or by an empty P_BITMAP
   after plain packets have sent the last word.
3. Both ends count a position in bits and one in words. A compressed packet moves on by its runs,
   word = bit // 64; a plain one by its words, bit = word * 64. So where a plain packet follows a
   compressed one, up to 63 bits are sent twice: receivers only ever set bits.
4. No loop here goes over single bits: runs are found by splitting text, whole windows by
   comparison. One packet's work is bounded, so a caller can take turns with other work.

Bit n is bit n % 8, counted from the least significant, of byte n // 8. Sizes are bits unless the
name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.commands import MAX_BITMAP_PAYLOAD
from protocol.errors import BadLength, BadValue, WrongPhase
from protocol.packets import Command, command_name

Buffer = bytes | bytearray | memoryview

PLAIN_WORDS = MAX_BITMAP_PAYLOAD // 8
CODE_BITS = (MAX_BITMAP_PAYLOAD - 1) * 8
"""Code in one compressed packet, besides its first byte."""
RLE_VLI = 2
"""The only encoding in use: run lengths as integers of variable length."""

_WINDOW = 4096
_ZEROES = bytes(_WINDOW)
_ONES = b"\xff" * _WINDOW
_CHECK_CODE_BITS = 4096
"""How much code may be written before it must have paid off."""
_MAX_BACKOFF = 16


class _Level(NamedTuple):
    """A row of the run length table: `first` to `last`, by a prefix and `data` bits after it."""

    prefix: int
    width: int
    data: int
    first: int
    last: int


def _levels() -> tuple[_Level, ...]:
    rows = [(0x00, 1, 1), (0x01, 2, 1), (0x03, 3, 2), (0x07, 4, 3), (0x0F, 5, 5), (0x1F, 6, 8)]
    rows += [(0x3F, 8, 13), (0x7F, 8, 21), (0xBF, 8, 34), (0xFF, 8, 56)]
    levels, first = [], 1
    for prefix, width, data in rows:
        last = first + (1 << data) - 1
        levels.append(_Level(prefix, width, data, first, last))
        first = last + 1
    return tuple(levels)


LEVELS = _levels()
MAX_RUN = LEVELS[-1].last


def _level_of_prefix() -> tuple[tuple[int, int, int, int], ...]:
    """(whole width, prefix width, mask of the data, first run) by the low 8 bits of the code."""
    table = []
    for low in range(256):
        for level in LEVELS:
            if low & ((1 << level.width) - 1) == level.prefix:
                mask = (1 << level.data) - 1
                table.append((level.width + level.data, level.width, mask, level.first))
                break
    return tuple(table)


_BY_PREFIX = _level_of_prefix()


def _code(run: int) -> str:
    """The code of a run length, as text of 0 and 1, the first bit on the wire left."""
    for level in LEVELS:
        if run <= level.last:
            value = (run - level.first) << level.width | level.prefix
            return f"{value:0{level.width + level.data}b}"[::-1]
    raise ValueError(f"a run of {run} bits is longer than {MAX_RUN}")


_SHORT_CODES = [""] + [_code(run) for run in range(1, 8497)]


def _transitions(chunk: bytes, bits: int, previous: int) -> list[int]:
    """Lengths of the pieces of `bits` bits between changes of value; the first belongs to the run
    of value `previous` that came before (0 if the value changes at once)."""
    value = int.from_bytes(chunk, "little") & ((1 << bits) - 1)
    changes = (value ^ (value << 1 | previous)) & ((1 << bits) - 1)
    # A mark above the highest bit fixes the width: bin() text backwards, without the mark and "0b".
    text = bin(changes | 1 << bits)[:2:-1]
    pieces = [len(piece) + 1 for piece in text.split("1")]
    pieces[0] -= 1
    return pieces


class _Runs:
    """The runs of a bitmap from a word boundary on, in alternating polarity.

    Each byte is read once, so a bitmap that changes meanwhile cannot confuse it.
    """

    def __init__(self, bitmap: Buffer, bits: int, start: int) -> None:
        self._bitmap = bitmap
        self._bits = bits
        self._at = start
        self._value = -1
        """Of the open run; the first bit decides it when it is read."""
        self._open = 0
        """Bits so far of the run that no change has ended yet."""
        self._ready: list[int] = []
        self._next = 0
        self.polarity = 0
        """Value of the run that `peek` shows."""

    def peek(self) -> int:
        """Length of the next run, 0 at the end."""
        if self._next == len(self._ready):
            self._fill()
        return self._ready[self._next] if self._ready else 0

    def skip(self) -> None:
        self._next += 1
        self.polarity ^= 1

    def _fill(self) -> None:
        ready: list[int] = []
        while not ready and self._at < self._bits:
            offset = self._at >> 3
            chunk = bytes(self._bitmap[offset : offset + _WINDOW])
            count = min(_WINDOW * 8, self._bits - self._at)
            if self._value < 0:
                self._value = self.polarity = chunk[0] & 1
            self._at += count
            if chunk == (_ONES if self._value else _ZEROES) and count == _WINDOW * 8:
                self._open += count
                continue
            pieces = _transitions(chunk, count, self._value)
            pieces[0] += self._open
            self._open = pieces.pop()
            self._value ^= len(pieces) & 1
            ready = pieces
        if not ready and self._open:
            ready, self._open = [self._open], 0
        self._ready, self._next = ready, 0


class BitmapSender:
    """Iterate over it for (command, payload) until the transfer is complete.

    bits: size of the bitmap, at least 1; bitmap: its bytes, which may change while this runs (each
    bit is then sent as it was at some moment); use_rle: compress where that makes it smaller.
    """

    def __init__(self, bits: int, bitmap: Buffer, use_rle: bool = True) -> None:
        if bits < 1 or len(bitmap) * 8 < bits:
            raise ValueError(f"{bits} bits do not fit a bitmap of {len(bitmap)} bytes")
        self._bits = bits
        self._bitmap = bitmap
        self._use_rle = use_rle
        self._words = (bits + 63) >> 6
        self._bit = 0
        self._word = 0
        self._runs: _Runs | None = None
        self._plain_left = 0
        self._backoff = 0

    @property
    def bits_sent(self) -> int:
        """The position, for progress."""
        return self._bit

    def __iter__(self) -> Iterator[tuple[Command, bytes]]:
        while True:
            if self._use_rle and self._bit < self._bits and not self._plain_left:
                payload = self._compressed()
                if payload:
                    yield Command.COMPRESSED_BITMAP, payload
                    if self._bit == self._bits:
                        return
                    continue
            self._plain_left = max(0, self._plain_left - 1)
            payload = self._plain()
            yield Command.BITMAP, payload
            if not payload:
                return

    def _plain(self) -> bytes:
        words = min(PLAIN_WORDS, self._words - self._word)
        start = self._word * 8
        self._word += words
        self._bit = min(self._word * 64, self._bits)
        self._runs = None
        payload = bytes(self._bitmap[start : start + words * 8])
        if self._word == self._words and words:
            # The bitmap may end within its last word, and have other bits set after its end.
            last = int.from_bytes(payload, "little") & ((1 << (self._bits - start * 8)) - 1)
            payload = last.to_bytes(words * 8, "little")
        return payload

    def _compressed(self) -> bytes:
        """One packet of runs from the position on, b"" if plain bits would take less room."""
        runs = self._runs or _Runs(self._bitmap, self._bits, self._bit)
        codes: list[str] = []
        polarity = -1
        covered = used = 0
        paid_covered = paid_used = 0
        while run := runs.peek():
            code = _SHORT_CODES[run] if run <= 8496 else _code(run)
            if used + len(code) > CODE_BITS:
                break
            if not codes:
                polarity = runs.polarity
            codes.append(code)
            used += len(code)
            covered += run
            runs.skip()
            if used - paid_used >= _CHECK_CODE_BITS:
                if covered - paid_covered < used - paid_used:
                    break
                paid_covered, paid_used = covered, used
        size = (used + 7) >> 3
        if covered < size * 8:
            # Denser than plain bits. What follows likely is, too: try less and less often.
            self._backoff = min(_MAX_BACKOFF, self._backoff * 2 or 1)
            self._plain_left = self._backoff
            self._runs = None
            return b""
        self._backoff = 0
        self._runs = runs
        self._bit += covered
        self._word = self._bit >> 6
        pad = size * 8 - used
        code_bytes = int("".join(codes)[::-1], 2).to_bytes(size, "little")
        return bytes((polarity << 7 | pad << 4 | RLE_VLI,)) + code_bytes


class BitmapReceiver:
    """Takes the peer's packets in order and tells which bits they set, until it is `complete`."""

    def __init__(self, bits: int) -> None:
        if bits < 1:
            raise ValueError(f"a bitmap of {bits} bits cannot be received")
        self._bits = bits
        self._words = (bits + 63) >> 6
        self._bit = 0
        self._word = 0
        self.complete = False

    @property
    def bits_received(self) -> int:
        """The position, for progress."""
        return self._bit

    def receive(self, command: int, payload: bytes) -> list[tuple[int, int]]:
        """Take one packet: (first bit, count) of each run of set bits in it, ascending.

        Raises WireError for another command, a packet after the end, a wrong length, a broken code
        or a run that goes beyond the last bit; nothing is taken then.
        """
        if self.complete:
            raise WrongPhase(f"{command_name(command)}: expected no more of a complete bitmap")
        if command == Command.BITMAP:
            return self._receive_plain(payload)
        if command == Command.COMPRESSED_BITMAP:
            return self._receive_compressed(payload)
        raise WrongPhase(
            f"{command_name(command)}: expected P_BITMAP or P_COMPRESSED_BITMAP until the bitmap "
            f"is complete, found it at bit {self._bit} of {self._bits}"
        )

    def _receive_plain(self, payload: bytes) -> list[tuple[int, int]]:
        words = min(PLAIN_WORDS, self._words - self._word)
        if len(payload) != words * 8:
            raise BadLength(
                f"P_BITMAP: expected {words * 8} bytes at word {self._word} of {self._words}, "
                f"found {len(payload)}: the nodes may not agree on the device's size"
            )
        if not words:
            self.complete = True
            return []
        start = self._word * 64
        self._word += words
        self._bit = min(self._word * 64, self._bits)
        if payload == _ZEROES[: len(payload)]:
            return []
        found = []
        at, value = start, 0
        for piece in _transitions(payload, self._bit - start, 0):
            if value and piece:
                found.append((at, piece))
            at += piece
            value ^= 1
        return found

    def _receive_compressed(self, payload: bytes) -> list[tuple[int, int]]:
        if not 2 <= len(payload) <= MAX_BITMAP_PAYLOAD:
            raise BadLength(
                f"P_COMPRESSED_BITMAP: expected 2 to {MAX_BITMAP_PAYLOAD} bytes, "
                f"found {len(payload)}"
            )
        head = payload[0]
        if head & 15 != RLE_VLI:
            raise BadValue(f"P_COMPRESSED_BITMAP: expected encoding {RLE_VLI}, found {head & 15}")
        found = []
        bit, value = self._bit, head >> 7
        for run in _decode_runs(payload, (len(payload) - 1) * 8 - (head >> 4 & 7)):
            if bit + run > self._bits:
                raise BadValue(
                    f"P_COMPRESSED_BITMAP: expected runs within {self._bits} bits, found one of "
                    f"{run} at bit {bit}: the nodes may not agree on the device's size"
                )
            if value:
                found.append((bit, run))
            bit += run
            value ^= 1
        self._bit = bit
        self._word = bit >> 6
        self.complete = bit == self._bits
        return found


def _decode_runs(payload: bytes, left: int) -> Iterator[int]:
    """The run lengths in `left` bits of code after the payload's first byte."""
    window = have = 0
    at = 1
    while left:
        if have < 64:
            # Sixteen bytes at a time: a code is 64 bits at most, and small numbers are fast.
            window |= int.from_bytes(payload[at : at + 16], "little") << have
            at += 16
            have += 128
        total, width, mask, first = _BY_PREFIX[window & 255]
        if total > left:
            raise BadValue(
                f"P_COMPRESSED_BITMAP: expected a code of {total} bits, found {left} left"
            )
        yield first + (window >> width & mask)
        window >>= total
        have -= total
        left -= total
