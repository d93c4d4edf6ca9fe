"""The quick-sync bitmap: one bit per 4 KiB block of a volume that may differ from the peer's.

Rules:
1. `data` is what lies on disk: bit b is bit b % 8 of byte b // 8, zeroes up to a whole page.
2. `weight` is the exact number of set bits after every call.
3. A write sets one bit, a new disk 4 Gi of them: the first must cost next to nothing, the second is
   done with slice operations, comparisons and popcounts of whole pages, never bit by bit.
4. Ranges are clipped at the end of the bitmap; negative ones raise ValueError.
What this file must not know: what a set bit is used for, when pages go to disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from replicator.metadata.layout import SECTORS_PER_BLOCK, bitmap_bytes_used

PAGE = 4096
BITS_PER_PAGE = PAGE * 8
_STEPS = (1 << 20, PAGE, 64)
_ZEROES = {step: bytes(step) for step in _STEPS}
_ONES = {step: b"\xff" * step for step in _STEPS}
_ZERO_PAGE = _ZEROES[PAGE]
_FULL_PAGE = _ONES[PAGE]


class Bitmap:
    """Bits 0 to bits - 1, all clear at first. Results of set and clear calls count changed bits."""

    __slots__ = ("bits", "data", "dirty_pages", "weight")

    def __init__(self, bits: int) -> None:
        """bits: how many, see `layout.bitmap_bits()`."""
        if bits < 0:
            raise ValueError(f"a bitmap of {bits} bits")
        self.bits = bits
        self.data = bytearray(bitmap_bytes_used(bits * SECTORS_PER_BLOCK))
        self.weight = 0
        self.dirty_pages: set[int] = set()
        """Pages of 4096 bytes changed since take_dirty()."""

    @property
    def page_count(self) -> int:
        return len(self.data) // PAGE

    # Changing bits

    def set_range(self, first: int, count: int) -> int:
        """Set bits [first, first + count). Returns how many of them were clear."""
        if count == 1 and 0 <= first < self.bits:
            at, mask = first >> 3, 1 << (first & 7)
            if self.data[at] & mask:
                return 0
            self.data[at] |= mask
            self.dirty_pages.add(first >> 15)
            self.weight += 1
            return 1
        first, end = self._clip(first, count)
        if count >= self.bits > 0 == first:
            return self._set_every()
        changed = 0
        for page, low, high in _by_page(first, end):
            if high - low == BITS_PER_PAGE:
                changed += self._set_page(page)
            else:
                changed += self._change(low, high, True)
        return changed

    def clear_range(self, first: int, count: int) -> int:
        """Clear bits [first, first + count). Returns how many of them were set."""
        if count == 1 and 0 <= first < self.bits:
            at, mask = first >> 3, 1 << (first & 7)
            if not self.data[at] & mask:
                return 0
            self.data[at] ^= mask
            self.dirty_pages.add(first >> 15)
            self.weight -= 1
            return 1
        first, end = self._clip(first, count)
        changed = 0
        if not self.weight:
            return 0
        for page, low, high in _by_page(first, end):
            if high - low == BITS_PER_PAGE:
                changed += self._clear_page(page)
            else:
                changed += self._change(low, high, False)
        return changed

    def or_run(self, first: int, count: int) -> int:
        """Take over a run of set bits from the peer's bitmap: the same as set_range()."""
        return self.set_range(first, count)

    def or_bytes(self, offset: int, chunk: bytes) -> int:
        """Take over a piece of the peer's bitmap that starts at byte `offset`: its set bits are
        added to ours. Returns how many were new. Bits behind the end are ignored."""
        if offset < 0:
            raise ValueError(f"bitmap byte {offset}")
        chunk = chunk[: max(0, len(self.data) - offset)]
        changed = 0
        at = 0
        while at < len(chunk):
            start = offset + at
            length = min(PAGE - start % PAGE, len(chunk) - at)
            theirs = int.from_bytes(chunk[at : at + length], "little")
            new = theirs & self._valid(start, length) & ~self._word(start, length)
            if new:
                self.data[start : start + length] = (self._word(start, length) | new).to_bytes(
                    length, "little"
                )
                self.dirty_pages.add(start // PAGE)
                changed += new.bit_count()
            at += length
        self.weight += changed
        return changed

    def set_sectors(self, sector: int, nsectors: int) -> int:
        """Set every bit whose block these sectors touch. Returns how many were clear."""
        if nsectors <= 0:
            return 0
        first = sector >> 3
        return self.set_range(first, ((sector + nsectors - 1) >> 3) - first + 1)

    def clear_sectors(self, sector: int, nsectors: int, total_sectors: int) -> int:
        """Clear every bit whose block lies within these sectors; the volume's last, partial block
        (total_sectors: its size) counts as whole. Returns how many were set."""
        end_sector = sector + nsectors
        end = self.bits if end_sector >= total_sectors else end_sector >> 3
        first = (sector + 7) >> 3
        return self.clear_range(first, end - first) if nsectors > 0 and end > first else 0

    def set_all(self) -> int:
        return self._set_every() if self.bits else 0

    def clear_all(self) -> int:
        return self.clear_range(0, self.bits)

    def load(self, data: bytes, offset: int = 0) -> None:
        """Replace the bytes from `offset` on by what was read from disk. Padding bits and bytes
        behind the end are dropped. Nothing becomes dirty by it.
        Raises ValueError if `offset` is not that of a page or `data` is longer than the bitmap's
        pages."""
        if offset % PAGE or not 0 <= offset <= offset + len(data) <= len(self.data):
            raise ValueError(f"{len(data)} bytes at {offset} do not fit {len(self.data)} bytes")
        end = offset + len(data)
        self.weight -= _popcount(self.data, offset, end)
        self.data[offset:end] = data
        tail = self.bits >> 3
        if tail < end:
            # Only in the last page: what follows the last bit is not ours to believe.
            length = end - tail
            kept = self._word(tail, length) & self._valid(tail, length)
            self.data[tail:end] = kept.to_bytes(length, "little")
        self.weight += _popcount(self.data, offset, end)

    def resize(self, bits: int, set_new: bool = True) -> None:
        """Grow or shrink to `bits`. New bits are set, or clear if not `set_new`; all new pages are
        dirty, for what is on disk there is unknown."""
        if bits < 0:
            raise ValueError(f"a bitmap of {bits} bits")
        old, old_pages = self.bits, self.page_count
        if bits < old:
            self.clear_range(bits, old - bits)
        size = bitmap_bytes_used(bits * SECTORS_PER_BLOCK)
        if size < len(self.data):
            del self.data[size:]
            self.dirty_pages = {page for page in self.dirty_pages if page < self.page_count}
        else:
            self.data.extend(bytes(size - len(self.data)))
            self.dirty_pages.update(range(old_pages, self.page_count))
        self.bits = bits
        if bits > old and set_new:
            self.set_range(old, bits - old)

    # Asking

    def test(self, bit: int) -> bool:
        """Raises IndexError for a bit that does not exist."""
        if not 0 <= bit < self.bits:
            raise IndexError(f"bit {bit} of {self.bits}")
        return bool(self.data[bit >> 3] >> (bit & 7) & 1)

    def any_in(self, first: int, count: int) -> bool:
        """Is any of the bits [first, first + count) set?"""
        if count == 1 and 0 <= first < self.bits:
            return bool(self.data[first >> 3] >> (first & 7) & 1)
        first, end = self._clip(first, count)
        return bool(self.weight) and self._find(first, end, _ZEROES, 0) < end

    def count_in(self, first: int, count: int) -> int:
        """How many of the bits [first, first + count) are set."""
        first, end = self._clip(first, count)
        low, high = (first + 7) >> 3, end >> 3
        if low >= high:
            return self._bits_between(first, end).bit_count()
        edges = self._bits_between(first, low << 3).bit_count()
        edges += self._bits_between(high << 3, end).bit_count()
        return edges + _popcount(self.data, low, high)

    def next_set(self, start: int) -> int:
        """The first set bit at or behind `start`, -1 if there is none."""
        start, end = self._clip(start, self.bits)
        if not self.weight:
            return -1
        found = self._find(start, end, _ZEROES, 0)
        return found if found < end else -1

    def next_clear(self, start: int) -> int:
        """The first clear bit at or behind `start`, -1 if there is none."""
        start, end = self._clip(start, self.bits)
        found = self._find(start, end, _ONES, 0xFF)
        return found if found < end else -1

    def next_run(self, start: int, max_count: int = 0, boundary_bits: int = 0) -> tuple[int, int]:
        """(first, count) of the first run of set bits at or behind `start`, cut off at max_count
        bits and at the next multiple of boundary_bits (0: no limit). (-1, 0) if there is none."""
        first = self.next_set(start)
        if first < 0:
            return -1, 0
        end = self.bits
        if max_count:
            end = min(end, first + max_count)
        if boundary_bits:
            end = min(end, (first // boundary_bits + 1) * boundary_bits)
        return first, self._find(first, end, _ONES, 0xFF) - first

    # Pages

    def page(self, number: int) -> bytes:
        """The 4096 bytes of a page, as they are now."""
        return bytes(self.data[number * PAGE : (number + 1) * PAGE])

    def take_dirty(self) -> set[int]:
        """The pages changed since the last call, which now count as unchanged."""
        taken, self.dirty_pages = self.dirty_pages, set()
        return taken

    def take_dirty_of(self, pages: Iterable[int]) -> set[int]:
        """Like take_dirty(), for these pages only."""
        taken = self.dirty_pages.intersection(pages)
        self.dirty_pages -= taken
        return taken

    # Inside

    def _clip(self, first: int, count: int) -> tuple[int, int]:
        if first < 0 or count < 0:
            raise ValueError(f"bitmap range of {count} bits at {first}")
        first = min(first, self.bits)
        return first, min(first + count, self.bits)

    def _set_every(self) -> int:
        changed = self.bits - self.weight
        whole = self.bits >> 3
        for at in range(0, whole, _STEPS[0]):
            stop = min(at + _STEPS[0], whole)
            self.data[at:stop] = _ONES[_STEPS[0]][: stop - at]
        if self.bits & 7:
            self.data[whole] = (1 << (self.bits & 7)) - 1
        self.weight = self.bits
        self.dirty_pages.update(range(self.page_count))
        return changed

    def _set_page(self, page: int) -> int:
        at = page * PAGE
        if self.data.startswith(_FULL_PAGE, at):
            return 0
        changed = BITS_PER_PAGE - _popcount(self.data, at, at + PAGE)
        self.data[at : at + PAGE] = _FULL_PAGE
        self.weight += changed
        self.dirty_pages.add(page)
        return changed

    def _clear_page(self, page: int) -> int:
        at = page * PAGE
        changed = _popcount(self.data, at, at + PAGE)
        if changed:
            self.data[at : at + PAGE] = _ZERO_PAGE
            self.weight -= changed
            self.dirty_pages.add(page)
        return changed

    def _change(self, first: int, end: int, value: bool) -> int:
        """Set or clear [first, end), which lies within one page. Returns how many changed."""
        at, stop = first >> 3, (end + 7) >> 3
        mask = ((1 << (end - first)) - 1) << (first & 7)
        before = int.from_bytes(self.data[at:stop], "little")
        flipped = mask & ~before if value else mask & before
        if not flipped:
            return 0
        self.data[at:stop] = (before ^ flipped).to_bytes(stop - at, "little")
        self.dirty_pages.add(first >> 15)
        changed = flipped.bit_count()
        self.weight += changed if value else -changed
        return changed

    def _bits_between(self, first: int, end: int) -> int:
        """The bits [first, end) as an integer; for short ranges."""
        if end <= first:
            return 0
        word = int.from_bytes(self.data[first >> 3 : (end + 7) >> 3], "little")
        return word >> (first & 7) & ((1 << (end - first)) - 1)

    def _word(self, start: int, length: int) -> int:
        """The bytes [start, start + length) as one integer."""
        return int.from_bytes(self.data[start : start + length], "little")

    def _valid(self, start: int, length: int) -> int:
        """Mask of the bits in bytes [start, start + length) that exist."""
        return (1 << max(0, min(self.bits - start * 8, length * 8))) - 1

    def _find(self, first: int, end: int, fillers: dict[int, bytes], dull: int) -> int:
        """The first bit in [first, end) that differs from the filling (all zeroes or all ones; the
        byte `dull`), `end` if there is none."""
        data = self.data
        if first >= end:
            return end
        at = first >> 3
        byte = (data[at] ^ dull) >> (first & 7)
        if byte:
            return min(end, first + (byte & -byte).bit_length() - 1)
        at += 1
        stop = (end + 7) >> 3
        # Big steps up to the first that differs somewhere, then smaller ones within it.
        for step in _STEPS:
            filler = fillers[step]
            while at + step <= stop and data.startswith(filler, at):
                at += step
        if at >= stop:
            return end
        piece = data[at : min(at + _STEPS[-1], stop)]
        word = int.from_bytes(piece, "little")
        if dull:
            word ^= (1 << len(piece) * 8) - 1
        if not word:
            return end
        return min(end, at * 8 + (word & -word).bit_length() - 1)


def _by_page(first: int, end: int) -> Iterable[tuple[int, int, int]]:
    """Cut [first, end) into (page, first, end) pieces."""
    while first < end:
        page = first >> 15
        stop = min(end, (page + 1) << 15)
        yield page, first, stop
        first = stop


def _popcount(data: bytearray, start: int, end: int) -> int:
    """Set bits in data[start:end]; pages that are all zero or all ones cost one comparison."""
    total = 0
    for at in range(start, end, PAGE):
        stop = min(at + PAGE, end)
        length = stop - at
        if length == PAGE and data.startswith(_ZERO_PAGE, at):
            continue
        if length == PAGE and data.startswith(_FULL_PAGE, at):
            total += BITS_PER_PAGE
        else:
            total += int.from_bytes(data[at:stop], "little").bit_count()
    return total
