"""One socket of a peer that is no engine: it meets alice in the place of bob, and cuts what alice
says into frames.

What this file must not know: what the peer answers.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.framing import Frame, FrameReader
from protocol.packets import Command, Empty, encode_h80
from tests.simulation.pair import Pair
from tests.simulation.world import Channel


class RawSocket:
    """heard(letter, frame): told of every frame. letter: "d" data, "m" acknowledgements."""

    def __init__(self, channel: Channel, letter: str, heard: Callable[[str, Frame], None]) -> None:
        self.channel = channel
        self.letter = letter
        self.reader = FrameReader(letter)
        self._heard = heard
        channel.events = self

    def space(self) -> memoryview | None:
        return None

    def received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (frame := self.reader.next_frame()) is not None:
            self._heard(self.letter, frame)

    def sent(self, position: int) -> None:
        """A port of the pretended network that is of no use here."""

    def closed(self, reason: str) -> None:
        """So is this one."""


def dial(pair: Pair, letter: str, heard: Callable[[str, Frame], None]) -> RawSocket:
    """Connect to alice as soon as she listens, and say which of the two sockets this one is."""
    network = pair.network
    pair.run_until(lambda: "alice" in network.listeners, 30)
    channel = network.connect("bob")
    assert channel is not None
    socket = RawSocket(channel, letter, heard)
    command = Command.INITIAL_DATA if letter == "d" else Command.INITIAL_META
    channel.send(encode_h80(command, Empty()))
    return socket
