"""Start and end resource daemons: the process, its sockets, its log, and waiting until it is ready.

The starter takes the resource's lock and makes the NBD sockets, so that all that can be refused is
refused in its own words, and hands both to the daemon as open descriptors (nbdkit and our own server
take sockets by the LISTEN_FDS convention). The daemon keeps nothing else of its starter: own session, working
directory /, stdin from /dev/null, output to its log file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import sysconfig
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from replicator.config.model import NodeView, ReplicatorOptions
from replicator.errors import ConfigError, DaemonError, ReplicatorError
from replicator.runtime import lock, paths, ready, tls
from replicator.runtime.daemon_setup import FRONTENDS, NATIVE, NO_FRONTEND
from replicator.runtime.net import Endpoint, describe_listen, resolve
from replicator.runtime.paths import RunFiles

START_SECONDS = 320.0
"""More than a daemon gives itself to attach its disks."""

NATIVE_MODULE = "nbd_plugin.native"
"""Run by the Python that runs us; NBD sockets as for nbdkit."""

FIRST_SOCKET = 3
"""Descriptor of the first inherited socket, by the LISTEN_FDS convention."""

UNIX_PATH_MAX = 107
"""Bytes in the path of a Unix socket, a limit of the kernel."""

NBD_MODE = 0o660
LOG_TAIL = 2000
"""Characters of the log shown when a daemon ends without a word."""

STOP_SECONDS = 40.0
KILL_SECONDS = 5.0


def start_daemon(
    view: NodeView,
    config_path: str,
    node: str,
    run_dir: str,
    timeout: float = START_SECONDS,
    frontend: str | None = None,
) -> int:
    """Start the resource's daemon and wait until it is ready; returns its pid.

    Raises DaemonError if one runs already, it cannot be started, or it is not ready within
    `timeout` seconds; and whatever error it reports, with its class and hint.
    frontend: None takes the configured one; "none" starts a daemon without NBD server.
    """
    chosen = frontend or view.replicator.frontend
    if chosen not in FRONTENDS:
        raise ConfigError(
            f"{view.resource}: there is no frontend {chosen}; there are {', '.join(FRONTENDS)}",
            hint="Set `frontend nbdkit;` or `frontend native;` in the section replicator.",
        )
    tls.server_context(view.resource, view.replicator)  # raises what is wrong with it
    directory = paths.run_dir(run_dir)
    paths.prepare(directory)
    files = RunFiles(directory, view.resource)
    with ExitStack() as stack:
        lock_fd = lock.acquire(files)
        stack.callback(os.close, lock_fd)
        sockets = _listen(view, files, stack) if chosen != NO_FRONTEND else []
        log_fd = _open_log(files)
        stack.callback(os.close, log_fd)
        ready_read, ready_write = os.pipe()
        stack.callback(os.close, ready_read)
        child = _Child(sockets, log_fd, {"lock_fd": lock_fd, "ready_fd": ready_write})
        pairs = {
            "config": os.path.abspath(config_path),
            "node": node,
            "resource": view.resource,
            "run_dir": directory,
            "frontend": chosen,
        }
        try:
            pid = child.start(_command(chosen, view), pairs)
        finally:
            os.close(ready_write)
        return _wait(ready_read, pid, files, timeout)


def wait_daemon_ended(run_dir: str, resource: str, force: bool = False) -> None:
    """Wait until the resource's daemon is gone. With `force` it is killed if it is not gone after
    some seconds. Raises DaemonError naming the pid if it stays."""
    files = RunFiles(run_dir, resource)
    pid = lock.daemon_pid(run_dir, resource)
    if _gone(files, KILL_SECONDS if force else STOP_SECONDS):
        return
    if force and pid:
        os.kill(pid, signal.SIGKILL)
        if _gone(files, KILL_SECONDS):
            return
    raise DaemonError(
        f"{resource}: the daemon (pid {pid}) does not end",
        hint=f"See {files.log}" + ("" if force else f", or: replicator down --force {resource}"),
    )


def _gone(files: RunFiles, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not lock.is_free(files.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _wait(fd: int, pid: int, files: RunFiles, timeout: float) -> int:
    """Readiness, or the error; a daemon that did not make it is killed and reaped."""
    is_ready = False
    try:
        found = ready.wait_ready(fd, timeout)
        is_ready = True
    except ReplicatorError as error:
        if isinstance(error.__cause__, EOFError):
            error.hint = f"{_tail(files.log)}\n  See {files.log}"
        raise
    finally:
        # Not only for our own errors: an interrupted `up` must not leave half a daemon either.
        if not is_ready:
            _end_child(pid, KILL_SECONDS)
            files.nbd.unlink(missing_ok=True)
    return found


def _end_child(pid: int, patience: float) -> None:
    """Wait for our child, kill it after `patience` seconds, reap it."""
    deadline = time.monotonic() + patience
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(0.02)
    except (ChildProcessError, ProcessLookupError):
        pass


def _command(frontend: str, view: NodeView) -> list[str]:
    """Program and fixed arguments; key=value pairs follow."""
    if frontend == NO_FRONTEND:
        return [sys.executable, "-m", "replicator.runtime.daemon"]
    if frontend == NATIVE:
        return [sys.executable, "-m", NATIVE_MODULE]
    program = shutil.which("nbdkit")
    if program is None:
        raise DaemonError(
            "nbdkit is not installed (or not in PATH)",
            hint="Install it: apt-get install nbdkit nbdkit-plugin-python",
        )
    return [
        program,
        "--foreground",
        "--threads",
        str(view.replicator.threads),
        *_nbdkit_tls(view.replicator),
        "python",
        str(_plugin_path()),
    ]


def _nbdkit_tls(options: ReplicatorOptions) -> list[str]:
    """TLS is offered; that it is required the plugin sees to, because local clients are exempt."""
    if not options.tls_certificates:
        return []
    words = ["--tls=on", f"--tls-certificates={options.tls_certificates}"]
    return [*words, "--tls-verify-peer"] if options.tls_verify_peer else words


def _plugin_path() -> Path:
    """The plugin script, wherever the package is installed."""
    spec = find_spec("nbd_plugin")
    if spec is None or spec.origin is None:
        raise DaemonError("the package nbd_plugin is not installed beside replicator")
    return Path(spec.origin).parent / "nbdkit_script.py"


def daemon_environment() -> dict[str, str]:
    """Ours, and where Python finds what we find: nbdkit embeds the system's Python, which knows
    nothing of our virtual environment, and reads no .pth file in it."""
    roots = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for name in ("replicator", "protocol", "nbd_plugin"):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            roots.insert(0, str(Path(spec.origin).parent.parent))
    inherited = [one for one in os.environ.get("PYTHONPATH", "").split(":") if one]
    ordered = list(dict.fromkeys([*roots, *inherited]))
    return {**os.environ, "PYTHONPATH": ":".join(ordered), "PYTHONUNBUFFERED": "1"}


def _listen(view: NodeView, files: RunFiles, stack: ExitStack) -> list[socket.socket]:
    """The NBD server's sockets: always the UNIX one, TCP where configured. Raises DaemonError."""
    made = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))]
    if len(os.fsencode(files.nbd)) > UNIX_PATH_MAX:
        raise DaemonError(
            f"{view.resource}: the path of the NBD socket: expected at most {UNIX_PATH_MAX} bytes, "
            f"found {len(os.fsencode(files.nbd))}: {files.nbd}",
            hint="Give a run directory with a shorter name: --run-dir DIR.",
        )
    try:
        files.nbd.unlink(missing_ok=True)
        made[0].bind(str(files.nbd))
        os.chmod(files.nbd, NBD_MODE)
        made[0].listen()
    except OSError as error:
        reason = error.strerror or error
        raise DaemonError(f"cannot make the NBD socket {files.nbd}: {reason}") from None
    tcp = view.replicator.listen_address
    if tcp is None:
        return made
    endpoint = Endpoint(*tcp)
    try:
        family, address = resolve(endpoint)
        made.append(stack.enter_context(socket.socket(family, socket.SOCK_STREAM)))
        made[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made[1].bind(address)
        made[1].listen()
    except OSError as error:
        files.nbd.unlink(missing_ok=True)
        raise DaemonError(
            f"{view.resource}: NBD: {describe_listen(error, endpoint)}",
            hint="See `listen` in the section replicator of the configuration.",
        ) from None
    return made


def _open_log(files: RunFiles) -> int:
    try:
        return os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise DaemonError(f"cannot open the log {files.log}: {error.strerror}") from None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL))
            return "Its last words:\n" + log.read().decode(errors="replace").rstrip()
    except OSError:
        return "It left no log."


