"""Backings: which disks of which volumes are opened, shared, made clean and closed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pytest_asyncio

from replicator import config
from replicator.config.model import VolumeView
from replicator.errors import DeviceError, MetadataError, NoDiskError, StateRefused
from replicator.metadata.layout import Placement
from replicator.runtime.backing import Backings, placement_of
from replicator.runtime.metadata_files import create_md

SIZE = 4 << 20


class Room:
    """Backing files and the volumes that use them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.remarks: list[str] = []
        self.backings = Backings(asyncio.get_running_loop(), self.remarks.append)

    def file(self, name: str, size: int = SIZE) -> str:
        path = self.directory / name
        path.touch()
        os.truncate(path, size)
        return str(path)

    def volumes(self, *meta_disks: str) -> list[VolumeView]:
        """One volume for each meta-disk, on data files disk0, disk1..., metadata created."""
        text = "".join(
            f"volume {n} {{ device /dev/drbd{n} minor {n};"
            f" disk {self.file(f'disk{n}')}; meta-disk {meta}; }}"
            for n, meta in enumerate(meta_disks)
        )
        file = self.directory / "r0.conf"
        file.write_text(
            f"resource r0 {{ {text} on a {{ address 127.0.0.1:7001; }}"
            f" on b {{ address 127.0.0.1:7002; }} }}"
        )
        volumes = config.load(str(file)).view("r0", "a").volumes
        for one in volumes:
            path = one.meta_disk.path or None
            create_md(one.disk, placement_of(one), path, force=True, ask=lambda text: True)
        return volumes


@pytest_asyncio.fixture
async def room(run_dir: Path) -> Room:
    return Room(run_dir)


async def test_internal_metadata_and_data_are_one_disk(room: Room) -> None:
    (volume,) = room.volumes("internal")
    opened = await room.backings.open(volume)
    assert opened.data is opened.meta
    assert (opened.data.size, opened.placement) == (SIZE, Placement("internal"))
    assert await room.backings.close_all(10)


async def test_flexible_metadata_is_a_disk_of_its_own(room: Room) -> None:
    (volume,) = room.volumes(room.file("meta", 1 << 20))
    opened = await room.backings.open(volume)
    assert opened.data is not opened.meta
    assert (opened.data.size, opened.meta.size) == (SIZE, 1 << 20)
    assert await room.backings.close_all(10)


async def test_volumes_that_share_an_indexed_device_share_its_disk(room: Room) -> None:
    meta = room.file("meta", 300 << 20)
    first, second = room.volumes(f"{meta}[0]", f"{meta}[1]")
    one, two = await room.backings.open(first), await room.backings.open(second)
    assert one.meta is two.meta
    assert one.data is not two.data
    assert two.placement == Placement("indexed", 1)
    room.backings.close(0)
    done = asyncio.get_running_loop().create_future()
    two.meta.read(0, 4096, lambda code, data: done.set_result(code))
    assert await asyncio.wait_for(done, 5) == 0
    assert await room.backings.close_all(10)


async def test_a_volume_is_opened_once_and_can_be_opened_again_right_after_close(
    room: Room,
) -> None:
    (volume,) = room.volumes("internal")
    await room.backings.open(volume)
    with pytest.raises(StateRefused, match="attached already"):
        await room.backings.open(volume)
    for _ in range(5):
        room.backings.close(0)
        await room.backings.open(volume)
    assert await room.backings.close_all(10)


async def test_a_disk_in_use_elsewhere_is_refused(room: Room) -> None:
    (volume,) = room.volumes("internal")
    await room.backings.open(volume)
    with pytest.raises(DeviceError, match="is in use"):
        await Backings(asyncio.get_running_loop(), room.remarks.append).open(volume)
    assert await room.backings.close_all(10)


async def test_a_failed_open_leaves_nothing_open(room: Room) -> None:
    meta = room.file("meta", 1 << 20)
    (volume,) = room.volumes(meta)
    os.truncate(meta, 0)
    os.truncate(meta, 1 << 20)
    with pytest.raises(MetadataError):
        await room.backings.open(volume)
    os.unlink(meta)
    with pytest.raises(NoDiskError):
        await room.backings.open(volume)
    assert await room.backings.close_all(10)
    inode = os.stat(volume.disk).st_ino
    for name in os.listdir("/proc/self/fd"):
        try:
            assert os.stat(f"/proc/self/fd/{name}").st_ino != inode
        except FileNotFoundError:
            continue
