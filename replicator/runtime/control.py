"""The control socket's frames and its client side, as the command line uses it.

Frame: u32 big-endian length (at most FRAME_MAX), then a msgpack map. Request {"cmd", "args"};
answer {"ok": true, "result"} or {"ok": false, "error": {"class", "message", "hint", "code"}}.
Rules: blocking plain sockets, no event loop; every wait ends with the given time; what the other
side sends is checked before it is believed. The daemon's side is control_server.py.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import msgpack

from replicator import errors
from replicator.errors import DaemonError, ReplicatorError, StateRefused
from replicator.runtime import lock
from replicator.runtime.paths import RunFiles

FRAME_MAX = 1 << 20
"""Bytes of msgpack in one frame."""

HEADER = struct.Struct(">I")

DEFAULT_TIMEOUT = 10.0

QUIET_SECONDS = 5.0
"""A daemon at work on a command is asked this often whether it is still alive."""

ALIVE_SECONDS = 10.0
"""For the answer to that. A loop that is late by this much hangs, or its machine does."""


class FrameError(Exception):
    """What arrived is no frame of this protocol."""


def encode_frame(message: dict[str, Any]) -> bytes:
    """Length and msgpack of a map. Raises FrameError if it is longer than FRAME_MAX."""
    body: bytes = msgpack.packb(message, use_bin_type=True)
    if len(body) > FRAME_MAX:
        raise FrameError(f"a message of {len(body)} bytes exceeds {FRAME_MAX}")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """The length that the four header bytes announce. Raises FrameError if beyond FRAME_MAX."""
    length = int(HEADER.unpack(header)[0])
    if length > FRAME_MAX:
        raise FrameError(f"a frame of {length} bytes was announced, at most {FRAME_MAX} is allowed")
    return length


def decode_body(body: bytes) -> dict[str, Any]:
    """The map in a frame. Raises FrameError for anything else."""
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except Exception as error:
        # msgpack raises a whole family of unrelated classes for bad input.
        raise FrameError(f"not msgpack: {error}") from None
    if not isinstance(message, dict):
        raise FrameError(f"expected a map, found {type(message).__name__}")
    return message


def error_to_map(error: ReplicatorError) -> dict[str, Any]:
    """An error as it travels."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "code": error.code if isinstance(error, StateRefused) else 0,
    }


def error_from_map(raw: object) -> ReplicatorError:
    """The error that travelled; an unknown class becomes DaemonError, keeping its text."""
    if not isinstance(raw, dict):
        return DaemonError(f"the daemon reported an error in no known form: {raw!r}")
    name, message, hint = (str(raw.get(key, "")) for key in ("class", "message", "hint"))
    found = getattr(errors, name, None)
    if not (isinstance(found, type) and issubclass(found, ReplicatorError)):
        return DaemonError(f"{name}: {message}" if name else message, hint=hint)
    if issubclass(found, StateRefused):
        code = raw.get("code")
        return found(message, code=code if isinstance(code, int) else -10, hint=hint)
    return found(message, hint=hint)


def call(
    run_dir: str,
    resource: str,
    cmd: str,
    args: dict[str, Any] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Any:
    """Ask the resource's daemon and return its result.

    run_dir: the run directory; timeout: seconds for all of it. Raises the error the daemon
    answered, with its class; DaemonError if there is no daemon, no proper answer in time, or if it
    hangs, which is noticed within QUIET_SECONDS + ALIVE_SECONDS whatever the timeout.
    """
    path = RunFiles(run_dir, resource).control
    deadline = time.monotonic() + timeout

    def check_alive() -> None:
        if not is_running(run_dir, resource, min(ALIVE_SECONDS, deadline - time.monotonic())):
            raise TimeoutError

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
        except TimeoutError:
            raise _no_answer(run_dir, resource, cmd, timeout) from None
        except OSError as error:
            raise _no_daemon(resource, str(path), error) from None
        try:
            connection.sendall(encode_frame({"cmd": cmd, "args": args or {}}))
            length = frame_length(_receive(connection, HEADER.size, deadline, check_alive))
            answer = decode_body(_receive(connection, length, deadline, check_alive))
        except TimeoutError:
            waited = timeout - max(0.0, deadline - time.monotonic())
            raise _no_answer(run_dir, resource, cmd, waited) from None
        except OSError as error:
            raise DaemonError(
                f"{resource}: the daemon ended while it worked on {cmd}: {error.strerror or error}",
                hint=f"See {RunFiles(run_dir, resource).log}",
            ) from None
        except FrameError as error:
            raise DaemonError(f"{resource}: no proper answer from {path}: {error}") from None
    if answer.get("ok") is True:
        return answer.get("result")
    raise error_from_map(answer.get("error"))


def is_running(run_dir: str, resource: str, timeout: float = 2.0) -> bool:
    """True if a daemon answers on the resource's control socket."""
    try:
        call(run_dir, resource, "ping", {}, timeout)
    except DaemonError:
        return False
    return True


def _receive(
    connection: socket.socket, length: int, deadline: float, check_alive: Callable[[], None]
) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(min(left, QUIET_SECONDS))
        try:
            piece = connection.recv(length - len(parts))
        except TimeoutError:
            if left > QUIET_SECONDS:
                check_alive()
            continue
        if not piece:
            raise ConnectionResetError(0, "the connection was closed")
        parts += piece
    return bytes(parts)


def _no_daemon(resource: str, path: str, error: OSError) -> DaemonError:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return DaemonError(
            f"{resource}: no daemon is running (nobody answers on {path})",
            hint=f"Start it: replicator up {resource}",
        )
    if isinstance(error, PermissionError):
        return DaemonError(
            f"{resource}: permission denied on {path}",
            hint="Run as the user of the daemon, usually root.",
        )
    return DaemonError(f"{resource}: cannot reach {path}: {error.strerror or error}")


def _no_answer(run_dir: str, resource: str, cmd: str, waited: float) -> DaemonError:
    pid = lock.daemon_pid(run_dir, resource)
    return DaemonError(
        f"{resource}: the daemon{f' (pid {pid})' if pid else ''} did not answer {cmd} within "
        f"{waited:.3g} s",
        hint=f"It may hang, or wait for a disk: see {RunFiles(run_dir, resource).log}; "
        f"to end it: replicator down --force {resource}",
    )
