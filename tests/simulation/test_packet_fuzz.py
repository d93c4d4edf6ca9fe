"""Whatever a peer sends, in whatever state: the engine ends the connection with a reason at worst.

An exception out of a port callback would end a resource daemon, so here it ends the test: the
pretended clock lets it through. After each conversation nothing may be held, pending or unexplained.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from protocol.framing import Frame
from protocol.packets import (
    IN_SYNC,
    MAGIC_100,
    SPECS,
    SYNCER_ID,
    BarrierAck,
    BlockAck,
    Command,
    Data,
    StateReply,
    Uuids,
)
from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.dispatch import RESOURCE_HANDLERS, VOLUME_HANDLERS
from replicator.engine.settings import DiskSettings, NetSettings
from tests.simulation.pair import Pair
from tests.simulation.scripted import ScriptedPeer, synced_alice

SIZE = 4 << 20
COMMANDS = [c for c in Command if not SPECS[int(c)].early]
PLAUSIBLE = [
    c
    for c in COMMANDS
    if (c in VOLUME_HANDLERS or c in RESOURCE_HANDLERS)
    and c not in (Command.EXTENSION, Command.PROTOCOL_UPDATE, Command.SYNC_PARAM89)
]
"""Those that the engine knows how to handle, in some state."""
TOLERATED = (
    *(Command.STATE, Command.UUIDS, Command.SIZES, Command.STATE_CHG_REQ, Command.OUT_OF_SYNC),
    *(Command.DATA, Command.TRIM, Command.DATA_REQUEST, Command.RS_DATA_REQUEST, Command.PING),
    *(Command.NEG_ACK, Command.RS_WRITE_ACK, Command.CSUM_RS_REQUEST, Command.ZEROES),
)
"""Those that rarely end a conversation, so that it can get somewhere."""


class Fuzzer:
    """Random packets: whole and broken, of values that mean something and of others."""

    def __init__(self, peer: ScriptedPeer, rng: random.Random) -> None:
        self.peer = peer
        self.rng = rng
        self.rude = rng.choice((0.0, 0.0, 0.02, 1.0))
        """How often a packet or field need not even look right: what does is listened to longer."""
        self.obliging = rng.choice((0.0, 0.5, 0.95))
        """How often what alice asks or sends is answered as a peer should."""
        self._epoch = 0
        peer.on_frame = self._answer

    def _rudely(self) -> bool:
        return self.rng.random() < self.rude

    def some_packet(self) -> None:
        rng = self.rng
        if self._rudely() and rng.random() < 0.02:
            self.peer.raw(rng.choice("dm"), rng.randbytes(rng.randint(1, 200)))
            return
        command = rng.choice(COMMANDS if self._rudely() else self._plausible())
        spec = SPECS[int(command)]
        payload = self.payload(command)
        volume = rng.choice((0, 0, 0, 0, 1, 7, 0xFFFF)) if self._rudely() else 0
        letter = rng.choice("dm") if self._rudely() else spec.socket[0]
        header = struct.pack(">IHHII", MAGIC_100, volume, int(command), len(payload), 0)
        self.peer.raw(letter, header + payload)

    def payload(self, command: Command) -> bytes:
        rng = self.rng
        spec = SPECS[int(command)]
        maker = MAKERS.get(command)
        if maker is not None and not (self._rudely() and rng.random() < 0.1):
            return maker(self)
        length = rng.randint(spec.min_payload, min(spec.max_payload, spec.min_payload + 2000))
        return rng.randbytes(length)

    def _plausible(self) -> tuple[Command, ...] | list[Command]:
        return TOLERATED if self.rng.random() < 0.9 else PLAUSIBLE

    def _answer(self, _letter: str, frame: Frame) -> None:
        command = frame.command
        if command == Command.DATA:
            self._epoch += 1
        if self.rng.random() >= self.obliging:
            return
        peer, volume = self.peer, frame.volume
        if command == Command.STATE_CHG_REQ:
            peer.send(Command.STATE_CHG_REPLY, StateReply(self.rng.choice((1, 1, 1, -10))), volume)
        elif command == Command.CONN_ST_CHG_REQ:
            peer.send(Command.CONN_ST_CHG_REPLY, StateReply(1))
        elif command == Command.DATA:
            sector, block_id, _seq, flags = struct.unpack_from(">QQII", frame.payload)
            if flags & 256:
                ack = BlockAck(sector, block_id, len(frame.payload) - 24, 1)
                peer.send(Command.WRITE_ACK, ack, volume)
        elif command == Command.BARRIER:
            number = struct.unpack_from(">I", frame.payload)[0]
            peer.send(Command.BARRIER_ACK, BarrierAck(number, self._epoch))
            self._epoch = 0
        elif command in (Command.RS_DATA_REQUEST, Command.DATA_REQUEST):
            sector, block_id, size, _pad = struct.unpack(">QQII", frame.payload)
            reply = Command.DATA_REPLY
            if command == Command.RS_DATA_REQUEST:
                reply = Command.RS_DATA_REPLY
            peer.send(reply, Data(sector, block_id, 0, 0, b"", bytes(size)), volume)
        elif command == Command.RS_DATA_REPLY:
            sector, block_id, _seq, _flags = struct.unpack_from(">QQII", frame.payload)
            ack = BlockAck(sector, block_id, len(frame.payload) - 24, 1)
            peer.send(Command.RS_WRITE_ACK, ack, volume)

    # --- fields -------------------------------------------------------------------------------

    def sector(self) -> int:
        size = self.peer.pair.alice.volume().size_sectors
        sectors = [0, 0, 8, 8, 64, 2048, 4096]
        if self._rudely():
            sectors += [self.rng.randrange(8192), size - 8, size, 2**50, 2**63]
        return self.rng.choice(sectors)

    def size(self) -> int:
        sizes = [512, 4096, 4096, 4096, 8192, 65536]
        if self._rudely():
            sizes += [0, 1 << 20, 100, 2**31]
        return self.rng.choice(sizes)

    def block_id(self) -> int:
        return self.rng.choice(
            (0, 1, 2, 3, 4, 5, 6, 7, SYNCER_ID, IN_SYNC, self.rng.getrandbits(64))
        )

    def request(self) -> bytes:
        return struct.pack(">QQII", self.sector(), self.block_id(), self.size(), 0)

    def ack(self) -> bytes:
        """Often an answer to what alice did ask or send."""
        asked = [
            frame
            for _letter, frame in self.peer.heard[-50:]
            if frame.command
            in (Command.DATA, Command.RS_DATA_REQUEST, Command.RS_DATA_REPLY, Command.DATA_REQUEST)
        ]
        if not asked or self._rudely():
            return self.request()
        frame = self.rng.choice(asked)
        sector, block_id, size, _ = struct.unpack_from(">QQII", frame.payload)
        if frame.command in (Command.DATA, Command.RS_DATA_REPLY):
            size = len(frame.payload) - 24
        return struct.pack(">QQII", sector, block_id, size, self.rng.getrandbits(32))

    def data(self) -> bytes:
        flags = self.rng.choice((0, 0, 256, 256, 128, 32, 16, 64, 4, self.rng.getrandbits(32)))
        head = struct.pack(">QQII", self.sector(), self.block_id(), 1, flags)
        length = (
            self.rng.choice((0, 1000)) if self._rudely() else self.rng.choice((512, 4096, 8192))
        )
        return head + bytes(length)

    def reply(self) -> bytes:
        ack = self.ack()
        sector, block_id, size, _ = struct.unpack(">QQII", ack)
        return struct.pack(">QQII", sector, block_id, 0, 0) + bytes(min(size, 1 << 20))

    def trim(self) -> bytes:
        return struct.pack(">QQIII", self.sector(), self.block_id(), 1, 64, self.size())

    def word(self) -> int:
        rng = self.rng
        if self._rudely():
            return rng.getrandbits(32)
        return StateWord(
            role=rng.choice((Role.Primary, *[Role.Secondary] * 7)),
            peer=rng.choice(list(Role)),
            conn=rng.choice(list(Conn)),
            disk=rng.choice([d for d in Disk if d is not Disk.DUnknown]),
            pdsk=rng.choice(list(Disk)),
            user_isp=rng.random() < 0.1,
        ).pack()

    def state_request(self) -> bytes:
        rng = self.rng
        mask = rng.choice((0x3, 0x1E03, 0x1F0, 0x1F0, 0x1E00, 0x1E1F0, 0xC, rng.getrandbits(23)))
        val = rng.choice((0x1, 0x1001, 0xC0, 0xB0, 0x120, 0x400, 0x90, 0x10, self.word()))
        return struct.pack(">II", mask, val)

    def uuids(self) -> bytes:
        rng = self.rng
        own = self.peer.pair.alice.volume().store
        known = [0, 4, rng.getrandbits(64)]
        if own is not None:
            u = own.uuids
            known += [u.current, u.bitmap, u.history0, u.history1] * 2
        fields = [rng.choice(known) for _ in range(4)]
        return struct.pack(">6Q", *fields, rng.choice((0, 7, 2**60)), rng.randrange(16))

    def sizes(self) -> bytes:
        size = self.peer.pair.alice.volume().size_sectors
        fields = [
            size if self.rng.random() < 0.9 else self.rng.choice((size * 2, 0, 1, 8, size // 2))
            for _ in range(3)
        ]
        return struct.pack(">QQQIHH", *fields, 1 << 20, 0, 0) + bytes(24)

    def bitmap(self) -> bytes:
        rng = self.rng
        bits = self.peer.pair.alice.volume().size_sectors // 8
        words = (bits + 63) // 64
        return rng.choice((b"", bytes(words * 8), b"\xff" * (words * 8), rng.randbytes(64)))

    def runs(self) -> bytes:
        rng = self.rng
        return bytes([rng.choice((0x02, 0x82, 0xA2, rng.getrandbits(8)))]) + rng.randbytes(
            rng.choice((1, 2, 3, 40))
        )

    def number_pair(self) -> bytes:
        return struct.pack(">II", self.rng.choice((0, 1, 2, 3, 9)), self.rng.choice((0, 1, 2)))


MAKERS: dict[Command, Callable[[Fuzzer], bytes]] = {
    Command.DATA: Fuzzer.data,
    Command.DATA_REPLY: Fuzzer.reply,
    Command.RS_DATA_REPLY: Fuzzer.reply,
    Command.BARRIER: Fuzzer.number_pair,
    Command.BARRIER_ACK: Fuzzer.number_pair,
    Command.TRIM: Fuzzer.trim,
    Command.ZEROES: Fuzzer.trim,
    Command.DATA_REQUEST: Fuzzer.request,
    Command.RS_DATA_REQUEST: Fuzzer.request,
    Command.RS_THIN_REQ: Fuzzer.request,
    Command.OV_REQUEST: Fuzzer.request,
    Command.CSUM_RS_REQUEST: lambda f: f.request() + f.rng.randbytes(4),
    Command.OV_REPLY: lambda f: f.request() + f.rng.randbytes(4),
    Command.OUT_OF_SYNC: lambda f: struct.pack(">QII", f.sector(), f.size(), 0),
    Command.RS_DEALLOCATED: lambda f: struct.pack(">QII", f.sector(), f.size(), 0),
    Command.STATE: lambda f: struct.pack(">I", f.word()),
    Command.STATE_CHG_REQ: Fuzzer.state_request,
    Command.CONN_ST_CHG_REQ: Fuzzer.state_request,
    Command.STATE_CHG_REPLY: lambda f: struct.pack(">i", f.rng.choice((1, 1, 2, -1, -19, 0))),
    Command.CONN_ST_CHG_REPLY: lambda f: struct.pack(">i", f.rng.choice((1, -2))),
    Command.UUIDS: Fuzzer.uuids,
    Command.SIZES: Fuzzer.sizes,
    Command.SYNC_UUID: lambda f: struct.pack(">Q", f.rng.choice((0, 4, f.rng.getrandbits(64)))),
    Command.BITMAP: Fuzzer.bitmap,
    Command.COMPRESSED_BITMAP: Fuzzer.runs,
    Command.PROTOCOL: lambda f: (
        struct.pack(">6I", f.rng.choice((3, 3, 3, 1)), 0, 0, 0, 0, 0) + b"\0"
    ),
    **dict.fromkeys(
        (
            Command.RECV_ACK,
            Command.WRITE_ACK,
            Command.RS_WRITE_ACK,
            Command.NEG_ACK,
            Command.NEG_DREPLY,
            Command.NEG_RS_DREPLY,
            Command.RS_IS_IN_SYNC,
            Command.RS_CANCEL,
            Command.SUPERSEDED,
            Command.RETRY_WRITE,
        ),
        Fuzzer.ack,
    ),
}


# --- how far the conversation has come when the nonsense begins --------------------------------


def _features(peer: ScriptedPeer, _bob: Uuids) -> None:
    peer.features()


def _protocol(peer: ScriptedPeer, _bob: Uuids) -> None:
    peer.features()
    peer.protocol_params()


def _connected(peer: ScriptedPeer, _bob: Uuids) -> None:
    peer.connect(peer.same_uuids(), Disk.UpToDate)


def _diskless_peer(peer: ScriptedPeer, _bob: Uuids) -> None:
    peer.connect(None, Disk.Diskless)


def _source(peer: ScriptedPeer, _bob: Uuids) -> None:
    """alice waits for the bitmap of a copy that was just created."""
    peer.connect(Uuids(4, 0, 0, 0), Disk.Inconsistent)


def _target(peer: ScriptedPeer, _bob: Uuids) -> None:
    own = peer.same_uuids()
    peer.connect(Uuids(0x1234567890, own.current, 0, 0), Disk.UpToDate)


def _sync_source(peer: ScriptedPeer, bob: Uuids) -> None:
    _source(peer, bob)
    peer.send_full_bitmap()
    peer.pair.run(0.05)


def _sync_target(peer: ScriptedPeer, bob: Uuids) -> None:
    _target(peer, bob)
    peer.send_full_bitmap()
    peer.pair.run(0.05)
    peer.send_sync_uuid(0x777000)
    peer.pair.run(0.02)


PHASES = {
    "features": _features,
    "protocol": _protocol,
    "connected": _connected,
    "diskless peer": _diskless_peer,
    "bitmap as source": _source,
    "bitmap as target": _target,
    "sync source": _sync_source,
    "sync target": _sync_target,
}


def converse(seed: int, phase: str, *, primary: bool, protocol: str = "C") -> Pair:
    """One conversation. Any exception of the engine comes through."""
    rng = random.Random(f"{seed} {phase} {primary}")
    net = NetSettings(protocol=protocol)
    pair = Pair(seed, SIZE, net=net, disk=DiskSettings(al_extents=7, c_max_rate=0))
    bob = synced_alice(pair, primary=primary)
    peer = ScriptedPeer(pair, replicator=rng.choice((0, 1)), protocol="ABC".index(protocol) + 1)
    PHASES[phase](peer, bob)
    fuzzer = Fuzzer(peer, rng)
    results: list[object] = []
    for _ in range(rng.randint(5, 60)):
        _disturb(pair, rng, results)
        fuzzer.some_packet()
        if rng.random() < 0.5:
            pair.run(rng.choice((0.0, 0.0005, 0.01)))
        if pair.alice.r.link is None or rng.random() < 0.005:
            break
    pair.run(0.5)
    peer.close()
    pair.network.alive["bob"] = False
    pair.run(60)
    return pair


def _disturb(pair: Pair, rng: random.Random, results: list[object]) -> None:
    """What an application and an administrator do meanwhile."""
    alice = pair.alice
    volume = alice.volume()
    choice = rng.random()
    if alice.r.role is Role.Primary:
        offset = rng.randrange(0, 256) * 4096
        if choice < 0.2:
            volume.write(offset, bytes(4096), rng.random() < 0.1, results.append)
        elif choice < 0.25:
            volume.read(offset, 4096, lambda errno, _data: results.append(errno))
        elif choice < 0.28:
            volume.flush(results.append)
    commands = (
        lambda: alice.r.detach(0, rng.random() < 0.5, results.append),
        lambda: alice.r.invalidate(0, results.append),
        lambda: alice.r.invalidate_remote(0, results.append),
        lambda: alice.r.pause_sync(0, results.append),
        lambda: alice.r.resume_sync(0, results.append),
        lambda: alice.r.primary(rng.random() < 0.5, results.append),
        lambda: alice.r.secondary(results.append),
        lambda: alice.attach(0, results.append),
        lambda: alice.attach(0, results.append),
    )
    if choice > 0.93:
        rng.choice(commands)()


@pytest.mark.parametrize("primary", [False, True], ids=["secondary", "primary"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("seed", range(12))
def test_no_packet_brings_the_engine_down(seed, phase, primary):
    pair = converse(seed, phase, primary=primary)
    alice = pair.alice
    alice.r.snapshot()
    assert alice.r.link is None
    assert alice.r.conn in (Conn.WFConnection, Conn.StandAlone)
    assert alice.r.last_error
    volume = alice.volume()
    assert volume.locks.count == 0
    assert volume.application.pending == volume.application.frozen
    assert not volume.generation_pending
