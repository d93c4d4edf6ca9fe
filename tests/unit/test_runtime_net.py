"""TcpNetwork and TcpChannel over real loopback TCP, on uvloop and on a TurnLoop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from replicator.engine.ports import Channel
from replicator.runtime import net
from replicator.runtime.net import Endpoint, TcpNetwork
from tests.tools.loops import LOOPS

HOST = "127.0.0.1"


class Events:
    """Records what a channel tells."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.positions: list[int] = []
        self.reason: str | None = None
        self.sizes: list[int] = []
        self.place = memoryview(b"")
        """Room that bytes are received in, as far as there is any."""
        self.cycle: object = None

    def space(self) -> memoryview | None:
        return self.place if self.place else None

    def filled(self, count: int) -> None:
        self.data += self.place[:count]
        self.place = self.place[count:]

    def received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        self.data += data

    def sent(self, position: int) -> None:
        self.positions.append(position)

    def closed(self, reason: str) -> None:
        self.reason = reason


def free_port(host: str = HOST) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Node:
    """One end: a network with the channels it accepted and the results of its dials."""

    def __init__(self, own: Endpoint, peer: Endpoint, **options: Any) -> None:
        self.log: list[str] = []
        self.network = TcpNetwork(
            asyncio.get_running_loop(),
            own,
            peer,
            log=lambda level, message: self.log.append(message),
            **options,
        )
        self.accepted: list[tuple[Any, Events]] = []
        self.failures: list[str] = []
        self.dialled: list[tuple[Any, str, Events]] = []

    def listen(self) -> None:
        self.network.listen(self._accept, self.failures.append)

    def _accept(self, channel: Channel) -> None:
        channel.events = Events()
        self.accepted.append((channel, channel.events))

    def dial(self, timeout: float = 5.0) -> Any:
        def done(channel: Channel | None, reason: str) -> None:
            events = Events()
            if channel is not None:
                channel.events = events
            self.dialled.append((channel, reason, events))

        return self.network.dial(timeout, done)


async def connected(host: str = HOST) -> tuple[Node, Node]:
    ends = Endpoint(host, free_port(host)), Endpoint(host, free_port(host))
    a, b = Node(*ends), Node(*reversed(ends))
    b.listen()
    await asyncio.sleep(0.02)
    a.dial()
    await until(lambda: a.dialled and b.accepted)
    b.network.stop_listening()
    return a, b


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    return lambda main: request.param(main())


Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_bytes_arrive_both_ways_whole_and_in_order(run: Run, host: str) -> None:
    async def main() -> None:
        a, b = await connected(host)
        (dialled, reason, at_a), (accepted, at_b) = a.dialled[0], b.accepted[0]
        assert reason == ""
        there, back = os.urandom(3_000_000), os.urandom(200_000)
        for start in range(0, len(there), 7001):
            dialled.send(there[start : start + 7001])
        accepted.send(bytearray(back))
        assert dialled.queued == len(there)
        await until(lambda: len(at_b.data) == len(there) and len(at_a.data) == len(back))
        assert bytes(at_b.data) == there
        assert bytes(at_a.data) == back
        await until(lambda: at_a.positions and at_a.positions[-1] == len(there))
        assert at_a.positions == sorted(set(at_a.positions))
        assert dialled.unsent == 0
        dialled.close()

    run(main)


