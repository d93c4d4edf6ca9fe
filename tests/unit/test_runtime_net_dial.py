"""A dialled connection whose other side ends it, or sends, in the same moment as it is made."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from replicator.runtime.net import Endpoint
from tests.tools.loops import LOOPS, RunLoop
from tests.unit.test_runtime_net import HOST, Node, free_port, until

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DIALS = 60


def answer(listening: socket.socket, how: str) -> None:
    """Accept until the listener is closed, and do at once what `how` says."""
    while True:
        try:
            accepted, _ = listening.accept()
        except OSError:
            return
        with accepted:
            if how == "reset":
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            elif how == "send and close":
                accepted.sendall(b"early")


@pytest.fixture(params=["close", "reset", "send and close"])
def rude_peer(request: pytest.FixtureRequest) -> Iterator[tuple[Endpoint, str]]:
    listening = socket.create_server((HOST, 0))
    server = threading.Thread(target=answer, args=(listening, request.param))
    server.start()
    yield Endpoint(HOST, listening.getsockname()[1]), request.param
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    server.join(10)


@pytest.mark.parametrize("run", LOOPS)
def test_a_peer_that_hangs_up_at_once_is_reported_to_the_owner_of_the_channel(
    rude_peer: tuple[Endpoint, str], run: RunLoop
) -> None:
    peer, how = rude_peer
    defects: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: defects.append(what))
        node = Node(Endpoint(HOST, free_port()), peer)
        for number in range(DIALS):
            node.dial()
            await until(lambda n=number: len(node.dialled) > n)  # type: ignore[misc]
        made = [events for channel, _, events in node.dialled if channel is not None]
        await until(lambda: all(events.reason for events in made))
        if how == "send and close":
            assert {bytes(events.data) for events in made} == {b"early"}
        assert len(node.dialled) == DIALS, "one answer for each dial"

    run(main())
    assert defects == []
