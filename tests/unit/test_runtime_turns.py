"""TurnLoop: blocking calls between the turns of a loop, and a loop that goes on without them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from replicator.runtime import disk as disk_module
from replicator.runtime import disk_ops
from replicator.runtime.disk import FileDisk
from replicator.runtime.turns import TurnLoop

BLOCK = 4096
SIZE = 4 << 20
LIMIT = 20.0
"""Seconds after which what a test waits for counts as never happening."""

Story = Callable[[TurnLoop], Coroutine[Any, Any, None]]


def play(story: Story) -> TurnLoop:
    """Run a story on a loop of its own, with an end."""
    loop = TurnLoop()

    async def bounded() -> None:
        await asyncio.wait_for(story(loop), LIMIT)

    loop.run_turns(bounded())
    assert loop.is_closed()
    return loop


async def called(loop: TurnLoop, call: Callable[[], Any]) -> Any:
    result = loop.create_future()
    loop.between_turns(call, result.set_result)
    return await result


def test_the_result_of_a_call_comes_back_into_the_loop() -> None:
    async def story(loop: TurnLoop) -> None:
        threads = {await called(loop, threading.get_ident), threading.get_ident()}
        assert len(threads) == 1, "the loop's own thread makes the call"
        assert asyncio.get_running_loop() is loop

    assert play(story).takeovers == 0


def test_calls_are_made_in_the_order_in_which_they_were_asked_for() -> None:
    order: list[str] = []

    async def story(loop: TurnLoop) -> None:
        end = loop.create_future()
        for name in "abc":
            loop.between_turns(
                lambda name=name: order.append(name),  # type: ignore[misc]
                lambda _none, name=name: order.append(name.upper()),  # type: ignore[misc]
            )
        loop.between_turns(lambda: None, end.set_result)
        await end

    play(story)
    assert [one for one in order if one.islower()] == ["a", "b", "c"]
    assert [one for one in order if one.isupper()] == ["A", "B", "C"]


def test_the_loop_goes_on_while_a_call_blocks() -> None:
    """The call waits for something that only the loop can do: without a takeover it never ends."""

    async def story(loop: TurnLoop) -> None:
        released = threading.Event()
        loop.call_later(0.05, released.set)
        assert await called(loop, lambda: released.wait(LIMIT))

    assert play(story).takeovers == 1


def test_several_calls_may_block_at_the_same_time() -> None:
    async def story(loop: TurnLoop) -> None:
        released = threading.Event()
        results: list[asyncio.Future[Any]] = []
        for _ in range(3):
            result = loop.create_future()
            loop.between_turns(lambda: released.wait(LIMIT), result.set_result)
            results.append(result)
        await asyncio.sleep(0.05)
        while loop.takeovers < 3:
            await asyncio.sleep(0.01)
        assert not any(result.done() for result in results)
        released.set()
        assert await asyncio.gather(*results) == [True, True, True]
        assert await called(loop, lambda: 7) == 7

    assert play(story).takeovers == 3


def test_the_end_does_not_wait_for_a_call_that_never_returns() -> None:
    never = threading.Event()

    async def story(loop: TurnLoop) -> None:
        loop.between_turns(never.wait, lambda _result: None)
        while not loop.takeovers:
            await asyncio.sleep(0.01)

    play(story)
    never.set()


def test_the_error_of_the_main_coroutine_reaches_who_runs_the_loop() -> None:
    async def story(_loop: TurnLoop) -> None:
        raise KeyError("as it came")

    with pytest.raises(KeyError, match="as it came"):
        play(story)


def test_what_breaks_the_loop_itself_reaches_who_runs_it() -> None:
    async def story(loop: TurnLoop) -> None:
        def leave() -> None:
            raise SystemExit(3)

        loop.call_soon(leave)
        await asyncio.sleep(LIMIT)

    with pytest.raises(SystemExit):
        play(story)


def test_tasks_that_are_left_are_cancelled_at_the_end() -> None:
    ends: list[str] = []

    async def story(loop: TurnLoop) -> None:
        async def forever() -> None:
            try:
                await asyncio.sleep(1e6)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        loop.create_task(forever())
        await asyncio.sleep(0)

    play(story)
    assert ends == ["cancelled"]


# --- disks on such a loop ------------------------------------------------------------------------


def with_disk(path: Path, story: Callable[[TurnLoop, FileDisk], Coroutine[Any, Any, None]]) -> None:
    async def on_disk(loop: TurnLoop) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(descriptor, SIZE)
        disk = FileDisk(loop, descriptor, SIZE)
        await story(loop, disk)
        closed = asyncio.Event()
        disk.stop(closed.set)
        await closed.wait()

    play(on_disk)


async def written(disk: FileDisk, offset: int, data: bytes) -> int:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    disk.write(offset, data, result.set_result)
    return await result


def test_small_writes_need_no_thread_and_large_ones_do(tmp_path: Path) -> None:
    async def story(_loop: TurnLoop, disk: FileDisk) -> None:
        small = [written(disk, n * BLOCK, bytes([n]) * BLOCK) for n in range(20)]
        assert await asyncio.gather(*small) == [0] * 20
        assert disk.counters.writes_inline == 20
        assert await written(disk, 1 << 20, b"x" * (1 << 20)) == 0
        assert disk.counters.writes_inline == 20

    with_disk(tmp_path / "disk", story)
    content = (tmp_path / "disk").read_bytes()
    assert all(content[n * BLOCK] == n for n in range(20))
    assert content[1 << 20 : 2 << 20] == b"x" * (1 << 20)


@pytest.mark.python_engine
def test_an_error_of_a_write_between_turns_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int, offset: int, data: bytes) -> None:
        raise OSError(28, "no space")

    async def story(_loop: TurnLoop, disk: FileDisk) -> None:
        monkeypatch.setattr(disk_ops, "write_all", fails)
        assert await written(disk, 0, b"x" * BLOCK) == 28
        assert disk.counters.errors == 1

    with_disk(tmp_path / "disk", story)


@pytest.mark.python_engine
def test_a_write_that_stalls_holds_up_neither_the_loop_nor_later_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = disk_ops.write_all
    released = threading.Event()

    def stalls(fd: int, offset: int, data: bytes) -> None:
        if offset == BLOCK:
            assert released.wait(LIMIT)
        original(fd, offset, data)

    async def story(loop: TurnLoop, disk: FileDisk) -> None:
        monkeypatch.setattr(disk_ops, "write_all", stalls)
        first = [
            loop.create_task(written(disk, n * BLOCK, bytes([n + 1]) * BLOCK)) for n in range(4)
        ]
        while not loop.takeovers:
            await asyncio.sleep(0.01)
        assert await written(disk, 9 * BLOCK, b"9" * BLOCK) == 0, "it went by a thread"
        assert not first[1].done()
        released.set()
        assert await asyncio.gather(*first) == [0] * 4
        assert disk.counters.writes_inline < 4, "what came behind the stalled one went by a thread"

    with_disk(tmp_path / "disk", story)
    content = (tmp_path / "disk").read_bytes()
    assert [content[n * BLOCK] for n in (0, 1, 2, 3, 9)] == [1, 2, 3, 4, ord("9")]


def test_a_disk_that_was_slow_is_written_by_a_thread_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(_loop: TurnLoop, disk: FileDisk) -> None:
        monkeypatch.setattr(disk_module, "SLOW_SECONDS", 0.0)
        assert await written(disk, 0, b"x" * BLOCK) == 0
        assert await written(disk, 0, b"y" * BLOCK) == 0
        assert disk.counters.writes_inline == 1
        monkeypatch.setattr(disk_module, "REST_SECONDS", 0.0)
        disk._rest_until = 0.0
        assert await written(disk, 0, b"z" * BLOCK) == 0
        assert disk.counters.writes_inline == 2

    with_disk(tmp_path / "disk", story)


def test_a_disk_that_is_stopped_still_writes_what_it_has_taken(tmp_path: Path) -> None:
    async def story(loop: TurnLoop, disk: FileDisk) -> None:
        write = loop.create_task(written(disk, 0, b"w" * BLOCK))
        await asyncio.sleep(0)
        closed = asyncio.Event()
        disk.stop(closed.set)
        assert await write == 0
        await closed.wait()

    with_disk(tmp_path / "disk", story)
    assert (tmp_path / "disk").read_bytes()[:BLOCK] == b"w" * BLOCK
