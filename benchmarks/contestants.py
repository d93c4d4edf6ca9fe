"""Who is measured: replicator's front ends and protocols, qemu's mirrors, and a single copy.

A contestant is opened on a Stage and gives the options by which fio reaches it. All clients come by
a Unix socket; both copies are files in the same directory.
Rules: each contestant in the best configuration found for it, which is written here and nowhere
else; nothing here measures.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.stage import BenchError, Stage, answers_on_port, wait_until
from tests.integration.pair import Pair

FAST_RESYNC = {"disk": "c-plan-ahead 0; resync-rate 4G;"}
MIRROR_SECONDS = 60.0
Fio = tuple[str, ...]
"""fio's options that choose the volume."""


@dataclass(frozen=True)
class Served:
    """A contestant that runs. pids: its processes, those of both copies."""

    fio: Fio
    pids: tuple[int, ...]


@dataclass(frozen=True)
class Contestant:
    """title: for people. needs: programs, with the Debian package of each. quick: measured also in
    a short run."""

    key: str
    title: str
    open: Callable[[Stage, int], AbstractContextManager[Served]]
    needs: Mapping[str, str]
    quick: bool = False
    family: str = "replicator"


def nbd_options(uri: str) -> Fio:
    return ("--ioengine=nbd", f"--uri={uri}")


def _served(path: Path, *pids: int) -> Served:
    return Served(nbd_options(f"nbd+unix:///0?socket={path}"), pids)


# replicator


@contextmanager
def _replicator(
    frontend: str, protocol: str, disk_io: str, stage: Stage, size: int
) -> Iterator[Served]:
    with Pair(
        sizes=(size,),
        protocol=protocol,
        frontend=frontend,
        sections=FAST_RESYNC | {"replicator": f"disk-io {disk_io};"},
        parent=stage.directory,
    ) as pair:
        pair.start_synced()
        pids = tuple(node.pid() for node in pair.nodes)
        yield Served(nbd_options(pair.alice.nbd_uri()), pids)


# one copy


@contextmanager
def _nbdkit_file(stage: Stage, size: int) -> Iterator[Served]:
    path = stage.path("sock")
    pid = stage.run(("nbdkit", "-f", "-U", path, "file", stage.file("disk", size)), path.exists)
    yield _served(path, pid)


# qemu, whose second copy is served by nbdkit's file plugin: as a target of small writes it is up to
# three times as fast as qemu's own server, which by TCP also stalls for 40 ms at a time (qemu 7.2).


def _qemu(*blockdevs: str, exported: str, path: Path) -> list[str]:
    words = ["qemu-storage-daemon"]
    for one in blockdevs:
        words += ["--blockdev", one]
    words += ["--nbd-server", f"addr.type=unix,addr.path={path}"]
    return [*words, "--export", f"nbd,id=e,node-name={exported},writable=on,name=0"]


def _qemu_peer(stage: Stage, size: int, transport: str) -> tuple[int, dict[str, str]]:
    """Start the server of the second copy; its pid, and where it is, as qemu's SocketAddress."""
    serve = ("nbdkit", "-f", "-e", "0")
    plugin = ("file", stage.file("disk", size))
    if transport == "unix":
        path = stage.path("peer")
        pid = stage.run((*serve, "-U", path, *plugin), path.exists)
        return pid, {"type": "unix", "path": str(path)}
    port = stage.port()
    listen = ("-i", "127.0.0.1", "-p", str(port))
    pid = stage.run((*serve, *listen, *plugin), lambda: answers_on_port(port))
    return pid, {"type": "inet", "host": "127.0.0.1", "port": str(port)}


def _both_nodes(stage: Stage, size: int, transport: str, aio: str) -> tuple[int, list[str]]:
    """Pid of the second copy's server; qemu's block nodes `local` and `remote`."""
    remote = {"driver": "nbd", "node-name": "remote", "export": "0"}
    pid, address = _qemu_peer(stage, size, transport)
    path = stage.file("disk", size)
    local = f"driver=file,node-name=local,filename={path},aio={aio},discard=unmap"
    return pid, [local, json.dumps({**remote, "server": address})]


@contextmanager
def _quorum(transport: str, aio: str, stage: Stage, size: int) -> Iterator[Served]:
    quorum = {
        "driver": "quorum",
        "node-name": "both",
        "vote-threshold": 2,
        "read-pattern": "fifo",
        "children": ["local", "remote"],
    }
    path = stage.path("sock")
    peer, nodes = _both_nodes(stage, size, transport, aio)
    command = _qemu(*nodes, json.dumps(quorum), exported="both", path=path)
    yield _served(path, stage.run(command, path.exists), peer)


@contextmanager
def _mirror(transport: str, aio: str, stage: Stage, size: int) -> Iterator[Served]:
    path, monitor = stage.path("sock"), stage.path("qmp")
    peer, nodes = _both_nodes(stage, size, transport, aio)
    command = _qemu(*nodes, exported="local", path=path)
    command += ["--chardev", f"socket,path={monitor},server=on,wait=off,id=qmp"]
    command += ["--monitor", "chardev=qmp"]
    pid = stage.run(command, lambda: path.exists() and monitor.exists())
    with Monitor(monitor) as qmp:
        job = {"job-id": "mirror", "device": "local", "target": "remote", "sync": "full"}
        qmp.execute("blockdev-mirror", **job, **{"copy-mode": "write-blocking"})
        wait_until(
            lambda: any(one["status"] == "ready" for one in qmp.execute("query-jobs")),
            "qemu's mirror job is ready",
            MIRROR_SECONDS,
        )
        yield _served(path, pid, peer)


class Monitor:
    """A QMP connection to qemu."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(MIRROR_SECONDS)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> list[dict[str, object]]:
        """What the command returns. Raises BenchError."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise BenchError(f"qemu refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                found: list[dict[str, object]] = answer["return"]
                return found

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


OURS = {"nbdkit": "nbdkit"}
QEMU = {**OURS, "qemu-storage-daemon": "qemu-system-common"}


def _ours(frontend: str, protocol: str, disk_io: str = "buffered") -> Contestant:
    direct = disk_io == "direct"
    return Contestant(
        f"{frontend}-{protocol}" + ("-direct" if direct else ""),
        f"replicator, {frontend}, protocol {protocol}" + (", disk-io direct" if direct else ""),
        partial(_replicator, frontend, protocol, disk_io),
        OURS,
        quick=protocol == "C" and not direct,
    )


def _qemus(kind: str, transport: str, aio: str, *, quick: bool = False) -> Contestant:
    words = {"quorum": "quorum", "mirror": "write-blocking mirror"}[kind]
    return Contestant(
        f"qemu-{kind}-{transport}-{aio}",
        f"qemu {words}, peer by {transport}, aio={aio}",
        partial({"quorum": _quorum, "mirror": _mirror}[kind], transport, aio),
        QEMU,
        quick=quick,
        family="qemu",
    )


CONTESTANTS = (
    *(_ours(frontend, protocol) for frontend in ("native", "nbdkit") for protocol in "CBA"),
    _ours("native", "C", "direct"),
    _qemus("quorum", "tcp", "threads", quick=True),
    _qemus("quorum", "tcp", "io_uring"),
    _qemus("quorum", "unix", "threads"),
    _qemus("quorum", "unix", "io_uring", quick=True),
    _qemus("mirror", "tcp", "io_uring"),
    _qemus("mirror", "unix", "io_uring"),
    Contestant(
        "one-copy", "nbdkit file, one copy", _nbdkit_file, OURS, quick=True, family="one copy"
    ),
)
