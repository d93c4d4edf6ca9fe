"""Finding each other: two nodes that dial and accept at any moments settle on one pair of sockets.

The nodes below use the real Establisher in the pretended network. What follows an established pair
is reduced to what it does to connections: each end says something on both sockets, gives up if it
hears nothing, and starts anew when either socket ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from replicator.engine.establish import (
    GIVE_WAY,
    INITIAL_DATA,
    INITIAL_META,
    RETRY_BROKEN,
    Establisher,
    Sockets,
)
from replicator.engine.settings import NetSettings
from tests.simulation import world

ANSWER_WAIT = 2.0
FAILED_PAUSE = 1.0


class Ear:
    """Listens on one socket after the pair was handed over."""

    def __init__(self, session: Session, channel: world.Channel) -> None:
        self.session = session
        self.channel = channel
        channel.events = self

    def space(self) -> memoryview | None:
        return None

    def received(self, data: bytes) -> None:
        self.session.heard.setdefault(id(self.channel), bytearray()).extend(data)
        if data == b"ping":
            self.channel.send(b"pong")

    def sent(self, position: int) -> None:
        pass

    def closed(self, reason: str) -> None:
        self.session.end(f"lost: {reason}")


class Session:
    """An established pair: lives while both sockets live and the peer has answered in time."""

    def __init__(
        self,
        node: Finder,
        data: world.Channel,
        meta: world.Channel,
        arbiter: bool,
        early: bytes = b"",
    ) -> None:
        self.node, self.data, self.meta, self.arbiter = node, data, meta, arbiter
        self.alive = True
        self.heard: dict[int, bytearray] = {id(data): bytearray(early)}
        for channel in (data, meta):
            Ear(self, channel)
            channel.resume_reading()
        data.send(b"hello")
        node.clock.call_later(ANSWER_WAIT, self._check)

    def _check(self) -> None:
        if bytes(self.heard[id(self.data)]) != b"hello":
            self.end("no answer")

    def ping(self) -> None:
        """Does the peer still live? What a link does when the peer dials again."""
        meta = self.heard.setdefault(id(self.meta), bytearray())
        meta.clear()
        self.meta.send(b"ping")
        self.node.clock.call_later(0.5, lambda: None if meta == b"pong" else self.end("no pong"))

    def end(self, reason: str) -> None:
        if self.alive:
            self.alive = False
            self.data.close()
            self.meta.close()
            self.node.session_ended()


class Finder:
    """A node that looks for its peer."""

    session: Session | None = None

    def __init__(self, net: Net, name: str) -> None:
        self.net, self.name = net, name
        self.clock = world.OwnedClock(net.clock)
        self.sessions = 0
        net.network.alive[name] = True

    def settled(self) -> bool:
        return self.session is not None and self.session.alive

    def start(self, pause: float = 0.0) -> None:
        raise NotImplementedError

    def session_ended(self) -> None:
        self.start(FAILED_PAUSE)

    def take(self, session: Session) -> None:
        assert not self.settled(), "a second pair was handed over"
        self.session = session
        self.sessions += 1


class Node(Finder):
    """One of ours."""

    def __init__(self, net: Net, name: str, dials_first: bool) -> None:
        super().__init__(net, name)
        self.dials: list[float] = []
        self.knocks = 0
        ports = world.NodeNetwork(net.network, name, self.clock)
        self._dial = ports.dial
        ports.dial = self._count_dial  # type: ignore[method-assign]
        self.establisher = Establisher(
            ports,
            self.clock,
            world.Entropy(random.Random(net.rng.random())),
            world.Log(net.clock, name, net.lines),
            net.settings,
            dials_first,
            self._established,
            self._knocked,
        )

    def _count_dial(
        self, timeout: float, done: Callable[[world.Channel | None, str], None]
    ) -> world.Timer:
        self.dials.append(self.clock.now())
        return self._dial(timeout, done)

    def start(self, pause: float = 0.0) -> None:
        self.establisher.start(pause)

    def _established(self, s: Sockets) -> None:
        self.take(Session(self, s.data, s.meta, s.arbiter, s.early_data))  # type: ignore[arg-type]

    def _knocked(self) -> None:
        self.knocks += 1
        session = self.session
        if session is not None and session.alive and session.heard[id(session.data)]:
            session.ping()


class Kernel(Finder):
    """Behaves as DRBD 8.4 does: tries to connect, else waits for a call; of two sockets of a kind
    it keeps the one that it accepted; looks after a pause whether both are still there."""

    def __init__(self, net: Net, name: str) -> None:
        super().__init__(net, name)
        self.sockets: dict[str, world.Channel] = {}
        self.accepted_meta = False
        self.searching = False

    def start(self, pause: float = 0.0) -> None:
        def begin() -> None:
            self.searching = True
            self.sockets.clear()
            self.net.network.listeners[self.name] = self._accepted
            self._dial()

        self.clock.call_later(pause, begin)

    def _dial(self) -> None:
        def dialled() -> None:
            if not self.searching or len(self.sockets) == 2:
                return
            channel = self.net.network.connect(self.name)
            if channel is None:
                pause = self.net.settings.connect_interval * self.net.rng.uniform(6 / 7, 8 / 7)
                self.clock.call_later(pause, self._dial)
                return
            kind, first = (
                ("meta", INITIAL_META) if "data" in self.sockets else ("data", INITIAL_DATA)
            )
            self._take(kind, channel, dialled=True)
            channel.send(first)
            self._dial()

        self.clock.call_later(self.net.network.latency(), dialled)

    def _accepted(self, channel: world.Channel) -> None:
        if not self.searching:
            channel.close()
            return
        First(self, channel)

    def first(self, channel: world.Channel, packet: bytes) -> None:
        if not self.searching:
            channel.close()
            return
        self._take("data" if packet == INITIAL_DATA else "meta", channel, dialled=False)

    def _take(self, kind: str, channel: world.Channel, dialled: bool) -> None:
        old = self.sockets.get(kind)
        if old is not None:
            assert not dialled
            old.close()
        if kind == "meta":
            self.accepted_meta = not dialled
        self.sockets[kind] = channel
        if dialled:
            First(self, channel)
        if len(self.sockets) == 2:
            self.clock.call_later(0.5, self._look)

    def gone(self, channel: world.Channel) -> None:
        for kind, one in list(self.sockets.items()):
            if one is channel:
                del self.sockets[kind]
                self.clock.call_later(self.net.rng.random(), self._dial)

    def _look(self) -> None:
        if self.searching and len(self.sockets) == 2:
            self.searching = False
            self.net.network.listeners.pop(self.name, None)
            data, meta = self.sockets["data"], self.sockets["meta"]
            early = data.events.early if isinstance(data.events, First) else b""
            self.take(Session(self, data, meta, self.accepted_meta, bytes(early)))


class First:
    """Reads the first packet of a connection, and keeps what follows."""

    def __init__(self, kernel: Kernel, channel: world.Channel) -> None:
        self.kernel, self.channel = kernel, channel
        self.named = "->" in channel.name
        self.early = bytearray()
        channel.events = self

    def space(self) -> memoryview | None:
        return None

    def received(self, data: bytes) -> None:
        self.early += data
        if not self.named and len(self.early) >= 8:
            self.named = True
            packet = bytes(self.early[:8])
            del self.early[:8]
            self.kernel.first(self.channel, packet)

    def sent(self, position: int) -> None:
        pass

    def closed(self, reason: str) -> None:
        self.kernel.gone(self.channel)


class Net:
    def __init__(self, seed: int = 0, latency: float = 0.0002) -> None:
        self.rng = random.Random(seed)
        self.clock = world.Clock()
        self.network = world.Network(self.clock, self.rng, ("alice", "bob"))
        self.network.base_latency = latency
        self.settings = NetSettings()
        self.lines: list[str] = []

    def run_until_settled(self, one: Finder, other: Finder, limit: float) -> None:
        def settled() -> bool:
            if not (one.settled() and other.settled()):
                return False
            a, b = one.session, other.session
            assert a is not None and b is not None
            return a.data.other is b.data and a.meta.other is b.meta

        self.clock.run_until(settled, limit)
        self.clock.run(5)
        assert settled(), "the pair did not last\n" + "\n".join(self.lines[-20:])
        a, b = one.session, other.session
        assert a is not None and b is not None
        assert a.arbiter is not b.arbiter, "both or none of them think to be the arbiter"
        self.check_nothing_is_left(a, b)

    def check_nothing_is_left(self, *sessions: Session) -> None:
        used = {id(channel) for s in sessions for channel in (s.data, s.meta)}
        left = [c.name for c in self.network.channels if c.open and id(c) not in used]
        assert not left, f"connections that nobody uses stay open: {left}"


def two(seed: int, latency: float) -> tuple[Net, Node, Node]:
    net = Net(seed, latency)
    return net, Node(net, "alice", True), Node(net, "bob", False)


# --- two of ours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.0002, 0.005, 0.05, 0.12, 0.2])
def test_two_nodes_settle_on_one_pair_whenever_they_start(latency: float) -> None:
    most = 0
    for seed in range(80):
        net, alice, bob = two(seed, latency)
        for node in (alice, bob):
            net.clock.call_later(2 * net.rng.random(), node.start)
        net.run_until_settled(alice, bob, 40)
        most = max(most, alice.sessions, bob.sessions)
    assert most <= 4, "a pair should not be lost again so often before it lasts"


@pytest.mark.parametrize("latency", [0.0002, 0.02, 0.1])
def test_both_dialling_at_the_same_instant_still_settle(latency: float) -> None:
    """As if the second node did not give way: every connection crosses one of the peer."""
    crossed = 0
    for seed in range(60):
        net, alice, bob = two(seed, latency)
        alice.start(GIVE_WAY + latency * net.rng.random())
        bob.start(0.0)
        net.clock.run(GIVE_WAY + 3 * latency)
        crossed += alice.establisher._crossed or bob.establisher._crossed
        net.run_until_settled(alice, bob, 40)
    assert crossed > 20, "hardly any connection crossed: the test is too tame"


@pytest.mark.parametrize("latency", [0.05, 0.12, 0.2])
def test_who_talk_by_one_data_socket_never_both_think_the_same_of_the_other_one(
    latency: float,
) -> None:
    """What the arbiter decides, a split brain by policy for example, would be decided alike by both."""
    for seed in range(80):
        net, alice, bob = two(seed, latency)

        def agree(alice: Node = alice, bob: Node = bob, seed: int = seed) -> None:
            a, b = alice.session, bob.session
            if a is not None and b is not None and a.alive and b.alive and a.data.other is b.data:
                assert a.arbiter is not b.arbiter, f"seed {seed}"

        net.clock.after_step = agree
        for node in (alice, bob):
            net.clock.call_later(2 * net.rng.random(), node.start)
        net.run_until_settled(alice, bob, 40)


def test_the_pair_is_found_quickly_when_nothing_crosses() -> None:
    net, alice, bob = two(1, 0.0002)
    bob.start()
    alice.start()
    net.run_until_settled(alice, bob, 0.1)
    assert alice.sessions == bob.sessions == 1
    assert bob.session is not None and bob.session.arbiter, "bob accepted the meta socket"


@pytest.mark.parametrize("late", ["alice", "bob"])
def test_the_later_node_finds_the_waiting_one(late: str) -> None:
    net, alice, bob = two(3, 0.001)
    first, second = (bob, alice) if late == "alice" else (alice, bob)
    first.start()
    net.clock.run(33)
    assert not first.settled()
    second.start()
    net.run_until_settled(alice, bob, 2)


@pytest.mark.parametrize("seed", range(30))
def test_connections_that_break_while_they_are_made_are_made_again(seed: int) -> None:
    net, alice, bob = two(seed, 0.02)
    alice.start()
    bob.start()
    for _ in range(6):
        net.clock.call_later(3 * net.rng.random(), net.network.break_all)
    net.clock.run(3)
    net.run_until_settled(alice, bob, 40)


@pytest.mark.parametrize("seed", range(20))
def test_a_peer_that_vanishes_half_way_and_returns_is_found_again(seed: int) -> None:
    net, alice, bob = two(seed, 0.02)
    alice.start()
    bob.start()
    net.clock.run(net.rng.random() * 0.8)
    bob.clock.alive = False
    if bob.session is not None:
        bob.session.alive = False
    net.network.node_died("bob", silently=True)
    net.clock.run(net.rng.random() * 4)
    again = Node(net, "bob", False)
    again.start()
    net.run_until_settled(alice, again, 40)


# --- with a kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize("dials_first", [True, False])
@pytest.mark.parametrize("latency", [0.0002, 0.02, 0.1])
def test_a_node_and_a_kernel_settle_on_one_pair(dials_first: bool, latency: float) -> None:
    for seed in range(60):
        net = Net(seed, latency)
        ours, kernel = Node(net, "alice", dials_first), Kernel(net, "bob")
        for node in (ours, kernel):
            net.clock.call_later(2 * net.rng.random(), node.start)
        net.run_until_settled(ours, kernel, 120)


# --- strangers, silence, patience ----------------------------------------------------------------


def stranger(net: Net) -> world.Channel:
    """Somebody else connects to alice."""
    channel = net.network.connect("bob")
    assert channel is not None
    channel.events = Gone()
    return channel


class Gone:
    def __init__(self) -> None:
        self.reason = ""

    def space(self) -> memoryview | None:
        return None

    def received(self, data: bytes) -> None:
        raise AssertionError(f"a stranger was told {data!r}")

    def sent(self, position: int) -> None:
        pass

    def closed(self, reason: str) -> None:
        self.reason = reason


def lonely() -> tuple[Net, Node]:
    net = Net(7)
    alice = Node(net, "alice", False)
    net.network.alive["bob"] = True
    alice.start()
    return net, alice


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.0\r\n\r\n", b"\0" * 8, INITIAL_DATA[::-1]])
def test_a_first_packet_that_is_none_ends_the_connection_with_a_reason(garbage: bytes) -> None:
    net, _alice = lonely()
    channel = stranger(net)
    channel.send(garbage)
    net.clock.run(0.1)
    assert not channel.open
    assert any("not a DRBD peer" in line and garbage[:8].hex() in line for line in net.lines)


def test_a_first_packet_may_come_in_pieces_with_more_behind_it() -> None:
    net, alice = lonely()
    data, meta = stranger(net), stranger(net)
    for byte in INITIAL_DATA + b"hel":
        data.send(bytes([byte]))
        net.clock.run(0.001)
    meta.send(INITIAL_META + b"x")
    data.events = meta.events = world_sink()
    net.clock.run(0.01)
    data.send(b"lo")
    net.clock.run(0.01)
    assert alice.settled() and alice.session is not None
    assert bytes(alice.session.heard[id(alice.session.data)]) == b"hello"
    assert alice.session.arbiter


def world_sink() -> object:
    class Sink(Gone):
        def received(self, data: bytes) -> None:
            pass

    return Sink()


def test_a_connection_that_says_nothing_is_closed_after_four_ping_timeouts() -> None:
    net, _alice = lonely()
    channel = stranger(net)
    net.clock.run(1.9)
    assert channel.open
    net.clock.run(0.2)
    assert not channel.open
    assert any("no first packet came" in line for line in net.lines)


def test_half_a_pair_does_not_stop_the_search() -> None:
    """Somebody opens a data socket and nothing else: our own meta dial is tried again and again."""
    net, alice = lonely()
    channel = stranger(net)
    channel.send(INITIAL_DATA)
    net.clock.run(10)
    assert len(alice.dials) >= 4
    assert not alice.settled()


def test_retries_pause_for_connect_int_give_or_take_a_seventh() -> None:
    net = Net(5)
    alice = Node(net, "alice", True)
    alice.start()
    net.clock.run(400)
    gaps = [b - a for a, b in zip(alice.dials, alice.dials[1:], strict=False)]
    assert len(gaps) > 30
    assert all(10 * 6 / 7 <= gap <= 10 * 8 / 7 + 0.1 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 10, "the pauses have no random part"
    assert sum("cannot reach the peer" in line for line in net.lines) == 1, (
        "said once, not 30 times"
    )


def test_the_node_that_does_not_dial_first_gives_the_other_a_moment() -> None:
    net = Net(5)
    alice, bob = Node(net, "alice", True), Node(net, "bob", False)
    net.network.alive["alice"] = net.network.alive["bob"] = True
    alice.start()
    assert net.clock.time == 0
    net.clock.run(0.0)
    bob.start()
    net.clock.run(GIVE_WAY / 2)
    assert alice.dials and not bob.dials


def test_a_connection_lost_before_the_pair_was_complete_is_made_again_soon() -> None:
    net, alice = lonely()
    channel = stranger(net)
    channel.send(INITIAL_DATA)
    net.clock.run(0.01)
    before = len(alice.dials)
    alice.establisher._next_dial.cancel()  # type: ignore[union-attr]
    alice.establisher._next_dial = None
    channel.close()
    net.clock.run(2 * RETRY_BROKEN + 0.1)
    assert len(alice.dials) == before + 1


def test_a_peer_that_dials_while_connected_is_a_knock() -> None:
    net, alice, bob = two(1, 0.0002)
    alice.start()
    bob.start()
    net.run_until_settled(alice, bob, 1)
    net.network.connect("bob")
    channel = net.network.channels[-1]
    net.clock.run(0.1)
    assert alice.knocks == 1
    assert not channel.open and alice.settled()


def test_after_stop_nothing_dials_listens_or_stays_open() -> None:
    net, alice = lonely()
    stranger(net).send(INITIAL_DATA)
    stranger(net)
    net.clock.run(0.05)
    alice.establisher.stop()
    count = len(alice.dials)
    net.clock.run(30)
    assert len(alice.dials) == count
    assert "alice" not in net.network.listeners
    assert not any(c.open for c in net.network.channels if c.owner == "alice")


def test_start_after_stop_finds_the_peer_again() -> None:
    net, alice, bob = two(2, 0.001)
    alice.start()
    bob.start()
    net.run_until_settled(alice, bob, 2)
    alice.establisher.stop()
    assert alice.session is not None
    alice.session.end("test")
    net.run_until_settled(alice, bob, 10)
