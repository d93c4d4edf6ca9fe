"""TCP as the engine's Network and Channel ports, on asyncio Protocol classes (no streams).

Rules:
1. What is sent within one loop iteration leaves in one system call.
2. Of what is queued, the transport gets one LUMP at a time, and the next when the operating system
   has taken it: so `sent` advances as data really leaves, also under continuous load.
3. Reasons are written for people: they name the addresses and what to look at.
4. No protocol knowledge: bytes in, bytes out. The engine bounds what it queues.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from replicator.engine.ports import Buffer, Channel, ChannelEvents
from replicator.runtime.sockets import Server, connect, serve
from replicator.runtime.turns import soon_on

LUMP: Final = 256 * 1024
"""Bytes given to the transport at a time, or more by a single larger buffer, which goes whole."""

JOIN_MAX: Final = 16 * 1024
"""Bytes: what is smaller is joined in one buffer, as acknowledgements are; else each keeps its own."""

RECEIVE: Final = 256 * 1024
"""Bytes received at a time, but for those that have a place to be received in."""

PEEK: Final = 4096
"""Bytes received after those: one large packet follows another, and only its header is wanted here."""

LINGER = 1.0
"""Seconds after close() in which the peer may still take what was sent."""

COLLECT_SECONDS = 1.0
"""After the end of a connection, until what it leaves behind is collected: large buffers, in cycles of
few objects, for which the collector alone would wait until hundreds of connections have ended."""

BACKLOG = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A numeric IPv4 or IPv6 address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TcpChannel:
    """One connection. Made by TcpNetwork, which hands it over from within connection_made: the
    receiver sets `events` there and then, because the next call may already be the end."""

    events: ChannelEvents

    def __init__(self, loop: asyncio.AbstractEventLoop, arrow: str) -> None:
        self.name = ""
        self.queued = 0
        self._loop = loop
        self._soon = soon_on(loop)
        self._arrow = arrow
        self._transport: asyncio.Transport | None = None
        self._parts: deque[Buffer] = deque()
        self._received = memoryview(bytearray(RECEIVE))
        self._in_place = False
        """What is being received goes where `events` has said."""
        self._handed = 0
        self._reported = 0
        self._flush_due = False
        self._paused = False
        self._closing = False
        self._ended = False
        self._linger: asyncio.TimerHandle | None = None

    @property
    def unsent(self) -> int:
        if self._transport is None or self._ended:
            return 0
        return self.queued - self._handed + self._transport.get_write_buffer_size()

    def send(self, data: Buffer) -> None:
        if self._closing or self._ended or not data:
            return
        self._parts.append(data)
        self.queued += len(data)
        if not self._flush_due and not self._paused:
            self._flush_due = True
            self._soon(self._flush)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._ended and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._ended and not self._transport.is_reading():
            self._transport.resume_reading()

    def close(self) -> None:
        """Hand over what is queued, say end of stream, and let the peer take it for LINGER seconds;
        closing at once would reset the connection if the peer's bytes are unread, and lose ours."""
        if self._closing or self._ended or self._transport is None:
            self._closing = True
            return
        self._closing = True
        self._transport.writelines(list(self._parts))
        self._parts.clear()
        if self._transport.get_write_buffer_size():
            self._transport.abort()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._linger = self._loop.call_later(LINGER, self._transport.abort)
        if not self._transport.is_reading():
            self._transport.resume_reading()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        own = transport.get_extra_info("sockname")
        peer = transport.get_extra_info("peername")
        self.name = f"{_spell(own)} {self._arrow} {_spell(peer)}"

    def get_buffer(self, sizehint: int) -> memoryview:
        space = None if self._closing else self.events.space()
        after_large, self._in_place = self._in_place, space is not None
        if space is not None:
            return space
        return self._received[:PEEK] if after_large else self._received

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        if self._in_place:
            self.events.filled(nbytes)
        else:
            self.events.received(self._received[:nbytes].tobytes())

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._report_sent()
        if self._parts and not self._flush_due:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.call_later(COLLECT_SECONDS, gc.collect)
        self._ended = True
        self._parts.clear()
        if self._linger is not None:
            self._linger.cancel()
        if not self._closing:
            self.events.closed(describe_loss(exc))

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        while self._parts and transport is not None and not self._may_not_write():
            lump: list[Buffer] = []
            size = 0
            while self._parts and size < LUMP:
                part = self._parts.popleft()
                size += len(part)
                lump.append(part)
            self._handed += size
            if len(lump) == 1:
                transport.write(lump[0])
            elif size <= JOIN_MAX:
                transport.write(b"".join(lump))
            else:
                transport.writelines(lump)
            self._report_sent()

    def _may_not_write(self) -> bool:
        return self._paused or self._ended or self._closing

    def _report_sent(self) -> None:
        if self._closing or self._ended or self._transport is None:
            return
        position = self._handed - self._transport.get_write_buffer_size()
        if position > self._reported:
            self._reported = position
            self.events.sent(position)


