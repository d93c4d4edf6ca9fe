"""The rule that everything else rests on: a block that differs is marked somewhere.

Checked after a step of the world, for every 4 KiB block of every volume, with four pasts: as things
are, if one of the nodes lost power at this instant, if the other did, if both did.

  - Differing are the blocks whose content on the two media is not the same; if a node loses power,
    also those that it has written and not flushed, since each of their sectors may be the old one.
  - Marked by a node that runs with its disk: the bits of its bitmap in memory, and writes that it
    has under way: in the transfer log, or holding their range. Its activity log does not count: no
    one reads it while the node lives.
  - Marked by a node that is down, has no disk attached, or loses power: what its superblock, bitmap
    and activity log say, read as `up` would read them. If it loses power, only what both the stable
    and the present content say, for either may be found.

One node's mark is enough: before blocks are copied both bitmaps are merged, whoever is source. No
block is exempt but where a history changes a disk behind the engine's back, until the engine has been
told, or has seen it. A write that one disk has and the other not yet is no exception, since it is under
way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from protocol.states import Conn, Disk
from tests.simulation.checkers import observe, on_disk
from tests.simulation.medium import PAGE, ZERO_PAGE
from tests.simulation.pair import Node, Pair

GOOD = Disk.UpToDate
RESYNC = (Conn.SyncSource, Conn.SyncTarget, Conn.PausedSyncS, Conn.PausedSyncT)


class Differences:
    """One volume of a pair. `differing` follows every change of the two media."""

    def __init__(self, pair: Pair, number: int) -> None:
        self._nodes = (pair.alice, pair.bob)
        self._number = number
        self.differing = 0
        """Mask of the 4 KiB blocks of the data area whose content differs."""
        self.hidden = 0
        """Mask of the blocks that a history has spoilt, unknown to both nodes yet."""
        self._old: Node | None = None
        """The node whose copy is an old one: its UUIDs tell, and no mark, until it is in a resync."""
        self._end = -(-pair.alice.data_size(number) // PAGE)
        self._data = (1 << self._end) - 1
        for node in self._nodes:
            medium = node.media[number]
            medium.changed = partial(self._changed, medium.changed)

    def _changed(self, also: Callable[[int], None] | None, page: int) -> None:
        if also is not None:
            also(page)
        if page < self._end:
            alice, bob = (node.media[self._number].pages for node in self._nodes)
            bit = 1 << page
            if alice.get(page, ZERO_PAGE) != bob.get(page, ZERO_PAGE):
                self.differing |= bit
            else:
                self.differing &= ~bit

    def put_back(self, name: str) -> None:
        """A node that is down has an old copy again, that the other one knows as an ancestor."""
        self._old = next(node for node in self._nodes if node.name == name)

    def _is_old(self) -> bool:
        state = observe.state_of(self._old, self._number) if self._old is not None else None
        if state is None:
            return self._old is not None
        equal = (state.conn, state.disk, state.pdsk) == (Conn.Connected, GOOD, GOOD)
        if equal or (state.conn in RESYNC and state.disk >= Disk.Inconsistent):
            self._old = None
        return self._old is not None

    def violations(self) -> list[str]:
        if self._is_old():
            return []
        media = [node.media[self._number] for node in self._nodes]
        if not self.differing and not any(medium.has_unflushed for medium in media):
            return []
        alice, bob = (self._past(node) for node in self._nodes)
        found = []
        for one in alice:
            for other in bob:
                bare = (self.differing | one.touched | other.touched) & ~(one.marked | other.marked)
                if bare := bare & self._data & ~self.hidden:
                    found.append(self._words(bare, one.words + other.words))
        return found

    def _past(self, node: Node) -> list[_Past]:
        """What is known on this node: as it is, and if it loses power now."""
        medium, meta = node.media[self._number], node.metas[self._number]
        at = 0 if meta is not medium else (meta.size - PAGE) // PAGE * PAGE
        bitmap = observe.bitmap_of(node, self._number)
        if bitmap is None:
            alive = _Past("", on_disk.marked_now(meta, at), 0)
        else:
            alive = _Past("", bitmap | observe.under_way(node, self._number), 0)
        unflushed = medium.unflushed_pages()
        if not unflushed and bitmap is None and meta is medium:
            return [alive]
        words = f", if {node.name} loses power now"
        return [alive, _Past(words, on_disk.marked_at_worst(meta, at), _mask(unflushed))]

    def _words(self, bare: int, when: str) -> str:
        blocks = [n for n in range(self._end) if bare >> n & 1]
        some = ", ".join(map(str, blocks[:5]))
        return f"volume {self._number}: {len(blocks)} blocks differ unmarked{when}: {some}"


class _Past(NamedTuple):
    words: str
    marked: int
    touched: int


def _mask(pages: Iterable[int]) -> int:
    mask = 0
    for page in pages:
        mask |= 1 << page
    return mask
