"""Reads for a peer whose own disk cannot serve them. One object per connection.

Rules:
1. A read shows every write that the peer has sent before it, also those it was not promised yet.
2. Memory is bounded: a peer that asks for more than it takes is sent away.
What this file must not know: what the peer's applications do with the data.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from protocol import digests
from protocol.errors import WireError
from protocol.packets import BlockRequest, Command, data_header
from protocol.states import Disk
from replicator.engine.block_answers import send_answer

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.ports import Disk as DiskPort
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

BYTES_MAX = 512 << 20
"""Being read or waiting to be sent. A block device with all its queues full asks for less."""


class PeerReads:
    def __init__(self, resource: Resource, link: Link) -> None:
        self._resource = resource
        self._link = link
        self._bytes = 0

    def serve(self, volume: Volume, request: BlockRequest) -> None:
        """DATA_REQUEST, checked for range by the caller: answer with data, or say no."""
        if self._bytes + self._link.data.channel.unsent > BYTES_MAX:
            raise WireError(f"DATA_REQUEST: more than {BYTES_MAX >> 20} MiB of reads at once")
        disk = volume.data_disk
        if disk is None or volume.state.disk is not Disk.UpToDate:
            self._refuse(volume, request)
            return
        self._bytes += request.blksize
        self._resource.after_peer_writes(partial(self._in_turn, volume, disk, request))

    def _in_turn(self, volume: Volume, disk: DiskPort, request: BlockRequest) -> None:
        """Behind the writes of this range that are under way."""
        holds: list[Hold] = []

        def read() -> None:
            if volume.data_disk is disk:
                disk.read(request.sector << 9, request.blksize, loaded)
                return
            volume.locks.release(holds[0])
            self._bytes -= request.blksize
            self._refuse(volume, request)

        def loaded(errno: int, data: bytes) -> None:
            volume.locks.release(holds[0])
            self._bytes -= request.blksize
            if self._link.closed:
                return
            if errno:
                volume.local_io_error("read for the peer", request.sector, errno, disk)
                self._refuse(volume, request)
            else:
                self._answer(volume, request, data)

        end = request.sector + (request.blksize >> 9)
        hold = volume.locks.acquire(request.sector, end, read)
        holds.append(hold)
        if hold.granted:
            read()

    def _answer(self, volume: Volume, request: BlockRequest, data: bytes) -> None:
        volume.counters.read += request.blksize >> 9
        volume.counters.sent += request.blksize >> 9
        algorithm = self._resource.settings.net.data_integrity_alg
        digest = digests.digest(algorithm, data) if algorithm else b""
        self._link.send_data(
            data_header(
                volume.number,
                Command.DATA_REPLY,
                request.sector,
                request.block_id,
                0,
                0,
                digest,
                len(data),
            )
        )
        self._link.send_data(data)

    def _refuse(self, volume: Volume, request: BlockRequest) -> None:
        sector, size = request.sector, request.blksize
        send_answer(volume, self._link, Command.NEG_DREPLY, sector, request.block_id, size)
