"""The sending side of mirrored writes, for all volumes of a resource: framing, epochs, acknowledgements,
and reads that the peer serves.

Rules:
1. A write is framed once and queued; it stays in the transfer log until its barrier is acknowledged.
2. An acknowledgement that matches nothing ends the connection.
3. When the connection ends, every write still in the log counts as not stable at the peer.
4. A kernel carries out the writes of one epoch in any order: towards one, overlapping writes are in
   different epochs, which it keeps apart. (A replicator keeps the order of overlapping writes itself.)
What this file must not know: local disks, how packets reach the other side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import EIO
from typing import TYPE_CHECKING, Final

from protocol import digests
from protocol.errors import WireError
from protocol.packets import (
    Barrier,
    BarrierAck,
    BlockAck,
    Command,
    Data,
    DpFlags,
    Trim,
    block_request,
    data_header,
    data_packet,
    encode,
)
from protocol.states import Conn, Disk
from replicator.engine.congestion import Congestion
from replicator.engine.ports import ReadDone, Timer
from replicator.engine.requests import MAX_DATA, Kind, Part, Write
from replicator.engine.transfer_log import Epoch, LogMismatch, TransferLog

if TYPE_CHECKING:
    from replicator.engine.link import Link
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

EPOCH_AGE_MAX = 0.5
"""Seconds after which an epoch with writes is closed without a flush, to bound the log."""
EPOCH_BYTES_MAX = 64 << 20
NOT_QUEUED = 1 << 63
"""Stream position of what waits until a bitmap has been sent."""

JOIN_MAX: Final = 16 * 1024
"""Bytes of data that are copied into one buffer with their header: cheaper than two buffers."""

ACK_FLAGS: Final = {"A": 0, "B": int(DpFlags.SEND_RECEIVE_ACK), "C": int(DpFlags.SEND_WRITE_ACK)}
DATA: Final = int(Command.DATA)
WRITE: Final = Kind.WRITE
UP_TO_DATE: Final = Disk.UpToDate
NEG_ACK: Final = int(Command.NEG_ACK)


class RemoteRead:
    """A read in flight to the peer; parts of at most 1 MiB are joined in order."""

    __slots__ = ("done", "errno", "left", "parts")

    def __init__(self, parts: int, done: ReadDone) -> None:
        self.done = done
        self.left = parts
        self.parts: list[bytes] = [b""] * parts
        self.errno = 0

    def part(self, index: int, errno: int, data: bytes) -> None:
        self.parts[index] = data
        self.errno = self.errno or errno
        self.left -= 1
        if not self.left:
            self.done(self.errno, b"" if self.errno else b"".join(self.parts))


class _ReadPart:
    __slots__ = ("index", "length", "read", "sector", "since", "volume")

    def __init__(
        self,
        volume: Volume,
        sector: int,
        length: int,
        read: RemoteRead,
        index: int,
        since: float,
    ) -> None:
        self.since = since
        self.volume = volume
        self.sector = sector
        self.length = length
        self.read = read
        self.index = index


class Replication:
    """One per resource; `link` is set while parameters have been agreed with a peer."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        net = resource.settings.net
        self.epoch_per_completion = resource.settings.epoch_per_completion
        self._protocol = net.protocol
        self._integrity = net.data_integrity_alg
        self.log = TransferLog(net.max_epoch_size)
        self.congestion = Congestion(resource)
        self._epoch_bytes_max = self.congestion.epoch_bytes or EPOCH_BYTES_MAX
        self.link: Link | None = None
        self._next_id = 1
        self._epoch_timer: Timer | None = None
        self._epoch_bytes = 0
        self._epoch_blocks: set[int] = set()
        """4 KiB blocks that the current epoch writes, where the peer is a kernel; see rule 4."""
        self._unsent: deque[Write] = deque()
        self.waiting: deque[Callable[[], None]] = deque()
        """Writes that wait for room in the log; see when_room()."""
        self._reads: dict[int, _ReadPart] = {}

    # --- sending ------------------------------------------------------------------------------

    def send_write(self, write: Write) -> None:
        """Put the write into the current epoch and on its way."""
        link, volume = self.link, write.volume
        assert link is not None
        if not link.peer_extension:
            self._keep_apart(write)
        epoch = self.log.current
        if epoch.writes:
            self.log.add(write)
        else:
            self._arm_epoch_timer()
            self.log.add(write, self._resource.clock.now())
        # Where the local copy cannot be read the peer has to have it before it is read there.
        both_good = volume.state.pdsk is volume.state.disk is UP_TO_DATE
        flags = ACK_FLAGS[self._protocol if both_good else "C"]
        write.block_id = self._take_id()
        volume.sequence = (volume.sequence + 1) & 0xFFFFFFFF
        self._send_packet(link, write, flags)
        volume.counters.sent += write.nsectors if write.kind is WRITE else 0
        if flags:
            self.log.by_id[write.block_id] = write
        else:
            write.stream_end = NOT_QUEUED if link.holding else link.data.channel.queued
            self._unsent.append(write)
        if (
            len(epoch.writes) >= self.log.max_epoch_size
            or self._epoch_bytes >= self._epoch_bytes_max
            or (write.kind is not WRITE and not link.peer_extension)
        ):
            self.close_epoch()
        if self.congestion.watching:
            self.congestion.sent(write)

    @property
    def full(self) -> bool:
        """New writes have to wait, see when_room()."""
        return bool(self.waiting) or self.log.full

    def when_room(self, go: Callable[[], None]) -> None:
        """Run `go` when the peer has made enough stable, or is lost: in the order of asking. Bounded
        by what the front end has under way."""
        self.waiting.append(go)

    def _let_wait_no_more(self) -> None:
        waiting, self.waiting = self.waiting, deque()
        while waiting and not self.log.full:
            waiting.popleft()()
        self.waiting.extendleft(reversed(waiting))

    def _send_packet(self, link: Link, write: Write, flags: int) -> None:
        volume = write.volume
        if write.kind is WRITE:
            data = write.data
            length = len(data)
            self._epoch_bytes += length
            if length <= JOIN_MAX and not self._integrity and isinstance(data, bytes):
                link.send_data(
                    data_packet(
                        volume.number, write.sector, write.block_id, volume.sequence, flags, data
                    )
                )
                return
            digest = digests.digest(self._integrity, data) if self._integrity else b""
            header = data_header(
                volume.number,
                DATA,
                write.sector,
                write.block_id,
                volume.sequence,
                flags,
                digest,
                length,
            )
            if length <= JOIN_MAX:
                link.send_data(header + data)
            else:
                link.send_data(header)
                link.send_data(data)
            return
        # Where the peer did not agree on ZEROES, TRIM is defined to read as zeroes.
        zeroes = link.with_zeroes and write.kind is not Kind.TRIM
        if zeroes:
            flags |= DpFlags.ZEROES
            if write.kind is Kind.ZERO_UNMAP:
                flags |= DpFlags.DISCARD
        else:
            flags |= DpFlags.DISCARD
        packet = Trim(write.sector, write.block_id, volume.sequence, flags, write.nsectors << 9)
        link.send_data(encode(volume.number, Command.ZEROES if zeroes else Command.TRIM, packet))

    def _take_id(self) -> int:
        number = self._next_id
        self._next_id = number + 1
        return number

    # --- epochs -------------------------------------------------------------------------------

    def _keep_apart(self, write: Write) -> None:
        """Rule 4. What zeroes or trims, maybe much, has an epoch of its own."""
        base = write.volume.number << 56 | write.sector >> 3
        count = (write.sector + write.nsectors - 1 >> 3) - (write.sector >> 3) + 1
        blocks = range(base, base + count) if write.kind is Kind.WRITE else range(0)
        if write.kind is not Kind.WRITE or not self._epoch_blocks.isdisjoint(blocks):
            self.close_epoch()
        self._epoch_blocks.update(blocks)

    def close_epoch(self) -> None:
        """Close the current epoch and send its barrier; nothing if it has no writes."""
        epoch = self.log.close_epoch()
        self._epoch_bytes = 0
        self._epoch_blocks.clear()
        if self._epoch_timer is not None:
            self._epoch_timer.cancel()
            self._epoch_timer = None
        if epoch is not None and self.link is not None:
            self.link.send_data(encode(0, Command.BARRIER, Barrier(epoch.number)))

    def when_stable(self, then: Callable[[], None]) -> None:
        """Run `then` when the peer has all that was sent so far on stable storage, or is lost."""
        self.close_epoch()
        if not self.log.wait_stable(lambda _stable: then()):
            self._resource.soon(then)

    def when_range_stable(
        self, volume: Volume, sector: int, nsectors: int, then: Callable[[], None]
    ) -> None:
        """Run `then` when the peer has what was written to that range on stable storage, or is lost;
        at once if nothing of it is under way."""
        end = sector + nsectors
        for write in self.log.writes:
            here = write.sector < end and sector < write.sector + write.nsectors
            if here and write.volume is volume:
                self.when_stable(then)
                return
        then()

    def use_protocol(self, protocol: str) -> None:
        """A, B or C for the writes from here on."""
        self._protocol = protocol

    def completed_in(self, epoch: Epoch) -> None:
        """`epoch-per-completion`: a write of this epoch was completed, so the next is another one."""
        if epoch is self.log.current:
            self.close_epoch()

    def _arm_epoch_timer(self) -> None:
        def old() -> None:
            self._epoch_timer = None
            self.close_epoch()

        if self._epoch_timer is None:
            self._epoch_timer = self._resource.clock.call_later(EPOCH_AGE_MAX, old)

    def flush_peer(self, volume: Volume, done: Callable[[bool], None]) -> bool:
        """Close the epoch; under C (or without a usable local disk) `done(stable)` when the peer has
        it all on stable storage. False: nothing to wait for, as with a copy that does not count.

        The target of a resync is waited for, too, though its copy vouches for nothing: it may be
        complete before we hear of it, and must not show what follows the flush without what came before."""
        self.close_epoch()
        if self.link is None:
            return False
        alone = volume.state.disk is not Disk.UpToDate
        if not (alone or self._protocol == "C"):
            return False
        if volume.state.conn is Conn.SyncSource:
            return self.log.wait_stable(lambda _stable: done(False))
        if volume.state.pdsk is not Disk.UpToDate:
            return False
        if self.log.wait_stable(done):
            return True
        if alone:
            self._resource.soon(lambda: done(True))
        return alone

    # --- what the peer answers ----------------------------------------------------------------

    def acknowledged(self, volume: Volume, command: int, sector: int, block_id: int) -> None:
        """RECV_ACK, WRITE_ACK, RS_WRITE_ACK or NEG_ACK for a mirrored write."""
        write = self.log.by_id.pop(block_id, None)
        if write is None or write.sector != sector or write.volume is not volume:
            raise WireError(
                f"{Command(command).name} for id {block_id:#x}, sector {sector} of volume "
                f"{volume.number}: no such write is outstanding"
            )
        if command == NEG_ACK:
            self._refused(write)
        else:
            volume.application.acknowledged(write)

    def _refused(self, write: Write) -> None:
        """The peer could not write it. Its disk will not count as UpToDate any more, but that news
        may come later: before this is completed the data here needs a name of its own."""
        volume = write.volume
        write.net = Part.FAILED
        write.marked = volume.resync_source.target_refused(write.sector, write.nsectors)
        if volume.state.disk is volume.state.pdsk is Disk.UpToDate:
            volume.new_generation()
        volume.application.progress(write)

    def negative_without_request(self, volume: Volume, ack: BlockAck) -> None:
        """NEG_ACK for a write that asked for no acknowledgement (protocol A) or had one (B)."""
        for write in self.log.writes:
            if write.block_id == ack.block_id and write.volume is volume:
                self._refused(write)
                return
        volume.resync_source.target_refused(ack.sector, ack.blksize >> 9)

    def barrier_acknowledged(self, ack: BarrierAck) -> None:
        try:
            epoch = self.log.acknowledged(ack.barrier, ack.set_size)
        except LogMismatch as error:
            raise WireError(str(error)) from error
        for write in epoch.writes:
            write.volume.application.stable_at_peer(write)
        for waiter in epoch.waiters:
            waiter(True)
        if self.congestion.watching:
            self.congestion.stable(epoch)
        if self.waiting:
            self._let_wait_no_more()

    def sent(self, position: int) -> None:
        """Protocol A: what the system has taken is complete."""
        unsent = self._unsent
        link = self.link
        if unsent and unsent[-1].stream_end == NOT_QUEUED and link is not None and not link.holding:
            # It has been queued since, so by now everything is.
            for write in unsent:
                write.stream_end = min(write.stream_end, link.data.channel.queued)
        while unsent and unsent[0].stream_end <= position:
            write = unsent.popleft()
            if write.net is Part.PENDING:
                write.net = Part.OK
                write.volume.application.progress(write)

    # --- reads served by the peer -------------------------------------------------------------

    def read_from_peer(self, volume: Volume, offset: int, length: int, done: ReadDone) -> None:
        """done(errno, data); EIO where the peer has no UpToDate data either."""
        link = self.link
        if link is None or volume.state.pdsk is not Disk.UpToDate:
            self._resource.soon(lambda: done(EIO, b""))
            return
        starts = range(0, length, MAX_DATA)
        read = RemoteRead(len(starts), done)
        for index, start in enumerate(starts):
            count = min(MAX_DATA, length - start)
            now = self._resource.clock.now()
            part = _ReadPart(volume, (offset + start) >> 9, count, read, index, now)
            number = self._take_id()
            self._reads[number] = part
            link.send_data(
                block_request(volume.number, Command.DATA_REQUEST, part.sector, number, count)
            )

    def data_reply(self, volume: Volume, reply: Data) -> None:
        part = self._take_read(volume, reply.block_id, reply.sector)
        if len(reply.data) != part.length:
            raise WireError(
                f"DATA_REPLY for sector {part.sector}: expected {part.length} bytes, "
                f"found {len(reply.data)}"
            )
        volume.counters.received += part.length >> 9
        part.read.part(part.index, 0, reply.data)

    def read_refused(self, volume: Volume, ack: BlockAck) -> None:
        part = self._take_read(volume, ack.block_id, ack.sector)
        part.read.part(part.index, EIO, b"")

    def _take_read(self, volume: Volume, number: int, sector: int) -> _ReadPart:
        part = self._reads.pop(number, None)
        if part is None or part.sector != sector or part.volume is not volume:
            raise WireError(f"answer to a read of sector {sector} that was never asked for")
        return part

    # --- the end ------------------------------------------------------------------------------

    def connection_lost(self) -> None:
        """Rule 3. The states of the volumes have already been changed."""
        self.link = None
        if self._epoch_timer is not None:
            self._epoch_timer.cancel()
            self._epoch_timer = None
        self._epoch_bytes = 0
        self._epoch_blocks.clear()
        self._unsent.clear()
        self.congestion.connection_lost()
        epochs = self.log.clear()
        for epoch in epochs:
            for write in epoch.writes:
                write.epoch = None
                write.net = Part.FAILED
                write.volume.write_cut_off(write.sector, write.nsectors)
                write.volume.application.progress(write)
        for epoch in epochs:
            for waiter in epoch.waiters:
                waiter(False)
        self._let_wait_no_more()
        reads, self._reads = self._reads, {}
        for part in reads.values():
            part.read.part(part.index, EIO, b"")

    def peer_disk_lost(self, volume: Volume) -> None:
        """The peer's disk failed: what it acknowledged but did not yet make stable may be gone."""
        for write in self.log.writes:
            if write.volume is volume:
                volume.mark_out_of_sync(write.sector, write.nsectors)

    def pending(self, volume: Volume) -> int:
        """Answers awaited from the peer for this volume: part of the `pe` counter."""
        return sum(1 for w in self.log.by_id.values() if w.volume is volume) + sum(
            1 for r in self._reads.values() if r.volume is volume
        )

    def overdue(self, now: float, limit: float) -> str:
        """What the peer has not answered for longer than `limit` seconds; "" if nothing."""
        oldest = self.log.oldest_wait()
        if oldest is not None and self.log.closed and now - oldest > limit:
            return f"a write or barrier is unanswered for {now - oldest:.0f} s"
        part = next(iter(self._reads.values()), None)
        if part is not None and now - part.since > limit:
            return f"a read is unanswered for {now - part.since:.0f} s"
        return ""
