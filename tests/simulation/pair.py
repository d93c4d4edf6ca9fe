"""Two nodes with the real engine in the pretended world, and what tests do with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from protocol.states import Conn, Disk, Role
from replicator.engine.resource import Ports, Resource
from replicator.engine.settings import (
    DiskSettings,
    NetSettings,
    ResourceSettings,
    VolumeSettings,
)
from replicator.engine.volume import Volume
from replicator.errors import NoDiskError, ReplicatorError
from replicator.metadata.activity_log import initialized_block
from replicator.metadata.apply_al import apply_al as plan_apply_al
from replicator.metadata.layout import Placement, geometry, sb_offset
from replicator.metadata.superblock import Superblock, read_superblock
from tests.simulation import world
from tests.simulation.medium import Medium

INTERNAL, FLEXIBLE = Placement("internal"), Placement("flexible")
MIB = 1 << 20
META_SIZE = 128 * 1024
CLOSE_WAIT, CLOSE_WAITS = 0.1, 100
"""Seconds between two looks whether a detached disk has ended its I/O, and how many there are."""
"""Bytes of a metadata device of its own: enough for the bitmap of 2.8 GiB."""


class Node:
    """One node: its media survive what happens to it."""

    def __init__(self, pair: Pair, name: str, sizes: Sequence[int]) -> None:
        self.pair = pair
        self.name = name
        self.media = [Medium(size) for size in sizes]
        self.metas = self.media
        """Where each volume's metadata lies: on the data's own medium, unless that is external."""
        if pair.placement.external:
            self.metas = [Medium(META_SIZE) for _ in sizes]
        self.resource: Resource | None = None
        self.disks: list[world.Disk] = []
        self.meta_disks: list[world.Disk] = []
        self.clock = world.OwnedClock(pair.clock)
        self.clock.alive = False
        self.new_handlers: Callable[[world.OwnedClock], Any] = world.Handlers
        self.handlers = self.new_handlers(self.clock)
        for medium in self.metas:
            create_md(medium, pair.placement)

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
        self.handlers = self.new_handlers(self.clock)
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
        self.resource.on_change = partial(pair.changed, self)
        self.disks, self.meta_disks = [], []
        for number in range(len(self.media)):
            data, meta = self._open(number, rng, pair.disk_delay)
            self.disks.append(data)
            self.meta_disks.append(meta)
        for number in range(len(self.media)):
            self.do(partial(self._attach, number))
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
            on_no_data_accessible=pair.on_no_data,
            epoch_per_completion=pair.epoch_per_completion,
        )

    def do(
        self,
        command: Callable[[Callable[[ReplicatorError | None], None]], object],
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
        """Take the medium into use (again), as `attach` does: apply-al first. As the daemon, it waits
        for I/O from before the detach, which could land later (runtime: backing)."""
        old = self.disks[number]
        if self.volume(number).state.disk is Disk.Diskless and self._lands(number):
            waits = CLOSE_WAITS

            def look() -> None:
                nonlocal waits
                waits -= 1
                if self.disks[number] is not old or not self._lands(number):
                    self.attach(number, done, delay)
                elif waits:
                    self.clock.call_later(CLOSE_WAIT, look)
                else:
                    done(NoDiskError(f"{self.name}/{number}: I/O from before has not ended"))

            self.clock.call_later(CLOSE_WAIT, look)
            return old
        data, meta = self._open(
            number, self.pair.rng, delay, in_use=self.volume(number).state.disk is not Disk.Diskless
        )
        self.disks[number], self.meta_disks[number] = data, meta
        self._attach(number, done)
        return data

    def _lands(self, number: int) -> bool:
        return bool(self.disks[number].unended or self.meta_disks[number].unended)

    def _open(
        self, number: int, rng: random.Random, delay: float, *, in_use: bool = False
    ) -> tuple[world.Disk, world.Disk]:
        """The disks of a volume, for data and metadata; its activity log is applied first."""
        if not in_use:
            apply_al(self.metas[number], self.pair.placement)
        data = meta = world.Disk(self.media[number], self.clock, rng, delay)
        if self.pair.placement.external:
            meta = world.Disk(self.metas[number], self.clock, rng, delay)
        return data, meta

    def _attach(self, number: int, done: Callable[[ReplicatorError | None], None]) -> None:
        self.pair.opened(self, number)
        data, meta = self.disks[number], self.meta_disks[number]
        self.r.attach(number, data, meta, self.pair.placement, done)

    def kill(self) -> None:
        """SIGKILL: the process is gone, what it had written stays."""
        self._die(silently=False)

    def power_loss(self) -> None:
        self._die(silently=True)
        for medium in self.media if self.metas is self.media else self.media + self.metas:
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
        return data_size(self.media[number].size, self.pair.placement)

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
        placement: Placement = INTERNAL,
        on_no_data: str = "io-error",
    ) -> None:
        self.placement = placement
        self.rng = random.Random(seed)
        self.clock = world.Clock()
        self.network = world.Network(self.clock, random.Random(self.rng.random()), ("alice", "bob"))
        self.lines: list[str] = []
        self.disk_delay = 0.0005
        self.net = net or NetSettings()
        self.disk = disk or DiskSettings(al_extents=67, c_max_rate=0)
        self.epoch_per_completion = epoch_per_completion
        self.opened: Callable[[Node, int], None] = lambda node, number: None
        self.changed: Callable[[Node], None] = lambda node: None
        """Called after a state of this node has changed."""
        """Told when a node opens the disks of a volume, before they are used."""
        self.on_no_data = on_no_data
        self.alice = Node(self, "alice", [size] * volumes)
        self.bob = Node(self, "bob", [size] * volumes)

    def fill(self) -> None:
        """Data other than zeroes all over alice's disks: a resync has something to transfer."""
        for number, medium in enumerate(self.alice.media):
            medium.put(0, b"data" * (self.alice.data_size(number) // 4))

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
            media = node.media if node.metas is node.media else node.media + node.metas
            for medium, prepared in zip(media, self._prepared(node.name), strict=True):
                medium.take_over(prepared)
        self.up()
        self.alice.primary()
        self.settle()

    def _prepared(self, name: str) -> list[Medium]:
        sizes = tuple(medium.size for medium in self.alice.media)
        return synced_media(sizes, self.placement)[name]

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
def synced_media(sizes: tuple[int, ...], placement: Placement) -> dict[str, list[Medium]]:
    """Empty disks of two nodes that have once been synchronised and then stopped in good order:
    those for data, then those for metadata that have their own."""
    pair = Pair(0, sizes[0], len(sizes), placement=placement)
    pair.up_synced()
    pair.alice.secondary()
    for node in (pair.bob, pair.alice):
        node.disconnect()
        for number in range(len(sizes)):
            node.do(partial(node.r.detach, number, False))
    nodes = (pair.alice, pair.bob)
    return {n.name: n.media if n.metas is n.media else n.media + n.metas for n in nodes}


def create_md(medium: Medium, placement: Placement = INTERNAL) -> None:
    layout = geometry(medium.size, placement)
    medium.put(layout.sb_offset, Superblock.fresh(layout).encode())
    medium.put(layout.al_offset, initialized_block() * layout.al_blocks)


def data_size(size: int, placement: Placement) -> int:
    """Bytes of the data area of a medium of this size."""
    return size if placement.external else geometry(size, placement).max_data_sectors << 9


def differing_blocks(one: Node, other: Node, number: int = 0) -> list[int]:
    """The 4 KiB blocks of the data areas that differ now, ascending."""
    ours, theirs = one.media[number].pages, other.media[number].pages
    if ours == theirs:
        return []
    end = -(-one.data_size(number) >> 12)
    pages = ours.keys() | theirs.keys()
    return sorted(p for p in pages if p < end and ours.get(p) != theirs.get(p))


def apply_al(medium: Medium, placement: Placement = INTERNAL) -> None:
    """What `up` does before attaching. Raises MetadataError as the product's apply-al."""
    where = sb_offset(medium.size, placement)
    superblock, layout = read_superblock(medium.read(where, 4096), medium.size, placement)
    ring = medium.read(layout.al_offset, 4096 * layout.al_blocks)
    blocks = [ring[at : at + 4096] for at in range(0, len(ring), 4096)]
    bits = bytearray(medium.read(layout.bm_offset, layout.bm_bytes))
    applied = plan_apply_al(
        superblock, layout, blocks, lambda offset, length: bytes(bits[offset : offset + length])
    )
    for offset, data in applied.bitmap_writes:
        bits[offset : offset + len(data)] = data
    medium.put(layout.bm_offset, bytes(bits))
    if applied.initialize_ring:
        medium.put(layout.al_offset, initialized_block() * layout.al_blocks)
    medium.put(where, applied.superblock.encode())
