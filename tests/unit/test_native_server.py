"""The NBD server on an event loop, with raw clients and pretend volumes: batching, back-pressure,
endings, and that no client disturbs another."""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbd_plugin.native import connection as connection_module
from nbd_plugin.native import server as server_module
from nbd_plugin.native.connection import IN_FLIGHT_MAX, WRITE_HIGH
from nbd_plugin.native.server import NbdServer
from replicator.engine.ports import Buffer
from replicator.errors import StateRefused
from tests.tools import nbd_bytes as nbd
from tests.tools.loops import LOOPS, RunLoop

SIZE = 64 << 20
MIB = 1 << 20


class PretendVolume:
    """Answers from the loop's next iteration, or when `release_held` says so while `hold` is set."""

    def __init__(self) -> None:
        self.size = SIZE
        self.primary = True
        self.users = 0
        self.closed = 0
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.calls: list[tuple[object, ...]] = []
        self.fail = 0
        self.data = bytearray(SIZE)

    def open(self, writable: bool) -> None:
        if not self.primary:
            raise StateRefused("r0/0: this node is Secondary", hint="replicator primary r0")
        assert writable
        self.users += 1

    def close(self, writable: bool) -> None:
        self.users -= 1
        self.closed += 1
        assert self.users >= 0, "closed more often than opened"

    def read(self, offset: int, length: int, done: Callable[[int, bytes], None]) -> None:
        self.calls.append(("read", offset, length))
        code = self.fail
        self._later(lambda: done(code, b"" if code else bytes(self.data[offset : offset + length])))

    def write(self, offset: int, data: Buffer, fua: bool, done: Callable[[int], None]) -> None:
        self.calls.append(("write", offset, len(data), fua))
        code = self.fail
        if not code:
            self.data[offset : offset + len(data)] = data
        self._later(lambda: done(code))

    def flush(self, done: Callable[[int], None]) -> None:
        self.calls.append(("flush",))
        self._later(lambda: done(0))

    def trim(self, offset: int, length: int, fua: bool, done: Callable[[int], None]) -> None:
        self.calls.append(("trim", offset, length, fua))
        self._later(lambda: done(0))

    def zero(
        self, offset: int, length: int, may_unmap: bool, fua: bool, done: Callable[[int], None]
    ) -> None:
        self.calls.append(("zero", offset, length, may_unmap, fua))
        self._later(lambda: done(0))

    def _later(self, action: Callable[[], None]) -> None:
        if self.hold:
            self.held.append(action)
        else:
            asyncio.get_running_loop().call_soon(action)

    def release_held(self) -> None:
        held, self.held = self.held, []
        for action in held:
            action()


