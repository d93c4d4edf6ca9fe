"""TCP between two nodes that can be cut, stalled, slowed and silenced, one connection at a time.

Each node is told that its peer listens on a port of this proxy. Whoever dials that port is connected
with the peer's real port, and bytes are passed on in both directions, until a fault says otherwise.
A connection is `data` or `meta` by its first packet, as DRBD's handshake has it.

Rules: faults are set from any thread and are looked at by the proxy's own thread before each piece;
nothing is ever changed or reordered, only late, or lost with its connection. Must not know: the
product, or anything of the packets beyond the first one's code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from functools import partial
from threading import Thread
from types import TracebackType

KINDS = ("data", "meta")
FIRST_PACKET = struct.Struct(">IHH")
H80_MAGIC = 0x83740267
FIRST_CODES = {0xFFF1: "meta", 0xFFF2: "data"}
PIECE = 64 << 10
POLL = 0.01
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset."""


class Link:
    """One connection: of the node `dialer` to the node `target`, with a pump for each direction."""

    def __init__(
        self, dialer: str, target: str, writers: Mapping[str, asyncio.StreamWriter]
    ) -> None:
        self.dialer, self.target = dialer, target
        self.kind = ""
        self.writers = writers
        """By the node that they lead to."""
        self.left: dict[str, int] = {}
        """Bytes that still pass towards a node before the connection is cut."""

    def cut(self, reset: bool) -> None:
        for writer in self.writers.values():
            if reset:
                with contextlib.suppress(OSError):
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class FaultyNetwork:
    """routes: for each node its real port. `ports` says where its peer has to look for it instead.

    Use as a context manager; faults stay until `heal`.
    """

    def __init__(self, routes: Mapping[str, int]) -> None:
        self.cuts = 0
        """Connections that were ended by a fault."""
        self.passed = 0
        """Bytes, both directions of all connections."""
        self._routes = dict(routes)
        self._links: list[Link] = []
        self._stalled: set[tuple[str, str]] = set()
        self._silent = False
        self._delay = 0.0
        self._listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in routes}
        self.ports = {name: int(one.getsockname()[1]) for name, one in self._listeners.items()}
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = Thread(target=self._run, name="faulty-network", daemon=True)

    # ---- faults, from any thread

    def cut(self, kinds: tuple[str, ...] = KINDS, *, reset: bool = False) -> None:
        """End the connections of these kinds that exist now."""

        def now() -> None:
            for link in self._links:
                if link.kind in kinds:
                    self.cuts += 1
                    link.cut(reset)

        self._loop.call_soon_threadsafe(now)

    def cut_after(self, kind: str, towards: str, count: int) -> None:
        """End connections of that kind when `count` more bytes have gone to the node `towards`."""

        def now() -> None:
            for link in self._links:
                if link.kind == kind:
                    link.left[towards] = count

        self._loop.call_soon_threadsafe(now)

    def cut_no_more(self) -> None:
        """What `cut_after` has not ended yet may go on."""

        def now() -> None:
            for link in self._links:
                link.left.clear()

        self._loop.call_soon_threadsafe(now)

    def stall(self, kind: str, towards: str) -> None:
        """Pass nothing more of that kind towards that node, and keep all that comes."""
        self._stalled.add((kind, towards))

    def unstall(self, kind: str, towards: str) -> None:
        self._stalled.discard((kind, towards))

    def silence(self, silent: bool) -> None:
        """As a cable pulled out: nothing passes, nothing is refused, nobody is told."""
        self._silent = silent

    def delay(self, seconds: float) -> None:
        """Hold back every piece for this long."""
        self._delay = seconds

    def heal(self) -> None:
        self._silent, self._delay = False, 0.0
        self._stalled.clear()

    # ---- the proxy's own thread

    def _run(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        for name, listener in self._listeners.items():
            await asyncio.start_server(partial(self._serve, name), sock=listener)
        await self._ended.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        dialer = next(name for name in self._routes if name != target)
        try:
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._routes[target]
            )
        except OSError:
            writer.transport.abort()
            return
        link = Link(dialer, target, {target: far_writer, dialer: writer})
        self._links.append(link)
        try:
            await asyncio.gather(
                self._pump(link, target, reader), self._pump(link, dialer, far_reader)
            )
        finally:
            self._links.remove(link)
            link.cut(reset=False)

    async def _pump(self, link: Link, towards: str, reader: asyncio.StreamReader) -> None:
        writer = link.writers[towards]
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE):
                if not link.kind:
                    link.kind = _kind(piece)
                await self._hold(link, towards)
                left = link.left.get(towards, len(piece) + 1)
                writer.write(piece[:left])
                self.passed += len(piece[:left])
                await writer.drain()
                if left <= len(piece):
                    self.cuts += 1
                    break
                if towards in link.left:
                    link.left[towards] -= len(piece)
        # An end passes as data does: after what came before it, and not through a silent network.
        await self._hold(link, towards)
        for other in link.writers.values():
            other.close()

    async def _hold(self, link: Link, towards: str) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        while self._silent or (link.kind, towards) in self._stalled:
            if link.writers[towards].transport.is_closing():
                return
            await asyncio.sleep(POLL)

    # ---- life

    def __enter__(self) -> FaultyNetwork:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        for listener in self._listeners.values():
            listener.close()


def _kind(piece: bytes) -> str:
    """`data` or `meta`; the packets that open a connection arrive whole, they are the first ones."""
    if len(piece) < FIRST_PACKET.size:
        return "unknown"
    magic, code, _length = FIRST_PACKET.unpack_from(piece)
    return FIRST_CODES.get(code, "unknown") if magic == H80_MAGIC else "unknown"
