"""Second half of the independent metadata checker: constants, checksum, activity log, bitmap.

Must not share code with the product; see check_metadata_v08.py.
"""

from __future__ import annotations

import os
import struct

SECTOR = 512
BLOCK = 4096  # unit of every metadata I/O
BIT_BYTES = 4096  # storage covered by one bitmap bit
BITS_PER_BM_BLOCK = BLOCK * 8  # 32768 bits per 4 KiB of bitmap
EXTENT_BYTES = 4 << 20  # one activity-log extent
BITS_PER_EXTENT = EXTENT_BYTES // BIT_BYTES
BM_BYTES_PER_EXTENT = BITS_PER_EXTENT // 8
INDEXED_SLOT_BYTES = 128 << 20
MIN_DEVICE_BYTES = 68 * 1024
AL_MIN_BLOCKS = 8
AL_TOOL_MAX_BLOCKS = 8192  # 32 MiB, what the tool accepts
AL_MAX_SLOTS = 65534

MAGIC_CLEAN = 0x8374026B
MAGIC_UNCLEAN = 0x8374026C
OTHER_MAGICS = {0x8374026A: "v07", 0x8374026D: "v09"}
UUID_JUST_CREATED = 4

FLAG_NAMES = (
    (0, "consistent"),
    (1, "primary_ind"),
    (2, "connected_ind"),
    (3, "full_sync"),
    (4, "was_up_to_date"),
    (5, "peer_out_dated"),
    (6, "crashed_primary"),
    (7, "al_clean"),
    (8, "al_disabled"),
)
KNOWN_FLAGS = (1 << 9) - 1
# order in which the seven flags follow the UUIDs in a "get-gi" line
GI_FLAG_ORDER = (
    "consistent",
    "was_up_to_date",
    "primary_ind",
    "connected_ind",
    "full_sync",
    "peer_out_dated",
    "crashed_primary",
)

AL_MAGIC = 0x69CB65A2
AL_TYPE_UPDATE = 0x0000
AL_TYPE_INITIALIZED = 0xFFFF
AL_UPDATES = 64
AL_CONTEXT = 919
AL_FREE = 0xFFFFFFFF
AL_NO_SLOT = 0xFFFF

# la_size, 4 uuids, device uuid, reserved | flags, magic, md_size, al_off,
# al_nr_extents, bm_off, bytes_per_bit, peer_max_bio, stripes, stripe_4k
SUPERBLOCK = struct.Struct(">Q4QQQIIIiIiIIII")
AL_HEAD = struct.Struct(">IIIHHHH16x")
AL_BODY = struct.Struct(f">{AL_UPDATES}H{AL_UPDATES}I{AL_CONTEXT}I")


# --------------------------------------------------------------------------
# checksum: CRC-32C polynomial, reflected, initial value 0, no final inversion
# --------------------------------------------------------------------------


def _crc_table():
    table = []
    for byte in range(256):
        reg = byte
        for _ in range(8):
            reg = (reg >> 1) ^ (0x82F63B78 if reg & 1 else 0)
        table.append(reg)
    return tuple(table)


_CRC_TABLE = _crc_table()
_CRC_CACHE: dict[bytes, int] = {}


def crc32c_raw(data: bytes) -> int:
    cached = _CRC_CACHE.get(data)
    if cached is not None:
        return cached
    reg = 0
    table = _CRC_TABLE
    for byte in data:
        reg = table[(reg ^ byte) & 0xFF] ^ (reg >> 8)
    if len(_CRC_CACHE) < 64:
        _CRC_CACHE[data] = reg
    return reg


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Report:
    def __init__(self):
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.out: dict = {}

    def error(self, msg):
        self.errors.append(msg)

    def warn(self, msg):
        self.warnings.append(msg)

    def as_dict(self):
        return {
            "valid": not self.errors,
            "errors": self.errors,
            "warnings": self.warnings,
            **self.out,
        }


class Image:
    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, offset, length):
        """Read exactly length bytes, or return None if out of range."""
        if offset < 0 or offset + length > self.size:
            return None
        chunks = []
        while length:
            part = os.pread(self.fd, min(length, 1 << 22), offset)
            if not part:
                return None
            chunks.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(chunks)


# --------------------------------------------------------------------------
# activity log
# --------------------------------------------------------------------------


def al_block_for(number, stripes, stripe_4k):
    ring = number % (stripes * stripe_4k)
    return (ring % stripes) * stripe_4k + ring // stripes


