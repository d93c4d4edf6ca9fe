"""Marks of file systems and other things that live on devices."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.metadata.signatures import PROBE_BYTES, Found, detect


def head(*pieces: tuple[int, bytes]) -> bytes:
    data = bytearray(PROBE_BYTES)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def le32(value: int) -> bytes:
    return struct.pack("<I", value)


def le64(value: int) -> bytes:
    return struct.pack("<Q", value)


MIB = 1 << 20
EXT = [(0x438, b"\x53\xef"), (0x404, le32(16384)), (0x418, le32(2))]
FAT_END = (510, b"\x55\xaa")

MARKS = {
    "ext2": (EXT, Found("ext2", "filesystem", 64 * MIB)),
    "ext2 of 1 KiB blocks": (
        [*EXT, (0x418, le32(0))],
        Found("ext2", "filesystem", 16 * MIB),
    ),
    "ext3": ([*EXT, (0x45C, le32(4))], Found("ext3", "filesystem", 64 * MIB)),
    "ext4 beyond 16 TiB": (
        [*EXT, (0x460, le32(0x80 | 0x40)), (0x550, le32(1))],
        Found("ext4", "filesystem", ((1 << 32) + 16384) * 4096),
    ),
    "xfs": (
        [(0, b"XFSB" + struct.pack(">IQ", 4096, 1000))],
        Found("xfs", "filesystem", 4096000),
    ),
    "btrfs": (
        [(0x10040, b"_BHRfS_M"), (0x100D1, le64(123 * MIB))],
        Found("btrfs", "filesystem", 123 * MIB),
    ),
    "jfs": (
        [(0x8000, b"JFS1"), (0x8008, le64(1000)), (0x8018, le32(512))],
        Found("jfs", "filesystem", 512000),
    ),
    "reiserfs": (
        [(0x10000, le32(50)), (0x1002C, b"\0\x10"), (0x10034, b"ReIsEr2Fs")],
        Found("reiserfs", "filesystem", 50 * 4096),
    ),
    "f2fs": (
        [(0x400, le32(0xF2F52010)), (0x410, le32(12)), (0x424, le64(100))],
        Found("f2fs", "filesystem", 409600),
    ),
    "iso9660": (
        [(0x8001, b"CD001"), (0x8050, le32(300)), (0x8080, b"\0\x08")],
        Found("iso9660", "filesystem", 300 * 2048),
    ),
    "squashfs": ([(0, b"hsqs"), (40, le64(777))], Found("squashfs", "filesystem", 777)),
    "exfat": (
        [FAT_END, (3, b"EXFAT   "), (72, le64(2048)), (108, b"\x09")],
        Found("exfat", "filesystem", MIB),
    ),
    "ntfs": (
        [FAT_END, (3, b"NTFS    "), (11, b"\0\x02"), (40, le64(2047))],
        Found("ntfs", "filesystem", MIB),
    ),
    "fat16": (
        [FAT_END, (11, b"\0\x02"), (19, b"\0\x08"), (54, b"FAT16   ")],
        Found("vfat", "filesystem", MIB),
    ),
    "fat32": (
        [FAT_END, (11, b"\0\x02"), (32, le32(4096)), (82, b"FAT32   ")],
        Found("vfat", "filesystem", 2 * MIB),
    ),
    "swap": ([(4086, b"SWAPSPACE2")], Found("swap space", "container", None)),
    "swap of 8 KiB pages": ([(8182, b"SWAP-SPACE")], Found("swap space", "container", None)),
    "lvm2": (
        [(512, b"LABELONE"), (536, b"LVM2 001")],
        Found("LVM2 physical volume", "container", None),
    ),
    "luks": ([(0, b"LUKS\xba\xbe\0\x02")], Found("LUKS encrypted volume", "container", None)),
    "md 1.1": (
        [(0, le32(0xA92B4EFC) + le32(1))],
        Found("Linux software RAID member", "container", None),
    ),
    "md 1.2": (
        [(4096, le32(0xA92B4EFC) + le32(1))],
        Found("Linux software RAID member", "container", None),
    ),
    "zfs": (
        [(0x4000, b"\x01\x01" + bytes(22) + b"\0\0\0\x07version\0")],
        Found("ZFS pool member", "container", None),
    ),
    "gpt": (
        [(510, b"\x55\xaa"), (446, b"\0" * 4 + b"\xee"), (512, b"EFI PART"), (544, le64(2047))],
        Found("GPT partition table", "container", MIB),
    ),
    "dos partitions": (
        [(510, b"\x55\xaa"), (446, b"\x80\0\0\0\x83\0\0\0" + le32(2048) + le32(4096))],
        Found("DOS partition table", "container", 6144 * 512),
    ),
    "something": ([(60000, b"x")], Found("unknown data", "unknown", None)),
    "a boot sector without partitions": (
        [(510, b"\x55\xaa")],
        Found("unknown data", "unknown", None),
    ),
}


@pytest.mark.parametrize("name", MARKS)
def test_what_is_there_is_recognised_with_its_size(name: str) -> None:
    pieces, expected = MARKS[name]
    assert detect(head(*pieces)) == expected


def test_zeroes_are_nothing() -> None:
    assert detect(bytes(PROBE_BYTES)) is None
    assert detect(b"") is None


@given(data=st.binary(max_size=5000))
def test_a_short_head_is_no_reason_to_crash(data: bytes) -> None:
    assert (detect(data) is None) == (not any(data))
