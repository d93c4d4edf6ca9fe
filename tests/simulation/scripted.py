"""A peer that says what a test tells it to: the protocol's codec on both sockets, no engine behind.

It takes the place of bob in the pretended network and meets the real engine of alice.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol import features
from protocol.bitmaps import BitmapSender
from protocol.framing import Frame
from protocol.packets import (
    SPECS,
    Command,
    Empty,
    Packet,
    ProtocolParams,
    Raw,
    Sizes,
    StateReport,
    SyncParam,
    SyncUuid,
    Uuids,
    decode,
    encode,
    encode_h80,
)
from protocol.states import Conn, Disk, Role, StateWord
from replicator.metadata.bitmap import Bitmap
from tests.simulation.pair import Pair
from tests.simulation.raw_socket import dial

FLAGS = features.TRIM | features.WSAME | features.WZEROES


class ScriptedPeer:
    """Connects to alice; `heard` is every frame since the features, with its socket's letter."""

    def __init__(
        self, pair: Pair, *, replicator: int = 0, protocol: int = 3, flags: int = FLAGS
    ) -> None:
        self.pair = pair
        self.extension = replicator
        self.protocol = protocol
        self.flags = flags
        self.deaf = False
        self.answers_pings = True
        self.heard: list[tuple[str, Frame]] = []
        self.on_frame: Callable[[str, Frame], None] | None = None
        pair.network.alive["bob"] = True
        self.data = dial(pair, "d", self.frame)
        self.meta = dial(pair, "m", self.frame)

    # --- talking ------------------------------------------------------------------------------

    def frame(self, letter: str, frame: Frame) -> None:
        if self.deaf:
            return
        if frame.command == Command.CONNECTION_FEATURES:
            for one in (self.data, self.meta):
                one.reader.switch_to_h100()
        elif frame.command == Command.PING and self.answers_pings:
            self.send(Command.PING_ACK, Empty())
        else:
            self.heard.append((letter, frame))
        if self.on_frame is not None:
            self.on_frame(letter, frame)

    def send(self, command: Command, packet: Packet, volume: int = 0) -> None:
        self.raw(SPECS[command].socket[0], encode(volume, command, packet))

    def raw(self, letter: str, data: bytes) -> None:
        (self.data if letter == "d" else self.meta).channel.send(data)

    def last(self, command: Command) -> Packet:
        frames = [f for _letter, f in self.heard if f.command == command]
        assert frames, f"alice sent no {command.name}"
        return decode(command, frames[-1].payload)

    def count(self, command: Command) -> int:
        return sum(1 for _letter, frame in self.heard if frame.command == command)

    def close(self) -> None:
        self.data.channel.close()
        self.meta.channel.close()

    # --- the handshake ------------------------------------------------------------------------

    def features(self) -> None:
        """As far as the exchange of parameters, in which alice has told everything already."""
        packet = features.own_features(self.flags, self.extension)
        self.data.channel.send(encode_h80(Command.CONNECTION_FEATURES, packet))
        alice = self.pair.alice
        self.pair.run_until(lambda: alice.r.conn is Conn.WFReportParams, 10)
        self.pair.run(0.01)

    def protocol_params(self) -> None:
        net = self.pair.net
        self.send(
            Command.PROTOCOL, ProtocolParams(self.protocol, integrity_alg=net.data_integrity_alg)
        )

    def report(
        self,
        uuids: Uuids | None,
        disk: Disk,
        *,
        role: Role = Role.Secondary,
        conn: Conn = Conn.WFReportParams,
        sectors: int | None = None,
        volume: int = 0,
    ) -> None:
        """Sync parameters, sizes, UUIDs and state of one volume."""
        size = self.pair.alice.volume(volume).own_capacity if sectors is None else sectors
        self.send(Command.SYNC_PARAM89, SyncParam(250, csums_alg=self.pair.net.csums_alg), volume)
        self.send(Command.SIZES, Sizes(size, 0, size), volume)
        if uuids is not None:
            self.send(Command.UUIDS, uuids, volume)
        self.state(disk, role=role, conn=conn, volume=volume)

    def state(
        self,
        disk: Disk,
        *,
        role: Role = Role.Secondary,
        conn: Conn = Conn.Connected,
        volume: int = 0,
    ) -> None:
        word = StateWord(role=role, peer=Role.Secondary, conn=conn, disk=disk, pdsk=Disk.UpToDate)
        self.send(Command.STATE, StateReport(word.pack()), volume)

    def same_uuids(self, volume: int = 0) -> Uuids:
        """The generations of alice's copy: nothing to synchronise."""
        store = self.pair.alice.volume(volume).store
        assert store is not None
        own = store.uuids
        return Uuids(own.current & ~1, own.bitmap, own.history0, own.history1)

    def send_full_bitmap(self) -> None:
        """A bitmap with every bit set, as compressed packet."""
        bits = self.pair.alice.volume().bitmap
        assert bits is not None
        data = b"\xff" * len(bits.data)
        for command, payload in BitmapSender(bits.bits, data):
            self.send(command, Raw(payload))

    def send_bitmap(self, bits: range, volume: int = 0) -> None:
        """A bitmap with these bits set, as the peer's own."""
        own = self.pair.alice.volume(volume).bitmap
        assert own is not None
        bitmap = Bitmap(own.bits)
        bitmap.set_range(bits.start, len(bits))
        for command, payload in BitmapSender(bitmap.bits, bitmap.data):
            self.send(command, Raw(payload), volume)

    def send_sync_uuid(self, uuid: int) -> None:
        self.send(Command.SYNC_UUID, SyncUuid(uuid))

    def connect(self, uuids: Uuids | None, disk: Disk, *, role: Role = Role.Secondary) -> None:
        """The whole handshake, for every volume."""
        self.features()
        self.protocol_params()
        for number in self.pair.alice.r.volumes:
            self.report(uuids, disk, role=role, volume=number)
        self.pair.run(0.05)


def synced_alice(pair: Pair, *, primary: bool = False) -> Uuids:
    """alice with UpToDate data, and bob gone for good. Returns the UUIDs that bob had."""
    pair.up_synced()
    if not primary:
        pair.alice.secondary()
    store = pair.bob.volume().store
    assert store is not None
    uuids = store.uuids
    known = Uuids(uuids.current & ~1, uuids.bitmap, uuids.history0, uuids.history1)
    pair.bob.kill()
    pair.run(0.1)
    return known