class TcpNetwork:
    """The Network port between two fixed endpoints. Dials from the own address, as DRBD does, and
    accepts only the peer's address.

    sndbuf, rcvbuf: socket buffer sizes in bytes, 0 = the system's choice.
    log: told in words of connections refused.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        own: Endpoint,
        peer: Endpoint,
        *,
        sndbuf: int = 0,
        rcvbuf: int = 0,
        log: Callable[[str, str], None] = lambda level, message: None,
    ) -> None:
        self.own = own
        self.peer = peer
        self._loop = loop
        self._sndbuf = sndbuf
        self._rcvbuf = rcvbuf
        self._log = log
        self._listener: _Listener | None = None

    def listen(self, accepted: Callable[[Channel], None], failed: Callable[[str], None]) -> None:
        self.stop_listening()
        self._listener = _Listener(self, accepted, failed)

    def stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def dial(self, timeout: float, done: Callable[[Channel | None, str], None]) -> _Dial:
        return _Dial(self, timeout, done)

    def make_socket(self, local_port: int) -> socket.socket:
        """A non-blocking TCP socket bound to the own address. Raises OSError."""
        family, address = resolve(Endpoint(self.own.host, local_port))
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._sndbuf:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._sndbuf)
            if self._rcvbuf:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._rcvbuf)
            made.bind(address)
        except OSError:
            made.close()
            raise
        return made

    def is_peer(self, address: object) -> bool:
        return isinstance(address, tuple) and address[0] == resolve(self.peer)[1][0]

    def refused(self, address: object) -> None:
        self._log(
            "warning",
            f"closed a connection from {_spell(address)} to {self.own}: "
            f"only {self.peer.host} may connect",
        )


class _Listener:
    """The listening socket. Its callbacks cease with stop()."""

    def __init__(
        self,
        network: TcpNetwork,
        accepted: Callable[[Channel], None],
        failed: Callable[[str], None],
    ) -> None:
        self._network = network
        self._loop = network._loop
        self._accepted = accepted
        self._failed = failed
        self._stopped = False
        self._server: Server | None = None
        self._socket: socket.socket | None = None
        try:
            self._socket = network.make_socket(network.own.port)
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._close_socket()
            self._loop.call_soon(self._report, describe_listen(error, network.own))
            return
        self._task = self._loop.create_task(self._serve(self._socket))

    async def _serve(self, listening: socket.socket) -> None:
        server = await serve(self._loop, self._make_channel, listening, BACKLOG)
        self._server = server
        if self._stopped:
            server.close()

    def _make_channel(self) -> TcpChannel:
        return _AcceptedChannel(self._loop, self)

    def admit(self, channel: _AcceptedChannel, address: object) -> None:
        """A connection has been made; hand it over, or close it."""
        if self._stopped:
            channel.drop()
        elif not self._network.is_peer(address):
            channel.drop()
            self._network.refused(address)
        else:
            self._accepted(channel)

    def stop(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.close()

    def _report(self, reason: str) -> None:
        if not self._stopped:
            self._failed(reason)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()


class _AcceptedChannel(TcpChannel):
    def __init__(self, loop: asyncio.AbstractEventLoop, listener: _Listener) -> None:
        super().__init__(loop, "<-")
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        _set_nodelay(transport)
        self._listener.admit(self, transport.get_extra_info("peername"))

    def drop(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()


class _DialledChannel(TcpChannel):
    def __init__(self, loop: asyncio.AbstractEventLoop, made: Callable[[TcpChannel], None]) -> None:
        super().__init__(loop, "->")
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._made(self)


class _Dial:
    """One attempt to connect; also the Timer that cancels it."""

    def __init__(
        self, network: TcpNetwork, timeout: float, done: Callable[[Channel | None, str], None]
    ) -> None:
        self._network = network
        self._timeout = timeout
        self._done = done
        self._cancelled = False
        self._answered = False
        self._task = network._loop.create_task(self._run())

    def cancel(self) -> None:
        self._cancelled = True
        self._task.cancel()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._connect()
        except TimeoutError:
            self._answer(None, f"no answer from {self._network.peer} within {self._timeout:g} s")
        except OSError as error:
            self._answer(None, describe_dial(error, self._network.own, self._network.peer))

    def _answer(self, channel: TcpChannel | None, reason: str) -> None:
        """Once. What goes wrong after the channel was handed over, the channel tells."""
        if self._answered or self._cancelled:
            if channel is not None:
                channel.close()
            return
        self._answered = True
        self._done(channel, reason)

    async def _connect(self) -> None:
        network, loop = self._network, self._network._loop
        made = network.make_socket(0)
        try:
            await loop.sock_connect(made, resolve(network.peer)[1])
            if made.getsockname() == made.getpeername():
                # On one host a dial can meet its own ephemeral port: a connection to oneself.
                raise OSError(errno.ECONNREFUSED, "connected to itself")
            channel = _DialledChannel(loop, lambda channel: self._answer(channel, ""))
            await connect(loop, channel, made)
        except BaseException:
            if not self._answered:
                made.close()  # otherwise it is the channel's
            raise


def resolve(endpoint: Endpoint) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Family and socket address (IPv6: of four parts) of a numeric endpoint. Raises OSError for what is not numeric."""
    found = socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    family, _, _, _, address = found[0]
    return family, address


