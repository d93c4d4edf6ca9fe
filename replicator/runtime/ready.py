"""The readiness pipe: how a daemon that starts tells its starter "ready" or the error.

One control frame ({"ok": true, "pid"} or {"ok": false, "error"}), then the end of the pipe. The
starter waits a bounded time; a daemon that dies silently is noticed by the end of the pipe.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from replicator.errors import DaemonError, ReplicatorError
from replicator.runtime import control


class ReadyPipe:
    """The daemon's end. Without a descriptor (nobody waits) it does nothing; reports once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    def ready(self, pid: int) -> None:
        self._send(control.encode_frame({"ok": True, "pid": pid}))

    def failed(self, error: ReplicatorError) -> None:
        self._send(control.encode_frame({"ok": False, "error": control.error_to_map(error)}))

    def _send(self, frame: bytes) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        # BrokenPipeError: the starter has given up waiting.
        with contextlib.suppress(OSError):
            os.write(fd, frame)
        os.close(fd)


def wait_ready(fd: int, timeout: float) -> int:
    """The starter's end: the daemon's pid. Raises the error that the daemon reported; DaemonError
    when it ended without a word (EOFError as its cause) or said nothing in time."""
    deadline = time.monotonic() + timeout
    received = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise DaemonError(f"the daemon was not ready within {timeout:g} s")
        piece = os.read(fd, 65536)
        if not piece:
            break
        received += piece
    return _parse(bytes(received))


def _parse(received: bytes) -> int:
    if not received:
        raise DaemonError("the daemon ended before it was ready") from EOFError()
    try:
        length = control.frame_length(received[: control.HEADER.size])
        message = control.decode_body(received[control.HEADER.size :][:length])
    except (control.FrameError, ValueError) as error:
        raise DaemonError(f"the daemon's report cannot be read: {error}") from None
    if message.get("ok") is True and isinstance(message.get("pid"), int):
        return int(message["pid"])
    raise control.error_from_map(message.get("error"))
