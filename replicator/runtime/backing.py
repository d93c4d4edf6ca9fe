"""The backing disks of a resource's volumes: opened with their locks, metadata made clean, closed.

Rules: opening blocks (it may have to apply an activity log) and so runs on a thread; Disk objects
are made on the loop. A file or device used twice (internal metadata, indexed metadata shared by
volumes) is one Disk object, because only then does a flush cover all that was written to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from replicator.config.model import VolumeView
from replicator.errors import NoDiskError, StateRefused
from replicator.metadata.layout import Placement
from replicator.runtime.direct_io import DirectFile
from replicator.runtime.disk import FileDisk
from replicator.runtime.metadata_files import Backing, apply_al_on, claim_slot, open_backing

CLOSE_SECONDS = 10.0


@dataclass(slots=True)
class OpenVolume:
    """The disks of one attached volume, as resource.attach wants them."""

    data: FileDisk
    meta: FileDisk
    placement: Placement


@dataclass(slots=True)
class _Shared:
    """An open device or file. `backing` looks at the descriptor that `disk` owns."""

    disk: FileDisk
    backing: Backing
    users: int = 0


class Backings:
    """All backing disks that a daemon has open. For the loop's thread, but for the opening.
    say: told of remarks, e.g. that an activity log was applied. direct: past the page cache."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, say: Callable[[str], None], *, direct: bool = False
    ) -> None:
        self._loop = loop
        self._direct = direct
        self._say = say
        self._disks: dict[str, _Shared] = {}
        self._volumes: dict[int, list[str]] = {}
        self._closing: dict[str, asyncio.Event] = {}
        self._opening = asyncio.Lock()

    async def open(self, volume: VolumeView) -> OpenVolume:
        """Open a volume's disks and apply its activity log if it was not closed cleanly.
        Raises NoDiskError, DeviceError (in use), MetadataError, StateRefused if it is open."""
        async with self._opening:
            if volume.number in self._volumes:
                raise StateRefused(f"volume {volume.number}: its disk is attached already")
            taken = self._volumes[volume.number] = []
            try:
                return await self._open(volume, taken)
            except BaseException:
                self.close(volume.number)
                raise

    async def _open(self, volume: VolumeView, taken: list[str]) -> OpenVolume:
        placement = placement_of(volume)
        data = meta = await self._take(volume.disk, volume.number, None, taken)
        if placement.kind != "internal":
            index = placement.index if placement.kind == "indexed" else None
            meta = await self._take(volume.meta_disk.path, volume.number, index, taken)
        apply = partial(apply_al_on, meta.backing, placement, self._say)
        await self._loop.run_in_executor(None, apply)
        return OpenVolume(data.disk, meta.disk, placement)

    def close(self, number: int) -> None:
        """The volume no longer uses its disks; what nobody uses is closed after its last I/O."""
        for path in self._volumes.pop(number, []):
            shared = self._disks[path]
            shared.users -= 1
            if not shared.users:
                del self._disks[path]
                closed = self._closing[path] = asyncio.Event()
                shared.disk.stop(closed.set)

    async def close_all(self, seconds: float) -> bool:
        """Close everything; False if some I/O did not end within `seconds`."""
        for number in list(self._volumes):
            self.close(number)
        waits = [self._loop.create_task(closed.wait()) for closed in self._closing.values()]
        if not waits:
            return True
        _, left = await asyncio.wait(waits, timeout=seconds)
        for wait in left:
            wait.cancel()
        return not left

    async def _take(self, path: str, number: int, index: int | None, taken: list[str]) -> _Shared:
        await self._wait_closed(path)
        shared = self._disks.get(path)
        if shared is None:
            opened = await self._loop.run_in_executor(
                None, partial(open_backing, path, index=index)
            )
            try:
                direct = DirectFile(opened.fd, path) if self._direct else None
            except NoDiskError:
                opened.close()
                raise
            disk = FileDisk(
                self._loop,
                opened.fd,
                opened.size,
                block_device=opened.block_device,
                name=f"disk{number}",
                direct=direct,
            )
            shared = self._disks[path] = _Shared(disk, opened)
        elif index is not None:
            claim_slot(shared.backing.fd, path, index)
        shared.users += 1
        taken.append(path)
        return shared

    async def _wait_closed(self, path: str) -> None:
        """A disk that is being closed still holds its lock: attach right after detach waits."""
        closing = self._closing.get(path)
        if closing is None:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await closing.wait()
        except TimeoutError:
            raise NoDiskError(
                f"{path}: I/O from before the last detach has not ended after {CLOSE_SECONDS:g} s",
                hint="The device may hang: look at the kernel log.",
            ) from None
        self._closing.pop(path, None)


def placement_of(volume: VolumeView) -> Placement:
    """The configuration's meta-disk as the metadata package names it."""
    kind = volume.meta_disk.kind
    return Placement(kind, volume.meta_disk.index if kind == "indexed" else 0)
