"""What one mirrored write costs the two engines alone, in processor time: no sockets, disks or NBD.

    python -m benchmarks.engine_cost [--depth N] [--profile]

Both nodes' real engines run in one process; channels and disks of this file deliver at once, so that
what is counted is Python: framing, locks, logs, acknowledgements. The least of many rounds is told,
because that hardly depends on what else the machine does; so versions can be compared on a busy one.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from replicator.engine.ports import Buffer
from tests.simulation.pair import MIB, Node, Pair

BLOCK = 4096
WRITES = 4096
"""Writes in one round."""


class Turns:
    """What an event loop would run next, and the processor time of each node in it."""

    def __init__(self) -> None:
        self._ready: deque[tuple[str, Callable[[], object]]] = deque()
        self.seconds = {"alice": 0.0, "bob": 0.0}

    def soon(self, node: str, action: Callable[[], object]) -> None:
        self._ready.append((node, action))

    def run(self) -> None:
        """Until there is nothing left to do."""
        while self._ready:
            node, action = self._ready.popleft()
            started = time.perf_counter()
            action()
            self.seconds[node] += time.perf_counter() - started


class InstantClock:
    """Time stands still: timers of the engine never go off while it is measured."""

    def __init__(self, turns: Turns, node: str, clock: Any) -> None:
        self._turns, self._node, self._clock = turns, node, clock
        self.call_later = clock.call_later

    def now(self) -> float:
        time_now: float = self._clock.now()
        return time_now

    def call_soon(self, action: Callable[[], None]) -> None:
        self._turns.soon(self._node, action)


class InstantChannel:
    """One end of a connection: what is sent in one turn arrives together in the next."""

    def __init__(self, turns: Turns, node: str, events: Any, queued: int) -> None:
        self._turns, self._node = turns, node
        self._parts: list[Buffer] = []
        self.name = node
        self.events = events
        self.queued = queued
        self.unsent = 0
        self.other: InstantChannel = self

    def send(self, data: Buffer) -> None:
        if not self._parts:
            self._turns.soon(self._node, self._flush)
        self._parts.append(data)
        self.queued += len(data)

    def _flush(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        self.events.sent(self.queued)
        other = self.other
        self._turns.soon(other._node, partial(other.events.received, data))


class InstantDisk:
    """Every call ends in the next turn, and nothing is kept."""

    def __init__(self, turns: Turns, node: str, size: int) -> None:
        self._turns, self._node, self.size = turns, node, size

    def write(self, offset: int, data: Buffer, done: Callable[[int], None]) -> None:
        self._turns.soon(self._node, partial(done, 0))

    write_durable = write

    def flush(self, done: Callable[[int], None]) -> None:
        self._turns.soon(self._node, partial(done, 0))


def instant_pair(turns: Turns) -> Pair:
    """A connected pair in sync, alice Primary, taken out of the simulator's time."""
    pair = Pair(size=16 * MIB)
    pair.up_synced()
    for node in (pair.alice, pair.bob):
        clock: Any = InstantClock(turns, node.name, node.clock)
        node.r.clock = clock
        assert node.r.link is not None
        node.r.link.clock = clock
        _instant_disk(turns, node)
    for socket in ("data", "meta"):
        ends = []
        for node in (pair.alice, pair.bob):
            side = getattr(node.r.link, socket)
            side.channel = InstantChannel(turns, node.name, side, side.channel.queued)
            ends.append(side.channel)
        ends[0].other, ends[1].other = ends[1], ends[0]
    return pair


def _instant_disk(turns: Turns, node: Node) -> None:
    volume = node.volume()
    disk: Any = InstantDisk(turns, node.name, volume.size + MIB)
    assert volume.store is not None and volume.activity_log_object is not None
    volume.data_disk = volume.store.data = volume.store.meta = disk
    volume.activity_log_object._meta = disk


def one_round(pair: Pair, turns: Turns, depth: int) -> tuple[float, float]:
    """Seconds of alice and of bob for WRITES writes, `depth` at a time."""
    turns.seconds = {"alice": 0.0, "bob": 0.0}
    volume, results, payload = pair.alice.volume(), [], bytes(BLOCK)
    blocks = volume.size // BLOCK
    for _ in range(WRITES // depth):
        offsets = [random.randrange(blocks) * BLOCK for _ in range(depth)]
        started = time.perf_counter()
        for offset in offsets:
            volume.write(offset, payload, False, results.append)
        turns.seconds["alice"] += time.perf_counter() - started
        turns.run()
    assert results == [0] * (WRITES // depth * depth), "a write has failed or was never answered"
    return turns.seconds["alice"], turns.seconds["bob"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depth", type=int, default=16, help="writes at a time (16)")
    parser.add_argument("--rounds", type=int, default=30, help=f"of {WRITES} writes (30)")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    chosen = parser.parse_args(arguments)
    turns = Turns()
    pair = instant_pair(turns)
    one_round(pair, turns, chosen.depth)
    if chosen.profile:
        profile = cProfile.Profile()
        profile.runcall(one_round, pair, turns, chosen.depth)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    rounds = [one_round(pair, turns, chosen.depth) for _ in range(chosen.rounds)]
    alice, bob = min(rounds, key=sum)
    print(
        f"4 KiB writes, {chosen.depth} at a time: {alice / WRITES * 1e6:.1f} us on the Primary, "
        f"{bob / WRITES * 1e6:.1f} us on the Secondary"
    )


if __name__ == "__main__":
    main()
