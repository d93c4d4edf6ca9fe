"""The engine as the runtime uses it, spelt as types: a resource, its volumes, and how one is made.

Rules: no behaviour. Tests put their own object in the engine's place; the real one is
`replicator.engine.resource.Resource`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from replicator.engine.ports import (
    Buffer,
    Clock,
    Disk,
    Done,
    Entropy,
    Handlers,
    Log,
    Network,
    ReadDone,
)
from replicator.engine.settings import ResourceSettings
from replicator.engine.snapshot import ResourceSnapshot
from replicator.errors import ReplicatorError
from replicator.metadata.layout import Placement

AdminDone = Callable[[ReplicatorError | None], None]


class EngineVolume(Protocol):
    @property
    def size(self) -> int: ...

    def open(self, writable: bool) -> None: ...

    def close(self, writable: bool) -> None: ...

    def read(self, offset: int, length: int, done: ReadDone) -> None: ...

    def write(self, offset: int, data: Buffer, fua: bool, done: Done) -> None: ...

    def flush(self, done: Done) -> None: ...

    def trim(self, offset: int, length: int, fua: bool, done: Done) -> None: ...

    def zero(self, offset: int, length: int, may_unmap: bool, fua: bool, done: Done) -> None: ...


class EngineResource(Protocol):
    on_change: Callable[[], None] | None

    @property
    def volumes(self) -> Mapping[int, EngineVolume]: ...

    def attach(
        self, volume: int, data: Disk, meta: Disk, placement: Placement, done: AdminDone
    ) -> None: ...

    def detach(self, volume: int, force: bool, done: AdminDone) -> None: ...

    def connect(self, discard_my_data: bool, done: AdminDone) -> None: ...

    def disconnect(self, force: bool, done: AdminDone) -> None: ...

    def primary(self, force: bool, done: AdminDone) -> None: ...

    def secondary(self, done: AdminDone) -> None: ...

    def new_current_uuid(self, volume: int, clear_bitmap: bool, done: AdminDone) -> None: ...

    def invalidate(self, volume: int, done: AdminDone) -> None: ...

    def invalidate_remote(self, volume: int, done: AdminDone) -> None: ...

    def verify(self, volume: int, start: int | None, stop: int | None, done: AdminDone) -> None: ...

    def outdate(self, volume: int, done: AdminDone) -> None: ...

    def probe(
        self, volume: int, kind: str, begun: Callable[[], None], ended: AdminDone
    ) -> None: ...

    def pause_sync(self, volume: int, done: AdminDone) -> None: ...

    def resume_sync(self, volume: int, done: AdminDone) -> None: ...

    def suspend_io(self, done: AdminDone) -> None: ...

    def resume_io(self, done: AdminDone) -> None: ...

    def shutdown(self, done: AdminDone, *, force: bool = False) -> None: ...

    def snapshot(self) -> ResourceSnapshot: ...


@dataclass(slots=True)
class RuntimePorts:
    """Everything that a resource meets the world with."""

    network: Network
    clock: Clock
    entropy: Entropy
    log: Log
    handlers: Handlers


MakeResource = Callable[
    [ResourceSettings, RuntimePorts, Callable[[int], None]],
    EngineResource,
]
"""(settings, ports, released): released(volume) is called when a volume's disks are not used any
more and can be closed."""


def make_resource(
    settings: ResourceSettings, ports: RuntimePorts, released: Callable[[int], None]
) -> EngineResource:
    """The real engine. Imported here, so that what only needs the types does not load it."""
    from replicator.engine.resource import Ports, Resource

    resource = Resource(
        settings,
        Ports(
            network=ports.network,
            clock=ports.clock,
            entropy=ports.entropy,
            log=ports.log,
            handlers=ports.handlers,
        ),
    )
    for number, volume in resource.volumes.items():
        volume.released = lambda store, number=number: released(number)
    return resource
