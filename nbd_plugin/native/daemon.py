"""The daemon of a resource with the built-in NBD server; `__main__.py` starts it.

Keys as runtime.daemon_setup has them; the listening sockets come as inherited descriptors by the
LISTEN_FDS convention (runtime.spawn makes them).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from nbd_plugin.native.server import NbdServer
from replicator.errors import DaemonError
from replicator.runtime import daemon, tls
from replicator.runtime.daemon_setup import DaemonSetup
from replicator.runtime.spawn import FIRST_SOCKET


class NativeFrontEnd:
    """The server's side of daemon.FrontEnd."""

    def __init__(self, setup: DaemonSetup, host: daemon.ResourceDaemon) -> None:
        view = setup.view
        volumes = sorted(view.volumes, key=lambda volume: volume.number)
        self._loop = asyncio.get_running_loop()
        self._server = NbdServer(
            self._loop,
            view.resource,
            [(one.number, f"{view.resource}/{one.number} {one.device}") for one in volumes],
            host.engine.volumes,
            host.log.log,
            tls=tls.server_context(view.resource, view.replicator),
            tls_required=view.replicator.tls_required,
        )
        self._sockets = inherited_sockets()
        self._listening: asyncio.Task[None] | None = None

    def ready(self) -> None:
        self._listening = self._loop.create_task(self._server.listen(self._sockets))
        # A failure goes to the daemon's handler of defects.
        self._listening.add_done_callback(asyncio.Task.result)

    def stopping(self) -> None:
        self._server.stop()

    def force_close(self) -> None:
        self._server.force_close()


def inherited_sockets() -> list[socket.socket]:
    """The sockets that the starter of this process has made. Raises DaemonError without any."""
    count = os.environ.pop("LISTEN_FDS", "")
    pid = os.environ.pop("LISTEN_PID", "")
    if not count.isdecimal() or int(count) == 0 or pid != str(os.getpid()):
        raise DaemonError(
            "no NBD sockets were handed over to this process (LISTEN_FDS)",
            hint="It is not meant to be started by hand: replicator up RESOURCE",
        )
    found = [socket.socket(fileno=FIRST_SOCKET + index) for index in range(int(count))]
    for one in found:
        one.set_inheritable(False)
    return found


def main() -> int:
    return daemon.main(sys.argv[1:], NativeFrontEnd)
