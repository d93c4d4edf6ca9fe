"""Online verify, the answering half: digests of this node's copy, and the verdicts on them.

Rules: as in `verify`. An answer is of the content at its place in the stream of mirrored writes:
behind the writes of the peer that came before the request, and before those of this node that are
sent after it. A kernel that compares does not order its read with our next write, so as Primary this
node holds the range until the verdict.
What this file must not know: what is asked for next.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from protocol import digests
from protocol.errors import WireError
from protocol.packets import (
    IN_SYNC,
    SYNCER_ID,
    BlockAck,
    BlockRequest,
    Command,
    block_request,
)
from protocol.states import Conn, Disk, Role
from replicator.engine.block_answers import send_answer
from replicator.engine.pacing import TICK

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Timer
    from replicator.engine.volume import Volume

REQUESTS_MAX = 4096
"""More requests than that at once is no peer that keeps to the protocol."""
READING_MAX = 16 << 20
"""Bytes read at once for the peer."""


class VerifyTarget:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._queue: deque[BlockRequest] = deque()
        self._reading = 0
        self._held: dict[int, Hold] = {}
        """Ranges that wait for their verdict, by sector."""
        self._finishing = False
        self._wake: Timer | None = None

    @property
    def answering(self) -> int:
        """Requests that are not answered yet: part of the `ua` counter."""
        return len(self._queue) + len(self._held)

    def stop(self) -> None:
        """The run is over. Reads under way end by themselves."""
        self._queue.clear()
        held, self._held = self._held, {}
        self._reading = 0
        self._finishing = False
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        for hold in held.values():
            self._volume.resource.soon(partial(self._volume.locks.release, hold))

    def got_request(self, request: BlockRequest) -> None:
        """OV_REQUEST: the first of a run says where it starts. One that comes when this node has
        ended already (a kernel asks again for some blocks) is answered all the same."""
        volume = self._volume
        verify, link = volume.verify, verify_link(volume)
        nsectors = request.blksize >> 9
        if not volume.resource.settings.net.verify_alg:
            raise WireError("OV_REQUEST: verify-alg is not configured here")
        if request.sector + nsectors > volume.size_sectors:
            raise WireError(
                f"OV_REQUEST for sector {request.sector}, {request.blksize} bytes: "
                f"the volume has {volume.size_sectors} sectors"
            )
        if len(self._queue) >= REQUESTS_MAX:
            raise WireError(f"more than {REQUESTS_MAX} verify requests at once")
        if volume.data_disk is None or volume.state.disk is not Disk.UpToDate:
            sector, size = request.sector, request.blksize
            send_answer(volume, link, Command.NEG_RS_DREPLY, sector, SYNCER_ID, size)
            return
        if volume.state.conn is Conn.VerifyT and not verify.total:
            verify.expect(request.sector, volume.size_sectors)
        self._queue.append(request)
        self._answer_more()

    def _answer_more(self) -> None:
        resource, verify = self._volume.resource, self._volume.verify
        while self._queue and self._reading < READING_MAX:
            if wait := resource.courtesy.wait(verify, resource.clock.now()):
                if self._wake is None:
                    self._wake = resource.clock.call_later(min(wait, TICK), self._woken)
                return
            request = self._queue.popleft()
            resource.courtesy.take(resource.clock.now(), request.blksize)
            self._reading += request.blksize
            resource.after_peer_writes(partial(self._lock, request, verify.run))

    def _woken(self) -> None:
        self._wake = None
        self._answer_more()

    def _lock(self, request: BlockRequest, run: int) -> None:
        """The range's turn among writes; where a kernel asks, with nothing of it under way there."""
        volume = self._volume
        holds: list[Hold] = []

        def granted() -> None:
            link = volume.resource.replication.link
            read = partial(self._read, request, run, holds[0])
            if volume.state.role is Role.Primary and link is not None and not link.peer_extension:
                replication = volume.resource.replication
                replication.when_range_stable(volume, request.sector, request.blksize >> 9, read)
            else:
                read()

        end = request.sector + (request.blksize >> 9)
        holds.append(volume.locks.acquire(request.sector, end, granted))
        if holds[0].granted:
            granted()

    def _read(self, request: BlockRequest, run: int, hold: Hold) -> None:
        volume, disk = self._volume, self._volume.data_disk
        if run != volume.verify.run or disk is None:
            volume.locks.release(hold)
            return

        def loaded(errno: int, data: bytes) -> None:
            if errno:
                volume.local_io_error("verify read", request.sector, errno, disk)
            if run != volume.verify.run:
                volume.locks.release(hold)
                return
            self._reading -= request.blksize
            self._answer(request, hold, errno, data)
            self._answer_more()

        disk.read(request.sector << 9, request.blksize, loaded)

    def _answer(self, request: BlockRequest, hold: Hold, errno: int, data: bytes) -> None:
        volume, link = self._volume, verify_link(self._volume)
        algorithm = volume.resource.settings.net.verify_alg
        unreadable = bytes(digests.digest_size(algorithm))
        digest = unreadable if errno else digests.digest(algorithm, data)
        volume.counters.read += request.blksize >> 9
        link.send_data(
            block_request(
                volume.number,
                Command.OV_REPLY,
                request.sector,
                SYNCER_ID,
                request.blksize,
                digest,
            )
        )
        if link.peer_extension or volume.state.role is not Role.Primary:
            volume.locks.release(hold)
        else:
            self._held[request.sector] = hold

    def got_verdict(self, ack: BlockAck) -> None:
        """OV_RESULT: the verdict on an answer."""
        volume, verify = self._volume, self._volume.verify
        hold = self._held.pop(ack.sector, None)
        if hold is not None:
            volume.locks.release(hold)
        if ack.sector + (ack.blksize >> 9) > volume.size_sectors:
            raise WireError(f"OV_RESULT for sector {ack.sector}: outside the volume")
        equal = ack.block_id == IN_SYNC
        verify.compared(ack.sector, ack.blksize >> 9, equal=equal)
        if volume.state.conn is Conn.VerifyT and not verify.left and not self._finishing:
            self._finishing = True
            verify_link(volume).ping(partial(self._fenced, verify.run))

    def _fenced(self, run: int) -> None:
        if run == self._volume.verify.run:
            self.asker_is_done()

    def asker_is_done(self) -> None:
        """All blocks are counted, or the node that compares says that it has ended."""
        volume = self._volume
        if volume.state.conn is Conn.VerifyT:
            volume.verify.left = 0
            volume.verify.ended("done, as the peer says")
            volume.change(conn=Conn.Connected)


def verify_link(volume: Volume) -> Link:
    link = volume.resource.replication.link
    assert link is not None
    return link
