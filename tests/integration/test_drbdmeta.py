"""Our metadata against the real drbdmeta: same bytes, same words, both ways.

The tool is the reference for the format except where docs/metadata.md says that it is wrong.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from replicator.errors import MetadataError
from replicator.metadata import gi
from replicator.metadata.activity_log import encode_transaction, initialized_block
from replicator.metadata.dump import dump_text, parse_dump
from replicator.metadata.layout import BLOCK, Geometry, Placement, bitmap_bytes_used, geometry
from replicator.metadata.superblock import Flags, Superblock
from replicator.runtime import metadata_files as files
from tests.integration import drbdmeta_tool as tool
from tests.tools.check_metadata_v08 import check

pytestmark = pytest.mark.needs("drbdmeta")

INTERNAL = Placement("internal")
FLEXIBLE = Placement("flexible")
MIB = 1 << 20
ALL_FLAGS = 0x1FF


def layout_of(placement: Placement) -> str:
    return placement.keyword


# Creating

PLACES = [
    (69632, INTERNAL, {}),
    (64 * MIB, INTERNAL, {}),
    (64 * MIB + 511, INTERNAL, {}),
    (128 * MIB, INTERNAL, {}),
    (128 * MIB + 512, INTERNAL, {}),
    (10 << 30, INTERNAL, {}),
    (1 << 40, INTERNAL, {}),
    (256 * MIB, INTERNAL, {"al_stripes": 3, "al_stripe_size_4k": 16}),
    (1 * MIB, FLEXIBLE, {}),
    (256 * MIB + 4096, FLEXIBLE, {"al_stripes": 2, "al_stripe_size_4k": 9}),
    (256 * MIB, Placement("indexed", 0), {}),
    (256 * MIB, Placement("indexed", 1), {}),
    (1024 * MIB, Placement("indexed", 7), {}),
]


@pytest.mark.parametrize(("size", "placement", "stripes"), PLACES, ids=str)
def test_create_md_writes_what_drbdmeta_writes(
    tmp_path: Path, size: int, placement: Placement, stripes: dict[str, int]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    place = tool.create(ours, size, placement, **stripes)
    tool.sparse(theirs, size)
    options = []
    if stripes:
        options += ["--al-stripes", str(stripes["al_stripes"])]
        options += ["--al-stripe-size-kB", str(stripes["al_stripe_size_4k"] * 4)]
    tool.succeed(theirs, placement, *options, "create-md")
    assert tool.areas(ours, place) == tool.areas(theirs, place)
    assert ours.stat().st_size == size, "create-md must not change the size of a file"


@pytest.mark.parametrize(("size", "placement", "stripes"), PLACES, ids=str)
def test_our_reader_understands_metadata_of_drbdmeta(
    tmp_path: Path, size: int, placement: Placement, stripes: dict[str, int]
) -> None:
    image = tool.sparse(tmp_path / "image", size)
    options = []
    if stripes:
        options += ["--al-stripes", str(stripes["al_stripes"])]
        options += ["--al-stripe-size-kB", str(stripes["al_stripe_size_4k"] * 4)]
    tool.succeed(image, placement, *options, "--peer-max-bio-size", "131072", "create-md")
    superblock, place = files.read_metadata(str(image), placement, str(image))
    assert superblock == Superblock.fresh(place, 131072)
    assert (place.al_stripes, place.al_stripe_size_4k) == (
        stripes.get("al_stripes", 1),
        stripes.get("al_stripe_size_4k", 8),
    )
    report = check(str(image), layout_of(placement))
    if place.al_blocks == 8:
        assert report["errors"] == []
        assert report["offsets"]["max_data_sectors"] == place.max_data_sectors


def test_create_md_zeroes_an_old_bitmap(tmp_path: Path) -> None:
    image = tmp_path / "image"
    place = tool.create(image, 300 * MIB, INTERNAL)
    tool.write_at(image, place.bm_offset, b"\xff" * place.bm_bytes)
    tool.write_at(image, place.al_offset, b"\x55" * BLOCK * 8)
    files.create_md(str(image), INTERNAL, ask=tool.yes)
    assert not any(tool.read_at(image, place.bm_offset, place.bm_bytes))
    assert tool.read_at(image, place.al_offset, 8 * BLOCK) == initialized_block() * 8


@pytest.mark.parametrize("size", [4096, 69631])
def test_devices_that_drbdmeta_finds_too_small_are_refused(tmp_path: Path, size: int) -> None:
    image = tool.sparse(tmp_path / "image", size)
    assert tool.run(image, INTERNAL, "create-md")[0] == 10
    with pytest.raises(MetadataError, match="expected at least 69632 bytes") as refusal:
        files.create_md(str(image), INTERNAL, ask=tool.yes)
    assert refusal.value.exit_code == 10


# Reading


def random_superblock(rng: random.Random, place: Geometry) -> Superblock:
    superblock = Superblock.fresh(place, rng.choice([0, 4096, 1 << 20]))
    superblock.current, superblock.bitmap = (
        rng.getrandbits(64),
        rng.choice([0, rng.getrandbits(64)]),
    )
    superblock.history0, superblock.history1 = rng.getrandbits(64), rng.getrandbits(40)
    superblock.device_uuid = rng.choice([0, rng.getrandbits(64)])
    superblock.flags = Flags(rng.getrandbits(9) | rng.choice([0, 0x40000]))
    superblock.clean = rng.random() < 0.7
    superblock.la_size_sect = rng.choice(
        [0, 1, place.max_data_sectors, rng.randrange(place.max_data_sectors)]
    )
    superblock.al_nr_extents = rng.choice([257, 67, 6433])
    return superblock


@pytest.mark.parametrize("seed", range(40))
def test_drbdmeta_reads_our_superblocks_as_we_do(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    placement = rng.choice([INTERNAL, FLEXIBLE])
    image = tmp_path / "image"
    place = tool.create(image, rng.choice([1, 64, 200]) * MIB, placement)
    superblock = random_superblock(rng, place)
    tool.write_at(image, place.sb_offset, superblock.encode())
    assert tool.succeed(image, placement, "get-gi").strip() == superblock.gi_line()
    assert tool.succeed(image, placement, "dstate").strip() == superblock.dstate()
    theirs = tool.succeed(image, placement, "show-gi")
    ours = gi.show_gi(superblock)
    assert superblock.gi_line() in theirs and superblock.gi_line() in ours
    for key in ("flags:", "meta-data:", "last agreed size:", "last agreed max bio size:"):
        assert lines_with(ours, key) == lines_with(theirs, key)
    assert files.get_gi(str(image), placement, str(image)) == superblock.gi_line()


def lines_with(text: str, key: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(key)]


def test_reserved_bytes_and_unknown_flags_are_tolerated_by_both(tmp_path: Path) -> None:
    image = tmp_path / "image"
    place = tool.create(image, 64 * MIB, INTERNAL)
    block = bytearray(tool.read_at(image, place.sb_offset, BLOCK))
    block[48:56] = b"\xaa" * 8
    block[56:58] = b"\xff\xff"
    block[96:] = b"\x77" * (BLOCK - 96)
    tool.write_at(image, place.sb_offset, bytes(block))
    assert tool.succeed(image, INTERNAL, "get-gi").strip() == files.get_gi(str(image), INTERNAL)
    superblock, _ = files.read_metadata(str(image), INTERNAL)
    assert superblock.flags == 0xFFFF0080, "unknown flags are kept"
    assert superblock.encode()[96:] == bytes(BLOCK - 96), "reserved bytes are written as zero"


@pytest.mark.parametrize(
    "gi_text",
    [
        "1122334455667788:99AABBCCDDEEFF00:0F1E2D3C4B5A6978:8796A5B4C3D2E1F0:1:1:0:1:0:0:0",
        "::0:abc::1:::1",
        "5",
        ":::::::::1:1",
    ],
)
def test_set_gi_changes_what_drbdmeta_changes(tmp_path: Path, gi_text: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    place = tool.create(ours, 64 * MIB, INTERNAL)
    tool.copy_sparse(ours, theirs)
    tool.succeed(theirs, INTERNAL, "set-gi", gi_text)
    assert files.set_gi(str(ours), INTERNAL, text=gi_text, ask=tool.yes)
    assert tool.areas(ours, place) == tool.areas(theirs, place)


@pytest.mark.parametrize("command", ["outdate", "invalidate"])
def test_offline_state_changes_are_those_of_drbdmeta(tmp_path: Path, command: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    place = tool.create(ours, 64 * MIB, INTERNAL)
    tool.set_superblock(
        ours, place, flags=Flags.CONSISTENT | Flags.WAS_UP_TO_DATE | Flags.AL_CLEAN, current=0x55
    )
    tool.copy_sparse(ours, theirs)
    tool.succeed(theirs, INTERNAL, command)
    change = {"outdate": files.outdate, "invalidate": files.invalidate}[command]
    assert change(str(ours), INTERNAL)
    assert tool.areas(ours, place) == tool.areas(theirs, place)


def test_outdate_of_an_inconsistent_disk_is_refused_by_both(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool.create(image, 64 * MIB, INTERNAL)
    assert tool.run(image, INTERNAL, "outdate")[0] == 5
    assert files.outdate(str(image), INTERNAL) is False


def test_wipe_md_leaves_nothing_that_drbdmeta_would_find(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool.create(image, 64 * MIB, INTERNAL)
    assert files.wipe_md(str(image), INTERNAL, ask=tool.yes)
    assert tool.run(image, INTERNAL, "get-gi")[0] == 1
    assert not files.wipe_md(str(image), INTERNAL, ask=tool.yes)


# Dumps


def random_bitmap(rng: random.Random, size: int) -> bytes:
    bitmap = bytearray(size)
    for _ in range(rng.choice([0, 1, 3, 40, 400])):
        at = rng.randrange(size)
        length = min(rng.choice([1, 4, 8, 64, 3000]), size - at)
        fill = rng.choice([b"\xff", b"\x00", b"\x01", rng.randbytes(1)])
        bitmap[at : at + length] = fill * length
    return bytes(bitmap)


def image_with_bitmap(rng: random.Random, path: Path) -> tuple[Geometry, Superblock, bytes]:
    place = tool.create(path, rng.choice([64, 500, 1500]) * MIB, INTERNAL)
    superblock = random_superblock(rng, place)
    superblock.clean = True
    superblock.flags |= Flags.AL_CLEAN
    bitmap = random_bitmap(rng, BLOCK * rng.randrange(1, place.bm_bytes // BLOCK + 1))
    superblock.la_size_sect = min(place.max_data_sectors, len(bitmap) * 64)
    bitmap = bitmap[: bitmap_bytes_used(superblock.la_size_sect)]
    tool.write_at(path, place.sb_offset, superblock.encode())
    tool.write_at(path, place.bm_offset, bitmap)
    return place, superblock, bitmap


def statements(dump: str) -> str:
    """A dump without comments, and without the flags, which the tool prints as zero."""
    plain = re.sub(r"#[^\n]*", "", dump)
    return " ".join(re.sub(r"flags 0x[0-9A-Fa-f]{8}", "flags", plain).split())


@pytest.mark.parametrize("seed", range(25))
def test_dumps_say_the_same_in_the_same_words(tmp_path: Path, seed: int) -> None:
    image = tmp_path / "image"
    place, superblock, bitmap = image_with_bitmap(random.Random(seed), image)
    theirs = tool.succeed(image, INTERNAL, "dump-md")
    ours = files.dump_md(str(image), INTERNAL)
    assert statements(ours) == statements(theirs)
    for comment in ("# bits-set", "# bm-bytes", "# al-extents", "   # at"):
        assert lines_with(ours, comment) == lines_with(theirs, comment)
    assert f"flags 0x{int(superblock.flags):08X};" in ours, "ours has the real flags"
    parsed = parse_dump(theirs)
    assert parsed.superblock.current == superblock.current
    assert unpack(parsed.runs) == bitmap


def unpack(runs: list[tuple[int, int]]) -> bytes:
    return b"".join(word.to_bytes(8, "little") * count for count, word in runs)


@pytest.mark.parametrize("seed", range(100, 112))
def test_drbdmeta_restores_our_dumps(tmp_path: Path, seed: int) -> None:
    image, target, text = tmp_path / "image", tmp_path / "target", tmp_path / "dump"
    place, superblock, bitmap = image_with_bitmap(random.Random(seed), image)
    text.write_text(files.dump_md(str(image), INTERNAL))
    tool.succeed(image, INTERNAL, "verify-dump", str(text))
    tool.create(target, image.stat().st_size, INTERNAL)
    tool.succeed(target, INTERNAL, "restore-md", str(text))
    restored, _ = files.read_metadata(str(target), INTERNAL)
    superblock.al_nr_extents = 257
    assert restored == superblock, "the tool reads flags although it does not print them"
    assert tool.read_at(target, place.bm_offset, len(bitmap)) == bitmap


@pytest.mark.parametrize("seed", range(200, 212))
def test_we_restore_dumps_of_drbdmeta(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image, target = tmp_path / "image", tmp_path / "target"
    place, superblock, bitmap = image_with_bitmap(rng, image)
    tool.sparse(target, image.stat().st_size)
    tool.write_at(target, place.bm_offset, b"\xff" * place.bm_bytes)
    dump = tool.succeed(image, INTERNAL, "dump-md")
    files.restore_md(str(target), INTERNAL, text=dump, ask=tool.yes)
    restored, _ = files.read_metadata(str(target), INTERNAL)
    superblock.al_nr_extents = 257
    superblock.flags = Flags(0)
    assert restored == superblock
    stored = tool.read_at(target, place.bm_offset, place.bm_bytes)
    assert stored == bitmap.ljust(place.bm_bytes, b"\0"), "what the dump does not say is zero"
    assert tool.read_at(target, place.al_offset, 8 * BLOCK) == initialized_block() * 8


def test_a_dump_of_unclean_metadata_needs_force_and_nobody_restores_it(tmp_path: Path) -> None:
    image, text = tmp_path / "image", tmp_path / "dump"
    place = tool.create(image, 64 * MIB, INTERNAL)
    tool.set_superblock(image, place, clean=False, flags=tool.CRASHED_PRIMARY)
    with pytest.raises(MetadataError, match="unclean") as refusal:
        files.dump_md(str(image), INTERNAL)
    assert refusal.value.exit_code == 1
    text.write_text(files.dump_md(str(image), INTERNAL, force=True))
    assert tool.run(image, INTERNAL, "verify-dump", str(text))[0] == 10
    for dump in (text.read_text(), tool.succeed(image, INTERNAL, "dump-md")):
        with pytest.raises(MetadataError, match="unclean metadata"):
            parse_dump(dump)


def test_a_size_above_the_capacity_is_clipped_in_dumps(tmp_path: Path) -> None:
    image = tmp_path / "image"
    place = tool.create(image, 64 * MIB, INTERNAL)
    tool.set_superblock(image, place, la_size_sect=place.max_data_sectors + 800)
    ours, theirs = files.dump_md(str(image), INTERNAL), tool.succeed(image, INTERNAL, "dump-md")
    assert statements(ours) == statements(theirs)
    with pytest.raises(MetadataError, match="la_size_sect: expected at most"):
        files.read_metadata(str(image), INTERNAL)


# Activity log


def crashed_image(rng: random.Random, path: Path) -> Geometry:
    """An image as a crashed node leaves it: log, bitmap and superblock at random."""
    placement = INTERNAL
    stripes = rng.choice([(1, 8), (1, 8), (1, 73), (4, 2), (3, 5)])
    size = rng.choice([64, 300, 1000]) * MIB
    place = tool.create(path, size, placement, al_stripes=stripes[0], al_stripe_size_4k=stripes[1])
    slots = rng.choice([67, 257, 919, 920, 1237, 6433 if place.al_blocks == 8 else 3000])
    ring = tool.random_ring(
        rng,
        place,
        slots,
        rng.choice([1, 3, place.al_blocks, 3 * place.al_blocks + 1]),
        extents=size // (4 * MIB) + rng.choice([0, 3]),
        first=rng.choice([0, 0, 12345, 0xFFFFFFFC]),
    )
    for block, data in ring.items():
        tool.write_at(path, place.al_offset + block * BLOCK, data)
    size_sect = rng.choice([place.max_data_sectors, rng.randrange(place.max_data_sectors), 0])
    flags = tool.CRASHED_PRIMARY if rng.random() < 0.8 else Flags.CONSISTENT
    tool.set_superblock(
        path, place, clean=False, flags=flags, la_size_sect=size_sect, al_nr_extents=slots
    )
    tool.write_at(path, place.bm_offset, random_bitmap(rng, place.bm_bytes))
    return place


def apply_both(tmp_path: Path, image: Path, place: Geometry) -> tuple[int, int]:
    """Exit codes of ours and the tool's apply-al on copies of the image, whose bytes must agree."""
    ours, theirs = tool.copy_sparse(image, tmp_path / "o"), tool.copy_sparse(image, tmp_path / "t")
    try:
        files.apply_al(str(ours), INTERNAL)
        our_code = 0
    except MetadataError as error:
        our_code = error.exit_code
    their_code, _ = tool.run(theirs, INTERNAL, "apply-al")
    for area, data in tool.areas(theirs, place).items():
        assert tool.areas(ours, place)[area] == data, f"{area} differs"
    return our_code, their_code


