"""The real engine in the place of one of two recorded nodes, the other one's bytes against it.

What the recorded node in whose place the engine stands did of its own accord (an administrator's
order, an application's write) is recognised in its packets and done here; what it sent for that or
in answer has to come from the engine, too. The other node's packets arrive as recorded, in order.

Three things cannot be replayed as they are, because either side chooses them freely:
- block IDs are names given by who asks: translated;
- a resync target divides its requests as it likes: the engine's are answered from what the recorded
  source had; which blocks it got is compared at the end;
- epochs are closed when the writer likes: the engine's barriers are answered at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from protocol import digests
from protocol.compat import AFTER_SB_NAMES
from protocol.framing import Frame
from protocol.packets import (
    IN_SYNC,
    OUT_OF_SYNC_VERDICT,
    Barrier,
    BarrierAck,
    BlockAck,
    BlockDesc,
    BlockRequest,
    Command,
    Data,
    DpFlags,
    Empty,
    Features,
    Packet,
    Raw,
    Sizes,
    StateReport,
    StateRequest,
    SyncUuid,
    Trim,
    Uuids,
    decode,
    encode,
    encode_h80,
)
from protocol.states import (
    CONN_MASK,
    CONN_SHIFT,
    DISK_MASK,
    DISK_SHIFT,
    Conn,
    Disk,
    Role,
    StateWord,
)
from replicator.engine.generations import SYNC_STEP
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from tests.simulation import recording
from tests.simulation.pair import MIB, Pair
from tests.simulation.raw_socket import RawSocket, dial
from tests.simulation.recording import (
    ALPHA,
    BETA,
    BLOCK,
    DEVICE_BITS,
    ROLE_MARK,
    Session,
    Step,
)

KERNEL_FLAGS = 15
CRASHED, SKIP_SYNC = 2, 8
UNHEARD = 0x1234567890ABCDE0
"""Names a generation that no packet of the recording speaks of."""
GIVEN_UP = b"given up".ljust(BLOCK)
"""What a block held that was overwritten by the peer's before anybody had seen it."""
EXPECT_SECONDS = 20.0
"""Virtual time within which the engine has to send what the kernel sent."""
QUIET = {Command.PING, Command.PING_ACK, Command.UNPLUG_REMOTE}
FREE = QUIET | {Command.BARRIER, Command.RS_WRITE_ACK, Command.RS_DATA_REQUEST}
FREE |= {Command.CSUM_RS_REQUEST, Command.RS_THIN_REQ, Command.CONNECTION_FEATURES}
"""Packets of the engine's that have no counterpart of their own in the recording."""
SERVED = {Command.RS_DATA_REPLY, Command.RS_IS_IN_SYNC, Command.RS_DEALLOCATED, Command.BARRIER_ACK}
"""The kernel's answers to such packets: given by _Kernel instead, to what the engine asks."""
WRITES = {Command.DATA, Command.TRIM, Command.ZEROES}
ACKS = {Command.WRITE_ACK, Command.RECV_ACK}
VERDICTS = {IN_SYNC, OUT_OF_SYNC_VERDICT}
DAMAGED = {16, 768}
"""Blocks of beta's disk that were overwritten behind DRBD's back in `verify`."""
AUTH_SECRETS = {
    "auth": ("captured secret",) * 2,
    "rec-digests": ("captured secret",) * 2,
    "wrong-secret": ("secret of alpha", "secret of beta"),
}


class Draws:
    """Entropy port: generations and challenges as the recorded node drew them."""

    def __init__(self, uuids: list[int], challenges: list[bytes]) -> None:
        self._uuids = uuids
        self._challenges = challenges

    def random_bytes(self, count: int) -> bytes:
        if count == 8:
            # A Primary that is left alone begins a generation; a kernel waits for the first write.
            return (self._uuids.pop(0) if self._uuids else UNHEARD).to_bytes(8, "big")
        if count == 64 and self._challenges:
            return self._challenges.pop(0)
        return bytes(count)