def parse_al_block(raw):
    magic, tr, crc, kind, n_upd, ctx_size, ctx_start = AL_HEAD.unpack_from(raw)
    body = AL_BODY.unpack_from(raw, AL_HEAD.size)
    computed = crc32c_raw(raw[:8] + b"\0\0\0\0" + raw[12:])
    return {
        "magic": magic,
        "tr_number": tr,
        "crc": crc,
        "crc_ok": crc == computed,
        "valid": magic == AL_MAGIC and crc == computed,
        "type": kind,
        "n_updates": n_upd,
        "context_size": ctx_size,
        "context_start": ctx_start,
        "update_slots": body[:AL_UPDATES],
        "update_extents": body[AL_UPDATES : 2 * AL_UPDATES],
        "context": body[2 * AL_UPDATES :],
    }


def serial_distance(a: int, b: int) -> int:
    """Signed distance a-b of two 32 bit wrapping serial numbers."""
    d = (a - b) & 0xFFFFFFFF
    return d - (1 << 32) if d & 0x80000000 else d


def replay_activity_log(rep, blocks):
    """Return {slot: extent} as of the newest valid UPDATE transaction."""
    updates = [b for b in blocks if b["valid"] and b["type"] == AL_TYPE_UPDATE]
    if not updates:
        return {}
    newest = updates[0]["tr_number"]
    for blk in updates[1:]:
        if serial_distance(blk["tr_number"], newest) > 0:
            newest = blk["tr_number"]
    updates.sort(key=lambda b: serial_distance(b["tr_number"], newest))
    table: dict[int, int] = {}
    for blk in updates:
        for i, extent in enumerate(blk["context"]):
            slot = blk["context_start"] + i
            if extent == AL_FREE and slot >= blk["context_size"]:
                continue
            if slot >= AL_MAX_SLOTS:
                rep.warn(f"tr {blk['tr_number']}: context slot {slot} out of range")
                continue
            table[slot] = extent
        for i, slot in enumerate(blk["update_slots"]):
            if i >= blk["n_updates"] and slot == AL_NO_SLOT:
                continue
            if slot >= AL_MAX_SLOTS:
                rep.warn(f"tr {blk['tr_number']}: update slot {slot} out of range")
                continue
            table[slot] = blk["update_extents"][i]
    return {s: e for s, e in table.items() if e != AL_FREE}


def examine_activity_log(rep, image, al_start, al_blocks, stripes, stripe_4k, needed, full):
    raw = image.read(al_start, al_blocks * BLOCK)
    if raw is None:
        rep.error("activity log lies outside the image")
        return None
    blocks = []
    for n in range(al_blocks):
        blk = parse_al_block(raw[n * BLOCK : (n + 1) * BLOCK])
        blk["block"] = n
        blocks.append(blk)

    summary, corrupt, initialized, updates = [], 0, 0, 0
    seen: dict[int, int] = {}
    for blk in blocks:
        if not blk["valid"]:
            corrupt += 1
            summary.append(
                {
                    "block": blk["block"],
                    "state": "invalid",
                    "magic": f"0x{blk['magic']:08x}",
                    "crc_ok": blk["crc_ok"],
                }
            )
            continue
        if blk["type"] == AL_TYPE_INITIALIZED:
            initialized += 1
            summary.append({"block": blk["block"], "state": "initialized"})
            continue
        if blk["type"] != AL_TYPE_UPDATE:
            rep.error(
                f"activity log block {blk['block']}: unknown transaction type 0x{blk['type']:04x}"
            )
            continue
        updates += 1
        tr = blk["tr_number"]
        if tr in seen:
            rep.warn(f"transaction number {tr} appears in blocks {seen[tr]} and {blk['block']}")
        seen[tr] = blk["block"]
        home = al_block_for(tr, stripes, stripe_4k)
        if home != blk["block"]:
            rep.warn(
                f"transaction {tr} found in block {blk['block']}, "
                f"its place in the ring is block {home}"
            )
        if blk["n_updates"] > AL_UPDATES:
            rep.error(
                f"activity log block {blk['block']}: n_updates "
                f"{blk['n_updates']} exceeds {AL_UPDATES}"
            )
        entry = {
            "block": blk["block"],
            "state": "update",
            "tr_number": tr,
            "n_updates": blk["n_updates"],
            "context_size": blk["context_size"],
            "context_start": blk["context_start"],
            "updates": [
                [s, e]
                for s, e in zip(
                    blk["update_slots"][: blk["n_updates"]],
                    blk["update_extents"][: blk["n_updates"]],
                    strict=False,
                )
            ],
        }
        if full:
            entry["context"] = [
                [blk["context_start"] + i, e] for i, e in enumerate(blk["context"]) if e != AL_FREE
            ]
        summary.append(entry)

    usable = al_blocks - corrupt
    if not usable:
        msg = "no usable activity log block"
        (rep.error if needed else rep.warn)(msg)
    elif corrupt and not updates:
        # the only tolerated pattern: the very first transaction was torn
        only_first = corrupt == 1 and not blocks[0]["valid"]
        if not only_first:
            msg = f"{corrupt} corrupt activity log blocks and no valid update"
            (rep.error if needed else rep.warn)(msg)
    elif corrupt > 1:
        rep.warn(f"{corrupt} corrupt activity log blocks (at most one is expected)")

    table = replay_activity_log(rep, blocks)
    return {
        "blocks": al_blocks,
        "stripes": stripes,
        "stripe_size_4k": stripe_4k,
        "initialized": initialized,
        "updates": updates,
        "corrupt": corrupt,
        "transactions": summary,
        "slots": {str(s): table[s] for s in sorted(table)},
        "active_extents": sorted(set(table.values())),
    }


