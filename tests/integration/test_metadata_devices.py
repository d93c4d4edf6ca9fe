"""create-md over what real programs put on devices, and claims on real block devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.errors import DataFoundError, DeviceError
from replicator.metadata.layout import Placement
from replicator.metadata.signatures import PROBE_BYTES, detect
from replicator.runtime import metadata_files as files
from tests.integration import drbdmeta_tool as tool

pytestmark = pytest.mark.needs("drbdmeta", "mkfs.ext4", "mkswap", "losetup")

INTERNAL = Placement("internal")
MIB = 1 << 20
USABLE = 67067904


@pytest.fixture
def run(program: Callable[[str], str]) -> Callable[..., str]:
    def call(name: str, *arguments: str) -> str:
        done = subprocess.run([program(name), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return done.stdout.strip()

    return call


@pytest.fixture
def loop(tmp_path: Path, run: Callable[..., str]) -> Iterator[str]:
    image = tool.sparse(tmp_path / "disk", 64 * MIB)
    device = run("losetup", "--find", "--show", str(image))
    yield device
    run("losetup", "--detach", device)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-t", "ext4"], "ext4"),
        (["-t", "ext3"], "ext3"),
        (["-t", "ext2"], "ext2"),
        (["-t", "ext4", "-b", "1024"], "ext4"),
    ],
)
def test_a_real_file_system_on_the_whole_disk_is_refused_by_both(
    tmp_path: Path, run: Callable[..., str], options: list[str], name: str
) -> None:
    image = tool.sparse(tmp_path / "image", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", *options, str(image))
    found = detect(tool.read_at(image, 0, PROBE_BYTES))
    assert found is not None and (found.name, found.size) == (name, 64 * MIB)
    assert tool.run(image, INTERNAL, "create-md")[0] == 40
    with pytest.raises(DataFoundError, match=f"found {name} of 67108864 bytes") as refusal:
        files.create_md(str(image), INTERNAL, force=True, ask=tool.yes)
    assert refusal.value.exit_code == 40


@pytest.mark.parametrize("blocks", [USABLE // 4096, USABLE // 4096 + 1])
def test_the_last_block_that_fits_is_the_same_for_both(
    tmp_path: Path, run: Callable[..., str], blocks: int
) -> None:
    image = tool.sparse(tmp_path / "image", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", str(image), str(blocks))
    other = tool.copy_sparse(image, tmp_path / "other")
    code, _ = tool.run(other, INTERNAL, "create-md")
    if blocks * 4096 > USABLE:
        assert code == 40
        with pytest.raises(DataFoundError):
            files.create_md(str(image), INTERNAL, force=True, ask=tool.yes)
    else:
        assert code == 0
        place = files.create_md(str(image), INTERNAL, ask=tool.yes)
        assert tool.areas(image, place) == tool.areas(other, place)
        run("e2fsck", "-fn", str(image))


def test_real_swap_space_is_refused_by_both(tmp_path: Path, run: Callable[..., str]) -> None:
    image = tool.sparse(tmp_path / "image", 64 * MIB)
    run("mkswap", str(image))
    assert tool.run(image, INTERNAL, "create-md")[0] == 40
    with pytest.raises(DataFoundError, match="found swap space"):
        files.create_md(str(image), INTERNAL, force=True, ask=tool.yes)


def test_metadata_on_a_block_device_is_that_of_drbdmeta(
    tmp_path: Path, loop: str, run: Callable[..., str]
) -> None:
    place = files.create_md(loop, INTERNAL, ask=tool.yes)
    assert tool.succeed(Path(loop), INTERNAL, "get-gi").strip() == files.get_gi(loop, INTERNAL)
    theirs = tool.sparse(tmp_path / "theirs", 64 * MIB)
    tool.succeed(theirs, INTERNAL, "create-md")
    assert tool.areas(Path(loop), place) == tool.areas(theirs, place)


def test_a_claimed_block_device_is_refused_naming_the_holder(loop: str) -> None:
    with files.open_backing(loop), pytest.raises(DeviceError, match=f"in use: pid {os.getpid()} "):
        files.create_md(loop, INTERNAL, ask=tool.yes)
    files.create_md(loop, INTERNAL, ask=tool.yes)


def test_drbdmeta_sees_our_claim(loop: str) -> None:
    files.create_md(loop, INTERNAL, ask=tool.yes)
    with files.open_backing(loop):
        code, _ = tool.run(Path(loop), INTERNAL, "wipe-md", force=False)
        assert code == 20, "the tool must find the device busy"
    assert files.dstate(loop, INTERNAL) == "Inconsistent"


def test_a_mounted_device_is_refused_naming_the_mount_point(
    tmp_path: Path, loop: str, run: Callable[..., str]
) -> None:
    run("mkfs.ext4", "-q", loop)
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    run("mount", loop, str(mount_point))
    try:
        for placement in (INTERNAL, Placement("indexed", 0)):
            with pytest.raises(DeviceError, match=f"mounted on {mount_point}"):
                files.open_backing(loop, index=placement.index if placement.external else None)
    finally:
        run("umount", str(mount_point))


def test_a_file_behind_a_loop_device_is_refused(tmp_path: Path, loop: str) -> None:
    with pytest.raises(DeviceError, match=f"attached as {loop}"):
        files.open_backing(str(tmp_path / "disk"))


def test_slots_of_a_shared_block_device_are_claimed_one_by_one(loop: str) -> None:
    with (
        files.open_backing(loop, index=0),
        files.open_backing(loop, index=1),
        pytest.raises(DeviceError, match="in use"),
    ):
        files.open_backing(loop, index=1)
