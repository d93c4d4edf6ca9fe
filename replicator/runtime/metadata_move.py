"""Internal metadata after its device has been resized while nobody used it: finding and moving it.

Internal metadata lies at the end of the device. Once the device is larger nothing is found where it
should be; with the size it had, the old place is known.

Rules:
1. The activity log is applied at the old place first; what moves is superblock and bitmap, bit 0 to
   bit 0, and an empty log.
2. The old superblock goes last. Where old and new areas overlap it cannot stay that long: then a
   dump is on stable storage before, and is removed after.
What this file must not know: configuration, daemons, the engine.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from replicator.errors import MetadataError
from replicator.metadata import dump as dump_format
from replicator.metadata.layout import BLOCK, Geometry, Placement, sb_offset
from replicator.metadata.superblock import Superblock
from replicator.runtime.metadata_backing import Backing
from replicator.runtime.metadata_files import Say, apply_al_on, silent, write_metadata
from replicator.runtime.metadata_read import (
    Metadata,
    io_error,
    open_metadata,
    read_metadata_on,
)

_INTERNAL = Placement("internal")


def remember_size(path: str, backing: Backing, superblock: Superblock) -> None:
    """Write the last-known-device file, in the form that drbdmeta keeps in /var/lib/drbd."""
    text = f"{backing.size}\t{backing.path}\n"
    if superblock.device_uuid:
        text += f"uuid:\t{superblock.device_uuid:016X}\n"
    _write_durably(path, text)


def last_known_size(path: str) -> int | None:
    """The device's size in bytes by that file; None if there is no such file, or no size in it."""
    try:
        first = Path(path).read_text().split("\t")[0].strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(first) if first.isascii() and first.isdigit() else None


def move_md(
    data_path: str, old_bytes: int, *, rescue_path: str | None = None, say: Say = silent
) -> Metadata:
    """Bring internal metadata from where it was while the device had old_bytes to where it belongs
    now. Nothing to do, and no error, if valid metadata is there already.

    rescue_path: a file for the dump that is needed where the areas overlap; if a crash comes in
    between, the next call goes on from it. Raises MetadataError, DeviceError (in use), NoDiskError.
    """
    with open_metadata(data_path, _INTERNAL) as backing:
        with contextlib.suppress(MetadataError):
            return read_metadata_on(backing, _INTERNAL)
        old_view = replace(backing, size=old_bytes)
        _check_room(backing, old_bytes)
        try:
            superblock, old = read_metadata_on(old_view, _INTERNAL)
        except MetadataError:
            if rescue_path is None or not os.path.exists(rescue_path):
                raise
            return _resume(backing, rescue_path, say)
        new = superblock.geometry(backing.size, _INTERNAL)
        _check_fit(backing, superblock, new)
        superblock = apply_al_on(old_view, _INTERNAL, say).superblock
        try:
            return _move(backing, superblock, old, new, rescue_path, say)
        except OSError as error:
            raise io_error(backing, error) from None


def _check_room(backing: Backing, old_bytes: int) -> None:
    if sb_offset(old_bytes, _INTERNAL) + BLOCK > backing.size:
        raise MetadataError(
            f"{backing.path}: the device shrank from {old_bytes} to {backing.size} bytes and its"
            " metadata is gone",
            hint="give the device its old size back; else create-md and a full resync",
        )


def _check_fit(backing: Backing, superblock: Superblock, new: Geometry) -> None:
    if superblock.la_size_sect > new.max_data_sectors:
        raise MetadataError(
            f"{backing.path}: la-size-sect: expected at most {new.max_data_sectors} sectors beside"
            f" the metadata of a device of {backing.size} bytes,"
            f" found {superblock.la_size_sect}",
            hint="the bitmap grew by a block: make the device at least 4 KiB larger",
        )


def _move(
    backing: Backing,
    superblock: Superblock,
    old: Geometry,
    new: Geometry,
    rescue_path: str | None,
    say: Say,
) -> Metadata:
    bitmap = backing.read(old.bm_offset, dump_format.used_bytes(superblock, old))
    text = dump_format.dump_text(superblock, old, bitmap, ["kept while the metadata is moved"])
    overlap = new.bm_offset < old.sb_offset + BLOCK
    if overlap:
        if rescue_path is None:
            raise MetadataError(
                f"{backing.path}: old and new metadata overlap: a crash while it is moved could"
                " lose it",
                hint="name a file for a copy, or make the device larger by at least"
                f" {old.md_size_sect * 512} bytes",
            )
        _write_durably(rescue_path, text)
        # From here on the old bitmap is overwritten: nothing may vouch for it any more.
        backing.zero(old.sb_offset, BLOCK)
        backing.flush()
    moved = superblock.placed(new)
    write_metadata(backing, new, moved, new.bm_bytes, dump_format.parse_dump(text))
    if overlap and rescue_path is not None:
        os.unlink(rescue_path)
    else:
        backing.zero(old.sb_offset, BLOCK)
        backing.flush()
    say(f"{backing.path}: metadata moved from byte {old.sb_offset} to {new.sb_offset}")
    return Metadata(moved, new)


def _resume(backing: Backing, rescue_path: str, say: Say) -> Metadata:
    """Finish a move that was interrupted after the old superblock was gone."""
    try:
        dump = dump_format.parse_dump(Path(rescue_path).read_text())
        new = dump.superblock.geometry(backing.size, _INTERNAL)
        _check_fit(backing, dump.superblock, new)
        moved = dump.superblock.placed(new)
        write_metadata(backing, new, moved, new.bm_bytes, dump)
        os.unlink(rescue_path)
    except OSError as error:
        raise io_error(backing, error) from None
    say(f"{backing.path}: interrupted move of the metadata finished from {rescue_path}")
    return Metadata(moved, new)


def _write_durably(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
