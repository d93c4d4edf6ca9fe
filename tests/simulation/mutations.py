"""Safeguards of the engine, and how to remove one of them: the mutants.

Each mutant is a function that is given `put(owner, attribute, value)` and replaces as little as it
can. Its name is what `make mutants ONLY=` takes, its words say what is wrong then.
What this file must not know: why a safeguard is right (that is written where it is), and which
history notices that it is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from protocol.states import Conn, Disk
from replicator.engine import (
    application,
    attachment,
    exchange,
    generations,
    peer_writes,
    replication,
    resync,
    resync_source,
    store,
    transfer_log,
)
from replicator.engine.activity_log import ActivityLog
from replicator.engine.generations import UuidSet
from replicator.engine.link import Link
from replicator.engine.requests import Kind, Part
from replicator.engine.volume import Volume
from replicator.metadata import apply_al
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.superblock import Flags

Put = Callable[[Any, str, Any], None]
Patch = Callable[[Put], None]
MUTANTS: dict[str, tuple[str, Patch]] = {}
"""Name -> (what is wrong, patch)."""


def mutant(words: str) -> Callable[[Patch], Patch]:
    def add(patch: Patch) -> Patch:
        MUTANTS[patch.__name__] = (words, patch)
        return patch

    return add


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


# --- the account: transfer log, activity log, bitmap ----------------------------------------------


@mutant("a write leaves the transfer log when it is acknowledged, not when it is stable")
def log_entry_dropped_at_ack(put: Put) -> None:
    lost = replication.Replication.connection_lost

    def connection_lost(self: replication.Replication) -> None:
        for epoch in (*self.log.closed, self.log.current):
            epoch.writes = [w for w in epoch.writes if w.net is not Part.OK]
        lost(self)

    put(replication.Replication, "connection_lost", connection_lost)


@mutant("no activity log transaction is written")
def activity_log_skipped(put: Put) -> None:
    put(ActivityLog, "begin", lambda self, first, last, go: True)
    put(ActivityLog, "begin_hot", lambda self, extent: True)
    put(ActivityLog, "end", lambda self, first, last: None)


@mutant("a write does not wait for its activity log transaction")
def transaction_not_awaited(put: Put) -> None:
    commit = ActivityLog._commit

    def at_once(self: ActivityLog, granted: list[Any], updates: Any, evicted: Any) -> None:
        commit(self, [], updates, evicted)
        for go in granted:
            go(0)

    put(ActivityLog, "_commit", at_once)


@mutant("an extent leaves the activity log when the local disk is done, whatever the peer has")
def extent_left_early(put: Put) -> None:
    done, straight = application.Application._local_done, application.Application._straight_done

    def leave(write: Any) -> None:
        if write.al is not None:
            log, first, last = write.al
            write.al = None
            log.end(first, last)

    def local_done(self: Any, write: Any, disk: Any, errno: int) -> None:
        done(self, write, disk, errno)
        leave(write)

    def straight_done(self: Any, write: Any, disk: Any, errno: int) -> None:
        straight(self, write, disk, errno)
        leave(write)

    put(application.Application, "_local_done", local_done)
    put(application.Application, "_straight_done", straight_done)


@mutant("an evicted extent's bitmap pages are not written first")
def eviction_without_bitmap(put: Put) -> None:
    put(Volume, "before_evict", lambda self, extents, then: then(0))


@mutant("the activity log is not applied after a crash")
def log_not_applied(put: Put) -> None:
    put(apply_al, "_mark_extents", lambda log, superblock, read_bitmap, result: None)


@mutant("the superblock does not say that applications write")
def primary_not_indicated(put: Put) -> None:
    put(Volume, "_writing_here", property(lambda self: False))


@mutant("the mark of a crashed Primary is ignored")
def crash_mark_ignored(put: Put) -> None:
    original = attachment.Attachment._take

    def take(self: attachment.Attachment, *given: Any) -> None:
        original(self, *given)
        self._volume.crashed_primary = False

    put(attachment.Attachment, "_take", take)


@mutant("blocks written while the peer is away are not marked")
def degraded_writes_unmarked(put: Put) -> None:
    original = Volume.mark_out_of_sync

    def mark(self: Volume, sector: int, nsectors: int, **more: Any) -> None:
        if self.state.conn >= Conn.Connected:
            original(self, sector, nsectors, **more)

    put(Volume, "mark_out_of_sync", mark)


@mutant("blocks trimmed or zeroed while the peer is away are not marked")
def trim_unmarked(put: Put) -> None:
    finish, unshared = application.Application._finish, application.Application.mark_unshared

    def forgetful(self: Any, write: Any) -> None:
        if write.kind is not Kind.WRITE:
            write.local = write.net = Part.OK
        finish(self, write)

    def mark_unshared(self: Any) -> None:
        self._unshared = {w: None for w in self._unshared if w.kind is Kind.WRITE}
        unshared(self)

    put(application.Application, "_finish", forgetful)
    put(application.Application, "mark_unshared", mark_unshared)


@mutant("what the local disk has not ended yet is not in the bitmap that is sent")
def unended_write_untold(put: Put) -> None:
    put(application.Application, "mark_unshared", lambda self: None)


@mutant("the peer is not told of writes that it does not get during the bitmap exchange")
def out_of_sync_untold(put: Put) -> None:
    put(exchange.Exchange, "send_out_of_sync", lambda self, sector, nsectors: None)


@mutant("the peer's bitmap is not merged")
def bitmap_not_merged(put: Put) -> None:
    put(Bitmap, "or_run", lambda self, first, count: 0)


@mutant("what a peer acknowledged before its disk failed counts as stable, here and there")
def lost_disk_unmarked(put: Put) -> None:
    put(replication.Replication, "peer_disk_lost", lambda self, volume: None)
    put(peer_writes.PeerWrites, "_fail_if_lost", lambda self, disks: False)


@mutant("a write that the peer's disk refused counts as written there")
def refusal_is_success(put: Put) -> None:
    def refused(self: replication.Replication, write: Any) -> None:
        write.net = Part.OK
        write.volume.application.progress(write)

    put(replication.Replication, "_refused", refused)


@mutant("a full sync begins before its bitmap is on the disk, and without the flag for it")
def full_sync_not_durable(put: Put) -> None:
    def mark_all(self: Volume, then: Any) -> None:
        assert self.store is not None
        self.store.bitmap.set_all()
        self.store.bitmaps.write_dirty()
        self.resource.soon(partial(then, 0))

    put(Volume, "mark_all", mark_all)


# --- stability: flushes, epochs, barriers ---------------------------------------------------------


@mutant("a flush does not wait for the peer's disk")
def flush_not_sent(put: Put) -> None:
    put(replication.Replication, "flush_peer", lambda self, volume, done: False)


@mutant("a flush is answered by the barrier of an older epoch")
def flush_answered_early(put: Put) -> None:
    def wait_stable(self: transfer_log.TransferLog, done: Any) -> bool:
        if not self.closed:
            return False
        self.closed[0].waiters.append(done)
        return True

    put(transfer_log.TransferLog, "wait_stable", wait_stable)


@mutant("FUA is ignored")
def fua_ignored(put: Put) -> None:
    put(application.Application, "_stable_after", lambda self, done: self._answer(done))


@mutant("a barrier is acknowledged without a flush")
def barrier_without_flush(put: Put) -> None:
    put(
        peer_writes.PeerWrites,
        "_flush",
        lambda self, finished, disks: self._stable(finished, disks),
    )


@mutant("a barrier is acknowledged while writes before it are still on their way to the disk")
def barrier_overtakes_writes(put: Put) -> None:
    finished = property(lambda self: self.barrier is not None and not self.waiting)
    put(peer_writes.PeerEpoch, "finished", finished)


@mutant("under A and B an epoch's writes begin before the epoch before is stable")
def epochs_overlap(put: Put) -> None:
    original = peer_writes.PeerWrites.__init__

    def init(self: peer_writes.PeerWrites, *given: Any) -> None:
        original(self, *given)
        self._strict = False

    put(peer_writes.PeerWrites, "__init__", init)


@mutant("under C a write is acknowledged when it is received")
def acknowledged_on_receipt(put: Put) -> None:
    original = peer_writes.PeerWrites._start

    def start(self: peer_writes.PeerWrites, write: peer_writes.PeerWrite) -> None:
        if write.flags & peer_writes.SEND_WRITE_ACK:
            write.flags &= ~peer_writes.SEND_WRITE_ACK
            self._acknowledge(write, peer_writes.WRITE_ACK)
        original(self, write)

    put(peer_writes.PeerWrites, "_start", start)


@mutant("under C a write is complete when it is sent")
def complete_when_sent(put: Put) -> None:
    put(replication, "ACK_FLAGS", dict.fromkeys(replication.ACK_FLAGS, 0))


@mutant("a block's bit is cleared before the target has flushed it")
def bit_cleared_early(put: Put) -> None:
    def flush(self: resync.Resync) -> None:
        blocks, self._unflushed = self._unflushed, []
        for block in blocks:
            self._unflushed_bytes -= block.nsectors << 9
            self._volume.mark_in_sync(block.sector, block.nsectors)
            self._acknowledge(resync.Command.RS_WRITE_ACK, block)

    put(resync.Resync, "_flush", flush)


@mutant("a source serves data that only its disk's cache has")
def source_not_flushed(put: Put) -> None:
    original = resync_source.ResyncSource.start

    def start(self: resync_source.ResyncSource, *given: Any) -> None:
        disk_store = self._volume.store
        assert disk_store is not None
        disk_store.data = _Unflushed(disk_store.data)
        original(self, *given)

    put(resync_source.ResyncSource, "start", start)


class _Unflushed:
    """A disk whose first flush from here on does nothing."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self._due = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def flush(self, done: Any) -> None:
        if self._due:
            self._due = False
            self._disk.read(0, 512, lambda errno, _data: done(errno))
        else:
            self._disk.flush(done)


