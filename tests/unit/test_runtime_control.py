"""The control socket: both ends over a real socket, and everything that may come instead of a frame."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from replicator import errors
from replicator.errors import DaemonError, NoUsableDataError, StateRefused, UsageError
from replicator.runtime import control, control_server
from replicator.runtime.control_server import ControlServer, Reply


class Service:
    """A control server whose commands say what became of them."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = str(run_dir)
        self.seconds = 5.0
        self.kept: list[Reply] = []
        self.server = ControlServer(
            asyncio.get_running_loop(),
            run_dir / "r0.sock",
            self.dispatch,
            lambda cmd: self.seconds,
            lambda: "the peer's answer",
        )

    def dispatch(self, cmd: str, args: dict[str, Any], reply: Reply) -> None:
        match cmd:
            case "echo":
                reply(args, None)
            case "refuse":
                reply(None, NoUsableDataError("no data", hint="connect first"))
            case "raise":
                raise UsageError("nonsense")
            case "keep":
                self.kept.append(reply)
            case "ping":
                reply({}, None)
            case "huge":
                reply("x" * (control.FRAME_MAX + 1), None)

    async def call(self, cmd: str, args: dict[str, Any] | None = None, timeout: float = 5) -> Any:
        return await asyncio.to_thread(control.call, self.run_dir, "r0", cmd, args, timeout)

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(f"{self.run_dir}/r0.sock")
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer


@pytest_asyncio.fixture
async def service(run_dir: Path) -> AsyncIterator[Service]:
    made = Service(run_dir)
    await made.server.start()
    yield made
    made.server.stop()


async def test_a_result_comes_back_as_it_was_given(service: Service) -> None:
    args = {"volume": 0, "text": "ä", "list": [1, None, True], "bytes": b"\0"}
    assert await service.call("echo", args) == args


async def test_an_error_comes_back_with_class_message_hint_and_code(service: Service) -> None:
    with pytest.raises(NoUsableDataError) as refused:
        await service.call("refuse")
    assert (refused.value.message, refused.value.hint) == ("no data", "connect first")
    assert (refused.value.code, refused.value.exit_code) == (-2, 17)
    with pytest.raises(UsageError, match="nonsense"):
        await service.call("raise")


async def test_only_owner_and_group_may_use_the_socket(service: Service) -> None:
    mode = os.stat(f"{service.run_dir}/r0.sock").st_mode
    assert stat.S_IMODE(mode) == 0o660


async def test_a_command_out_of_time_says_what_is_waited_for(service: Service) -> None:
    service.seconds = 0.1
    with pytest.raises(DaemonError, match=r"keep did not finish within 0.1 s.*the peer's answer"):
        await service.call("keep")
    service.kept[0]("late", None)
    assert await service.call("echo", {"a": 1}) == {"a": 1}


async def test_a_slow_command_does_not_hold_up_other_connections(service: Service) -> None:
    waiting = asyncio.create_task(service.call("keep"))
    await asyncio.sleep(0.05)
    assert await service.call("echo", {"b": 2}) == {"b": 2}
    service.kept[0]("done", None)
    assert await waiting == "done"


async def test_several_commands_on_one_connection_are_answered_in_order(service: Service) -> None:
    frames = b"".join(control.encode_frame({"cmd": "echo", "args": {"n": n}}) for n in range(3))
    reader, writer = await asyncio.open_unix_connection(f"{service.run_dir}/r0.sock")
    for byte in frames:
        writer.write(bytes([byte]))
    for n in range(3):
        length = control.frame_length(await reader.readexactly(4))
        assert control.decode_body(await reader.readexactly(length))["result"] == {"n": n}
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", control.FRAME_MAX + 1),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 1) + msgpack.packb(7),
        control.encode_frame({"args": {}}),
        control.encode_frame({"cmd": 5, "args": {}}),
        control.encode_frame({"cmd": "echo", "args": [1]}),
    ],
)
async def test_bad_requests_get_one_error_and_the_end(service: Service, data: bytes) -> None:
    answer = await service.raw(data)
    message = control.decode_body(answer[4:])
    assert message["ok"] is False
    assert message["error"]["class"] == "UsageError"
    assert await service.call("echo", {}) == {}


async def test_an_answer_that_is_too_long_is_an_error_not_a_hang(service: Service) -> None:
    with pytest.raises(DaemonError, match="exceeds"):
        await service.call("huge")


async def test_a_client_that_leaves_in_the_middle_is_no_harm(service: Service) -> None:
    for cut in (0, 2, 6):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{service.run_dir}/r0.sock")
            client.sendall(control.encode_frame({"cmd": "keep"})[:cut])
    assert await service.call("echo", {}) == {}
    async with asyncio.timeout(5):
        while service.server.connections:
            await asyncio.sleep(0.01)


