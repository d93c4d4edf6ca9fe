"""The pretended world: a clock that jumps, disks with a volatile cache, a network with faults.

Everything is driven by one seeded random source, so that a history can be repeated from its seed.
What this file must not know: the engine. It only implements its ports.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.simulation.medium import Medium, zeroes

MAX_STEPS = 5_000_000
"""Events in one world. A history has hundreds; whoever gets here goes round in circles."""


class Timer:
    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Clock:
    """Virtual time for the whole world; run() executes what is due, in order."""

    def __init__(self) -> None:
        self.time = 0.0
        self._queue: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self.steps = 0
        self.after_step: Callable[[], None] | None = None
        """Called after every event: a checker looks at the world."""

    def now(self) -> float:
        return self.time

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.call_at(self.time + max(0.0, seconds), action)

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heapq.heappush(self._queue, (when, next(self._order), timer))
        return timer

    def call_soon(self, action: Callable[[], None]) -> Timer:
        return self.call_later(0.0, action)

    def step(self) -> bool:
        """Run the next event; False when there is none."""
        while self._queue:
            due, _order, timer = heapq.heappop(self._queue)
            if timer.action is None:
                continue
            self.time = max(self.time, due)
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise AssertionError(f"no end after {MAX_STEPS} events")
            action, timer.action = timer.action, None
            action()
            if self.after_step is not None:
                self.after_step()
            return True
        return False

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        end = self.time + seconds
        while self._queue and self._queue[0][0] <= end:
            if self._queue[0][2].action is None:
                heapq.heappop(self._queue)  # cancelled: what comes next may be due after `end`
            else:
                self.step()
        self.time = end

    def run_until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        """Let time pass until the condition holds. Raises AssertionError after `limit` seconds."""
        end = self.time + limit
        while not condition():
            if not self._queue or self._queue[0][0] > end:
                raise AssertionError(f"not reached within {limit} virtual seconds")
            self.step()


class OwnedClock:
    """One node's view of the clock: its timers die with it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.alive = True
        self.ahead = 0.0
        """Seconds by which this node's clock has jumped."""

    def now(self) -> float:
        return self._clock.time + self.ahead

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self._clock.call_later(seconds, lambda: self._run(action))

    def call_soon(self, action: Callable[[], None]) -> Timer:
        return self.call_later(0.0, action)

    def _run(self, action: Callable[[], None]) -> None:
        if self.alive:
            action()


class Disk:
    """A medium as one running node sees it: calls take time, and end when the node ends."""

    def __init__(
        self, medium: Medium, clock: OwnedClock, rng: random.Random, delay: float = 0.0005
    ) -> None:
        self.medium = medium
        self.size = medium.size
        self.delay = delay
        self.fails: Callable[[str, int, int], int] | None = None
        """(kind, offset, length) -> errno to answer with, or 0."""
        self.slow: Callable[[str, int, int], float] | None = None
        """(kind, offset, length) -> seconds that this call takes on top of the usual."""
        self.watch: Callable[[str, int], None] | None = None
        """(kind, offset) told of every call when it is made."""
        self.hangs = False
        self.unended = 0
        """Calls that have not ended, but will."""
        self.allocated = False
        self.tells_holes = True
        self.unmapped = 0
        """Bytes of zeroes written that might be kept as holes."""
        self._clock = clock
        self._rng = rng
        self.writes = 0
        self.flushes = 0

    def _later(
        self, action: Callable[[], None], kind: str = "", offset: int = 0, length: int = 0
    ) -> None:
        if self.watch is not None and kind:
            self.watch(kind, offset)
        if self.hangs:
            return
        self.unended += 1

        def ended() -> None:
            self.unended -= 1
            action()

        extra = self.slow(kind, offset, length) if self.slow is not None else 0.0
        self._clock.call_later(extra + self.delay * (0.2 + 1.6 * self._rng.random()), ended)

    def _error(self, kind: str, offset: int, length: int) -> int:
        if offset < 0 or offset + length > self.size:
            return errno.EINVAL
        return self.fails(kind, offset, length) if self.fails is not None else 0

    def read(self, offset: int, length: int, done: Callable[[int, bytes], None]) -> None:
        def act() -> None:
            error = self._error("read", offset, length)
            done(error, b"" if error else self.medium.read(offset, length))

        self._later(act, "read", offset, length)

    def read_unless_hole(
        self, offset: int, length: int, done: Callable[[int, bytes], None]
    ) -> None:
        def act() -> None:
            error = self._error("read", offset, length)
            hole = self.tells_holes and self.medium.is_zero(offset, length)
            done(error, b"" if error or hole else self.medium.read(offset, length))

        self._later(act, "read", offset, length)

    def write(self, offset: int, data: Any, done: Callable[[int], None]) -> None:
        data = bytes(data)

        def act() -> None:
            error = self._error("write", offset, len(data))
            if not error:
                self._put(offset, data)
            done(error)

        self._later(act, "write", offset, len(data))

    def _put(self, offset: int, data: bytes) -> None:
        self.writes += 1
        self.medium.write(offset, data)

    def write_durable(self, offset: int, data: Any, done: Callable[[int], None]) -> None:
        data = bytes(data)
        before = self.medium.seal()

        def pre_flushed() -> None:
            self.medium.settle(before)
            error = self._error("write", offset, len(data))
            if error:
                done(error)
                return
            self._put(offset, data)
            own = self.medium.seal()
            self._later(lambda: written(own))

        def written(own: int) -> None:
            self.medium.settle_only(own, offset, len(data))
            done(0)

        self._later(pre_flushed, "write_durable", offset, len(data))

    def flush(self, done: Callable[[int], None]) -> None:
        before = self.medium.seal()

        def act() -> None:
            error = self._error("flush", 0, 0)
            if not error:
                self.flushes += 1
                self.medium.settle(before)
            done(error)

        self._later(act, "flush")

    def zero(self, offset: int, length: int, unmap: bool, done: Callable[[int], None]) -> None:
        self.unmapped += length if unmap else 0
        self.write(offset, zeroes(length), done)

    def discard(self, offset: int, length: int, done: Callable[[int], None]) -> None:
        self.zero(offset, length, True, done)


