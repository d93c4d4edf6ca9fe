"""How a volume takes a disk into use, and how it gives one up.

Rules:
1. Until the metadata is marked unclean on stable storage the disk is Attaching: nobody uses it.
2. A disk that comes while the peer is connected is Negotiating until both nodes have compared.
3. While a Primary has users only a disk with their data, and large enough, is taken.
4. An attach that is overtaken by a detach ends with an error; whoever ordered it keeps the disk.
What this file must not know: what a disk is used for, once it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine import exposed
from replicator.engine import store as stores
from replicator.engine.activity_log import ActivityLog
from replicator.engine.ports import Disk as DiskPort
from replicator.engine.ports import Timer
from replicator.engine.store import Store
from replicator.engine.watched_disk import WatchedDisk
from replicator.engine.words import errno_text
from replicator.errors import (
    MetadataError,
    NoDiskError,
    NoUsableDataError,
    ReplicatorError,
    StateRefused,
)
from replicator.metadata.activity_log import max_extents
from replicator.metadata.layout import Placement, bitmap_bits
from replicator.metadata.superblock import Flags

if TYPE_CHECKING:
    from replicator.engine.volume import AdminDone, Volume

HANDSHAKE_WAIT = 0.02
HANDSHAKE_WAITS_MAX = 500
"""Seconds between two looks at whether a handshake is over, and how often."""

DRAIN_WAIT = 0.005
DRAIN_WAITS_MAX = 1000
"""Seconds between two looks at whether the disk has ended what it was doing, and how often: a disk
that hangs is given up all the same."""
SAVE_SECONDS = 5.0
"""For what is still written to a disk that is given up."""


class Attachment:
    """The way of one volume's disk in and out."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._attaching: object | None = None
        """Token of the attach that is under way: one that was detached meanwhile has lost it."""
        self._dropping = False
        self._after_drop: list[Callable[[], None]] = []
        self._missed_a_write = False
        """A write was completed that the disk which was given up last does not have."""

    def attach(self, data: DiskPort, meta: DiskPort, placement: Placement, done: AdminDone) -> None:
        """Read the metadata and take the disk into use; done(None or the error)."""
        volume = self._volume
        if volume.state.disk is not Disk.Diskless:
            error = StateRefused(f"{volume.name}: a disk is attached already", code=-10)
            volume.resource.soon(lambda: done(error))
            return
        volume.change(disk=Disk.Attaching)
        self._attaching = token = object()

        def read(store: Store | None, error: ReplicatorError | None) -> None:
            if self._attaching is not token:
                done(self._detached_meanwhile())
                return
            if store is not None:
                error = self._refusal(store)
            if error is not None or store is None:
                self._abandon()
                done(error)
                return
            self._take(store, done)

        internal = meta is data
        data = self._watched(data)
        meta = data if internal else self._watched(meta)
        stores.attach(volume.name, data, meta, placement, volume.refresh_superblock, read)

    def _watched(self, disk: DiskPort) -> DiskPort:
        seconds = self._volume.settings.disk.disk_timeout
        clock = self._volume.resource.clock
        return WatchedDisk(disk, clock, seconds, self._hung) if seconds else disk

    def _hung(self, what: str) -> None:
        """disk-timeout is over: the disk is given up, whatever on-io-error says. One that is still
        being attached just fails to be."""
        volume = self._volume
        if volume.state.disk <= Disk.Failed:
            return
        settings = volume.settings.disk
        volume.disk_error = (
            f"disk-timeout: a {what} was not answered for {settings.disk_timeout:g} s; detach"
        )
        volume.log("error", volume.disk_error)
        if settings.on_io_error == "call-local-io-error":
            volume.resource.handlers.call("local-io-error", volume.number, None)
        self.drop()

    def _refusal(self, store: Store) -> ReplicatorError | None:
        """Guards against the wrong data under a running Primary, and impossible settings."""
        volume = self._volume
        current = store.uuids.current
        if volume.state.role is Role.Primary and volume.exposed_uuid:
            same = (current ^ volume.exposed_uuid) >> 1 == 0
            if volume.state.conn < Conn.Connected and not same:
                return NoUsableDataError(
                    f"{volume.name}: can only attach to the data that is in use (generation "
                    f"{volume.exposed_uuid:016X}), this disk has {current:016X}",
                    hint="connect to the peer first, then attach",
                )
        if self._in_use and store.capacity_sectors < volume.size_sectors:
            return NoDiskError(
                f"{volume.name}: the disk is too small: {volume.size_sectors} sectors are in use, "
                f"it has {store.capacity_sectors}"
            )
        slots = volume.settings.disk.al_extents
        if slots > max_extents(store.geometry.al_blocks):
            return MetadataError(
                f"{volume.name}: al-extents: {slots} do not fit, this metadata holds at most "
                f"{max_extents(store.geometry.al_blocks)}",
                hint="lower al-extents in the configuration",
            )
        wanted = volume.settings.disk.size >> 9
        if wanted > store.capacity_sectors:
            return NoDiskError(
                f"{volume.name}: size: {wanted} sectors are configured, the disk has "
                f"{store.capacity_sectors}"
            )
        return None

    @property
    def _in_use(self) -> bool:
        """The size has been shown to applications, which must not see it shrink."""
        return self._volume.state.role is Role.Primary and self._volume.size_sectors > 0

    def _take(self, store: Store, done: AdminDone) -> None:
        volume, settings = self._volume, self._volume.settings.disk
        flags = store.superblock.flags
        volume.store = store
        store.superblocks.indicated = volume.application.thaw
        volume.peer_may_have_current = (store.uuids.current ^ volume.named_alone) >> 1 != 0
        volume.counters.reset()
        volume.loaded_flags(flags)
        if flags & (Flags.CRASHED_PRIMARY | Flags.PRIMARY_IND):
            volume.crashed_primary = volume.state.role is not Role.Primary
        store.uuids.mark_role(volume.state.role is Role.Primary)
        self._take_size(store)
        everything = bool(flags & Flags.FULL_SYNC) or not store.superblock.la_size_sect
        if volume.crashed_primary and flags & Flags.AL_DISABLED:
            everything = True
        if settings.al_updates:
            store.superblock.flags &= ~Flags.AL_DISABLED
        else:
            store.superblock.flags |= Flags.AL_DISABLED
        slots = settings.al_extents
        store.superblock.al_nr_extents = slots
        volume.activity_log_object = ActivityLog(
            store.meta, store.geometry, slots, volume.before_evict, volume.log_is_starving
        )
        token = self._attaching

        def stable(errno: int) -> None:
            if self._attaching is not token:
                done(self._detached_meanwhile())
            elif errno:
                self._abandon()
                done(NoDiskError(f"{volume.name}: cannot write metadata: {errno_text(errno)}"))
            else:
                self._attached(flags, done)

        if everything:
            stores.write_full_bitmap(store, stable)
        else:
            store.superblocks.write(stable)

    def _take_size(self, store: Store) -> None:
        """The size that was agreed last; without one, what is configured or all there is."""
        volume = self._volume
        agreed = store.superblock.la_size_sect
        if not agreed:
            wanted = volume.settings.disk.size >> 9
            agreed = volume.size_sectors or wanted or store.capacity_sectors
        if not self._in_use:
            volume.set_size(agreed)
        store.bitmap.resize(bitmap_bits(volume.size_sectors), set_new=True)

    def _abandon(self) -> None:
        """Nothing comes of the attach; whoever ordered it keeps the disk."""
        volume = self._volume
        self._attaching = volume.store = volume.activity_log_object = None
        volume.change(disk=Disk.Diskless)

    def _detached_meanwhile(self) -> StateRefused:
        name = self._volume.name
        return StateRefused(f"{name}: the disk was detached while it was being attached")

    def _attached(self, flags: Flags, done: AdminDone) -> None:
        """The metadata is marked unclean: the disk may be used, in the state that its flags tell."""
        volume = self._volume
        assert volume.store is not None
        if self._too_early:
            self._attach_later(flags, done)
            return
        # The connection over which it was to be compared may have ended since.
        if error := self._refusal(volume.store):
            self._abandon()
            done(error)
            return
        self._attaching = None
        volume.negotiated_disk = disk_state_of(flags, volume.settings.disk.fencing)
        self._lower_if_older()
        disk = volume.negotiated_disk
        volume.disk_error = ""
        if volume.state.conn >= Conn.Connected:
            volume.change(disk=Disk.Negotiating)
            volume.exchange.announce_disk()
        elif exposed.own_disk(volume, disk) is not disk:
            volume.log("warning", "the peer's data have gone on from these: Outdated")
            volume.change(disk=Disk.Outdated)
        elif flags & Flags.PEER_OUT_DATED and volume.state.pdsk is Disk.DUnknown:
            volume.change(disk=disk, pdsk=Disk.Outdated)
        else:
            volume.change(disk=disk)
        done(None)

    @property
    def _too_early(self) -> bool:
        """This node has reported that it has no disk, and the handshake is to end with that before
        there is another about the disk; or a disk that it had just before, and has dropped, and
        what the peer makes of that one must not be taken for an answer about this. Unless the
        connection ends."""
        state, exchange = self._volume.state, self._volume.exchange
        return state.conn is Conn.WFReportParams or exchange.answer_due

    def completed_without_disk(self) -> None:
        """The application was told that a write is done, or stable, which only the peer has so. It may
        have begun when there was no disk, and have ended when there is one that is still compared."""
        disk = self._volume.state.disk
        if disk <= Disk.Negotiating:
            self._missed_a_write = True
        if disk is Disk.Negotiating:
            self._lower_if_older()

    def _lower_if_older(self) -> None:
        volume = self._volume
        if volume.negotiated_disk is not Disk.Inconsistent and self.is_older_than_its_name:
            volume.negotiated_disk = Disk.Inconsistent
            volume.log("warning", "this disk lacks what was completed without it: Inconsistent")

    @property
    def is_older_than_its_name(self) -> bool:
        """The peer begins a generation when it hears that this Primary has lost its disk. Until that is
        heard here, what the peer completes belongs to the one that the lost disk has, too. Only the
        peer's bitmap knows all of that: it is here when the disk gets the name of a resync."""
        volume = self._volume
        assert volume.store is not None
        in_use = (volume.exposed_uuid ^ volume.store.uuids.current) >> 1 == 0
        return self._missed_a_write and in_use

    def nothing_to_compare(self) -> None:
        """The peer has no disk either: the one that is Negotiating is used as it is, unless the
        applications use other data."""
        volume = self._volume
        alone = volume.prepared(volume.state)
        if alone is None:
            volume.log("error", "applications use newer data than this disk has; it is given up")
            volume.drop_disk()
            return
        volume.change(disk=Disk.UpToDate if alone.disk is Disk.Consistent else alone.disk)
        # A peer whose disk comes meanwhile compares it with this one: it has to know the name first.
        volume.after_generation(volume.exchange.send_state)

    def _attach_later(self, flags: Flags, done: AdminDone) -> None:
        volume, token, looks = self._volume, self._attaching, 0

        def look() -> None:
            nonlocal looks
            looks += 1
            if looks == HANDSHAKE_WAITS_MAX:
                volume.exchange.answer_due = False  # there will be none
            if self._attaching is not token:
                done(self._detached_meanwhile())
            elif not self._too_early:
                self._attached(flags, done)
            elif looks < HANDSHAKE_WAITS_MAX:
                volume.resource.clock.call_later(HANDSHAKE_WAIT, look)
            else:
                self._abandon()
                text = f"{volume.name}: the handshake with the peer does not end"
                done(StateRefused(text, code=-18, hint="try again in a moment"))

        volume.resource.clock.call_later(HANDSHAKE_WAIT, look)

    def drop(self, done: Callable[[], None] | None = None) -> None:
        """Failed, then Diskless; what can still be saved of the bitmap is written."""
        if done is not None:
            self._after_drop.append(done)
        if self._dropping:
            return
        self._dropping = True
        volume = self._volume
        store, log = volume.store, volume.activity_log_object
        in_use = self._attaching is None
        self._attaching = None
        if volume.state.disk is Disk.UpToDate:
            self._missed_a_write = False
        if store is not None:
            # What its flags say last is the state that it is given up in.
            volume.refresh_superblock(store)
        volume.change(disk=Disk.Failed)
        volume.exchange.send_state()
        if log is not None:
            volume.activity_log_object = None
            log.fail(EIO)
        looks, ended = 0, False
        limit: Timer | None = None

        def save() -> None:
            nonlocal looks, limit
            looks += 1
            if store is None:
                saved(0)
            elif volume.locks.count and looks <= DRAIN_WAITS_MAX:
                # What is under way may still leave a mark in the bitmap.
                volume.resource.clock.call_later(DRAIN_WAIT, save)
            else:
                limit = volume.resource.clock.call_later(SAVE_SECONDS, lambda: saved(EIO))
                store.bitmaps.write_dirty(lambda _errno: store.superblocks.write(saved))

        def saved(_errno: int) -> None:
            nonlocal ended
            if ended:
                return  # an answer that comes after the time limit
            ended = True
            if limit is not None:
                limit.cancel()
            self._dropping = False
            volume.store = None
            volume.change(disk=Disk.Diskless)
            volume.exchange.send_state()
            # What was still being attached is given back by whoever attaches it.
            if store is not None and in_use and volume.released is not None:
                volume.released(store)
            waiting, self._after_drop = self._after_drop, []
            for action in waiting:
                action()

        volume.resource.soon(save)


def disk_state_of(flags: Flags, fencing: str) -> Disk:
    """The state of a disk as its superblock flags tell it at attach (metadata: flags)."""
    if not flags & Flags.CONSISTENT:
        return Disk.Inconsistent
    if not flags & Flags.WAS_UP_TO_DATE:
        return Disk.Outdated
    if flags & Flags.PEER_OUT_DATED or fencing == "dont-care":
        return Disk.UpToDate
    return Disk.Consistent
