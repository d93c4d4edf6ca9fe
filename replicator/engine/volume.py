"""One volume: its state, its disk, its generations, and what follows when one of them changes.

Rules:
1. State changes go through change(): adjusted by the tables of `states`, then acted upon here, in
   one place and one order.
2. A generation that must be new before a write may complete is on its way to the disk before the
   transfer log is cleared.
3. A disk that fails is given up (on-io-error); what it may hold is never trusted again without a
   handshake.
What this file must not know: packets (`exchange` sends them), requests (`application` owns them).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from functools import partial
from typing import TYPE_CHECKING, Unpack

from protocol.states import Conn, Disk, Role, StateFields, StateWord
from replicator.engine import exposed, handler_calls
from replicator.engine import store as stores
from replicator.engine.activity_log import ActivityLog, pages_of_extents
from replicator.engine.application import Application
from replicator.engine.attachment import Attachment
from replicator.engine.counters import Counters
from replicator.engine.disk_writes import DiskWrites
from replicator.engine.exchange import Exchange
from replicator.engine.intervals import IntervalLocks
from replicator.engine.ports import Disk as DiskPort
from replicator.engine.requests import Kind
from replicator.engine.resync import Resync
from replicator.engine.resync_source import ResyncSource
from replicator.engine.settings import VolumeSettings
from replicator.engine.states import adjust, came_alone, contact_lost, misses_writes
from replicator.engine.store import Store
from replicator.engine.verify import Verify
from replicator.engine.verify_target import VerifyTarget
from replicator.engine.words import errno_text, state_change_text
from replicator.errors import NoUsableDataError, ReplicatorError, StateRefused
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.layout import Placement, bitmap_bits
from replicator.metadata.superblock import Flags

if TYPE_CHECKING:
    from replicator.engine.peer_writes import PeerWrite
    from replicator.engine.ports import Buffer, Done, ReadDone
    from replicator.engine.resource import Resource

AdminDone = Callable[[ReplicatorError | None], None]

USABLE = (Disk.Inconsistent, Disk.Outdated, Disk.Consistent, Disk.UpToDate)
"""Disk states in which the local disk takes I/O."""
PASSED_ON = frozenset(
    ("read", "write", "read for the peer", "write for the peer", "resync read", "resync write")
)
"""Errors of single blocks, which on-io-error pass_on hands on; all others cost the disk."""
STATE_FLAGS = (
    Flags.CONSISTENT
    | Flags.PRIMARY_IND
    | Flags.CONNECTED_IND
    | Flags.WAS_UP_TO_DATE
    | Flags.PEER_OUT_DATED
    | Flags.CRASHED_PRIMARY
)
"""Superblock flags that follow from the state at every change."""


class Volume:
    def __init__(self, resource: Resource, settings: VolumeSettings) -> None:
        self.resource = resource
        self.settings = settings
        self.number = settings.number
        self.name = f"{resource.settings.name}/{settings.number}"
        self.state = StateWord()
        self.store: Store | None = None
        self.data_disk: DiskPort | None = None
        self.bitmap: Bitmap | None = None
        self.activity_log: ActivityLog | None = None
        """The log while it is in force; None without a disk or with al-updates no."""
        self.activity_log_object: ActivityLog | None = None
        self.size_sectors = 0
        self.sequence = 0
        self.counters = Counters()
        self.locks = IntervalLocks()
        self.exposed_uuid = 0
        """Generation last offered to users: the guard against other data under an application."""
        self.crashed_primary = False
        self.peer_may_have_current = True
        """While a base is tracked: it may have finished a resync unheard, and has this very name then."""
        self.named_alone = 0
        """The generation that this node has begun since it was connected last: the peer cannot have it."""
        self._tracks_for_peer = False
        self.negotiated_disk = Disk.Diskless
        """What a Negotiating disk becomes when the handshake lets it."""
        self._generations_pending = 0
        """Superblock writes with a new generation that have not ended yet."""
        self._after_generation: list[Callable[[], None]] = []
        self.generation_postponed = False
        """The peer was lost while I/O was suspended: a new generation is due if I/O goes on without."""
        self.users = self.writers = 0
        self.disk_error = ""
        self._last_flags = Flags(0)
        self._unsettled = False
        """The superblock says PRIMARY_IND, and data or bitmap may not be stable yet."""
        self._touched = False
        """Something was written since the settling began."""
        self.late_writes = DiskWrites()
        """Of resyncs, and of peers whose connection has ended: a new resync waits for them."""
        self.tracked_writes: dict[PeerWrite, None] = {}
        """Writes under way for a Primary that had no disk when it sent them."""
        self._settling = False
        self._after_settling: list[Callable[[int], None]] = []
        self.application: Application = Application(self)
        self.exchange: Exchange = Exchange(self)
        self.resync: Resync = Resync(self)
        self.resync_source: ResyncSource = ResyncSource(self)
        self.verify: Verify = Verify(self)
        self.verify_target: VerifyTarget = VerifyTarget(self)
        self.attachment = Attachment(self)
        self.released: Callable[[Store], None] | None = None
        """Told when a detached store is no longer used, so that its files can be closed."""

    # --- for front ends -----------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes that are exported; 0 while the size is not known."""
        return self.size_sectors << 9

    def open(self, writable: bool) -> None:
        """A front end opens the device. Raises StateRefused on a Secondary, as DRBD does."""
        if self.state.role is not Role.Primary:
            raise StateRefused(
                f"{self.name}: this node is Secondary: the device can neither be read nor written",
                hint=f"replicator primary {self.resource.settings.name}",
            )
        if not self.size_sectors:
            raise NoUsableDataError(f"{self.name}: the size is unknown: no disk and no peer yet")
        self.users += 1
        self.writers += int(writable)
        self.resource.changed()

    def close(self, writable: bool) -> None:
        self.users -= 1
        self.writers -= int(writable)
        self.resource.changed()

    def read(self, offset: int, length: int, done: ReadDone) -> None:
        courtesy = self.resource.courtesy
        if courtesy.watching:
            done = courtesy.timed(done)
        self.application.read(offset, length, done)

    def write(self, offset: int, data: Buffer, fua: bool, done: Done) -> None:
        courtesy = self.resource.courtesy
        if courtesy.watching:
            done = courtesy.timed(done)
        self.application.write(offset, data, fua, done)

    def flush(self, done: Done) -> None:
        self.application.flush(done)

    def trim(self, offset: int, length: int, fua: bool, done: Done) -> None:
        self.application.zero(Kind.TRIM, offset, length, fua, done)

    def zero(self, offset: int, length: int, may_unmap: bool, fua: bool, done: Done) -> None:
        kind = Kind.ZERO_UNMAP if may_unmap else Kind.ZERO
        self.application.zero(kind, offset, length, fua, done)

    # --- state --------------------------------------------------------------------------------

    def change(self, **fields: Unpack[StateFields]) -> None:
        """Go to the state that differs by `fields` from the present one, adjusted as the rules say."""
        old = self.state
        new = adjust(
            self._with_doubt(old, old._replace(**fields)),
            fencing=self.settings.disk.fencing,
            on_no_data=self.resource.settings.on_no_data_accessible,
            old=old,
            prepared=self.prepared(old),
        )
        if new == old:
            return
        self.state = new
        self.log("info", state_change_text(old, new))
        self._update_shortcuts()
        self._follow_data(old, new)
        self.exchange.state_changed(old, new)
        self.resync.state_changed(old, new)
        self.resync_source.state_changed(old, new)
        self.verify.state_changed(old, new)
        self.keep_superblock()
        self._follow_suspension(new)
        handler_calls.state_changed(self, old, new)
        if self.application.frozen:
            # Not before the peer has been told of this state: what it is sent depends on it.
            self.resource.soon(self.application.thaw)
        self.resource.changed()

    def _with_doubt(self, old: StateWord, wanted: StateWord) -> StateWord:
        """A target that may have finished unheard is not known to be Inconsistent any more. Where it
        counts what the peer could do, that is, under a fencing policy."""
        lost = old.conn in (Conn.SyncSource, Conn.PausedSyncS) and wanted.conn < Conn.Connected
        if lost and self.peer_may_have_current and self.settings.disk.fencing != "dont-care":
            return wanted._replace(pdsk=Disk.DUnknown)
        return exposed.without_peer(old, wanted)

    def prepared(self, old: StateWord) -> StateWord | None:
        """What a Negotiating disk becomes without a peer's: only the data in use counts."""
        if old.disk is not Disk.Negotiating or self.store is None:
            return None
        in_use = self.exposed_uuid if old.role is Role.Primary else 0
        if in_use and (in_use ^ self.store.uuids.current) >> 1:
            return None
        return old._replace(disk=exposed.own_disk(self, self.negotiated_disk), pdsk=Disk.DUnknown)

    def log(self, level: str, message: str) -> None:
        self.resource.log.log(level, f"{self.name}: {message}")

    def _update_shortcuts(self) -> None:
        """The plain attributes that the data path looks at."""
        store, state = self.store, self.state
        usable = store is not None and state.disk in USABLE
        self.data_disk = store.data if store is not None and usable else None
        self.bitmap = store.bitmap if store is not None else None
        log = self.activity_log_object
        if not usable or not self.settings.disk.al_updates:
            log = None
        self.activity_log = log
        self.application.find_straight()

    def _follow_data(self, old: StateWord, new: StateWord) -> None:
        """What the change means for generations and for the crashed-Primary mark."""
        exposed.follow(self, old, new)
        data_lost = contact_lost(old, new)
        if data_lost and old.pdsk >= Disk.Inconsistent and new.conn >= Conn.Connected:
            self.resource.replication.peer_disk_lost(self)
        resync_lost = old.conn > Conn.Connected > new.conn
        if data_lost or resync_lost or came_alone(old, new):
            # A peer that has only just been met may find yet that its applications use other data:
            # not before it writes here (see track_for_peer).
            met = old.conn >= Conn.Connected
            writing = new.role is Role.Primary or (met and new.peer is Role.Primary)
            if writing and new.disk is Disk.UpToDate:
                if new.suspended:
                    self.generation_postponed = True
                else:
                    self.new_generation()
        if self.peer_may_have_current and misses_writes(new) and not new.suspended:
            self.new_generation()
        peer_writes_here = new.peer is Role.Primary and new.pdsk <= Disk.Failed
        self._tracks_for_peer = self._tracks_for_peer and peer_writes_here
        if peer_writes_here and not (old.peer is Role.Primary and old.pdsk <= Disk.Failed):
            if old.conn >= Conn.Connected:
                self.track_for_peer()
            # That Primary's applications use this very generation. Should this node be promoted
            # without it, the data needs another name, or the Primary would take it for its own.
            self.peer_may_have_current = True
        if new.disk is Disk.UpToDate and new.pdsk is Disk.UpToDate and self.crashed_primary:
            self.crashed_primary = False

    def _follow_suspension(self, new: StateWord) -> None:
        """A generation that was due while I/O was suspended: make it, if it is still needed."""
        if not self.generation_postponed:
            return
        peer_is_back = new.conn >= Conn.Connected and new.pdsk >= Disk.Inconsistent
        if peer_is_back or not new.suspended:
            self.generation_postponed = False
            alone = new.role is Role.Primary and not peer_is_back
            if alone and new.disk is Disk.UpToDate:
                self.new_generation()

    def write_cut_off(self, sector: int, nsectors: int) -> None:
        """The connection ended before the peer had this write on stable storage.

        Where I/O is suspended no new generation tells of it. The crashed-Primary mark does: among
        equal generations the marked blocks go from this node to the peer, and if the peer went on
        meanwhile, from there to this node.
        """
        if self.generation_postponed:
            self.crashed_primary = True
            self.mark_out_of_sync(sector, nsectors)

    # --- superblock ---------------------------------------------------------------------------

    def refresh_superblock(self, store: Store) -> None:
        """Called before every superblock write."""
        superblock, uuids = store.superblock, store.uuids
        superblock.current, superblock.bitmap = uuids.current, uuids.bitmap
        superblock.history0, superblock.history1 = uuids.history0, uuids.history1
        superblock.la_size_sect = self.size_sectors
        if store is self.store and self.state.disk in USABLE:
            superblock.flags = superblock.flags & ~STATE_FLAGS | self.state_flags()
            self._last_flags = superblock.flags
            self._unsettled = self._unsettled or self._writing_here

    def loaded_flags(self, flags: Flags) -> None:
        """A disk is being attached: what its superblock says now."""
        self._last_flags = flags
        self._unsettled = False

    @property
    def _writing_here(self) -> bool:
        """Writes begin or end on this disk that leave marks only in its activity log."""
        state, log = self.state, self.activity_log_object
        for_peer = state.peer is Role.Primary and state.pdsk < Disk.Inconsistent
        in_use = bool(self.tracked_writes) or (log is not None and log.in_use)
        return state.role is Role.Primary or for_peer or in_use

    def state_flags(self) -> Flags:
        state = self.state
        flags = Flags.CONSISTENT if state.disk > Disk.Inconsistent else Flags(0)
        if state.disk > Disk.Outdated:
            flags |= Flags.WAS_UP_TO_DATE
        if self._writing_here or self._unsettled:
            flags |= Flags.PRIMARY_IND
        if state.conn > Conn.WFReportParams:
            flags |= Flags.CONNECTED_IND
        if state.pdsk in (Disk.Inconsistent, Disk.Outdated):
            flags |= Flags.PEER_OUT_DATED
        if self.crashed_primary:
            flags |= Flags.CRASHED_PRIMARY
        return flags

    def keep_superblock(self) -> None:
        """Write the superblock when the state has changed what its flags say."""
        if self.store is None or self.state.disk not in USABLE:
            return
        if self._last_flags & STATE_FLAGS != self.state_flags():
            self.write_superblock()
        if self._writing_here:
            # Also where the superblock has said so since before the disk was attached.
            self._unsettled = self._touched = True
        elif self._unsettled:
            self.settle()

    def settle(self, then: Callable[[int], None] | None = None) -> None:
        """Data and bitmap on stable storage; only then may the superblock say that after a crash
        the activity log need not be looked at. then(errno)."""
        if then is not None:
            self._after_settling.append(then)
        store = self.store
        if self._settling or store is None:
            if store is None:
                self.resource.soon(lambda: self._settled(0))
            return
        self._settling = True
        self._touched = self._writing_here

        def written(errno: int) -> None:
            self._settling = False
            if errno and self.store is store:
                self.local_io_error("flush", 0, errno, store.data)
            elif self.store is store and self._touched and not self._writing_here:
                self.settle()
                return
            elif self.store is store and not self._writing_here:
                self._unsettled = False
            self.write_superblock(lambda failed: self._settled(errno or failed))

        def flushed(errno: int) -> None:
            if errno:
                written(errno)
            else:
                store.bitmaps.write_dirty(written)

        store.data.flush(flushed)

    def _settled(self, errno: int) -> None:
        waiting, self._after_settling = self._after_settling, []
        for action in waiting:
            action(errno)

    def write_superblock(self, then: Callable[[int], None] | None = None) -> None:
        """Make UUIDs, size and flags durable; a failure costs the disk."""
        store = self.store
        if store is None:
            if then is not None:
                self.resource.soon(lambda: then(0))
            return

        def written(errno: int) -> None:
            if errno:
                self.local_io_error("superblock write", 0, errno, store.data)
            if then is not None:
                then(errno)

        store.superblocks.write(written)

    @property
    def indicated(self) -> bool:
        """A crash cannot find a superblock that says: ignore the activity log."""
        return self.data_disk is None or self.store is None or self.store.superblocks.indicates

    def when_indicated(self, action: Callable[[], None]) -> None:
        """Run `action` once this is so."""
        if self.indicated:
            action()
        else:
            self.write_superblock(lambda _errno: action())

    # --- generations --------------------------------------------------------------------------

    @property
    def generation_pending(self) -> bool:
        """A new generation is on its way to the disk."""
        return self._generations_pending > 0

    def new_generation(self, then: Callable[[int], None] | None = None) -> None:
        """What is written from here on the peer will not get: give this data a name that the peer
        cannot have (not needed if it has one). Completions wait until it is stable; then(errno)."""
        assert self.store is not None
        primary = self.state.role is Role.Primary
        uuids, name = self.store.uuids, self.resource.random_uuid()
        if uuids.diverge(name, primary, peer_may_have_current=self.peer_may_have_current):
            self.generation_begun(then)
        else:
            uuids.mark_role(primary)
            self.write_superblock(then)

    def generation_begun(self, then: Callable[[int], None] | None = None) -> None:
        """The UUIDs name a new generation: completions wait until they are stable; then(errno)."""
        assert self.store is not None
        self.peer_may_have_current = False
        self.exposed_uuid = self.store.uuids.current
        self.named_alone = self.exposed_uuid if self.state.conn < Conn.Connected else 0
        self._generations_pending += 1
        self.log("info", f"new current UUID: {self.store.uuids}")

        def stable(errno: int) -> None:
            self._generations_pending -= 1
            if not errno and self.state.conn >= Conn.Connected:
                self.exchange.send_uuids()
            if not self.generation_pending:
                self.application.thaw()
                waiting, self._after_generation = self._after_generation, []
                for action in waiting:
                    action()
            if then is not None:
                then(errno)

        self.write_superblock(stable)

    def track_for_peer(self) -> None:
        """Only this copy gets what a Primary without disk writes: it needs a name of its own."""
        begins = self.state.disk is Disk.UpToDate and not self._tracks_for_peer
        self._tracks_for_peer = self._tracks_for_peer or begins
        if begins and not self.generation_pending:
            self.new_generation()

    def after_generation(self, action: Callable[[], None]) -> None:
        """Run `action` once no generation is on its way to the disk."""
        if self.generation_pending:
            self._after_generation.append(action)
        else:
            action()

    # --- bitmap -------------------------------------------------------------------------------

    def mark_out_of_sync(self, sector: int, nsectors: int, *, tell_peer: bool = False) -> None:
        """These sectors may differ from the peer's."""
        if self.bitmap is None:
            return
        # A resync target asks for what it knows of, and the bitmap may have been sent.
        source = self.state.conn in (Conn.WFBitMapS, Conn.SyncSource, Conn.PausedSyncS)
        if self.bitmap.set_sectors(sector, nsectors) and (tell_peer or source):
            self.exchange.send_out_of_sync(sector, nsectors)

    def mark_unshared(self) -> None:
        """Mark what is still on its way to the disk and will be out of sync: the bitmap that is
        about to be sent has to have it."""
        self.application.mark_unshared()
        for write in self.tracked_writes:
            self.mark_out_of_sync(write.sector, write.nsectors)

    def mark_in_sync(self, sector: int, nsectors: int) -> None:
        """These sectors are known equal and stable on both nodes. Partial blocks stay marked."""
        if self.bitmap is not None:
            self.bitmap.clear_sectors(sector, nsectors, self.size_sectors)

    def mark_all(self, then: Callable[[int], None]) -> None:
        """Everything is out of sync, durably; then(errno)."""
        assert self.store is not None
        stores.write_full_bitmap(self.store, then)

    def before_evict(self, extents: list[int], then: Callable[[int], None]) -> None:
        """Bits of extents that leave the log, and with external metadata the data they vouch for."""
        store = self.store
        if store is None:
            then(EIO)
            return
        pages = {p for p in pages_of_extents(extents) if p < store.bitmap.page_count}

        def written(errno: int) -> None:
            if errno or store.meta is store.data:
                then(errno)
            else:
                store.data.flush(then)

        store.bitmaps.write_dirty_of(pages, written)

    # --- size ---------------------------------------------------------------------------------

    def set_size(self, sectors: int, *, same: bool = False) -> None:
        """Take an agreed size; new bits of a bitmap that grows are set, unless both nodes are said
        to hold the same there."""
        if sectors == self.size_sectors:
            return
        self.size_sectors = sectors
        if self.store is not None:
            self.store.bitmap.resize(bitmap_bits(sectors), set_new=not same)
        self.log("info", f"size = {sectors >> 1} KB ({sectors} sectors)")
        self.resource.changed()

    @property
    def own_capacity(self) -> int:
        """Sectors that the local disk could hold; 0 without one."""
        return self.store.capacity_sectors if self.store is not None else 0

    # --- attach and detach (see attachment) ---------------------------------------------------

    def attach(self, data: DiskPort, meta: DiskPort, placement: Placement, done: AdminDone) -> None:
        """Read the metadata and take the disk into use; done(None or the error)."""
        self.attachment.attach(data, meta, placement, done)

    def drop_disk(self, done: Callable[[], None] | None = None) -> None:
        """Failed, then Diskless; what can still be saved of the bitmap is written."""
        self.attachment.drop(done)

    # --- the connection -----------------------------------------------------------------------

    def start_full_sync(self, conn: Conn, then: Callable[[int], None] | None = None) -> None:
        """StartingSyncS or StartingSyncT, agreed with the peer: all bits, then the resync itself.
        then(errno) when a crash cannot undo it any more."""
        link, store = self.resource.replication.link, self.store
        if conn is Conn.StartingSyncT:
            # The order stands also if the connection ends before the source has named the resync.
            self.change(conn=conn, disk=Disk.Inconsistent)
        else:
            self.peer_may_have_current = True
            self.change(conn=conn)
        if self.state.conn is not conn or store is None:
            # A disk has been lost since the two nodes agreed.
            if then is not None:
                self.resource.soon(partial(then, EIO))
            return

        def marked(errno: int) -> None:
            if then is not None:
                then(errno)
            if errno:
                self.local_io_error("bitmap write", 0, errno, store.data)
            elif self.state.conn is conn and self.resource.replication.link is link:
                if conn is Conn.StartingSyncS:
                    self.resync_source.start()
                else:
                    self.exchange.await_sync_uuid()

        self.mark_all(marked)

    def connection_lost(self) -> None:
        """After the states have changed and the transfer log is empty: keep what is known."""
        if self.store is not None and self.state.disk is Disk.Diskless:
            # It was Negotiating, and nobody can say any more whether its data may be used.
            store, self.store = self.store, None
            self.activity_log_object = None
            self._update_shortcuts()
            if self.released is not None:
                self.released(store)
        if self.store is not None and self.state.disk > Disk.Failed:
            self.store.bitmaps.write_dirty()
            self.keep_superblock()

    def log_is_starving(self) -> None:
        """All slots belong to writes that the peer has not made stable: ask it to."""
        self.resource.replication.close_epoch()

    def activity_log_failed(self, log: ActivityLog, errno: int) -> None:
        """A transaction cannot be written. Without it a write here would leave no mark."""
        if self.activity_log_object is log and self.store is not None:
            self.local_io_error("activity log write", 0, errno, self.store.data)

    def local_io_error(self, what: str, sector: int, errno: int, disk: DiskPort | None) -> None:
        """Act as on-io-error says. disk: the failed one, None if there was none; if another has its
        place by now, nothing happens."""
        if self.state.disk <= Disk.Failed or self.store is None or self.store.data is not disk:
            return
        policy = self.settings.disk.on_io_error
        self.disk_error = f"local {what} at sector {sector}: {errno_text(errno)}; {policy}"
        self.log("error", self.disk_error)
        if policy == "pass_on" and what in PASSED_ON:
            if self.state.disk > Disk.Inconsistent:
                self.change(disk=Disk.Inconsistent)
                self.exchange.send_state()
            return
        if policy == "call-local-io-error":
            self.resource.handlers.call("local-io-error", self.number, None)
        self.drop_disk()
