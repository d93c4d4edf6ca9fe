"""Runs the real drbdmeta on image files and makes images, for the tests that compare with it.

Rules: every run gets a device minor of its own and leaves no last-known-device file behind, because
the tool would look for metadata where the file says.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from replicator.metadata.activity_log import AL_FREE, CONTEXT, encode_transaction, ring_block
from replicator.metadata.layout import BLOCK, Geometry, Placement
from replicator.metadata.superblock import Flags, Superblock
from replicator.runtime import metadata_files

_minors = itertools.count(500_000 + os.getpid() % 40_000 * 10)
STATE = Path("/var/lib/drbd")
LOCKS = Path("/run/lock")


def yes(_question: str) -> bool:
    return True


def run(image: Path, placement: Placement, *command: str, force: bool = True) -> tuple[int, str]:
    """Exit code and standard output of one command of the tool."""
    minor = next(_minors)
    tool = shutil.which("drbdmeta", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert tool, "drbdmeta is not installed"
    options = ["--force"] if force else []
    try:
        done = subprocess.run(
            [tool, *options, str(minor), "v08", str(image), placement.keyword, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        (STATE / f"drbd-minor-{minor}.lkbd").unlink(missing_ok=True)
        (LOCKS / f"drbd-147-{minor}").unlink(missing_ok=True)
    return done.returncode, done.stdout


def succeed(image: Path, placement: Placement, *command: str) -> str:
    code, output = run(image, placement, *command)
    assert code == 0, f"drbdmeta {' '.join(command)} ended with {code}: {output}"
    return output


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def copy_sparse(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


def read_at(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def areas(path: Path, geometry: Geometry) -> dict[str, bytes]:
    """The bytes of superblock, log and (at most the first MiB of) the bitmap."""
    return {
        "superblock": read_at(path, geometry.sb_offset, BLOCK),
        "activity log": read_at(path, geometry.al_offset, geometry.al_blocks * BLOCK),
        "bitmap": read_at(path, geometry.bm_offset, min(geometry.bm_bytes, 1 << 20)),
    }


def create(path: Path, size: int, placement: Placement, **options: int) -> Geometry:
    """A sparse image with our fresh metadata (an external one beside a small data file)."""
    sparse(path, size)
    data = path
    if placement.external:
        data = sparse(path.with_suffix(".data"), 64 << 20)
    return metadata_files.create_md(str(data), placement, str(path), ask=yes, **options)


def set_superblock(path: Path, geometry: Geometry, **fields: object) -> Superblock:
    """Change fields of the superblock of an image; what is written is returned."""
    superblock = Superblock.decode(read_at(path, geometry.sb_offset, BLOCK))
    for name, value in fields.items():
        assert hasattr(superblock, name), name
        setattr(superblock, name, value)
    write_at(path, geometry.sb_offset, superblock.encode())
    return superblock


CRASHED_PRIMARY = Flags.CONSISTENT | Flags.PRIMARY_IND | Flags.WAS_UP_TO_DATE


def random_ring(
    rng: random.Random, geometry: Geometry, slots: int, transactions: int, extents: int, first: int
) -> dict[int, bytes]:
    """Blocks (by place in the ring) that a Primary leaves behind that wrote at random."""
    table = [AL_FREE] * slots
    blocks: dict[int, bytes] = {}
    context_start = 0
    for number in range(first, first + transactions):
        updates = _random_updates(rng, table, extents)
        number &= 0xFFFFFFFF
        blocks[ring_block(number, geometry)] = encode_transaction(
            number, updates, table, context_start
        )
        for slot, extent in updates:
            table[slot] = extent
        context_start += CONTEXT
        if context_start >= slots:
            context_start = 0
    return blocks


def _random_updates(
    rng: random.Random, table: Sequence[int], extents: int
) -> list[tuple[int, int]]:
    cold = [extent for extent in range(extents) if extent not in table]
    count = min(rng.choice([0, 1, 1, 2, 5, 64]), len(cold), len(table))
    return list(zip(rng.sample(range(len(table)), count), rng.sample(cold, count), strict=True))
