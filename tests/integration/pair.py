"""Two replicating nodes on this machine: what integration tests and the demo work with.

Each node has its own run directory and its own backing files in one temporary directory; the nodes
talk over loopback. Everything is done as an administrator would do it, through the command
`replicator`; only what a failure does to a node (killing, freezing) is done behind its back.

Rules: every wait is bounded and its failure shows the status and the log; leaving `with Pair()`
stops and removes everything, also after a failure. Nothing here imports the product or pytest.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration import processes
from tests.tools.ports import FreePorts

RESOURCE = "r0"
NAMES = ("alice", "bob")
MIB = 1 << 20
SECTOR = 512
REPLICATOR = Path(sys.executable).with_name("replicator")
FRONTEND = os.environ.get("REPLICATOR_TEST_FRONTEND", "nbdkit")
"""Of pairs that do not need a certain one: with `native` all integration tests run through that."""

COMMAND_SECONDS = 60.0
FIRST_MINOR = 700
MINORS_PER_SESSION = 100
LOG_TAIL = 3000
COMPARE_CHUNK = 4 * MIB


class PairError(AssertionError):
    """Something did not happen as expected; the text says what was expected and what was found."""


class Node:
    """One of the two. directory: its files; minors: its device of each volume."""

    def __init__(self, name: str, pair: Pair, directory: Path, minors: Sequence[int]) -> None:
        self.name = name
        self.pair = pair
        self.directory = directory
        self.minors = list(minors)
        self.run_dir = directory / "run"
        self.config_path = pair.config_path
        """The pair's; a test may give a node a configuration of its own."""

    # ---- the command line

    @property
    def environment(self) -> dict[str, str]:
        """What makes `replicator` act as this node; for running commands in another way."""
        return {
            **os.environ,
            "REPLICATOR_CONF": str(self.config_path),
            "REPLICATOR_NODE": self.name,
            "REPLICATOR_RUN_DIR": str(self.run_dir),
            "PATH": f"{REPLICATOR.parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        }

    def cmd(
        self, *args: str, check: bool = True, timeout: float = COMMAND_SECONDS, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `replicator ARGS...` as this node. Raises PairError if it does not end in time, and if
        `check` also if its exit code is not 0."""
        words = [str(REPLICATOR), *args]
        try:
            done = subprocess.run(
                words,
                env=self.environment,
                input=input,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise PairError(
                f"{self.name}: {args} did not end within {timeout} s{self._state()}"
            ) from None
        if check and done.returncode != 0:
            raise PairError(
                f"{self.name}: replicator {' '.join(args)}: exit code {done.returncode}\n"
                f"{done.stdout}{done.stderr}{self._state()}"
            )
        return done

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Run `replicator ARGS...` in the background; it is killed with the pair if it still runs."""
        process = subprocess.Popen(
            [str(REPLICATOR), *args],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pair.background.append(process)
        return process

    def create_md(self) -> None:
        self.cmd("create-md", "--force", RESOURCE)

    def up(self) -> None:
        self.cmd("up", RESOURCE)

    def down(self, *, force: bool = False) -> None:
        self.cmd("down", *(["--force"] if force else []), RESOURCE)

    def primary(self, *, force: bool = False) -> None:
        self.cmd("primary", *(["--force"] if force else []), RESOURCE)

    def secondary(self) -> None:
        self.cmd("secondary", RESOURCE)

    def connect(self, *, discard_my_data: bool = False) -> None:
        self.cmd("connect", *(["--discard-my-data"] if discard_my_data else []), RESOURCE)

    def disconnect(self, *, force: bool = False) -> None:
        self.cmd("disconnect", *(["--force"] if force else []), RESOURCE)

    # ---- what the node says

    def status(self) -> dict[str, Any]:
        """The resource in `replicator status --json`: cstate, role, volumes[...]; see docs/status.md."""
        document = json.loads(self.cmd("status", "--json", RESOURCE).stdout)
        found: dict[str, Any] = document["resources"][0]
        return found

    def words(self, volume: int = 0) -> dict[str, str]:
        """cstate, dstate and role of a volume as `replicator cstate` and its like print them."""
        status = self.status()
        for one in status["volumes"]:
            if one["volume"] == volume:
                return {
                    "cstate": one["cs"],
                    "dstate": f"{one['disk']}/{one['peer_disk']}",
                    "role": f"{one['role']}/{one['peer_role']}",
                }
        return {"cstate": status["cstate"], "dstate": "Unconfigured", "role": status["role"]}

    def wait(
        self,
        *,
        cstate: str | Sequence[str] = (),
        dstate: str | Sequence[str] = (),
        role: str | Sequence[str] = (),
        volume: int = 0,
        timeout: float = 30,
    ) -> dict[str, str]:
        """Wait until each state that is given is one of those given, e.g.
        wait(cstate="Connected", dstate="UpToDate/UpToDate"). Raises PairError after `timeout` s."""
        wanted = {"cstate": cstate, "dstate": dstate, "role": role}
        choices = {
            key: (value,) if isinstance(value, str) else tuple(value)
            for key, value in wanted.items()
            if value
        }
        end = time.monotonic() + timeout
        while True:
            found = self.words(volume)
            if all(found[key] in allowed for key, allowed in choices.items()):
                return found
            if time.monotonic() > end:
                raise PairError(
                    f"{self.name}: after {timeout} s expected {choices}, found {found}{self._state()}"
                )
            time.sleep(0.1)

    def nbd_uri(self, volume: int = 0) -> str:
        return self.cmd("nbd-uri", f"{RESOURCE}/{volume}").stdout.strip()

    def log(self) -> str:
        """What the daemon has written to its log; "" before its first start."""
        path = self.run_dir / f"{RESOURCE}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _state(self) -> str:
        """For messages of failed tests."""
        return f"\n--- log of {self.name}:\n{self.log()[-LOG_TAIL:]}"

    # ---- data

    def device(self, volume: int = 0) -> str:
        """The device node that exists while the node is Primary and `attach` is not none."""
        return f"/dev/drbd{self.minors[volume]}"

    def backing(self, volume: int = 0) -> Path:
        return self.directory / f"disk-{volume}"

    def external_meta(self, volume: int = 0) -> Path:
        return self.directory / f"meta-{volume}"

    @contextmanager
    def nbd(self, volume: int = 0) -> Iterator[Any]:
        """A libnbd handle, connected to the volume of this node."""
        import nbd

        handle = nbd.NBD()
        handle.connect_uri(self.nbd_uri(volume))
        try:
            yield handle
        finally:
            handle.shutdown()

    def write(self, offset: int, data: bytes, *, volume: int = 0, flush: bool = True) -> None:
        """Write whole sectors through the front end, in pieces of 1 MiB."""
        with self.nbd(volume) as handle:
            for start in range(0, len(data), MIB):
                handle.pwrite(data[start : start + MIB], offset + start)
            if flush:
                handle.flush()

    def read(self, offset: int, length: int, *, volume: int = 0) -> bytes:
        """Read any bytes through the front end, by whole sectors and in pieces of 1 MiB."""
        first = offset // SECTOR * SECTOR
        end = -(-(offset + length) // SECTOR) * SECTOR
        with self.nbd(volume) as handle:
            pieces = [
                bytes(handle.pread(min(MIB, end - start), start))
                for start in range(first, end, MIB)
            ]
        return b"".join(pieces)[offset - first :][:length]

    # ---- what happens to a node

    def pid(self) -> int:
        """The daemon's. Raises PairError if the pid file does not name a process of this pair."""
        path = self.run_dir / f"{RESOURCE}.pid"
        text = path.read_text().strip() if path.exists() else ""
        if not text.isdecimal() or str(self.directory) not in processes.command_line(int(text)):
            raise PairError(f"{self.name}: {path} names no running daemon: {text!r}{self._state()}")
        return int(text)

    def running(self) -> bool:
        try:
            return processes.alive(self.pid())
        except PairError:
            return False

    def kill9(self) -> None:
        """End the daemon as a power cut would: at once, with no chance to do anything."""
        pid = self.pid()
        if not processes.kill(pid):
            raise PairError(f"{self.name}: process {pid} survived SIGKILL")

    def freeze(self) -> None:
        """Stop the daemon without closing anything, as a hung machine."""
        os.kill(self.pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid(), signal.SIGCONT)


class Pair:
    """A resource on two nodes, configured and with backing files, but not yet started.

    sizes: bytes of the backing file of each volume (sparse). attach: none, auto, nbd-client or
    nbdfuse. frontend: nbdkit or native. sections: text to add inside sections of the resource, for
    example {"net": "ping-int 1;", "disk": "resync-rate 100M;", "replicator": "threads 4;"}.
    external_meta: metadata in files of their own instead of at the end of the backing files.
    parent: where the directory of the pair is made; its path has to be short, for Unix sockets.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int] = (64 * MIB,),
        protocol: str = "C",
        attach: str = "none",
        frontend: str = FRONTEND,
        external_meta: bool = False,
        sections: Mapping[str, str] | None = None,
        parent: Path = Path("/tmp"),
    ) -> None:
        if not REPLICATOR.exists():
            raise PairError(f"{REPLICATOR} does not exist: run `make setup`")
        self.directory = Path(tempfile.mkdtemp(prefix="replicator-pair-", dir=parent))
        self.config_path = self.directory / "replicator.conf"
        self.background: list[subprocess.Popen[str]] = []
        self._ports = FreePorts()
        self._external_meta = external_meta
        self._sections = {
            "net": f"protocol {protocol};",
            "disk": "",
            "replicator": f"attach {attach}; frontend {frontend};",
        }
        for name, text in (sections or {}).items():
            self._sections[name] = f"{self._sections.get(name, '')} {text}".strip()
        minors = self._free_minors(2 * len(sizes))
        self.alice, self.bob = (
            Node(name, self, self.directory / name, minors[index :: len(NAMES)])
            for index, name in enumerate(NAMES)
        )
        for node in self.nodes:
            node.run_dir.mkdir(parents=True)
            for volume, size in enumerate(sizes):
                self._sparse(node.backing(volume), size)
                if external_meta:
                    self._sparse(node.external_meta(volume), 4 * MIB + size // 32768)
        self.config_path.write_text(self._config(len(sizes)))

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.alice, self.bob

    def other(self, node: Node) -> Node:
        return self.bob if node is self.alice else self.alice

    @staticmethod
    def _sparse(path: Path, size: int) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    @staticmethod
    def _free_minors(count: int) -> list[int]:
        # Other sessions on this machine make pairs at the same moment: begin elsewhere than they do.
        first = FIRST_MINOR + os.getpid() % 1000 * MINORS_PER_SESSION
        candidates = range(first, first + 10_000)
        free = (minor for minor in candidates if not os.path.lexists(f"/dev/drbd{minor}"))
        return [next(free) for _ in range(count)]

    def _config(self, volumes: int) -> str:
        lines = [f"resource {RESOURCE} {{"]
        for name, text in self._sections.items():
            if text:
                lines.append(f"    {name} {{ {text} }}")
        for node in self.nodes:
            lines.append(f"    on {node.name} {{")
            lines.append(f"        address 127.0.0.1:{self._ports.take()};")
            for number in range(volumes):
                meta = node.external_meta(number) if self._external_meta else "internal"
                kind = "flexible-meta-disk" if self._external_meta else "meta-disk"
                lines += [
                    f"        volume {number} {{",
                    f"            device {node.device(number)} minor {node.minors[number]};",
                    f"            disk {node.backing(number)};",
                    f"            {kind} {meta};",
                    "        }",
                ]
            lines.append("    }")
        return "\n".join([*lines, "}", ""])

    # ---- the usual beginnings

    def start(self) -> None:
        """create-md and up on both; returns when they are connected, both Inconsistent."""
        for node in self.nodes:
            node.create_md()
        for node in self.nodes:
            node.up()
        for node in self.nodes:
            node.wait(cstate="Connected")

    def start_synced(self, timeout: float = 60) -> None:
        """As start(), then alice becomes Primary and her data is copied to bob."""
        self.start()
        self.alice.primary(force=True)
        for node in self.nodes:
            node.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=timeout)

    # ---- the end

    def difference(self, volume: int = 0, *, size: int) -> int | None:
        """Offset of the first of `size` bytes that differs between the backing files; None if equal."""
        paths = [node.backing(volume) for node in self.nodes]
        with paths[0].open("rb") as first, paths[1].open("rb") as second:
            for offset in range(0, size, COMPARE_CHUNK):
                length = min(COMPARE_CHUNK, size - offset)
                one, two = first.read(length), second.read(length)
                if len(one) != length or len(two) != length:
                    raise PairError(f"backing file ends before byte {offset + length} of {size}")
                if one != two:
                    return offset + next(i for i in range(length) if one[i] != two[i])
        return None

    def close(self) -> None:
        """Stop and remove everything. Raises PairError, after removing the files, naming what is left."""
        for process in self.background:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for node in self.nodes:
            if node.running():
                node.thaw()  # a frozen daemon would make unmounting wait
        for point in self._device_mounts():
            processes.run_quietly("umount", point)
        for node in self.nodes:
            self._take_down(node)
        left = processes.clear(self.directory)
        for device in self._devices():
            if os.path.lexists(device):
                left.append(f"device node: {device}")
                os.unlink(device)  # there was none when the pair was made
        self._ports.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        if left:
            raise PairError("left behind after clearing up:\n" + "\n".join(left))

    def _devices(self) -> list[str]:
        return [node.device(volume) for node in self.nodes for volume, _ in enumerate(node.minors)]

    def _device_mounts(self) -> list[str]:
        """Where file systems of our devices are mounted; what the daemons mount is their business."""
        mounts = [line.split()[:2] for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [point for source, point in mounts if source in self._devices()]

    @staticmethod
    def _take_down(node: Node) -> None:
        try:
            node.cmd("down", "--force", RESOURCE, check=False, timeout=45)
        except PairError:
            return  # the daemon is killed by its pid next

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except PairError as problem:
            if error is None:
                raise
            error.add_note(str(problem))
