"""The metadata of one attached volume while the engine runs: superblock and bitmap, kept durable.

Rules:
1. One superblock write is in flight at a time; those who ask meanwhile share the next one.
2. A bitmap page is never written twice at once; a page that changed meanwhile is written again.
3. Clearing bits is written lazily, setting them is covered by the activity log, by FULL_SYNC, or
   written before whatever relies on it (see callers).
What this file must not know: why something changes, requests, the peer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from replicator.engine.ports import Disk
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.layout import Geometry
from replicator.metadata.superblock import Flags, Superblock

PAGE = 4096
RUN_PAGES_MAX = 256
"""Neighbouring pages go out in writes of at most 1 MiB."""
RUNS_IN_FLIGHT_MAX = 4

Then = Callable[[int], None]


class SuperblockWriter:
    """Writes the superblock as it is at the moment of writing."""

    def __init__(
        self, meta: Disk, geometry: Geometry, superblock: Superblock, refresh: Callable[[], None]
    ) -> None:
        self._meta = meta
        self._geometry = geometry
        self._superblock = superblock
        self._refresh = refresh
        self._writing = False
        self._waiting: list[Then] = []
        self.indicates = False
        """A crash at this instant finds PRIMARY_IND on the disk, whatever is under way."""
        self.indicated: Callable[[], None] | None = None
        """Told when that begins to be so."""

    def write(self, then: Then | None = None) -> None:
        """Make everything the superblock says now durable; `then(errno)` when it is."""
        self._waiting.append(then or _nothing)
        if not self._writing:
            self._start()

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._writing = True
        self._refresh()
        indicates = Flags.PRIMARY_IND in self._superblock.flags
        self.indicates = self.indicates and indicates

        def written(errno: int) -> None:
            self._writing = False
            if not errno and indicates and not self.indicates:
                self.indicates = True
                if self.indicated is not None:
                    self.indicated()
            for then in waiting:
                then(errno)
            if self._waiting and not self._writing:
                self._start()

        self._meta.write_durable(self._geometry.sb_offset, self._superblock.encode(), written)


class _Batch:
    """Some pages that one caller wants written: counts down to its `then`."""

    __slots__ = ("errno", "left", "then")

    def __init__(self, left: int, then: Then) -> None:
        self.left = left
        self.then = then
        self.errno = 0


class BitmapWriter:
    """Writes bitmap pages to the metadata disk (plain writes: a later durable write orders them)."""

    def __init__(self, meta: Disk, geometry: Geometry, bitmap: Bitmap) -> None:
        self._meta = meta
        self._geometry = geometry
        self.bitmap = bitmap
        self._queued: dict[int, list[_Batch]] = {}
        self._order: deque[int] = deque()
        self._in_flight: set[int] = set()
        self._runs = 0
        self.pages_written = 0

    def write(self, pages: Iterable[int], then: Then | None = None) -> None:
        """Write these pages as they are when their turn comes; `then(errno)` when all are."""
        wanted = sorted(pages)
        if not wanted:
            if then is not None:
                then(0)
            return
        batch = _Batch(len(wanted), then or _nothing)
        for page in wanted:
            batches = self._queued.get(page)
            if batches is None:
                self._queued[page] = [batch]
                self._order.append(page)
            else:
                batches.append(batch)
        self._pump()

    def write_dirty(self, then: Then | None = None) -> None:
        """Write every page that changed since it was last written; `then` when all are, those
        included that somebody else has begun to write."""
        changed = self.bitmap.take_dirty()
        if then is not None:
            busy = self._in_flight | self._queued.keys()
            changed |= {page for page in busy if page < self.bitmap.page_count}
        self.write(changed, then)

    def write_dirty_of(self, pages: set[int], then: Then) -> None:
        """Write those of `pages` that changed or are being written at this moment."""
        changed = self.bitmap.take_dirty_of(pages)
        changed.update(p for p in pages if p in self._in_flight or p in self._queued)
        self.write(changed, then)

    def write_all(self, then: Then) -> None:
        self.bitmap.take_dirty()
        self.write(range(self.bitmap.page_count), then)

    def _pump(self) -> None:
        postponed = 0
        while self._order and self._runs < RUNS_IN_FLIGHT_MAX and postponed < len(self._order):
            first = self._order[0]
            if first in self._in_flight:
                self._order.rotate(-1)
                postponed += 1
                continue
            self._start_run()

    def _start_run(self) -> None:
        first = self._order.popleft()
        pages = [first]
        while (
            self._order
            and len(pages) < RUN_PAGES_MAX
            and self._order[0] == pages[-1] + 1
            and self._order[0] not in self._in_flight
        ):
            pages.append(self._order.popleft())
        batches = [self._queued.pop(page) for page in pages]
        self._in_flight.update(pages)
        self._runs += 1
        data = b"".join(self.bitmap.page(page) for page in pages)

        def written(errno: int) -> None:
            self._runs -= 1
            self._in_flight.difference_update(pages)
            if errno:
                # What is on the disk now is unknown: whoever relies on these pages tries again.
                self.bitmap.dirty_pages.update(p for p in pages if p < self.bitmap.page_count)
            else:
                self.pages_written += len(pages)
            for waiting in batches:
                for batch in waiting:
                    batch.errno = batch.errno or errno
                    batch.left -= 1
                    if not batch.left:
                        batch.then(batch.errno)
            self._pump()

        self._meta.write(self._geometry.bm_offset + PAGE * first, data, written)


def read_bitmap(meta: Disk, geometry: Geometry, bitmap: Bitmap, done: Then) -> None:
    """Load the bitmap from the metadata disk, 1 MiB at a time; done(errno)."""
    step = PAGE * RUN_PAGES_MAX
    length = PAGE * bitmap.page_count

    def read_from(offset: int) -> None:
        if offset >= length:
            done(0)
            return
        count = min(step, length - offset)

        def loaded(errno: int, data: bytes) -> None:
            if errno:
                done(errno)
                return
            bitmap.load(data, offset)
            read_from(offset + count)

        meta.read(geometry.bm_offset + offset, count, loaded)

    read_from(0)


def _nothing(_errno: int) -> None:
    """For those who need not know when a write is done."""
