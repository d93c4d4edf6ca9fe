"""What the demo stands on: printed commands, and the two ways to put data on a volume.

Rules: every command is printed before it runs, runs with a time limit, and is one that an
administrator could type in the demo's directory. The story itself is in demo.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from tests.integration.pair import RESOURCE, Node

CAP_SYS_ADMIN = 1 << 21
BLOCK_BYTES = 12 << 20
BLOCK_OFFSETS = {"first": 0, "second": 96 << 20}
"""Where on the volume each batch begins."""
BOLD, PLAIN = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")


class DemoFailed(Exception):
    """A step did not do what it should; the text says which."""


def heading(text: str) -> None:
    print(f"\n{BOLD}=== {text}{PLAIN}", flush=True)


def say(text: str) -> None:
    print(f"--- {text}", flush=True)


def shell(node: Node, command: str, *, seconds: float = 30) -> None:
    """Print and run a command as this node, in the demo's directory; its output is the terminal's.

    Raises DemoFailed if it fails or takes too long.
    """
    print(f"{BOLD}{node.name}# {command}{PLAIN}", flush=True)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=node.pair.directory,
            env=node.environment,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{node.name}: `{command}` did not end within {seconds:g} s") from None
    if done.returncode != 0:
        raise DemoFailed(f"{node.name}: `{command}` ended with exit code {done.returncode}")


def show_status(node: Node) -> None:
    shell(node, f"replicator status --proc {RESOURCE}")


class Storage(Protocol):
    """How the demo keeps data on the volume. A batch is written and verified as a whole."""

    attach: str
    """What `attach` says in the configuration."""

    def prepare(self, node: Node) -> None:
        """Make the fresh volume ready, and use it on this node."""

    def use(self, node: Node) -> None:
        """Use the volume, which another node has prepared, on this node."""

    def release(self, node: Node) -> None:
        """Stop using it, so that the node can become Secondary."""

    def lose(self, node: Node) -> None:
        """Forget it on a node whose daemon has been killed."""

    def write(self, node: Node, batch: str) -> None:
        """Write a batch and bring it to stable storage."""

    def verify(self, node: Node, batch: str) -> None:
        """Raises DemoFailed if a byte of the batch is not as it was written."""


class MountedFiles:
    """Files in an ext4 on the node's block device, checked with sha256sum."""

    attach = "auto"

    def prepare(self, node: Node) -> None:
        # Without discarding the whole device first: the activity log would then cover all of it,
        # and after a crash everything that it covers is copied again.
        shell(node, f"mkfs.ext4 -q -E nodiscard {node.device()}")
        self.use(node)

    def use(self, node: Node) -> None:
        shell(node, f"mkdir -p {self._mount(node)} && mount {node.device()} {self._mount(node)}")

    def release(self, node: Node) -> None:
        shell(node, f"umount {self._mount(node)}")

    def lose(self, node: Node) -> None:
        say("a node without power has no mounts left; here the kernel lives on, so by hand:")
        shell(node, f"umount --lazy {self._mount(node)}")

    def write(self, node: Node, batch: str) -> None:
        mount = self._mount(node)
        shell(
            node,
            f"for i in $(seq 1 20); do head -c $((i * 60001)) /dev/urandom > {mount}/{batch}-$i; done",
        )
        shell(node, f"sync --file-system {mount}")
        shell(node, f"(cd {mount} && sha256sum {batch}-*) > {batch}.sha256")

    def verify(self, node: Node, batch: str) -> None:
        sums = node.pair.directory / f"{batch}.sha256"
        shell(node, f"cd {self._mount(node)} && sha256sum --check --strict --quiet {sums}")
        say(f"all {len(sums.read_text().splitlines())} files of batch '{batch}' are intact")

    @staticmethod
    def _mount(node: Node) -> str:
        return f"{node.name}/mnt"


class RawBlocks:
    """Random blocks written and read through the NBD server with nbdsh: needs no privileges."""

    attach = "none"

    def prepare(self, node: Node) -> None:
        self.use(node)

    def use(self, node: Node) -> None:
        shell(node, f"nbdinfo --size $(replicator nbd-uri {RESOURCE})")

    def release(self, node: Node) -> None:
        """Nothing is held open."""

    def lose(self, node: Node) -> None:
        """Nothing is held open."""

    def write(self, node: Node, batch: str) -> None:
        start = BLOCK_OFFSETS[batch]
        shell(node, f"head -c {BLOCK_BYTES} /dev/urandom > {batch}.bin")
        shell(node, f"sha256sum {batch}.bin > {batch}.sha256")
        self._nbdsh(
            node,
            f'd = open("{batch}.bin", "rb").read()',
            f"for i in range(0, {BLOCK_BYTES}, 2**20): h.pwrite(d[i : i + 2**20], {start} + i)",
            "h.flush()",
        )
        shell(node, f"rm {batch}.bin")

    def verify(self, node: Node, batch: str) -> None:
        start = BLOCK_OFFSETS[batch]
        self._nbdsh(
            node,
            f'f = open("{batch}.bin", "wb")',
            f"for i in range(0, {BLOCK_BYTES}, 2**20): f.write(h.pread(2**20, {start} + i))",
            "f.close()",
        )
        shell(node, f"sha256sum --check --strict --quiet {batch}.sha256")
        say(f"all {BLOCK_BYTES} bytes of batch '{batch}' are intact")

    @staticmethod
    def _nbdsh(node: Node, *statements: str) -> None:
        script = " ".join(f"-c '{one}'" for one in statements)
        shell(node, f"nbdsh -u $(replicator nbd-uri {RESOURCE}) {script}")


def why_not_mounted() -> str:
    """Why this process cannot attach and mount a block device; "" if it can."""
    status = Path("/proc/self/status").read_text()
    rights = int(
        next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16
    )
    if os.geteuid() != 0 or not rights & CAP_SYS_ADMIN:
        return "no right to mount (not root)"
    if not shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin"):
        return "no mkfs.ext4"
    if os.path.exists("/sys/module/nbd"):
        return ""
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"neither nbd in the kernel nor {path}"
    return ""
