"""FileDisk against real files: what it completes, in what order, with what errno, on what thread."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from replicator.runtime import disk as disk_module
from replicator.runtime import disk_ops
from replicator.runtime.direct_io import DirectFile
from replicator.runtime.disk import FileDisk

SIZE = 8 << 20


@pytest_asyncio.fixture(params=["buffered", "direct"])
async def disk(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[FileDisk]:
    path = tmp_path / "backing"
    path.write_bytes(b"")
    os.truncate(path, SIZE)
    fd = os.open(path, os.O_RDWR)
    direct = DirectFile(fd, str(path)) if request.param == "direct" else None
    opened = FileDisk(asyncio.get_running_loop(), fd, SIZE, name="test", direct=direct)
    yield opened
    opened.stop()
    assert await asyncio.to_thread(opened.join, 10.0)


async def wait(call: Callable[..., None], *args: Any) -> Any:
    """Call a disk method and return what its `done` was given."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call(*args, lambda *result: future.set_result(result[0] if len(result) == 1 else result))
    return await asyncio.wait_for(future, 10)


async def test_what_was_written_is_read_back(disk: FileDisk) -> None:
    data = os.urandom(300_000)
    assert await wait(disk.write, 4096, data) == 0
    assert await wait(disk.read, 4096, len(data)) == (0, data)


async def test_completion_never_comes_inside_the_call(disk: FileDisk) -> None:
    order: list[str] = []
    done = asyncio.Event()
    await wait(disk.write, 0, b"x" * 4096)

    def completed(*_: object) -> None:
        order.append("done")
        done.set()

    disk.read(0, 4096, completed)
    order.append("returned")
    await asyncio.wait_for(done.wait(), 5)
    assert order == ["returned", "done"]


@pytest.mark.parametrize("disk", ["buffered"], indirect=True)
async def test_a_cached_small_read_needs_no_thread(disk: FileDisk) -> None:
    await wait(disk.write, 0, b"y" * 8192)
    before = disk.counters.reads_inline
    assert await wait(disk.read, 0, 8192) == (0, b"y" * 8192)
    assert disk.counters.reads_inline == before + 1


async def test_a_small_read_from_tmpfs_needs_no_thread() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(b"z" * 8192)
        file.flush()
        disk = FileDisk(asyncio.get_running_loop(), os.dup(file.fileno()), 8192, name="test")
        assert await wait(disk.read, 4096, 4096) == (0, b"z" * 4096)
        assert disk.counters.reads_inline == 1
        disk.stop()
        assert await asyncio.to_thread(disk.join, 10.0)


async def test_all_completions_arrive_on_the_loops_thread(disk: FileDisk) -> None:
    threads = set()
    done = asyncio.Event()
    left = 200

    def completed(*_: object) -> None:
        nonlocal left
        threads.add(threading.get_ident())
        left -= 1
        if not left:
            done.set()

    for n in range(100):
        disk.write(n * 4096, b"z" * 4096, completed)
        disk.read(n * 4096 + (4 << 20), 70_000, completed)
    await asyncio.wait_for(done.wait(), 10)
    assert threads == {threading.get_ident()}