# --- order of writes ------------------------------------------------------------------------------


@mutant("application writes do not wait for overlapping ones")
def no_locks_on_primary(put: Put) -> None:
    def accept(self: application.Application, write: Any) -> None:
        end = write.sector + write.nsectors
        write.hold = self._volume.locks.acquire(write.sector, end, lambda: None)
        self._activate(write)

    put(application.Application, "_accept", accept)


@mutant("writes for the peer do not wait for overlapping ones")
def no_locks_on_target(put: Put) -> None:
    def start(self: peer_writes.PeerWrites, write: peer_writes.PeerWrite) -> None:
        write.epoch.active += 1
        end = write.sector + write.nsectors
        write.hold = write.volume.locks.acquire(write.sector, end, lambda: None)
        self._activate(write)

    put(peer_writes.PeerWrites, "_start", start)


@mutant("a resync read does not wait for writes in flight")
def resync_read_unlocked(put: Put) -> None:
    def read(self: Any, asked_in: tuple[Any, int], command: int, request: Any) -> None:
        (link, attempt), disk = asked_in, self._volume.data_disk

        def loaded(errno: int, data: bytes) -> None:
            current = self._link is link and attempt == self._attempt and not link.closed
            if not errno and current:
                self._answer(link, request, data)
            if asked_in == self._asked_in:
                self.answering -= 1
                self._reading -= request.blksize
                self.answer_more()

        if disk is not None:
            disk.read(request.sector << 9, request.blksize, loaded)

    put(resync_source.ResyncSource, "_read", read)


