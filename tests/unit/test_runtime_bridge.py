"""The bridge between worker threads and the loop: batches, errnos, and an engine that dies."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbd_plugin import bridge as bridge_module
from nbd_plugin.bridge import Bridge
from replicator.errors import StateRefused, UsageError


class Loop:
    """An event loop in a thread, as the engine has one; counts its wake-ups."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.wakeups = 0
        self.thread.start()

    def wake(self, action: Callable[[], None]) -> None:
        self.wakeups += 1
        self.loop.call_soon_threadsafe(action)

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
        self.loop.close()


class Volume:
    """Answers at once, on the loop; or never."""

    size = 1 << 20

    def __init__(self, loop: Loop) -> None:
        self._loop = loop.loop
        self.silent = False
        self.threads: set[int] = set()

    def open(self, writable: bool) -> None: ...

    def close(self, writable: bool) -> None: ...

    def read(self, offset: int, length: int, done: Callable[[int, bytes], None]) -> None:
        self.threads.add(threading.get_ident())
        if not self.silent:
            self._loop.call_soon(done, 0, offset.to_bytes(8, "big") * (length // 8))

    def write(self, offset: int, data: bytes, fua: bool, done: Callable[[int], None]) -> None:
        self._loop.call_soon(done, errno.ENOSPC)

    def flush(self, done: Callable[[int], None]) -> None:
        self._loop.call_soon(done, 0)

    def trim(self, offset: int, length: int, fua: bool, done: Callable[[int], None]) -> None:
        self._loop.call_soon(done, 0)

    def zero(
        self, offset: int, length: int, may_unmap: bool, fua: bool, done: Callable[[int], None]
    ) -> None:
        self._loop.call_soon(done, 0)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()


@pytest.fixture
def volume(loop: Loop) -> Volume:
    return Volume(loop)


@pytest.fixture
def bridge(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    monkeypatch.setattr(bridge_module, "LOOK_SECONDS", 0.1)
    return Bridge(loop.wake, loop.thread.is_alive)


def test_many_threads_get_each_their_own_answer(bridge: Bridge, volume: Volume, loop: Loop) -> None:
    def read(n: int) -> bool:
        return bridge.read(volume, n * 512, 512) == (0, (n * 512).to_bytes(8, "big") * 64)

    with ThreadPoolExecutor(16) as workers:
        assert all(workers.map(read, range(3000)))
    assert volume.threads == {loop.thread.ident}


def test_what_is_queued_while_the_loop_is_busy_needs_one_wakeup(
    bridge: Bridge, volume: Volume, loop: Loop
) -> None:
    busy, go = threading.Event(), threading.Event()
    loop.loop.call_soon_threadsafe(lambda: (busy.set(), go.wait(10)))
    assert busy.wait(10)
    with ThreadPoolExecutor(8) as workers:
        answers = [workers.submit(bridge.flush, volume) for _ in range(8)]
        while len(bridge._queue) < 8:
            pass
        go.set()
        assert [answer.result(10) for answer in answers] == [0] * 8
    assert loop.wakeups == 1


def test_errnos_come_back(bridge: Bridge, volume: Volume) -> None:
    assert bridge.write(volume, 0, bytes(512), False) == errno.ENOSPC
    assert bridge.trim(volume, 0, 512, True) == 0
    assert bridge.zero(volume, 0, 512, True, False) == 0


def test_what_is_not_in_whole_sectors_never_reaches_the_engine(
    bridge: Bridge, volume: Volume, loop: Loop
) -> None:
    assert bridge.read(volume, 1, 512) == (errno.EINVAL, b"")
    assert bridge.write(volume, 0, bytes(511), False) == errno.EINVAL
    assert bridge.trim(volume, 512, 100, False) == errno.EINVAL
    assert bridge.zero(volume, 100, 512, False, False) == errno.EINVAL
    assert loop.wakeups == 0


def test_a_held_request_fails_when_the_engine_ends(
    bridge: Bridge, volume: Volume, loop: Loop
) -> None:
    volume.silent = True
    with ThreadPoolExecutor(1) as workers:
        answer = workers.submit(bridge.read, volume, 0, 512)
        with pytest.raises(TimeoutError):
            answer.result(0.3)
        loop.loop.call_soon_threadsafe(loop.loop.stop)
        assert answer.result(5) == (errno.EIO, b"")
        assert workers.submit(bridge.flush, volume).result(5) == errno.EIO


def test_a_closed_loop_gives_errors_at_once(bridge: Bridge, volume: Volume, loop: Loop) -> None:
    loop.stop()
    assert bridge.read(volume, 0, 512) == (errno.EIO, b"")
    assert bridge.flush(volume) == errno.EIO
    with pytest.raises(StateRefused):
        bridge.call(lambda: 1)


def test_a_function_runs_on_the_loop_and_its_error_comes_back(bridge: Bridge, loop: Loop) -> None:
    assert bridge.call(threading.get_ident) == loop.thread.ident

    def refuse() -> None:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        bridge.call(refuse)
