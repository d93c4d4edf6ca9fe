"""A link and a scripted peer in the pretended network, for the tests of the link."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from protocol.framing import Frame, FrameReader
from protocol.packets import (
    MAGIC_100,
    Command,
    Features,
    decode,
    encode_h80,
)
from protocol.states import Conn
from replicator.engine.establish import Sockets
from replicator.engine.link import EXTENSION_VERSION, Link
from replicator.engine.settings import NetSettings
from tests.simulation import world

KERNEL = Features(86, 1 | 4, 101, 0)
REPLICATOR = Features(100, 1 | 4 | 8, 101, EXTENSION_VERSION)
SECRET = NetSettings(cram_hmac_alg="sha256", shared_secret="open sesame")
THEIR_CHALLENGE = bytes(range(64))


def frame(command: int, payload: bytes = b"", pad: int = 0) -> bytes:
    """Any frame with the h100 header, also an impossible one."""
    return struct.pack(">IHHII", MAGIC_100, 0, command, len(payload), pad) + payload


@dataclass
class Owner:
    """Remembers what the link tells its resource."""

    up: int = 0
    packets: list[tuple[str, int, int, bytes]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    lost: list[tuple[Conn, str, bool]] = field(default_factory=list)

    def link_up(self, link: Link) -> None:
        self.up += 1

    def packet(self, link: Link, command: int, volume: int, payload: bytes) -> None:
        assert not self.lost, "a packet after the end"
        self.packets.append((Command(command).name, volume, len(payload), payload))
        decode(command, payload)

    def link_sent(self, link: Link, position: int) -> None:
        self.sent.append(position)

    def link_lost(self, link: Link, state: Conn, reason: str, stand_alone: bool) -> None:
        self.lost.append((state, reason, stand_alone))


class Mouth:
    """The peer's end of one socket: what it heard, as bytes."""

    def __init__(self, channel: world.Channel) -> None:
        self.channel = channel
        self.heard = bytearray()
        self.ended = False
        channel.events = self

    def space(self) -> memoryview | None:
        return None

    def received(self, data: bytes) -> None:
        self.heard += data

    def sent(self, position: int) -> None:
        pass

    def closed(self, reason: str) -> None:
        self.ended = True


class Talk:
    """A link and a peer that says what the test tells it to."""

    def __init__(
        self, net: NetSettings | None = None, early_data: bytes = b"", early_meta: bytes = b""
    ) -> None:
        self.clock = world.Clock()
        self.network = world.Network(self.clock, random.Random(1), ("alice", "bob"))
        self.network.alive = {"alice": True, "bob": True}
        ends: list[world.Channel] = []
        self.network.listeners["alice"] = ends.append
        self.data = Mouth(self._connect())
        self.meta = Mouth(self._connect())
        self.clock.run(0.01)
        lines: list[str] = []
        self.owner = Owner()
        self.settings = net or NetSettings()
        self.ends = ends
        self.link = Link(
            self.owner,
            Sockets(ends[0], ends[1], True, early_data, early_meta),
            self.settings,
            world.OwnedClock(self.clock),
            world.Entropy(random.Random(2)),
            world.Log(self.clock, "alice", lines),
        )
        self.link.start()

    def _connect(self) -> world.Channel:
        channel = self.network.connect("bob")
        assert channel is not None
        return channel

    def say(self, packet: bytes, seconds: float = 0.01) -> None:
        self.data.channel.send(packet)
        self.clock.run(seconds)

    def say_meta(self, packet: bytes, seconds: float = 0.01) -> None:
        self.meta.channel.send(packet)
        self.clock.run(seconds)

    def up(self, features: Features = REPLICATOR) -> None:
        self.say(encode_h80(Command.CONNECTION_FEATURES, features))
        assert self.owner.up == 1

    def said(self) -> list[Frame]:
        """Everything the link has sent on the data socket behind its features."""
        reader = FrameReader("d")
        reader.switch_to_h100()
        reader.feed(bytes(self.data.heard[80:]))
        frames = []
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
        return frames

    def said_meta(self) -> list[str]:
        reader = FrameReader("m")
        reader.switch_to_h100()
        reader.feed(bytes(self.meta.heard))
        names = []
        while (frame := reader.next_frame()) is not None:
            names.append(Command(frame.command).name)
        return names

    def end(self) -> tuple[Conn, str, bool]:
        assert len(self.owner.lost) == 1, f"ended {len(self.owner.lost)} times"
        assert self.link.closed
        assert not any(channel.open for channel in self.ends), "a socket stays open"
        return self.owner.lost[0]
