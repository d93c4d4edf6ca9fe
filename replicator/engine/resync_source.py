"""The source's half of a resync: read what the target asks for, clear what it has made stable, and
end when it says that it is done.

Rules: as in `resync`. Reads take their turn with application writes (interval locks), so that an
answer is never older than a write that went out before it. Answers and acknowledgements do not say which
resync they belong to: the next one over a connection gets its name when none can be under way.
What this file must not know: how the target chooses what to ask for.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from protocol import digests
from protocol.errors import WireError
from protocol.packets import (
    SYNCER_ID,
    BlockAck,
    BlockDesc,
    BlockRequest,
    Command,
    data_header,
    encode,
)
from protocol.states import Conn, Disk, StateWord
from replicator.engine.block_answers import send_answer
from replicator.engine.handler_calls import BEFORE_SOURCE, before_resync
from replicator.engine.pacing import TICK, Pace, Reason
from replicator.engine.resync import SECTORS_PER_BIT, SOURCE
from replicator.engine.zeroes import is_zero

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Timer
    from replicator.engine.volume import Volume

STARTING = (Conn.WFBitMapS, Conn.StartingSyncS, Conn.Ahead)
REQUESTS_MAX = 4096
"""More requests than that at once is no peer that keeps to the protocol."""
READING_MAX = 32 << 20
UNSENT_MAX = 32 << 20
"""Bytes read at once for the peer, and bytes queued on the data socket above which no more is read."""


class ResyncSource:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.answering = 0
        """Requests of the peer that are being read here: part of the `ua` counter."""
        self._attempt = 0
        """Attempts to begin that are over, begun or broken off: what one of them has waited for, such
        as a slow flush, comes too late for the next."""
        self._finishing = False
        self._unasked = False
        """The two have agreed on a full sync while Connected, and the target has not asked for any
        block yet: what it reported before can still arrive, as its consent takes the other socket."""
        self._asked_in: tuple[Link, int] | None = None
        """The connection and the attempt that the queue and the counts belong to."""
        self._unfenced: Link | None = None
        """The connection by which the target has asked. On its other socket refusals, verdicts of equality
        and acknowledgements may be under way, of which none may arrive in the next resync."""
        self._queue: deque[tuple[int, BlockRequest]] = deque()
        self._reading = 0
        self._wake: Timer | None = None

    @property
    def _link(self) -> Link | None:
        return self._volume.resource.replication.link

    def start(self) -> None:
        """Both bitmaps are merged: begin, if the handler agrees."""
        volume, begin = self._volume, partial(self._begin, self._attempt)
        # The peer has to hear of a new generation before the name of the resync that serves it.
        before_resync(volume, BEFORE_SOURCE, lambda: volume.after_generation(begin))

    def state_changed(self, old: StateWord, new: StateWord) -> None:
        """The volume's state changed: an attempt to begin may be over."""
        if old.conn in STARTING and new.conn not in STARTING:
            self._attempt += 1
        if new.conn is not old.conn and new.conn not in SOURCE:
            self._unasked = new.conn is Conn.StartingSyncS

    def _begin(self, attempt: int) -> None:
        """Name the resync, durably, and announce it."""
        volume, link, store = self._volume, self._link, self._volume.store
        if store is None or attempt != self._attempt or volume.state.conn not in STARTING:
            return
        uuid = store.uuids.open_sync(volume.resource.random_uuid())

        def stable(errno: int) -> None:
            if not errno:
                volume.late_writes.when_none(store.data, flush)

        def flush() -> None:
            if attempt == self._attempt:
                store.data.flush(flushed)

        def flushed(errno: int) -> None:
            if errno:
                volume.local_io_error("flush before resync", 0, errno, store.data)
                return
            if self._link is not link or attempt != self._attempt:
                return
            if link is not None and link is self._unfenced:
                link.ping(fenced)
                return
            if volume.generation_pending:
                # This node was promoted meanwhile, and the target has not heard of that.
                volume.after_generation(partial(flushed, 0))
                return
            self._finishing = False
            volume.change(conn=Conn.SyncSource, pdsk=Disk.Inconsistent)
            volume.resync.begin()
            volume.log(
                "info", f"resync as source: {volume.resync.total * 4} KiB, sync UUID {uuid:016X}"
            )
            self._note_possible_end()
            volume.exchange.send_sync_uuid(uuid)

        def fenced() -> None:
            self._unfenced = None
            flushed(0)

        volume.write_superblock(stable)

    def got_request(self, command: int, request: BlockRequest) -> None:
        """RS_DATA_REQUEST, RS_THIN_REQ or CSUM_RS_REQUEST: read in turn with application writes, and
        answer."""
        volume, link = self._volume, self._link
        assert link is not None
        nsectors = request.blksize >> 9
        if request.sector + nsectors > volume.size_sectors:
            raise WireError(
                f"{Command(command).name} for sector {request.sector}, {request.blksize} bytes: "
                f"the volume has {volume.size_sectors} sectors"
            )
        self._unfenced = link
        if volume.data_disk is None or volume.state.disk < Disk.UpToDate:
            self._refuse(link, request)
            return
        asked_in = link, self._attempt
        if asked_in != self._asked_in:
            self._asked_in = asked_in
            self._queue.clear()
            self.answering = self._reading = 0
        if self.answering >= REQUESTS_MAX:
            raise WireError(f"more than {REQUESTS_MAX} resync requests at once")
        self.answering += 1
        self._unasked = False
        volume.peer_may_have_current = False
        if volume.state.susp_fen:
            # The target has made durable that it is Inconsistent: it cannot take over.
            volume.change(susp_fen=False)
        self._queue.append((command, request))
        self.answer_more()

    def answer_more(self) -> None:
        """Read for as many of the requests as memory and the link's queue allow."""
        if self._asked_in is None:
            return
        link, _attempt = asked_in = self._asked_in
        volume = self._volume
        courtesy, clock = volume.resource.courtesy, volume.resource.clock
        while self._queue and not link.closed:
            if self._reading >= READING_MAX or link.data.channel.unsent >= UNSENT_MAX:
                return
            if wait := courtesy.wait(volume.resync, clock.now()):
                if self._wake is None:
                    self._wake = clock.call_later(min(wait, TICK), self._woken)
                return
            command, request = self._queue.popleft()
            courtesy.take(clock.now(), request.blksize)
            self._reading += request.blksize
            # The data must not be older than a write of the peer that came before the request.
            volume.resource.after_peer_writes(partial(self._read, asked_in, command, request))

    def _woken(self) -> None:
        self._wake = None
        self.answer_more()

    def note_pace(self, pace: Pace) -> None:
        """Why the target does not get more at this moment, as far as it can be seen from here."""
        if self._wake is not None:
            pace.now = Reason.YIELDING
        elif self._asked_in is not None and self._asked_in[0].data.channel.unsent:
            pace.now = Reason.LINK
        else:
            pace.now = Reason.OWN_DISK if self._reading else Reason.PEER

    def _read(self, asked_in: tuple[Link, int], command: int, request: BlockRequest) -> None:
        """The answer goes out only in the resync that has asked: to a target that has begun anew
        since, over the same connection, it would be one too many."""
        link, attempt = asked_in
        volume, disk = self._volume, self._volume.data_disk
        thin = command == Command.RS_THIN_REQ
        nsectors = request.blksize >> 9
        holds: list[Hold] = []

        def ended() -> None:
            volume.locks.release(holds[0])
            if asked_in == self._asked_in:
                self.answering -= 1
                self._reading -= request.blksize
                self.answer_more()

        def go() -> None:
            if disk is None or volume.data_disk is not disk:
                ended()
                return
            read = disk.read_unless_hole if thin else disk.read
            read(request.sector << 9, request.blksize, loaded)

        def loaded(errno: int, data: bytes) -> None:
            if self._link is link and attempt == self._attempt and not link.closed:
                if errno:
                    self._refuse(link, request)
                    volume.resync.failed += -(-nsectors // SECTORS_PER_BIT)
                    volume.local_io_error("resync read", request.sector, errno, disk)
                elif thin and is_zero(data):
                    self._answer_zeroes(link, request)
                else:
                    self._answer(link, request, data)
            ended()

        hold = volume.locks.acquire(request.sector, request.sector + nsectors, go)
        holds.append(hold)
        if hold.granted:
            go()

    def _refuse(self, link: Link, request: BlockRequest) -> None:
        sector, size = request.sector, request.blksize
        send_answer(self._volume, link, Command.NEG_RS_DREPLY, sector, SYNCER_ID, size)

    def _answer_zeroes(self, link: Link, request: BlockRequest) -> None:
        desc = BlockDesc(request.sector, request.blksize)
        link.send_data(encode(self._volume.number, Command.RS_DEALLOCATED, desc))

    def _answer(self, link: Link, request: BlockRequest, data: bytes) -> None:
        volume = self._volume
        net = volume.resource.settings.net
        nsectors = request.blksize >> 9
        volume.counters.read += nsectors
        if request.digest and digests.digest(net.csums_alg, data) == request.digest:
            self._mark_in_sync(request.sector, nsectors)
            sector, size = request.sector, request.blksize
            send_answer(volume, link, Command.RS_IS_IN_SYNC, sector, SYNCER_ID, size)
            return
        integrity = net.data_integrity_alg
        digest = digests.digest(integrity, data) if integrity else b""
        volume.counters.sent += nsectors
        link.send_data(
            data_header(
                volume.number,
                Command.RS_DATA_REPLY,
                request.sector,
                SYNCER_ID,
                0,
                0,
                digest,
                len(data),
            )
        )
        link.send_data(data)

    def got_ack(self, command: int, ack: BlockAck) -> None:
        """RS_WRITE_ACK or NEG_ACK for resync data: the target has it on stable storage, or not."""
        volume = self._volume
        if volume.state.conn not in SOURCE:
            return
        if command == Command.NEG_ACK:
            volume.resync.failed += -(-(ack.blksize >> 9) // SECTORS_PER_BIT)
            return
        self._mark_in_sync(ack.sector, ack.blksize >> 9)
        volume.resync.advance_marks()
        volume.resource.changed()

    def target_refused(self, sector: int, nsectors: int) -> bool:
        """The peer could not write what came from an application. If it is a target that had been done
        by then, and its report takes the slower socket, these marks say nothing against that. True:
        they stay until a resync that begins later has copied what was written."""
        volume, bitmap = self._volume, self._volume.bitmap
        before = bitmap.weight if bitmap is not None else 0
        volume.mark_out_of_sync(sector, nsectors)
        if bitmap is not None and volume.state.conn in SOURCE:
            volume.resync.failed += bitmap.weight - before
            return False
        return bitmap is not None

    def _mark_in_sync(self, sector: int, nsectors: int) -> None:
        self._volume.mark_in_sync(sector, nsectors)
        self._note_possible_end()

    def _note_possible_end(self) -> None:
        """With nothing left to ask for the target may be done at any moment, unheard."""
        bitmap = self._volume.bitmap
        if bitmap is not None and bitmap.weight <= self._volume.resync.failed:
            self._volume.peer_may_have_current = True

    def target_gave_up(self) -> None:
        """The target has ended the resync although some blocks could not be copied: they stay
        marked, and its disk Inconsistent, until the next handshake."""
        volume = self._volume
        bits = volume.bitmap.weight if volume.bitmap is not None else 0
        volume.log("error", f"the peer ended the resync; {bits * 4} KiB are still marked")
        volume.change(conn=Conn.Connected, pdsk=Disk.Inconsistent)

    def target_is_done(self) -> bool:
        """The target reports the end. True: it is taken care of; its acknowledgements are all in."""
        volume, link = self._volume, self._link
        if self._unasked:
            return True
        assert volume.bitmap is not None and link is not None
        if volume.bitmap.weight > volume.resync.failed:
            link.fail(
                Conn.NetworkFailure,
                f"{volume.name}: the peer ended the resync, but {volume.bitmap.weight * 4} KiB "
                "are still marked here; connecting anew",
            )
            return True
        if not self._finishing:
            self._finishing = True
            link.ping(partial(self._source_fenced, self._attempt))
        return True

    def _source_fenced(self, attempt: int) -> None:
        """The target has seen every answer, and every acknowledgement of its is here."""
        self._unfenced = None
        volume, store = self._volume, self._volume.store
        if store is None or not self._goes_on(attempt):
            return

        def stable(errno: int) -> None:
            if self._goes_on(attempt):
                if not errno and store.bitmap.weight == 0:
                    store.uuids.close_tracking()
                    volume.exchange.peer_uuids = store.uuids.copy()
                volume.log("info", "resync done")
                # Also if this node cannot write it down: the other copy is the good one then.
                volume.change(conn=Conn.Connected, pdsk=Disk.UpToDate)
                if not errno:
                    volume.write_superblock()
                    volume.resource.fencing.lift(after_resync=True)
            if errno:
                volume.local_io_error("bitmap write", 0, errno, store.data)

        store.bitmaps.write_dirty(stable)

    def _goes_on(self, attempt: int) -> bool:
        """The resync that came of that attempt has not ended."""
        return attempt == self._attempt and self._volume.state.conn in SOURCE
