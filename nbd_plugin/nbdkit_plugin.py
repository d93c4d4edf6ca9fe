"""nbdkit's Python plugin: a resource daemon in a thread of nbdkit, its volumes as NBD exports.

Run by nbdkit as its script, with key=value arguments (see runtime.daemon_setup). Exports are named
by volume number; "" is the lowest. The function names are nbdkit's, see nbdkit-python-plugin(3).
Rules: requests go through Bridge; the only state is the one `_host`. A node that is not Primary
refuses every open, also for reading: there would be no telling how old the data is.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import nbdkit

from nbd_plugin import refusals, thread_states
from nbd_plugin.bridge import SECTOR, Bridge
from nbd_plugin.nbdkit_client import came_in_clear_by_network
from nbd_plugin.refusals import Refusal
from replicator.config.model import ReplicatorOptions
from replicator.errors import ReplicatorError, StateRefused
from replicator.runtime import hardening
from replicator.runtime.daemon import ResourceDaemon
from replicator.runtime.daemon_setup import DaemonOptions, DaemonSetup, prepare
from replicator.runtime.end_signals import EndSignals
from replicator.runtime.engine_api import EngineVolume
from replicator.runtime.turns import TurnLoop, soon_threadsafe_on

API_VERSION = 2

PREFERRED_BLOCK = 4096
MAXIMUM_BLOCK = 32 << 20

END_SECONDS = 60.0
"""At the end of the process: for the daemon's own, shorter limits."""

READY_SECONDS = 400.0


class Handle(NamedTuple):
    """One client's open volume."""

    number: int
    volume: EngineVolume
    writable: bool
    serial: int


