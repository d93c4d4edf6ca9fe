"""A file system on an attached volume whose writer has hardly any memory, during a resync.

The kernel then has to write pages back to get memory for more, through nbdfuse and the daemon: that
must not wait for itself, and what was written must be there, on both nodes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.tools.memory_group import MemoryGroup

pytestmark = [
    pytest.mark.needs(
        *("nbdkit", "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "mount", "umount", "fusermount3")
    ),
    pytest.mark.timeout(110),
]
SIZE = 128 * MIB
LIMIT = 16 * MIB
OLD_BYTES = 16 * MIB
FILES = 48
FILE_BYTES = MIB
WRITE_SECONDS = 60
FRONTENDS = ("nbdkit", "native")
SECTIONS = {"disk": "c-plan-ahead 0; resync-rate 10M;"}
"""So slow that the resync lasts as long as the writing."""

WRITER = """
import os, random, sys
directory, files, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.stdin.readline()  # until this process is in its group
for number in range(files):
    with open(os.path.join(directory, str(number)), "wb") as file:
        file.write(random.Random(number).randbytes(size))
        if number % 10 == 0:
            os.fsync(file.fileno())
"""


def run(*words: str | Path) -> None:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture(params=FRONTENDS)
def mounted(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """In sync, with a file system on alice's device that is mounted on `mnt` and has some data."""
    with Pair(sizes=(SIZE,), attach="nbdfuse", frontend=request.param, sections=SECTIONS) as pair:
        pair.start_synced()
        run("mkfs.ext4", "-q", pair.alice.device())
        mount_point(pair).mkdir()
        run("mount", pair.alice.device(), mount_point(pair))
        (mount_point(pair) / "old").write_bytes(os.urandom(OLD_BYTES))
        yield pair


def mount_point(pair: Pair) -> Path:
    return pair.directory / "mnt"


def write_with_little_memory(directory: Path) -> int:
    """Write the files; returns how often the writer met its limit."""
    with MemoryGroup(f"replicator-test-{os.getpid()}", LIMIT) as group:
        words = [sys.executable, "-c", WRITER, str(directory), str(FILES), str(FILE_BYTES)]
        with subprocess.Popen(words, stdin=subprocess.PIPE) as writer:
            group.add(writer.pid)
            assert writer.stdin is not None
            writer.stdin.write(b"\n")
            writer.stdin.close()
            try:
                assert writer.wait(WRITE_SECONDS) == 0
            finally:
                writer.kill()
        return group.hits


def assert_files_are_right(directory: Path) -> None:
    for number in range(FILES):
        right = (directory / str(number)).read_bytes() == random.Random(number).randbytes(
            FILE_BYTES
        )
        assert right, f"file {number} has other content"


def test_a_writer_without_memory_gets_through_during_a_resync_and_loses_nothing(
    mounted: Pair,
) -> None:
    alice, bob = mounted.nodes
    bob.cmd("invalidate", RESOURCE)
    hits = write_with_little_memory(mount_point(mounted))
    assert hits > 0, "the writer had memory enough"
    assert alice.words()["cstate"] == "SyncSource", "the resync ended too early"
    run("umount", mount_point(mounted))
    alice.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=60)
    alice.secondary()
    bob.primary()
    run("e2fsck", "-fn", bob.device())
    run("mount", bob.device(), mount_point(mounted))
    assert_files_are_right(mount_point(mounted))
    run("umount", mount_point(mounted))


def protected(node: Node) -> dict[str, bool]:
    """Which of the protections of a process under a file system the node's daemon has."""
    pid = node.pid()
    status = Path(f"/proc/{pid}/status").read_text().split()
    return {
        "memory lock": int(status[status.index("VmLck:") + 1]) > 0,
        "OOM protection": Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-1000",
    }


def test_a_daemon_has_each_protection_or_says_in_its_log_that_it_has_not(pair: Pair) -> None:
    pair.start()
    log = pair.alice.log()
    for name, there in protected(pair.alice).items():
        assert there != (f"not protected: {name}" in log), name
