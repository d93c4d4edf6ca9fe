#!/usr/bin/env python3
"""Independent checker for images with replication metadata of format v08.

Finds the metadata for the requested placement in a regular file or block device, validates it
against docs/metadata.md and prints one JSON object. Never writes to the image, and must not share
code with the product: it is the second opinion of the tests.

    check_metadata_v08.py [options] IMAGE

Exit status
    0   well-formed metadata was found ("errors" is empty)
    1   malformed or missing metadata ("errors" says why; JSON still printed)
    2   usage error or I/O error (message on stderr, no JSON)
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.tools.metadata_v08_areas import (
    AL_CONTEXT,
    AL_MAX_SLOTS,
    AL_MIN_BLOCKS,
    AL_TOOL_MAX_BLOCKS,
    BIT_BYTES,
    BITS_PER_BM_BLOCK,
    BLOCK,
    FLAG_NAMES,
    GI_FLAG_ORDER,
    INDEXED_SLOT_BYTES,
    KNOWN_FLAGS,
    MAGIC_CLEAN,
    MAGIC_UNCLEAN,
    MIN_DEVICE_BYTES,
    OTHER_MAGICS,
    SECTOR,
    SUPERBLOCK,
    UUID_JUST_CREATED,
    Image,
    Report,
    ceil_div,
    examine_activity_log,
    examine_bitmap,
    preview_apply,
)

# --------------------------------------------------------------------------
# placement
# --------------------------------------------------------------------------


def bitmap_area_bytes(device_bytes):
    """Bitmap area of internal metadata: sized for the whole device."""
    return BLOCK * ceil_div(device_bytes // SECTOR, BITS_PER_BM_BLOCK * 8)


def superblock_offset(layout, device_bytes):
    if layout == "internal":
        return (device_bytes - BLOCK) // BLOCK * BLOCK
    if layout == "flex-external":
        return 0
    return layout * INDEXED_SLOT_BYTES


def expected_geometry(layout, device_bytes, al_blocks):
    """Sector-relative geometry the superblock has to carry."""
    al_sect = al_blocks * BLOCK // SECTOR
    if layout == "internal":
        bm_sect = bitmap_area_bytes(device_bytes) // SECTOR
        return {
            "md_size_sect": bm_sect + al_sect + 8,
            "al_offset": -al_sect,
            "bm_offset": -(al_sect + bm_sect),
        }
    if layout == "flex-external":
        return {
            "md_size_sect": device_bytes // SECTOR,
            "al_offset": 8,
            "bm_offset": 8 + al_sect,
        }
    return {
        "md_size_sect": INDEXED_SLOT_BYTES // SECTOR,
        "al_offset": 8,
        "bm_offset": 8 + al_sect,
    }


def candidate_layouts(image, wanted):
    if wanted != "auto":
        yield int(wanted) if wanted.isdigit() else wanted
        return
    yield "internal"
    yield "flex-external"
    for index in range(256):
        if (index + 1) * INDEXED_SLOT_BYTES > image.size:
            break
        yield index


# --------------------------------------------------------------------------
# superblock
# --------------------------------------------------------------------------


def parse_superblock(raw):
    names = (
        "la_size_sect",
        "uuid_current",
        "uuid_bitmap",
        "uuid_history0",
        "uuid_history1",
        "device_uuid",
        "reserved_u64",
        "flags",
        "magic",
        "md_size_sect",
        "al_offset",
        "al_nr_extents",
        "bm_offset",
        "bm_bytes_per_bit",
        "la_peer_max_bio_size",
        "al_stripes",
        "al_stripe_size_4k",
    )
    return dict(zip(names, SUPERBLOCK.unpack_from(raw), strict=False))


def check_superblock(rep, raw, sb, layout, device_bytes):
    """Validate; returns (al_blocks, stripes, stripe_4k) or None."""
    stripes, stripe_4k = sb["al_stripes"], sb["al_stripe_size_4k"]
    if stripes == 0 and stripe_4k == 0:
        stripes, stripe_4k = 1, 8  # pre-8.4.3 superblocks
    al_blocks = stripes * stripe_4k
    if stripes == 0 or stripe_4k == 0:
        rep.error("exactly one of al_stripes/al_stripe_size_4k is zero")
        return None
    if al_blocks < AL_MIN_BLOCKS:
        rep.error(f"activity log of {al_blocks} blocks is below {AL_MIN_BLOCKS}")
        return None
    if al_blocks > AL_TOOL_MAX_BLOCKS:
        rep.error(f"activity log of {al_blocks} blocks exceeds {AL_TOOL_MAX_BLOCKS}")
        return None
    if isinstance(layout, int) and (stripes, stripe_4k) != (1, 8):
        rep.error("indexed metadata must use the classic 1 x 8 activity log")
    if sb["bm_bytes_per_bit"] != BIT_BYTES:
        rep.error(f"bm_bytes_per_bit is {sb['bm_bytes_per_bit']}, must be {BIT_BYTES}")

    want = expected_geometry(layout, device_bytes, al_blocks)
    for key in ("al_offset", "bm_offset", "md_size_sect"):
        if sb[key] == want[key]:
            continue
        if key == "md_size_sect" and layout == "flex-external":
            minimum = want["bm_offset"] + 8
            if minimum <= sb[key] <= want[key]:
                rep.warn(
                    f"md_size_sect {sb[key]} is smaller than the "
                    f"{want[key]} sectors of the metadata device"
                )
                continue
        rep.error(f"{key} is {sb[key]}, expected {want[key]}")

    if sb["flags"] & ~KNOWN_FLAGS:
        rep.warn(f"unknown flag bits {sb['flags'] & ~KNOWN_FLAGS:#x}")
    if sb["reserved_u64"] or any(raw[SUPERBLOCK.size :]):
        rep.warn("reserved superblock bytes are not all zero")
    slots_max = min(AL_MAX_SLOTS, (al_blocks - 1) * AL_CONTEXT)
    if not 1 <= sb["al_nr_extents"] <= slots_max:
        rep.warn(f"al_nr_extents {sb['al_nr_extents']} outside 1..{slots_max}")
    return al_blocks, stripes, stripe_4k


# --------------------------------------------------------------------------
# driver
# --------------------------------------------------------------------------


def disk_state(flags):
    if not flags["consistent"]:
        return "Inconsistent"
    if not flags["was_up_to_date"]:
        return "Outdated"
    return "UpToDate" if flags["peer_out_dated"] else "Consistent"


def examine(image, layout, raw, args):
    rep = Report()
    sb_at = superblock_offset(layout, image.size)
    sb = parse_superblock(raw)
    geometry = check_superblock(rep, raw, sb, layout, image.size)
    flags = {name: bool(sb["flags"] >> bit & 1) for bit, name in FLAG_NAMES}
    clean = sb["magic"] == MAGIC_CLEAN and flags["al_clean"]

    uuids = {k: f"{sb['uuid_' + k]:016X}" for k in ("current", "bitmap", "history0", "history1")}
    gi = ":".join([*uuids.values(), *(str(int(flags[f])) for f in GI_FLAG_ORDER)])
    rep.out["layout"] = layout if isinstance(layout, str) else f"index:{layout}"
    rep.out["device_size"] = image.size
    rep.out["superblock"] = {
        "la_size_sect": sb["la_size_sect"],
        "device_uuid": f"{sb['device_uuid']:016X}",
        "magic": f"0x{sb['magic']:08x}",
        "flags": f"0x{sb['flags']:08x}",
        "md_size_sect": sb["md_size_sect"],
        "al_offset": sb["al_offset"],
        "al_nr_extents": sb["al_nr_extents"],
        "bm_offset": sb["bm_offset"],
        "bm_bytes_per_bit": sb["bm_bytes_per_bit"],
        "la_peer_max_bio_size": sb["la_peer_max_bio_size"],
        "al_stripes": sb["al_stripes"],
        "al_stripe_size_4k": sb["al_stripe_size_4k"],
    }
    rep.out["uuids"] = uuids
    rep.out["flags"] = flags
    rep.out["gi"] = gi
    rep.out["just_created"] = sb["uuid_current"] & ~1 == UUID_JUST_CREATED
    rep.out["disk_state"] = disk_state(flags)
    rep.out["clean"] = clean
    rep.out["needs_apply_al"] = not clean
    if geometry is None or rep.errors:
        return rep

    al_blocks, stripes, stripe_4k = geometry
    al_start = sb_at + sb["al_offset"] * SECTOR
    bm_start = sb_at + sb["bm_offset"] * SECTOR
    if layout == "internal":
        area = al_start - bm_start
        capacity = bm_start // SECTOR
    else:
        area = (sb["md_size_sect"] - sb["bm_offset"]) * SECTOR
        capacity = area * 8 // 64 * 64 * (BIT_BYTES // SECTOR)
    rep.out["offsets"] = {
        "superblock": sb_at,
        "activity_log": al_start,
        "activity_log_bytes": al_blocks * BLOCK,
        "bitmap": bm_start,
        "bitmap_area_bytes": area,
        "max_data_sectors": capacity,
    }
    if sb["la_size_sect"] > capacity:
        rep.error(
            f"la_size_sect {sb['la_size_sect']} exceeds the "
            f"{capacity} sectors this metadata can describe"
        )
        return rep

    al_needed = not clean and flags["primary_ind"]
    al = examine_activity_log(
        rep, image, al_start, al_blocks, stripes, stripe_4k, al_needed, args.full
    )
    bitmap, used = examine_bitmap(
        rep, image, bm_start, area, sb["la_size_sect"], args.max_ranges, args.scan_area
    )
    rep.out["activity_log"] = al
    rep.out["bitmap"] = bitmap
    if al is not None and bitmap is not None:
        preview = preview_apply(image, bm_start, used, al["active_extents"])
        preview["needed"] = al_needed
        rep.out["apply_al_preview"] = preview
    if clean and al and al["active_extents"]:
        rep.warn("metadata is marked clean but the activity log is not empty")
    if args.require_clean and not clean:
        rep.error("metadata is not clean (apply-al required)")
    return rep


def missing(image, wanted, why):
    rep = Report()
    rep.error(why)
    rep.out.update({"layout": wanted, "device_size": image.size})
    return rep


def check_image(image, args):
    if image.size < MIN_DEVICE_BYTES:
        return missing(
            image, args.layout, f"image has {image.size} bytes, at least {MIN_DEVICE_BYTES} needed"
        )
    notes = []
    for layout in candidate_layouts(image, args.layout):
        raw = image.read(superblock_offset(layout, image.size), BLOCK)
        name = layout if isinstance(layout, str) else f"index:{layout}"
        if raw is None:
            notes.append(f"{name}: superblock position lies outside the image")
            continue
        magic = parse_superblock(raw)["magic"]
        if magic not in (MAGIC_CLEAN, MAGIC_UNCLEAN):
            other = OTHER_MAGICS.get(magic)
            notes.append(
                f"{name}: magic 0x{magic:08x}"
                + (f" ({other} metadata)" if other else " not recognised")
            )
            continue
        # Offset 0 is shared with index 0; the recorded size tells them apart.
        slot_sized = parse_superblock(raw)["md_size_sect"] == INDEXED_SLOT_BYTES // SECTOR
        if (args.layout, layout) == ("auto", "flex-external") and (
            slot_sized and image.size != INDEXED_SLOT_BYTES
        ):
            continue
        return examine(image, layout, raw, args)
    shown = notes[:3] + (["..."] if len(notes) > 3 else [])
    return missing(image, args.layout, "no v08 superblock: " + "; ".join(shown))


def check(path, layout="auto", require_clean=False):
    """The report on an image as a dictionary, for tests."""
    args = argparse.Namespace(
        layout=layout, full=False, max_ranges=1 << 20, scan_area=False, require_clean=require_clean
    )
    return check_image(Image(path), args).as_dict()


def main(argv=None):
    ap = argparse.ArgumentParser(
        description="Validate v08 replication metadata and print it as JSON."
    )
    ap.add_argument("image")
    ap.add_argument(
        "--layout",
        default="auto",
        metavar="L",
        help="auto (default), internal, flex-external, or an index 0..255",
    )
    ap.add_argument(
        "--full", action="store_true", help="include the context part of activity-log transactions"
    )
    ap.add_argument(
        "--max-ranges",
        type=int,
        default=256,
        metavar="N",
        help="list at most N runs of set bits (default 256)",
    )
    ap.add_argument(
        "--scan-area",
        action="store_true",
        help="scan the whole bitmap area, not just the agreed size",
    )
    ap.add_argument(
        "--require-clean",
        action="store_true",
        help="treat metadata that needs apply-al as an error",
    )
    args = ap.parse_args(argv)
    if args.layout not in ("auto", "internal", "flex-external") and (
        not args.layout.isdigit() or int(args.layout) > 255
    ):
        ap.error(f"bad layout {args.layout!r}")
    try:
        image = Image(args.image)
        report = check_image(image, args)
    except OSError as exc:
        print(f"{args.image}: {exc.strerror or exc}", file=sys.stderr)
        return 2
    json.dump(report.as_dict(), sys.stdout, indent=2)
    print()
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
