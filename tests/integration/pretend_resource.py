"""A pretend engine for tests of front ends: what serves the volumes is then tested by itself.

Volumes keep their data in memory and obey the client: some offsets fail, hang, or reveal a defect.
`install()` puts it in the engine's place in this process.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from replicator.engine.settings import ResourceSettings
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.errors import ReplicatorError, StateRefused
from replicator.runtime import daemon
from replicator.runtime.engine_api import AdminDone, RuntimePorts
from tests.integration.pretend_offsets import BREAKS_AT, FAILS_AT, HANGS_AT, SIZE


class PretendVolume:
    def __init__(self, resource: PretendResource) -> None:
        self.size = SIZE
        self.users = 0
        self.calls: list[str] = []
        self._resource = resource
        self._data = bytearray(SIZE)

    def open(self, writable: bool) -> None:
        if self._resource.role != "Primary":
            raise StateRefused("this node is Secondary", hint="replicator primary r0")
        self.users += 1

    def close(self, writable: bool) -> None:
        self.users -= 1

    def read(self, offset: int, length: int, done: Callable[[int, bytes], None]) -> None:
        if self._special(offset):
            if offset == FAILS_AT:
                self._resource.soon(lambda: done(errno.EIO, b""))
            return
        data = bytes(self._data[offset : offset + length])
        self._resource.soon(lambda: done(0, data))

    def write(self, offset: int, data: bytes, fua: bool, done: Callable[[int], None]) -> None:
        if self._special(offset):
            if offset == FAILS_AT:
                self._resource.soon(lambda: done(errno.ENOSPC))
            return
        self._data[offset : offset + len(data)] = data
        self._finish(f"write fua={fua}", done)

    def flush(self, done: Callable[[int], None]) -> None:
        self._finish("flush", done)

    def trim(self, offset: int, length: int, fua: bool, done: Callable[[int], None]) -> None:
        self._data[offset : offset + length] = bytes(length)
        self._finish(f"trim fua={fua}", done)

    def zero(
        self, offset: int, length: int, may_unmap: bool, fua: bool, done: Callable[[int], None]
    ) -> None:
        self._data[offset : offset + length] = bytes(length)
        self._finish(f"zero may_unmap={may_unmap} fua={fua}", done)

    def _special(self, offset: int) -> bool:
        if offset == BREAKS_AT:
            raise RuntimeError("a defect on purpose")
        return offset in (FAILS_AT, HANGS_AT)

    def _finish(self, call: str, done: Callable[[int], None]) -> None:
        self.calls = [*self.calls[-50:], call]
        self._resource.soon(lambda: done(0))


class PretendResource:
    """Attaches what it is given, is promoted when told, and tells what its volumes were asked."""

    def __init__(self, settings: ResourceSettings, ports: RuntimePorts) -> None:
        self.on_change: Callable[[], None] | None = None
        self.role = "Secondary"
        self.name = settings.name
        self.volumes = {one.number: PretendVolume(self) for one in settings.volumes}
        self.soon = ports.clock.call_soon

    def _done(self, done: AdminDone, error: ReplicatorError | None = None) -> None:
        self.soon(lambda: done(error))

    def attach(self, volume: int, data: Any, meta: Any, placement: Any, done: AdminDone) -> None:
        self._done(done)

    def connect(self, discard_my_data: bool, done: AdminDone) -> None:
        self._done(done)

    def primary(self, force: bool, done: AdminDone) -> None:
        self.role = "Primary"
        self._done(done)

    def secondary(self, done: AdminDone) -> None:
        if any(volume.users for volume in self.volumes.values()):
            self._done(done, StateRefused("Device is held open by someone", code=-12))
            return
        self.role = "Secondary"
        self._done(done)

    def verify(self, volume: int, start: int | None, stop: int | None, done: AdminDone) -> None:
        self._done(done)

    def pause_sync(self, volume: int, done: AdminDone) -> None:
        """Never answers: for the deadline of a command."""

    def shutdown(self, done: AdminDone, *, force: bool = False) -> None:
        self.secondary(done)

    def snapshot(self) -> ResourceSnapshot:
        volumes = [
            VolumeSnapshot(
                volume=number,
                minor=number,
                device=f"/dev/drbd{number}",
                disk_path="",
                size_sectors=SIZE // 512,
                cs="StandAlone",
                role=self.role,
                peer_role="Unknown",
                disk="UpToDate",
                peer_disk="DUnknown",
                open_count=volume.users,
                waiting_for=" ".join(volume.calls[-1:]),
            )
            for number, volume in self.volumes.items()
        ]
        return ResourceSnapshot(
            name=self.name,
            node="alice",
            peer="bob",
            cstate="StandAlone",
            protocol="C",
            volumes=volumes,
            waiting_for="pretence",
        )


def make_pretend(
    settings: ResourceSettings, ports: RuntimePorts, released: Callable[[int], None]
) -> PretendResource:
    return PretendResource(settings, ports)


def install() -> None:
    # The one place where a daemon gets its resource; typed as possibly None, which it is not.
    daemon.ResourceDaemon.__init__.__kwdefaults__["make"] = make_pretend  # type: ignore[index]