def describe_loss(error: Exception | None) -> str:
    """Why an established connection ended."""
    if error is None:
        return "the peer closed the connection"
    if isinstance(error, ConnectionResetError):
        return "the peer reset the connection"
    if isinstance(error, BrokenPipeError):
        return "the peer is gone (broken pipe)"
    return f"the connection failed: {_words(error)}"


def describe_listen(error: OSError, own: Endpoint) -> str:
    """Why there is no listener."""
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {own}: another program uses that port (ss -tlnp shows which)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on {own}: this host has no such address"
    return f"cannot listen on {own}: {_words(error)}"


def describe_dial(error: OSError, own: Endpoint, peer: Endpoint) -> str:
    """Why a dial failed."""
    if error.errno == errno.ECONNREFUSED:
        return f"{peer} refused the connection: nothing listens there"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cannot connect from {own.host}: this host has no such address"
    return f"cannot connect to {peer}: {_words(error)}"


def _words(error: Exception) -> str:
    code = getattr(error, "errno", None)
    return os.strerror(code).lower() if isinstance(code, int) else str(error)


def _spell(address: object) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return str(Endpoint(str(address[0]), int(address[1])))
    return "unknown"


def _set_nodelay(transport: asyncio.BaseTransport) -> None:
    accepted = transport.get_extra_info("socket")
    if accepted is not None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