async def test_the_number_of_connections_is_bounded(service: Service) -> None:
    clients = []
    for _ in range(control_server.MAX_CONNECTIONS):
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{service.run_dir}/r0.sock")
        clients.append(client)
    while len(service.server.connections) < control_server.MAX_CONNECTIONS:
        await asyncio.sleep(0.01)
    with pytest.raises(DaemonError):
        await service.call("echo", {})
    for client in clients:
        client.close()


async def test_a_stale_socket_is_replaced_and_removed_at_the_end(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run_dir / "r0.sock"))
    service = Service(run_dir)
    await service.server.start()
    assert await service.call("echo", {}) == {}
    service.server.stop()
    assert not (run_dir / "r0.sock").exists()


def test_no_daemon_is_said_with_the_command_to_start_it(run_dir: Path) -> None:
    with pytest.raises(DaemonError, match="no daemon is running") as refused:
        control.call(str(run_dir), "r0", "status")
    assert refused.value.hint == "Start it: replicator up r0"
    assert not control.is_running(str(run_dir), "r0")


def listener(run_dir: Path, behave: Callable[[socket.socket], None]) -> threading.Thread:
    """A daemon that misbehaves, for one connection."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(run_dir / "r0.sock"))
    server.listen()

    def serve() -> None:
        client, _ = server.accept()
        with server, client:
            behave(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_daemon_that_hangs_is_given_up_in_time(run_dir: Path) -> None:
    over = threading.Event()
    thread = listener(run_dir, lambda client: over.wait(10) and None)
    with pytest.raises(DaemonError, match="did not answer status within 0.2 s"):
        control.call(str(run_dir), "r0", "status", timeout=0.2)
    over.set()
    thread.join()


def test_a_hang_is_noticed_long_before_the_time_of_a_long_command(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(control, "ALIVE_SECONDS", 0.3)
    over = threading.Event()
    thread = listener(run_dir, lambda client: over.wait(10) and None)
    started = time.monotonic()
    with pytest.raises(DaemonError, match="did not answer secondary within") as caught:
        control.call(str(run_dir), "r0", "secondary", timeout=60)
    assert time.monotonic() - started < 5
    assert "replicator down --force r0" in caught.value.hint
    over.set()
    thread.join()


async def test_a_daemon_that_works_on_a_long_command_is_not_taken_for_hung(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(control, "ALIVE_SECONDS", 2.0)
    answer = asyncio.create_task(service.call("keep", timeout=20))
    await asyncio.sleep(0.5)
    assert not answer.done()
    service.kept[0]("at last", None)
    assert await answer == "at last"


def test_a_daemon_that_trickles_does_not_stretch_the_time(run_dir: Path) -> None:
    over = threading.Event()

    def trickle(client: socket.socket) -> None:
        client.sendall(struct.pack(">I", 1000))
        while not over.wait(0.05):
            try:
                client.sendall(b"x")
            except OSError:
                return

    thread = listener(run_dir, trickle)
    with pytest.raises(DaemonError, match="did not answer"):
        control.call(str(run_dir), "r0", "status", timeout=0.4)
    over.set()
    thread.join()


def test_a_daemon_that_dies_in_between_is_said(run_dir: Path) -> None:
    thread = listener(run_dir, lambda client: client.recv(4) and None)
    with pytest.raises(DaemonError, match="the daemon ended while it worked on primary"):
        control.call(str(run_dir), "r0", "primary")
    thread.join()


@pytest.mark.parametrize("answer", [b"\xff\xff\xff\xff", struct.pack(">I", 1) + b"\x07"])
def test_an_answer_that_is_no_frame_is_an_error(run_dir: Path, answer: bytes) -> None:
    def send(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(answer)

    thread = listener(run_dir, send)
    with pytest.raises(DaemonError, match="no proper answer"):
        control.call(str(run_dir), "r0", "status")
    thread.join()


def test_every_class_of_error_survives_the_journey() -> None:
    classes = [
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.ReplicatorError)
    ]
    assert len(classes) > 10
    for one in classes:
        there = control.error_to_map(one("text", hint="do this"))
        back = control.error_from_map(msgpack.unpackb(msgpack.packb(there)))
        assert type(back) is one
        assert (back.message, back.hint, back.exit_code) == ("text", "do this", one.exit_code)
    back = control.error_from_map(control.error_to_map(StateRefused("no", code=-12)))
    assert isinstance(back, StateRefused)
    assert back.code == -12


@given(st.one_of(st.none(), st.integers(), st.dictionaries(st.text(), st.integers() | st.text())))
def test_whatever_arrives_as_error_becomes_one(raw: object) -> None:
    assert isinstance(control.error_from_map(raw), errors.ReplicatorError)


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_a_frame_and_nothing_else(body: bytes) -> None:
    try:
        assert isinstance(control.decode_body(body), dict)
    except control.FrameError:
        pass
