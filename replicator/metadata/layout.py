"""Where the metadata of a volume lies on its device: superblock, activity log, bitmap.

Rules:
1. Everything follows from the size of the metadata device, the placement and the striping of the
   activity log; nothing is read from a disk here.
2. Sizes are bytes unless the name ends in _sect or _sectors (512 bytes) or _4k (blocks of 4096).
What this file must not know: what the areas contain, who reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.errors import MetadataError

SECTOR = 512
BLOCK = 4096
"""Unit of all metadata I/O, and the amount of data that one bitmap bit stands for."""
SECTORS_PER_BLOCK = BLOCK // SECTOR
BITS_PER_BM_BLOCK = BLOCK * 8
SECTORS_PER_BM_BLOCK = BITS_PER_BM_BLOCK * SECTORS_PER_BLOCK
"""One block of bitmap describes 128 MiB of data."""
INDEXED_SLOT_BYTES = 128 << 20
INDEX_MAX = 255
DEVICE_BYTES_MIN = 68 * 1024
DEVICE_SECTORS_MAX = 1 << 41
"""1 PiB: beyond it the offsets of the superblock and the tools of the field end."""
MD_SECTORS_MAX = (1 << 32) - 1
"""The superblock stores the size of a metadata device in 32 bits."""
AL_BLOCKS_MIN = 8
AL_BLOCKS_MAX = 8192
DEFAULT_AL_STRIPES = 1
DEFAULT_AL_STRIPE_SIZE_4K = 8


@dataclass(frozen=True, slots=True)
class Placement:
    """kind: "internal" (end of the data device), "flexible" (all of a device of its own) or
    "indexed" (slot number `index` of 128 MiB on a shared device)."""

    kind: str
    index: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("internal", "flexible", "indexed"):
            raise ValueError(f"no such metadata placement: {self.kind!r}")
        if not 0 <= self.index <= INDEX_MAX or (self.index and self.kind != "indexed"):
            raise ValueError(f"metadata index {self.index} is not possible with {self.kind}")

    @classmethod
    def parse(cls, keyword: str) -> Placement:
        """The placement as the command line writes it: "internal", "flex-internal",
        "flex-external" or "0" to "255". Raises MetadataError for anything else."""
        if keyword in ("internal", "flex-internal"):
            return cls("internal")
        if keyword == "flex-external":
            return cls("flexible")
        if keyword.isascii() and keyword.isdigit() and int(keyword) <= INDEX_MAX:
            return cls("indexed", int(keyword))
        raise MetadataError(
            f"metadata placement: expected internal, flex-external or 0 to {INDEX_MAX},"
            f" found {keyword!r}"
        )

    @property
    def keyword(self) -> str:
        """The word for it on a drbdmeta command line."""
        if self.kind == "indexed":
            return str(self.index)
        return "internal" if self.kind == "internal" else "flex-external"

    @property
    def external(self) -> bool:
        return self.kind != "internal"

    def __str__(self) -> str:
        return f"index {self.index}" if self.kind == "indexed" else self.kind


@dataclass(frozen=True, slots=True)
class Geometry:
    """The areas of one metadata set. Offsets in bytes count from the start of the metadata device;
    the two *_offset_sect are signed and count from the superblock, as stored in it."""

    placement: Placement
    device_bytes: int
    sb_offset: int
    al_offset: int
    bm_offset: int
    al_blocks: int
    bm_bytes: int
    """Size of the bitmap area; the part in use depends on the volume's size."""
    md_size_sect: int
    al_offset_sect: int
    bm_offset_sect: int
    max_data_sectors: int
    """Largest volume that fits: in front of internal metadata, or into an external bitmap."""
    al_stripes: int
    al_stripe_size_4k: int


def sb_offset(device_bytes: int, placement: Placement) -> int:
    """Byte offset of the superblock. Raises MetadataError if the device is too small for it."""
    if device_bytes < DEVICE_BYTES_MIN:
        raise MetadataError(
            f"metadata device too small: expected at least {DEVICE_BYTES_MIN} bytes"
            f" ({DEVICE_BYTES_MIN >> 10} KiB), found {device_bytes}",
            hint="check `disk` and `meta-disk` in the configuration: is this the right device?",
        )
    if placement.kind == "internal":
        return (device_bytes - BLOCK) // BLOCK * BLOCK
    if placement.kind == "flexible":
        return 0
    needed = (placement.index + 1) * INDEXED_SLOT_BYTES
    if device_bytes < needed:
        raise MetadataError(
            f"metadata device too small for index {placement.index}:"
            f" expected at least {needed} bytes ({needed >> 20} MiB), found {device_bytes}",
            hint="choose a lower index, or a flexible-meta-disk, which uses the whole device",
        )
    return placement.index * INDEXED_SLOT_BYTES


