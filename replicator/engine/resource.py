"""One resource on one node: its volumes, its connection, and what an administrator can do with it.

This is the engine's face: front ends talk to `volumes`, the control socket to the commands, the
runtime hands in the ports. Commands are carried out by `admin`.
What this file must not know: sockets, files, processes, the configuration's syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import replicator
from protocol import compat
from protocol.errors import WireError
from protocol.extensions import HELLO, MAX_REASON, REFUSAL, decode_extension, encode_extension
from protocol.framing import Block
from protocol.packets import (
    Command,
    ProtocolParams,
    Raw,
    encode,
)
from protocol.states import Conn, Role
from replicator.engine import admin, new_current, outdating, probe, roles, verify_command
from replicator.engine.cluster import Cluster
from replicator.engine.dispatch import dispatch, dispatch_block
from replicator.engine.establish import Establisher, Sockets
from replicator.engine.fencing import Fencing
from replicator.engine.link import Link
from replicator.engine.pacing import Courtesy
from replicator.engine.peer_reads import PeerReads
from replicator.engine.peer_writes import PeerWrites
from replicator.engine.ports import Clock, Entropy, Handlers, Log, Network, Timer
from replicator.engine.ports import Disk as DiskPort
from replicator.engine.replication import Replication
from replicator.engine.settings import ResourceSettings
from replicator.engine.snapshot import ResourceSnapshot
from replicator.engine.status import snapshot
from replicator.engine.volume import AdminDone, Volume
from replicator.metadata.layout import Placement

RECONNECT_PAUSE = 0.2
"""After losing a connection that worked; DRBD waits 1 s."""
REFUSED_LINGER = 1.0
"""How long the sockets stay open after refusing a peer that is not a replicator."""
RECONNECT_PAUSE_FAILED = 1.0
"""After a connection that ended in the handshake."""


@dataclass(slots=True)
class Ports:
    network: Network
    clock: Clock
    entropy: Entropy
    log: Log
    handlers: Handlers


class Resource:
    """All calls on the loop's thread. `on_change` is called after every visible change."""

    def __init__(self, settings: ResourceSettings, ports: Ports) -> None:
        self.settings = settings
        self.clock = ports.clock
        self.entropy = ports.entropy
        self.log = ports.log
        self.handlers = ports.handlers
        self.on_change: Callable[[], None] | None = None
        self.courtesy = Courtesy(ports.clock)
        self.replication = Replication(self)
        self.cluster = Cluster(self)
        self.fencing = Fencing(self)
        self.peer_writes: PeerWrites | None = None
        self.peer_reads: PeerReads | None = None
        self.link: Link | None = None
        """The pair of sockets, also while it is still being checked."""
        self.conn = Conn.StandAlone
        """State of the connection while no parameters are agreed; the volumes have it as well."""
        self.role = Role.Secondary
        self.discard_my_data = False
        self.peer_discards = False
        self.peer_software = ""
        self.last_error = ""
        self.conn_since = self.clock.now()
        self._heard_protocol = False
        self._watch: Timer | None = None
        self._watched = (0, 0)
        self._patience = 0
        self.volumes = {v.number: Volume(self, v) for v in settings.volumes}
        self.establisher = Establisher(
            ports.network,
            ports.clock,
            ports.entropy,
            ports.log,
            settings.net,
            settings.dials_first,
            self._established,
            self._knocked,
        )

    # --- small services -----------------------------------------------------------------------

    def soon(self, action: Callable[[], None]) -> None:
        self.clock.call_soon(action)

    def changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def after_peer_writes(self, action: Callable[[], None]) -> None:
        """Run `action` in its turn: what the peer has written until now is in line for its range, also
        if that waits for an earlier epoch. Never, when the connection ends before."""
        if self.peer_writes is not None:
            self.peer_writes.when_started(action)

    def random_uuid(self) -> int:
        """64 random bits that can name a generation."""
        while True:
            value = int.from_bytes(self.entropy.random_bytes(8), "big") & ~1
            if value not in (0, 4):
                return value

    # --- commands (see admin) -----------------------------------------------------------------

    def attach(
        self,
        volume: int,
        data: DiskPort,
        meta: DiskPort,
        placement: Placement,
        done: AdminDone,
    ) -> None:
        self.volumes[volume].attach(data, meta, placement, done)

    def connect(self, discard_my_data: bool, done: AdminDone) -> None:
        admin.connect(self, discard_my_data, done)

    def disconnect(self, force: bool, done: AdminDone) -> None:
        admin.disconnect(self, force, done)

    def primary(self, force: bool, done: AdminDone) -> None:
        roles.Promotion(self, force, done).start()

    def secondary(self, done: AdminDone) -> None:
        roles.secondary(self, done)

    def detach(self, volume: int, force: bool, done: AdminDone) -> None:
        admin.detach(self.volumes[volume], force, done)

    def new_current_uuid(self, volume: int, clear_bitmap: bool, done: AdminDone) -> None:
        new_current.new_current_uuid(self.volumes[volume], clear_bitmap, done)

    def invalidate(self, volume: int, done: AdminDone) -> None:
        admin.invalidate(self.volumes[volume], done)

    def invalidate_remote(self, volume: int, done: AdminDone) -> None:
        admin.invalidate_remote(self.volumes[volume], done)

    def verify(self, volume: int, start: int | None, stop: int | None, done: AdminDone) -> None:
        verify_command.verify(self.volumes[volume], start, stop, done)

    def outdate(self, volume: int, done: AdminDone) -> None:
        outdating.outdate(self.volumes[volume], done)

    def probe(self, volume: int, kind: str, begun: Callable[[], None], ended: AdminDone) -> None:
        probe.probe(self.volumes[volume], kind, begun, ended)

    def pause_sync(self, volume: int, done: AdminDone) -> None:
        admin.pause_sync(self.volumes[volume], True, done)

    def resume_sync(self, volume: int, done: AdminDone) -> None:
        admin.pause_sync(self.volumes[volume], False, done)

    def suspend_io(self, done: AdminDone) -> None:
        admin.suspend_io(self, done)

    def resume_io(self, done: AdminDone) -> None:
        admin.resume_io(self, done)

    def shutdown(self, done: AdminDone, *, force: bool = False) -> None:
        admin.shutdown(self, force, done)

    def snapshot(self) -> ResourceSnapshot:
        return snapshot(self)

    # --- the connection's life ----------------------------------------------------------------

    def set_conn(self, conn: Conn) -> None:
        """The state of a connection that carries no volumes (yet or any more)."""
        if conn is not self.conn:
            self.conn = conn
            self.conn_since = self.clock.now()
        for volume in self.volumes.values():
            volume.change(conn=conn)

    def search(self, pause: float = 0.0) -> None:
        """Unconnected, and at once waiting for the peer."""
        self.set_conn(Conn.Unconnected)
        self.set_conn(Conn.WFConnection)
        self.establisher.start(pause)

    def stand_alone(self) -> None:
        self.establisher.stop()
        self.discard_my_data = False
        self.set_conn(Conn.StandAlone)

    def _established(self, sockets: Sockets) -> None:
        self.link = Link(self, sockets, self.settings.net, self.clock, self.entropy, self.log)
        self.link.start()

    def _knocked(self) -> None:
        """The peer dials although we are connected: see whether the connection still lives."""
        if self.replication.link is not None:
            self.replication.link.ping()

    def refuse_peer(self, reason: str) -> None:
        """This peer and this node must not work together: tell it why, and stand alone."""
        link = self.link
        if link is None:
            return
        if link.peer_extension and self.replication.link is link:
            fields = {"reason": reason[:MAX_REASON]}
            link.send_uninterrupted(
                encode(0, Command.EXTENSION, Raw(encode_extension(REFUSAL, fields)))
            )
        # A kernel cannot be told; from what we have reported it finds the same, if it is left the
        # time to read it, and stands alone as well instead of dialling for ever.
        linger = 0.0 if link.peer_extension else REFUSED_LINGER
        link.fail(Conn.Disconnecting, reason, stand_alone=True, linger=linger)

    def demote_for_split_brain(self) -> None:
        """call-pri-lost-after-sb: nobody holds the devices open, so the Primary can step back."""
        roles.demote(self, lambda _error: None)

    # --- LinkOwner ----------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """Exchange parameters: everything about us goes out without waiting for the peer."""
        self.replication.link = link
        self.peer_writes = PeerWrites(self, link)
        self.peer_reads = PeerReads(self, link)
        self.peer_discards = False
        self._heard_protocol = False
        if not link.peer_extension and (problem := self._only_for_replicators()):
            self.refuse_peer(problem)
            return
        link.send_data(encode(0, Command.PROTOCOL, self._protocol_params()))
        if link.peer_extension:
            link.send_data(encode(0, Command.EXTENSION, Raw(self._hello())))
        self.conn = Conn.WFReportParams
        self.conn_since = self.clock.now()
        for volume in self.volumes.values():
            volume.sequence = 0
            volume.exchange.forget()
            volume.change(conn=Conn.WFReportParams)
            volume.exchange.announce()
        self._watch_progress()

    def _only_for_replicators(self) -> str | None:
        net = self.settings.net
        return compat.needs_replicator(
            {
                "data-integrity-alg": net.data_integrity_alg,
                "csums-alg": net.csums_alg,
                "verify-alg": net.verify_alg,
            }
        )

    def _protocol_params(self) -> ProtocolParams:
        net = self.settings.net
        return ProtocolParams(
            compat.PROTOCOL_CODES[net.protocol],
            compat.AFTER_SB_CODES[net.after_sb_0pri],
            compat.AFTER_SB_CODES[net.after_sb_1pri],
            compat.AFTER_SB_CODES[net.after_sb_2pri],
            compat.CF_DISCARD_MY_DATA if self.discard_my_data else 0,
            int(net.allow_two_primaries),
            net.data_integrity_alg,
        )

    def _hello(self) -> bytes:
        return encode_extension(
            HELLO,
            {
                "software": f"replicator {replicator.__version__}",
                "node": self.settings.node,
                "resource": self.settings.name,
                "volumes": {n: v.size for n, v in self.volumes.items()},
            },
        )

    def got_protocol(self, packet: ProtocolParams) -> None:
        self._heard_protocol = True
        problem = compat.compare_protocol(self._protocol_params(), packet)
        if problem is not None:
            self.refuse_peer(problem)
            return
        self.peer_discards = bool(packet.conn_flags & compat.CF_DISCARD_MY_DATA)
        if self.link is not None:
            self.link.expect_digests(packet.integrity_alg)

    def got_extension(self, payload: bytes) -> None:
        extension = decode_extension(payload)
        if extension.kind == REFUSAL:
            reason = f"the peer refused: {extension.fields['reason']}"
            assert self.link is not None
            self.link.fail(Conn.Disconnecting, reason, stand_alone=True)
            return
        self.peer_software = extension.fields["software"]
        theirs = extension.fields["resource"]
        if theirs != self.settings.name:
            self.refuse_peer(
                f"wrong resource on the other end: expected {self.settings.name}, "
                f"found {theirs} on node {extension.fields['node']}"
            )

    def block(self, link: Link, block: Block) -> None:
        dispatch_block(self, block)

    def packet(self, link: Link, command: int, volume: int, payload: bytes) -> None:
        if not self._heard_protocol and command == Command.AUTH_CHALLENGE:
            self.refuse_peer(
                "the peer wants authentication, but cram-hmac-alg and shared-secret are not "
                "configured here"
            )
            return
        # The answer to an early `disconnect` comes on the other socket, which may be faster.
        early = (Command.PROTOCOL, Command.CONN_ST_CHG_REPLY)
        if not self._heard_protocol and command not in early:
            raise WireError(f"expected PROTOCOL as first packet, found {command:#06x}")
        dispatch(self, link, command, volume, payload)

    def link_sent(self, link: Link, position: int) -> None:
        if link is self.replication.link:
            self.replication.sent(position)
            for volume in self.volumes.values():
                volume.resync_source.answer_more()

    def link_lost(self, link: Link, state: Conn, reason: str, stand_alone: bool) -> None:
        """States first (a new generation may have to be on its way), then the transfer log."""
        worked = any(v.exchange.decided for v in self.volumes.values())
        self.last_error = reason
        level = "error" if stand_alone else "info" if state is Conn.TearDown else "warning"
        self.log.log(level, f"connection ended: {reason}")
        self.link = None
        was_up = self.replication.link is link
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if was_up:
            self.replication.link = None
            for volume in self.volumes.values():
                volume.exchange.forget()
        self.conn = state
        for volume in self.volumes.values():
            volume.change(conn=state)
        self.replication.connection_lost()
        if self.peer_writes is not None:
            self.peer_writes.connection_lost()
        self.peer_writes = None
        self.peer_reads = None
        self.cluster.connection_lost()
        for volume in self.volumes.values():
            volume.connection_lost()
        if was_up:
            self.fencing.connection_lost()
        # StandAlone: a disconnect that waited for the peer's answer has been carried out just now.
        if stand_alone or self.conn in (Conn.Disconnecting, Conn.StandAlone):
            self.stand_alone()
        else:
            self.search(RECONNECT_PAUSE if worked else RECONNECT_PAUSE_FAILED)

    def volume_connected(self, volume: Volume) -> None:
        """A volume's handshake is over; with the last one the one-time permissions lapse."""
        if all(v.exchange.decided for v in self.volumes.values()):
            self.discard_my_data = False
            self.conn = Conn.Connected
            self.conn_since = self.clock.now()
            self.last_error = ""
            self.fencing.connected()
        self.changed()

    # --- watching for a peer that lives but does not answer -----------------------------------

    def _watch_progress(self) -> None:
        """Every `timeout`: is the data socket moving, are old requests answered (ko-count)?"""
        net = self.settings.net
        self._watched = (0, 0)
        self._patience = net.ko_count

        def look() -> None:
            link = self.replication.link
            if link is None or link.closed:
                return
            self._watch = self.clock.call_later(net.timeout, look)
            channel = link.data.channel
            seen = (channel.queued - channel.unsent, channel.unsent)
            stuck = channel.unsent and seen[0] == self._watched[0]
            self._watched = seen
            if not net.ko_count:
                return
            self._patience = self._patience - 1 if stuck else net.ko_count
            overdue = self._overdue(net.timeout * net.ko_count)
            if self._patience <= 0:
                overdue = f"the peer has taken no data for {net.timeout * net.ko_count:g} s"
            if overdue:
                link.fail(Conn.Timeout, overdue)
            elif stuck:
                link.ping()

        self._watch = self.clock.call_later(net.timeout, look)

    def _overdue(self, limit: float) -> str:
        """What has gone unanswered for longer than `limit` seconds; "" if nothing has."""
        now = self.clock.now()
        silent = not any(v.exchange.decided for v in self.volumes.values())
        if silent and self.conn is Conn.WFReportParams and now - self.conn_since > limit:
            return f"the peer has not reported its parameters for {limit:g} s"
        overdue = self.replication.overdue(now, limit) or self.cluster.overdue(now, limit)
        for volume in self.volumes.values():
            overdue = overdue or volume.resync.overdue(now, limit)
            overdue = overdue or volume.verify.overdue(now, limit)
        return overdue