class Replayed:
    """One conversation with the engine in the place of `node`; play() it, then look at the rest."""

    def __init__(self, name: str, node: str) -> None:
        self.name = name
        self.node = node
        self.peer = BETA if node == ALPHA else ALPHA
        self.sessions = recording.sessions(name)
        self.ours = recording.is_replicator(self.sessions, node)
        self.volumes = 1 + max(s.volume for x in self.sessions for s in x.steps)
        self.pair = Pair(
            size=4 * MIB,
            volumes=self.volumes,
            net=self._net(),
            disk=self._disk(),
            epoch_per_completion=not self.ours,
        )
        self.alice = self.pair.alice
        self.answers: list[ReplicatorError | None] = []
        self.orders = 0
        self.waiting: dict[tuple[int, int], list[Packet]] = defaultdict(list)
        """(command, volume) -> what the engine has sent and the recording has not asked for yet."""
        self.ids: dict[int, int] = {}
        """Block IDs: the recorded node's -> the engine's."""
        self.images = [bytearray(recording.content(self.peer)) for _ in range(self.volumes)]
        """The kernel's disks, as far as the recording shows them."""
        self.copied: list[set[int]] = [set() for _ in range(self.volumes)]
        """Blocks that the engine has fetched as target of a resync."""
        self.unacknowledged: list[int] = []
        """Block IDs of the engine's writes since its last barrier, or that a barrier waits for."""
        self.epoch = 0
        self.barriers: list[tuple[int, int, list[int]]] = []
        """(number, writes, those of them not acknowledged yet) of each that is not answered."""
        self.leaving = False
        """Whether the peer has asked to disconnect."""
        self.link: tuple[RawSocket, RawSocket] | None = None
        for number, medium in enumerate(self.alice.media):
            medium.put(0, recording.first_content(self.sessions, node, self.peer, number))

    # --- preparation --------------------------------------------------------------------------

    def _net(self) -> NetSettings:
        protocol, sync = recording.parameters(self.sessions[0], self.node)
        secrets = AUTH_SECRETS.get(self.name)
        return NetSettings(
            protocol="_ABC"[protocol.protocol],
            after_sb_0pri=AFTER_SB_NAMES[protocol.after_sb_0p],
            data_integrity_alg=protocol.integrity_alg,
            verify_alg=sync.verify_alg,
            csums_alg=sync.csums_alg,
            cram_hmac_alg="sha256" if secrets else "",
            shared_secret=secrets[self.node == BETA] if secrets else "",
            use_rle=self.name != "no-rle",
        )

    def _disk(self) -> DiskSettings:
        _protocol, sync = recording.parameters(self.sessions[0], self.node)
        return DiskSettings(
            resync_rate=sync.resync_rate * 1024,
            c_plan_ahead=sync.c_plan_ahead / 10,
            c_delay_target=sync.c_delay_target / 10,
            c_fill_target=sync.c_fill_target * 512,
            c_max_rate=sync.c_max_rate * 1024,
        )

    # --- the play -----------------------------------------------------------------------------

    def play(self) -> None:
        self.alice.up(connect=False)
        challenges = [
            step.packet.payload
            for session in self.sessions
            for step in session.of(self.node, Command.AUTH_CHALLENGE)
            if isinstance(step.packet, Raw)
        ]
        self.draws = Draws(recording.chosen_uuids(self.sessions, self.node), challenges)
        self.alice.r.entropy = self.draws
        for session in self.sessions:
            self._begin(session)
            for step in session.steps:
                self._step(step)
            self.pair.run(0.5)
        self._part()

    def _step(self, step: Step) -> None:
        if step.command == Command.CONNECTION_FEATURES:
            if step.sender == self.node and self.ours:
                found = self.waiting[step.command, 0]
                assert found == [step.packet], f"expected {step.packet}, found {found}"
            return
        if step.sender == self.peer:
            self._deliver(step)
        else:
            self._expect(step)

    def _begin(self, session: Session) -> None:
        """The two find each other (again), after what this node did while apart."""
        self._part()
        for number in range(self.volumes):
            for block, data in recording.sent_blocks(session, self.peer, number).items():
                self.images[number][block * BLOCK : (block + 1) * BLOCK] = data
            self._work_apart(session, number)
        discard = any(
            isinstance(s.packet, Uuids) and s.packet.flags & 1
            for s in session.of(self.node, Command.UUIDS)
        )
        if self.alice.r.conn is Conn.StandAlone:
            self._order(lambda done: self.alice.r.connect(discard, done))
        self.waiting.clear()
        self.ids.clear()
        self.epoch, self.unacknowledged, self.barriers = 0, [], []
        self.leaving = False
        self.pair.network.alive["bob"] = True
        data, meta = dial(self.pair, "d", self.heard), dial(self.pair, "m", self.heard)
        self.link = data, meta
        data.channel.send(
            encode_h80(Command.CONNECTION_FEATURES, Features(86, KERNEL_FLAGS, 101, 0))
        )
        self._until(lambda: bool(self.waiting[Command.CONNECTION_FEATURES, 0]), "its features")

    def _part(self) -> None:
        if self.link is None:
            return
        for end in self.link:
            end.channel.close()
        self.link = None
        self.pair.run_until(lambda: self.alice.r.link is None)

    def _work_apart(self, session: Session, number: int) -> None:
        """Promoted, written and demoted without the peer, as far as what it says later shows it."""
        word = recording.first_state(session, self.node, number)
        uuids = next((s.packet for s in session.of(self.node, Command.UUIDS)), None)
        if word is None or not isinstance(uuids, Uuids) or not uuids.dirty_bits:
            return
        volume = self.alice.volume(number)
        if volume.store is None or volume.store.bitmap.weight == uuids.dirty_bits:
            return
        self._command(lambda done: self.alice.r.primary(False, done))
        for block, data in self._written_apart(session, number, uuids.dirty_bits):
            self.alice.write(block * BLOCK, data, volume=number)
        if StateWord.unpack(word).role is Role.Secondary:
            self._command(self.alice.r.secondary)

    def _written_apart(self, session: Session, number: int, count: int) -> list[tuple[int, bytes]]:
        """So many blocks of the bitmap of this session or, if it was refused, of the next. A target
        sends its own marks and its source's: those that are not the source's come first, and what it
        had in the others nobody has seen."""
        for later in self.sessions[self.sessions.index(session) :]:
            blocks = recording.marked_blocks(later, self.node, number)
            if blocks is not None:
                peers = recording.marked_blocks(later, self.peer, number) or []
                blocks = sorted(blocks, key=set(peers).__contains__)[:count]
                own = recording.sent_blocks(later, self.node, number)
                got = recording.sent_blocks(later, self.peer, number)
                images = {block: self._as_peer(number, block) for block in blocks}
                images |= dict.fromkeys(got, GIVEN_UP) | own
                return [(block, images[block]) for block in blocks]
        return []

    def _as_peer(self, number: int, block: int) -> bytes:
        """A block that was marked but never sent: a checksum had shown that the peer has the same."""
        return bytes(self.images[number][block * BLOCK : (block + 1) * BLOCK])

    # --- what the kernel says -----------------------------------------------------------------

    def _deliver(self, step: Step) -> None:
        packet, command = step.packet, step.command
        self.leaving = self.leaving or command == Command.CONN_ST_CHG_REQ
        if command in QUIET | SERVED:
            return
        if command in WRITES:
            self._keep(step.volume, packet)
        raw = step.recorded.raw
        if command in ACKS | {Command.DATA_REPLY}:
            assert isinstance(packet, BlockAck | Data)
            mine = packet._replace(block_id=self.ids[packet.block_id])
            raw = encode(step.volume, Command(command), mine)
        self._send(step.socket, raw)
        if command in ACKS and isinstance(packet, BlockAck):
            self._acknowledged(self.ids[packet.block_id])
        self.pair.run(0.002)

    def _keep(self, number: int, packet: Packet) -> None:
        """The kernel writes to its own disk what it sends."""
        if isinstance(packet, Data):
            data = packet.data
        else:
            assert isinstance(packet, Trim)
            data = bytes(packet.size)
        self.images[number][packet.sector * 512 : packet.sector * 512 + len(data)] = data

    def _send(self, letter: str, raw: bytes) -> None:
        assert self.link is not None
        self.link[letter == "m"].channel.send(raw)

    def _answer(self, number: int, command: Command, packet: Packet) -> None:
        letter = "m" if command in (Command.BARRIER_ACK, Command.RS_IS_IN_SYNC) else "d"
        self._send(letter, encode(number, command, packet))

    # --- what the engine says -----------------------------------------------------------------

    def heard(self, _letter: str, frame: Frame) -> None:
        command = frame.command
        algorithm = self.pair.net.data_integrity_alg
        size = digests.digest_size(algorithm) if algorithm else 0
        packet = decode(command, frame.payload, digest_size=size)
        if command == Command.CONNECTION_FEATURES and self.link is not None:
            for end in self.link:
                end.reader.switch_to_h100(extensions=False)
        self._serve(frame.volume, command, packet)
        if command not in FREE or command == Command.CONNECTION_FEATURES:
            self.waiting[command, frame.volume].append(packet)

    def _serve(self, number: int, command: int, packet: Packet) -> None:
        """Answer at once what the engine asks in its own way."""
        if command == Command.PING:
            self._send("m", encode(0, Command.PING_ACK, Empty()))
        elif command == Command.RS_DATA_REPLY:
            self._keep(number, packet)
        elif isinstance(packet, Data | Trim) and command in WRITES:
            self._keep(number, packet)
            self.epoch += 1
            if self.pair.net.protocol != "A":
                self.unacknowledged.append(packet.block_id)
        elif isinstance(packet, Barrier):
            self.barriers.append((packet.barrier, self.epoch, self.unacknowledged))
            self.epoch, self.unacknowledged = 0, []
            self._acknowledge_barriers()
        elif isinstance(packet, BlockRequest) and command in FREE:
            self._serve_resync(number, command, packet)

    def _acknowledged(self, block_id: int) -> None:
        for waiting in (*(ids for _number, _writes, ids in self.barriers), self.unacknowledged):
            if block_id in waiting:
                waiting.remove(block_id)
                break
        self._acknowledge_barriers()

    def _acknowledge_barriers(self) -> None:
        while self.barriers and not self.barriers[0][2]:
            number, writes, _ids = self.barriers.pop(0)
            self._answer(0, Command.BARRIER_ACK, BarrierAck(number, writes))

    def _serve_resync(self, number: int, command: int, wanted: BlockRequest) -> None:
        start = wanted.sector * 512
        data = bytes(self.images[number][start : start + wanted.blksize])
        first, end = start // BLOCK, -(-(start + wanted.blksize) // BLOCK)
        self.copied[number].update(range(first, end))
        if command == Command.CSUM_RS_REQUEST:
            algorithm = self.pair.net.csums_alg
            if digests.digest(algorithm, data) == wanted.digest:
                ack = BlockAck(wanted.sector, wanted.block_id, wanted.blksize, 0)
                self._answer(number, Command.RS_IS_IN_SYNC, ack)
                return
        elif command == Command.RS_THIN_REQ and not any(data):
            self._answer(number, Command.RS_DEALLOCATED, BlockDesc(wanted.sector, wanted.blksize))
            return
        algorithm = self.pair.net.data_integrity_alg
        digest = digests.digest(algorithm, data) if algorithm else b""
        reply = Data(wanted.sector, wanted.block_id, 0, 0, digest, data)
        self._answer(number, Command.RS_DATA_REPLY, reply)

    # --- what the recorded node said ----------------------------------------------------------

    def _expect(self, step: Step) -> None:
        command, packet = step.command, step.packet
        self._initiative(step)
        if command == Command.UUIDS and self.leaving:
            return  # a kernel has named its next generation before the connection is closed
        if command in FREE or command == Command.SYNC_PARAM89 and self._not_its_own(step):
            return
        queue = self.waiting[command, step.volume]
        wanted = comparable(packet)

        def has_come() -> bool:
            if command == Command.STATE:
                # The engine reports its state more often than a kernel; no report may be missing.
                while queue and comparable(queue[0]) != wanted:
                    queue.pop(0)
            return bool(queue)

        self._until(has_come, f"{Command(command).name} {wanted}"[:200])
        if command in (Command.RS_DATA_REPLY, Command.OV_REPLY):
            self.pair.run(0.05)
        found = queue.pop(self._which(queue, packet))
        if command in WRITES | {Command.DATA_REQUEST}:
            assert isinstance(packet, Data | Trim | BlockRequest)
            assert isinstance(found, Data | Trim | BlockRequest)
            self.ids[packet.block_id] = found.block_id
        if isinstance(found, SyncUuid) and self._after_a_new_generation(step, found):
            return
        assert comparable(found) == wanted, (
            f"{self.name}, {self.node}: {Command(command).name}: expected as the kernel {wanted}, "
            f"found {comparable(found)}"
        )

    def _after_a_new_generation(self, step: Step, found: SyncUuid) -> bool:
        """A Primary that is to serve an equal copy takes a new generation first, as a kernel does
        not: the name of its resync is derived from the one before, instead of drawn."""
        told = self.waiting[Command.UUIDS, step.volume][-1:]
        return any(isinstance(u, Uuids) and u.bitmap + SYNC_STEP == found.uuid for u in told)

    def _not_its_own(self, step: Step) -> bool:
        """The recorded node's rates were changed while connected, or are those that a kernel took
        over from its peer at the connection before: they do not concern the engine."""
        session = next(x for x in self.sessions if step in x.steps)
        if step is not next(session.of(self.node, Command.SYNC_PARAM89)):
            return True
        before = self.sessions[: self.sessions.index(session)]
        told = [one.packet for x in before for one in x.of(self.peer, Command.SYNC_PARAM89)]
        own = recording.parameters(self.sessions[0], self.node)[1]
        return step.packet in told and step.packet != own

    def _which(self, queue: list[Packet], wanted: Packet) -> int:
        """What disks answer may come in another order: they finish when they like."""
        same = [i for i, packet in enumerate(queue) if comparable(packet) == comparable(wanted)]
        return same[0] if same and isinstance(wanted, BlockAck | Data | BlockRequest) else 0

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            self.pair.run_until(condition, EXPECT_SECONDS)
        except AssertionError as error:
            sent = {key: value for key, value in self.waiting.items() if value}
            raise AssertionError(
                f"{self.name}: the engine in the place of {self.node} did not send {what}\n"
                f"it has sent besides: {sent}\n{error}"
            ) from error

    # --- what an administrator or an application did -------------------------------------------

    def _initiative(self, step: Step) -> None:
        packet, engine = step.packet, self.alice.r
        volume = self.alice.volume(step.volume)
        if isinstance(packet, StateRequest):
            self._state_request(step, packet)
        elif isinstance(packet, StateReport):
            word = StateWord.unpack(packet.word)
            if word.role is Role.Secondary and engine.role is Role.Primary:
                self._order(engine.secondary)
            if word.user_isp is not volume.state.user_isp:
                change = engine.pause_sync if word.user_isp else engine.resume_sync
                self._order(lambda done: change(step.volume, done))
        elif isinstance(packet, Uuids) and packet.flags & SKIP_SYNC:
            self._order(lambda done: engine.new_current_uuid(step.volume, True, done))
        elif isinstance(packet, Sizes) and volume.state.disk is Disk.Diskless:
            self._order(lambda done: self.alice.attach(step.volume, done) and None)
        elif step.command in WRITES | {Command.DATA_REQUEST}:
            self._application(step)

    def _state_request(self, step: Step, packet: StateRequest) -> None:
        engine, number = self.alice.r, step.volume
        conn = Conn(packet.val >> CONN_SHIFT & CONN_MASK)
        disk = Disk(packet.val >> DISK_SHIFT & DISK_MASK)
        if packet.mask & 3:
            force = bool(packet.mask >> DISK_SHIFT & DISK_MASK)
            self._order(lambda done: engine.primary(force, done))
        elif packet.mask >> DISK_SHIFT & DISK_MASK and disk is Disk.Failed:
            self._order(lambda done: engine.detach(number, False, done))
        elif conn is Conn.Disconnecting:
            self._order(lambda done: engine.disconnect(False, done))
        elif conn is Conn.VerifyS:
            self._order(lambda done: engine.verify(number, None, None, done))
        elif conn is Conn.StartingSyncT:
            self._order(lambda done: engine.invalidate(number, done))
        elif conn is Conn.StartingSyncS:
            self._order(lambda done: engine.invalidate_remote(number, done))
        else:
            raise AssertionError(f"{self.name}: unknown request {packet}")

    def _application(self, step: Step) -> None:
        volume, packet = self.alice.volume(step.volume), step.packet
        done = self._io_done
        if isinstance(packet, Data):
            fua = bool(packet.dp_flags & DpFlags.FUA)
            volume.write(packet.sector * 512, packet.data, fua, done)
        elif isinstance(packet, Trim) and step.command == Command.TRIM:
            volume.trim(packet.sector * 512, packet.size, False, done)
        elif isinstance(packet, Trim):
            volume.zero(packet.sector * 512, packet.size, False, False, done)
        elif isinstance(packet, BlockRequest):
            volume.read(packet.sector * 512, packet.blksize, lambda errno, _data: done(errno))
        self.orders += 1

    def _io_done(self, errno: int) -> None:
        self.answers.append(ReplicatorError(f"errno {errno}") if errno else None)

    def _order(self, command: Callable[[Callable[[ReplicatorError | None], None]], object]) -> None:
        """Ordered now; that it succeeded is looked at when all is over."""
        self.orders += 1
        command(self.answers.append)

    def _command(self, command: Callable[[Callable[[ReplicatorError | None], None]], None]) -> None:
        self.alice.do(command)


