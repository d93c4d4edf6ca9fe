"""A disk that answers nothing for seconds: the connection holds, and both daemons still answer; with
disk-timeout the disk is given up after a while, and what it does later is of no consequence."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration import processes
from tests.integration.pair import MIB, RESOURCE, Node, Pair

SIZE = 16 * MIB
STALL_SECONDS = 3.0
"""Several times ping-int and ping-timeout, as configured here."""
SECTIONS = {"net": "ping-int 1; ping-timeout 5; timeout 8; connect-int 1;"}

pytestmark = pytest.mark.needs("nbdkit", "nbdfuse", "fusermount3")


class StallingDisk:
    """A node's backing file on a file system whose server can be stopped (nbdfuse over nbdkit)."""

    def __init__(self, node: Node) -> None:
        directory = node.directory
        self._point = directory / "fuse"
        self._point.mkdir()
        content = directory / "content"
        os.truncate(os.open(content, os.O_CREAT | os.O_RDWR, 0o600), SIZE)
        socket = directory / "content.sock"
        self._server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket), "file", str(content)])
        wait_for(socket.exists)
        self._fuse = subprocess.Popen(
            ["nbdfuse", str(self._point / "disk"), f"nbd+unix:///?socket={socket}"]
        )
        file = self._point / "disk"
        wait_for(file.exists)
        backing: Path = node.backing()
        backing.unlink()
        backing.symlink_to(file)

    def stall(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self._server.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        processes.run_quietly("fusermount3", "-u", "-z", str(self._point))
        for process in (self._fuse, self._server):
            process.terminate()
            process.wait(10)


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "a helper did not do as told"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("frontend", "victim"), [("nbdkit", "bob"), ("native", "bob"), ("native", "alice")]
)
def test_the_connection_survives_a_disk_that_stalls_for_seconds(frontend: str, victim: str) -> None:
    with Pair(sizes=(SIZE,), frontend=frontend, sections=SECTIONS) as pair:
        stall_and_go_on(pair, pair.bob if victim == "bob" else pair.alice)


def stall_and_go_on(pair: Pair, node: Node) -> None:
    """Writes on alice, the Primary, while the node's disk stalls: nothing ends, nothing is lost."""
    disk = StallingDisk(node)
    try:
        pair.start_synced()
        pair.alice.write(0, os.urandom(MIB))
        before = {one.name: one.log().count("connection ended") for one in pair.nodes}
        data = os.urandom(64 * 1024)
        with pair.alice.nbd() as handle:
            disk.stall()
            cookies = [
                handle.aio_pwrite(nbd_buffer(data[n * 4096 : (n + 1) * 4096]), n * 65536)
                for n in range(16)
            ]
            end = time.monotonic() + STALL_SECONDS
            while time.monotonic() < end:
                handle.poll(100)
                for one in pair.nodes:
                    assert one.status()["cstate"] == "Connected"
            assert not any(handle.aio_command_completed(cookie) for cookie in cookies)
            disk.go_on()
            for cookie in cookies:
                while not handle.aio_command_completed(cookie):
                    assert handle.poll(20_000), "a write was never completed"
        after = {one.name: one.log().count("connection ended") for one in pair.nodes}
        assert after == before, pair.bob.log()[-2000:]
        pair.alice.cmd("secondary", RESOURCE)
        assert pair.difference(size=SIZE - MIB) is None
        for one in pair.nodes:
            one.down()
    finally:
        disk.close()


def test_a_disk_that_stalls_for_longer_than_disk_timeout_is_given_up() -> None:
    sections = {**SECTIONS, "disk": "disk-timeout 15;"}
    with Pair(sizes=(SIZE,), frontend="native", sections=sections) as pair:
        alice, bob = pair.nodes
        disk = StallingDisk(alice)
        try:
            pair.start_synced()
            alice.write(0, b"a" * 4096)
            disk.stall()
            alice.write(0, b"b" * 4096)  # flushes, too
            assert alice.words() == {
                "cstate": "Connected",
                "dstate": "Diskless/UpToDate",
                "role": "Primary/Secondary",
            }
            assert "disk error: disk-timeout: a " in alice.cmd("status", RESOURCE).stdout
            assert alice.read(0, 4096) == b"b" * 4096
            alice.write(0, b"c" * 4096)
            disk.go_on()
            alice.cmd("attach", RESOURCE)
            alice.wait(dstate="UpToDate/UpToDate")
            assert alice.read(0, 4096) == b"c" * 4096
            alice.cmd("secondary", RESOURCE)
            assert pair.difference(size=SIZE - MIB) is None
            for one in pair.nodes:
                one.down()
        finally:
            disk.close()


def nbd_buffer(data: bytes) -> object:
    import nbd

    return nbd.Buffer.from_bytearray(bytearray(data))