@mutant("resync data does not wait for writes in flight on the target")
def resync_write_unlocked(put: Put) -> None:
    def arrived(self: resync.Resync, block: Any, data: bytes) -> None:
        self._writing += 1
        self._received.add(block)
        self._write(block, data)

    put(resync.Resync, "_arrived", arrived)


@mutant("a target that is Primary takes resync data that its own write has overtaken")
def overtaken_data_taken(put: Put) -> None:
    put(resync.Resync, "overtake", lambda self, sector, nsectors: None)


@mutant("a write of a resync that has ended counts for the next one")
def old_run_believed(put: Put) -> None:
    original = resync.Resync._stop

    def stop(self: resync.Resync) -> None:
        original(self)
        self._run -= 1

    put(resync.Resync, "_stop", stop)


# --- who has the good data ------------------------------------------------------------------------


@mutant("writes complete while the new generation is still on its way to the disk")
def generation_not_awaited(put: Put) -> None:
    put(Volume, "generation_pending", property(lambda self: False))


@mutant("no new generation when a Primary loses its peer")
def no_new_generation(put: Put) -> None:
    def new_generation(self: Volume, then: Any = None) -> None:
        self.write_superblock(then)

    put(Volume, "new_generation", new_generation)


@mutant("a source that missed the end of a resync keeps its generation")
def missed_end_ignored(put: Put) -> None:
    original = Volume.new_generation

    def new_generation(self: Volume, then: Any = None) -> None:
        self.peer_may_have_current = False
        original(self, then)

    put(Volume, "new_generation", new_generation)