@pytest.mark.parametrize("seed", range(60))
def test_apply_al_writes_what_drbdmeta_writes(tmp_path: Path, seed: int) -> None:
    image = tmp_path / "image"
    place = crashed_image(random.Random(seed), image)
    before = check(str(image))
    assert apply_both(tmp_path, image, place) == (0, 0)
    after = check(str(tmp_path / "o"), require_clean=True)
    assert after["errors"] == []
    expected = before["bitmap"]["bits_set"] + before["bitmap"]["bits_set_beyond_size"]
    if before["apply_al_preview"]["needed"] and before["activity_log"]["updates"]:
        expected += before["apply_al_preview"]["additional_bits"]
    found = after["bitmap"]["bits_set"] + after["bitmap"]["bits_set_beyond_size"]
    assert found == expected, "neither more nor fewer bits than an independent reader foresees"


def test_apply_al_twice_changes_nothing_more(tmp_path: Path) -> None:
    image = tmp_path / "image"
    place = crashed_image(random.Random(7), image)
    files.apply_al(str(image), INTERNAL)
    once = tool.areas(image, place)
    files.apply_al(str(image), INTERNAL)
    assert tool.areas(image, place) == once


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_block_costs_no_more_than_itself(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / "image"
    place = crashed_image(rng, image)
    for _ in range(rng.choice([1, 1, 2])):
        at = place.al_offset + rng.randrange(place.al_blocks) * BLOCK + rng.randrange(BLOCK)
        byte = tool.read_at(image, at, 1)[0]
        tool.write_at(image, at, bytes([byte ^ 1 << rng.randrange(8)]))
    ours, theirs = apply_both(tmp_path, image, place)
    assert ours == theirs


def test_a_torn_newest_transaction_leaves_the_table_before_it(tmp_path: Path) -> None:
    image = tmp_path / "image"
    place = tool.create(image, 64 * MIB, INTERNAL)
    free = [0xFFFFFFFF] * 67
    first = encode_transaction(0, [(0, 3), (1, 7)], free, 0)
    torn = bytearray(encode_transaction(1, [(0, 9)], [3, 7, *free[2:]], 0))
    torn[2000] ^= 0x10
    tool.write_at(image, place.al_offset, first + bytes(torn))
    tool.set_superblock(
        image, place, clean=False, flags=tool.CRASHED_PRIMARY, la_size_sect=place.max_data_sectors
    )
    assert apply_both(tmp_path, image, place) == (0, 0)
    assert check(str(tmp_path / "o"))["bitmap"]["ranges"] == [[3 * 1024, 1024], [7 * 1024, 1024]]


GOOD = encode_transaction(0, [(0, 3)], [0xFFFFFFFF] * 67, 0)
JUNK = b"\x5a" * BLOCK
EMPTY = initialized_block()
RINGS = {
    "all empty": [EMPTY] * 8,
    "one good, the rest bad": [GOOD] + [JUNK] * 7,
    "torn very first transaction": [JUNK] + [EMPTY] * 7,
    "another block bad": [EMPTY] * 3 + [JUNK] + [EMPTY] * 4,
    "several bad": [JUNK, JUNK] + [EMPTY] * 6,
    "nothing good": [JUNK] * 8,
    "zeroes": [bytes(BLOCK)] * 8,
}
USABLE_RINGS = {"all empty", "one good, the rest bad", "torn very first transaction"}


@pytest.mark.parametrize("primary", [True, False], ids=["primary", "secondary"])
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize("ring", RINGS)
def test_damaged_rings_are_judged_as_drbdmeta_judges_them(
    tmp_path: Path, ring: str, clean: bool, primary: bool
) -> None:
    image = tmp_path / "image"
    place = tool.create(image, 64 * MIB, INTERNAL)
    tool.write_at(image, place.al_offset, b"".join(RINGS[ring]))
    flags = tool.CRASHED_PRIMARY if primary else Flags.CONSISTENT
    tool.set_superblock(image, place, clean=clean, flags=flags, la_size_sect=100_000)
    ours, theirs = apply_both(tmp_path, image, place)
    assert ours == theirs
    hopeless = {"another block bad"} if clean else set(RINGS) - USABLE_RINGS
    refused = primary and ring in hopeless
    assert ours == (1 if refused else 0)


def test_pure_dump_text_of_a_fresh_volume_is_accepted(tmp_path: Path) -> None:
    place = geometry(64 * MIB, INTERNAL)
    text = tmp_path / "dump"
    text.write_text(dump_text(Superblock.fresh(place), place, b""))
    image = tool.sparse(tmp_path / "image", 64 * MIB)
    tool.succeed(image, INTERNAL, "verify-dump", str(text))
