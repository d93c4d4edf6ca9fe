"""One NBD client: the asyncio shell around Handshake and Transmission.

Rules:
1. No Task or Future per request: what has been received is parsed and given to the volume in a few
   portions; all replies of one loop iteration leave in one write.
2. Bounded: requests in flight by IN_FLIGHT_MAX, unread replies by WRITE_HIGH. Beyond either, nothing
   more is read from the client.
3. The volume is released exactly once: when the client has gone and the last of its requests has
   ended, or when abort() takes it away.
4. Knows no other client; nothing that one does is felt by another.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from nbd_plugin.native import wire
from nbd_plugin.native.handshake import Handshake, Phase, Tls, Wanted
from nbd_plugin.native.inbox import Inbox
from nbd_plugin.native.transmission import COST_MAX, Request, Transmission
from nbd_plugin.native.wire import (
    CMD_BLOCK_STATUS,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    FLAG_FUA,
    FLAG_NO_HOLE,
)
from replicator.errors import ReplicatorError
from replicator.runtime.engine_api import EngineVolume
from replicator.runtime.tls import why_handshake_failed
from replicator.runtime.turns import soon_on

if TYPE_CHECKING:
    from nbd_plugin.native.server import NbdServer

IN_FLIGHT_MAX: Final = 40 << 20
"""Bytes of requests that one client may have under way."""
assert IN_FLIGHT_MAX >= COST_MAX

WRITE_HIGH: Final = 256 * 1024
"""Bytes of replies that a client may leave unread before it is not listened to any more."""

HANDSHAKE_SECONDS = 60.0
LINGER_SECONDS = 5.0
"""At the end of a connection, for the client to take what was sent."""

JOIN_MAX: Final = 16 * 1024
"""Data up to this length is copied into one block with its reply; longer data is not copied."""


class Connection:
    def __init__(self, server: NbdServer, loop: asyncio.AbstractEventLoop, tls: Tls) -> None:
        self.name = "client"
        """For people: where the client is."""
        self._server = server
        self._loop = loop
        # Transports that TLS is put upon belong to the outer loop.
        self._soon = soon_on(loop) if server.tls is None else loop.call_soon
        self._transport: asyncio.Transport | None = None
        self._inbox = Inbox()
        self._handshake = Handshake(self._inbox, server.exports, tls)
        self._securing: asyncio.Task[None] | None = None
        """The start of TLS, if there was one; the only Task of a connection."""
        self._transmission: Transmission | None = None
        self._structured = False
        self._volume: EngineVolume | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._requests = 0
        self._in_flight = 0
        self._output: list[bytes] = []
        self._output_long = False
        self._flush_due = False
        self._serve_due = False
        self._slow_reader = False
        self._ending = False
        self._gone = False

    def abort(self) -> None:
        """Drop the client at once. What it has under way still ends, but nobody is told."""
        self._gone = True
        self._release()
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.name = _name_of(self._transport)
        if not self._server.admit(self):
            self.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._timer = self._loop.call_later(
            HANDSHAKE_SECONDS, self._end, f"no export chosen within {HANDSHAKE_SECONDS:g} s"
        )
        self._transport.write(self._handshake.take_output())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.get_space()

    def buffer_updated(self, nbytes: int) -> None:
        if self._gone:
            return
        self._inbox.received(nbytes)
        if self._transmission is not None:
            self._serve()
        elif not self._ending and self._handshake.phase is not Phase.SECURING:
            self._negotiate()

    def eof_received(self) -> bool:
        """The client sends no more; what it has asked for before it still gets, except by TLS, which
        cannot be closed on one side only."""
        while (transmission := self._transmission) is not None and transmission.more:
            if self._slow_reader or self._ending or self._gone:
                break
            self._serve()
        self._end("")
        return not self._gone and self._securing is None

    def pause_writing(self) -> None:
        self._slow_reader = True

    def resume_writing(self) -> None:
        self._slow_reader = False
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._output.clear()
        self._inbox.drop()
        self._cancel_timer()
        if not self._requests:
            self._release()
        self._server.forget(self)

    # The handshake.

    def _negotiate(self) -> None:
        handshake = self._handshake
        while (wanted := handshake.next()) is not None:
            self._decide(wanted)
        if (output := handshake.take_output()) and self._transport is not None:
            self._transport.write(output)
        if handshake.phase is Phase.ENDED:
            self._end(handshake.ended)
        elif handshake.phase is Phase.SECURING and self._securing is None:
            self._listen(False)  # what comes next is for the TLS layer
            self._securing = self._loop.create_task(self._secure())
        elif handshake.phase is Phase.TRANSMISSION and self._volume is not None:
            self._cancel_timer()
            self._structured = handshake.structured
            self._transmission = Transmission(
                self._inbox,
                self._volume.size,
                structured=handshake.structured,
                allocation=handshake.allocation,
            )
            self._serve()

    async def _secure(self) -> None:
        """Put TLS between the transport and this object."""
        plain, context = self._transport, self._server.tls
        assert plain is not None and context is not None
        try:
            secure = await self._loop.start_tls(plain, cast(Any, self), context, server_side=True)
        except OSError as error:
            # The TLS layer tells only those of the end of a connection who have seen its beginning.
            if not self._gone:
                self._server.remark(self.name, why_handshake_failed(error))
            plain.abort()
            self.connection_lost(error)
            return
        if secure is None or self._gone or self._ending:
            plain.abort()
            return
        self._transport = secure
        secure.set_write_buffer_limits(high=WRITE_HIGH)
        self._handshake.secured()
        self._negotiate()

    def _decide(self, wanted: Wanted) -> None:
        try:
            volume = self._server.open(wanted.export)
        except ReplicatorError as error:
            self._server.remark(self.name, f"refused to open: {error.message}")
            self._handshake.refuse(str(error))
            return
        self._volume = volume
        self._handshake.grant(volume.size)
        if not wanted.keep:
            self._release()

    # Requests.

    def _serve(self) -> None:
        """Start what has arrived, as far as the client may."""
        transmission = self._transmission
        if transmission is None or self._ending or self._gone:
            return
        if not self._slow_reader:
            for request in transmission.take(IN_FLIGHT_MAX - self._in_flight):
                self._start(request)
            if transmission.ended is not None:
                self._end(transmission.ended)
                return
            if transmission.more and not self._serve_due:
                self._serve_due = True
                self._soon(self._serve_more)
        self._listen(not (self._slow_reader or transmission.waiting))

    def _serve_more(self) -> None:
        self._serve_due = False
        self._serve()

    def _start(self, request: Request) -> None:
        volume = self._volume
        assert volume is not None
        command, flags, cookie, offset, length, cost, data, error = request
        self._requests += 1
        self._in_flight += cost
        if error:
            self._fail(command, cookie, error, "the request is not valid for this export")
            self._finished(cost)
            return
        if command == CMD_READ:
            volume.read(offset, length, partial(self._read_done, cookie, cost, offset))
            return
        done = partial(self._done, cookie, cost)
        fua = flags & FLAG_FUA != 0
        if command == CMD_WRITE:
            volume.write(offset, data, fua, done)
        elif command == CMD_FLUSH:
            volume.flush(done)
        elif command == CMD_TRIM:
            volume.trim(offset, length, fua, done)
        elif command == CMD_WRITE_ZEROES:
            volume.zero(offset, length, not flags & FLAG_NO_HOLE, fua, done)
        else:
            # BLOCK_STATUS. What holds no data is known to the disks only: all counts as data.
            self._output.append(wire.status_chunk(cookie, length, 0))
            self._finished(cost)

    def _done(self, cookie: int, cost: int, code: int) -> None:
        self._output.append(wire.simple_reply(cookie, code))
        self._finished(cost)

    def _read_done(self, cookie: int, cost: int, offset: int, code: int, data: bytes) -> None:
        if code:
            self._fail(CMD_READ, cookie, code, "the read failed")
        else:
            if self._structured:
                self._output.append(wire.data_header(cookie, offset, len(data)))
            else:
                self._output.append(wire.simple_reply(cookie, 0))
            self._output.append(data)
            if len(data) > JOIN_MAX:
                self._output_long = True
        self._finished(cost)

    def _fail(self, command: int, cookie: int, code: int, message: str) -> None:
        if self._structured and command in (CMD_READ, CMD_BLOCK_STATUS):
            self._output.append(wire.error_chunk(cookie, code, message))
        else:
            self._output.append(wire.simple_reply(cookie, code))

    def _finished(self, cost: int) -> None:
        self._requests -= 1
        self._in_flight -= cost
        if not self._flush_due:
            self._flush_due = True
            self._soon(self._flush)

    def _flush(self) -> None:
        """Send all replies of this iteration; go on with what had to wait; end what is at its end."""
        self._flush_due = False
        output, self._output = self._output, []
        if self._gone:
            if not self._requests:
                self._release()
            return
        transport = self._transport
        assert transport is not None
        if self._output_long:
            self._output_long = False
            transport.writelines(output)
        elif output:
            transport.write(b"".join(output))
        if self._ending:
            self._close_if_idle()
        elif self._transmission is not None and self._transmission.waiting:
            self._serve()

    # Ending.

    def _listen(self, listen: bool) -> None:
        transport = self._transport
        if transport is None or self._gone or transport.is_reading() == listen:
            return
        if listen:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _end(self, reason: str) -> None:
        """No more requests; the connection ends with the last one that is under way. reason: what
        the client did wrong, "" if nothing."""
        if self._ending or self._gone:
            return
        if reason:
            self._server.remark(self.name, f"connection ended: {reason}")
        self._ending = True
        self._cancel_timer()
        self._listen(False)
        if not self._flush_due:
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._requests or self._transport is None:
            return
        self._release()
        self._transport.close()
        self._timer = self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def _release(self) -> None:
        volume, self._volume = self._volume, None
        if volume is not None:
            self._server.close(volume)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _name_of(transport: asyncio.Transport) -> str:
    """Address of a TCP client, process id of a local one."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"client {peer[0]} port {peer[1]}"
    found = transport.get_extra_info("socket")
    try:
        credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except (OSError, AttributeError):
        return "client"
    return f"client with pid {int.from_bytes(credentials[:4], 'little')}"
