"""The one window through which checkers look at a running engine.

Everything that a checker may know of the engine's memory is listed here: bitmaps, ranges of writes
under way, states, counters, and the verdicts of handshakes as they fall. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from protocol.states import StateWord
from replicator.engine import exchange, handshake
from replicator.engine.handshake import Handshake, Verdict
from replicator.engine.snapshot import ResourceSnapshot
from replicator.engine.status import snapshot
from replicator.engine.volume import Volume
from tests.simulation.pair import Node, Pair


def volume_of(node: Node, number: int) -> Volume | None:
    return node.resource.volumes.get(number) if node.resource is not None else None


def state_of(node: Node, number: int) -> StateWord | None:
    """None while the node is down."""
    volume = node.resource.volumes.get(number) if node.resource is not None else None
    return volume.state if volume is not None else None


def bitmap_of(node: Node, number: int) -> int | None:
    """The bitmap in memory as a mask; None if the node is down or has no disk attached."""
    volume = volume_of(node, number)
    if volume is None or volume.store is None:
        return None
    return int.from_bytes(volume.store.bitmap.data, "little")


def under_way(node: Node, number: int) -> int:
    """The blocks, as a mask, of writes in the transfer log, and of whatever holds its range."""
    volume = volume_of(node, number)
    if volume is None:
        return 0
    mask = 0
    for sector, end in _ranges(volume):
        first, last = sector >> 3, (end - 1) >> 3
        mask |= ((1 << last - first + 1) - 1) << first
    return mask


def _ranges(volume: Volume) -> Iterator[tuple[int, int]]:
    log = volume.resource.replication.log
    for epoch in (*log.closed, log.current):
        for write in epoch.writes:
            if write.volume is volume:
                yield write.sector, write.sector + write.nsectors
    for holds in volume.locks._buckets.values():
        for hold in holds:
            yield hold.start, hold.end
    for tracked in volume.tracked_writes:
        yield tracked.sector, tracked.sector + tracked.nsectors


Statuses = list[tuple[Node, ResourceSnapshot]]


def statuses(pair: Pair) -> Statuses:
    """What status shows of every node that runs."""
    nodes = (pair.alice, pair.bob)
    return [(node, snapshot(node.resource)) for node in nodes if node.resource is not None]


def frozen(node: Node, number: int) -> int:
    """Requests of applications that are held back."""
    volume = volume_of(node, number)
    return volume.application.frozen if volume is not None else 0


class Decided(NamedTuple):
    """A handshake has reached its verdict on one node. link: the same on both ends."""

    node: str
    volume: int
    link: str
    facts: Handshake
    verdict: Verdict


class _Window:
    """Handshakes happen deep inside; whoever plays a history says here that it wants to know."""

    def __init__(self) -> None:
        self.pair: Pair | None = None
        self.told: Callable[[Decided], None] | None = None


_window = _Window()


def watch_handshakes(pair: Pair, told: Callable[[Decided], None]) -> None:
    """From now on tell of the verdicts in this pair, and of no other one's."""
    _window.pair, _window.told = pair, told


def _resolve(facts: Handshake) -> Verdict:
    verdict = handshake.resolve(facts)
    if _window.pair is not None and _window.told is not None:
        for node in (_window.pair.alice, _window.pair.bob):
            for number, volume in node.resource.volumes.items() if node.resource else ():
                if volume.store is not None and volume.store.uuids is facts.own:
                    link = volume.resource.replication.link
                    name = link.data.channel.name.split("#")[-1] if link is not None else ""
                    _window.told(Decided(node.name, number, name, facts, verdict))
    return verdict


vars(exchange)["resolve"] = _resolve
