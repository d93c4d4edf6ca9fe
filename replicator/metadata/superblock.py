"""The metadata superblock: one block of 4096 bytes with sizes, generations, flags and layout.

Rules:
1. decode() takes what is there, validate() says whether it fits its place; neither repairs.
2. The block has no checksum; it is always written whole, in one 4096-byte write.
What this file must not know: how the values change. That is the engine's business.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import NamedTuple

from replicator.errors import MetadataError
from replicator.metadata import layout
from replicator.metadata.layout import BLOCK, Geometry, Placement

MAGIC_V07 = 0x8374026A
MAGIC_CLEAN = 0x8374026B
MAGIC_UNCLEAN = 0x8374026C
MAGIC_V09 = 0x8374026D
UUID_JUST_CREATED = 4
AL_NR_EXTENTS_FRESH = 257
BM_BYTES_PER_BIT = 4096

_FORMAT = struct.Struct(">QQQQQQQIIIiIiIIII")
"""la_size, current, bitmap, history 0 and 1, device uuid, reserved; flags, magic, md_size,
al_offset, al_nr_extents, bm_offset, bytes per bit, peer max bio, stripes, stripe size."""
_MAGIC = struct.Struct(">I")
_MAGIC_AT = 60
_MAGIC_AT_V07 = 28
_DAMAGED_HINT = (
    "if the device was resized or meta-disk changed, restore the old size or setting; otherwise the"
    " metadata is damaged: replicator restore-md RESOURCE/VOLUME from a dump; or, if the peer has good"
    " data, replicator create-md RESOURCE/VOLUME and a full resync from it"
)


class Flags(IntFlag):
    """Bits of the `flags` field. Unknown bits are kept as they are."""

    CONSISTENT = 0x001
    PRIMARY_IND = 0x002
    CONNECTED_IND = 0x004
    FULL_SYNC = 0x008
    WAS_UP_TO_DATE = 0x010
    PEER_OUT_DATED = 0x020
    CRASHED_PRIMARY = 0x040
    AL_CLEAN = 0x080
    AL_DISABLED = 0x100


GI_FLAGS = (
    Flags.CONSISTENT,
    Flags.WAS_UP_TO_DATE,
    Flags.PRIMARY_IND,
    Flags.CONNECTED_IND,
    Flags.FULL_SYNC,
    Flags.PEER_OUT_DATED,
    Flags.CRASHED_PRIMARY,
)
"""The flags of a get-gi line, in its order."""


class Problem(NamedTuple):
    """One field that cannot be right; expected and found are for people."""

    field: str
    expected: str
    found: str


@dataclass(slots=True)
class Superblock:
    """The fields of the block. UUIDs are unsigned 64-bit; offsets are signed sectors, relative."""

    la_size_sect: int = 0
    """Last agreed volume size in sectors, 0 = never agreed with a peer."""
    current: int = UUID_JUST_CREATED
    bitmap: int = 0
    history0: int = 0
    history1: int = 0
    device_uuid: int = 0
    flags: Flags = field(default=Flags(0))
    clean: bool = False
    """The magic: True when the activity log has been applied and no engine has attached since."""
    md_size_sect: int = 0
    al_offset_sect: int = 0
    al_nr_extents: int = AL_NR_EXTENTS_FRESH
    bm_offset_sect: int = 0
    bm_bytes_per_bit: int = BM_BYTES_PER_BIT
    la_peer_max_bio_size: int = 0
    al_stripes: int = layout.DEFAULT_AL_STRIPES
    al_stripe_size_4k: int = layout.DEFAULT_AL_STRIPE_SIZE_4K

    @classmethod
    def fresh(cls, geometry: Geometry, la_peer_max_bio_size: int = 0) -> Superblock:
        """The superblock that create-md writes: just created, no generations, clean."""
        return cls(
            flags=Flags.AL_CLEAN, clean=True, la_peer_max_bio_size=la_peer_max_bio_size
        ).placed(geometry)

    def placed(self, geometry: Geometry) -> Superblock:
        """A copy whose layout fields are those of this geometry."""
        return replace(
            self,
            md_size_sect=geometry.md_size_sect,
            al_offset_sect=geometry.al_offset_sect,
            bm_offset_sect=geometry.bm_offset_sect,
            al_stripes=geometry.al_stripes,
            al_stripe_size_4k=geometry.al_stripe_size_4k,
        )

    @classmethod
    def decode(cls, block: bytes) -> Superblock:
        """Take a superblock apart. Reserved bytes are ignored.

        Raises MetadataError if there is none (magic), or it belongs to another version.
        """
        if len(block) < _FORMAT.size:
            raise MetadataError(f"metadata superblock: expected {BLOCK} bytes, found {len(block)}")
        raw = _FORMAT.unpack_from(block)
        magic = raw[8]
        if magic not in (MAGIC_CLEAN, MAGIC_UNCLEAN):
            raise _wrong_magic(magic, other_version(block))
        stripes, stripe_size = raw[15], raw[16]
        if stripes == 0 and stripe_size == 0:
            # Written before activity logs could be striped.
            stripes, stripe_size = layout.DEFAULT_AL_STRIPES, layout.DEFAULT_AL_STRIPE_SIZE_4K
        return cls(
            la_size_sect=raw[0],
            current=raw[1],
            bitmap=raw[2],
            history0=raw[3],
            history1=raw[4],
            device_uuid=raw[5],
            flags=Flags(raw[7]),
            clean=magic == MAGIC_CLEAN,
            md_size_sect=raw[9],
            al_offset_sect=raw[10],
            al_nr_extents=raw[11],
            bm_offset_sect=raw[12],
            bm_bytes_per_bit=raw[13],
            la_peer_max_bio_size=raw[14],
            al_stripes=stripes,
            al_stripe_size_4k=stripe_size,
        )

    def encode(self) -> bytes:
        """The block as it goes to disk: 4096 bytes, reserved ones zero."""
        return _FORMAT.pack(
            self.la_size_sect,
            self.current,
            self.bitmap,
            self.history0,
            self.history1,
            self.device_uuid,
            0,
            int(self.flags),
            MAGIC_CLEAN if self.clean else MAGIC_UNCLEAN,
            self.md_size_sect,
            self.al_offset_sect,
            self.al_nr_extents,
            self.bm_offset_sect,
            self.bm_bytes_per_bit,
            self.la_peer_max_bio_size,
            self.al_stripes,
            self.al_stripe_size_4k,
        ).ljust(BLOCK, b"\0")

    @property
    def needs_apply_al(self) -> bool:
        """An engine has had this disk since the log was last applied: attach must refuse."""
        return not (self.clean and self.flags & Flags.AL_CLEAN)

    def geometry(self, device_bytes: int, placement: Placement) -> Geometry:
        """The geometry for this device with the activity log's shape of this superblock. A flexible
        device is used as far as the recorded size goes: it may have grown, or be an indexed one
        with other volumes' slots behind this. Raises MetadataError, naming the field, if the
        activity log's shape is impossible."""
        if placement.kind == "flexible":
            recorded = self.md_size_sect * layout.SECTOR
            if recorded >= layout.DEVICE_BYTES_MIN:
                device_bytes = min(device_bytes, recorded)
        try:
            return layout.geometry(device_bytes, placement, self.al_stripes, self.al_stripe_size_4k)
        except MetadataError as error:
            raise MetadataError(
                f"metadata superblock ({placement}) on a device of {device_bytes} bytes:"
                f" {error.message}",
                hint=_DAMAGED_HINT,
            ) from None

    def problems(self, geometry: Geometry) -> list[Problem]:
        """Every field that contradicts the geometry of its device."""
        found: list[Problem] = []
        expected: list[tuple[str, int]] = [
            ("al_stripes", geometry.al_stripes),
            ("al_stripe_size_4k", geometry.al_stripe_size_4k),
            ("bm_bytes_per_bit", BM_BYTES_PER_BIT),
            ("al_offset_sect", geometry.al_offset_sect),
            ("bm_offset_sect", geometry.bm_offset_sect),
        ]
        if geometry.placement.kind != "flexible":
            expected.append(("md_size_sect", geometry.md_size_sect))
        for name, value in expected:
            if getattr(self, name) != value:
                found.append(Problem(name, str(value), str(getattr(self, name))))
        smallest = layout.DEVICE_BYTES_MIN // layout.SECTOR
        if geometry.placement.kind == "flexible" and not (
            smallest <= self.md_size_sect <= geometry.md_size_sect
        ):
            span = f"{smallest} to {geometry.md_size_sect}"
            found.append(Problem("md_size_sect", span, str(self.md_size_sect)))
        if self.la_size_sect > geometry.max_data_sectors:
            most = f"at most {geometry.max_data_sectors}"
            found.append(Problem("la_size_sect", most, str(self.la_size_sect)))
        return found

    def validate(self, geometry: Geometry) -> None:
        """Raise MetadataError, naming every field that does not fit, expected and found."""
        problems = self.problems(geometry)
        if problems:
            listing = "; ".join(
                f"{p.field}: expected {p.expected}, found {p.found}" for p in problems
            )
            raise MetadataError(
                f"metadata superblock at byte {geometry.sb_offset} ({geometry.placement}) does not"
                f" fit a device of {geometry.device_bytes} bytes: {listing}",
                hint=_DAMAGED_HINT,
            )

    def gi_line(self) -> str:
        """The generation identifiers as get-gi prints them."""
        uuids = (self.current, self.bitmap, self.history0, self.history1)
        return ":".join([*(f"{u:016X}" for u in uuids), self.gi_flags()])

    def gi_flags(self) -> str:
        """The seven 0/1 digits at the end of a get-gi line, colon-separated."""
        return ":".join("1" if self.flags & flag else "0" for flag in GI_FLAGS)

    def dstate(self) -> str:
        """The disk state that the flags amount to while nothing is running."""
        if not self.flags & Flags.CONSISTENT:
            return "Inconsistent"
        if not self.flags & Flags.WAS_UP_TO_DATE:
            return "Outdated"
        return "UpToDate" if self.flags & Flags.PEER_OUT_DATED else "Consistent"


