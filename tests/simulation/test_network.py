"""The pretended network keeps what TCP promises: a stream arrives from its beginning, without gaps."""

from __future__ import annotations

import random

from tests.simulation.world import Channel, Clock, Network


class Listener:
    """What one end of a connection is told."""

    def __init__(self) -> None:
        self.bytes = b""

    def space(self) -> None:
        return None

    def sent(self, _total: int) -> None:
        pass

    def received(self, data: bytes) -> None:
        self.bytes += data

    def closed(self, reason: str) -> None:
        self.bytes += f"[{reason}]".encode()


class Connected:
    """A network with one connection from alice to bob."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, random.Random(1), ("alice", "bob"))
        self.network.alive.update(alice=True, bob=True)
        accepted: list[Channel] = []
        self.network.listeners["bob"] = accepted.append
        alice = self.network.connect("alice")
        assert alice is not None
        self.run()
        [bob] = accepted
        self.ends = {"alice": alice, "bob": bob}
        for end in self.ends.values():
            end.events = Listener()
            end.resume_reading()

    def run(self) -> None:
        self.clock.run(1.0)

    def sends(self, node: str, data: bytes) -> None:
        self.ends[node].send(data)
        self.run()

    def has(self, node: str) -> bytes:
        return self.ends[node].events.bytes


def test_what_follows_lost_bytes_does_not_arrive_when_the_cut_is_gone() -> None:
    world = Connected()
    world.sends("alice", b"one ")
    world.network.cut = {"alice"}
    world.sends("alice", b"two ")
    world.network.cut = {"bob"}
    world.sends("alice", b"three ")
    world.network.cut = set()
    world.sends("alice", b"four")
    assert world.has("bob") == b"one "


def test_the_end_of_a_stream_that_has_lost_bytes_does_not_arrive() -> None:
    world = Connected()
    world.network.cut = {"alice"}
    world.sends("alice", b"lost")
    world.network.cut = set()
    world.ends["alice"].close()
    world.run()
    assert world.has("bob") == b""


def test_a_direction_on_which_nothing_was_lost_goes_on() -> None:
    world = Connected()
    world.network.cut = {"alice"}
    world.sends("alice", b"lost")
    world.sends("bob", b"one ")
    world.network.cut = set()
    world.sends("bob", b"two")
    assert world.has("alice") == b"one two"


def test_a_cut_while_nothing_is_sent_is_not_noticed() -> None:
    world = Connected()
    world.network.cut = {"alice", "bob"}
    world.run()
    world.network.cut = set()
    world.sends("alice", b"one")
    assert world.has("bob") == b"one"