def test_bytes_are_received_where_their_owner_has_room_for_them(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        place, sent = bytearray(300_000), os.urandom(400_000)
        b.accepted[0][1].place = memoryview(place)
        a.dialled[0][0].send(sent)
        await until(lambda: len(b.accepted[0][1].data) == len(sent))
        assert bytes(place) == sent[: len(place)]
        assert sum(b.accepted[0][1].sizes) == len(sent) - len(place)
        assert bytes(b.accepted[0][1].data) == sent
        a.dialled[0][0].close()

    run(main)


def test_what_one_iteration_sends_leaves_together(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        for _ in range(100):
            a.dialled[0][0].send(b"0123456789")
        await until(lambda: len(b.accepted[0][1].data) == 1000)
        assert b.accepted[0][1].sizes == [1000]
        assert a.dialled[0][2].positions == [1000]
        a.dialled[0][0].close()

    run(main)


def test_sent_lags_while_the_peer_does_not_read_and_catches_up_after(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        channel, _, events = a.dialled[0]
        accepted, at_b = b.accepted[0]
        accepted.pause_reading()
        total = 64 << 20
        for _ in range(total >> 20):
            channel.send(bytes(1 << 20))
        await asyncio.sleep(0.3)
        assert channel.queued == total
        assert events.positions[-1] < total
        assert channel.unsent == total - events.positions[-1] > 0
        accepted.resume_reading()
        await until(lambda: len(at_b.data) == total)
        await until(lambda: events.positions[-1] == total)
        assert len(events.positions) > 10
        assert channel.unsent == 0
        channel.close()

    run(main)


def test_close_delivers_what_is_queued_and_tells_only_the_peer(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        channel, _, at_a = a.dialled[0]
        accepted, at_b = b.accepted[0]
        accepted.send(b"unread" * 1000)
        channel.send(b"last words")
        channel.close()
        await until(lambda: at_b.reason is not None)
        assert bytes(at_b.data) == b"last words"
        assert at_b.reason == "the peer closed the connection"
        channel.send(b"after")
        await asyncio.sleep(0.05)
        assert at_a.reason is None

    run(main)


def test_close_of_a_connection_that_is_stuck_does_not_wait(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        b.accepted[0][0].pause_reading()
        a.dialled[0][0].send(bytes(64 << 20))
        await asyncio.sleep(0.1)
        a.dialled[0][0].close()
        b.accepted[0][0].resume_reading()
        await until(lambda: b.accepted[0][1].reason is not None)

    run(main)


def test_nobody_listening_is_said_in_words(run: Run) -> None:
    async def main() -> None:
        peer = Endpoint(HOST, free_port())
        node = Node(Endpoint(HOST, free_port()), peer)
        node.dial()
        await until(lambda: node.dialled)
        assert node.dialled[0][0] is None
        assert node.dialled[0][1] == f"{peer} refused the connection: nothing listens there"

    run(main)


def test_a_peer_that_does_not_answer_is_given_up_in_time(run: Run) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(socket.socket())
            deaf.bind((HOST, 0))
            deaf.listen(0)
            port = deaf.getsockname()[1]
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    filler.connect((HOST, port))
            node = Node(Endpoint(HOST, free_port()), Endpoint(HOST, port))
            node.dial(0.2)
            await until(lambda: node.dialled, 3)
            assert node.dialled[0][1] == f"no answer from {HOST}:{port} within 0.2 s"

    run(main)


def test_a_cancelled_dial_is_silent(run: Run) -> None:
    async def main() -> None:
        port = free_port()
        peer = Node(Endpoint(HOST, port), Endpoint(HOST, free_port()))
        peer.listen()
        node = Node(Endpoint(HOST, free_port()), Endpoint(HOST, port))
        node.dial().cancel()
        await asyncio.sleep(0.1)
        assert node.dialled == []

    run(main)


def test_a_port_in_use_is_reported_with_its_address(run: Run) -> None:
    async def main() -> None:
        with socket.create_server((HOST, 0)) as taken:
            own = Endpoint(HOST, taken.getsockname()[1])
            node = Node(own, Endpoint(HOST, free_port()))
            node.listen()
            await until(lambda: node.failures)
            assert node.failures == [
                f"cannot listen on {own}: another program uses that port (ss -tlnp shows which)"
            ]

    run(main)


def test_an_address_that_is_not_ours_is_reported_for_both_directions(run: Run) -> None:
    async def main() -> None:
        node = Node(Endpoint("192.0.2.1", 7789), Endpoint(HOST, free_port()))
        node.listen()
        node.dial()
        await until(lambda: node.failures and node.dialled)
        assert node.failures == ["cannot listen on 192.0.2.1:7789: this host has no such address"]
        assert node.dialled[0][1] == "cannot connect from 192.0.2.1: this host has no such address"

    run(main)


def test_a_dial_comes_from_the_configured_address(run: Run) -> None:
    async def main() -> None:
        own, peer = Endpoint("127.0.0.7", free_port()), Endpoint(HOST, free_port())
        a, b = Node(own, peer), Node(peer, own)
        b.listen()
        await asyncio.sleep(0.02)
        a.dial()
        await until(lambda: b.accepted)
        assert b.accepted[0][0].name.startswith(f"{peer} <- 127.0.0.7:")
        assert a.dialled[0][0].name.endswith(f"-> {peer}")

    run(main)


def test_a_stranger_is_turned_away_and_logged(run: Run) -> None:
    async def main() -> None:
        own = Endpoint(HOST, free_port())
        node = Node(own, Endpoint("127.0.0.9", 7789))
        node.listen()
        await asyncio.sleep(0.02)
        reader, writer = await asyncio.open_connection(HOST, own.port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert node.accepted == []
        assert "only 127.0.0.9 may connect" in node.log[0]

    run(main)


def test_listening_can_stop_and_start_again(run: Run) -> None:
    async def main() -> None:
        ends = Endpoint(HOST, free_port()), Endpoint(HOST, free_port())
        a, b = Node(*ends), Node(*reversed(ends))
        b.listen()
        await asyncio.sleep(0.02)
        b.network.stop_listening()
        await asyncio.sleep(0.05)
        a.dial()
        await until(lambda: a.dialled)
        assert a.dialled[0][0] is None
        b.listen()
        await asyncio.sleep(0.02)
        a.dial()
        await until(lambda: b.accepted)
        assert b.failures == []

    run(main)


def test_a_reset_connection_says_so(run: Run) -> None:
    async def main() -> None:
        a, b = await connected()
        raw = a.dialled[0][0]._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        a.dialled[0][0]._transport.abort()
        await until(lambda: b.accepted[0][1].reason is not None)
        assert b.accepted[0][1].reason == "the peer reset the connection"

    run(main)


def test_what_a_connection_held_is_free_soon_after_its_end(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net, "COLLECT_SECONDS", 0.1)
    gc.disable()  # as good as: the daemon lets it wait for many objects

    async def main() -> None:
        a, b = await connected()
        (channel, _reason, events), (accepted, _events) = a.dialled.pop(), b.accepted.pop()
        events.cycle = channel
        held = weakref.ref(events)
        del channel, events
        accepted.close()
        await until(lambda: held() is None, 3.0)

    try:
        run(main)
    finally:
        gc.enable()