class Client:
    """A raw client. Structured replies are not agreed unless asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def choose(self, name: str = "0", *options: bytes) -> bytes:
        """Through the handshake by GO; the last reply before the final acknowledgement."""
        self.writer.write(nbd.client_flags() + b"".join(options) + nbd.go(name))
        assert await self.reader.readexactly(18) == nbd.GREETING
        last = b""
        while True:
            reply = await self.option_reply()
            if reply.option == nbd.GO and reply.kind != nbd.REP_INFO:
                assert reply.kind == nbd.ACK, reply
                return last
            last = reply.data

    async def option_reply(self) -> nbd.OptionReply:
        header = await self.reader.readexactly(20)
        return nbd.option_replies(
            header + await self.reader.readexactly(header[19] + (header[18] << 8))
        )[0]

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def simple(self, read: int = 0) -> nbd.Reply:
        header = await self.reader.readexactly(16)
        cookie = int.from_bytes(header[8:16])
        ok = header[4:8] == bytes(4)
        data = await self.reader.readexactly(read) if read and ok else b""
        return nbd.simple_replies(header + data, {cookie: read})[0]

    async def chunk(self) -> nbd.Reply:
        header = await self.reader.readexactly(20)
        return nbd.mixed_replies(header + await self.reader.readexactly(nbd.chunk_length(header)))[
            0
        ]

    async def rest(self) -> bytes:
        return await self.reader.read()

    def close(self) -> None:
        self.writer.transport.abort()


class Service:
    """A server with volumes 0 and 3 on a socket, and what it has logged."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "nbd.sock")
        self.volumes = {0: PretendVolume(), 3: PretendVolume()}
        self.log: list[str] = []
        self.server = NbdServer(
            asyncio.get_running_loop(),
            "r0",
            [(0, "r0/0"), (3, "r0/3")],
            self.volumes,
            lambda level, message: self.log.append(message),
        )
        self.clients: list[Client] = []

    @property
    def volume(self) -> PretendVolume:
        return self.volumes[0]

    async def __aenter__(self) -> Service:
        made = socket.socket(socket.AF_UNIX)
        made.bind(self.path)
        made.listen()
        await self.server.listen([made])
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.stop()
        for client in self.clients:
            client.close()
        await asyncio.sleep(0.01)
        assert all(volume.users == 0 for volume in self.volumes.values())

    async def connect(self) -> Client:
        self.clients.append(Client(*await asyncio.open_unix_connection(self.path, limit=4 * MIB)))
        return self.clients[-1]

    async def client(self, name: str = "0", *options: bytes) -> Client:
        client = await self.connect()
        await client.choose(name, *options)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture(params=LOOPS)
