"""Where a benchmark runs: a directory, ports, and processes that end with it.

Rules: everything made is removed by leaving `with Stage(...)`; processes are ended by their own
pid; every wait is bounded. Nothing here knows what is measured.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.tools.ports import FreePorts

START_SECONDS = 20.0
END_SECONDS = 10.0
POLL = 0.02


class BenchError(Exception):
    """A measurement could not be made; the text says what failed and what to do."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Raises BenchError if `condition` does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL)


class Stage:
    """parent: the file system to work in."""

    def __init__(self, parent: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
        self._ports = FreePorts()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names = 0

    def path(self, name: str) -> Path:
        """A name nobody else gets; no file is made."""
        self._names += 1
        return self.directory / f"{name}-{self._names}"

    def file(self, name: str, size: int) -> Path:
        """A sparse file of `size` bytes."""
        path = self.path(name)
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def port(self) -> int:
        return self._ports.take()

    def run(self, command: Sequence[str | Path], ready: Callable[[], bool]) -> int:
        """Start a program that serves until the end; its pid once it is `ready`. Raises BenchError."""
        words = [str(word) for word in command]
        log = self.path("log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        try:
            wait_until(lambda: ready() or process.poll() is not None, f"{words[0]} starts")
        except BenchError as error:
            raise BenchError(f"{error}: {log.read_text()[-500:]}") from None
        if process.poll() is not None:
            raise BenchError(f"{words} ended at once: {log.read_text()[-500:]}")
        return process.pid

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_SECONDS)
        self._ports.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers_on_port(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