def read_superblock(
    block: bytes, device_bytes: int, placement: Placement
) -> tuple[Superblock, Geometry]:
    """Decode the block found at the superblock's place and check it against the device.
    Raises MetadataError if there is none or it does not fit."""
    superblock = Superblock.decode(block)
    geometry = superblock.geometry(device_bytes, placement)
    superblock.validate(geometry)
    return superblock, geometry


def other_version(block: bytes) -> str:
    """ "v07" or "v09" if the block at the superblock's place belongs to that format, else ""."""
    if len(block) < _FORMAT.size:
        return ""
    (magic,) = _MAGIC.unpack_from(block, _MAGIC_AT)
    (old_magic,) = _MAGIC.unpack_from(block, _MAGIC_AT_V07)
    if magic == MAGIC_V09:
        return "v09"
    return "v07" if MAGIC_V07 in (magic, old_magic) else ""


def _wrong_magic(magic: int, other: str) -> MetadataError:
    wanted = f"magic: expected 0x{MAGIC_CLEAN:08x} or 0x{MAGIC_UNCLEAN:08x}, found 0x{magic:08x}"
    if other:
        return MetadataError(
            f"found {other} metadata, expected v08 ({wanted})",
            hint="convert it with the drbdmeta of the DRBD that wrote it; or, if the peer has good data,"
            f" replicator create-md RESOURCE/VOLUME destroys the {other} metadata and needs a full"
            " resync",
        )
    return MetadataError(
        f"no valid v08 metadata found ({wanted})",
        hint="if the disk was resized, or disk or meta-disk changed, undo that; only for a new volume:"
        " replicator create-md RESOURCE/VOLUME",
    )
