"""The inner loop's transports, and who gets a turn while they are busy."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from replicator.runtime.inner import Transport
from replicator.runtime.sockets import connect, serve
from replicator.runtime.turns import LINGER, TurnLoop

LIMIT = 20.0
"""Seconds after which what a test waits for counts as never happening."""

MIB = 1 << 20
Main = Callable[[TurnLoop], Coroutine[Any, Any, None]]


def play(main: Main) -> None:
    loop = TurnLoop()
    defects: list[Any] = []
    loop.set_exception_handler(lambda _loop, what: defects.append(what))
    loop.run_turns(asyncio.wait_for(main(loop), LIMIT))
    assert defects == []


class Driver:
    """Records what a transport tells; keeps the connection open when the peer ends its side."""

    transport: Transport

    def __init__(self) -> None:
        self.data = bytearray()
        self.told: list[str] = []
        self.error: Exception | None = None
        self._space = memoryview(bytearray(64 * 1024))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self._space[:nbytes]

    def eof_received(self) -> bool:
        self.told.append("end of stream")
        return True

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.error = exc


async def pair(loop: TurnLoop) -> tuple[Driver, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(LIMIT)
    driver = Driver()
    await connect(loop, driver, ours)
    return driver, theirs


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def receive(theirs: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = theirs.recv(1 << 16)
        if not more:
            break
        data += more
    return bytes(data)


@pytest.mark.parametrize("lines", [False, True])
def test_what_the_kernel_does_not_take_at_once_follows_in_order(lines: bool) -> None:
    data = os.urandom(3 * MIB)
    parts = [data[start : start + 999] for start in range(0, len(data), 999)]

    async def main(loop: TurnLoop) -> None:
        driver, theirs = await pair(loop)
        if lines:
            driver.transport.writelines(parts[:900])
            driver.transport.writelines(parts[900:])
        else:
            for part in parts:
                driver.transport.write(part)
        assert driver.told == ["pause"]
        assert driver.transport.get_write_buffer_size() > 0
        driver.transport.write_eof()
        got = await loop.run_in_executor(None, receive, theirs, len(data) + 1)
        assert got == data, "and then the end of the stream"
        assert driver.told == ["pause", "resume"]
        assert driver.transport.get_write_buffer_size() == 0
        theirs.close()

    play(main)


def test_a_close_sends_what_is_left_first_and_an_abort_does_not() -> None:
    async def main(loop: TurnLoop) -> None:
        for end, all_of_it in (("close", True), ("abort", False)):
            driver, theirs = await pair(loop)
            driver.transport.write(bytes(MIB))
            getattr(driver.transport, end)()
            assert "lost" not in driver.told, "never from inside the call"
            got = await loop.run_in_executor(None, receive, theirs, MIB + 1)
            assert (len(got) == MIB) is all_of_it
            await until(lambda: driver.told[-1] == "lost")  # noqa: B023
            assert driver.error is None
            theirs.close()

    play(main)


def test_nothing_is_received_while_reading_is_paused() -> None:
    async def main(loop: TurnLoop) -> None:
        driver, theirs = await pair(loop)
        driver.transport.pause_reading()
        theirs.send(b"early")
        await asyncio.sleep(3 * LINGER)
        assert not driver.data
        driver.transport.resume_reading()
        await until(lambda: driver.data == b"early")
        theirs.close()

    play(main)


def test_after_the_end_of_the_stream_the_other_direction_still_works() -> None:
    async def main(loop: TurnLoop) -> None:
        driver, theirs = await pair(loop)
        theirs.send(b"question")
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: driver.told)
        assert (driver.data, driver.told) == (b"question", ["end of stream"])
        driver.transport.resume_reading()
        driver.transport.write(b"answer")
        assert theirs.recv(100) == b"answer"
        await asyncio.sleep(3 * LINGER)
        assert driver.told == ["end of stream"], "it is told once"
        theirs.close()
        driver.transport.write(b"nobody")
        await until(lambda: "lost" in driver.told)
        assert isinstance(driver.error, BrokenPipeError)

    play(main)


def test_a_peer_that_is_gone_costs_nothing_while_nobody_listens() -> None:
    """The kernel reports a hang-up again and again to whoever waits for anything."""

    async def main(loop: TurnLoop) -> None:
        driver, theirs = await pair(loop)
        driver.transport.pause_reading()
        theirs.close()
        used = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - used < 0.1
        driver.transport.resume_reading()
        await until(lambda: driver.told)

    play(main)


def test_a_callback_that_raises_is_a_defect_and_stops_nothing_else() -> None:
    loop = TurnLoop()
    defects: list[Any] = []
    loop.set_exception_handler(lambda _loop, what: defects.append(what["exception"]))

    async def main() -> None:
        driver, theirs = await pair(loop)
        driver.buffer_updated = lambda nbytes: 1 // 0  # type: ignore[assignment,method-assign]
        theirs.send(b"x")
        await until(lambda: defects)
        done = asyncio.Event()
        loop.inner.soon([].pop)
        loop.inner.soon(done.set)
        await done.wait()
        theirs.close()

    loop.run_turns(asyncio.wait_for(main(), LIMIT))
    assert [type(one) for one in defects] == [ZeroDivisionError, IndexError]


class Echo(Driver):
    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self._space[:nbytes]))


def test_all_else_goes_on_while_a_socket_is_never_quiet() -> None:
    """Timers, tasks, other threads, other sockets: each is served by the outer loop."""

    async def main(loop: TurnLoop) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(f"\0inner-{os.getpid()}")
        listening.setblocking(False)
        server = await serve(loop, Echo, listening, 4)
        stop = threading.Event()
        rounds = 0

        def chatter() -> None:
            nonlocal rounds
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(LIMIT)
                client.connect(listening.getsockname())
                while not stop.is_set():
                    client.send(b"x")
                    assert client.recv(1) == b"x"
                    rounds += 1

        talking = loop.run_in_executor(None, chatter)
        await until(lambda: rounds)
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.001)
            ticks += 1
        from_thread = asyncio.Event()
        threading.Thread(
            target=lambda: loop.call_soon_threadsafe(from_thread.set), daemon=True
        ).start()
        await from_thread.wait()
        inner = asyncio.Event()
        threading.Thread(target=lambda: loop.inner.soon_threadsafe(inner.set), daemon=True).start()
        await inner.wait()
        reader, writer = socket.socketpair()
        readable = asyncio.Event()
        loop.add_reader(reader, readable.set)
        writer.send(b"x")
        await readable.wait()
        loop.remove_reader(reader)
        stop.set()
        await talking
        assert ticks == 20
        for one in (reader, writer):
            one.close()
        server.close()
        server.close()

    play(main)


def test_a_call_between_turns_that_blocks_does_not_stop_the_transports() -> None:
    async def main(loop: TurnLoop) -> None:
        driver, theirs = await pair(loop)
        released = threading.Event()
        result = loop.create_future()
        loop.between_turns(lambda: released.wait(LIMIT), result.set_result)
        await until(lambda: loop.takeovers)
        theirs.send(b"while it blocks")
        await until(lambda: driver.data)
        released.set()
        assert await result is True
        theirs.close()

    play(main)


def test_what_is_asked_for_before_the_first_turn_is_done() -> None:
    loop = TurnLoop()
    done: list[str] = []
    loop.inner.soon(lambda: done.append("before"))

    async def main() -> None:
        await until(lambda: done)

    loop.run_turns(asyncio.wait_for(main(), LIMIT))


def test_a_loop_that_has_ended_says_so_to_other_threads() -> None:
    loop = TurnLoop()
    loop.run_turns(asyncio.sleep(0))
    with pytest.raises(RuntimeError):
        loop.inner.soon_threadsafe(lambda: None)
