"""The superblock: exact bytes, every damaged field refused by name, flags and words."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import MetadataError, UsageError
from replicator.metadata import gi
from replicator.metadata.layout import BLOCK, Placement, geometry
from replicator.metadata.superblock import (
    MAGIC_V07,
    MAGIC_V09,
    Flags,
    Superblock,
    other_version,
    read_superblock,
)

INTERNAL, FLEXIBLE = Placement("internal"), Placement("flexible")
SIZE = 64 << 20
PLACE = geometry(SIZE, INTERNAL)

FRESH_64_MIB = bytes.fromhex(
    "0000000000000000 0000000000000004 0000000000000000 0000000000000000"
    "0000000000000000 0000000000000000 0000000000000000 00000080 8374026b"
    "00000050 ffffffc0 00000101 ffffffb8 00001000 00000000 00000001 00000008"
)


def test_a_fresh_superblock_has_exactly_these_bytes() -> None:
    assert Superblock.fresh(PLACE).encode() == FRESH_64_MIB.ljust(BLOCK, b"\0")


U64, U32, S32 = (
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**31), 2**31 - 1),
)
SUPERBLOCKS = st.builds(
    Superblock,
    la_size_sect=U64,
    current=U64,
    bitmap=U64,
    history0=U64,
    history1=U64,
    device_uuid=U64,
    flags=U32.map(Flags),
    clean=st.booleans(),
    md_size_sect=U32,
    al_offset_sect=S32,
    al_nr_extents=U32,
    bm_offset_sect=S32,
    bm_bytes_per_bit=U32,
    la_peer_max_bio_size=U32,
    al_stripes=st.integers(1, 2**32 - 1),
    al_stripe_size_4k=U32,
)


@given(superblock=SUPERBLOCKS)
def test_what_is_encoded_is_decoded(superblock: Superblock) -> None:
    block = superblock.encode()
    assert len(block) == BLOCK
    assert Superblock.decode(block) == superblock


@given(block=st.binary(min_size=0, max_size=200))
def test_garbage_is_decoded_or_refused_but_never_a_crash(block: bytes) -> None:
    try:
        read_superblock(block, SIZE, INTERNAL)
    except MetadataError as error:
        assert error.message


def damaged(offset: int, fmt: str, value: int, placement: Placement = INTERNAL) -> bytes:
    block = bytearray(Superblock.fresh(geometry(SIZE, placement)).encode())
    struct.pack_into(fmt, block, offset, value)
    return bytes(block)


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "placement", "message"),
    [
        (60, ">I", 0x12345678, INTERNAL, "magic: expected 0x8374026b .* found 0x12345678"),
        (80, ">I", 512, INTERNAL, "bm_bytes_per_bit: expected 4096, found 512"),
        (80, ">I", 8192, FLEXIBLE, "bm_bytes_per_bit: expected 4096, found 8192"),
        (88, ">I", 0, INTERNAL, "al_stripes .* found 0 and 8"),
        (92, ">I", 0, INTERNAL, "al_stripe_size_4k.* found 1 and 0"),
        (92, ">I", 7, INTERNAL, "expected 8 to 8192 blocks .* found 1 x 7 = 7"),
        (88, ">I", 0xFFFFFFFF, INTERNAL, "expected 8 to 8192 blocks"),
        (92, ">I", 9, INTERNAL, "al_offset_sect: expected -72, found -64"),
        (68, ">i", -56, INTERNAL, "al_offset_sect: expected -64, found -56"),
        (68, ">i", 16, FLEXIBLE, "al_offset_sect: expected 8, found 16"),
        (76, ">i", -64, INTERNAL, "bm_offset_sect: expected -72, found -64"),
        (76, ">i", 80, FLEXIBLE, "bm_offset_sect: expected 72, found 80"),
        (64, ">I", 81, INTERNAL, "md_size_sect: expected 80, found 81"),
        (64, ">I", 131073, FLEXIBLE, "md_size_sect: expected 136 to 131072, found 131073"),
        (64, ">I", 79, FLEXIBLE, "md_size_sect: expected 136 to 131072, found 79"),
        (0, ">Q", 130993, INTERNAL, "la_size_sect: expected at most 130992, found 130993"),
    ],
)
def test_every_damaged_field_is_refused_by_name(
    offset: int, fmt: str, value: int, placement: Placement, message: str
) -> None:
    with pytest.raises(MetadataError, match=message) as refusal:
        read_superblock(damaged(offset, fmt, value, placement), SIZE, placement)
    assert refusal.value.hint, "what can be done about it must be said"


def test_all_wrong_fields_are_named_at_once() -> None:
    block = bytearray(damaged(68, ">i", 1))
    struct.pack_into(">i", block, 76, 2)
    with pytest.raises(MetadataError, match=r"al_offset_sect.*bm_offset_sect"):
        read_superblock(bytes(block), SIZE, INTERNAL)


def test_an_index_must_have_the_size_of_its_slot() -> None:
    placement = Placement("indexed", 1)
    device = 256 << 20
    block = bytearray(Superblock.fresh(geometry(device, placement)).encode())
    read_superblock(bytes(block), device, placement)
    struct.pack_into(">I", block, 64, 262143)
    with pytest.raises(MetadataError, match="md_size_sect: expected 262144, found 262143"):
        read_superblock(bytes(block), device, placement)


def test_a_flexible_device_that_has_grown_is_used_as_far_as_recorded() -> None:
    block = Superblock.fresh(geometry(SIZE, FLEXIBLE)).encode()
    superblock, place = read_superblock(block, 2 * SIZE, FLEXIBLE)
    assert place == geometry(SIZE, FLEXIBLE)
    assert place.md_size_sect == superblock.md_size_sect


def test_an_indexed_slot_taken_for_a_flexible_device_ends_at_the_slot() -> None:
    block = Superblock.fresh(geometry(1 << 30, Placement("indexed", 0))).encode()
    _, place = read_superblock(block, 1 << 30, FLEXIBLE)
    assert place.bm_offset + place.bm_bytes == 128 << 20, "the next slot is somebody else's"


def test_a_resized_device_under_internal_metadata_is_refused() -> None:
    block = Superblock.fresh(PLACE).encode()
    with pytest.raises(MetadataError, match="device of 201326592 bytes"):
        read_superblock(block, 3 * SIZE, INTERNAL)


@pytest.mark.parametrize(("at", "magic", "name"), [(28, MAGIC_V07, "v07"), (60, MAGIC_V09, "v09")])
def test_metadata_of_other_versions_is_named(at: int, magic: int, name: str) -> None:
    block = bytearray(BLOCK)
    struct.pack_into(">I", block, at, magic)
    assert other_version(bytes(block)) == name
    with pytest.raises(MetadataError, match=f"found {name} metadata, expected v08"):
        Superblock.decode(bytes(block))


def test_an_old_superblock_without_stripes_has_the_default_log() -> None:
    block = damaged(88, ">Q", 0)
    superblock, place = read_superblock(block, SIZE, INTERNAL)
    assert (superblock.al_stripes, superblock.al_stripe_size_4k, place.al_blocks) == (1, 8, 8)


@pytest.mark.parametrize(
    ("clean", "flags", "needs"),
    [
        (True, Flags.AL_CLEAN, False),
        (True, Flags(0), True),
        (False, Flags.AL_CLEAN, True),
        (False, Flags.CONSISTENT | Flags.WAS_UP_TO_DATE, True),
    ],
)
def test_only_clean_magic_and_flag_together_may_be_attached(
    clean: bool, flags: Flags, needs: bool
) -> None:
    assert Superblock(clean=clean, flags=flags).needs_apply_al is needs


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (Flags(0), "Inconsistent"),
        (Flags.WAS_UP_TO_DATE | Flags.PEER_OUT_DATED, "Inconsistent"),
        (Flags.CONSISTENT, "Outdated"),
        (Flags.CONSISTENT | Flags.PEER_OUT_DATED, "Outdated"),
        (Flags.CONSISTENT | Flags.WAS_UP_TO_DATE, "Consistent"),
        (Flags.CONSISTENT | Flags.WAS_UP_TO_DATE | Flags.PEER_OUT_DATED, "UpToDate"),
    ],
)
def test_dstate_words(flags: Flags, word: str) -> None:
    assert Superblock(flags=flags).dstate() == word


def test_the_gi_line_is_four_uuids_and_seven_digits() -> None:
    superblock = Superblock(
        current=0x1122334455667788,
        bitmap=0x99AABBCCDDEEFF00,
        history0=0x0F1E2D3C4B5A6978,
        history1=0x8796A5B4C3D2E1F0,
        flags=Flags.CONSISTENT | Flags.CONNECTED_IND | Flags.WAS_UP_TO_DATE | Flags.AL_CLEAN,
    )
    line = "1122334455667788:99AABBCCDDEEFF00:0F1E2D3C4B5A6978:8796A5B4C3D2E1F0:1:1:0:1:0:0:0"
    assert superblock.gi_line() == line
    assert gi.set_gi(Superblock(), line).gi_line() == line


def test_set_gi_keeps_empty_and_missing_fields() -> None:
    before = Superblock(current=7, bitmap=8, flags=Flags.PRIMARY_IND | Flags.AL_CLEAN)
    after = gi.set_gi(before, "ABC::::1")
    assert (after.current, after.bitmap) == (0xABC, 8)
    assert after.flags == Flags.PRIMARY_IND | Flags.AL_CLEAN | Flags.CONSISTENT
    assert before.current == 7, "the argument is not changed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x12", "current: expected 1 to 16 hex digits, found '0x12'"),
        (":11223344556677889", "bitmap: expected 1 to 16 hex digits"),
        ("1:2:3:4:1:2", "WAS_UP_TO_DATE: expected 0 or 1, found '2'"),
        ("1:2:3:4:1:1:1:1:1:1:1:1", "expected at most 11 fields, found 12"),
    ],
)
def test_set_gi_names_the_bad_field(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gi.set_gi(Superblock(), text)


@pytest.mark.parametrize(
    ("kib", "text"),
    [
        (0, "0 KB"),
        (9999, "9999 KB"),
        (10000, "10 MB"),
        (10751, "10 MB"),
        (10752, "11 MB"),
        (1 << 30, "1024 GB"),
        (10 << 30, "10 TB"),
    ],
)
def test_sizes_are_rounded_as_the_tools_do(kib: int, text: str) -> None:
    assert gi.human_size(kib) == text


def test_show_gi_draws_every_digit_under_its_arm() -> None:
    lines = gi.show_gi(Superblock(current=1)).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("0000000000000001:"))
    carets = [i for i, c in enumerate(lines[at + 1]) if c == "^"]
    assert [lines[at][i] for i in carets] == ["0"] * 7
    for row, caret in enumerate(carets):
        assert lines[at + 2 + row][caret] == "+"
    assert lines[-1].startswith("zero size device")