def run_loop(request: pytest.FixtureRequest) -> RunLoop:
    found: RunLoop = request.param
    return found


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test with a Service as its first argument, on uvloop and on a TurnLoop,
    whose transports differ in detail."""

    def run(run_loop: RunLoop, run_dir: Path, **more: Any) -> None:
        async def main() -> None:
            async with Service(run_dir) as service:
                await test(service, **more)

        run_loop(main())

    names = ["run_loop", "run_dir", *list(inspect.signature(test).parameters)[1:]]
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    functools.update_wrapper(run, test)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


@pytest.fixture
def in_seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, float], None]]:
    yield lambda name, value: monkeypatch.setattr(connection_module, name, value)


@on_both_loops
async def test_what_is_written_can_be_read_back(service: Service) -> None:
    client = await service.client()
    data = os.urandom(8192)
    client.send(nbd.write(4096, data, flags=nbd.FUA, cookie=1))
    assert await client.simple() == nbd.Reply(1, 0)
    client.send(nbd.request(nbd.READ, 4096, 8192, cookie=2))
    assert await client.simple(read=8192) == nbd.Reply(2, 0, data)
    assert service.volume.calls[0] == ("write", 4096, 8192, True)


@on_both_loops
async def test_every_command_reaches_the_volume_with_its_flags(service: Service) -> None:
    client = await service.client()
    client.send(
        nbd.request(nbd.FLUSH, cookie=1)
        + nbd.request(nbd.TRIM, 512, 1024, flags=nbd.FUA, cookie=2)
        + nbd.request(nbd.WRITE_ZEROES, 0, 4 << 20, cookie=3)
        + nbd.request(nbd.WRITE_ZEROES, 0, 512, flags=nbd.NO_HOLE | nbd.FUA, cookie=4)
    )
    assert [await client.simple() for _ in range(4)] == [nbd.Reply(n, 0) for n in (1, 2, 3, 4)]
    assert service.volume.calls == [
        ("flush",),
        ("trim", 512, 1024, True),
        ("zero", 0, 4 << 20, True, False),
        ("zero", 0, 512, False, True),
    ]


@on_both_loops
async def test_structured_replies_carry_data_errors_and_block_status(service: Service) -> None:
    client = await service.client(
        "0",
        nbd.option(nbd.STRUCTURED_REPLY),
        nbd.meta_context(nbd.SET_META_CONTEXT, "0", "base:allocation"),
    )
    service.volume.data[:512] = b"x" * 512
    client.send(nbd.request(nbd.READ, 0, 512, flags=nbd.DF, cookie=1))
    assert await client.chunk() == nbd.Reply(1, 0, bytes(8) + b"x" * 512, 1)
    client.send(nbd.request(nbd.BLOCK_STATUS, 512, SIZE - 512, cookie=2))
    status = await client.chunk()
    assert (status.kind, status.data) == (5, b"\0\0\0\1" + (SIZE - 512).to_bytes(4) + bytes(4))
    client.send(nbd.request(nbd.READ, SIZE, 512, cookie=3))
    refused = await client.chunk()
    assert (refused.cookie, refused.code, refused.kind) == (3, errno.EINVAL, 0x8001)
    assert refused.data
    client.send(nbd.request(nbd.WRITE_ZEROES, SIZE, 512, cookie=4))
    assert await client.simple() == nbd.Reply(4, errno.ENOSPC)


@on_both_loops
async def test_the_volumes_errno_is_the_clients(service: Service) -> None:
    client = await service.client()
    for code, seen in ((errno.ENOSPC, errno.ENOSPC), (errno.EROFS, errno.EPERM), (errno.ENODEV, 5)):
        service.volume.fail = code
        client.send(nbd.write(0, bytes(512), cookie=code))
        assert await client.simple() == nbd.Reply(code, seen)
        client.send(nbd.request(nbd.READ, 0, 512, cookie=code))
        assert await client.simple() == nbd.Reply(code, seen)


@on_both_loops
async def test_replies_of_one_iteration_leave_together(service: Service) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(b"".join(nbd.write(n * 512, bytes(512), cookie=n) for n in range(32)))
    await service.until(lambda: len(service.volume.held) == 32)
    service.volume.release_held()
    received = await client.reader.read(1 << 16)
    assert [one.cookie for one in nbd.simple_replies(received, {})] == list(range(32))


@on_both_loops
async def test_large_writes_and_reads_come_through_whole(service: Service) -> None:
    client = await service.client()
    for length in (512 * 300, MIB, MIB + 512, 32 * MIB):
        data = os.urandom(1 << 18) * (length // (1 << 18) + 1)
        data = data[:length]
        client.send(nbd.write(512, data, cookie=length))
        assert await client.simple() == nbd.Reply(length, 0)
        client.send(nbd.request(nbd.READ, 512, length, cookie=1))
        assert (await client.simple(read=length)).data == data


@on_both_loops
async def test_a_secondary_refuses_and_says_why(service: Service) -> None:
    service.volume.primary = False
    client = await service.connect()
    client.send(nbd.client_flags() + nbd.go("0") + nbd.go("3"))
    await client.reader.readexactly(18)
    refused = await client.option_reply()
    assert refused.kind == nbd.ERR_POLICY
    assert b"this node is Secondary" in refused.data
    assert b"replicator primary r0" in refused.data
    assert (await client.option_reply()).kind == nbd.REP_INFO
    assert "this node is Secondary" in service.log[0]
    assert service.volumes[3].users == 1


@on_both_loops
async def test_a_secondary_refuses_export_name_by_closing(service: Service) -> None:
    service.volume.primary = False
    client = await service.connect()
    client.send(nbd.client_flags() + nbd.option(nbd.EXPORT_NAME, b"0"))
    assert await client.rest() == nbd.GREETING


@on_both_loops
async def test_information_about_an_export_leaves_it_closed(service: Service) -> None:
    client = await service.connect()
    client.send(nbd.client_flags() + nbd.go("0", number=nbd.INFO))
    await client.reader.readexactly(18)
    assert (await client.option_reply()).kind == nbd.REP_INFO
    assert (await client.option_reply()).kind == nbd.ACK
    assert (service.volume.users, service.volume.closed) == (0, 1)


@on_both_loops
async def test_disc_ends_after_the_last_answer_and_closes_the_volume_once(
    service: Service,
) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(nbd.write(0, bytes(512), cookie=1) + nbd.request(nbd.DISC) + b"more, unheard")
    await service.until(lambda: len(service.volume.held) == 1)
    await asyncio.sleep(0.02)
    assert service.volume.users == 1
    service.volume.release_held()
    assert nbd.simple_replies(await client.rest(), {}) == [nbd.Reply(1, 0)]
    assert (service.volume.users, service.volume.closed) == (0, 1)


@on_both_loops
async def test_a_client_that_only_stops_sending_still_gets_its_answers(service: Service) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(nbd.write(0, bytes(512), cookie=1))
    client.writer.write_eof()
    await service.until(lambda: len(service.volume.held) == 1)
    service.volume.release_held()
    assert nbd.simple_replies(await client.rest(), {}) == [nbd.Reply(1, 0)]
    assert (service.volume.users, service.volume.closed) == (0, 1)


@on_both_loops
async def test_a_long_burst_is_answered_to_its_end_and_in_order(service: Service) -> None:
    client = await service.client()
    burst = [nbd.write(512 * n, bytes([n]) * 512, cookie=n) for n in range(250)]
    client.send(b"".join(burst))
    client.writer.write_eof()
    assert [reply.cookie for reply in nbd.simple_replies(await client.rest(), {})] == [*range(250)]
    assert [call[1] for call in service.volume.calls] == [512 * n for n in range(250)]


@on_both_loops
async def test_a_client_that_vanishes_keeps_the_volume_open_until_its_requests_end(
    service: Service,
) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(nbd.write(0, bytes(512)) + nbd.request(nbd.READ, 0, 512))
    await service.until(lambda: len(service.volume.held) == 2)
    client.close()
    await asyncio.sleep(0.05)
    assert service.volume.users == 1
    service.volume.release_held()
    await service.until(lambda: service.volume.users == 0)
    assert service.volume.closed == 1


@on_both_loops
async def test_a_client_that_vanishes_in_the_middle_of_a_payload_is_forgotten(
    service: Service,
) -> None:
    client = await service.client()
    client.send(nbd.write(0, bytes(4 * MIB))[: 2 * MIB])
    await client.writer.drain()
    client.close()
    await service.until(lambda: service.volume.users == 0)
    assert service.volume.calls == []


@on_both_loops
async def test_requests_in_flight_are_bounded_and_all_are_served_in_the_end(
    service: Service,
) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(b"".join(nbd.request(nbd.READ, 0, MIB, cookie=n) for n in range(200)))
    await service.until(lambda: len(service.volume.held) >= 39)
    await asyncio.sleep(0.05)
    assert len(service.volume.held) == IN_FLIGHT_MAX // (MIB + 4096)
    service.volume.hold = False
    service.volume.release_held()
    found = [(await client.simple(read=MIB)).cookie for _ in range(200)]
    assert sorted(found) == list(range(200))


@on_both_loops
async def test_small_requests_are_bounded_too(service: Service) -> None:
    client = await service.client()
    service.volume.hold = True
    data = nbd.request(nbd.FLUSH) * 30_000
    client.send(data)
    limit = IN_FLIGHT_MAX // 4096
    await service.until(lambda: len(service.volume.held) == limit)
    await asyncio.sleep(0.05)
    assert len(service.volume.held) == limit
    service.volume.hold = False
    service.volume.release_held()
    assert len(await client.reader.readexactly(30_000 * 16)) == 30_000 * 16


@on_both_loops
async def test_who_does_not_read_the_answers_is_not_listened_to(service: Service) -> None:
    client = await service.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    count = 400
    requests = b"".join(nbd.request(nbd.READ, 0, MIB, cookie=n) for n in range(count))
    client.send(requests)
    await asyncio.sleep(0.5)
    served = len(service.volume.calls)
    assert served < count // 2, "it would have buffered all answers"
    await asyncio.sleep(0.2)
    assert len(service.volume.calls) == served
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for _ in range(count):
        await client.simple(read=MIB)
    assert WRITE_HIGH < MIB


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(nbd.client_flags() + os.urandom(1000), id="noise for options"),
        pytest.param(nbd.client_flags() + nbd.go("0") + b"\0" * 1000, id="zeroes for requests"),
        pytest.param(
            nbd.client_flags() + nbd.go("0") + nbd.write(0, bytes(512)) + b"\xff" * 28,
            id="noise after a request",
        ),
    ],
)
@on_both_loops
async def test_a_bad_client_is_dropped_and_a_good_one_beside_it_notices_nothing(
    service: Service, bad: bytes
) -> None:
    good = await service.client()
    other = await service.connect()
    other.send(bad)
    for n in range(50):
        good.send(nbd.write(n * 512, bytes([n]) * 512, cookie=n))
        assert await good.simple() == nbd.Reply(n, 0)
    await asyncio.wait_for(other.rest(), 5)
    await service.until(lambda: service.volume.users == 1)
    assert "connection ended: " in service.log[-1]


@on_both_loops
async def test_the_number_of_clients_is_bounded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CLIENTS_MAX", 2)
    first, _second = await service.client(), await service.client()
    third = await service.connect()
    assert await third.rest() == b""
    first.send(nbd.request(nbd.DISC))
    await first.rest()
    await service.until(lambda: service.volume.users == 1)
    await service.client()


@on_both_loops
async def test_a_client_that_chooses_nothing_is_dropped(
    service: Service, in_seconds: Callable[[str, float], None]
) -> None:
    in_seconds("HANDSHAKE_SECONDS", 0.1)
    client = await service.connect()
    assert await asyncio.wait_for(client.rest(), 5) == nbd.GREETING
    assert "no export chosen within 0.1 s" in service.log[0]
    chosen = await service.client()
    await asyncio.sleep(0.2)
    chosen.send(nbd.request(nbd.FLUSH, cookie=4))
    assert await chosen.simple() == nbd.Reply(4, 0)


@on_both_loops
async def test_a_client_that_does_not_take_the_end_is_dropped(
    service: Service, in_seconds: Callable[[str, float], None]
) -> None:
    in_seconds("LINGER_SECONDS", 0.1)
    client = await service.client()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.send(nbd.request(nbd.READ, 0, 8 * MIB) + nbd.request(nbd.DISC))
    await service.until(lambda: service.volume.users == 0)
    await asyncio.sleep(0.3)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    with pytest.raises(asyncio.IncompleteReadError):
        await client.simple(read=8 * MIB)


@on_both_loops
async def test_force_close_fails_what_is_under_way_and_lets_nobody_in(service: Service) -> None:
    client = await service.client()
    service.volume.hold = True
    client.send(nbd.write(0, bytes(512)))
    await service.until(lambda: len(service.volume.held) == 1)
    service.server.force_close()
    assert (service.volume.users, service.volume.closed) == (0, 1)
    assert await client.rest() == b""
    service.volume.release_held()
    late = await service.connect()
    assert await late.rest() == b""
    assert service.volume.closed == 1


@on_both_loops
async def test_it_serves_tcp_clients_too(service: Service) -> None:
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    address = tcp.getsockname()
    await service.server.listen([tcp])
    client = Client(*await asyncio.open_connection(*address))
    await client.choose("3")
    client.send(nbd.request(nbd.FLUSH, cookie=1))
    assert await client.simple() == nbd.Reply(1, 0)
    client.send(bytes(28))
    assert await client.rest() == b""
    assert "client 127.0.0.1 port" in service.log[0]
    service.server.stop()
    await asyncio.sleep(0.01)
    with pytest.raises(OSError):
        await asyncio.open_connection(*address)


@on_both_loops
async def test_a_client_that_repeats_its_mistake_does_not_fill_the_log(service: Service) -> None:
    for _ in range(60):
        client = await service.connect()
        client.send(nbd.client_flags(1 << 20))
        await client.rest()
    assert len(service.log) == server_module.REMARKS_MAX
    assert "unknown client flags 0x100000" in service.log[-1]