# --------------------------------------------------------------------------
# bitmap
# --------------------------------------------------------------------------


def iter_bitmap(image, start, length):
    """Yield (byte_position, chunk); all-zero chunks are skipped."""
    pos = 0
    while pos < length:
        chunk = image.read(start + pos, min(1 << 16, length - pos))
        if chunk is None:
            return
        if chunk.count(0) != len(chunk):
            yield pos, chunk
        pos += len(chunk)


def examine_bitmap(rep, image, start, area_bytes, la_size_sect, max_ranges, scan_area):
    """With no agreed size yet the bitmap means nothing and is not scanned,
    unless scan_area asks for the whole reserved area."""
    if start < 0 or start + area_bytes > image.size:
        rep.error("bitmap area lies outside the image")
        return None, None
    bits = ceil_div(la_size_sect, 8)
    used_bytes = min(area_bytes, BLOCK * ceil_div(bits, BITS_PER_BM_BLOCK))
    scan = area_bytes if scan_area else used_bytes
    set_in = set_beyond = 0
    ranges, run_start, run_end = [], None, None
    truncated = False
    for pos, chunk in iter_bitmap(image, start, scan):
        value = int.from_bytes(chunk, "little")
        base = pos * 8
        if base + len(chunk) * 8 <= bits:
            set_in += value.bit_count()
        else:
            keep = max(0, bits - base)
            inside = value & ((1 << keep) - 1)
            set_in += inside.bit_count()
            set_beyond += (value >> keep).bit_count()
        if truncated:
            continue
        cursor = 0
        while value:
            skip = (value & -value).bit_length() - 1
            value >>= skip
            cursor += skip
            ones = (~value & (value + 1)).bit_length() - 1
            value >>= ones
            if run_end == base + cursor:
                run_end += ones
            else:
                if run_start is not None:
                    ranges.append([run_start, run_end - run_start])
                run_start, run_end = base + cursor, base + cursor + ones
            cursor += ones
            if len(ranges) >= max_ranges:
                truncated = True
                break
    if run_start is not None and not truncated:
        ranges.append([run_start, run_end - run_start])
    if bits and set_beyond:
        rep.warn(f"{set_beyond} bits set beyond the agreed size")
    result = {
        "bits": bits,
        "bytes": used_bytes,
        "area_bytes": area_bytes,
        "scanned_bytes": scan,
        "bits_set": set_in,
        "out_of_sync_kib": set_in * (BIT_BYTES // 1024),
        "bits_set_beyond_size": set_beyond,
        "ranges": ranges,
        "ranges_truncated": truncated,
    }
    return result, used_bytes


def preview_apply(image, bm_start, used_bytes, extents):
    """What applying the activity log would change."""
    applied, skipped, extra = [], [], 0
    for extent in extents:
        pos = extent * BM_BYTES_PER_EXTENT
        if pos >= used_bytes:
            skipped.append(extent)
            continue
        size = min(BM_BYTES_PER_EXTENT, used_bytes - pos)
        raw = image.read(bm_start + pos, size) or b""
        extra += size * 8 - int.from_bytes(raw, "little").bit_count()
        applied.append(extent)
    return {"extents": applied, "skipped_beyond_bitmap": skipped, "additional_bits": extra}
