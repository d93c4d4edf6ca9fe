"""What already lives on a device: file systems, volume managers, partition tables, by their marks.

So that create-md never puts metadata over something without a question, and never below the end of
a file system. Looks only at the first 68 KiB; sizes are what the format itself says it occupies.
What this file must not know: devices, what is done about a finding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from replicator.metadata.layout import DEVICE_BYTES_MIN, SECTOR

PROBE_BYTES = DEVICE_BYTES_MIN


class Found(NamedTuple):
    """name: as blkid or a person would call it; kind: "filesystem", "container" (something that
    holds other things: LVM, md, LUKS, partitions, swap) or "unknown"; size: bytes that it occupies
    from the start of the device, None where the format does not say."""

    name: str
    kind: str
    size: int | None


def detect(head: bytes) -> Found | None:
    """What the first 68 KiB (or less) of a device look like; None if they are all zero.
    Data that is not zero and not known is Found("unknown data", "unknown", None)."""
    if not any(head):
        return None
    padded = head.ljust(PROBE_BYTES, b"\0")
    for probe in _PROBES:
        found = probe(padded)
        if found:
            return found
    return Found("unknown data", "unknown", None)


def _u(fmt: str, head: bytes, offset: int) -> int:
    value: int = struct.unpack_from(fmt, head, offset)[0]
    return value


def _filesystem(name: str, size: int) -> Found:
    return Found(name, "filesystem", size)


def _ext(head: bytes) -> Found | None:
    if _u("<H", head, 0x438) != 0xEF53:
        return None
    blocks, incompat = _u("<I", head, 0x404), _u("<I", head, 0x460)
    if incompat & 0x80:
        blocks |= _u("<I", head, 0x550) << 32
    has_journal, extents = _u("<I", head, 0x45C) & 0x4, incompat & 0x240
    name = "ext4" if extents else "ext3" if has_journal else "ext2"
    return _filesystem(name, blocks * (1024 << min(_u("<I", head, 0x418), 6)))


def _xfs(head: bytes) -> Found | None:
    if not head.startswith(b"XFSB"):
        return None
    return _filesystem("xfs", _u(">I", head, 4) * _u(">Q", head, 8))


def _btrfs(head: bytes) -> Found | None:
    if head[0x10040:0x10048] != b"_BHRfS_M":
        return None
    # The size of this one device, not of the whole file system.
    return _filesystem("btrfs", _u("<Q", head, 0x100D1))


def _jfs(head: bytes) -> Found | None:
    if head[0x8000:0x8004] != b"JFS1":
        return None
    # Counted in physical blocks; the log and fsck areas behind them are part of it.
    return _filesystem("jfs", _u("<Q", head, 0x8008) * _u("<I", head, 0x8018))


def _reiserfs(head: bytes) -> Found | None:
    if head[0x10034:0x1003C] != b"ReIsErFs" and head[0x10034:0x1003D] != b"ReIsEr2Fs":
        return None
    return _filesystem("reiserfs", _u("<I", head, 0x10000) * _u("<H", head, 0x1002C))


def _f2fs(head: bytes) -> Found | None:
    if _u("<I", head, 0x400) != 0xF2F52010:
        return None
    return _filesystem("f2fs", _u("<Q", head, 0x424) << min(_u("<I", head, 0x410), 16))


def _swap(head: bytes) -> Found | None:
    for end in (4096, 8192):
        if head[end - 10 : end] in (b"SWAP-SPACE", b"SWAPSPACE2"):
            return Found("swap space", "container", None)
    return None


def _lvm2(head: bytes) -> Found | None:
    # The label may be in any of the first four sectors; it is nearly always in the second.
    for sector in range(4):
        at = sector * SECTOR
        if head[at : at + 8] == b"LABELONE" and head[at + 0x18 : at + 0x1C] == b"LVM2":
            return Found("LVM2 physical volume", "container", None)
    if head[0x218:0x21C] == b"LVM2":
        return Found("LVM2 physical volume", "container", None)
    return None


def _luks(head: bytes) -> Found | None:
    if head.startswith(b"LUKS\xba\xbe"):
        return Found("LUKS encrypted volume", "container", None)
    return None


def _md(head: bytes) -> Found | None:
    for at in (0, 4096):
        if _u("<I", head, at) == 0xA92B4EFC and _u("<I", head, at + 4) == 1:
            return Found("Linux software RAID member", "container", None)
    return None


def _zfs(head: bytes) -> Found | None:
    # The name-value list of the first label: its first pair is called "version".
    if b"\0\0\0\x07version" in head[0x4000:0x4100]:
        return Found("ZFS pool member", "container", None)
    return None


def _iso9660(head: bytes) -> Found | None:
    if head[0x8001:0x8006] != b"CD001":
        return None
    return _filesystem("iso9660", _u("<I", head, 0x8050) * _u("<H", head, 0x8080))


def _squashfs(head: bytes) -> Found | None:
    return _filesystem("squashfs", _u("<Q", head, 40)) if head.startswith(b"hsqs") else None


def _fat_family(head: bytes) -> Found | None:
    if head[510:512] != b"\x55\xaa":
        return None
    if head[3:11] == b"EXFAT   ":
        return _filesystem("exfat", _u("<Q", head, 72) << min(head[108], 12))
    bytes_per_sector = _u("<H", head, 11)
    if head[3:11] == b"NTFS    ":
        return _filesystem("ntfs", (_u("<Q", head, 40) + 1) * bytes_per_sector)
    if head[54:59] in (b"FAT12", b"FAT16") or head[82:87] == b"FAT32":
        sectors = _u("<H", head, 19) or _u("<I", head, 32)
        return _filesystem("vfat", sectors * bytes_per_sector)
    return None


def _gpt(head: bytes) -> Found | None:
    for sector_size in (512, 4096):
        if head[sector_size : sector_size + 8] == b"EFI PART":
            # The backup table, in the last sector, belongs to it.
            last = _u("<Q", head, sector_size + 32)
            return Found("GPT partition table", "container", (last + 1) * sector_size)
    return None


def _mbr(head: bytes) -> Found | None:
    if head[510:512] != b"\x55\xaa":
        return None
    end = 0
    for at in range(446, 510, 16):
        if head[at] not in (0x00, 0x80):
            return None
        if head[at + 4]:
            end = max(end, _u("<I", head, at + 8) + _u("<I", head, at + 12))
    return Found("DOS partition table", "container", end * SECTOR) if end else None


_PROBES: tuple[Callable[[bytes], Found | None], ...] = (
    _ext,
    _xfs,
    _btrfs,
    _jfs,
    _reiserfs,
    _f2fs,
    _swap,
    _lvm2,
    _luks,
    _md,
    _zfs,
    _iso9660,
    _squashfs,
    _fat_family,
    _gpt,
    _mbr,
)
