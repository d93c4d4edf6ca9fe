"""What two nodes tell each other about one volume when they meet, and the decision that follows.

Order on the wire: sync parameters, sizes, UUIDs, state; the first state of the peer triggers the
decision (`handshake`). Then the bitmaps, if somebody is to be synchronised.

Rules:
1. The decision is taken once per connection (or attach, or forced promotion), from what was said.
2. Bits merged from the peer, and bits set for a full sync, are durable before anybody acts on them.
3. Between the packets of a bitmap nothing else is sent on the data socket.
What this file must not know: how sockets are found, how blocks are transferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from protocol import compat
from protocol.bitmaps import BitmapReceiver, BitmapSender
from protocol.errors import WireError
from protocol.packets import (
    BlockDesc,
    Command,
    Packet,
    Raw,
    Sizes,
    StateReport,
    SyncParam,
    SyncUuid,
    Uuids,
    encode,
)
from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine import exposed
from replicator.engine.adoption import adopt_sync_param
from replicator.engine.generations import UuidSet
from replicator.engine.growth import FLAG_NO_RESYNC, answer_growth
from replicator.engine.handshake import Handshake, Outcome, Verdict, resolve
from replicator.engine.resync import SOURCE

if TYPE_CHECKING:
    from replicator.engine.link import Link
    from replicator.engine.volume import Volume

FLAG_DISCARD_MY_DATA = 1
FLAG_CRASHED_PRIMARY = 2
FLAG_INCONSISTENT = 4
FLAG_SKIP_INITIAL_SYNC = 8

BITMAP_WINDOW = 1 << 20
"""Bytes of bitmap packets queued at once; the rest follows when the system has taken them."""

SYNC_STARTING = (Conn.StartingSyncS, Conn.StartingSyncT, Conn.WFBitMapS, Conn.WFBitMapT)


class Exchange:
    """The peer's half of the knowledge about one volume, as long as the connection lasts."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.peer_uuids: UuidSet | None = None
        self.peer_flags = 0
        self.peer_weight = 0
        self._announced_weight = 0
        self.sizes: Sizes | None = None
        self.user_size = volume.settings.disk.size >> 9
        """Sectors that an administrator limits the volume to, on either node; 0: no limit."""
        self.decided = False
        self.consider_resync = False
        """Both disks were Inconsistent and the peer was just forced Primary."""
        self._receiver: BitmapReceiver | None = None
        self._round = 0
        """Number of the exchange of bitmaps, so that what a former one began does not disturb."""
        self._preparing = False
        self._early_uuid: int | None = None
        """Name of a resync for which this node is not ready yet."""
        self.answer_due = False
        """The peer has not told yet what it makes of the disk that was announced last."""

    @property
    def _link(self) -> Link | None:
        return self._volume.resource.replication.link

    def forget(self) -> None:
        """The connection is gone, and with it everything the peer said."""
        self.peer_uuids = None
        self.peer_flags = self.peer_weight = 0
        self.sizes = None
        self.user_size = self._volume.settings.disk.size >> 9
        self.decided = False
        self.consider_resync = False
        self._receiver = None
        self._round += 1
        self._preparing = False
        self._early_uuid = None
        self.answer_due = False

    def state_changed(self, old: StateWord, new: StateWord) -> None:
        """The volume's state changed: the resync whose name came early may have come to nothing."""
        back = new.conn is Conn.Connected and old.conn is not Conn.Connected
        if back or new.disk < Disk.Inconsistent:
            self._early_uuid = None

    # --- telling ------------------------------------------------------------------------------

    def _send(self, command: Command, packet: Packet) -> None:
        link = self._link
        if link is not None:
            link.send_data(encode(self._volume.number, command, packet, wsame=link.with_wsame))

    def announce(self) -> None:
        """The whole report at the start of a connection."""
        self._send(Command.SYNC_PARAM89, self._sync_param())
        self.send_sizes()
        if self._volume.store is not None:
            self.send_uuids()
        self.send_state()

    def announce_disk(self) -> None:
        """A disk was attached while connected: sizes, UUIDs, and the state Negotiating."""
        self.decided = False
        # A kernel may have nothing to tell.
        self.answer_due = bool(self._link and self._link.peer_extension)
        # Those that the peer sends when it hears of the disk count: it may have begun a generation.
        self.peer_uuids = None
        self.send_sizes()
        self.send_uuids()
        self.send_state()

    def _sync_param(self) -> SyncParam:
        disk, net = self._volume.settings.disk, self._volume.resource.settings.net
        return SyncParam(
            max(1, disk.resync_rate >> 10),
            net.verify_alg,
            net.csums_alg,
            round(disk.c_plan_ahead * 10),
            round(disk.c_delay_target * 10),
            disk.c_fill_target >> 9,
            max(1, disk.c_max_rate >> 10) if disk.c_max_rate else 4 << 20,
        )

    def send_sizes(self, flags: int = 0) -> None:
        """flags: in an answer, those of the question."""
        volume = self._volume
        self._send(
            Command.SIZES,
            Sizes(
                volume.own_capacity,
                self.user_size,
                volume.size_sectors,
                dds_flags=flags,
                discard_enabled=1,
            ),
        )

    def send_uuids(self, flags: int = 0) -> None:
        store = self._volume.store
        if store is None:
            return
        if self._volume.resource.discard_my_data:
            flags |= FLAG_DISCARD_MY_DATA
        if self._volume.crashed_primary:
            flags |= FLAG_CRASHED_PRIMARY
        negotiating = self._volume.state.disk is Disk.Negotiating
        if negotiating and self._volume.negotiated_disk is Disk.Inconsistent:
            flags |= FLAG_INCONSISTENT
        uuids = store.uuids
        self._announced_weight = store.bitmap.weight
        self._send(
            Command.UUIDS,
            Uuids(
                uuids.current,
                uuids.bitmap,
                uuids.history0,
                uuids.history1,
                self._announced_weight,
                flags,
            ),
        )

    def send_state(self) -> None:
        self._send(Command.STATE, StateReport(self._volume.state.pack()))

    def send_out_of_sync(self, sector: int, nsectors: int) -> None:
        self._send(Command.OUT_OF_SYNC, BlockDesc(sector, nsectors << 9))

    # --- hearing ------------------------------------------------------------------------------

    def got_sync_param(self, packet: SyncParam) -> None:
        if self.decided:
            adopt_sync_param(self._volume.resource, packet)
            return
        problem = compat.compare_sync_param(self._sync_param(), packet)
        if problem is not None:
            self._volume.resource.refuse_peer(f"{self._volume.name}: {problem}")

    def got_sizes(self, packet: Sizes) -> None:
        """Agree on the size (generations: size negotiation)."""
        volume = self._volume
        self.sizes = packet
        own, peer = volume.own_capacity, packet.d_size
        if own and peer:
            size = min(own, peer)
        elif volume.store is None:
            size = volume.size_sectors or packet.c_size or packet.u_size or peer
        else:
            size = min(volume.size_sectors or own, own)
        self.user_size = self._agreed_user_size(packet)
        if self.user_size:
            size = min(size, self.user_size)
        shrinks = size < volume.size_sectors
        resyncing = volume.state.conn > Conn.Connected
        if shrinks and (volume.state.disk >= Disk.Outdated or volume.users or resyncing):
            volume.resource.refuse_peer(
                f"{volume.name}: the peer's disk is too small: this volume has "
                f"{volume.size_sectors} sectors, the peer offers {peer}"
            )
            return
        grew = size > volume.size_sectors
        if size != volume.size_sectors:
            volume.set_size(size, same=bool(packet.dds_flags & FLAG_NO_RESYNC))
            if grew and self.decided and self._link is not None and volume.store is not None:
                answer_growth(volume, self._link, packet.dds_flags)
                return
            volume.write_superblock()
        # A size of 0 asks for an answer; what is sent here never asks, or two nodes would not stop.
        if self.decided and size and packet.c_size != size:
            self.send_sizes(packet.dds_flags)

    def _agreed_user_size(self, packet: Sizes) -> int:
        """The smaller of both `size` options; but connected, a size that asks for an answer comes
        from an administrator who has changed it for both nodes."""
        if self.decided and not packet.c_size:
            return packet.u_size
        return min((w for w in (self.user_size, packet.u_size) if w), default=0)

    def got_uuids(self, packet: Uuids) -> None:
        volume = self._volume
        self.peer_uuids = UuidSet(packet.current, packet.bitmap, packet.history0, packet.history1)
        self.peer_flags = packet.flags
        self.peer_weight = packet.dirty_bits
        reason = exposed.told(volume, self.peer_uuids)
        if reason:
            volume.resource.refuse_peer(reason)
            return
        if packet.flags & FLAG_SKIP_INITIAL_SYNC and volume.state.conn is Conn.Connected:
            self._skip_initial_sync(packet)

    def _skip_initial_sync(self, packet: Uuids) -> None:
        """The peer's administrator vouches that both fresh disks hold the same."""
        volume = self._volume
        store = volume.store
        if store is None or not store.uuids.just_created:
            return
        store.bitmap.clear_all()
        store.uuids.current = packet.current & ~1
        store.uuids.bitmap = 0
        store.bitmaps.write_dirty()
        volume.change(disk=Disk.UpToDate, pdsk=Disk.UpToDate)
        volume.write_superblock()

    def got_state(self, packet: StateReport) -> None:
        """The peer reports its state; the first report, and some others, start the decision."""
        volume = self._volume
        try:
            peer = StateWord.unpack(packet.word)
        except ValueError as error:
            raise WireError(f"STATE {packet.word:#x}: {error}") from error
        disk = exposed.peer_disk(volume, self._real_peer_disk(peer))
        if disk is Disk.DUnknown:
            volume.resource.refuse_peer(f"{volume.name}: the peer reports its disk as DUnknown")
            return
        nameless = self.peer_uuids is None and peer.disk >= Disk.Negotiating
        if nameless and volume.state.disk > Disk.Negotiating:
            raise WireError(f"STATE with disk {peer.disk.name}: expected its UUIDS first")
        if self.peer_uuids is not None or peer.disk < Disk.Negotiating:
            self.answer_due = False
        isp = peer.aftr_isp or peer.user_isp
        if self._ends_resync(peer):
            if volume.state.conn in SOURCE and not self._refuses_second_primary(peer):
                volume.change(peer=peer.role, peer_isp=isp)
            return
        if peer.conn is Conn.Connected:
            volume.verify_target.asker_is_done()
        state = volume.state
        if self._must_decide(peer):
            self._decide(peer, disk, isp)
            return
        if self._refuses_second_primary(peer):
            return
        if state.conn is Conn.WFReportParams:
            volume.change(conn=Conn.Connected, peer=peer.role, pdsk=disk, peer_isp=isp)
            self.decided = True
            self.send_state()
            volume.resource.volume_connected(volume)
            return
        early = disk is Disk.UpToDate and state.pdsk is not Disk.UpToDate
        if early and (state.conn in SYNC_STARTING or state.conn is Conn.WFSyncUUID):
            disk = Disk.Inconsistent
        # A congested peer has stopped sending data: from now on only the news of what it writes comes.
        behind = peer.conn is Conn.Ahead and state.conn is Conn.Connected
        conn = Conn.Behind if behind else state.conn
        volume.change(conn=conn, peer=peer.role, pdsk=disk, peer_isp=isp)
        if peer.disk is Disk.Negotiating and state.disk < Disk.Negotiating:
            self.send_state()  # that the peer need not wait for a disk to compare with
        elif state.disk is Disk.Negotiating and peer.disk < Disk.Negotiating:
            volume.attachment.nothing_to_compare()

    def _refuses_second_primary(self, peer: StateWord) -> bool:
        volume = self._volume
        both = peer.role is Role.Primary and volume.state.role is Role.Primary
        if not both or volume.resource.settings.net.allow_two_primaries:
            return False
        volume.resource.refuse_peer(
            f"{volume.name}: both nodes are Primary and allow-two-primaries is no: "
            "multiple primaries not allowed by config"
        )
        return True

    def _real_peer_disk(self, peer: StateWord) -> Disk:
        if peer.disk is not Disk.Negotiating:
            return peer.disk
        inconsistent = self.peer_flags & FLAG_INCONSISTENT
        return Disk.Inconsistent if inconsistent else Disk.Consistent

    def _real_own_disk(self) -> Disk:
        state = self._volume.state
        return self._volume.negotiated_disk if state.disk is Disk.Negotiating else state.disk

    def _ends_resync(self, peer: StateWord) -> bool:
        """The target says that it is done, as do its later reports: the end has its own course, and may
        take a while."""
        state = self._volume.state
        if state.conn not in SOURCE or peer.conn is not Conn.Connected:
            return False
        if peer.disk is Disk.Inconsistent:
            self._volume.resync_source.target_gave_up()
            return False
        return (
            state.disk is Disk.UpToDate
            and state.pdsk in (Disk.Inconsistent, Disk.Consistent)
            and peer.disk is Disk.UpToDate
            and self._volume.resync_source.target_is_done()
        )

    def _must_decide(self, peer: StateWord) -> bool:
        volume = self._volume
        state = volume.state
        if self.peer_uuids is None or volume.store is None:
            return False
        if peer.disk < Disk.Negotiating or state.disk < Disk.Negotiating:
            return False
        if not self.decided and state.conn in (Conn.WFReportParams, Conn.Connected):
            return True
        if state.conn is not Conn.Connected:
            return False
        if Disk.Negotiating in (state.disk, peer.disk):
            return True
        return self.consider_resync or peer.conn in SYNC_STARTING

    # --- the decision -------------------------------------------------------------------------

    def _decide(self, peer: StateWord, peer_disk: Disk, isp: bool) -> None:
        volume, resource = self._volume, self._volume.resource
        link, store = self._link, volume.store
        assert link is not None and store is not None and self.peer_uuids is not None
        new_connection = volume.state.conn is Conn.WFReportParams
        if self.consider_resync or peer.disk is Disk.Negotiating:
            self.send_uuids()
        net = resource.settings.net
        verdict = resolve(
            Handshake(
                own=store.uuids,
                peer=self.peer_uuids,
                own_weight=self._announced_weight,
                peer_weight=self.peer_weight,
                own_crashed=volume.crashed_primary,
                peer_crashed=bool(self.peer_flags & FLAG_CRASHED_PRIMARY),
                own_discard=resource.discard_my_data,
                peer_discard=bool(self.peer_flags & FLAG_DISCARD_MY_DATA) or resource.peer_discards,
                own_role=volume.state.role,
                peer_role=peer.role,
                own_disk=self._real_own_disk(),
                peer_disk=peer_disk,
                arbiter=link.arbiter,
                version=link.version,
                write_same=link.with_wsame,
                extended=bool(link.peer_extension),
                after_sb_0pri=net.after_sb_0pri,
                after_sb_1pri=net.after_sb_1pri,
                after_sb_2pri=net.after_sb_2pri,
                rr_conflict=net.rr_conflict,
                always_asbp=net.always_asbp,
                own_demotable=volume.users == 0,
                own_negotiating=volume.state.disk is Disk.Negotiating,
                peer_negotiating=peer.disk is Disk.Negotiating,
                resource=resource.settings.name,
            )
        )
        self.consider_resync = False
        self.decided = True
        level = "error" if verdict.outcome is Outcome.GIVE_UP else "info"
        volume.log(level, f"handshake: {verdict.outcome.value}: {verdict.reason}")
        for handler in verdict.handlers:
            resource.handlers.call(handler, volume.number, None)
        if verdict.outcome is Outcome.GIVE_UP:
            self._give_up(verdict, peer)
            return
        self._carry_out(verdict, peer, peer_disk, isp, new_connection)

    def _give_up(self, verdict: Verdict, peer: StateWord) -> None:
        volume = self._volume
        if volume.state.disk is Disk.Negotiating:
            volume.drop_disk()
        elif peer.disk is Disk.Negotiating:
            volume.change(pdsk=Disk.Diskless)
            self.send_state()  # that the peer comes to the same verdict, and gives the disk up
        else:
            volume.resource.refuse_peer(f"{volume.name}: {verdict.reason}")

    def _carry_out(
        self, verdict: Verdict, peer: StateWord, peer_disk: Disk, isp: bool, new: bool
    ) -> None:
        volume, resource = self._volume, self._volume.resource
        assert volume.store is not None
        if (verdict.own, verdict.peer) != (volume.store.uuids, self.peer_uuids):
            volume.store.uuids = verdict.own
            self.peer_uuids = verdict.peer
            volume.write_superblock()
        if verdict.demote:
            resource.demote_for_split_brain()
        if verdict.peer_demotes:
            # It steps back before it goes on. Should its device be in use it ends the connection.
            peer = peer._replace(role=Role.Secondary)
        if self._refuses_second_primary(peer):
            return
        disk, pdsk = self._real_own_disk(), peer_disk
        prepared: Callable[[], None] | None = None
        if verdict.outcome is Outcome.NOTHING:
            conn = Conn.Connected
            # They are equal, so neither is older than the other.
            older = (Disk.Outdated, Disk.Consistent)
            disk = Disk.UpToDate if disk in older else disk
            pdsk = Disk.UpToDate if pdsk in older else pdsk
        elif verdict.outcome is Outcome.SOURCE:
            conn, prepared = Conn.WFBitMapS, lambda: self._serve(verdict)
            volume.peer_may_have_current = verdict.peer.knows(verdict.own.current)
        else:
            conn, prepared = Conn.WFBitMapT, self._bitmap_step
        volume.change(conn=conn, peer=peer.role, disk=disk, pdsk=pdsk, peer_isp=isp)
        self.send_state()
        if prepared is not None:
            self._prepare(verdict.full, prepared)
        if new:
            resource.volume_connected(volume)

    def _serve(self, verdict: Verdict) -> None:
        store = self._volume.store  # which has the marks of a full resync on stable storage
        if store and verdict.full and store.uuids.track_ancestor(verdict.peer.current):
            self._volume.write_superblock()
        self._send_bitmap()

    def _prepare(self, full: bool, then: Callable[[], None]) -> None:
        """Set all bits for a full sync, durably, then go on; meanwhile the peer's bitmap may come."""
        volume, store = self._volume, self._volume.store
        assert store is not None
        self._receiver = BitmapReceiver(store.bitmap.bits)
        self._round += 1
        self._preparing = full
        if not full:
            then()
            return
        mine = self._round

        def durable(errno: int) -> None:
            if errno:
                volume.local_io_error("bitmap write", 0, errno, store.data)
            elif self._goes_on(mine):
                self._preparing = False
                then()

        volume.mark_all(durable)

    # --- bitmaps ------------------------------------------------------------------------------

    def _goes_on(self, mine: int) -> bool:
        """The exchange of that number has neither been broken off nor begun anew."""
        conn = self._volume.state.conn
        return mine == self._round and conn in (Conn.WFBitMapS, Conn.WFBitMapT)

    def _send_bitmap(self) -> None:
        """Ours goes out; as target that was the last thing before the sync UUID."""
        volume, link = self._volume, self._link
        assert link is not None and volume.store is not None
        bitmap = volume.store.bitmap
        use_rle = volume.resource.settings.net.use_rle
        volume.mark_unshared()
        mine = self._round

        def start() -> None:
            if self._goes_on(mine):
                packets = iter(BitmapSender(bitmap.bits, bitmap.data, use_rle))
                self._send_bitmap_part(link, packets, mine)
            else:
                link.hold_data(False)

        link.when_uninterrupted(start)

    def _send_bitmap_part(
        self, link: Link, packets: Iterator[tuple[Command, bytes]], mine: int
    ) -> None:
        """As much as the window takes, then again a moment later."""
        while not link.closed:
            if link.data.channel.unsent > BITMAP_WINDOW:
                clock = self._volume.resource.clock
                clock.call_later(0.005, lambda: self._send_bitmap_part(link, packets, mine))
                return
            step = next(packets, None)
            if step is None:
                link.hold_data(False)
                if self._goes_on(mine):
                    self._bitmap_sent()
                return
            command, payload = step
            link.send_uninterrupted(encode(self._volume.number, command, Raw(payload)))

    def got_bitmap(self, command: int, payload: bytes) -> None:
        """A packet of the peer's bitmap: its bits are added to ours."""
        volume = self._volume
        if volume.state.disk < Disk.Negotiating:
            return  # given up while this was on its way; the peer hears of it
        expecting = volume.state.conn in (Conn.WFBitMapS, Conn.WFBitMapT)
        if self._receiver is None or volume.store is None or not expecting:
            raise WireError(f"bitmap packet while {volume.state.conn.name}: none is expected")
        bitmap = volume.store.bitmap
        for first, count in self._receiver.receive(command, payload):
            bitmap.or_run(first, count)
        if self._receiver.complete:
            self._bitmap_step()

    def _bitmap_step(self) -> None:
        """The peer's bitmap may be complete and our own bits durable: if both, the next step."""
        volume, store, receiver = self._volume, self._volume.store, self._receiver
        if receiver is None or not receiver.complete or self._preparing or store is None:
            return
        self._receiver = None
        mine = self._round

        def durable(errno: int) -> None:
            if errno:
                volume.local_io_error("bitmap write", 0, errno, store.data)
            elif self._goes_on(mine):
                self._merged()

        store.bitmaps.write_dirty(durable)

    def _merged(self) -> None:
        conn = self._volume.state.conn
        if conn is Conn.WFBitMapT:
            self._send_bitmap()
        elif conn is Conn.WFBitMapS:
            self._volume.resync_source.start()

    def _bitmap_sent(self) -> None:
        volume = self._volume
        if volume.state.conn is Conn.WFBitMapT:
            volume.change(conn=Conn.WFSyncUUID)
            if self._early_uuid is not None:
                self._adopt(self._early_uuid)

    # --- the sync UUID ------------------------------------------------------------------------

    def send_sync_uuid(self, uuid: int) -> None:
        self._send(Command.SYNC_UUID, SyncUuid(uuid))

    def got_sync_uuid(self, packet: SyncUuid) -> None:
        conn = self._volume.state.conn
        if self._volume.state.disk < Disk.Inconsistent:
            return  # given up while this was on its way; the source hears of it
        if conn in (Conn.WFSyncUUID, Conn.Behind):
            self._adopt(packet.uuid)
        elif conn in (Conn.WFBitMapT, Conn.StartingSyncT) or self._asks_for_full_sync():
            self._early_uuid = packet.uuid
        else:
            raise WireError(f"SYNC_UUID while {conn.name}: expected only when becoming sync target")

    def _asks_for_full_sync(self) -> bool:
        """The peer's consent takes the other socket: the name of the resync may overtake it."""
        return self._volume.resource.cluster.asks_for(self._volume, Conn.StartingSyncT)

    def _adopt(self, uuid: int) -> None:
        self._early_uuid = None
        self._volume.resync.start_target(uuid)

    def await_sync_uuid(self) -> None:
        """A full sync without bitmap exchange (invalidate): everything is prepared here."""
        self._volume.change(conn=Conn.WFSyncUUID)
        if self._early_uuid is not None:
            self._adopt(self._early_uuid)