def geometry(
    device_bytes: int,
    placement: Placement,
    al_stripes: int = DEFAULT_AL_STRIPES,
    al_stripe_size_4k: int = DEFAULT_AL_STRIPE_SIZE_4K,
) -> Geometry:
    """Compute all areas for a metadata device of this size.

    device_bytes: for internal metadata the size of the data device itself.
    Raises MetadataError where the device or the activity log has an impossible size.
    """
    check_stripes(al_stripes, al_stripe_size_4k, placement)
    superblock = sb_offset(device_bytes, placement)
    sectors = device_bytes // SECTOR
    al_blocks = al_stripes * al_stripe_size_4k
    al_bytes = al_blocks * BLOCK
    if placement.kind == "internal":
        if sectors > DEVICE_SECTORS_MAX:
            raise _too_large(sectors, DEVICE_SECTORS_MAX)
        bm_bytes = BLOCK * -(-sectors // SECTORS_PER_BM_BLOCK)
        al_offset = superblock - al_bytes
        bm_offset = al_offset - bm_bytes
        md_size = (BLOCK + al_bytes + bm_bytes) // SECTOR
        max_data = bm_offset // SECTOR
    else:
        if placement.kind == "flexible" and sectors > MD_SECTORS_MAX:
            raise _too_large(sectors, MD_SECTORS_MAX)
        area = INDEXED_SLOT_BYTES if placement.kind == "indexed" else sectors * SECTOR
        al_offset = superblock + BLOCK
        bm_offset = al_offset + al_bytes
        bm_bytes = area - BLOCK - al_bytes
        md_size = area // SECTOR
        max_data = bm_bytes * 8 // 64 * 64 * SECTORS_PER_BLOCK
    if bm_offset < 0 or bm_bytes < BLOCK:
        raise MetadataError(
            f"metadata device too small: an activity log of {al_stripes} x"
            f" {al_stripe_size_4k * 4} KiB and its bitmap do not fit into {device_bytes} bytes",
            hint="use a smaller --al-stripes or --al-stripe-size-kB",
        )
    return Geometry(
        placement=placement,
        device_bytes=device_bytes,
        sb_offset=superblock,
        al_offset=al_offset,
        bm_offset=bm_offset,
        al_blocks=al_blocks,
        bm_bytes=bm_bytes,
        md_size_sect=md_size,
        al_offset_sect=(al_offset - superblock) // SECTOR,
        bm_offset_sect=(bm_offset - superblock) // SECTOR,
        max_data_sectors=max_data,
        al_stripes=al_stripes,
        al_stripe_size_4k=al_stripe_size_4k,
    )


def check_stripes(al_stripes: int, al_stripe_size_4k: int, placement: Placement) -> None:
    """Raise MetadataError unless an activity log of this shape is possible with this placement."""
    if al_stripes < 1 or al_stripe_size_4k < 1:
        raise MetadataError(
            "al_stripes and al_stripe_size_4k: expected both to be at least 1,"
            f" found {al_stripes} and {al_stripe_size_4k}"
        )
    blocks = al_stripes * al_stripe_size_4k
    if not AL_BLOCKS_MIN <= blocks <= AL_BLOCKS_MAX:
        raise MetadataError(
            f"al_stripes x al_stripe_size_4k: expected {AL_BLOCKS_MIN} to {AL_BLOCKS_MAX} blocks"
            f" (32 KiB to 32 MiB), found {al_stripes} x {al_stripe_size_4k} = {blocks}"
        )
    default = (DEFAULT_AL_STRIPES, DEFAULT_AL_STRIPE_SIZE_4K)
    if placement.kind == "indexed" and (al_stripes, al_stripe_size_4k) != default:
        raise MetadataError(
            f"al_stripes and al_stripe_size_4k: expected {default[0]} and {default[1]}, the only"
            " shape that indexed metadata allows,"
            f" found {al_stripes} and {al_stripe_size_4k}",
            hint="use a flexible-meta-disk or internal metadata for another activity log",
        )


def bitmap_bits(data_sectors: int) -> int:
    """Bits that a volume of this many sectors needs; the last may stand for a partial block."""
    return -(-data_sectors // SECTORS_PER_BLOCK)


def bitmap_bytes_used(data_sectors: int) -> int:
    """Bytes of bitmap that a volume of this many sectors uses: whole blocks of 4096."""
    return BLOCK * -(-bitmap_bits(data_sectors) // BITS_PER_BM_BLOCK)


def _too_large(sectors: int, limit: int) -> MetadataError:
    return MetadataError(
        f"metadata device too large: expected at most {limit} sectors, found {sectors}"
    )