class Channel:
    """One end of a connection."""

    def __init__(self, network: Network, owner: str, name: str) -> None:
        self.network = network
        self.owner = owner
        self.name = name
        self.events: Any = None
        self.queued = 0
        self.unsent = 0
        self.other: Channel | None = None
        self.open = True
        self.lossy = False
        """What leaves this end gets lost, from here on: a stream has no gaps. The other connection
        may work."""
        self.slowness = 1.0
        """How much longer than usual what leaves this end is under way."""
        self.stuck = False
        """The other side's windows are full: nothing that is queued leaves."""
        self._reading = True
        self._outgoing: list[bytes] = []
        self._arrived: list[bytes | None] = []
        self._arrives_after = 0.0

    def send(self, data: Any) -> None:
        if not self.open:
            return
        data = bytes(data)
        self.queued += len(data)
        self.unsent += len(data)
        if not self._outgoing:
            self.network.clock.call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        if not self._outgoing or (self.stuck and self.open):
            return
        data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
        self._outgoing.clear()
        self.unsent -= len(data)
        if self.open and self.events is not None and self.network.alive[self.owner]:
            self.events.sent(self.queued - self.unsent)
        self._carry(data)

    def _carry(self, data: bytes | None) -> None:
        """Bring data (None: the end) to the other side, in order, after the latency."""
        other = self.other
        assert other is not None
        clock, network = self.network.clock, self.network
        if network.tap is not None:
            network.tap(self.name, data)
        when = max(clock.time + self.slowness * network.latency(), self._arrives_after)
        self._arrives_after = when
        clock.call_at(when, lambda: network.deliver(self.owner, other, data))

    def arrive(self, data: bytes | None) -> None:
        self._arrived.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and self._reading and self.open and self.events is not None:
            data = self._arrived.pop(0)
            if data is None:
                self.open = False
                self.events.closed("end of stream")
            elif space := self.events.space():
                space[: len(data)] = data[: len(space)]
                if len(data) > len(space):
                    self._arrived.insert(0, data[len(space) :])
                self.events.filled(min(len(data), len(space)))
            else:
                self.events.received(data)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.network.clock.call_soon(self._deliver)

    def close(self) -> None:
        if self.open:
            self._flush()
            self.open = False
            self._carry(None)

    def abort(self, reason: str) -> None:
        """The connection breaks under this end."""
        if self.open:
            self.open = False
            if self.events is not None and self.network.alive[self.owner]:
                self.events.closed(reason)


