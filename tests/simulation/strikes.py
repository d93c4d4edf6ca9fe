"""Moments that matter in a pair: waits for one of them, so that a fault can strike right there.

A fault at a random time seldom meets the half millisecond in which a superblock is on its way, or
the one packet that ends a resync. The watch sees what disks are asked for, what arrives on the
network, and what becomes of the nodes' states; it changes nothing.
What this file must not know: what is right or wrong at such a moment.
"""

from __future__ import annotations

from collections.abc import Iterator

from protocol.packets import MAGIC_100, Command
from protocol.states import Conn
from replicator.metadata.layout import geometry
from tests.simulation.pair import Node, Pair

WRITING = (
    "disk transaction",
    "disk bitmap",
    "disk superblock",
    "disk flush",
    "packet DATA",
    "packet WRITE_ACK",
    "packet BARRIER",
    "packet BARRIER_ACK",
)
"""What happens while applications write."""
PARTING = ("generation", "state WFConnection", "state Unconnected")
"""What happens when the connection is lost."""
MEETING = (
    "state WFReportParams",
    "packet UUIDS",
    "packet STATE",
    "state WFBitMapS",
    "packet COMPRESSED_BITMAP",
    "packet BITMAP",
    "packet SYNC_UUID",
    "packet OUT_OF_SYNC",
    "state SyncSource",
    "state SyncTarget",
    "packet RS_DATA_REQUEST",
    "packet RS_DATA_REPLY",
    "packet RS_WRITE_ACK",
    "nothing marked",
    "sync ends",
)
"""What happens when two nodes meet again that differ."""


class Watch:
    """until() lets the pair run up to the next moment of a kind."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._seen: set[str] = set()
        self._states: dict[tuple[str, int], tuple[Conn, int, bool]] = {}
        pair.network.watch = self._arrived

    def opened(self, node: Node, number: int) -> None:
        """A node has opened the disks of a volume."""
        placement = self._pair.placement
        layout = geometry(node.metas[number].size, placement)
        start = min(layout.sb_offset, layout.al_offset, layout.bm_offset)

        def asked(kind: str, offset: int) -> None:
            if kind == "flush":
                self._seen.add("disk flush")
            elif kind == "read" or offset < start:
                return
            elif offset == layout.sb_offset:
                self._seen.add("disk superblock")
            elif layout.al_offset <= offset < layout.al_offset + 4096 * layout.al_blocks:
                self._seen.add("disk transaction")
            else:
                self._seen.add("disk bitmap")

        node.meta_disks[number].watch = asked

    def _arrived(self, _sender: str, _channel: str, data: bytes) -> None:
        self._seen.update(f"packet {command.name}" for command in commands(data))

    def _look(self) -> None:
        """Compare states with those seen last."""
        for node in (self._pair.alice, self._pair.bob):
            volumes = node.resource.volumes if node.resource is not None else {}
            for number, volume in volumes.items():
                current = volume.store.uuids.current & ~1 if volume.store is not None else 0
                clean = volume.bitmap is None or not volume.bitmap.weight
                new = volume.state.conn, current, clean
                old = self._states.get((node.name, number), new)
                self._states[node.name, number] = new
                if old != new:
                    self._changed(old, new)

    def _changed(self, old: tuple[Conn, int, bool], new: tuple[Conn, int, bool]) -> None:
        if new[0] is not old[0]:
            self._seen.add(f"state {new[0].name}")
            if new[0] is Conn.Connected and old[0] in (Conn.SyncTarget, Conn.SyncSource):
                self._seen.add("sync ends")
        if new[1] != old[1]:
            self._seen.add("generation")
        if new[2] and not old[2]:
            self._seen.add("nothing marked")

    def until(self, moment: str, limit: float) -> bool:
        """Run until the next `moment`; False if it does not come within `limit` virtual seconds."""
        clock = self._pair.clock
        end = clock.time + limit
        self._look()
        self._seen.clear()
        while moment not in self._seen:
            if clock.time > end or not clock.step():
                return False
            self._look()
        return True


def commands(data: bytes) -> Iterator[Command]:
    """The packets that begin in what was sent at once, which always begins with one."""
    at = 0
    while at + 16 <= len(data) and int.from_bytes(data[at : at + 4], "big") == MAGIC_100:
        code = int.from_bytes(data[at + 6 : at + 8], "big")
        if code in Command._value2member_map_:
            yield Command(code)
        at += 16 + int.from_bytes(data[at + 8 : at + 12], "big")
