"""Where metadata lies: worked examples, limits, and what must hold for every device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import MetadataError
from replicator.metadata.layout import (
    BLOCK,
    SECTOR,
    Placement,
    bitmap_bits,
    bitmap_bytes_used,
    geometry,
)

INTERNAL, FLEXIBLE = Placement("internal"), Placement("flexible")
SLOT = 128 << 20

# device bytes, placement: sb, al, bm offsets, bitmap bytes, md size, al and bm offset fields, data
EXAMPLES = {
    (64 << 20, INTERNAL): (67104768, 67072000, 67067904, 4096, 80, -64, -72, 130992),
    (10 << 30, INTERNAL): (
        *(10737414144, 10737381376, 10737053696, 327680, 712, -64, -704, 20970808),
    ),
    (1 << 40, INTERNAL): (
        *(1099511623680, 1099511590912, 1099478036480, 33554432, 65608, -64, -65600, 2147418040),
    ),
    (1 << 20, FLEXIBLE): (0, 4096, 36864, 1011712, 2048, 8, 72, 64749568),
    (256 << 20, Placement("indexed", 1)): (
        *(SLOT, SLOT + 4096, SLOT + 36864, 134180864, 262144, 8, 72, 8587575296),
    ),
    (69632, INTERNAL): (65536, 32768, 28672, 4096, 80, -64, -72, 56),
    (67109375, INTERNAL): (67104768, 67072000, 67067904, 4096, 80, -64, -72, 130992),
    (SLOT, INTERNAL): (134213632, 134180864, 134176768, 4096, 80, -64, -72, 262064),
    (SLOT + 512, INTERNAL): (134213632, 134180864, 134172672, 8192, 88, -64, -80, 262056),
}


@pytest.mark.parametrize(("device", "expected"), EXAMPLES.items(), ids=str)
def test_worked_examples(device: tuple[int, Placement], expected: tuple[int, ...]) -> None:
    g = geometry(*device)
    assert (
        g.sb_offset,
        g.al_offset,
        g.bm_offset,
        g.bm_bytes,
        g.md_size_sect,
        g.al_offset_sect,
        g.bm_offset_sect,
        g.max_data_sectors,
    ) == expected


@given(
    size=st.integers(69632, 1 << 44),
    stripes=st.sampled_from([(1, 8), (2, 4), (3, 7), (64, 128), (1, 8192)]),
    internal=st.booleans(),
)
def test_areas_never_overlap_and_the_bitmap_suffices(
    size: int, stripes: tuple[int, int], internal: bool
) -> None:
    placement = INTERNAL if internal else FLEXIBLE
    try:
        g = geometry(size, placement, *stripes)
    except MetadataError:
        small = size < (stripes[0] * stripes[1] + 2) * BLOCK + (size >> 15) + BLOCK
        assert small or size // SECTOR > 0xFFFFFFFF, "refused without need"
        return
    areas = sorted(
        [
            (g.sb_offset, BLOCK),
            (g.al_offset, g.al_blocks * BLOCK),
            (g.bm_offset, g.bm_bytes),
        ]
    )
    for (start, length), (following, _) in zip(areas, areas[1:], strict=False):
        assert start + length == following
    assert areas[0][0] >= 0 and sum(areas[-1]) <= size
    assert bitmap_bytes_used(g.max_data_sectors) <= -(-g.bm_bytes // BLOCK) * BLOCK
    assert bitmap_bits(g.max_data_sectors) <= g.bm_bytes * 8
    if internal:
        assert g.max_data_sectors * SECTOR <= g.bm_offset


@pytest.mark.parametrize(
    ("size", "placement", "stripes", "message"),
    [
        (69631, INTERNAL, (1, 8), "expected at least 69632 bytes"),
        (SLOT, Placement("indexed", 1), (1, 8), "expected at least 268435456 bytes"),
        (1 << 30, Placement("indexed", 0), (1, 9), "expected 1 and 8"),
        (1 << 30, INTERNAL, (1, 7), "expected 8 to 8192 blocks"),
        (1 << 30, INTERNAL, (2, 5000), "expected 8 to 8192 blocks"),
        (1 << 30, INTERNAL, (0, 8), "expected both to be at least 1"),
        (1 << 30, INTERNAL, (8, 0), "expected both to be at least 1"),
        (1 << 20, INTERNAL, (1, 8192), "do not fit into 1048576 bytes"),
        ((1 << 50) + 512, INTERNAL, (1, 8), "too large: expected at most"),
        (2 << 40, FLEXIBLE, (1, 8), "too large: expected at most"),
    ],
)
def test_impossible_sizes_are_refused_with_the_bound(
    size: int, placement: Placement, stripes: tuple[int, int], message: str
) -> None:
    with pytest.raises(MetadataError, match=message):
        geometry(size, placement, *stripes)


@pytest.mark.parametrize(
    ("keyword", "placement"),
    [
        ("internal", INTERNAL),
        ("flex-internal", INTERNAL),
        ("flex-external", FLEXIBLE),
        ("0", Placement("indexed", 0)),
        ("255", Placement("indexed", 255)),
    ],
)
def test_placements_are_parsed_as_drbdmeta_names_them(keyword: str, placement: Placement) -> None:
    assert Placement.parse(keyword) == placement


@pytest.mark.parametrize("keyword", ["256", "-1", "external", "", "1x", "²"])
def test_other_placements_are_refused(keyword: str) -> None:
    with pytest.raises(MetadataError, match="metadata placement: expected"):
        Placement.parse(keyword)


def test_a_placement_cannot_be_made_wrong() -> None:
    for kind, index in (("external", 0), ("indexed", 256), ("indexed", -1), ("internal", 1)):
        with pytest.raises(ValueError, match="placement|index"):
            Placement(kind, index)


def test_the_usable_size_shrinks_when_the_bitmap_grows_by_a_block() -> None:
    before, after = geometry(SLOT, INTERNAL), geometry(SLOT + 512, INTERNAL)
    assert after.max_data_sectors == before.max_data_sectors - 8