def comparable(packet: Packet) -> object:
    """What has to agree. Left out:
    - sequence numbers, block IDs (found by them already) and hints in flags; a write with FUA: a
      kernel passes the flag on, the engine closes the epoch, so that the peer flushes;
    - what the disk of the recording's machine had to say about itself;
    - bit 0 of a resync's name, also in the history, which no comparison looks at;
    - the base of "skip the first synchronisation", which the receiver does not look at;
    - the digests of the blocks that were damaged in `verify`: the recording has no content for them;
    - the mark of a crashed Primary: a kernel also sets it when a Primary attaches a disk again that
      it had given up in good order.
    """
    if isinstance(packet, Data):
        return packet.sector, packet.data
    if isinstance(packet, Trim):
        return packet.sector, packet.size
    if isinstance(packet, BlockAck):
        verdict = packet.block_id if packet.block_id in VERDICTS else 0
        return packet.sector, packet.blksize, verdict
    if isinstance(packet, SyncUuid):
        return packet.uuid & ~ROLE_MARK
    if isinstance(packet, Uuids):
        base = 0 if packet.flags & SKIP_SYNC else packet.bitmap
        return packet._replace(
            bitmap=base,
            history0=packet.history0 & ~ROLE_MARK,
            history1=packet.history1 & ~ROLE_MARK,
            flags=packet.flags & ~CRASHED,
        )
    if isinstance(packet, BlockRequest):
        damaged = packet.sector * 512 // BLOCK in DAMAGED
        return packet.sector, packet.blksize, b"" if damaged else packet.digest
    if isinstance(packet, Sizes):
        return packet.d_size, packet.u_size, packet.c_size, packet.dds_flags
    if isinstance(packet, StateReport):
        return _words(StateWord.unpack(packet.word))
    return packet


def _words(state: StateWord) -> str:
    """A kernel still calls its connection WFConnection in the first report of a handshake."""
    conn = Conn.WFReportParams if state.conn is Conn.WFConnection else state.conn
    flags = [name for name in state._fields[5:] if getattr(state, name)]
    names = (state.role, state.peer, conn, state.disk, state.pdsk)
    return " ".join([*(one.name for one in names), *flags])


def blocks_copied_by(session: Session, node: str, volume: int) -> set[int]:
    """The blocks that the recorded node acknowledged, or found equal, as target of a resync."""
    found: set[int] = set()
    peer = BETA if node == ALPHA else ALPHA
    acks = [*session.of(node, Command.RS_WRITE_ACK), *session.of(peer, Command.RS_IS_IN_SYNC)]
    for step in acks:
        packet = step.packet
        if step.volume == volume and isinstance(packet, BlockAck):
            start = packet.sector * 512
            found.update(range(start // BLOCK, -(-(start + packet.blksize) // BLOCK)))
    return found & set(range(DEVICE_BITS))
