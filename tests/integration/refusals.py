"""What every refusal has to be: the right exit code, a message that says enough, and no traceback.

Helpers of the tests about bad input. Nothing here imports the product or pytest.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.pair import RESOURCE, Node, Pair, PairError

NEVER = ("Traceback", "internal error", "Errno ")
"""What no administrator may ever see."""


def digest(path: Path) -> str:
    """sha256 of a file, to see that nothing has touched it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(node: Node, *words: str, code: int, says: tuple[str, ...], timeout: float = 30) -> str:
    """The command ends with `code`, its message has all of `says`; returns what it wrote to stderr.
    Raises PairError otherwise."""
    done = node.cmd(*words, check=False, timeout=timeout)
    complain_unless(done.returncode == code, f"exit code {code}", words, done)
    for part in says:
        complain_unless(part in done.stderr, f"'{part}' on stderr", words, done)
    clean(words, done)
    return done.stderr


def clean(words: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> None:
    """Nothing in the output that is meant for programmers. Raises PairError."""
    for part in NEVER:
        complain_unless(part not in done.stdout + done.stderr, f"no '{part}'", words, done)


def complain_unless(
    held: bool, expected: str, words: tuple[str, ...], done: subprocess.CompletedProcess[str]
) -> None:
    if not held:
        raise PairError(
            f"{' '.join(words)}: expected {expected}, found exit code {done.returncode}\n"
            f"{done.stdout}{done.stderr}"
        )


def eventually(what: str, condition: Callable[[], bool], node: Node, seconds: float = 15) -> None:
    """Raises PairError, with the status and the log, if it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            text = node.cmd("status", RESOURCE, check=False).stdout
            raise PairError(f"{node.name}: expected {what}\n{text}\n{node.log()[-3000:]}")
        time.sleep(0.1)


def last_error(node: Node) -> str:
    return str(node.status().get("last_error", ""))


def says_in_status_and_log(node: Node, part: str) -> None:
    """The reason of a refusal is where an administrator looks for it."""
    eventually(f"'{part}' as last error", lambda: part in last_error(node), node)
    eventually(f"'{part}' in the log", lambda: part in node.log(), node)
    text = node.cmd("status", RESOURCE).stdout
    if part not in text:
        raise PairError(f"{node.name}: expected '{part}' in the status, found:\n{text}")


def address(pair: Pair, node: Node) -> tuple[str, int]:
    """Where the node listens for its peer."""
    ports = re.findall(r"address 127\.0\.0\.1:(\d+);", pair.config_path.read_text())
    return "127.0.0.1", int(ports[pair.nodes.index(node)])


def own_config(pair: Pair, node: Node, old: str, new: str) -> None:
    """Give the node a configuration of its own, with `new` in the place of `old`."""
    text = pair.config_path.read_text()
    if old not in text:
        raise PairError(f"no '{old}' in the configuration:\n{text}")
    node.config_path = pair.directory / f"{node.name}.conf"
    node.config_path.write_text(text.replace(old, new))


@contextmanager
def small_file_system(directory: Path, size: str, options: str = "") -> Iterator[Path]:
    """A file system in memory of its own, mounted on a new directory."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "replicator-test"]
    subprocess.run([*mount, str(directory)], check=True, timeout=20)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True, timeout=20)
