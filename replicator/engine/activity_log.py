"""Which 4 MiB extents may currently differ between the nodes: the policy of the activity log.

An extent is named by a durable transaction before the first write to it goes anywhere, and stays
named until local disk and peer are both done with it. One transaction is in flight at a time and
serves everybody who waits by then.
What this file must not know: requests, peers, states. The format of a transaction is
`replicator.metadata.activity_log`'s.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final

from replicator.engine.ports import Disk
from replicator.metadata.activity_log import (
    AL_FREE,
    CONTEXT,
    MAX_UPDATES,
    encode_transaction,
    ring_block,
)
from replicator.metadata.layout import Geometry

EXTENT_SHIFT: Final = 13
EXTENT_SECTORS = 1 << EXTENT_SHIFT
"""4 MiB in sectors."""

Go = Callable[[int], None]
"""Called with 0 once the extents are active, or with the errno of a failed transaction."""


class ActivityLog:
    """An LRU of active extents in numbered slots, mirrored in the ring on the metadata disk.

    before_evict(extents, then): make the bitmap pages of these extents (and the data they describe)
    part of what the next durable write orders, then call then(errno).
    starving(): every slot is in use by unfinished writes; whoever can finish some should.
    """

    def __init__(
        self,
        meta: Disk,
        geometry: Geometry,
        slots: int,
        before_evict: Callable[[list[int], Callable[[int], None]], None],
        starving: Callable[[], None],
    ) -> None:
        self._meta = meta
        self._geometry = geometry
        self._before_evict = before_evict
        self._starving = starving
        self._table = [AL_FREE] * slots
        self._free = list(range(slots - 1, -1, -1))
        self._slot_of: dict[int, int] = {}
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._activating: set[int] = set()
        self._waiting: deque[tuple[int, int, Go]] = deque()
        self._starved = False
        self._busy = False
        self._failed = 0
        self._context_start = 0
        self._next_number = 0
        self.transactions = 0
        """Transactions written: the `al` counter."""

    @property
    def in_use(self) -> bool:
        """Some extent is named for a write that is not done: after a crash it counts."""
        return bool(self._references or self._waiting)

    @property
    def extents_in_use(self) -> int:
        """Extents named for writes that are not done."""
        return len(self._references)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def begin(self, first: int, last: int, go: Go) -> bool:
        """Take a reference on the extents first..last. True: they are active, go on (the common
        case, `go` is not called). False: `go` is called when they are."""
        if first == last and first in self._slot_of and not self._starved:
            if first not in self._activating:
                self._reference(first)
                return True
        elif not self._starved and all(self._is_active(e) for e in range(first, last + 1)):
            for extent in range(first, last + 1):
                self._reference(extent)
            return True
        self._waiting.append((first, last, go))
        self._next()
        return False

    def begin_hot(self, extent: int) -> bool:
        """The commonest case of begin(): the extent is active and in use already. False: nothing has
        been done, use begin()."""
        count = self._references.get(extent)
        if count is None or self._starved or extent in self._activating:
            return False
        self._references[extent] = count + 1
        return True

    def end(self, first: int, last: int) -> None:
        """Drop the references: local disk and peer are done with the write."""
        for extent in range(first, last + 1):
            count = self._references[extent] - 1
            if count:
                self._references[extent] = count
            else:
                del self._references[extent]
                self._idle[extent] = None
        if self._waiting:
            self._next()

    def active_extents(self) -> list[int]:
        return list(self._slot_of)

    def fail(self, errno: int) -> None:
        """The metadata disk is gone: everybody waiting, now and later, is told so."""
        self._failed = errno
        waiting, self._waiting = self._waiting, deque()
        for _first, _last, go in waiting:
            go(errno)

    def _is_active(self, extent: int) -> bool:
        return extent in self._slot_of and extent not in self._activating

    def _reference(self, extent: int) -> None:
        count = self._references.get(extent, 0)
        if not count:
            self._idle.pop(extent, None)
        self._references[extent] = count + 1

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        if self._failed:
            self.fail(self._failed)
            return
        granted, updates, evicted = self._gather()
        if not granted:
            self._starved = True
            self._starving()
            return
        self._starved = False
        if not updates:
            for go in granted:
                go(0)
            self._next()
            return
        self._busy = True
        self._commit(granted, updates, evicted)

    def _gather(self) -> tuple[list[Go], list[tuple[int, int]], list[int]]:
        """As many waiting requests as one transaction and the free slots can serve, in order."""
        granted: list[Go] = []
        updates: list[tuple[int, int]] = []
        evicted: list[int] = []
        while self._waiting:
            first, last, go = self._waiting[0]
            cold = [e for e in range(first, last + 1) if e not in self._slot_of]
            keep = sum(1 for e in range(first, last + 1) if e in self._idle)
            if len(updates) + len(cold) > MAX_UPDATES:
                break
            if len(cold) > len(self._free) + len(self._idle) - keep:
                break
            for extent in range(first, last + 1):
                if extent in self._slot_of:
                    self._reference(extent)
            for extent in cold:
                updates.append((self._take_slot(evicted), extent))
                self._activating.add(extent)
                self._slot_of[extent] = updates[-1][0]
                self._reference(extent)
            self._waiting.popleft()
            granted.append(go)
        return granted, updates, evicted

    def _take_slot(self, evicted: list[int]) -> int:
        if self._free:
            return self._free.pop()
        victim, _ = self._idle.popitem(last=False)
        evicted.append(victim)
        return self._slot_of.pop(victim)

    def _commit(
        self, granted: list[Go], updates: list[tuple[int, int]], evicted: list[int]
    ) -> None:
        """Bitmap pages of the evicted first, then the transaction, durable; then everybody goes on."""
        number = self._next_number
        block = encode_transaction(number, updates, self._table, self._context_start)
        for slot, extent in updates:
            self._table[slot] = extent
        offset = self._geometry.al_offset + 4096 * ring_block(number, self._geometry)

        def written(errno: int) -> None:
            self._busy = False
            self._activating.difference_update(extent for _slot, extent in updates)
            if errno:
                self._failed = errno
            else:
                self._next_number = (number + 1) & 0xFFFFFFFF
                self.transactions += 1
                self._context_start += CONTEXT
                if self._context_start >= len(self._table):
                    self._context_start = 0
            for go in granted:
                go(errno)
            self._next()

        def ordered(errno: int) -> None:
            if errno:
                written(errno)
            else:
                self._meta.write_durable(offset, block, written)

        if evicted:
            self._before_evict(evicted, ordered)
        else:
            ordered(0)


def extents(sector: int, nsectors: int) -> tuple[int, int]:
    """First and last extent that sectors [sector, sector + nsectors) touch."""
    return sector >> EXTENT_SHIFT, (sector + nsectors - 1) >> EXTENT_SHIFT


def pages_of_extents(evicted: Iterable[int]) -> set[int]:
    """Bitmap pages (4096 bytes = 32 extents each) that hold the bits of these extents."""
    return {extent >> 5 for extent in evicted}