@pytest.mark.python_engine
async def test_submissions_of_one_iteration_are_handed_over_once(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    lane = disk._lanes["write"]
    original = lane.hand_over
    monkeypatch.setattr(
        lane, "hand_over", lambda jobs: (batches.append(len(jobs)), original(jobs))[1]
    )
    await asyncio.gather(*(wait(disk.write, n * 4096, b"q" * 4096) for n in range(32)))
    assert batches == [32]


async def test_flushes_that_wait_are_served_by_one_sync(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release, calls = threading.Event(), threading.Event(), []

    def slow_sync(fd: int) -> None:
        calls.append(fd)
        entered.set()
        assert release.wait(10)

    monkeypatch.setattr(disk_module.os, "fdatasync", slow_sync)
    first = asyncio.create_task(wait(disk.flush))
    await asyncio.to_thread(entered.wait, 10)
    await wait(disk.write, 0, b"w" * 4096)
    later = [asyncio.create_task(wait(disk.flush)) for _ in range(10)]
    await asyncio.sleep(0.05)
    release.set()
    assert await asyncio.gather(first, *later) == [0] * 11
    assert len(calls) == 2


async def test_a_flush_with_nothing_written_since_the_last_costs_no_sync(disk: FileDisk) -> None:
    await wait(disk.write, 0, b"a" * 512)
    await wait(disk.flush)
    syncs = disk.counters.syncs
    assert await wait(disk.flush) == 0
    assert disk.counters.syncs == syncs
    await wait(disk.write, 0, b"b" * 512)
    await wait(disk.flush)
    assert disk.counters.syncs == syncs + 1


async def test_a_write_that_ends_while_a_sync_runs_is_in_the_next_one(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release, calls = threading.Event(), threading.Event(), []

    def slow_sync(fd: int) -> None:
        calls.append(fd)
        entered.set()
        assert release.wait(10)

    monkeypatch.setattr(disk_module.os, "fdatasync", slow_sync)
    first = asyncio.create_task(wait(disk.flush))
    await asyncio.to_thread(entered.wait, 10)
    await wait(disk.write, 0, b"c" * 4096)
    release.set()
    await first
    await wait(disk.flush)
    assert len(calls) == 2


async def test_a_durable_write_is_synced_before_and_after(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_write = os.pwrite
    monkeypatch.setattr(disk_module.os, "fdatasync", lambda fd: events.append("sync"))

    def write(fd: int, data: bytes, offset: int) -> int:
        events.append(f"write {offset}")
        return real_write(fd, data, offset)

    monkeypatch.setattr(disk_module.os, "pwrite", write)
    assert await wait(disk.write, 0, b"d" * 4096) == 0
    assert await wait(disk.write_durable, 8192, b"e" * 4096) == 0
    assert events == ["write 0", "sync", "write 8192", "sync"]


async def test_a_failed_sync_is_never_followed_by_a_successful_one(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "dead")

    await wait(disk.write, 0, b"f" * 4096)
    monkeypatch.setattr(disk_module.os, "fdatasync", broken)
    assert await wait(disk.flush) == errno.EIO
    monkeypatch.undo()
    await wait(disk.write, 0, b"g" * 4096)
    assert await wait(disk.flush) == errno.EIO
    assert await wait(disk.write_durable, 0, b"h" * 4096) == errno.EIO


async def test_short_writes_and_reads_are_carried_on(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_pwrite, real_pread = os.pwrite, os.pread
    monkeypatch.setattr(
        disk_ops.os, "pwrite", lambda fd, data, at: real_pwrite(fd, bytes(data)[:1000], at)
    )
    monkeypatch.setattr(
        disk_ops.os, "pread", lambda fd, length, at: real_pread(fd, min(length, 777), at)
    )
    data = os.urandom(100_000)
    assert await wait(disk.write, 512, data) == 0
    assert await wait(disk.read, 512, len(data)) == (0, data)


async def test_errors_of_the_disk_arrive_as_errno(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk_ops.os, "pwrite", full)
    assert await wait(disk.write, 0, b"i" * 4096) == errno.ENOSPC
    assert disk.counters.errors == 1


async def test_a_backing_file_that_was_cut_short_gives_eio(disk: FileDisk, tmp_path: Path) -> None:
    os.truncate(tmp_path / "backing", 4096)
    assert await wait(disk.read, 0, 8192) == (errno.EIO, b"")


async def test_nothing_beyond_the_end_reaches_the_disk(disk: FileDisk, tmp_path: Path) -> None:
    assert await wait(disk.write, SIZE - 100, b"k" * 200) == errno.ENOSPC
    assert (await wait(disk.read, SIZE, 1))[0] == errno.EIO
    assert await wait(disk.discard, SIZE, 4096) == errno.ENOSPC
    assert os.path.getsize(tmp_path / "backing") == SIZE


@pytest.mark.parametrize("unmap", [False, True])
async def test_a_zeroed_range_reads_as_zeroes_and_its_neighbours_do_not(
    disk: FileDisk, unmap: bool
) -> None:
    await wait(disk.write, 0, b"l" * 65536)
    assert await wait(disk.zero, 5000, 30_001, unmap) == 0
    expected = b"l" * 5000 + bytes(30_001) + b"l" * (65536 - 35_001)
    assert await wait(disk.read, 0, 65536) == (0, expected)


async def test_unmapping_gives_the_space_back(disk: FileDisk, tmp_path: Path) -> None:
    await wait(disk.write, 0, b"m" * (1 << 20))
    await wait(disk.flush)
    blocks = os.stat(tmp_path / "backing").st_blocks
    assert await wait(disk.zero, 0, 1 << 20, True) == 0
    assert os.stat(tmp_path / "backing").st_blocks < blocks


async def test_a_file_system_without_fallocate_gets_written_zeroes(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_ops, "_fallocate", lambda *args: False)
    await wait(disk.write, 0, b"n" * (3 << 20))
    assert await wait(disk.zero, 100, 2_500_000, False) == 0
    data = (await wait(disk.read, 0, 3 << 20))[1]
    assert data == b"n" * 100 + bytes(2_500_000) + b"n" * ((3 << 20) - 2_500_100)


async def test_stop_finishes_what_is_under_way_and_then_closes(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(bytes(1 << 20))
    fd = os.open(path, os.O_RDWR)
    disk = FileDisk(asyncio.get_running_loop(), fd, 1 << 20)
    results: list[int] = []
    closed = asyncio.Event()
    for n in range(50):
        disk.write(n * 4096, b"p" * 4096, results.append)
    disk.stop(closed.set)
    disk.write(0, b"late", results.append)
    await asyncio.wait_for(closed.wait(), 10)
    assert sorted(results) == [0] * 50 + [errno.ENODEV]
    assert path.read_bytes()[: 50 * 4096] == b"p" * (50 * 4096)
    with pytest.raises(OSError):
        os.fstat(fd)
    again = asyncio.Event()
    disk.stop(again.set)
    await asyncio.wait_for(again.wait(), 5)


async def test_one_done_that_raises_does_not_take_the_others_with_it(disk: FileDisk) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    results: list[int] = []

    def bad(code: int) -> None:
        raise RuntimeError("defect")

    disk.write(0, b"r", bad)
    disk.write(1, b"s", results.append)
    await wait(disk.write, 2, b"t")
    async with asyncio.timeout(10):  # direct: on several threads, in any order
        while not (results and reported):
            await asyncio.sleep(0.001)
    assert results == [0]
    assert len(reported) == 1


async def test_a_hole_is_told_without_reading_and_data_beside_it_is_read(disk: FileDisk) -> None:
    data = os.urandom(4096)
    assert await wait(disk.write, 1 << 20, data) == 0
    before = disk.counters.bytes_read
    assert await wait(disk.read_unless_hole, 0, 1 << 20) == (0, b"")
    assert await wait(disk.read_unless_hole, 2 << 20, 6 << 20) == (0, b"")
    assert disk.counters.bytes_read == before
    assert await wait(disk.read_unless_hole, (1 << 20) - 4096, 8192) == (0, bytes(4096) + data)


async def test_what_was_just_written_is_never_called_a_hole(disk: FileDisk) -> None:
    assert await wait(disk.zero, 0, 1 << 20, True) == 0
    assert await wait(disk.write, 8192, b"x" * 512) == 0
    errno_, data = await wait(disk.read_unless_hole, 0, 65536)
    assert (errno_, data[8192:8704]) == (0, b"x" * 512)


async def test_a_file_system_that_is_not_trusted_with_holes_is_read(
    disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_tells_holes", False)
    assert await wait(disk.read_unless_hole, 0, 65536) == (0, bytes(65536))


async def test_reading_unless_hole_beyond_the_end_is_an_error(disk: FileDisk) -> None:
    assert await wait(disk.read_unless_hole, SIZE - 512, 1024) == (errno.EIO, b"")


@pytest.mark.parametrize("allocated", [True, False])
async def test_a_file_with_all_its_space_is_known_for_it(tmp_path: Path, allocated: bool) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 1 << 20)
    if allocated:
        os.posix_fallocate(fd, 0, 1 << 20)
    opened = FileDisk(asyncio.get_running_loop(), fd, 1 << 20)
    assert opened.allocated is allocated
    opened.stop()
    assert await asyncio.to_thread(opened.join, 10.0)
