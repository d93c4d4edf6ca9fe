"""Two nodes with the real engine in the pretended world, and what tests do with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from protocol.states import Conn, Disk, Role
from replicator.engine.resource import Ports, Resource
from replicator.engine.settings import (
    DiskSettings,
    NetSettings,
    ResourceSettings,
    VolumeSettings,
)
from replicator.engine.volume import Volume
from replicator.errors import ReplicatorError
from replicator.metadata.activity_log import initialized_block, replay
from replicator.metadata.layout import Placement, geometry
from replicator.metadata.superblock import Flags, Superblock
from tests.simulation import world

INTERNAL = Placement("internal")
MIB = 1 << 20


class Node:
    """One node: its media survive what happens to it."""

    def __init__(self, pair: Pair, name: str, sizes: Sequence[int]) -> None:
        self.pair = pair
        self.name = name
        self.media = [world.Medium(size) for size in sizes]
        self.resource: Resource | None = None
        self.disks: list[world.Disk] = []
        self.clock = world.OwnedClock(pair.clock)
        self.clock.alive = False
        self.handlers = world.Handlers(self.clock)
        for medium in self.media:
            create_md(medium)

    @property
    def r(self) -> Resource:
        assert self.resource is not None, f"{self.name} is down"
        return self.resource

    def volume(self, number: int = 0) -> Volume:
        return self.r.volumes[number]

    def up(self, connect: bool = True) -> None:
        """Start the node: apply-al, attach, connect."""
        pair = self.pair
        self.clock = world.OwnedClock(pair.clock)
        self.handlers = world.Handlers(self.clock)
        pair.network.alive[self.name] = True
        rng = random.Random(pair.rng.random())
        ports = Ports(
            world.NodeNetwork(pair.network, self.name, self.clock),
            self.clock,
            world.Entropy(rng),
            world.Log(pair.clock, self.name, pair.lines),
            self.handlers,
        )
        self.resource = Resource(self._settings(), ports)
        self.disks = []
        for number, medium in enumerate(self.media):
            apply_al(medium)
            disk = world.Disk(medium, self.clock, rng, pair.disk_delay)
            self.disks.append(disk)
            self.do(lambda done, n=number, d=disk: self.r.attach(n, d, d, INTERNAL, done))
        if connect:
            self.do(lambda done: self.r.connect(False, done))

    def _settings(self) -> ResourceSettings:
        pair = self.pair
        return ResourceSettings(
            name="r0",
            node=self.name,
            peer=pair.network.peer_of(self.name),
            volumes=[
                VolumeSettings(n, n, f"/dev/drbd{n}", f"{self.name}{n}", replace(pair.disk))
                for n in range(len(self.media))
            ],
            net=replace(pair.net),
            dials_first=self.name == pair.network.nodes[0],
            epoch_per_completion=pair.epoch_per_completion,
        )

    def do(
        self,
        command: Callable[[Callable[[ReplicatorError | None], None]], None],
        limit: float = 30.0,
    ) -> None:
        """Run a command to its end. Raises the error it ends with."""
        results: list[ReplicatorError | None] = []
        command(results.append)
        self.pair.clock.run_until(lambda: bool(results), limit)
        if results[0] is not None:
            raise results[0]

    def attach(
        self, number: int, done: Callable[[ReplicatorError | None], None], delay: float = 0.0005
    ) -> world.Disk:
        """Take the medium into use (again), as `attach` does: apply-al first."""
        if self.volume(number).state.disk is Disk.Diskless:
            apply_al(self.media[number])
        disk = world.Disk(self.media[number], self.clock, self.pair.rng, delay)
        self.disks[number] = disk
        self.r.attach(number, disk, disk, INTERNAL, done)
        return disk

    def kill(self) -> None:
        """SIGKILL: the process is gone, what it had written stays."""
        self._die(silently=False)

    def power_loss(self) -> None:
        self._die(silently=True)
        for medium in self.media:
            medium.power_loss(self.pair.rng)

    def _die(self, silently: bool) -> None:
        self.clock.alive = False
        self.resource = None
        self.pair.network.node_died(self.name, silently)

    def primary(self, force: bool = False) -> None:
        self.do(lambda done: self.r.primary(force, done))

    def secondary(self) -> None:
        self.do(self.r.secondary)

    def connect(self, discard_my_data: bool = False) -> None:
        self.do(lambda done: self.r.connect(discard_my_data, done))

    def disconnect(self) -> None:
        self.do(lambda done: self.r.disconnect(False, done))

    def write(self, offset: int, data: bytes, fua: bool = False, volume: int = 0) -> None:
        self._io(lambda done: self.volume(volume).write(offset, data, fua, done))

    def flush(self, volume: int = 0) -> None:
        self._io(lambda done: self.volume(volume).flush(done))

    def read(self, offset: int, length: int, volume: int = 0) -> bytes:
        results: list[tuple[int, bytes]] = []
        self.volume(volume).read(offset, length, lambda e, d: results.append((e, d)))
        self.pair.clock.run_until(lambda: bool(results))
        if results[0][0]:
            raise OSError(results[0][0], "read")
        return results[0][1]

    def _io(self, call: Callable[[Callable[[int], None]], None]) -> None:
        results: list[int] = []
        call(results.append)
        self.pair.clock.run_until(lambda: bool(results))
        if results[0]:
            raise OSError(results[0], "i/o")

    def data_size(self, number: int = 0) -> int:
        """Bytes of the data area."""
        return geometry(self.media[number].size, INTERNAL).max_data_sectors << 9

    def data(self, number: int = 0) -> bytes:
        """The data area as it is read now."""
        return self.media[number].read(0, self.data_size(number))

    def is_(
        self,
        conn: Conn | None = None,
        disk: Disk | None = None,
        pdsk: Disk | None = None,
        role: Role | None = None,
    ) -> bool:
        if self.resource is None:
            return False
        return all(
            (conn is None or v.state.conn is conn)
            and (disk is None or v.state.disk is disk)
            and (pdsk is None or v.state.pdsk is pdsk)
            and (role is None or v.state.role is role)
            for v in self.resource.volumes.values()
        )

    @property
    def synced(self) -> bool:
        return self.is_(Conn.Connected, Disk.UpToDate, Disk.UpToDate)


class Pair:
    """alice and bob, and everything between them."""

    def __init__(
        self,
        seed: int = 0,
        size: int = 4 * MIB,
        volumes: int = 1,
        net: NetSettings | None = None,
        disk: DiskSettings | None = None,
        epoch_per_completion: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = world.Clock()
        self.network = world.Network(self.clock, random.Random(self.rng.random()), ("alice", "bob"))
        self.lines: list[str] = []
        self.disk_delay = 0.0005
        self.net = net or NetSettings()
        self.disk = disk or DiskSettings(al_extents=67, c_max_rate=0)
        self.epoch_per_completion = epoch_per_completion
        self.alice = Node(self, "alice", [size] * volumes)
        self.bob = Node(self, "bob", [size] * volumes)

    def up(self) -> None:
        self.alice.up()
        self.bob.up()
        self.run_until(lambda: self.alice.is_(Conn.Connected) and self.bob.is_(Conn.Connected))

    def up_synced(self) -> None:
        """Both up, alice Primary, first full sync done."""
        self.up()
        self.alice.primary(force=True)
        self.settle()

    def up_prepared(self) -> None:
        """As up_synced, with disks on which the first full sync was done long ago."""
        for node in (self.alice, self.bob):
            for medium, prepared in zip(node.media, self._prepared(node.name), strict=True):
                medium.take_over(prepared)
        self.up()
        self.alice.primary()
        self.settle()

    def _prepared(self, name: str) -> list[world.Medium]:
        return synced_media(tuple(medium.size for medium in self.alice.media))[name]

    def settle(self, limit: float = 120.0) -> None:
        self.run_until(lambda: self.alice.synced and self.bob.synced, limit)

    def run(self, seconds: float) -> None:
        self.clock.run(seconds)

    def run_until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        try:
            self.clock.run_until(condition, limit)
        except AssertionError as error:
            tail = "\n".join(self.lines[-60:])
            raise AssertionError(f"{error}\n{self.describe()}\n{tail}") from error

    def describe(self) -> str:
        return "\n".join(
            f"{node.name}: "
            + (
                " ".join(
                    f"{v.state} oos={v.bitmap.weight if v.bitmap else None}"
                    for v in node.resource.volumes.values()
                )
                if node.resource is not None
                else "down"
            )
            for node in (self.alice, self.bob)
        )


@cache
def synced_media(sizes: tuple[int, ...]) -> dict[str, list[world.Medium]]:
    """Empty disks of two nodes that have once been synchronised and then stopped in good order."""
    pair = Pair(0, sizes[0], len(sizes))
    pair.up_synced()
    pair.alice.secondary()
    for node in (pair.bob, pair.alice):
        node.disconnect()
        for number in range(len(sizes)):
            node.do(lambda done, n=node, v=number: n.r.detach(v, False, done))
    return {node.name: node.media for node in (pair.alice, pair.bob)}


def create_md(medium: world.Medium) -> None:
    layout = geometry(medium.size, INTERNAL)
    medium.put(layout.sb_offset, Superblock.fresh(layout).encode())
    medium.put(layout.al_offset, initialized_block() * layout.al_blocks)


def differing_blocks(one: Node, other: Node, number: int = 0) -> list[int]:
    """The 4 KiB blocks of the data areas that differ now, ascending."""
    ours, theirs = one.media[number].pages, other.media[number].pages
    if ours == theirs:
        return []
    end = geometry(one.media[number].size, INTERNAL).max_data_sectors >> 3
    pages = ours.keys() | theirs.keys()
    return sorted(p for p in pages if p < end and ours.get(p) != theirs.get(p))


def apply_al(medium: world.Medium) -> None:
    """What `up` does before attaching: the same as the product's apply-al, on the pretended disk."""
    layout = geometry(medium.size, INTERNAL)
    superblock = Superblock.decode(medium.read(layout.sb_offset, 4096))
    ring = medium.read(layout.al_offset, 4096 * layout.al_blocks)
    found = replay([ring[at : at + 4096] for at in range(0, len(ring), 4096)])
    if superblock.flags & Flags.PRIMARY_IND:
        bits = bytearray(medium.read(layout.bm_offset, layout.bm_bytes))
        limit = ((superblock.la_size_sect + 7) // 8 + 7) // 8
        for extent in found.active_extents:
            start, end = 128 * extent, min(128 * extent + 128, limit)
            if start < end:
                bits[start:end] = b"\xff" * (end - start)
        medium.put(layout.bm_offset, bytes(bits))
    medium.put(layout.al_offset, initialized_block() * layout.al_blocks)
    superblock.clean = True
    superblock.flags |= Flags.AL_CLEAN
    medium.put(layout.sb_offset, superblock.encode())
