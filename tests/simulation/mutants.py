"""Engines with one safeguard removed each: the invented histories must notice every one of them.

    python -m tests.simulation.mutants [NAME...] [--histories N]

Prints a table: how many histories it took. Exit status 1 if a mutant survived.
What this file must not know: why a safeguard is right; that is written where it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from protocol.states import Conn, Disk
from replicator.engine import (
    application,
    attachment,
    exchange,
    peer_writes,
    replication,
    resync,
)
from replicator.engine.activity_log import ActivityLog
from replicator.engine.requests import Part
from replicator.engine.volume import Volume
from tests.simulation.explore import play

HISTORIES = 1500

Patch = Callable[[Callable[[Any, str, Any], None]], None]
MUTANTS: dict[str, tuple[str, Patch]] = {}


def mutant(words: str) -> Callable[[Patch], Patch]:
    def add(patch: Patch) -> Patch:
        MUTANTS[patch.__name__] = (words, patch)
        return patch

    return add


@mutant("a bitmap bit is cleared before the target has flushed the block")
def bit_cleared_early(put: Callable[[Any, str, Any], None]) -> None:
    def flush(self: resync.Resync) -> None:
        blocks, self._unflushed = self._unflushed, []
        for block in blocks:
            self._unflushed_bytes -= block.nsectors << 9
            self._volume.mark_in_sync(block.sector, block.nsectors)
            self._acknowledge(resync.Command.RS_WRITE_ACK, block)

    put(resync.Resync, "_flush", flush)


@mutant("a write leaves the transfer log when it is acknowledged, not when it is stable")
def log_entry_dropped_at_ack(put: Callable[[Any, str, Any], None]) -> None:
    lost = replication.Replication.connection_lost

    def connection_lost(self: replication.Replication) -> None:
        for epoch in (*self.log.closed, self.log.current):
            epoch.writes = [w for w in epoch.writes if w.net is not Part.OK]
        lost(self)

    put(replication.Replication, "connection_lost", connection_lost)


@mutant("no activity log transaction is written")
def activity_log_skipped(put: Callable[[Any, str, Any], None]) -> None:
    put(ActivityLog, "begin", lambda self, first, last, go: True)
    put(ActivityLog, "end", lambda self, first, last: None)


@mutant("an evicted extent's bitmap pages are not written first")
def eviction_without_bitmap(put: Callable[[Any, str, Any], None]) -> None:
    put(Volume, "before_evict", lambda self, extents, then: then(0))


@mutant("writes complete while the new generation is still on its way to the disk")
def generation_not_awaited(put: Callable[[Any, str, Any], None]) -> None:
    original = Volume.new_generation

    def new_generation(self: Volume, then: Any = None, *, forced: bool = False) -> None:
        original(self, then, forced=forced)
        self.generation_pending = False

    put(Volume, "new_generation", new_generation)


@mutant("no new generation when a Primary loses its peer")
def no_new_generation(put: Callable[[Any, str, Any], None]) -> None:
    def new_generation(self: Volume, then: Any = None, *, forced: bool = False) -> None:
        if forced and self.store is not None:
            self.store.uuids.new_current(self.resource.random_uuid(), True)
        self.write_superblock(then)

    put(Volume, "new_generation", new_generation)


@mutant("a source that missed the end of a resync keeps its generation")
def missed_end_ignored(put: Callable[[Any, str, Any], None]) -> None:
    original = Volume.new_generation

    def new_generation(self: Volume, then: Any = None, *, forced: bool = False) -> None:
        self.peer_may_have_current = False
        original(self, then, forced=forced)

    put(Volume, "new_generation", new_generation)


@mutant("a flush does not wait for the peer's disk")
def flush_not_sent(put: Callable[[Any, str, Any], None]) -> None:
    put(replication.Replication, "flush_peer", lambda self, volume, done: False)


@mutant("a barrier is acknowledged without a flush")
def barrier_without_flush(put: Callable[[Any, str, Any], None]) -> None:
    put(
        peer_writes.PeerWrites,
        "_flush",
        lambda self, finished, disks: self._stable(finished, disks),
    )


@mutant("the mark of a crashed Primary is ignored")
def crash_mark_ignored(put: Callable[[Any, str, Any], None]) -> None:
    original = attachment.Attachment._take

    def take(self: attachment.Attachment, store: Any, done: Any) -> None:
        original(self, store, done)
        self._volume.crashed_primary = False

    put(attachment.Attachment, "_take", take)


@mutant("writes for the peer do not wait for overlapping ones")
def no_locks_on_target(put: Callable[[Any, str, Any], None]) -> None:
    def start(self: peer_writes.PeerWrites, write: peer_writes.PeerWrite) -> None:
        write.epoch.active += 1
        end = write.sector + write.nsectors
        write.hold = write.volume.locks.acquire(write.sector, end, lambda: None)
        self._activate(write)

    put(peer_writes.PeerWrites, "_start", start)


@mutant("application writes do not wait for overlapping ones")
def no_locks_on_primary(put: Callable[[Any, str, Any], None]) -> None:
    def accept(self: application.Application, write: Any) -> None:
        end = write.sector + write.nsectors
        write.hold = self._volume.locks.acquire(write.sector, end, lambda: None)
        self._activate(write)

    put(application.Application, "_accept", accept)
    put(application.Application, "_write_straight", lambda self, *request: False)


@mutant("a resync read does not wait for writes in flight")
def resync_read_unlocked(put: Callable[[Any, str, Any], None]) -> None:
    from replicator.engine.resync_source import ResyncSource

    def got_request(self: ResyncSource, command: int, request: Any) -> None:
        volume, link = self._volume, self._link
        assert volume.data_disk is not None and link is not None
        volume.data_disk.read(
            request.sector << 9,
            request.blksize,
            lambda errno, data: None if link.closed else self._answer(link, request, data),
        )

    put(ResyncSource, "got_request", got_request)


@mutant("blocks written while the peer is away are not marked")
def degraded_writes_unmarked(put: Callable[[Any, str, Any], None]) -> None:
    original = Volume.mark_out_of_sync

    def mark(self: Volume, sector: int, nsectors: int, **more: Any) -> None:
        if self.state.conn >= Conn.Connected:
            original(self, sector, nsectors, **more)

    put(Volume, "mark_out_of_sync", mark)


@mutant("the peer is not told of writes that it does not get during the bitmap exchange")
def out_of_sync_untold(put: Callable[[Any, str, Any], None]) -> None:
    put(exchange.Exchange, "send_out_of_sync", lambda self, sector, nsectors: None)


@mutant("a sync target stays UpToDate on disk while it is overwritten")
def target_stays_good(put: Callable[[Any, str, Any], None]) -> None:
    original = Volume.state_flags

    def flags(self: Volume) -> Any:
        found = original(self)
        if self.state.disk is Disk.Inconsistent and self.size_sectors:
            found |= stores_flags.CONSISTENT | stores_flags.WAS_UP_TO_DATE
        return found

    from replicator.metadata.superblock import Flags as stores_flags

    put(Volume, "state_flags", flags)


@mutant("the target takes over the source's identity when the resync begins, not when it ends")
def identity_taken_early(put: Callable[[Any, str, Any], None]) -> None:
    original = resync.Resync.start_target

    def start(self: resync.Resync, uuid: int) -> None:
        original(self, uuid)
        store, peer = self._volume.store, self._volume.exchange.peer_uuids
        if store is not None and peer is not None:
            store.uuids.current = peer.current & ~1

    put(resync.Resync, "start_target", start)


@mutant("the resync ends without the fence: acknowledgements may still be on their way")
def end_not_fenced(put: Callable[[Any, str, Any], None]) -> None:
    from replicator.engine.resync_source import ResyncSource

    def done(self: ResyncSource) -> bool:
        volume = self._volume
        assert volume.bitmap is not None
        volume.bitmap.clear_all()
        self._source_fenced()
        return True

    put(ResyncSource, "target_is_done", done)
    put(
        resync.Resync,
        "_at_end",
        lambda self: None if self._requested else self._fenced(),
    )


@mutant("the peer's bitmap is not merged")
def bitmap_not_merged(put: Callable[[Any, str, Any], None]) -> None:
    from replicator.metadata.bitmap import Bitmap

    put(Bitmap, "or_run", lambda self, first, count: 0)


@contextmanager
def applied(name: str) -> Iterator[None]:
    """The engine with this mutation, and as it was afterwards."""
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, owner.__dict__[attribute]))
        setattr(owner, attribute, value)

    MUTANTS[name][1](put)
    try:
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


def hunt(name: str, limit: int) -> tuple[int, str]:
    """(histories it took, what went wrong), or (0, "") if the mutant survived."""
    with applied(name):
        for seed in range(limit):
            failure, _log = play(seed)
            if failure:
                return seed + 1, failure.splitlines()[0]
    return 0, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *MUTANTS])
    parser.add_argument("--histories", type=int, default=HISTORIES)
    arguments = parser.parse_args()
    survivors = 0
    print("| safeguard removed | histories | seconds | noticed by |\n|---|---|---|---|")
    for name in arguments.names or MUTANTS:
        started = time.monotonic()
        count, failure = hunt(name, arguments.histories)
        survivors += not count
        took = str(count) if count else f"**none of {arguments.histories}**"
        seconds = time.monotonic() - started
        print(f"| {MUTANTS[name][0]} | {took} | {seconds:.0f} | {failure[:60]} |", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
