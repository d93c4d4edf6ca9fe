"""The activity log against the rule it exists for: a block that may differ is marked on the disk.

The rig writes on a pretended metadata disk that loses or tears what was not flushed, and cuts the
power at many instants of each run, on copies of the disk.
"""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Callable

import pytest

from replicator.engine.activity_log import ActivityLog, extents, pages_of_extents
from replicator.engine.meta_store import BitmapWriter
from replicator.metadata.activity_log import Bad, decode_block, initialized_block, replay
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.layout import Geometry, Placement, geometry
from tests.simulation import world
from tests.simulation.medium import Image

BITS_PER_EXTENT = 1024


class Recorder:
    """Passes disk calls on and keeps what was asked for and what was done, in order."""

    def __init__(self, disk: world.Disk) -> None:
        self.disk = disk
        self.size = disk.size
        self.calls: list[tuple[str, int]] = []

    def read(self, offset: int, length: int, done: Callable[[int, bytes], None]) -> None:
        self.disk.read(offset, length, done)

    def write(self, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        self._record("write", offset, lambda end: self.disk.write(offset, data, end), done)

    def write_durable(self, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        self._record("durable", offset, lambda e: self.disk.write_durable(offset, data, e), done)

    def flush(self, done: Callable[[int], None]) -> None:
        self.disk.flush(done)

    def zero(self, *_: object) -> None:
        raise AssertionError("nobody zeroes metadata")

    discard = zero

    def _record(
        self,
        kind: str,
        offset: int,
        call: Callable[[Callable[[int], None]], None],
        done: Callable[[int], None],
    ) -> None:
        self.calls.append((kind, offset))

        def ended(error: int) -> None:
            self.calls.append((kind + " done", offset))
            done(error)

        call(ended)


class Rig:
    """An activity log with its bitmap on one pretended metadata disk of its own."""

    def __init__(
        self, slots: int, extent_count: int = 320, seed: int = 0, stripes: int = 1
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = world.Clock()
        pages = -(-extent_count // 32)
        al_bytes = 32768 * stripes
        self.medium = world.Medium(max(69632, 4096 + al_bytes + 4096 * pages))
        self.geometry: Geometry = geometry(self.medium.size, Placement("flexible"), stripes)
        for block in range(self.geometry.al_blocks):
            offset = self.geometry.al_offset + 4096 * block
            self.medium.put(offset, initialized_block())
        self.disk = world.Disk(self.medium, world.OwnedClock(self.clock), self.rng)
        self.recorder = Recorder(self.disk)
        self.extent_count = extent_count
        self.bitmap = Bitmap(extent_count * BITS_PER_EXTENT)
        self.bitmaps = BitmapWriter(self.recorder, self.geometry, self.bitmap)
        self.starved = 0
        self._replayed: tuple[bytes, set[int]] = b"", set()
        self.evicted: list[int] = []
        self.log = ActivityLog(
            self.recorder, self.geometry, slots, self._before_evict, self._starving
        )
        self.referenced: dict[int, int] = {}
        """What the disk must name: extents whose go was given, and how many writes use each."""

    def _before_evict(self, evicted: list[int], then: Callable[[int], None]) -> None:
        assert not set(evicted) & set(self.referenced), "an extent in use is evicted"
        self.evicted += evicted
        self.bitmaps.write_dirty_of(pages_of_extents(evicted), then)

    def _starving(self) -> None:
        self.starved += 1

    def begin(self, first: int, last: int, go: Callable[[], None]) -> None:
        """Start a write; `go` when it may, and by then the disk must say so."""
        called = False

        def active(error: int) -> None:
            nonlocal called
            assert not called and error == 0
            called = True
            named = self.replay(self.medium.stable)
            for extent in range(first, last + 1):
                assert extent in named, "go() before the transaction was durable"
                self.referenced[extent] = self.referenced.get(extent, 0) + 1
            go()

        if self.log.begin(first, last, active):
            active(0)

    def end(self, first: int, last: int) -> None:
        for extent in range(first, last + 1):
            self.referenced[extent] -= 1
            if not self.referenced[extent]:
                del self.referenced[extent]
        self.log.end(first, last)

    def replay(self, image: Image) -> set[int]:
        geo = self.geometry
        ring = bytes(image[geo.al_offset : geo.al_offset + 4096 * geo.al_blocks])
        if ring != self._replayed[0]:
            found = replay(ring[at : at + 4096] for at in range(0, len(ring), 4096))
            assert found.usable
            self._replayed = ring, found.active_extents
        return self._replayed[1]

    def cut_power(self) -> bool:
        """What a power cut at this instant would leave must name every difference. Returns whether
        a block of the ring was torn by it."""
        medium = copy.deepcopy(self.medium)
        medium.power_loss(self.rng)
        image = medium.current
        named = self.replay(image)
        assert set(self.referenced) <= named, "an extent in use is not in the log"
        on_disk = Bitmap(self.bitmap.bits)
        start = self.geometry.bm_offset
        on_disk.load(bytes(image[start : start + 4096 * on_disk.page_count]))
        bit = self.bitmap.next_set(0)
        while 0 <= bit < self.bitmap.bits:
            assert on_disk.test(bit) or bit // BITS_PER_EXTENT in named, (
                "a set bit is neither on the disk nor covered by the log"
            )
            bit = self.bitmap.next_set(bit + 1)
        geo = self.geometry
        return any(
            isinstance(decode_block(bytes(image[o : o + 4096])), Bad)
            for o in range(geo.al_offset, geo.al_offset + 4096 * geo.al_blocks, 4096)
        )


class Traffic:
    """Random writes over the rig: they start, take their time, fail to reach the peer, end."""

    def __init__(self, rig: Rig, span_max: int = 3) -> None:
        self.rig = rig
        self.span_max = span_max
        self.started = self.ended = 0

    def start(self) -> None:
        rig, rng = self.rig, self.rig.rng
        first = rng.randrange(rig.extent_count)
        last = min(rig.extent_count - 1, first + rng.randrange(self.span_max))
        self.started += 1

        def go() -> None:
            rig.clock.call_later(0.004 * rng.random(), lambda: self.finish(first, last))

        rig.begin(first, last, go)

    def finish(self, first: int, last: int) -> None:
        rig, rng = self.rig, self.rig.rng
        bit = first * BITS_PER_EXTENT + rng.randrange((last - first + 1) * BITS_PER_EXTENT - 2)
        if rng.random() < 0.3:
            rig.bitmap.set_range(bit, 3)
        elif rng.random() < 0.2:
            rig.bitmap.clear_range(first * BITS_PER_EXTENT, BITS_PER_EXTENT)
        rig.end(first, last)
        self.ended += 1

    def run(self, writes: int, cuts_every: int) -> int:
        """Returns how many cuts tore a block of the ring."""
        rig, rng = self.rig, self.rig.rng
        torn = 0
        while self.started < writes or self.ended < self.started:
            if self.started < writes:
                rig.clock.call_later(0.001 * rng.random(), self.start)
            if rng.random() < 0.02:
                rig.bitmaps.write_dirty()
            if not rig.clock.step():
                assert self.started == writes, "nothing moves any more"
                break
            if rng.randrange(cuts_every) == 0:
                torn += rig.cut_power()
        assert self.ended == self.started, "a write waits for ever"
        return torn


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_at_any_instant_leaves_every_difference_marked(seed: int) -> None:
    rig = Rig(slots=7 + 11 * seed, seed=seed)
    torn = Traffic(rig).run(writes=600, cuts_every=20)
    assert rig.evicted, "nothing was ever evicted: the test is too tame"
    assert rig.log.transactions > 2 * rig.geometry.al_blocks, "the ring did not turn"
    assert torn, "no cut ever tore a transaction: the test is too tame"


@pytest.mark.parametrize("slots", [919, 920, 2000])
def test_more_slots_than_one_transaction_has_context_for(slots: int) -> None:
    rig = Rig(slots=slots, extent_count=slots + 400, seed=slots)
    Traffic(rig, span_max=33).run(writes=800, cuts_every=100)
    assert rig.evicted and rig.log.transactions > rig.geometry.al_blocks


def test_the_largest_log_of_a_ring_survives_a_torn_block() -> None:
    rig = Rig(slots=7 * 919, extent_count=7 * 919 + 300, seed=1)
    for first in range(0, 7 * 919, 33):
        last = min(first + 32, 7 * 919 - 1)
        rig.begin(first, last, lambda a=first, b=last: rig.end(a, b))  # type: ignore[misc]
    rig.clock.run(1)
    assert not rig.evicted, "there is a slot for every extent so far"
    Traffic(rig, span_max=33).run(writes=200, cuts_every=40)
    assert rig.evicted
    assert rig.log.transactions > 2 * 7, "the window of context did not come round"


def test_stripes_are_used_in_turn() -> None:
    rig = Rig(slots=20, seed=4, stripes=4)
    Traffic(rig).run(writes=300, cuts_every=100)
    blocks = {o for kind, o in rig.recorder.calls if kind == "durable"}
    assert len(blocks) == rig.geometry.al_blocks == 32


def test_a_transaction_number_wraps_around() -> None:
    rig = Rig(slots=10, seed=9)
    rig.log._next_number = 0xFFFFFFFF - 5
    Traffic(rig).run(writes=200, cuts_every=50)
    assert rig.log._next_number < 0x1000


# --- order and economy ---------------------------------------------------------------------------


def fill(rig: Rig, numbers: range) -> None:
    for extent in numbers:
        rig.begin(extent, extent, lambda e=extent: rig.end(e, e))  # type: ignore[misc]
        rig.clock.run(1)


def test_an_active_extent_costs_no_disk_call() -> None:
    rig = Rig(slots=8)
    fill(rig, range(3))
    rig.recorder.calls.clear()
    fill(rig, range(3))
    assert rig.recorder.calls == []
    assert rig.log.transactions == 3


def test_writes_that_wait_share_one_transaction() -> None:
    rig = Rig(slots=40)
    went: list[int] = []
    for extent in range(30):
        rig.begin(extent, extent, lambda e=extent: went.append(e))  # type: ignore[misc]
    rig.clock.run(1)
    assert went == list(range(30))
    assert rig.log.transactions == 2, "the first goes alone, all others together"


def test_a_transaction_names_at_most_64_extents() -> None:
    rig = Rig(slots=300)
    went: list[int] = []
    for extent in range(200):
        rig.begin(extent, extent, lambda e=extent: went.append(e))  # type: ignore[misc]
    rig.clock.run(1)
    assert went == list(range(200))
    assert rig.log.transactions == 1 + 4
    assert rig.replay(rig.medium.stable) == set(range(200))


def test_the_bitmap_pages_of_the_evicted_come_before_the_transaction_and_only_those_that_changed() -> (
    None
):
    rig = Rig(slots=2)
    rig.begin(0, 0, lambda: None)
    rig.begin(40, 40, lambda: None)
    rig.clock.run(1)
    rig.bitmap.set_range(5, 1)
    rig.bitmap.set_range(200 * BITS_PER_EXTENT, 1)
    rig.end(0, 0)
    rig.recorder.calls.clear()
    fill(rig, range(100, 101))
    page = rig.geometry.bm_offset
    ring = rig.geometry.al_offset + 4096 * 2
    assert rig.recorder.calls == [
        ("write", page),
        ("write done", page),
        ("durable", ring),
        ("durable done", ring),
    ]


def test_the_extent_that_was_idle_longest_is_evicted() -> None:
    rig = Rig(slots=3)
    fill(rig, range(3))
    fill(rig, range(1))
    fill(rig, range(9, 10))
    assert rig.evicted == [1]


def test_eviction_spares_what_the_request_itself_needs() -> None:
    rig = Rig(slots=3)
    fill(rig, range(3))
    rig.begin(1, 3, lambda: None)
    rig.clock.run(1)
    assert rig.evicted == [0]
    assert rig.replay(rig.medium.stable) == {1, 2, 3}


# --- starvation and failure ----------------------------------------------------------------------


def test_when_every_slot_is_in_use_those_who_can_finish_are_asked_and_the_rest_goes_on_in_order() -> (
    None
):
    rig = Rig(slots=3)
    for extent in range(3):
        rig.begin(extent, extent, lambda: None)
    rig.clock.run(1)
    went: list[int] = []
    for extent in (10, 0, 11):
        rig.begin(extent, extent, lambda e=extent: went.append(e))  # type: ignore[misc]
    rig.clock.run(1)
    assert rig.starved >= 1
    assert went == [], "a hot extent must not overtake who is starving"
    assert rig.log.waiting == 3
    rig.end(2, 2)
    rig.clock.run(1)
    assert went == [10, 0]
    rig.end(1, 1)
    rig.clock.run(1)
    assert went == [10, 0, 11]
    assert rig.log.waiting == 0


def test_a_request_for_more_than_is_free_waits_until_enough_is() -> None:
    rig = Rig(slots=4)
    for extent in range(4):
        rig.begin(extent, extent, lambda: None)
    rig.clock.run(1)
    went: list[str] = []
    rig.begin(20, 22, lambda: went.append("three extents"))
    for extent in range(4):
        assert went == ([] if extent < 3 else ["three extents"])
        rig.end(extent, extent)
        rig.clock.run(1)
    assert rig.starved >= 3


def outcomes(rig: Rig, numbers: range) -> list[int]:
    heard: list[int] = []
    for extent in numbers:
        assert not rig.log.begin(extent, extent, heard.append)
    rig.clock.run(1)
    return heard


def test_a_transaction_that_cannot_be_written_is_everybodys_error_now_and_later() -> None:
    rig = Rig(slots=8)
    rig.disk.fails = lambda kind, _offset, _length: errno.EIO if kind == "write" else 0
    assert outcomes(rig, range(3)) == [errno.EIO] * 3
    rig.disk.fails = None
    assert outcomes(rig, range(5, 7)) == [errno.EIO] * 2
    assert rig.log.transactions == 0


def test_a_bitmap_page_that_cannot_be_written_stops_the_eviction() -> None:
    rig = Rig(slots=1)
    rig.begin(0, 0, lambda: None)
    rig.clock.run(1)
    rig.bitmap.set_range(0, 1)
    rig.end(0, 0)
    rig.disk.fails = lambda kind, offset, _length: (
        errno.EIO if kind == "write" and offset >= rig.geometry.bm_offset else 0
    )
    assert outcomes(rig, range(9, 10)) == [errno.EIO]
    assert rig.replay(rig.medium.stable) == {0}, "the log must go on naming what it did"


def test_whoever_waits_when_the_disk_is_given_up_hears_so() -> None:
    rig = Rig(slots=1)
    rig.begin(0, 0, lambda: None)
    rig.clock.run(1)
    heard: list[int] = []
    assert not rig.log.begin(5, 5, heard.append)
    assert not rig.log.begin(6, 6, heard.append)
    rig.log.fail(errno.EIO)
    assert heard == [errno.EIO] * 2
    assert outcomes(rig, range(7, 8)) == [errno.EIO]


def test_sectors_and_the_extents_they_touch() -> None:
    assert extents(0, 1) == (0, 0)
    assert extents(8191, 1) == (0, 0)
    assert extents(8191, 2) == (0, 1)
    assert extents(8192, 8192) == (1, 1)
    assert pages_of_extents([0, 31, 32, 95]) == {0, 1, 2}