class _Child:
    """The process to be: descriptors it gets, and the steps between fork and exec."""

    def __init__(self, sockets: list[socket.socket], log_fd: int, handed: dict[str, int]) -> None:
        self._sockets = sockets
        self._log_fd = log_fd
        self._handed = handed

    def start(self, command: list[str], pairs: dict[str, str]) -> int:
        environment = daemon_environment()
        # Copies above the numbers that the sockets will take, so that no dup2 hits one in use.
        base = FIRST_SOCKET + len(self._sockets)
        copies = {key: _dup_above(fd, base) for key, fd in self._handed.items()}
        sockets = [_dup_above(one.fileno(), base) for one in self._sockets]
        log_fd = _dup_above(self._log_fd, base)
        arguments = [f"{key}={value}" for key, value in pairs.items()]
        arguments += [f"{key}={fd}" for key, fd in copies.items()]
        try:
            pid = os.fork()
            if pid == 0:
                self._become([*command, *arguments], environment, sockets, copies, log_fd)
        finally:
            for fd in (*copies.values(), *sockets, log_fd):
                os.close(fd)
        return pid

    def _become(
        self,
        command: list[str],
        environment: dict[str, str],
        sockets: list[int],
        copies: dict[str, int],
        log_fd: int,
    ) -> None:
        """In the child; never returns."""
        try:
            os.setsid()
            os.chdir("/")
            os.umask(0o022)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
            for index, fd in enumerate(sockets):
                os.dup2(fd, FIRST_SOCKET + index)
            kept = {0, 1, 2, *range(FIRST_SOCKET, FIRST_SOCKET + len(sockets)), *copies.values()}
            _close_all_but(kept)
            for fd in copies.values():
                os.set_inheritable(fd, True)
            if sockets:
                environment["LISTEN_PID"] = str(os.getpid())
                environment["LISTEN_FDS"] = str(len(sockets))
            os.execve(command[0], command, environment)
        except BaseException as error:
            os.write(2, f"replicator: cannot start {command[0]}: {error}\n".encode())
        finally:
            os._exit(127)


def _dup_above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass
