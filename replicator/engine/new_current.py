"""new-current-uuid: an administrator vouches for what the two disks hold, so that less is copied.

Rules:
1. Alone (StandAlone): begin a generation; with clear_bitmap also forget what the peer lacks, because
   the administrator carries it there (a copy of the disk on a truck).
2. Connected, only with clear_bitmap, and only while neither disk has ever had a generation: both are
   declared equal and UpToDate, the first synchronisation is skipped. In every other connected state
   a new generation would be a split brain by decree: refused.
3. Whatever instant a crash chooses, a copy that has not heard of it is still just created, and is
   synchronised in full.
What this file must not know: the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine.exchange import FLAG_SKIP_INITIAL_SYNC
from replicator.engine.refusals import soon
from replicator.errors import NoDiskError, ReplicatorError, StateRefused

if TYPE_CHECKING:
    from replicator.engine.volume import AdminDone, Volume


def new_current_uuid(volume: Volume, clear_bitmap: bool, done: AdminDone) -> None:
    """done(None) when the new generation is durable, and the peer, if connected, has been told.

    Errors: NoDiskError without a usable disk, StateRefused if rule 2 forbids it.
    """
    error = _objection(volume, clear_bitmap)
    if error is not None:
        soon(volume.resource, done, error)
        return
    store = volume.store
    assert store is not None

    def cleared(errno: int) -> None:
        if errno:
            # What is on the disk nobody knows; what was taken for equal is not, without the generation.
            store.bitmap.set_all()
            volume.local_io_error("bitmap write", 0, errno, store.data)
        # The disk or the connection may have gone meanwhile, or the peer may have been promoted.
        error = _failed(volume) if errno else _objection(volume, clear_bitmap)
        if error is not None:
            done(error)
        elif volume.state.conn is Conn.Connected:
            _skip_initial_sync(volume, done)
        else:
            store.uuids.new_current(
                volume.resource.random_uuid(), volume.state.role is Role.Primary
            )
            volume.generation_begun(lambda errno: done(_failed(volume) if errno else None))

    if clear_bitmap:
        store.bitmap.clear_all()
        store.bitmaps.write_dirty(cleared)
    else:
        cleared(0)


def _objection(volume: Volume, clear_bitmap: bool) -> ReplicatorError | None:
    store, state = volume.store, volume.state
    name = volume.resource.settings.name
    if store is None or state.disk < Disk.Inconsistent:
        return NoDiskError(
            f"{volume.name}: there is no usable local disk (disk state {state.disk.name})",
            hint=f"replicator attach {volume.name}",
        )
    if state.conn is Conn.StandAlone:
        return None
    if state.conn is not Conn.Connected:
        return StateRefused(
            f"{volume.name}: a new generation needs a resource that is StandAlone, or two disks "
            f"just created and Connected; the connection is {state.conn.name}",
            hint=f"replicator disconnect {name}, or wait: replicator wait-connect {name}",
        )
    peer = volume.exchange.peer_uuids
    if not store.uuids.just_created or peer is None or not peer.just_created:
        return StateRefused(
            f"{volume.name}: connected, and the disks are not both just created: a new generation "
            "would part their histories",
            hint=f"to begin one on this node alone: replicator disconnect {name}",
        )
    if not clear_bitmap:
        return StateRefused(
            f"{volume.name}: connected: without --clear-bitmap nothing would say that the disks "
            "are equal",
            hint="if they are known to be: "
            f"replicator new-current-uuid --clear-bitmap {volume.name}",
        )
    return None


def _skip_initial_sync(volume: Volume, done: AdminDone) -> None:
    store, link = volume.store, volume.resource.replication.link
    assert store is not None
    store.uuids.new_current(volume.resource.random_uuid(), primary=False)
    store.uuids.bitmap = 0

    def stable(errno: int) -> None:
        if errno:
            done(_failed(volume))
            return
        if volume.state.conn is Conn.Connected and volume.resource.replication.link is link:
            volume.exchange.send_uuids(FLAG_SKIP_INITIAL_SYNC)
            volume.change(pdsk=Disk.UpToDate)
            volume.exchange.send_state()
        done(None)

    volume.change(disk=Disk.UpToDate)
    volume.log("info", f"the first synchronisation is skipped: {store.uuids}")
    volume.write_superblock(stable)


def _failed(volume: Volume) -> ReplicatorError:
    return NoDiskError(f"{volume.name}: the metadata could not be written; the disk was given up")
