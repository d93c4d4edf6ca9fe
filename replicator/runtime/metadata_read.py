"""Reading the metadata of a volume from its device or file: checked, as text, for people.

Rules: nothing is written; a disk in use may be read, for the superblock is one block.
What this file must not know: configuration, daemons, the engine.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from dataclasses import replace
from typing import NamedTuple

from replicator.errors import MetadataError, NoDiskError, NoMetadataError
from replicator.metadata import dump as dump_format
from replicator.metadata import gi
from replicator.metadata.layout import BLOCK, Geometry, Placement, sb_offset
from replicator.metadata.superblock import Superblock, read_superblock
from replicator.runtime.metadata_backing import Backing, open_backing


class Metadata(NamedTuple):
    superblock: Superblock
    geometry: Geometry


def open_metadata(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    writable: bool = True,
    exclusive: bool = True,
) -> Backing:
    """Open the device that the metadata of a volume lives on. Raises as open_backing()."""
    if placement.external and not md_path:
        raise MetadataError(f"{data_path}: {placement} metadata needs the path of a meta-disk")
    return open_backing(
        (md_path or data_path) if placement.external else data_path,
        writable=writable,
        exclusive=exclusive,
        index=placement.index if placement.kind == "indexed" else None,
    )


def read_metadata(data_path: str, placement: Placement, md_path: str | None = None) -> Metadata:
    """Superblock and geometry, checked; also of a disk in use, without claiming it.
    Raises MetadataError (none, foreign, damaged), NoDiskError."""
    with open_metadata(data_path, placement, md_path, writable=False, exclusive=False) as backing:
        return read_metadata_on(backing, placement)


def read_metadata_on(backing: Backing, placement: Placement) -> Metadata:
    """Like read_metadata(), on an open device."""
    try:
        block = backing.read(sb_offset(backing.size, placement), BLOCK)
        return Metadata(*read_superblock(block, backing.size, placement))
    except MetadataError as error:
        raise MetadataError(f"{backing.path}: {error.message}", hint=error.hint) from None
    except OSError as error:
        raise io_error(backing, error) from None


def get_gi(data_path: str, placement: Placement, md_path: str | None = None) -> str:
    """The generation identifiers, one line without its end. Raises NoMetadataError."""
    return _required(data_path, placement, md_path).superblock.gi_line()


def show_gi(data_path: str, placement: Placement, md_path: str | None = None) -> str:
    """The generation identifiers with a legend; lines. Raises NoMetadataError."""
    return gi.show_gi(_required(data_path, placement, md_path).superblock)


def dstate(data_path: str, placement: Placement, md_path: str | None = None) -> str:
    """The disk state as the metadata has it: Inconsistent, Outdated, Consistent or UpToDate.
    Raises NoMetadataError."""
    return _required(data_path, placement, md_path).superblock.dstate()


def dump_md(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    force: bool = False,
) -> str:
    """The metadata as text. Raises NoMetadataError if there is none, or if it is unclean and not
    `force`; a forced dump of unclean metadata cannot be restored."""
    with open_metadata(data_path, placement, md_path, writable=False, exclusive=False) as backing:
        superblock, geometry = _for_dump(backing, placement)
        if superblock.needs_apply_al and not force:
            raise NoMetadataError(
                f"{backing.path}: the metadata is unclean: its activity log has not been applied",
                hint="if the resource is down: replicator apply-al RESOURCE/VOLUME, then dump-md again"
                " (--force dumps it as it is)",
            )
        try:
            bitmap = backing.read(geometry.bm_offset, dump_format.used_bytes(superblock, geometry))
        except OSError as error:
            raise io_error(backing, error) from None
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        header = [
            "metadata dump",
            f"{now} [{int(time.time())}]",
            f"{socket.gethostname()}> {' '.join(sys.argv)} ({backing.path} {placement.keyword})",
        ]
        return dump_format.dump_text(superblock, geometry, bitmap, header)


def _required(data_path: str, placement: Placement, md_path: str | None) -> Metadata:
    with open_metadata(data_path, placement, md_path, writable=False, exclusive=False) as backing:
        return required_on(backing, placement)


def required_on(backing: Backing, placement: Placement) -> Metadata:
    try:
        return read_metadata_on(backing, placement)
    except MetadataError as error:
        raise NoMetadataError(error.message, hint=error.hint) from None


def _for_dump(backing: Backing, placement: Placement) -> Metadata:
    """Like required_on(), but an agreed size that does not fit is left to be clipped."""
    try:
        block = backing.read(sb_offset(backing.size, placement), BLOCK)
        superblock = Superblock.decode(block)
        geometry = superblock.geometry(backing.size, placement)
        fitting = min(superblock.la_size_sect, geometry.max_data_sectors)
        replace(superblock, la_size_sect=fitting).validate(geometry)
        return Metadata(superblock, geometry)
    except MetadataError as error:
        raise NoMetadataError(f"{backing.path}: {error.message}", hint=error.hint) from None
    except OSError as error:
        raise io_error(backing, error) from None


def io_error(backing: Backing, error: OSError) -> NoDiskError:
    hint = "look into the kernel log for errors of this disk"
    if error.errno in (errno.EPERM, errno.EROFS):
        hint = f"the device may have become read-only (`blockdev --getro {backing.path}`); {hint}"
    return NoDiskError(
        f"{backing.path}: metadata I/O failed: {error.strerror}",
        hint=hint,
    )
