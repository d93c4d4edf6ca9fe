"""The receiving side of mirrored writes: applied in stream order, acknowledged as asked, barriers
answered when everything before them is on stable storage. One object per connection.

Rules:
1. An epoch's writes may finish in any order among themselves. A later epoch starts only when the
   earlier one is stable, except under protocol C between two replicators: there nobody was told
   that an unfinished epoch is stable, so nothing can depend on it.
2. A barrier is acknowledged after all writes of its epoch have finished and a flush that began
   afterwards has ended; with the exact count of writes, failed ones included.
3. If a disk that took writes of an epoch is lost before that flush, the connection ends instead:
   the sender then marks everything that is not known to be stable.
4. When the connection ends, what has been started is finished, what waits for an earlier epoch is
   dropped: nobody was told that it had been received.
5. Memory is bounded: above `max-buffers` the data socket is not read.
What this file must not know: who decides roles and states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import EIO
from functools import partial
from typing import TYPE_CHECKING, Final

from protocol.packets import BarrierAck, Command, DpFlags, block_ack, encode
from protocol.states import Conn, Disk
from replicator.engine.activity_log import extents
from replicator.engine.requests import Kind

if TYPE_CHECKING:
    from replicator.engine.activity_log import ActivityLog
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Buffer
    from replicator.engine.ports import Disk as DiskPort
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

PAGE = 4096

SEND_RECEIVE_ACK: Final = int(DpFlags.SEND_RECEIVE_ACK)
SEND_WRITE_ACK: Final = int(DpFlags.SEND_WRITE_ACK)
RECV_ACK: Final = int(Command.RECV_ACK)
WRITE_ACK: Final = int(Command.WRITE_ACK)
NEG_ACK: Final = int(Command.NEG_ACK)
WRITE: Final = Kind.WRITE
INCONSISTENT: Final = Disk.Inconsistent


class PeerWrite:
    """A write that came over the link."""

    __slots__ = (
        "al",
        "block_id",
        "data",
        "disk",
        "epoch",
        "flags",
        "hold",
        "kind",
        "nsectors",
        "sector",
        "tracked",
        "volume",
    )

    def __init__(
        self,
        volume: Volume,
        kind: Kind,
        sector: int,
        nsectors: int,
        data: Buffer,
        block_id: int,
        flags: int,
        epoch: PeerEpoch,
    ) -> None:
        self.volume = volume
        self.kind = kind
        self.sector = sector
        self.nsectors = nsectors
        self.data = data
        self.block_id = block_id
        self.flags = flags
        self.epoch = epoch
        self.hold: Hold | None = None
        self.al: tuple[ActivityLog, int, int] | None = None
        self.disk: DiskPort | None = None
        self.tracked = volume.state.pdsk < INCONSISTENT
        """The sender had no disk when this came: the range is marked here, however it ends."""


class PeerEpoch:
    """Writes up to one barrier of the sender. `disks`: of each volume the first that took a write;
    if another has taken its place meanwhile, nobody can make that write stable any more."""

    __slots__ = ("active", "barrier", "count", "disks", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.active = 0
        self.barrier: int | None = None
        self.waiting: deque[PeerWrite | Callable[[], None]] = deque()
        """Writes that an earlier epoch keeps from starting, and what may only be done after them."""
        self.disks: dict[Volume, DiskPort] = {}

    @property
    def finished(self) -> bool:
        return self.barrier is not None and not self.active and not self.waiting


class PeerWrites:
    def __init__(self, resource: Resource, link: Link) -> None:
        self._resource = resource
        self._link = link
        net = resource.settings.net
        self._strict = False
        self.use_protocol(net.protocol)
        self._bytes_max = net.max_buffers * PAGE
        self.bytes_held = 0
        """Received and not written yet."""
        self._reading = True
        self._flushing = False
        self.epochs: deque[PeerEpoch] = deque([PeerEpoch()])
        self.unacknowledged: dict[Volume, int] = {}
        self._late: dict[Volume, DiskPort | None] = {}
        """Of volumes with writes under way when the connection ended: the disk that they are for."""

    def use_protocol(self, protocol: str) -> None:
        """Rule 1. Never less strict than before: what waits already has its turn to come."""
        self._strict = self._strict or protocol != "C" or not self._link.peer_extension

    # --- from the wire ------------------------------------------------------------------------

    def write(
        self,
        volume: Volume,
        kind: Kind,
        sector: int,
        nsectors: int,
        data: Buffer,
        block_id: int,
        flags: int,
    ) -> None:
        """A mirrored write, checked for range by the caller."""
        epoch = self.epochs[-1]
        epoch.count += 1
        write = PeerWrite(volume, kind, sector, nsectors, data, block_id, flags, epoch)
        self.unacknowledged[volume] = self.unacknowledged.get(volume, 0) + 1
        volume.counters.received += len(data) >> 9
        if write.tracked:
            # Not only when its turn comes: until then nothing may settle that relies on its mark.
            volume.tracked_writes[write] = None
        self.bytes_held += len(data)
        if self.bytes_held > self._bytes_max and self._reading:
            self._reading = False
            self._link.buffers_full(True)
        if self._strict and len(self.epochs) > 1:
            epoch.waiting.append(write)
        else:
            self._start(write)

    def connection_lost(self) -> None:
        """What waits for an earlier epoch will never be written."""
        dropped = [w for e in self.epochs for w in e.waiting if isinstance(w, PeerWrite)]
        for epoch in self.epochs:
            epoch.waiting.clear()
        for write in dropped:
            self.unacknowledged[write.volume] -= 1
            write.volume.tracked_writes.pop(write, None)
            write.volume.keep_superblock()
        for volume, count in self.unacknowledged.items():
            if count:
                self._late[volume] = disk = volume.data_disk
                volume.late_writes.begin(disk, count)

    def when_started(self, action: Callable[[], None]) -> None:
        """Run `action` once every write that has come so far is in line for its range."""
        if self._strict and len(self.epochs) > 1:
            self.epochs[-1].waiting.append(action)
        else:
            action()

    def barrier(self, number: int) -> None:
        """Closes the epoch of the writes before it."""
        self.epochs[-1].barrier = number
        self.epochs.append(PeerEpoch())
        self._advance()

    # --- one write ----------------------------------------------------------------------------

    def _start(self, write: PeerWrite) -> None:
        """From here on it will be written, also if the connection ends: so it counts as received."""
        write.epoch.active += 1
        if write.flags & SEND_RECEIVE_ACK:
            self._acknowledge(write, RECV_ACK)
        end = write.sector + write.nsectors
        locks = write.volume.locks
        write.hold = locks.take_free(write.sector, end)
        if write.hold is not None:
            self._activate(write)
            return
        hold = locks.acquire(write.sector, end, lambda: self._activate(write))
        write.hold = hold
        if hold.granted:
            self._activate(write)

    def _activate(self, write: PeerWrite) -> None:
        """Where the sender has no disk this copy is the only one: this node keeps the account."""
        if not write.tracked:
            self._submit(write)
            return
        volume = write.volume
        volume.track_for_peer()
        log = partial(self._log, write)
        # An extent that is hot already waits for no transaction, and so not for the superblock.
        volume.after_generation(partial(volume.when_indicated, log))

    def _log(self, write: PeerWrite) -> None:
        log = write.volume.activity_log
        if log is None:
            self._submit(write)
            return
        first, last = extents(write.sector, write.nsectors)
        if log.begin(first, last, partial(self._activated, write, log, first, last)):
            write.al = (log, first, last)
            self._submit(write)

    def _activated(
        self, write: PeerWrite, log: ActivityLog, first: int, last: int, errno: int
    ) -> None:
        if errno:
            write.volume.activity_log_failed(log, errno)
        else:
            write.al = (log, first, last)
        self._submit(write)

    def _submit(self, write: PeerWrite) -> None:
        disk = write.volume.data_disk
        if disk is None or (self._late and disk is not self._late[write.volume]):
            # Without a disk, or late and for one that is another by now.
            self._written(write, EIO)
            return
        write.disk = disk
        write.epoch.disks.setdefault(write.volume, disk)
        if write.kind is WRITE:
            disk.write(write.sector << 9, write.data, partial(self._written, write))
        else:
            disk.zero(
                write.sector << 9,
                write.nsectors << 9,
                write.kind is not Kind.ZERO,
                partial(self._written, write),
            )

    def _written(self, write: PeerWrite, errno: int) -> None:
        volume = write.volume
        assert write.hold is not None
        volume.locks.release(write.hold)
        write.hold = None
        if errno and write.disk is not None:
            volume.mark_out_of_sync(write.sector, write.nsectors)
            volume.local_io_error("write for the peer", write.sector, errno, write.disk)
        elif not errno:
            volume.counters.written += write.nsectors
            if write.tracked or volume.state.pdsk < INCONSISTENT:
                volume.mark_out_of_sync(write.sector, write.nsectors)
        if write.al is not None:
            log, first, last = write.al
            write.al = None
            log.end(first, last)
        if write.tracked:
            volume.tracked_writes.pop(write, None)
            volume.keep_superblock()
        if errno:
            self._acknowledge(write, NEG_ACK)
        elif write.flags & SEND_WRITE_ACK:
            self._acknowledge(write, WRITE_ACK)
        self.unacknowledged[volume] -= 1
        if self._late:
            volume.late_writes.end(self._late[volume])
        self._release_memory(len(write.data))
        write.epoch.active -= 1
        if write.epoch.barrier is not None:
            self._advance()

    def _acknowledge(self, write: PeerWrite, command: int) -> None:
        volume = write.volume
        volume.sequence = (volume.sequence + 1) & 0xFFFFFFFF
        self._link.send_meta(
            block_ack(
                volume.number,
                command,
                write.sector,
                write.block_id,
                write.nsectors << 9,
                volume.sequence,
            )
        )

    def _release_memory(self, count: int) -> None:
        self.bytes_held -= count
        if not self._reading and self.bytes_held <= self._bytes_max // 2 and not self._link.closed:
            self._reading = True
            self._link.buffers_full(False)

    # --- epochs -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Flush for as many finished epochs as there are in front, if nothing is being flushed."""
        if self._flushing or self._link.closed:
            return
        finished = 0
        disks: dict[Volume, DiskPort] = {}
        for epoch in self.epochs:
            if not epoch.finished:
                break
            finished += 1
            disks = {**epoch.disks, **disks}
        if finished and not self._fail_if_lost(disks):
            self._flush(finished, disks)

    def _fail_if_lost(self, disks: dict[Volume, DiskPort]) -> bool:
        for volume, disk in disks.items():
            if volume.data_disk is not disk:
                self._link.fail(
                    Conn.NetworkFailure,
                    f"volume {volume.number} lost its disk before the peer's writes were stable",
                )
                return True
        return False

    def _flush(self, finished: int, disks: dict[Volume, DiskPort]) -> None:
        self._flushing = True
        left = len(disks) + 1

        def flushed(volume: Volume | None, errno: int) -> None:
            nonlocal left
            if errno and volume is not None:
                volume.local_io_error("flush for the peer", 0, errno, disks[volume])
            left -= 1
            if not left:
                self._flushing = False
                self._stable(finished, disks)

        for volume, disk in disks.items():
            if volume.settings.disk.disk_flushes:
                disk.flush(partial(flushed, volume))
            else:
                self._resource.soon(partial(flushed, volume, 0))
        self._resource.soon(partial(flushed, None, 0))

    def _stable(self, finished: int, disks: dict[Volume, DiskPort]) -> None:
        if self._link.closed or self._fail_if_lost(disks):
            return
        for _ in range(finished):
            epoch = self.epochs.popleft()
            assert epoch.barrier is not None
            self._link.send_meta(
                encode(0, Command.BARRIER_ACK, BarrierAck(epoch.barrier, epoch.count))
            )
        self._start_waiting()
        self._advance()

    def _start_waiting(self) -> None:
        waiting = self.epochs[0].waiting
        while waiting:
            item = waiting.popleft()
            if isinstance(item, PeerWrite):
                self._start(item)
            else:
                item()
