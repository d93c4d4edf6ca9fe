"""Listening and connected sockets for what runs on an event loop: on a TurnLoop with the inner loop's
transports, on any other with that loop's own.

Rules: who drives a transport cannot tell which it is, and gets connection_made() first. Nothing
here knows what the bytes mean.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from replicator.runtime.inner import Driven, Transport
from replicator.runtime.turns import TurnLoop

PAUSE = 1.0
"""Seconds without accepting, when the process has no descriptor left for another connection."""


class Served(Driven, Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...


class Server(Protocol):
    def close(self) -> None: ...


async def serve(
    loop: asyncio.AbstractEventLoop,
    make: Callable[[], Served],
    listening: socket.socket,
    backlog: int,
    *,
    plain: bool = True,
) -> Server:
    """Give each connection made to `listening`, which is bound, a protocol made by `make`. The socket
    is closed with what is returned. plain: no TLS will be put on top of the connections."""
    if plain and isinstance(loop, TurnLoop):
        listening.listen(backlog)
        return _Acceptor(loop, make, listening)
    start: Any = loop.create_server
    if listening.family == socket.AF_UNIX:
        start = loop.create_unix_server
    return cast(Server, await start(make, sock=listening, backlog=backlog))


async def connect(
    loop: asyncio.AbstractEventLoop, driven: Served, connected: socket.socket
) -> None:
    """Let `driven` have a socket that is connected already."""
    if isinstance(loop, TurnLoop):
        _begin(loop, driven, connected)
    else:
        await loop.create_connection(cast(Any, lambda: driven), sock=connected)


def _begin(loop: TurnLoop, driven: Served, connected: socket.socket) -> None:
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = Transport(loop.inner, connected, driven)
    driven.connection_made(cast(asyncio.BaseTransport, transport))
    transport.start()


class _Acceptor:
    def __init__(
        self, loop: TurnLoop, make: Callable[[], Served], listening: socket.socket
    ) -> None:
        self._loop = loop
        self._make = make
        self._listening = listening
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        if self._listening.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _resume(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            connected, _address = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._loop.remove_reader(self._listening)
            self._pause = self._loop.call_later(PAUSE, self._resume)
            self._loop.call_exception_handler(
                {"message": "no connection accepted", "exception": error}
            )
            return
        connected.setblocking(False)
        _begin(self._loop, self._make(), connected)
