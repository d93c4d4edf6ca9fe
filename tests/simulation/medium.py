"""What stays of a disk when its node is gone: sparse content, and what a power loss may undo.

Content is kept in pages of 4 KiB; a page that is not kept reads as zeroes. What is not stable yet
lies in layers, oldest first, each with its pages as they were before its first write to them. A
flush ends the layer that is being written; when it is done, that layer and the older ones are
dropped. So a flush promises exactly what was written before it began, at no cost per page.
What this file must not know: time, nodes, the engine.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

SECTOR = 512
PAGE = 4096
ZERO_PAGE = bytes(PAGE)
ALL_SECTORS = 0xFF
NUMBER = struct.Struct("<Q")

Before = tuple[bytes, int]
"""A page as it was, and the mask of its sectors that were written since."""


class Medium:
    """A disk of `size` bytes; offsets and lengths are in bytes, multiples of SECTOR."""

    def __init__(self, size: int) -> None:
        assert size % SECTOR == 0
        self.size = size
        self.pages: dict[int, bytes] = {}
        """Current content by page number; no entry is a page of zeroes."""
        self.changed: Callable[[int], None] | None = None
        """Told the number of a page whose current content may have changed."""
        self._layers: list[dict[int, Before]] = [{}]
        self._oldest = 0
        """The number of the first of _layers: layers are counted from the disk's beginning."""

    # --- reading ------------------------------------------------------------------------------

    @property
    def current(self) -> Image:
        """What a read returns now."""
        return Image(self, self.current_page)

    @property
    def stable(self) -> Image:
        """What is there after a power loss at its worst: nothing that was not flushed."""
        return Image(self, self.stable_page)

    @property
    def unflushed(self) -> set[int]:
        """Numbers of the sectors whose current content is not stable."""
        return {
            page * 8 + sector
            for layer in self._layers
            for page, (_before, mask) in layer.items()
            for sector in range(8)
            if mask >> sector & 1
        }

    @property
    def has_unflushed(self) -> bool:
        return any(self._layers)

    def unflushed_pages(self) -> set[int]:
        """Pages with such sectors."""
        return set().union(*self._layers)

    def all_stable(self, pages: Iterable[int]) -> bool:
        """Whether none of these is among them."""
        return all(layer.keys().isdisjoint(pages) for layer in self._layers)

    def read(self, offset: int, length: int) -> bytes:
        page, skip = divmod(offset, PAGE)
        if skip + length <= PAGE:
            return self.pages.get(page, ZERO_PAGE)[skip : skip + length]
        if self.pages.keys().isdisjoint(pages_of(offset, length)):
            return zeroes(length)
        return self._join(self.current_page, offset, length)

    def is_zero(self, offset: int, length: int) -> bool:
        """Whether a read would give nothing but zeroes."""
        if self.pages.keys().isdisjoint(pages_of(offset, length)):
            return True
        return self.read(offset, length) == zeroes(length)

    def current_page(self, page: int) -> bytes:
        return self.pages.get(page, ZERO_PAGE)

    def stable_page(self, page: int) -> bytes:
        content = self.pages.get(page, ZERO_PAGE)
        for layer in reversed(self._layers):
            if page in layer:
                before, mask = layer[page]
                content = mixed(content, before, mask)
        return content

    def _join(self, page_at: Callable[[int], bytes], offset: int, length: int) -> bytes:
        first, skip = divmod(offset, PAGE)
        if skip + length <= PAGE:
            return page_at(first)[skip : skip + length]
        return b"".join(map(page_at, pages_of(offset, length)))[skip : skip + length]

    # --- writing ------------------------------------------------------------------------------

    def write(self, offset: int, data: bytes) -> None:
        """Change the current content; stable only after seal() and settle(). To write what is there
        already changes nothing: any crash leaves the same."""
        only_zeroes = len(data) > PAGE and data == zeroes(len(data))
        layer, pages, changed = self._layers[-1], self.pages, self.changed
        for page, content, mask in self._split(offset, data, unless_zero=only_zeroes):
            old = pages.get(page, ZERO_PAGE)
            if content == old:
                continue
            before, written = layer.get(page, (old, 0))
            layer[page] = before, written | mask
            self._replace(page, content)
            if changed is not None:
                changed(page)

    def put(self, offset: int, data: bytes) -> None:
        """Change content, stable at once: for whoever prepares a disk."""
        for page, content, mask in self._split(offset, data):
            self._forget(page, mask, len(self._layers))
            self._replace(page, content)
            if self.changed is not None:
                self.changed(page)

    def _split(
        self, offset: int, data: bytes, *, unless_zero: bool = False
    ) -> Iterator[tuple[int, bytes, int]]:
        """(page, its content with `data` in it, mask of the sectors that `data` covers).
        unless_zero: leave out pages of zeroes."""
        assert offset % SECTOR == 0 and len(data) % SECTOR == 0
        page, skip = divmod(offset, PAGE)
        start = 0
        while start < len(data):
            part = data[start : start + PAGE - skip]
            if unless_zero and page not in self.pages:
                pass
            elif len(part) == PAGE:
                yield page, part, ALL_SECTORS
            else:
                old, end = self.pages.get(page, ZERO_PAGE), skip + len(part)
                mask = (1 << end // SECTOR) - (1 << skip // SECTOR)
                yield page, old[:skip] + part + old[end:], mask
            start += len(part)
            page, skip = page + 1, 0

    def _replace(self, page: int, content: bytes) -> None:
        if content == ZERO_PAGE:
            self.pages.pop(page, None)
        else:
            self.pages[page] = content

    # --- stability ----------------------------------------------------------------------------

    def seal(self) -> int:
        """A flush begins: returns the number of the layer that it covers, with all older ones."""
        number = self._oldest + len(self._layers) - 1
        if not self._layers[-1]:
            return number - 1
        self._layers.append({})
        return number

    def settle(self, number: int) -> None:
        """That flush is done: what was written before it began is stable."""
        done = number + 1 - self._oldest
        if done > 0:
            del self._layers[:done]
            self._oldest += done

    def settle_only(self, number: int, offset: int, length: int) -> None:
        """Stable are these sectors as they were when the layer was sealed, and no others."""
        for page in pages_of(offset, length):
            start, end = max(offset, page * PAGE), min(offset + length, (page + 1) * PAGE)
            low, high = (start - page * PAGE) // SECTOR, (end - page * PAGE) // SECTOR
            self._forget(page, (1 << high) - (1 << low), number + 1 - self._oldest)

    def _forget(self, page: int, sectors: int, layers: int) -> None:
        """These sectors of a page are stable as far as the first `layers` layers are concerned."""
        for layer in self._layers[: max(0, layers)]:
            if page in layer:
                before, mask = layer.pop(page)
                if mask & ~sectors:
                    layer[page] = before, mask & ~sectors

    def power_loss(self, rng: random.Random) -> None:
        """Each unflushed sector keeps its content or has an older one again, on its own: so a
        block may be torn."""
        touched = sorted({page for layer in self._layers for page in layer})
        for page in touched:
            versions = [layer[page] for layer in self._layers if page in layer]
            content = self.pages.get(page, ZERO_PAGE)
            for sector in range(8):
                older = [before for before, mask in versions if mask >> sector & 1]
                if older and rng.random() < 0.5:
                    content = mixed(content, rng.choice(older), 1 << sector)
            self._replace(page, content)
            if self.changed is not None:
                self.changed(page)
        self._oldest += len(self._layers)
        self._layers = [{}]

    # --- copies -------------------------------------------------------------------------------

    def take_over(self, other: Medium) -> None:
        """Hold what the other medium, of the same size, holds; all of it is stable."""
        assert other.size == self.size
        self.pages = dict(other.pages)
        self._layers = [{}]


@lru_cache(1024)
def zeroes(length: int) -> bytes:
    """Always the same object, so that to compare it costs nothing."""
    return bytes(length)


@lru_cache(16384)
def stamps(page: bytes) -> tuple[int, ...]:
    """What each sector of this page is full of: a number of eight bytes, or -1 if it is not that all
    over."""
    found = []
    for at in range(0, PAGE, SECTOR):
        sector = page[at : at + SECTOR]
        found.append(NUMBER.unpack_from(sector)[0] if sector == sector[:8] * 64 else -1)
    return tuple(found)


def pages_of(offset: int, length: int) -> range:
    """The numbers of the pages that these bytes lie in."""
    return range(offset // PAGE, (offset + length + PAGE - 1) // PAGE)


def mixed(content: bytes, other: bytes, mask: int) -> bytes:
    """A page with the sectors in `mask` taken from `other`."""
    if mask == ALL_SECTORS:
        return other
    return b"".join(
        (other if mask >> sector & 1 else content)[sector * SECTOR : (sector + 1) * SECTOR]
        for sector in range(8)
    )


class Image:
    """A medium's current or stable content, read (and for tests, changed) by slices of bytes."""

    def __init__(self, medium: Medium, page_at: Callable[[int], bytes]) -> None:
        self._medium = medium
        self._page_at = page_at

    def __len__(self) -> int:
        return self._medium.size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, step = where.indices(self._medium.size)
        assert step == 1
        return self._medium._join(self._page_at, start, stop - start)

    def __setitem__(self, where: slice, data: bytes) -> None:
        """Change what is there, stable at once."""
        start, stop, step = where.indices(self._medium.size)
        assert step == 1 and stop - start == len(data)
        self._medium.put(start, bytes(data))
