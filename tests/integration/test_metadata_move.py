"""Internal metadata after its device was resized offline: found, moved, or refused, never garbled."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.errors import MetadataError
from replicator.metadata.activity_log import AL_FREE, encode_transaction
from replicator.metadata.layout import BLOCK, Geometry, Placement, bitmap_bytes_used, geometry
from replicator.metadata.superblock import Flags, Superblock
from replicator.runtime import metadata_files as files
from replicator.runtime import metadata_move
from replicator.runtime.metadata_backing import Backing, open_backing
from replicator.runtime.metadata_move import last_known_size, move_md, remember_size
from tests.integration import drbdmeta_tool as tool
from tests.tools.check_metadata_v08 import check

pytestmark = pytest.mark.needs("drbdmeta")

INTERNAL = Placement("internal")
MIB = 1 << 20
SMALL, LARGE = 100_000, 20_000_000
"""Agreed sizes in sectors: one that fits every image here, and nearly all of 10 GiB."""


def volume(path: Path, size: int, agreed: int = SMALL) -> Geometry:
    """A crashed Primary with a recognisable bitmap and extent 20 in its log."""
    place = tool.create(path, size, INTERNAL)
    tool.write_at(path, place.bm_offset, some_bits(agreed))
    table = [AL_FREE] * 67
    tool.write_at(path, place.al_offset, encode_transaction(0, [(0, 20)], table, 0))
    tool.set_superblock(
        path,
        place,
        la_size_sect=agreed,
        clean=False,
        flags=tool.CRASHED_PRIMARY,
        current=0xABCDEF,
        al_nr_extents=67,
        device_uuid=0x1234,
    )
    return place


def some_bits(agreed: int) -> bytes:
    """A bitmap without a byte of zeroes, no two pages alike."""
    return random.Random(agreed).randbytes(bitmap_bytes_used(agreed)).replace(b"\0", b"\1")


def expected_bits(length: int, agreed: int = SMALL) -> bytes:
    """The bitmap of volume() once extent 20 has been applied to it."""
    bits = bytearray(some_bits(agreed).ljust(length, b"\0"))
    bits[20 * 128 : 21 * 128] = b"\xff" * 128
    return bytes(bits)


GROWTHS = [
    (64 * MIB, 4096),
    (64 * MIB, 8192 + 512),
    (64 * MIB, 40 * 1024),
    (64 * MIB, 10 * MIB),
    (100 * MIB, 28 * MIB),
    (100 * MIB, 100 * MIB),
    (64 * MIB, 10 << 30),
]


@pytest.mark.parametrize(("size", "growth"), GROWTHS, ids=str)
def test_grown_devices_keep_every_bit(tmp_path: Path, size: int, growth: int) -> None:
    image, rescue = tmp_path / "image", tmp_path / "rescue"
    old = volume(image, size)
    os.truncate(image, size + growth)
    with pytest.raises(MetadataError, match="no valid v08 metadata"):
        files.read_metadata(str(image), INTERNAL)
    superblock, new = move_md(str(image), size, rescue_path=str(rescue))
    assert new == geometry(size + growth, INTERNAL)
    assert (superblock.current, superblock.al_nr_extents) == (0xABCDEF, 67)
    assert superblock.flags == tool.CRASHED_PRIMARY | Flags.AL_CLEAN
    assert tool.read_at(image, new.bm_offset, new.bm_bytes) == expected_bits(new.bm_bytes)
    assert check(str(image), require_clean=True)["errors"] == []
    assert tool.succeed(image, INTERNAL, "get-gi").strip() == superblock.gi_line()
    if old.sb_offset < new.bm_offset:
        assert not any(tool.read_at(image, old.sb_offset, BLOCK)), "no second superblock remains"
    assert not rescue.exists()


def test_growth_within_the_last_block_needs_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume(image, 64 * MIB)
    os.truncate(image, 64 * MIB + 511)
    before = image.read_bytes()
    move_md(str(image), 64 * MIB)
    assert image.read_bytes() == before


def test_growth_that_costs_usable_space_is_refused_if_it_is_in_use(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume(image, 128 * MIB, agreed=geometry(128 * MIB, INTERNAL).max_data_sectors)
    os.truncate(image, 128 * MIB + 512)
    before = image.read_bytes()
    with pytest.raises(MetadataError, match="la-size-sect|la_size_sect") as refusal:
        move_md(str(image), 128 * MIB, rescue_path=str(tmp_path / "rescue"))
    assert refusal.value.hint
    assert image.read_bytes() == before


def test_a_shrunk_device_has_lost_its_metadata_and_says_so(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume(image, 64 * MIB)
    os.truncate(image, 63 * MIB)
    with pytest.raises(MetadataError, match="shrank from 67108864 to 66060288 bytes"):
        move_md(str(image), 64 * MIB)
    assert tool.run(image, INTERNAL, "get-gi")[0] == 1


def test_a_wrong_old_size_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume(image, 64 * MIB)
    os.truncate(image, 80 * MIB)
    before = image.read_bytes()
    with pytest.raises(MetadataError, match="no valid v08 metadata"):
        move_md(str(image), 70 * MIB)
    assert image.read_bytes() == before


def test_overlapping_places_need_a_rescue_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    volume(image, 64 * MIB)
    os.truncate(image, 64 * MIB + 4096)
    with pytest.raises(MetadataError, match="overlap") as refusal:
        move_md(str(image), 64 * MIB)
    assert "40960 bytes" in refusal.value.hint


class PowerFailure(BaseException):
    """Not an Exception: nothing may catch it and carry on."""


@pytest.mark.parametrize(
    ("size", "growth"), [(64 * MIB, 4096), (64 * MIB, 10 * MIB), (10 << 30, 100 * 1024)]
)
@pytest.mark.parametrize("writes", range(9))
def test_a_crash_within_any_write_loses_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, growth: int, writes: int
) -> None:
    image, rescue = tmp_path / "image", tmp_path / "rescue"
    agreed = LARGE if size == 10 << 30 else SMALL
    volume(image, size, agreed)
    os.truncate(image, size + growth)
    left = [writes]
    write, zero = Backing.write, Backing.zero

    def failing_write(self: Backing, offset: int, data: bytes) -> None:
        spend(lambda: write(self, offset, data[: len(data) // 8192 * 4096]))
        write(self, offset, data)

    def failing_zero(self: Backing, offset: int, length: int) -> None:
        spend(lambda: zero(self, offset, length // 8192 * 4096))
        zero(self, offset, length)

    def spend(do_half: Callable[[], None]) -> None:
        if not left[0]:
            do_half()
            raise PowerFailure
        left[0] -= 1

    monkeypatch.setattr(Backing, "write", failing_write)
    monkeypatch.setattr(Backing, "zero", failing_zero)
    try:
        move_md(str(image), size, rescue_path=str(rescue))
    except PowerFailure:
        pass
    monkeypatch.undo()
    superblock, new = move_md(str(image), size, rescue_path=str(rescue))
    assert superblock.current == 0xABCDEF
    assert tool.read_at(image, new.bm_offset, new.bm_bytes) == expected_bits(new.bm_bytes, agreed)


def test_the_last_known_size_is_kept_as_drbdmeta_keeps_it(tmp_path: Path) -> None:
    image, state = tmp_path / "image", tmp_path / "drbd-minor-1.lkbd"
    place = volume(image, 64 * MIB)
    superblock = Superblock.decode(tool.read_at(image, place.sb_offset, BLOCK))
    with open_backing(str(image)) as backing:
        remember_size(str(state), backing, superblock)
    assert state.read_text() == f"67108864\t{image}\nuuid:\t0000000000001234\n"
    assert last_known_size(str(state)) == 67108864
    state.write_text("nonsense\n")
    assert last_known_size(str(state)) is None
    assert last_known_size(str(tmp_path / "missing")) is None
    assert metadata_move.last_known_size(str(image)) is None
