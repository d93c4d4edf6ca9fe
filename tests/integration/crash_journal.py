"""What was written to a volume, and what may therefore be found on it after a crash.

Every sector that is written carries the number of its write and its own address, so that each sector
found says which write put it there. Time is counted in events of the one client, so "before" means:
the client had the answer before it sent the other request.

What may be in a sector: the content before the journal began, or any write to the sector, except
what a write that must have survived has replaced. A write replaces what was answered before it was
sent; of two that were under way together either may have won. Torn means that a sector has the
content of no write at all.
Must not know: libnbd, replicator, how anything was killed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SECTOR = 512
CHUNK = 64 * SECTOR
TAG = struct.Struct(">QQ")
COPIES = SECTOR // TAG.size
ZEROES = bytes(SECTOR)
SHOWN = 8
"""Bad sectors that a message names."""


@dataclass(slots=True, eq=False)
class Write:
    """number: unique in the whole run, from 1; first, count: sectors; data: False where zeroes were
    asked for; sent, answered: when, by the journal's clock, None while unknown; stable: covered by
    an answered flush or FUA."""

    number: int
    first: int
    count: int
    data: bool
    sent: int
    answered: int | None = None
    stable: bool = False

    def sector(self, sector: int) -> bytes:
        """What the write puts into one of its sectors."""
        return TAG.pack(self.number, sector) * COPIES if self.data else ZEROES

    @property
    def fate(self) -> str:
        if self.answered is None:
            return "never answered"
        return f"answered at {self.answered}" + (", flushed" if self.stable else "")

    def payload(self) -> bytes:
        last = self.first + self.count
        return b"".join([self.sector(sector) for sector in range(self.first, last)])


class Journal:
    """The writes of one client on one volume, from a known content on.

    before: the whole content at the beginning; number: that of the first write.
    """

    def __init__(self, before: bytes, number: int = 1) -> None:
        self.before = before
        self.writes: list[Write] = []
        self._number = number
        self._clock = 0

    @property
    def next_number(self) -> int:
        return self._number + len(self.writes)

    def now(self) -> int:
        """A moment later than all before."""
        self._clock += 1
        return self._clock

    def write(self, first: int, count: int, *, data: bool = True) -> Write:
        """A request that is being sent now."""
        sent = Write(self.next_number, first, count, data, self.now())
        self.writes.append(sent)
        return sent

    def answered(self, write: Write, *, fua: bool = False) -> None:
        write.answered = self.now()
        write.stable = write.stable or fua

    def flushed(self, sent: int) -> None:
        """A flush that was sent at `sent` has been answered: what was answered before is stable."""
        for write in self.writes:
            if write.answered is not None and write.answered < sent:
                write.stable = True

    @property
    def acknowledged(self) -> list[Write]:
        return [write for write in self.writes if write.answered is not None]

    @property
    def flushed_writes(self) -> list[Write]:
        return [write for write in self.writes if write.stable]

    # ---- what may be found

    def problems(self, image: bytes, must: Iterable[Write]) -> list[str]:
        """Every sector of `image` that is not what it may be if the writes `must` have survived; in
        words, at most SHOWN of them and then how many more. Empty if all is well."""
        survived = set(must)
        touched = self._by_sector()
        bad = [
            self._describe(image, sector, history, survived)
            for sector, history in sorted(touched.items())
            if _piece(image, sector) not in self._possible(sector, history, survived)
        ]
        bad += self._changed_without_reason(image, touched)
        if len(image) != len(self.before):
            bad.insert(0, f"{len(image)} bytes, expected {len(self.before)}")
        more = len(bad) - SHOWN
        return bad[:SHOWN] + ([f"and {more} more sectors"] if more > 0 else [])

    def prefix(self, image: bytes) -> list[Write]:
        """The writes that must be there because one that was sent after their answer is there: what
        an image must contain that holds any prefix of the stream of writes."""
        touched = self._by_sector()
        present = [
            write.sent
            for sector, history in touched.items()
            for write in history
            if write.data and _piece(image, sector) == write.sector(sector)
        ]
        latest = max(present, default=0)
        return [w for w in self.writes if w.answered is not None and w.answered < latest]

    def _by_sector(self) -> dict[int, list[Write]]:
        touched: dict[int, list[Write]] = {}
        for write in self.writes:
            for sector in range(write.first, write.first + write.count):
                touched.setdefault(sector, []).append(write)
        return touched

    def _possible(self, sector: int, history: Sequence[Write], survived: set[Write]) -> set[bytes]:
        replaced_before = max((w.sent for w in history if w in survived), default=0)
        possible = {
            write.sector(sector)
            for write in history
            if write.answered is None or write.answered > replaced_before
        }
        if not replaced_before:
            possible.add(_piece(self.before, sector))
        return possible

    def _changed_without_reason(self, image: bytes, touched: dict[int, list[Write]]) -> list[str]:
        bad = []
        for start in range(0, min(len(image), len(self.before)), CHUNK):
            if image[start : start + CHUNK] == self.before[start : start + CHUNK]:
                continue
            for sector in range(start // SECTOR, (start + CHUNK) // SECTOR):
                if sector not in touched and _piece(image, sector) != _piece(self.before, sector):
                    bad.append(
                        f"sector {sector}: {name(_piece(image, sector), sector)}, "
                        f"but nobody wrote to it; before: {name(_piece(self.before, sector), sector)}"
                    )
        return bad

    def _describe(
        self, image: bytes, sector: int, history: Sequence[Write], survived: set[Write]
    ) -> str:
        story = "; ".join(
            f"{name(w.sector(sector), sector)} (number {w.number}, sent at {w.sent}, {w.fate}"
            f"{', must be there' if w in survived else ''})"
            for w in history
        )
        before = name(_piece(self.before, sector), sector)
        return f"sector {sector}: {name(_piece(image, sector), sector)}; before: {before}; then: {story}"


def _piece(image: bytes, sector: int) -> bytes:
    return image[sector * SECTOR : (sector + 1) * SECTOR]


def name(content: bytes, sector: int) -> str:
    """What a sector holds, in words."""
    if content == ZEROES:
        return "zeroes"
    if len(content) == SECTOR and content == content[: TAG.size] * COPIES:
        number, address = TAG.unpack(content[: TAG.size])
        return f"write {number}" + ("" if address == sector else f" of sector {address}")
    return "torn or foreign data"