class Network:
    """Everything between two nodes, named as the nodes are."""

    def __init__(self, clock: Clock, rng: random.Random, nodes: tuple[str, str]) -> None:
        self.clock = clock
        self._rng = rng
        self.nodes = nodes
        self.alive = dict.fromkeys(nodes, False)
        self.cut: set[str] = set()
        """Nodes whose outgoing packets are lost, and with them all that follows on a connection."""
        self.breaks_after: dict[str, int] = {}
        """Bytes of a node that still arrive; then its connections break."""
        self.watch: Callable[[str, str, bytes], None] | None = None
        """(sender, channel, data) told of everything that arrives."""
        self.listeners: dict[str, Callable[[Channel], None]] = {}
        self.channels: list[Channel] = []
        self._dialled = 0
        """Connections ever made; each is named by its number."""
        self.base_latency = 0.0002
        self.slowness = (1.0, 1.0)
        """Of every other connection: so the two sockets of a pair of nodes need not be equally fast."""
        self.tap: Callable[[str, bytes | None], None] | None = None
        """Told what leaves a channel, by its name; None for its end."""

    def latency(self) -> float:
        return self.base_latency * (0.5 + self._rng.random())

    def peer_of(self, node: str) -> str:
        return self.nodes[1] if node == self.nodes[0] else self.nodes[0]

    def deliver(self, sender: str, channel: Channel, data: bytes | None) -> None:
        near = channel.other
        assert near is not None
        near.lossy = near.lossy or sender in self.cut
        if near.lossy:
            return
        if not channel.open or not self.alive[channel.owner]:
            return
        left = self.breaks_after.get(sender)
        if data is not None and left is not None:
            self.breaks_after[sender] = left - len(data)
            data = data[:left]
        if self.watch is not None and data is not None:
            self.watch(sender, channel.name, data)
        channel.arrive(data)
        if left is not None and self.breaks_after[sender] <= 0:
            del self.breaks_after[sender]
            self.break_all()

    def connect(self, node: str) -> Channel | None:
        """Try to connect; None if nobody listens or the way is cut."""
        peer = self.peer_of(node)
        if self.cut or not self.alive[peer] or peer not in self.listeners:
            return None
        self._dialled += 1
        number = self._dialled
        near = Channel(self, node, f"{node}->{peer}#{number}")
        far = Channel(self, peer, f"{peer}<-{node}#{number}")
        near.other, far.other = far, near
        near.slowness = far.slowness = self.slowness[number % 2]
        self.channels += [near, far]
        self.clock.call_later(self.latency(), lambda: self._accept(peer, far))
        return near

    def _accept(self, peer: str, far: Channel) -> None:
        listener = self.listeners.get(peer)
        if listener is None or not self.alive[peer]:
            far.open = False
            assert far.other is not None
            far.other.abort("connection refused")
        else:
            listener(far)
            far.resume_reading()

    def break_all(self, reason: str = "connection reset") -> None:
        """Cut every connection under both ends."""
        for channel in self.channels:
            channel.abort(reason)
        self.channels.clear()

    def break_one(self, chosen: Channel, reason: str = "connection reset") -> None:
        """Cut one connection under both its ends; the others live."""
        for channel in (chosen, chosen.other):
            if channel is not None:
                channel.abort(reason)

    def node_died(self, node: str, silently: bool) -> None:
        """The node's connections end: with a reset if its kernel lives, else not at all."""
        self.alive[node] = False
        self.listeners.pop(node, None)
        for channel in self.channels:
            if channel.owner == node and channel.open:
                channel.open = False
                other = channel.other
                if not silently and other is not None:
                    reason = "connection reset by peer"
                    self.clock.call_later(self.latency(), partial(other.abort, reason))


class NodeNetwork:
    """The Network port of one node."""

    def __init__(self, network: Network, node: str, clock: OwnedClock) -> None:
        self._network = network
        self._node = node
        self._clock = clock

    def listen(self, accepted: Callable[[Channel], None], failed: Callable[[str], None]) -> None:
        self._network.listeners[self._node] = accepted

    def stop_listening(self) -> None:
        self._network.listeners.pop(self._node, None)

    def dial(self, timeout: float, done: Callable[[Channel | None, str], None]) -> Timer:
        def try_it() -> None:
            channel = self._network.connect(self._node)
            done(channel, "" if channel is not None else "connection refused")

        return self._clock.call_later(self._network.latency(), try_it)


class Entropy:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def random_bytes(self, count: int) -> bytes:
        return self._rng.randbytes(count)


class Log:
    def __init__(self, clock: Clock, node: str, lines: list[str]) -> None:
        self._clock = clock
        self._node = node
        self._lines = lines

    def log(self, level: str, message: str) -> None:
        self._lines.append(f"{self._clock.time:10.4f} {self._node:6} {level:7} {message}")


class Handlers:
    def __init__(self, clock: OwnedClock) -> None:
        self._clock = clock
        self.calls: list[str] = []
        self.answers: dict[str, int | Callable[[], int]] = {}
        """Handler -> exit status, or what is done when it ends and gives one; 0 if not named."""
        self.seconds: dict[str, float] = {}
        """Handler -> how long it takes."""

    def call(self, event: str, volume: int | None, done: Callable[[int], None] | None) -> None:
        self.calls.append(event)
        if done is not None:
            self._clock.call_later(self.seconds.get(event, 0.0), lambda: done(self._answer(event)))

    def _answer(self, event: str) -> int:
        answer = self.answers.get(event, 0)
        return answer if isinstance(answer, int) else answer()
