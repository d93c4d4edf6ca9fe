"""How a sync target asks with `csums-alg`: it tells a digest of what it has, and gets only what differs.

Rule: the target reads in its turn with writes. One of an earlier connection that is still on its way
to the disk, or one of this that waits for an earlier epoch, would make different what was found equal
before it.
What this file must not know: what becomes of the answer (`resync`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol import digests
from protocol.packets import SYNCER_ID, Command, block_request

if TYPE_CHECKING:
    from replicator.engine.intervals import Hold
    from replicator.engine.link import Link
    from replicator.engine.volume import Volume


def ask_by_digest(
    volume: Volume,
    link: Link,
    sector: int,
    nsectors: int,
    algorithm: str,
    wanted: Callable[[], bool],
) -> None:
    """Read the range of sectors and ask for it, if it is still `wanted` by then. What cannot be read
    is asked for without a digest."""

    def read() -> None:
        disk = volume.data_disk
        if disk is None:
            volume.locks.release(holds[0])
        else:
            disk.read(sector << 9, nsectors << 9, answered)

    def answered(errno: int, data: bytes) -> None:
        volume.locks.release(holds[0])
        if not wanted():
            return
        command = Command.RS_DATA_REQUEST if errno else Command.CSUM_RS_REQUEST
        digest = b"" if errno else digests.digest(algorithm, data)
        link.send_data(
            block_request(volume.number, command, sector, SYNCER_ID, nsectors << 9, digest)
        )

    def lock() -> None:
        holds.append(volume.locks.acquire(sector, sector + nsectors, read))
        if holds[0].granted:
            read()

    holds: list[Hold] = []
    volume.resource.after_peer_writes(lock)
