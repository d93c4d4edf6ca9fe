"""The metadata commands on devices and files: create, wipe, dump, restore, apply, show.

Rules:
1. The superblock is written last, whole, between two flushes; where old metadata is replaced it is
   destroyed first, so that no crash leaves generations that vouch for an emptied bitmap.
2. Nothing that may be data is overwritten without a question; nothing at all below the end of a
   file system.
3. Questions go through `ask`, remarks through `say`: who is at the terminal is not known here.
What this file must not know: configuration, daemons, the engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from replicator.errors import (
    DataFoundError,
    DeclinedError,
    MetadataError,
    NoMetadataError,
)
from replicator.metadata import dump as dump_format
from replicator.metadata import gi, layout
from replicator.metadata.activity_log import initialized_block
from replicator.metadata.apply_al import Applied
from replicator.metadata.apply_al import apply_al as plan_apply_al
from replicator.metadata.layout import (
    BLOCK,
    SECTOR,
    Geometry,
    Placement,
    bitmap_bytes_used,
    sb_offset,
)
from replicator.metadata.signatures import PROBE_BYTES, Found, detect
from replicator.metadata.superblock import Flags, Superblock, other_version
from replicator.runtime.metadata_backing import Backing, claim_slot, open_backing
from replicator.runtime.metadata_read import (
    Metadata,
    dstate,
    dump_md,
    get_gi,
    io_error,
    open_metadata,
    read_metadata,
    read_metadata_on,
    required_on,
    show_gi,
)

__all__ = [
    "Backing",
    "Metadata",
    "apply_al",
    "apply_al_on",
    "claim_slot",
    "create_md",
    "dstate",
    "dump_md",
    "get_gi",
    "invalidate",
    "open_backing",
    "open_metadata",
    "outdate",
    "read_metadata",
    "read_metadata_on",
    "restore_md",
    "set_gi",
    "show_gi",
    "wipe_md",
]

Ask = Callable[[str], bool]
"""Puts a question to whoever is there; True only for an explicit yes."""
Say = Callable[[str], None]
"""Takes a remark of one line."""

_CHUNK = 1 << 20
PEER_MAX_BIO_SIZE_MAX = 1 << 20


def silent(_remark: str) -> None:
    """For callers who do not want remarks."""


# Creating and removing


def create_md(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    force: bool = False,
    al_stripes: int = layout.DEFAULT_AL_STRIPES,
    al_stripe_size_4k: int = layout.DEFAULT_AL_STRIPE_SIZE_4K,
    peer_max_bio_size: int = 0,
    ignore_sanity_checks: bool = False,
    ask: Ask,
    say: Say = silent,
) -> Geometry:
    """Write fresh metadata.

    force: take every question as answered with yes; refusals stay. ignore_sanity_checks: also go
    over marks of things whose size is unknown, or that are on a device of the metadata's own.
    Raises DeclinedError, DataFoundError, MetadataError (sizes), DeviceError (in use), NoDiskError.
    """
    if not 0 <= peer_max_bio_size <= PEER_MAX_BIO_SIZE_MAX:
        raise MetadataError(
            f"peer-max-bio-size: expected 0 to {PEER_MAX_BIO_SIZE_MAX} bytes,"
            f" found {peer_max_bio_size}"
        )
    with open_metadata(data_path, placement, md_path) as backing:
        geometry = _geometry(backing, placement, al_stripes, al_stripe_size_4k)
        bm_bytes = geometry.bm_bytes
        if placement.external:
            _refuse_same(backing, data_path)
            with open_backing(data_path, writable=False) as data:
                _note_capacity(data, geometry, say)
                bm_bytes = min(bm_bytes, bitmap_bytes_used(data.size // SECTOR))
        confirm = _Confirm(force, ask, say)
        try:
            old = _confirm_replacement(backing, placement, confirm)
            _check_for_data(backing, geometry, old, ignore_sanity_checks, confirm)
            superblock = Superblock.fresh(geometry, peer_max_bio_size)
            write_metadata(backing, geometry, superblock, bm_bytes)
        except OSError as error:
            raise io_error(backing, error) from None
        say(f"{backing.path}: new {placement} metadata written at byte {geometry.sb_offset}")
        return geometry


def wipe_md(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    force: bool = False,
    ask: Ask,
    say: Say = silent,
) -> bool:
    """Destroy the superblock; log and bitmap stay. False, with a remark, if there is none.
    Raises DeclinedError, DeviceError (in use), NoDiskError, MetadataError (size of the device)."""
    with open_metadata(data_path, placement, md_path) as backing:
        try:
            read_metadata_on(backing, placement)
        except MetadataError as error:
            say(f"nothing to wipe: {error.message}")
            return False
        _Confirm(force, ask, say)(
            f"{backing.path}: wipe the {placement} metadata? The volume loses track of what differs"
            " from its peer."
        )
        try:
            backing.zero(sb_offset(backing.size, placement), BLOCK)
            backing.flush()
        except OSError as error:
            raise io_error(backing, error) from None
        say(f"{backing.path}: metadata wiped")
        return True


def restore_md(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    text: str,
    force: bool = False,
    al_stripes: int | None = None,
    al_stripe_size_4k: int | None = None,
    ignore_sanity_checks: bool = False,
    ask: Ask,
    say: Say = silent,
) -> Geometry:
    """Write the metadata that a dump describes, for this device's size; the log becomes empty.

    al_stripes, al_stripe_size_4k: instead of those in the dump.
    Raises MetadataError naming the line for a bad dump, else as create_md().
    """
    dump = dump_format.parse_dump(text)
    superblock = dump.superblock
    with open_metadata(data_path, placement, md_path) as backing:
        geometry = _geometry(
            backing,
            placement,
            al_stripes or superblock.al_stripes,
            al_stripe_size_4k or superblock.al_stripe_size_4k,
        )
        size = min(superblock.la_size_sect, geometry.max_data_sectors)
        if size != superblock.la_size_sect:
            say(f"la-size-sect: {superblock.la_size_sect} does not fit and was reduced to {size}")
        used = bitmap_bytes_used(size)
        if dump.words * 8 > used:
            say(f"the dump has {dump.words * 8} bytes of bitmap, of which {used} are needed")
        if not superblock.flags:
            say(
                "the dump carries no flags (many drbdmeta releases never print them):"
                " the disk will be Inconsistent"
            )
        superblock = replace(superblock, la_size_sect=size, clean=True).placed(geometry)
        confirm = _Confirm(force, ask, say)
        try:
            old = _confirm_replacement(backing, placement, confirm)
            _check_for_data(backing, geometry, old, ignore_sanity_checks, confirm)
            write_metadata(backing, geometry, superblock, geometry.bm_bytes, dump)
        except OSError as error:
            raise io_error(backing, error) from None
        say(f"{backing.path}: metadata restored")
        return geometry


# Changing


def apply_al(
    data_path: str, placement: Placement, md_path: str | None = None, *, say: Say = silent
) -> Applied:
    """Turn the activity log of a crashed Primary into bitmap bits and make the metadata clean.
    Harmless on clean metadata. Raises NoMetadataError (none, or a log that is needed but
    unusable), DeviceError (in use), NoDiskError."""
    with open_metadata(data_path, placement, md_path) as backing:
        try:
            return apply_al_on(backing, placement, say)
        except MetadataError as error:
            raise NoMetadataError(error.message, hint=error.hint) from None


def apply_al_on(backing: Backing, placement: Placement, say: Say = silent) -> Applied:
    """Like apply_al(), on an open device. Raises MetadataError, NoDiskError."""
    superblock, geometry = read_metadata_on(backing, placement)
    try:
        log = backing.read(geometry.al_offset, geometry.al_blocks * BLOCK)
        ring = (log[at : at + BLOCK] for at in range(0, len(log), BLOCK))
        try:
            applied = plan_apply_al(
                superblock,
                geometry,
                ring,
                lambda offset, length: backing.read(geometry.bm_offset + offset, length),
            )
        except MetadataError as error:
            raise MetadataError(f"{backing.path}: {error.message}", hint=error.hint) from None
        for offset, piece in applied.bitmap_writes:
            backing.write(geometry.bm_offset + offset, piece)
        backing.flush()
        if applied.initialize_ring:
            _initialize_ring(backing, geometry)
        if applied.initialize_ring or superblock != applied.superblock:
            _write_superblock(backing, geometry, applied.superblock)
    except OSError as error:
        raise io_error(backing, error) from None
    for note in applied.notes:
        say(f"{backing.path}: {note}")
    return applied


def set_gi(
    data_path: str,
    placement: Placement,
    md_path: str | None = None,
    *,
    text: str,
    force: bool = False,
    ask: Ask,
    say: Say = silent,
) -> bool:
    """Change generations and flags as `text` says, see gi.set_gi(). False if the question was
    answered with no. Raises UsageError, NoMetadataError, DeviceError, NoDiskError."""
    with open_metadata(data_path, placement, md_path) as backing:
        superblock, geometry = required_on(backing, placement)
        changed = gi.set_gi(superblock, text)
        say(f"previously {superblock.gi_line()}")
        say(f"set GI to  {changed.gi_line()}")
        try:
            _Confirm(force, ask, say)(f"{backing.path}: write this to disk?")
        except DeclinedError:
            return False
        return _rewrite(backing, geometry, changed)


def outdate(data_path: str, placement: Placement, md_path: str | None = None) -> bool:
    """Mark the data as Outdated. False if it is Inconsistent, which cannot become Outdated.
    Raises NoMetadataError, DeviceError, NoDiskError."""
    with open_metadata(data_path, placement, md_path) as backing:
        superblock, geometry = required_on(backing, placement)
        if not superblock.flags & Flags.CONSISTENT:
            return False
        superblock.flags &= ~Flags.WAS_UP_TO_DATE
        return _rewrite(backing, geometry, superblock)


def invalidate(data_path: str, placement: Placement, md_path: str | None = None) -> bool:
    """Mark the data as worthless: Inconsistent, with a full resync to come. Always True.
    Raises NoMetadataError, DeviceError, NoDiskError."""
    with open_metadata(data_path, placement, md_path) as backing:
        superblock, geometry = required_on(backing, placement)
        superblock.flags &= ~(Flags.CONSISTENT | Flags.WAS_UP_TO_DATE)
        superblock.flags |= Flags.FULL_SYNC
        return _rewrite(backing, geometry, superblock)


# Inside


class _Confirm:
    """Asks before something is destroyed; a no raises DeclinedError."""

    def __init__(self, force: bool, ask: Ask, say: Say) -> None:
        self._force = force
        self._ask = ask
        self._say = say

    def __call__(self, question: str) -> None:
        if self._force:
            self._say(f"{question} (taken as yes: forced)")
        elif not self._ask(question):
            raise DeclinedError("operation cancelled: nothing was written")


def _geometry(backing: Backing, placement: Placement, stripes: int, stripe_size: int) -> Geometry:
    """Raises MetadataError, naming the device, if the metadata does not fit on it."""
    try:
        return layout.geometry(backing.size, placement, stripes, stripe_size)
    except MetadataError as error:
        raise MetadataError(f"{backing.path}: {error.message}", hint=error.hint) from None


def _refuse_same(backing: Backing, data_path: str) -> None:
    try:
        same = os.path.samestat(os.fstat(backing.fd), os.stat(data_path))
    except OSError:
        return  # opening it will say why
    if same:
        raise MetadataError(
            f"meta-disk: expected a device of its own, found {backing.path}, which is the disk too",
            hint="use `meta-disk internal`, or name another device",
        )


def _note_capacity(data: Backing, geometry: Geometry, say: Say) -> None:
    if data.size // SECTOR > geometry.max_data_sectors:
        say(
            f"{data.path}: {data.size // SECTOR} sectors, of which this metadata can describe"
            f" {geometry.max_data_sectors}: the rest will not be used"
        )


def _confirm_replacement(
    backing: Backing, placement: Placement, confirm: _Confirm
) -> Geometry | None:
    """Ask before metadata is overwritten. The geometry of valid v08 metadata, None if none."""
    block = backing.read(sb_offset(backing.size, placement), BLOCK)
    version = other_version(block)
    if version:
        confirm(f"{backing.path}: found {version} metadata, which cannot be converted; replace it?")
        return None
    try:
        superblock = Superblock.decode(block)
    except MetadataError:
        return None
    try:
        geometry = superblock.geometry(backing.size, placement)
        superblock.validate(geometry)
    except MetadataError:
        confirm(f"{backing.path}: found damaged v08 metadata; overwrite it?")
        return None
    size = f", agreed size {superblock.la_size_sect} sectors" if superblock.la_size_sect else ""
    confirm(
        f"{backing.path}: found valid v08 {placement} metadata"
        f" ({superblock.dstate()}{size}); overwrite it?"
    )
    return geometry


def _check_for_data(
    backing: Backing, geometry: Geometry, old: Geometry | None, ignore: bool, confirm: _Confirm
) -> None:
    """Refuse or ask if the metadata would go over something. Raises DataFoundError."""
    if old is not None and geometry.bm_offset >= old.bm_offset:
        return  # the usable space does not shrink
    internal = not geometry.placement.external
    start = 0 if internal else geometry.sb_offset
    head = backing.read(start, min(PROBE_BYTES, backing.size - start))
    if not internal and _is_metadata(head):
        head = head[:0]  # asked about already
    found = detect(head)
    if found is None:
        return
    usable = geometry.max_data_sectors * SECTOR if internal else 0
    where = "before the metadata" if internal else "on a metadata device"
    summary = (
        f"{backing.path}: found {found.name}{_size_text(found)}; {usable} bytes are usable {where}"
    )
    fits = found.size is not None and found.size <= usable
    final = internal and found.size is not None
    if found.kind != "unknown" and not fits and (final or not ignore):
        raise DataFoundError(
            f"{summary}: writing metadata would destroy data", hint=_data_hint(found, internal)
        )
    confirm(f"{summary}. Existing data may be lost. Write the metadata nevertheless?")


def _is_metadata(head: bytes) -> bool:
    try:
        Superblock.decode(head)
    except MetadataError:
        return bool(other_version(head))
    return True


def _size_text(found: Found) -> str:
    return "" if found.size is None else f" of {found.size} bytes"


def _data_hint(found: Found, internal: bool) -> str:
    if internal and found.size is not None:
        return (
            "use external meta-disk or grow the device, or shrink what is on it;"
            " if it is not needed any more wipe it first: wipefs -a DEVICE"
        )
    if internal:
        return (
            "use an external meta-disk; if it is not needed any more wipe it first:"
            " wipefs -a DEVICE (--ignore-sanity-checks overrides this)"
        )
    return "is meta-disk right? if that data is not needed any more: wipefs -a DEVICE"


def write_metadata(
    backing: Backing,
    geometry: Geometry,
    superblock: Superblock,
    bm_bytes: int,
    dump: dump_format.Dump | None = None,
) -> None:
    """Ring, bitmap, superblock, in that order; the superblock that was there goes first."""
    backing.zero(geometry.sb_offset, BLOCK)
    backing.flush()
    _initialize_ring(backing, geometry)
    backing.zero(geometry.bm_offset, bm_bytes)
    if dump is not None:
        used = bitmap_bytes_used(superblock.la_size_sect)
        for offset, piece in dump.chunks(_CHUNK, used):
            backing.write(geometry.bm_offset + offset, piece)
    _write_superblock(backing, geometry, superblock)


def _initialize_ring(backing: Backing, geometry: Geometry) -> None:
    backing.write(geometry.al_offset, initialized_block() * geometry.al_blocks)


def _write_superblock(backing: Backing, geometry: Geometry, superblock: Superblock) -> None:
    backing.flush()
    backing.write(geometry.sb_offset, superblock.encode())
    backing.flush()


def _rewrite(backing: Backing, geometry: Geometry, superblock: Superblock) -> bool:
    try:
        _write_superblock(backing, geometry, superblock)
    except OSError as error:
        raise io_error(backing, error) from None
    return True
