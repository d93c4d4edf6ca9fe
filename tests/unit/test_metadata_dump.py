"""The text form of metadata: exact text, and errors that name the line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import MetadataError
from replicator.metadata.dump import UNCLEAN_MARK, dump_text, parse_dump
from replicator.metadata.layout import Placement, geometry
from replicator.metadata.superblock import Flags, Superblock

PLACE = geometry(64 << 20, Placement("internal"))


def volume() -> Superblock:
    superblock = Superblock.fresh(PLACE, 1 << 20)
    superblock.la_size_sect = PLACE.max_data_sectors
    superblock.flags |= Flags.CONSISTENT | Flags.CONNECTED_IND | Flags.WAS_UP_TO_DATE
    superblock.device_uuid = 0xDEADBEEFCAFEF00D
    return superblock


def bitmap_with(*bits: int) -> bytes:
    bitmap = bytearray(4096)
    for bit in bits:
        bitmap[bit >> 3] |= 1 << (bit & 7)
    return bytes(bitmap)


SAMPLE_BITS = (0, 31, 32, *range(63, 128), 5000, 5001, 5002, 16373)
SAMPLE = dump_text(volume(), PLACE, bitmap_with(*SAMPLE_BITS), ["a title"])


def test_the_text_is_exactly_this() -> None:
    assert SAMPLE == (
        "# a title\n#\n\n"
        'version "v08";\n\n'
        "# md_size_sect 80\n# md_offset 67104768\n# al_offset 67072000\n# bm_offset 67067904\n\n"
        "uuid {\n"
        "    0x0000000000000004; 0x0000000000000000; 0x0000000000000000; 0x0000000000000000;\n"
        "    flags 0x00000095;\n}\n"
        "# al-extents 257;\nla-size-sect 130992;\nbm-byte-per-bit 4096;\n"
        "device-uuid 0xDEADBEEFCAFEF00D;\nla-peer-max-bio-size 1048576;\n"
        "al-stripes 1;\nal-stripe-size-4k 8;\n# bm-bytes 4096;\n"
        "bm {\n   # at 0kB\n"
        "    0x8000000180000001; 0xFFFFFFFFFFFFFFFF; 0x0000000000000000; 0x0000000000000000;\n"
        "    72 times 0x0000000000000000;\n"
        "    0x0000000000000000; 0x0000000000000000; 0x0000000000000700; 0x0000000000000000;\n"
        "    172 times 0x0000000000000000;\n"
        "    0x0000000000000000; 0x0000000000000000; 0x0000000000000000; 0x0020000000000000;\n"
        "   # at 65536kB\n"
        "    256 times 0x0000000000000000;\n}\n"
        "# bits-set 72;\n"
    )


PIECES = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from([b"\0", b"\xff", b"\x80", b"\x01\x02"])),
    max_size=30,
)


@given(pieces=PIECES, chunk=st.sampled_from([8, 64, 512, 4096]))
@settings(max_examples=60)
def test_what_is_dumped_is_parsed(pieces: list[tuple[int, bytes]], chunk: int) -> None:
    bitmap = b"".join(fill * count for count, fill in pieces)[:4096].ljust(4096, b"\0")
    parsed = parse_dump(dump_text(volume(), PLACE, bitmap))
    assert parsed.words == 512
    assert (parsed.superblock.flags, parsed.superblock.device_uuid) == (
        volume().flags,
        volume().device_uuid,
    )
    for limit in (4096, 1000, 0):
        stored = bytearray(4096)
        for offset, piece in parsed.chunks(chunk, limit):
            assert len(piece) <= chunk and offset + len(piece) <= limit
            stored[offset : offset + len(piece)] = piece
        assert stored == bitmap[:limit].ljust(4096, b"\0")


def test_a_run_of_any_length_costs_no_memory_before_it_is_needed() -> None:
    text = SAMPLE.replace("256 times", f"{1 << 60} times")
    parsed = parse_dump(text)
    assert parsed.words > 1 << 60
    assert sum(len(piece) for _, piece in parsed.chunks(4096, 4096)) <= 4096


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"v08"', '"v09"', 'line 4: expected version "v08", found \'"v09"\''),
        ('version "v08";', "", "line 11: expected 'version', found 'uuid'"),
        ("flags 0x00000095", "flags 0x95", "line 13: expected 0x and 8 hex digits, found '0x95'"),
        ("0x0000000000000004;", "4;", "line 12: expected 0x and 16 hex digits, found '4'"),
        ("0x0000000000000004;", "0x0000000000000004", "line 12: expected ';'"),
        ("la-size-sect 130992", "la-size-sect", "line 16: expected a decimal number"),
        ("la-size-sect 130992", f"la-size-sect {1 << 64}", "at most 64 bits, found"),
        ("la-size-sect 130992", "la-size-sect " + "9" * 5000, "at most 64 bits, found"),
        ("4096;\ndevice", "512;\ndevice", "line 17: expected bm-byte-per-bit 4096, found '512'"),
        ("al-stripes 1;\n", "", "line 20: expected 'al-stripes', found 'al-stripe-size-4k'"),
        ("72 times", "72", "line 26: expected 'times'"),
        ("}\n# bits-set 72;\n", "", "expected 0x and 16 hex digits, found the end of the text"),
        ("# bits-set 72;\n", "bits-set 72;\n", "expected the end of the dump, found 'bits-set'"),
        ("uuid {", "uuid { \x00", "line 11: expected 0x and 16 hex digits"),
    ],
)
def test_errors_name_the_line_what_was_expected_and_what_was_found(
    before: str, after: str, message: str
) -> None:
    assert before in SAMPLE
    with pytest.raises(MetadataError) as refusal:
        parse_dump(SAMPLE.replace(before, after, 1))
    assert message in str(refusal.value)
    assert refusal.value.exit_code == 10


@given(text=st.text(max_size=200), at=st.integers(0, len(SAMPLE)))
def test_any_text_is_parsed_or_refused_but_never_a_crash(text: str, at: int) -> None:
    for candidate in (text, SAMPLE[:at] + text + SAMPLE[at:], SAMPLE[:at]):
        try:
            parse_dump(candidate)
        except MetadataError as error:
            assert error.message.startswith("dump line ")


def test_a_dump_of_unclean_metadata_cannot_be_parsed() -> None:
    superblock = volume()
    superblock.clean = False
    text = dump_text(superblock, PLACE, bitmap_with())
    assert UNCLEAN_MARK in text
    with pytest.raises(MetadataError, match="unclean metadata and cannot be restored"):
        parse_dump(text)


def test_comments_and_blanks_do_not_matter() -> None:
    squeezed = " ".join(
        line.split("#")[0].strip() for line in SAMPLE.splitlines() if not line.startswith("#")
    )
    lower = squeezed.replace("DEADBEEFCAFEF00D", "deadbeefcafef00d")
    assert parse_dump(lower) == parse_dump(SAMPLE)
