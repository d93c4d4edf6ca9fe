"""Superblock, bitmap and attaching: what is written when, never twice at once, and what a crash leaves."""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Callable, Iterator

import pytest

from replicator.engine.meta_store import BitmapWriter, SuperblockWriter, read_bitmap
from replicator.engine.store import Store, attach, write_full_bitmap
from replicator.errors import MetadataError, NoDiskError, ReplicatorError
from replicator.metadata.bitmap import Bitmap
from replicator.metadata.layout import Placement, geometry
from replicator.metadata.superblock import Flags, Superblock
from tests.simulation import world
from tests.simulation.pair import INTERNAL, MIB, create_md

PAGE = 4096
BITS_PER_PAGE = PAGE * 8


class WatchedDisk(world.Disk):
    """Fails the test when two writes of overlapping ranges are in flight."""

    def __init__(self, medium: world.Medium, clock: world.Clock, rng: random.Random) -> None:
        super().__init__(medium, world.OwnedClock(clock), rng)
        self.in_flight: list[tuple[int, int]] = []
        self.written: list[tuple[int, int]] = []

    def _watch(
        self, offset: int, data: bytes, done: Callable[[int], None]
    ) -> Callable[[int], None]:
        end = offset + len(data)
        assert not any(a < end and offset < b for a, b in self.in_flight), "two writes at once"
        self.in_flight.append((offset, end))
        self.written.append((offset, end))

        def ended(error: int) -> None:
            self.in_flight.remove((offset, end))
            done(error)

        return ended

    def write(self, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        super().write(offset, data, self._watch(offset, data, done))

    def write_durable(self, offset: int, data: bytes, done: Callable[[int], None]) -> None:
        super().write_durable(offset, data, self._watch(offset, data, done))


class Rig:
    def __init__(self, size: int = MIB, seed: int = 0, placement: Placement = INTERNAL) -> None:
        self.rng = random.Random(seed)
        self.clock = world.Clock()
        self.medium = world.Medium(size)
        self.geometry = geometry(size, placement)
        self.disk = WatchedDisk(self.medium, self.clock, self.rng)

    def stable_superblock(self) -> Superblock:
        start = self.geometry.sb_offset
        return Superblock.decode(bytes(self.medium.stable[start : start + PAGE]))


# --- superblock ----------------------------------------------------------------------------------


@pytest.fixture
def superblocks() -> Iterator[tuple[Rig, SuperblockWriter, Superblock]]:
    rig = Rig()
    superblock = Superblock.fresh(rig.geometry)
    yield rig, SuperblockWriter(rig.disk, rig.geometry, superblock, lambda: None), superblock


def test_the_superblock_is_durable_when_the_asker_is_told(
    superblocks: tuple[Rig, SuperblockWriter, Superblock],
) -> None:
    rig, writer, superblock = superblocks
    seen: list[int] = []
    superblock.current = 0x1234567890ABCDE0
    writer.write(lambda _errno: seen.append(rig.stable_superblock().current))
    rig.clock.run(1)
    assert seen == [0x1234567890ABCDE0]


def test_those_who_ask_during_a_write_share_the_next_which_has_the_latest_state(
    superblocks: tuple[Rig, SuperblockWriter, Superblock],
) -> None:
    rig, writer, superblock = superblocks
    seen: list[tuple[int, int]] = []
    for number in range(1, 6):
        superblock.current = number << 8
        writer.write(lambda _e, n=number: seen.append((n, rig.stable_superblock().current >> 8)))
    rig.clock.run(1)
    assert len(rig.disk.written) == 2
    assert seen[0] == (1, 1)
    assert seen[1:] == [(number, 5) for number in range(2, 6)]


def test_who_is_told_may_ask_again_at_once(
    superblocks: tuple[Rig, SuperblockWriter, Superblock],
) -> None:
    rig, writer, superblock = superblocks
    seen: list[str] = []

    def first(_errno: int) -> None:
        superblock.current = 0x700
        writer.write(lambda _e: seen.append(f"second {rig.stable_superblock().current:x}"))

    writer.write(first)
    writer.write(lambda _errno: seen.append("shared"))
    rig.clock.run(1)
    assert seen == ["shared", "second 700"] or seen == ["second 700", "shared"]


def test_flags_are_refreshed_before_each_superblock_write() -> None:
    rig = Rig()
    superblock = Superblock.fresh(rig.geometry)
    calls: list[int] = []

    def refresh() -> None:
        calls.append(1)
        superblock.bitmap = len(calls) << 8

    writer = SuperblockWriter(rig.disk, rig.geometry, superblock, refresh)
    writer.write()
    writer.write()
    rig.clock.run(1)
    assert rig.stable_superblock().bitmap == 0x200 and len(calls) == 2


def test_a_superblock_that_cannot_be_written_is_reported_and_does_not_block_the_next(
    superblocks: tuple[Rig, SuperblockWriter, Superblock],
) -> None:
    rig, writer, _superblock = superblocks
    heard: list[int] = []
    rig.disk.fails = lambda *_: errno.EIO
    writer.write(heard.append)
    rig.clock.run(1)
    rig.disk.fails = None
    writer.write(heard.append)
    rig.clock.run(1)
    assert heard == [errno.EIO, 0]


# --- bitmap --------------------------------------------------------------------------------------


def bitmap_rig(pages: int, seed: int = 0) -> tuple[Rig, Bitmap, BitmapWriter]:
    rig = Rig(4096 + 32768 + PAGE * max(8, pages), seed, Placement("flexible"))
    bitmap = Bitmap(pages * BITS_PER_PAGE)
    return rig, bitmap, BitmapWriter(rig.disk, rig.geometry, bitmap)


def on_disk(rig: Rig, page: int) -> bytes:
    start = rig.geometry.bm_offset + PAGE * page
    return bytes(rig.medium.current[start : start + PAGE])


def covers(new: bytes, old: bytes) -> bool:
    a, b = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    return b & ~a == 0


@pytest.mark.parametrize("seed", range(8))
def test_pages_are_never_written_twice_at_once_and_every_asker_gets_what_it_asked_for(
    seed: int,
) -> None:
    """Bits are only set here, so that newer content covers older."""
    rig, bitmap, writer = bitmap_rig(40, seed)
    rng = rig.rng
    waiting = 0

    def ask() -> None:
        nonlocal waiting
        for _ in range(rng.randrange(6)):
            bitmap.set_range(rng.randrange(bitmap.bits), rng.randrange(1, 3 * BITS_PER_PAGE))
        mine = {rng.randrange(40) for _ in range(5)}
        wanted = {page: bitmap.page(page) for page in mine}
        waiting += 1

        def done(error: int) -> None:
            nonlocal waiting
            waiting -= 1
            assert not error
            for page, content in wanted.items():
                assert covers(on_disk(rig, page), content), "told before its page was written"

        choice = rng.randrange(3)
        if choice == 0:
            writer.write_dirty_of(mine, done)
        elif choice == 1:
            writer.write(mine, done)
        else:
            # Earlier writes of these pages may be under way: this one is behind them all.
            writer.write_all(done)

    for _ in range(120):
        rig.clock.call_later(0.02 * rng.random(), ask)
    rig.clock.run(5)
    assert waiting == 0, "somebody was never told"
    last: list[int] = []
    writer.write_dirty(last.append)
    rig.clock.run(1)
    assert last == [0]
    assert b"".join(on_disk(rig, page) for page in range(40)) == bytes(bitmap.data)
    assert not bitmap.dirty_pages


def test_neighbouring_pages_leave_in_one_write() -> None:
    rig, bitmap, writer = bitmap_rig(600)
    done: list[int] = []
    bitmap.set_all()
    writer.write_dirty(done.append)
    rig.clock.run(1)
    assert done == [0]
    assert [(b - a) // PAGE for a, b in rig.disk.written] == [256, 256, 88]
    assert writer.pages_written == 600


def test_a_page_that_changes_during_its_write_is_written_again() -> None:
    rig, bitmap, writer = bitmap_rig(2)
    bitmap.set_range(0, 1)
    writer.write_dirty()
    bitmap.set_range(1, 1)
    seen: list[int] = []
    writer.write_dirty_of({0}, lambda _errno: seen.append(on_disk(rig, 0)[0]))
    rig.clock.run(1)
    assert seen == [3]
    assert len(rig.disk.written) == 2


def test_who_asks_for_an_unchanged_page_waits_for_the_write_that_is_under_way() -> None:
    rig, bitmap, writer = bitmap_rig(2)
    bitmap.set_range(0, 1)
    writer.write_dirty()
    seen: list[int] = []
    writer.write_dirty_of({0, 1}, lambda _errno: seen.append(on_disk(rig, 0)[0]))
    assert seen == []
    rig.clock.run(1)
    assert seen == [1]


def test_nothing_to_write_is_done_at_once() -> None:
    _rig, _bitmap, writer = bitmap_rig(2)
    heard: list[int] = []
    writer.write_dirty(heard.append)
    writer.write_dirty_of({0, 1}, heard.append)
    assert heard == [0, 0]


def test_a_page_whose_write_failed_is_not_forgotten() -> None:
    """Whoever relies on it later (an eviction from the activity log) must write it, or fail, too."""
    rig, bitmap, writer = bitmap_rig(4)
    bitmap.set_range(0, 1)
    bitmap.set_range(3 * BITS_PER_PAGE, 1)
    rig.disk.fails = lambda *_: errno.EIO
    writer.write_dirty()
    rig.clock.run(1)
    heard: list[int] = []
    writer.write_dirty_of({0}, heard.append)
    rig.clock.run(1)
    assert heard == [errno.EIO]
    rig.disk.fails = None
    writer.write_dirty(heard.append)
    rig.clock.run(1)
    assert heard == [errno.EIO, 0]
    assert on_disk(rig, 0)[0] == 1 and on_disk(rig, 3)[0] == 1


def test_one_failed_page_fails_the_whole_batch_once() -> None:
    rig, bitmap, writer = bitmap_rig(20)
    for page in range(0, 20, 2):
        bitmap.set_range(page * BITS_PER_PAGE, 1)
    bad = rig.geometry.bm_offset + 8 * PAGE
    rig.disk.fails = lambda _kind, offset, _length: errno.ENOSPC if offset == bad else 0
    heard: list[int] = []
    writer.write_dirty(heard.append)
    rig.clock.run(1)
    assert heard == [errno.ENOSPC]
    assert on_disk(rig, 18)[0] == 1


def test_the_bitmap_is_read_back_in_pieces() -> None:
    rig, bitmap, writer = bitmap_rig(600)
    for _ in range(500):
        bitmap.set_range(rig.rng.randrange(bitmap.bits), 7)
    writer.write_all(lambda _errno: None)
    rig.clock.run(1)
    copied = Bitmap(bitmap.bits)
    heard: list[int] = []
    read_bitmap(rig.disk, rig.geometry, copied, heard.append)
    rig.clock.run(1)
    assert heard == [0] and copied.data == bitmap.data and copied.weight == bitmap.weight


# --- attaching -----------------------------------------------------------------------------------


def change_superblock(rig: Rig, **fields: object) -> None:
    superblock = rig.stable_superblock()
    for name, value in fields.items():
        setattr(superblock, name, value)
    rig.medium.put(rig.geometry.sb_offset, superblock.encode())


def created() -> Rig:
    rig = Rig(4 * MIB)
    create_md(rig.medium)
    change_superblock(rig, clean=True, la_size_sect=rig.geometry.max_data_sectors)
    return rig


def attached(rig: Rig) -> Store | ReplicatorError:
    results: list[Store | ReplicatorError | None] = []
    attach(
        "r0/0", rig.disk, rig.disk, INTERNAL, lambda _s: None, lambda s, e: results.append(s or e)
    )
    rig.clock.run(1)
    assert len(results) == 1 and results[0] is not None
    return results[0]


def test_attaching_reads_the_bitmap_and_writes_nothing() -> None:
    rig = created()
    rig.medium.put(rig.geometry.bm_offset, b"\x81" + bytes(511))
    store = attached(rig)
    assert isinstance(store, Store)
    assert store.bitmap.weight == 2 and store.bitmap.test(0) and store.bitmap.test(7)
    assert rig.disk.written == []


def test_the_first_superblock_write_marks_the_metadata_unclean() -> None:
    rig = created()
    store = attached(rig)
    assert isinstance(store, Store)
    store.superblocks.write()
    rig.clock.run(1)
    found = rig.stable_superblock()
    assert not found.clean and not found.flags & Flags.AL_CLEAN


def test_unclean_metadata_is_refused_with_the_command_that_helps() -> None:
    rig = created()
    flags = rig.stable_superblock().flags & ~Flags.AL_CLEAN
    change_superblock(rig, clean=False, flags=flags | Flags.PRIMARY_IND)
    error = attached(rig)
    assert isinstance(error, MetadataError)
    assert "apply-al" in (error.hint or "")


def test_a_disk_that_has_shrunk_is_refused() -> None:
    rig = created()
    change_superblock(rig, la_size_sect=rig.geometry.max_data_sectors + 8)
    error = attached(rig)
    assert isinstance(error, MetadataError)
    assert "la_size_sect: expected at most 8112, found 8120" in str(error)


def test_no_metadata_and_unreadable_metadata_are_different_errors() -> None:
    assert isinstance(attached(Rig(4 * MIB)), MetadataError)
    rig = created()
    rig.disk.fails = lambda *_: errno.EIO
    error = attached(rig)
    assert isinstance(error, NoDiskError) and "cannot read the superblock" in str(error)
    rig.disk.fails = lambda _kind, offset, _length: (
        errno.EIO if offset >= rig.geometry.bm_offset and offset < rig.geometry.sb_offset else 0
    )
    error = attached(rig)
    assert isinstance(error, NoDiskError) and "cannot read the bitmap" in str(error)
    rig.disk.fails = None
    assert isinstance(attached(rig), Store)


def test_a_medium_too_small_for_metadata_is_an_error_at_once() -> None:
    assert isinstance(attached_small(), MetadataError)


def attached_small() -> Store | ReplicatorError | None:
    clock = world.Clock()
    disk = world.Disk(world.Medium(8192), world.OwnedClock(clock), random.Random(0))
    results: list[Store | ReplicatorError | None] = []
    attach("r0/0", disk, disk, INTERNAL, lambda _s: None, lambda s, e: results.append(s or e))
    return results[0]


def test_a_full_bitmap_is_full_after_a_power_cut_at_any_instant() -> None:
    """Or nothing of it happened yet; but from the first sign on a reader finds every bit."""
    rng = random.Random(5)
    half_done = 0
    for cut in range(60):
        rig = created()
        store = attached(rig)
        assert isinstance(store, Store)
        done: list[int] = []
        write_full_bitmap(store, done.append)
        for _ in range(cut // 6):
            rig.clock.step()
        told = bool(done)
        after = Rig(4 * MIB)
        after.medium = copy.deepcopy(rig.medium)
        after.medium.power_loss(rng)
        after.disk = WatchedDisk(after.medium, after.clock, after.rng)
        image = after.medium.stable
        start = rig.geometry.sb_offset
        superblock = Superblock.decode(bytes(image[start : start + PAGE]))
        change_superblock(after, clean=True, flags=superblock.flags | Flags.AL_CLEAN)
        again = attached(after)
        assert isinstance(again, Store)
        full = again.bitmap.weight == again.bitmap.bits
        assert full or (not told and again.bitmap.weight == 0)
        half_done += bool(superblock.flags & Flags.FULL_SYNC)
        if told:
            assert full
    assert half_done, "no cut fell into the middle"
