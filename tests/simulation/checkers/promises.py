"""What an answer says about the media, asked of them at the very moment when it is given.

  - A write that is complete is on the Primary's disk, and under C on the peer's, if those disks count:
    this content or that of a later write; in a cache, perhaps.
  - A flush, or a write with FUA, that is complete is stable there.
  - Under A and B a flush promises nothing of the peer. But once the peer's disk holds a write that was
    made after the answer, all that came before the flush is stable on it: a copy that lost power never
    shows the later without the earlier.

To wait until a power loss brings it to light would take many histories for each.
What this file must not know: how the nodes keep these promises, packets, epochs, metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from protocol.states import Conn, Disk, Role
from replicator.engine.resource import Resource
from tests.simulation.checkers import observe
from tests.simulation.medium import PAGE, SECTOR, Medium
from tests.simulation.pair import Node, Pair

Promised = dict[int, int]
"""Sector -> the index of the oldest write to it that may be shown."""
SECTORS = PAGE // SECTOR
STAMP = struct.Struct("<Q")
"""What a sector begins with: the number of its write."""


class _Flushed(NamedTuple):
    """A flush that was answered by this Primary. last: the number of the last write before that."""

    primary: Resource
    last: int
    promised: Promised


class Promises:
    """One volume of a pair, written to under one protocol. Every write has a number of its own, with
    which each of its sectors begins; trimmed sectors hold 0.

    writes: per sector the numbers of all submitted writes, in order.
    doubtful: whether copies may be given up, so that what was flushed need not be anywhere.
    """

    def __init__(
        self,
        pair: Pair,
        number: int,
        protocol: str,
        writes: dict[int, list[int]],
        doubtful: Callable[[], bool] = lambda: False,
    ) -> None:
        self._nodes = {node.name: node for node in (pair.alice, pair.bob)}
        self._number = number
        self._protocol = protocol
        self._writes = writes
        self._doubtful = doubtful
        self.spoilt = ""
        """The node whose disk a history has spoilt, before anybody knows."""
        self._earlier: dict[str, list[_Flushed]] = {name: [] for name in self._nodes}
        """Per node, flushes of its peer that bind it as soon as its disk holds a later write."""
        self.violations: list[str] = []
        """What was found; the guard takes it after the event, so that nothing is thrown into the
        engine."""
        for name, node in self._nodes.items():
            medium = node.media[number]
            medium.changed = partial(self._changed, name, medium.changed)

    def holders(self, primary: Node) -> set[str]:
        """The nodes whose disks a flush of this Primary speaks of, as things are."""
        own = observe.state_of(primary, self._number)
        other = self._other(primary.name)
        theirs = observe.state_of(other, self._number)
        if own is None:
            return set()
        found = {primary.name} if own.disk is Disk.UpToDate else set()
        if self._protocol != "C" and found:
            return found
        if theirs is None or not own.conn is theirs.conn is Conn.Connected:
            return found - {self.spoilt}
        if own.pdsk is theirs.disk is Disk.UpToDate:
            found.add(other.name)
        return found - {self.spoilt}

    # --- answers ------------------------------------------------------------------------------

    def written(self, primary: Node, sectors: range, number: int) -> None:
        """This write was completed."""
        holders = self.holders(primary)
        for name in holders if self._protocol == "C" else holders & {primary.name}:
            medium = self._nodes[name].media[self._number]
            found = medium.read(sectors.start * SECTOR, len(sectors) * SECTOR)
            if found != STAMP.pack(number) * (len(found) // STAMP.size):
                promised = {s: self._writes[s].index(number) for s in sectors}
                pages = {s // SECTORS for s in sectors}
                words = f"write {number} was completed, but not on {name}'s disk"
                self._check(medium.current_page, pages, promised, words)

    def flushed(self, primary: Node, before: set[str], promised: Promised, last: int) -> None:
        """A flush was completed. before: the holders when it was asked for; last: the number of the
        last write up to now."""
        holders = before & self.holders(primary)
        for name in holders:
            self._check_stable(self._nodes[name].media[self._number], promised, name, "a flush")
        other = self._other(primary.name).name
        if other not in holders and primary.resource is not None:
            self._earlier[other].append(_Flushed(primary.resource, last, promised))

    def given_up(self, name: str) -> None:
        """A split brain was solved against this node, its disk has failed with what it alone had, or its
        copy was declared good without all of it: what it had flushed alone binds nobody."""
        self._earlier[self._other(name).name].clear()

    # --- the peer's disk under A and B --------------------------------------------------------

    def _changed(self, name: str, also: Callable[[int], None] | None, page: int) -> None:
        if also is not None:
            also(page)
        if self._earlier[name]:
            content = self._nodes[name].media[self._number].current_page(page)
            stamps = [STAMP.unpack_from(content, at)[0] for at in range(0, PAGE, SECTOR)]
            sectors = range(page * SECTORS, (page + 1) * SECTORS)
            ours = [n for s, n in zip(sectors, stamps, strict=True) if n in self._writes.get(s, ())]
            self._later(name, max(ours, default=0))

    def _later(self, name: str, number: int) -> None:
        """The disk of this node holds the write of that number."""
        flushes = [one for one in self._earlier[name] if one.last < number]
        if not flushes:
            return
        self._earlier[name] = [one for one in self._earlier[name] if one.last >= number]
        state = observe.state_of(self._nodes[name], self._number)
        if state is None or (state.conn, state.peer) != (Conn.Connected, Role.Primary):
            return
        if state.disk is not Disk.UpToDate or name == self.spoilt:
            return
        primary = self._other(name)
        for one in flushes:
            if primary.resource is one.primary and not self._doubtful():
                words = f"a flush before write {number}"
                medium = self._nodes[name].media[self._number]
                self._check_stable(medium, one.promised, name, words)

    # --- media --------------------------------------------------------------------------------

    def _check_stable(self, medium: Medium, promised: Promised, name: str, after: str) -> None:
        words = f"{after} was completed, but on {name}'s disk not all is stable"
        self._check(medium.stable_page, medium.unflushed_pages(), promised, words)

    def _check(
        self,
        page_at: Callable[[int], bytes],
        pages: Iterable[int],
        promised: Promised,
        words: str,
    ) -> None:
        for page in pages:
            content = page_at(page)
            for sector in range(page * SECTORS, (page + 1) * SECTORS):
                if sector in promised:
                    allowed = self._writes[sector][promised[sector] :]
                    found = STAMP.unpack_from(content, sector % SECTORS * SECTOR)[0]
                    if found not in allowed:
                        self.violations.append(
                            f"{words}: volume {self._number}, sector {sector} holds {found}, "
                            f"allowed {allowed}"
                        )
                        return

    def _other(self, name: str) -> Node:
        return next(node for other, node in self._nodes.items() if other != name)
