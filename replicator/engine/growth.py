"""A volume that grows while the nodes are connected: the kernel's administrator has raised its size.

Both nodes mark the new part and then copy it without exchanging bitmaps. Who is source follows from
the roles; of two equal ones it is the node that accepted the second connection.

Rules: the marks and the new size are durable before the peer is told; the peer starts on our answer.
What this file must not know: how the size was agreed (`exchange`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role

if TYPE_CHECKING:
    from replicator.engine.link import Link
    from replicator.engine.volume import Volume

FLAG_NO_RESYNC = 2
"""Of the SIZES packet: the administrator vouches that the new part is the same on both nodes."""


def answer_growth(volume: Volume, link: Link, flags: int) -> None:
    """The volume has its new size: make that durable, answer, and copy the new part."""
    store = volume.store
    assert store is not None

    def current() -> bool:
        return volume.store is store and volume.resource.replication.link is link

    def marked(errno: int) -> None:
        if errno:
            volume.local_io_error("bitmap write", 0, errno, store.data)
        elif current():
            volume.write_superblock(stable)

    def stable(errno: int) -> None:
        if errno or not current():
            return
        source = _is_source(volume, link)
        resync = not flags & FLAG_NO_RESYNC and _both_have_disks(volume)
        if resync and not source:
            volume.exchange.await_sync_uuid()
        volume.exchange.send_sizes(flags)
        if resync and source:
            volume.change(conn=Conn.StartingSyncS)
            volume.resync_source.start()

    store.bitmaps.write_dirty(marked)


def _is_source(volume: Volume, link: Link) -> bool:
    state = volume.state
    return link.arbiter if state.role is state.peer else state.role is Role.Primary


def _both_have_disks(volume: Volume) -> bool:
    state = volume.state
    return state.conn is Conn.Connected and min(state.disk, state.pdsk) >= Disk.Inconsistent