@mutant("a sync target stays UpToDate on disk while it is overwritten")
def target_stays_good(put: Put) -> None:
    original = Volume.state_flags

    def flags(self: Volume) -> Flags:
        found = original(self)
        if self.state.disk is Disk.Inconsistent and self.size_sectors:
            found |= Flags.CONSISTENT | Flags.WAS_UP_TO_DATE
        return found

    put(Volume, "state_flags", flags)


@mutant(
    "the target takes over the source's identity when the resync begins; force keeps it as base"
)
def identity_taken_early(put: Put) -> None:
    original = resync.Resync._begin_target

    def begin(self: resync.Resync, link: Link, uuid: int) -> None:
        peer = self._volume.exchange.peer_uuids
        original(self, link, uuid if peer is None else peer.current)

    put(resync.Resync, "_begin_target", begin)
    put(UuidSet, "declare_good", UuidSet.new_current)


@mutant("the resync ends without the fences: acknowledgements may still be on their way")
def end_not_fenced(put: Put) -> None:
    at_end = resync.Resync._at_end

    def unfenced(self: resync.Resync) -> None:
        with _no_ping():
            at_end(self)

    target_is_done = resync_source.ResyncSource.target_is_done

    def done(self: resync_source.ResyncSource) -> bool:
        with _no_ping():
            return target_is_done(self)

    put(resync.Resync, "_at_end", unfenced)
    put(resync_source.ResyncSource, "target_is_done", done)


@contextmanager
def _no_ping() -> Iterator[None]:
    """Whoever asks for a ping goes on at once. (To change a method is what a mutant is for.)"""
    ping = Link.ping
    Link.ping = lambda self, answered: answered()  # type: ignore[method-assign]
    try:
        yield
    finally:
        Link.ping = ping  # type: ignore[method-assign]


def _rules(number: int, value: int | None) -> tuple[generations.Rule, ...]:
    """The table of decisions with another result for one row; None: without that row."""
    rows = [r for r in generations.RULES if value is not None or r.number != number]
    result = generations._always(value or 0)
    return tuple(replace(r, result=result) if r.number == number else r for r in rows)


@mutant("an ancestor, whose changes are no longer tracked, gets only what is marked")
def ancestor_by_bitmap(put: Put) -> None:
    put(generations, "RULES", _rules(60, -1))
    put(generations, "RULES", _rules(80, 1))


@mutant("a split brain is solved in favour of whoever has made the connection")
def split_brain_unseen(put: Put) -> None:
    rows = tuple(
        replace(r, result=lambda e: 1 if e.arbiter else -1) if r.number == 90 else r
        for r in generations.RULES
    )
    put(generations, "RULES", rows)


@mutant("after a crash of a Primary equal generations count as equal data")
def crash_needs_no_resync(put: Put) -> None:
    rows = tuple(
        replace(r, result=generations._always(0)) if r.number in (40, 41) else r
        for r in generations.RULES
    )
    put(generations, "RULES", rows)


@mutant("a full sync that a crash interrupts is forgotten")
def full_sync_flag_ignored(put: Put) -> None:
    original = store._build

    def build(name: str, data: Any, meta: Any, placement: Any, superblock: Any, *more: Any) -> Any:
        superblock.flags &= ~Flags.FULL_SYNC
        return original(name, data, meta, placement, superblock, *more)

    put(store, "_build", build)
