"""The metadata as text: what dump-md prints and restore-md reads, in the field's own syntax.

Rules:
1. Comments are for people and never read; everything that counts is a statement.
2. Flags are printed as they are. (drbdmeta before 9.33 prints them as 0.)
3. Parsing is strict: statements in the one order, digits in the one number; errors name the line.
4. Long runs of equal words stay runs, in text and in memory.
What this file must not know: where the bytes come from and go to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from replicator.errors import MetadataError
from replicator.metadata.layout import Geometry, bitmap_bytes_used
from replicator.metadata.superblock import BM_BYTES_PER_BIT, Flags, Superblock

LINE_BYTES = 32
"""One line of bitmap text: four 64-bit words."""
COMMENT_BYTES = 256
"""Every 8 MiB of data a comment says where we are."""
KIB_PER_BYTE = 32
_LONG = 1 << 16
_LINE = struct.Struct("<4Q")
UNCLEAN_MARK = "unclean-metadata-do-not-restore"
"""Follows the version in a forced dump of unclean metadata; a syntax error to every reader."""


@dataclass(slots=True)
class Dump:
    """A parsed dump. `superblock` has the dump's fields; its layout fields are those of no device
    yet. runs: (how often, 64-bit word), in order."""

    superblock: Superblock
    runs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def words(self) -> int:
        return sum(count for count, _ in self.runs)

    def chunks(self, chunk_bytes: int, limit_bytes: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) pieces of at most chunk_bytes that hold every set bit below limit_bytes.
        What they leave out is zero. Both arguments are multiples of 8."""
        offset = 0
        piece = bytearray()
        for count, word in self.runs:
            count = min(count, (limit_bytes - offset - len(piece)) // 8)
            if not word and count * 8 >= chunk_bytes:
                if any(piece):
                    yield offset, bytes(piece)
                offset += len(piece) + count * 8
                piece.clear()
                continue
            encoded = word.to_bytes(8, "little")
            while count:
                take = min(count, (chunk_bytes - len(piece)) // 8)
                piece += encoded * take
                count -= take
                if len(piece) == chunk_bytes:
                    yield offset, bytes(piece)
                    offset += len(piece)
                    piece.clear()
        if any(piece):
            yield offset, bytes(piece)


def dump_text(
    superblock: Superblock, geometry: Geometry, bitmap: bytes, header: Sequence[str] = ()
) -> str:
    """The whole dump. bitmap: the bytes in use (see used_bytes()); header: comment lines."""
    return "".join(dump_lines(superblock, geometry, bitmap, header))


def used_bytes(superblock: Superblock, geometry: Geometry) -> int:
    """Bytes of bitmap that a dump covers: those of the agreed size, as far as there is room."""
    return bitmap_bytes_used(_clipped_size(superblock, geometry))


def dump_lines(
    superblock: Superblock, geometry: Geometry, bitmap: bytes, header: Sequence[str] = ()
) -> Iterator[str]:
    """Like dump_text(), in pieces of one or more lines."""
    for line in header:
        yield f"# {line}\n"
    yield '#\n\nversion "v08";\n\n'
    if superblock.needs_apply_al:
        yield f"{UNCLEAN_MARK}\n# Its activity log has not been applied: apply-al, dump again.\n\n"
    yield f"# md_size_sect {superblock.md_size_sect}\n"
    yield f"# md_offset {geometry.sb_offset}\n"
    yield f"# al_offset {geometry.al_offset}\n"
    yield f"# bm_offset {geometry.bm_offset}\n\n"
    s = superblock
    uuids = " ".join(f"0x{u:016X};" for u in (s.current, s.bitmap, s.history0, s.history1))
    yield f"uuid {{\n    {uuids}\n    flags 0x{int(s.flags):08X};\n}}\n"
    yield f"# al-extents {s.al_nr_extents};\n"
    size = _clipped_size(superblock, geometry)
    if size != s.la_size_sect:
        yield f"# la-size-sect {s.la_size_sect} is more than fits and has been clipped\n"
    yield f"la-size-sect {size};\n"
    yield f"bm-byte-per-bit {s.bm_bytes_per_bit};\n"
    yield f"device-uuid 0x{s.device_uuid:016X};\n"
    yield f"la-peer-max-bio-size {s.la_peer_max_bio_size};\n"
    yield f"al-stripes {s.al_stripes};\n"
    yield f"al-stripe-size-4k {s.al_stripe_size_4k};\n"
    yield f"# bm-bytes {len(bitmap)};\nbm {{\n"
    yield from _bitmap_lines(bitmap)
    yield f"}}\n# bits-set {_bits_set(bitmap)};\n"


def parse_dump(text: str) -> Dump:
    """Read a dump of metadata version v08. Raises MetadataError naming the line."""
    return _Parser(text).parse()


def _clipped_size(superblock: Superblock, geometry: Geometry) -> int:
    return min(superblock.la_size_sect, geometry.max_data_sectors)


def _bits_set(bitmap: bytes) -> int:
    return sum(
        int.from_bytes(bitmap[at : at + _LONG], "little").bit_count()
        for at in range(0, len(bitmap), _LONG)
    )


def _bitmap_lines(bitmap: bytes) -> Iterator[str]:
    at = 0
    while at < len(bitmap):
        if at % COMMENT_BYTES == 0:
            yield f"   # at {at * KIB_PER_BYTE}kB\n"
        line = bitmap[at : at + LINE_BYTES]
        pattern = line[:4]
        end = at + LINE_BYTES
        if line == pattern * (LINE_BYTES // 4):
            end = _run_end(bitmap, at, bytes(pattern))
        if end - at > LINE_BYTES:
            yield f"    {(end - at) // 8} times 0x{int.from_bytes(pattern * 2, 'little'):016X};\n"
            at = end
        else:
            words = _LINE.unpack(line)
            yield "    " + " ".join(f"0x{word:016X};" for word in words) + "\n"
            at += LINE_BYTES


def _run_end(bitmap: bytes, at: int, pattern: bytes) -> int:
    """Where the lines that repeat the 4-byte pattern end; `at` is the first of them."""
    for step in (_LONG, LINE_BYTES):
        filler = pattern * (step // 4)
        while bitmap.startswith(filler, at):
            at += step
    return at


_BLANK = re.compile(r"(?:\s++|#[^\n]*+)*+")
_TOKEN = re.compile(
    _BLANK.pattern + r"(?:(0x[0-9A-Fa-f]+)|([0-9]+)|([A-Za-z][\w-]*)|([{};])|(\"[^\"\n]*\"))"
)
_KINDS = {1: "hex", 2: "number", 3: "word", 4: "mark", 5: "string"}


class _Parser:
    """Reads tokens in the one order a dump has."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Dump:
        self._word("version")
        kind, version = self._next()
        if kind == "string" and version != '"v08"':
            raise self._error('version "v08"', version)
        if kind != "string":
            raise self._error('"v08"', version)
        self._mark(";")
        self._word("uuid")
        self._mark("{")
        uuids = [self._closed(self._hex(16)) for _ in range(4)]
        self._word("flags")
        flags = self._closed(self._hex(8))
        self._mark("}")
        superblock = Superblock(
            current=uuids[0],
            bitmap=uuids[1],
            history0=uuids[2],
            history1=uuids[3],
            flags=Flags(flags),
            clean=True,
            la_size_sect=self._setting("la-size-sect", 64),
        )
        bytes_per_bit = self._setting("bm-byte-per-bit", 32)
        if bytes_per_bit != BM_BYTES_PER_BIT:
            raise self._error(f"bm-byte-per-bit {BM_BYTES_PER_BIT}", str(bytes_per_bit))
        self._word("device-uuid")
        superblock.device_uuid = self._closed(self._hex(16))
        superblock.la_peer_max_bio_size = self._setting("la-peer-max-bio-size", 32)
        superblock.al_stripes = self._setting("al-stripes", 32)
        superblock.al_stripe_size_4k = self._setting("al-stripe-size-4k", 32)
        dump = Dump(superblock)
        self._bitmap(dump.runs)
        found = self._peek()
        if found[1]:
            raise self._error("the end of the dump", found[1])
        return dump

    def _bitmap(self, runs: list[tuple[int, int]]) -> None:
        self._word("bm")
        self._mark("{")
        while self._peek() != ("mark", "}"):
            count = 1
            if self._peek()[0] == "number":
                count = self._number(64)
                self._word("times")
            word = self._closed(self._hex(16))
            if runs and runs[-1][1] == word:
                runs[-1] = (runs[-1][0] + count, word)
            else:
                runs.append((count, word))
        self._mark("}")

    def _peek(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._at)
        if match and match.lastindex:
            return _KINDS[match.lastindex], match[match.lastindex]
        blank = _BLANK.match(self._text, self._at)
        return "other", self._text[blank.end() if blank else self._at :][:20].split("\n")[0]

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        match = _TOKEN.match(self._text, self._at)
        if match:
            self._at = match.end()
        return token

    def _word(self, expected: str) -> None:
        self._expect("word", expected)

    def _mark(self, expected: str) -> None:
        self._expect("mark", expected)

    def _expect(self, kind: str, expected: str) -> None:
        token = self._next()
        if token != (kind, expected):
            raise self._error(repr(expected), token[1])

    def _setting(self, name: str, bits: int) -> int:
        self._word(name)
        return self._closed(self._number(bits))

    def _closed(self, value: int) -> int:
        self._mark(";")
        return value

    def _number(self, bits: int) -> int:
        kind, text = self._next()
        if kind != "number" or len(text) > 20 or int(text) >> bits:
            raise self._error(f"a decimal number of at most {bits} bits", text)
        return int(text)

    def _hex(self, digits: int) -> int:
        kind, text = self._next()
        if kind != "hex" or len(text) != digits + 2:
            raise self._error(f"0x and {digits} hex digits", text)
        return int(text, 16)

    def _error(self, expected: str, found: str) -> MetadataError:
        line = self._text.count("\n", 0, self._at) + 1
        if found == UNCLEAN_MARK or found.startswith("This_is_an_unclean"):
            return MetadataError(
                f"dump line {line}: this is a dump of unclean metadata and cannot be restored",
                hint="apply-al on the original disk, then dump-md again",
            )
        what = repr(found) if found else "the end of the text"
        return MetadataError(f"dump line {line}: expected {expected}, found {what}")
