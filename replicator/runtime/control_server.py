"""The control socket's daemon side: frames in, commands dispatched, answers out, each with a deadline.

Rules: knows frames and deadlines, not what commands do: that is the `Dispatch` it is given. Bad
input gets one error answer and ends that connection, never the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from replicator.errors import DaemonError, ReplicatorError, UsageError
from replicator.runtime import control

MODE = 0o660

MAX_CONNECTIONS = 64

IDLE_SECONDS = 60.0
"""A connection without a command under way is closed after this."""

Reply = Callable[[object, ReplicatorError | None], None]
"""Answer a command, once: (result, None) or (None, error)."""

Dispatch = Callable[[str, dict[str, Any], Reply], None]
"""Start a command. May raise ReplicatorError instead of replying."""


class ControlServer:
    """Serves one UNIX socket. dispatch: starts commands; deadline: seconds for a command;
    waiting_for: what the resource waits for, in words, for the answer to a command out of time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        dispatch: Dispatch,
        deadline: Callable[[str], float],
        waiting_for: Callable[[], str],
    ) -> None:
        self.loop = loop
        self.dispatch = dispatch
        self.deadline = deadline
        self.waiting_for = waiting_for
        self.connections: set[_Connection] = set()
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Take the socket's place, whatever lay there: the caller holds the resource's lock.
        Raises DaemonError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            listening.bind(str(self._path))
            os.chmod(self._path, MODE)
            listening.listen(MAX_CONNECTIONS)
        except OSError as error:
            listening.close()
            raise DaemonError(
                f"cannot make the control socket {self._path}: {error.strerror or error}"
            ) from None
        self._server = await self.loop.create_unix_server(self._connect, sock=listening)

    def stop(self) -> None:
        """Answer nothing more and remove the socket; answers already given are still sent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.end()

    def _connect(self) -> _Connection:
        return _Connection(self)


class _Connection(asyncio.Protocol):
    """One client: commands one after the other."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._busy = False
        self._serial = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self._send_error(DaemonError(f"more than {MAX_CONNECTIONS} control connections"))
            self._transport.close()
            return
        self._server.connections.add(self)
        self._set_timer(IDLE_SECONDS, self.end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._cancel_timer()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > control.FRAME_MAX + control.HEADER.size:
            self._refuse("more was sent than one frame may have")
            return
        self._next_command()

    def end(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _next_command(self) -> None:
        if self._busy or self._transport is None or len(self._buffer) < control.HEADER.size:
            return
        try:
            length = control.frame_length(bytes(self._buffer[: control.HEADER.size]))
            end = control.HEADER.size + length
            if len(self._buffer) < end:
                return
            message = control.decode_body(bytes(self._buffer[control.HEADER.size : end]))
        except control.FrameError as error:
            self._refuse(str(error))
            return
        del self._buffer[:end]
        self._start(message.get("cmd"), message.get("args", {}))

    def _start(self, cmd: object, args: object) -> None:
        if not isinstance(cmd, str) or not isinstance(args, dict):
            self._refuse("expected a map with cmd (text) and args (map)")
            return
        self._busy = True
        self._serial += 1
        serial = self._serial
        seconds = self._server.deadline(cmd)
        self._set_timer(seconds, lambda: self._out_of_time(serial, cmd, seconds))

        def reply(result: object, error: ReplicatorError | None) -> None:
            self._answer(serial, result, error)

        try:
            self._server.dispatch(cmd, args, reply)
        except ReplicatorError as error:
            reply(None, error)

    def _out_of_time(self, serial: int, cmd: str, seconds: float) -> None:
        reason = self._server.waiting_for()
        self._answer(
            serial,
            None,
            DaemonError(
                f"{cmd} did not finish within {seconds:g} s"
                + (f"; the resource waits for: {reason}" if reason else ""),
                hint="It may still finish: see replicator status.",
            ),
        )

    def _answer(self, serial: int, result: object, error: ReplicatorError | None) -> None:
        """Only the first answer to the present command counts."""
        if not self._busy or serial != self._serial:
            return
        self._busy = False
        if error is not None:
            self._send_error(error)
        else:
            self._send({"ok": True, "result": result})
        if self._transport is not None:
            self._set_timer(IDLE_SECONDS, self.end)
            self._server.loop.call_soon(self._next_command)

    def _refuse(self, reason: str) -> None:
        self._send_error(UsageError(f"bad control request: {reason}"))
        self.end()

    def _send_error(self, error: ReplicatorError) -> None:
        self._send({"ok": False, "error": control.error_to_map(error)})

    def _send(self, message: dict[str, Any]) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            frame = control.encode_frame(message)
        except control.FrameError as error:
            frame = control.encode_frame(
                {"ok": False, "error": control.error_to_map(DaemonError(str(error)))}
            )
        self._transport.write(frame)

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self._server.loop.call_later(seconds, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
