"""on-congestion: what happens under protocol A when the peer cannot keep up.

Congested is: more than congestion-fill bytes sent and not stable there, or more than
congestion-extents extents of a volume in use. `disconnect` then gives the connection up; `pull-ahead`
keeps it, but sends only which blocks change: this node is Ahead, the peer Behind. When the peer has
digested what it had been sent, it gets these blocks by a resync without an exchange of bitmaps.

Rules:
1. Only a volume that is Connected, with both copies UpToDate, pulls ahead.
2. No new generation begins: what the peer lacks is told by the bitmap and the crashed-Primary mark, so
   that also after a crash or a disconnect the blocks go from here to there.
What this file must not know: how writes are sent (`replication`), how the resync goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk, Role
from replicator.engine.ports import Timer

if TYPE_CHECKING:
    from replicator.engine.requests import Write
    from replicator.engine.resource import Resource
    from replicator.engine.transfer_log import Epoch
    from replicator.engine.volume import Volume

CATCH_UP_PAUSE = 1.0
"""Seconds between the last acknowledgement and the resync, as DRBD has it."""
EPOCHS_PER_FILL = 4
"""Epochs are so small that this many fit into congestion-fill: else data that the peer has had for
long would count as in flight, for want of a barrier."""


class Congestion:
    """One per resource; idle unless on-congestion is something else than block."""

    def __init__(self, resource: Resource) -> None:
        net = resource.settings.net
        self._resource = resource
        self.watching = net.on_congestion != "block"
        self._policy = net.on_congestion
        self._fill = net.congestion_fill
        self._extents = net.congestion_extents
        self._in_flight = 0
        self._acting = False
        self._timer: Timer | None = None

    @property
    def epoch_bytes(self) -> int:
        """How large an epoch may become; 0: no limit from here."""
        return self._fill // EPOCHS_PER_FILL if self.watching else 0

    def sent(self, write: Write) -> None:
        """A write is on its way to the peer."""
        self._in_flight += write.nsectors << 9
        if self._acting or not self._congested(write.volume):
            return
        self._acting = True
        self._resource.soon(self._act)

    def stable(self, epoch: Epoch) -> None:
        """The peer has these on stable storage."""
        self._in_flight -= sum(write.nsectors for write in epoch.writes) << 9
        if not self._in_flight and self._timer is None and self._ahead():
            self._timer = self._resource.clock.call_later(CATCH_UP_PAUSE, self._catch_up)

    def connection_lost(self) -> None:
        self._in_flight = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _congested(self, volume: Volume) -> bool:
        if self._fill and self._in_flight >= self._fill:
            return True
        log = volume.activity_log
        return log is not None and log.extents_in_use >= self._extents

    def _ahead(self) -> list[Volume]:
        return [v for v in self._resource.volumes.values() if v.state.conn is Conn.Ahead]

    def _act(self) -> None:
        self._acting = False
        resource, link = self._resource, self._resource.replication.link
        if link is None or link.closed:
            return
        reason = f"congestion: {self._in_flight >> 10} KiB are under way to the peer"
        if self._policy == "disconnect":
            link.fail(Conn.Disconnecting, reason, stand_alone=True)
            return
        for volume in resource.volumes.values():
            state = volume.state
            good = state.disk is state.pdsk is Disk.UpToDate
            if good and state.conn is Conn.Connected and state.role is Role.Primary:
                self._pull_ahead(volume, reason)

    def _pull_ahead(self, volume: Volume, reason: str) -> None:
        volume.log("warning", f"{reason}: it gets no more data until it has caught up")
        self._resource.replication.close_epoch()
        volume.crashed_primary = True
        volume.change(conn=Conn.Ahead)
        volume.exchange.send_state()

    def _catch_up(self) -> None:
        self._timer = None
        for volume in self._ahead():
            volume.resync_source.start()