class Host:
    """The daemon in its thread, and who has which volume open."""

    def __init__(self, setup: DaemonSetup) -> None:
        self._setup = setup
        self._loop = TurnLoop()
        self._started = threading.Event()
        self._serving = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._open: dict[int, Handle] = {}
        self._serial = 0
        self.error: ReplicatorError | None = None
        self.bridge = Bridge(soon_threadsafe_on(self._loop), self._alive)
        self.daemon: ResourceDaemon | None = None
        self._not_protected: list[str] = []

    def start(self) -> None:
        """Start the daemon and wait until it is ready. Raises its error."""
        self._not_protected = hardening.protect_process()
        # Heard by the loop, not by nbdkit: that would wait for every client to go away by itself.
        self._signals = EndSignals()
        self._thread.start()
        self._started.wait(READY_SECONDS)
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Ask the daemon to end in order and wait a bounded time."""
        if self.daemon is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self.daemon.request_stop)
            except RuntimeError:
                pass  # its loop is closed: it is ending already
        self._thread.join(END_SECONDS)

    def open(self, number: int, writable: bool) -> Handle:
        """On a worker thread. Raises StateRefused and the like."""
        return self.bridge.call(lambda: self._open_volume(number, writable))

    def close(self, handle: Handle) -> None:
        """On a worker thread. A handle that `down --force` has closed already stays closed."""
        try:
            self.bridge.call(lambda: self._close_volume(handle))
        except StateRefused:
            pass  # the engine is gone, and its open counts with it

    def volume_numbers(self) -> list[int]:
        return sorted(volume.number for volume in self._setup.view.volumes)

    def describe(self, number: int) -> str:
        view = self._setup.view
        device = next(one.device for one in view.volumes if one.number == number)
        return f"{view.resource}/{number} {device}"

    def refuses_client(self) -> bool:
        """Whether the client at hand would have to use TLS and does not."""
        return self._setup.view.replicator.tls_required and came_in_clear_by_network()

    def _open_volume(self, number: int, writable: bool) -> Handle:
        if self.daemon is None or not self._serving:
            raise StateRefused(f"{self._setup.view.resource} is going down")
        volume = self.daemon.engine.volumes.get(number)
        if volume is None:
            raise StateRefused(f"{self._setup.view.resource} has no volume {number}")
        volume.open(writable)
        self._serial += 1
        handle = Handle(number, volume, writable, self._serial)
        self._open[handle.serial] = handle
        return handle

    def _close_volume(self, handle: Handle) -> None:
        if self._open.pop(handle.serial, None) is not None:
            handle.volume.close(handle.writable)

    def _force_close(self) -> None:
        """On the loop: from here on every request fails."""
        self._serving = False
        for handle in list(self._open.values()):
            self._close_volume(handle)

    def _alive(self) -> bool:
        return self._serving and self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_turns(self._main())
        except ReplicatorError as error:
            self.error = error
        finally:
            self._serving = False
            self._started.set()
            nbdkit.shutdown()
            disconnect_clients(str(self._setup.files.nbd), self._setup.view.replicator)

    async def _main(self) -> None:
        self.daemon = ResourceDaemon(
            self._setup,
            self._loop,
            ready=self._started.set,
            stopping=self._stop_serving,
            force_close=self._force_close,
        )
        for problem in self._not_protected:
            self.daemon.log.log("info", f"not protected: {problem}")
        self._signals.listen(self._loop, self.daemon.request_stop)
        await self.daemon.run()
        if self.daemon.failure:
            # nbdkit would end with success and the starter of the process would believe it.
            self.error = StateRefused(self.daemon.failure)

    def _stop_serving(self) -> None:
        self._serving = False


def disconnect_clients(unix_path: str, options: ReplicatorOptions) -> None:
    """Shut down every accepted connection on our addresses. nbdkit itself would wait, without end,
    for its clients to leave."""
    tcp_port = options.listen_address[1] if options.listen_address else None
    for name in os.listdir("/proc/self/fd"):
        try:
            # Duplicated, so that closing our object leaves nbdkit's descriptor alone.
            with socket.socket(fileno=os.dup(int(name))) as client:
                if client.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                own = client.getsockname()
                # A listener on 0.0.0.0 gives connections on the real address: the port decides.
                if own == unix_path or (isinstance(own, tuple) and own[1] == tcp_port):
                    client.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # not a socket, or gone


_arguments: dict[str, str] = {}
_setup: DaemonSetup | None = None
_host: Host | None = None


def host() -> Host:
    """The one host; nbdkit calls nothing that needs it before after_fork."""
    assert _host is not None, "nbdkit has called a data function before after_fork"
    return _host


# Life of the process.


def config(key: str, value: str) -> None:
    _arguments[key] = value


def config_complete() -> None:
    def check() -> None:
        DaemonOptions.parse(_arguments)

    _or_say(check)


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    def take() -> None:
        global _setup
        _setup = prepare(DaemonOptions.parse(_arguments))

    _or_say(take)


def after_fork() -> None:
    global _host
    assert _setup is not None, "nbdkit calls get_ready first"
    refusals.shorten()
    _host = Host(_setup)
    _or_say(_host.start)


def cleanup() -> None:
    if _host is not None:
        _host.end()


# Exports.


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    if host().refuses_client():
        return []
    return [(str(number), host().describe(number)) for number in host().volume_numbers()]


def default_export(readonly: bool, is_tls: bool) -> str:
    return str(host().volume_numbers()[0])


def open(readonly: bool) -> Handle:
    thread_states.keep()
    thread_states.sweep()
    if host().refuses_client():
        _refuse(errno.EPERM, "this server requires TLS of clients that come by TCP")
    name = nbdkit.export_name()
    numbers = host().volume_numbers()
    if name == "":
        number = numbers[0]
    elif name.isdecimal() and int(name) in numbers:
        number = int(name)
    else:
        _refuse(errno.ENOENT, f"no export '{name}', there are {', '.join(map(str, numbers))}")
    try:
        return host().open(number, not readonly)
    except ReplicatorError as error:
        _refuse(errno.EMEDIUMTYPE if readonly else errno.EROFS, str(error))


def close(handle: Handle) -> None:
    host().close(handle)
    thread_states.sweep()


def export_description(handle: Handle) -> str:
    return host().describe(handle.number)


# Properties of an export.


def get_size(handle: Handle) -> int:
    return handle.volume.size


def block_size(handle: Handle) -> tuple[int, int, int]:
    return SECTOR, PREFERRED_BLOCK, MAXIMUM_BLOCK


def can_write(handle: Handle) -> bool:
    return handle.writable


def can_flush(handle: Handle) -> bool:
    return True


def can_fua(handle: Handle) -> int:
    return int(nbdkit.FUA_NATIVE)


def can_trim(handle: Handle) -> bool:
    return True


def can_zero(handle: Handle) -> bool:
    return True


def can_fast_zero(handle: Handle) -> bool:
    return False


def can_multi_conn(handle: Handle) -> bool:
    """A flush on one connection covers what completed on all: they share one engine."""
    return True


def is_rotational(handle: Handle) -> bool:
    return False


# Requests.


def pread(handle: Handle, buf: bytearray, offset: int, flags: int) -> None:
    thread_states.keep()
    code, data = host().bridge.read(handle.volume, offset, len(buf))
    if code:
        _fail(code, "read", offset, len(buf))
    buf[:] = data


def pwrite(handle: Handle, buf: bytearray, offset: int, flags: int) -> None:
    thread_states.keep()
    # A copy: the engine may keep the data longer than nbdkit lets us have the buffer.
    data, fua = bytes(buf), bool(flags & nbdkit.FLAG_FUA)
    if code := host().bridge.write(handle.volume, offset, data, fua):
        _fail(code, "write", offset, len(data))


def flush(handle: Handle, flags: int) -> None:
    thread_states.keep()
    if code := host().bridge.flush(handle.volume):
        _fail(code, "flush", 0, 0)


def trim(handle: Handle, count: int, offset: int, flags: int) -> None:
    thread_states.keep()
    if code := host().bridge.trim(handle.volume, offset, count, bool(flags & nbdkit.FLAG_FUA)):
        _fail(code, "trim", offset, count)


def zero(handle: Handle, count: int, offset: int, flags: int) -> None:
    thread_states.keep()
    may_unmap, fua = bool(flags & nbdkit.FLAG_MAY_TRIM), bool(flags & nbdkit.FLAG_FUA)
    if code := host().bridge.zero(handle.volume, offset, count, may_unmap, fua):
        _fail(code, "zero", offset, count)


# Errors, as nbdkit wants them: an errno, then an exception whose text goes to the log.


def _fail(code: int, what: str, offset: int, length: int) -> NoReturn:
    nbdkit.set_error(code)
    raise Refusal(code, f"{what} of {length} bytes at {offset}: {os.strerror(code)}")


def _refuse(code: int, reason: str) -> NoReturn:
    nbdkit.set_error(code)
    raise Refusal(code, f"refused to open: {reason}")


def _or_say(step: Callable[[], None]) -> None:
    """An error of ours in our words on the log, before nbdkit ends because of it."""
    try:
        step()
    except ReplicatorError as error:
        print(f"replicator: {error}", file=sys.stderr)
        raise RuntimeError(error.message) from None
