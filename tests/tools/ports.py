"""TCP ports of this machine that nothing else gets while a test is using them."""

from __future__ import annotations

import socket


class FreePorts:
    """Hands out ports of 127.0.0.1; each is held until close()."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        """Another free port."""
        # Bound but not listening, with SO_REUSEADDR: a server that sets it too can listen on the
        # port, while whoever asks the kernel for any free port is given another one.
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        self._held.append(holder)
        return int(holder.getsockname()[1])

    def close(self) -> None:
        for holder in self._held:
            holder.close()
        self._held.clear()

    def __enter__(self) -> FreePorts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
