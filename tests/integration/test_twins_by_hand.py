"""The C files beside Python modules do what these do, for all input: also for what a client or a peer
sends that is wrong, cut off or beyond all bounds. Both are asked, and both answers compared."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nbd_plugin.native import quick as nbd_quick
from nbd_plugin.native import transmission
from nbd_plugin.native.inbox import Inbox
from nbd_plugin.native.transmission import COST_MAX, Request, Transmission
from nbd_plugin.native.wire import REQUEST, REQUEST_MAGIC
from protocol import quick
from protocol.commands import MAX_DATA, MAX_SECTORS, MAX_TRIM, Command
from replicator import compiled
from replicator.runtime import syscalls

pytestmark = pytest.mark.timeout(900)  # to compile takes long on a busy machine

ROOT = Path(__file__).parents[2]
MODULES = [name for name in compiled.MODULES if compiled.by_hand(name)]
FRAME = struct.Struct(">IHHIIQQII")
DIRECT = sum(1 << command for command in (Command.DATA, Command.RS_DATA_REPLY, 0x15, 0x16))
BLOCK = 4096


@pytest.fixture(scope="module")
def in_c() -> dict[str, Any]:
    """The twins, by the name of the module; not in place of it."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "compile_engine.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name in MODULES:
        file = compiled.place() / (name.replace(".", "/") + EXTENSION_SUFFIXES[0])
        spec = spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        found[name] = module_from_spec(spec)
        spec.loader.exec_module(found[name])
    return found


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What comes of it: a result with its types, or the kind of exception."""
    try:
        result = call(*arguments)
    except Exception as error:
        return type(error)
    return result, [type(item) for item in result] if isinstance(result, tuple) else type(result)


def test_the_modules_with_a_twin_by_hand_are_these() -> None:
    assert sorted(MODULES) == [
        "nbd_plugin.native.quick",
        "protocol.quick",
        "replicator.runtime.syscalls",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_a_twin_has_every_function_and_takes_no_wrong_arguments(
    in_c: dict[str, Any], name: str
) -> None:
    python = sys.modules[name]
    functions = [
        key
        for key, value in vars(python).items()
        if callable(value) and value.__module__ == name and not key.startswith("_")
    ]
    assert functions
    for function in functions:
        twin = getattr(in_c[name], function)
        for arguments in ((), (None,) * 2, (None,) * 3, (None,) * 6, (None,) * 7, (1,) * 7):
            with pytest.raises((TypeError, struct.error)):
                twin(*arguments)


# --- frames of the peer -----------------------------------------------------------------------

U32_EDGES = st.sampled_from([0, 1, 23, 24, 25, 511, 512, 4096 + 24, MAX_DATA, MAX_DATA + 24])
SECTORS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, MAX_SECTORS - 8, MAX_SECTORS - 1, MAX_SECTORS, MAX_SECTORS + 1]),
)
U32 = st.one_of(U32_EDGES, st.sampled_from([MAX_TRIM, MAX_TRIM + 512]), st.integers(0, 2**32 - 1))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    size = draw(st.sampled_from([0, 1, 512, 1024, BLOCK]))
    header = FRAME.pack(
        draw(st.sampled_from([quick.MAGIC_100] * 6 + [0x83740267])),
        draw(st.sampled_from([0, 1, 0xFFFF])),
        draw(st.sampled_from([0, 0, 2, 0x15, 0x16, 1, 63, 64, 0xFFFF])),
        draw(st.one_of(st.sampled_from([24 + size] * 4 + [24] * 2), U32)),
        draw(st.sampled_from([0] * 6 + [1])),
        draw(SECTORS),
        draw(st.integers(0, (1 << 64) - 1)),
        draw(st.one_of(st.just(BLOCK), U32)),
        draw(U32),
    )
    return header + draw(st.binary(min_size=size, max_size=size))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(
    stream=st.lists(frames(), max_size=3).map(b"".join),
    cut=st.integers(0, BLOCK * 4),
    at=st.one_of(st.just(0), st.integers(-50, BLOCK * 4)),
    commands=st.sampled_from([DIRECT, 0, 1, (1 << 64) - 1]),
)
@example(stream=b"", cut=0, at=0, commands=DIRECT)
def test_a_frame_is_read_alike(
    in_c: dict[str, Any], stream: bytes, cut: int, at: int, commands: int
) -> None:
    twin = in_c["protocol.quick"]
    for chunk in (stream, stream[:cut]):
        assert outcome(twin.block, chunk, at, commands) == outcome(quick.block, chunk, at, commands)


def test_a_plain_frame_is_taken_and_a_cut_one_measured(in_c: dict[str, Any]) -> None:
    data = os.urandom(BLOCK)
    frame = quick.data_packet(3, 8, 77, 5, 256, data)
    for found in (in_c["protocol.quick"], quick):
        assert found.block(frame, 0, DIRECT) == (0, 3, 8, 77, 5, 256, data)
        assert found.block(b"x" + frame[:-1], 1, DIRECT) == len(frame)
        assert found.block(frame, 0, DIRECT & ~1) is None


NUMBERS = st.one_of(
    st.integers(-2, 1 << 65), st.sampled_from([0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**64 - 1, 2**64])
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(NUMBERS, min_size=6, max_size=6), data=st.binary(max_size=64))
@example(numbers=[0xFFFF, 0xFFFF, 2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1], data=b"x")
def test_packets_are_built_alike_or_refused_alike(
    in_c: dict[str, Any], numbers: list[int], data: bytes
) -> None:
    twin = in_c["protocol.quick"]
    assert outcome(twin.block_ack, *numbers) == outcome(quick.block_ack, *numbers)
    few = numbers[:5]
    assert outcome(twin.data_packet, *few, data) == outcome(quick.data_packet, *few, data)
    replies = (in_c["nbd_plugin.native.quick"].simple_reply, nbd_quick.simple_reply)
    assert outcome(replies[0], *numbers[2:4]) == outcome(replies[1], *numbers[2:4])


# --- requests of a client ---------------------------------------------------------------------

SIZE = 1 << 20


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    command = draw(st.sampled_from([1] * 5 + [0] * 3 + [3, 4, 6, 7, 2, 0xFFFF]))
    length = draw(
        st.sampled_from([512, BLOCK, BLOCK, 3 * BLOCK, 0, 100, SIZE, 32 << 20, 2**32 - 1])
    )
    header = REQUEST.pack(
        draw(st.sampled_from([REQUEST_MAGIC] * 20 + [1])),
        draw(st.sampled_from([0] * 5 + [1, 2, 4, 0xFFFF])),
        command,
        draw(st.integers(0, 2**64 - 1)),
        draw(
            st.one_of(
                st.integers(0, SIZE // 512).map(lambda sector: sector * 512),
                st.sampled_from([1, SIZE - 512, SIZE, 2**63, 2**64 - 512, 2**64 - 1]),
            )
        ),
        length,
    )
    return header + (os.urandom(8) * (length // 8) if command == 1 and length <= SIZE else b"")


def told(stream: bytes, pieces: list[int], budget: int, **options: bool) -> list[Any]:
    """All that a Transmission says about a stream that arrives in pieces."""
    inbox = Inbox()
    said = Transmission(inbox, SIZE, **options)
    found: list[Any] = []
    sizes = iter(pieces)
    while stream and said.ended is None:
        space = inbox.get_space()
        count = min(len(space), len(stream), next(sizes, len(stream)))
        space[:count] = stream[:count]
        stream = stream[count:]
        inbox.received(count)
        while True:
            taken = said.take(budget)
            assert all(type(request) is Request for request in taken)
            found += [(*r[:6], bytes(r.data), r.error) for r in taken]
            found.append((len(taken), said.waiting, said.more, said.ended, inbox.start, inbox.end))
            if not (said.more or (taken and said.waiting)) or said.ended is not None:
                break
        if said.waiting:
            break
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    stream=st.lists(requests(), max_size=24).map(b"".join),
    pieces=st.lists(st.integers(1, 5 * BLOCK), max_size=8),
    budget=st.sampled_from([COST_MAX, 0, 4096, 8192, 3 * 8192]),
    options=st.sampled_from([{}, {"structured": True}, {"read_only": True}, {"allocation": True}]),
)
def test_a_client_is_understood_alike(
    in_c: dict[str, Any],
    stream: bytes,
    pieces: list[int],
    budget: int,
    options: dict[str, bool],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        slow = told(stream, pieces, budget, **options)
        patch.setattr(
            transmission, "plain_requests", in_c["nbd_plugin.native.quick"].plain_requests
        )
        assert told(stream, pieces, budget, **options) == slow


def test_plain_requests_are_taken_together(in_c: dict[str, Any]) -> None:
    twin = in_c["nbd_plugin.native.quick"]
    buffer = bytearray(
        REQUEST.pack(REQUEST_MAGIC, 1, 1, 7, BLOCK, 512)
        + b"d" * 512
        + REQUEST.pack(REQUEST_MAGIC, 0, 0, 8, 0, BLOCK)
        + REQUEST.pack(REQUEST_MAGIC, 0, 3, 9, 0, 0)
    )
    end = len(buffer)
    found, start, budget = twin.plain_requests(buffer, 0, end, SIZE, 100_000, 16, Request)
    assert found == [
        Request(1, 1, 7, BLOCK, 512, 4608, b"d" * 512),
        Request(0, 0, 8, 0, BLOCK, 8192),
    ]
    assert (start, budget) == (end - REQUEST.size, 100_000 - 4608 - 8192)


@pytest.mark.parametrize("start, end", [(-1, 100), (0, 101), (50, 1 << 62), (100, 0), (1 << 62, 9)])
def test_no_byte_outside_the_buffer_is_looked_at(
    in_c: dict[str, Any], start: int, end: int
) -> None:
    twin = in_c["nbd_plugin.native.quick"]
    found = twin.plain_requests(bytearray(100), start, end, SIZE, 100_000, 16, Request)
    assert found == ([], start, 100_000)


# --- system calls -----------------------------------------------------------------------------


@pytest.fixture
def both(in_c: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    yield in_c["replicator.runtime.syscalls"], syscalls


def test_bursts_are_written_alike(both: tuple[Any, Any], tmp_path: Path) -> None:
    def done(_code: int) -> None: ...

    writes = [
        (0, b"a" * 512, done),
        (1 << 16, memoryview(b"b" * BLOCK), done),
        (-512, b"c" * 512, done),
        (4096, bytearray(b""), done),
        (8192, bytearray(b"d" * 512), done),
    ]
    for number, module in enumerate(both):
        path = tmp_path / f"{number}"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        try:
            results, taken = module.write_burst(fd, writes, 60.0)
            assert results[:3] == [0, 0, errno.EINVAL] and results[4] == 0
            assert 0 < taken < 60
            assert len(module.write_burst(fd, writes, 0.0)[0]) == 1, "one is made in any case"
            assert module.write_burst(fd, [], 1.0)[0] == []
        finally:
            os.close(fd)
        fd = os.open(path, os.O_RDONLY)
        try:
            assert module.write_burst(fd, writes[:1], 1.0)[0] == [errno.EBADF]
        finally:
            os.close(fd)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    with pytest.raises((TypeError, BufferError)):
        both[0].write_burst(1, [(0, "text", done)], 1.0)


def test_sockets_are_read_and_written_alike(both: tuple[Any, Any]) -> None:
    for module in both:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            space = memoryview(bytearray(16))
            assert module.receive(here.fileno(), space) == -errno.EAGAIN
            assert module.send(there.fileno(), memoryview(b"0123456789")[2:6]) == 4
            assert module.receive(here.fileno(), space[1:]) == 4
            assert bytes(space[:6]) == b"\x002345\x00"
            there.close()
            assert module.receive(here.fileno(), space) == 0
            assert module.send(here.fileno(), b"x") == -errno.EPIPE
            full, other = socket.socketpair()
            with full, other:
                full.setblocking(False)
                while (sent := module.send(full.fileno(), bytes(1 << 16))) > 0:
                    pass
                assert sent == -errno.EAGAIN
            with pytest.raises((TypeError, BufferError)):
                module.receive(here.fileno(), b"read-only")
