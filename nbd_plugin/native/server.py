"""The NBD server of a resource: its listening sockets, its clients, and the volumes they have open.

It runs on the daemon's event loop and calls the engine's volumes directly.
Rules: clients are independent of each other; their number is bounded; the volume of each is closed
exactly once. Nothing here knows the NBD protocol.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nbd_plugin.native.connection import Connection
from nbd_plugin.native.handshake import Tls
from replicator.errors import StateRefused
from replicator.runtime.engine_api import EngineVolume
from replicator.runtime.sockets import Server, serve

CLIENTS_MAX = 64
BACKLOG = 64

REMARK_SECONDS = 10.0
REMARKS_MAX = 20
"""Log lines about clients within REMARK_SECONDS; a client that repeats its mistake fills no disk."""


class NbdServer:
    """exports: (volume number, description), lowest first.
    volumes: the engine's; log(level, message). tls: offered to every client; tls_required: of
    those that come by TCP, because a Unix socket has its file's permissions."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        resource: str,
        exports: Sequence[tuple[int, str]],
        volumes: Mapping[int, EngineVolume],
        log: Callable[[str, str], None],
        *,
        tls: ssl.SSLContext | None = None,
        tls_required: bool = False,
    ) -> None:
        self.exports = list(exports)
        self._loop = loop
        self._resource = resource
        self._volumes = volumes
        self._log = log
        self.tls = tls
        self._tls_required = tls_required
        self._servers: list[Server] = []
        self._clients: set[Connection] = set()
        self._serving = True
        self._remarks_since = 0.0
        self._remarks = 0

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Accept clients on sockets that are bound already; they are closed with the server."""
        for one in sockets:
            one.setblocking(False)
            local = one.family == socket.AF_UNIX
            new_client = partial(Connection, self, self._loop, self._policy(local))
            # TLS is put on top of the loop's own transports.
            self._servers.append(
                await serve(self._loop, new_client, one, BACKLOG, plain=self.tls is None)
            )
        if not self._serving:
            self.stop()

    def stop(self) -> None:
        """No new clients, and those that there are get dropped."""
        self._serving = False
        for server in self._servers:
            server.close()
        self._drop_clients()

    def force_close(self) -> None:
        """Every open volume is closed now; from here on nobody can open one."""
        self._serving = False
        self._drop_clients()

    # For connections.

    def admit(self, client: Connection) -> bool:
        """Whether the client may stay."""
        if not self._serving:
            return False
        if len(self._clients) >= CLIENTS_MAX:
            self.remark(client.name, f"not served: there are {CLIENTS_MAX} clients already")
            return False
        self._clients.add(client)
        return True

    def forget(self, client: Connection) -> None:
        self._clients.discard(client)

    def open(self, number: int) -> EngineVolume:
        """Open a volume for reading and writing. Raises ReplicatorError: who wants it may not."""
        if not self._serving:
            raise StateRefused(f"{self._resource} is going down")
        volume = self._volumes[number]
        volume.open(True)
        return volume

    def close(self, volume: EngineVolume) -> None:
        volume.close(True)

    def remark(self, name: str, message: str) -> None:
        """Log what a client has met with or done wrong; not every time if it is many."""
        now = self._loop.time()
        if now - self._remarks_since > REMARK_SECONDS:
            if self._remarks > REMARKS_MAX:
                self._log("info", f"NBD: {self._remarks - REMARKS_MAX} more remarks were left out")
            self._remarks_since, self._remarks = now, 0
        self._remarks += 1
        if self._remarks <= REMARKS_MAX:
            self._log("info", f"NBD: {name}: {message}")

    # Inside.

    def _policy(self, local: bool) -> Tls:
        if self.tls is None:
            return Tls.NONE
        return Tls.REQUIRED if self._tls_required and not local else Tls.OFFERED

    def _drop_clients(self) -> None:
        for client in list(self._clients):
            client.abort()
