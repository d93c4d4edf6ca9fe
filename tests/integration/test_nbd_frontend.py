"""Both front ends as real processes, asked by a real NBD client, with a pretend engine behind.

What happens in the engine is tested elsewhere; here: exports, sizes, flags, errnos, refusals, many
requests at once, and that nothing hangs when the engine holds requests, breaks or is killed.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest

from replicator import config
from replicator.config.model import NodeView
from replicator.errors import DaemonError, MetadataError, StateRefused, UsageError
from replicator.metadata.layout import Placement
from replicator.runtime import control, lock, spawn, status_files
from replicator.runtime.metadata_files import create_md
from tests.integration.pretend_offsets import BREAKS_AT, FAILS_AT, HANGS_AT, SIZE

pytestmark = [pytest.mark.needs("nbdkit"), pytest.mark.timeout(120)]

SCRIPT = Path(__file__).with_name("pretend_engine.py")
NATIVE_MODULE = "tests.integration.pretend_native"


class Daemon:
    """One daemon of resource r0, two volumes; killed by pid at the end if it still lives."""

    def __init__(self, directory: Path, port: int, frontend: str, extra: str = "") -> None:
        self.frontend = frontend
        self.run_dir = str(directory / "run")
        self.disks = [directory / "disk0", directory / "disk1"]
        for disk in self.disks:
            disk.write_bytes(b"")
            os.truncate(disk, SIZE)
            create_md(str(disk), Placement("internal"), force=True, ask=lambda question: True)
        self.config = directory / "r0.conf"
        self.config.write_text(
            f"""resource r0 {{
              protocol C;
              replicator {{ attach none; frontend {frontend}; {extra} }}
              on alice {{ address 127.0.0.1:{port}; {self._volumes()} }}
              on bob {{ address 127.0.0.1:{port + 1}; {self._volumes()} }}
            }}"""
        )
        self.view: NodeView = config.load(str(self.config)).view("r0", "alice")
        self.pid = 0

    def _volumes(self) -> str:
        return " ".join(
            f"volume {n} {{ device /dev/drbd{n}; disk {disk}; meta-disk internal; }}"
            for n, disk in enumerate(self.disks)
        )

    def start(self) -> None:
        self.pid = spawn.start_daemon(self.view, str(self.config), "alice", self.run_dir, 30)

    def call(self, cmd: str, timeout: float = 10.0, **args: object) -> object:
        return control.call(self.run_dir, "r0", cmd, args, timeout)

    def primary(self) -> None:
        self.call("primary", force=True)

    @property
    def socket(self) -> str:
        return f"{self.run_dir}/r0.nbd.sock"

    def last_call(self, volume: int = 0) -> str:
        status = self.call("status")
        assert isinstance(status, dict)
        return str(status["volumes"][volume]["waiting_for"])

    def client(self, export: str = "0") -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_export_name(export)
        handle.connect_unix(self.socket)
        return handle

    def log(self) -> str:
        return Path(self.run_dir, "r0.log").read_text()

    def kill(self) -> None:
        if self.pid and lock.daemon_pid(self.run_dir, "r0") is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture(params=["nbdkit", "native"])
def frontend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(
    run_dir: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch, frontend: str
) -> Iterator[Callable[..., Daemon]]:
    monkeypatch.setattr(spawn, "_plugin_path", lambda: SCRIPT)
    monkeypatch.setattr(spawn, "NATIVE_MODULE", NATIVE_MODULE)
    made: list[Daemon] = []

    def start(extra: str = "") -> Daemon:
        made.append(Daemon(run_dir, free_port(), frontend, extra))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.kill()


@pytest.fixture
def daemon(make: Callable[..., Daemon]) -> Daemon:
    return make()


def test_a_secondary_refuses_every_open(daemon: Daemon) -> None:
    with pytest.raises(nbd.Error):
        daemon.client()
    assert "this node is Secondary" in daemon.log()


def test_a_primary_serves_its_volumes_by_number_and_the_lowest_by_default(daemon: Daemon) -> None:
    daemon.primary()
    for export in ("", "0", "1"):
        client = daemon.client(export)
        assert client.get_size() == SIZE
        client.shutdown()
    with pytest.raises(nbd.Error):
        daemon.client("7")
    with pytest.raises(nbd.Error):
        daemon.client("../etc")


def test_the_exports_are_listed(daemon: Daemon) -> None:
    listed: list[str] = []
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.connect_unix(daemon.socket)
    client.opt_list(lambda name, description: listed.append(f"{name}: {description}"))
    client.opt_abort()
    assert listed == ["0: r0/0 /dev/drbd0", "1: r0/1 /dev/drbd1"]


def test_an_export_announces_what_it_can(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    assert not client.is_read_only()
    assert client.can_flush() and client.can_fua() and client.can_trim() and client.can_zero()
    assert client.can_multi_conn()
    assert not client.can_fast_zero()
    assert [client.get_block_size(one) for one in range(3)] == [512, 4096, 32 << 20]
    client.shutdown()


def test_every_kind_of_request_reaches_the_engine_with_its_flags(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    data = os.urandom(100 * 512)
    client.pwrite(data, 512)
    assert daemon.last_call() == "write fua=False"
    assert client.pread(len(data), 512) == data
    client.pwrite(data, 512, nbd.CMD_FLAG_FUA)
    assert daemon.last_call() == "write fua=True"
    client.flush()
    assert daemon.last_call() == "flush"
    client.trim(1024, 512)
    assert daemon.last_call() == "trim fua=False"
    client.zero(512, 4096)
    assert daemon.last_call() == "zero may_unmap=True fua=False"
    client.zero(512, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    assert daemon.last_call() == "zero may_unmap=False fua=True"
    assert client.pread(1536, 512) == bytes(1024) + data[1024:1536]
    client.shutdown()


def test_the_engines_errno_is_the_clients_errno(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    with pytest.raises(nbd.Error) as read:
        client.pread(512, FAILS_AT)
    with pytest.raises(nbd.Error) as write:
        client.pwrite(bytes(512), FAILS_AT)
    assert (read.value.errnum, write.value.errnum) == (errno.EIO, errno.ENOSPC)
    assert client.pread(512, 0) == bytes(512)
    client.shutdown()


def test_a_request_that_is_not_in_whole_sectors_is_refused(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    client.set_strict_mode(0)
    for offset, length in ((100, 512), (0, 100)):
        with pytest.raises(nbd.Error) as refused:
            client.pwrite(bytes(length), offset)
        assert refused.value.errnum == errno.EINVAL
    client.shutdown()


def test_large_and_many_requests_at_once_all_come_back_right(daemon: Daemon) -> None:
    daemon.primary()
    blocks = {n: os.urandom(16384) for n in range(60)}
    clients = [daemon.client() for _ in range(3)]
    started = []
    for n, block in blocks.items():
        buffer = nbd.Buffer.from_bytearray(bytearray(block))
        started.append((clients[n % 3], clients[n % 3].aio_pwrite(buffer, n * 16384)))
    for client, cookie in started:
        while not client.aio_command_completed(cookie):
            client.poll(5000)
    whole = clients[0].pread(60 * 16384, 0)
    assert whole == b"".join(blocks[n] for n in range(60))
    big = os.urandom(4 << 20)
    clients[0].pwrite(big, 4 << 20)
    assert clients[1].pread(4 << 20, 4 << 20) == big
    for client in clients:
        client.shutdown()


def test_secondary_is_refused_while_a_client_is_connected(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    with pytest.raises(StateRefused) as refused:
        daemon.call("secondary")
    assert refused.value.code == -12
    client.shutdown()
    daemon.call("secondary")
    with pytest.raises(nbd.Error):
        daemon.client()


def test_a_held_request_does_not_hold_up_others(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    held = client.aio_pread(nbd.Buffer(512), HANGS_AT)
    assert client.pread(512, 0) == bytes(512)
    assert not client.aio_command_completed(held)


def test_a_defect_of_the_engine_gives_errors_not_hangs_and_ends_the_process(
    daemon: Daemon,
) -> None:
    daemon.primary()
    client = daemon.client()
    held = client.aio_pread(nbd.Buffer(512), HANGS_AT)
    started = time.monotonic()
    with pytest.raises(nbd.Error):
        client.pread(512, BREAKS_AT)
    with pytest.raises(nbd.Error):
        while not client.aio_command_completed(held):
            client.poll(5000)
    assert time.monotonic() - started < 10
    _, status = os.waitpid(daemon.pid, 0)
    assert lock.daemon_pid(daemon.run_dir, "r0") is None
    assert "a defect on purpose" in daemon.log()
    daemon.start()
    daemon.primary()
    daemon.client().shutdown()


def test_down_ends_the_process_and_leaves_a_clean_directory(daemon: Daemon) -> None:
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    assert os.waitstatus_to_exitcode(os.waitpid(daemon.pid, 0)[1]) == 0
    status_files.clean_run_dir(daemon.run_dir, "r0")
    assert sorted(os.listdir(daemon.run_dir)) == [".status.lock", "r0.log", "status"]


def test_down_force_works_with_clients_connected_and_requests_held(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    held = client.aio_pread(nbd.Buffer(512), HANGS_AT)
    with pytest.raises(StateRefused):
        daemon.call("down", force=False)
    daemon.call("down", 30.0, force=True)
    with pytest.raises(nbd.Error):
        while not client.aio_command_completed(held):
            client.poll(5000)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    os.waitpid(daemon.pid, 0)


def test_a_term_signal_ends_it_in_order(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(daemon.pid, 0)[1]) == 0
    assert "daemon ends" in daemon.log()


def test_a_term_signal_does_not_wait_for_clients(daemon: Daemon) -> None:
    daemon.primary()
    client = daemon.client()
    held = client.aio_pread(nbd.Buffer(512), HANGS_AT)
    started = time.monotonic()
    os.kill(daemon.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(daemon.pid, 0)[1]) == 0
    assert time.monotonic() - started < 10
    assert "without an orderly shutdown" not in daemon.log()
    with pytest.raises(nbd.Error):
        while not client.aio_command_completed(held):
            client.poll(5000)


def test_clients_on_tcp_are_disconnected_too(
    make: Callable[..., Daemon], free_port: Callable[[], int]
) -> None:
    port = free_port()
    daemon = make(f"listen 127.0.0.1:{port};")
    daemon.primary()
    client = nbd.NBD()
    client.connect_tcp("127.0.0.1", str(port))
    os.kill(daemon.pid, signal.SIGTERM)
    os.waitpid(daemon.pid, 0)
    with pytest.raises(nbd.Error):
        client.pread(512, 0)


def test_a_second_daemon_is_refused_naming_the_first(daemon: Daemon) -> None:
    with pytest.raises(DaemonError, match=f"runs already \\(pid {daemon.pid}\\)"):
        spawn.start_daemon(daemon.view, str(daemon.config), "alice", daemon.run_dir, 30)
    daemon.call("ping")


def test_after_a_kill_it_starts_again_over_what_was_left(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGKILL)
    os.waitpid(daemon.pid, 0)
    assert lock.daemon_pid(daemon.run_dir, "r0") is None
    with pytest.raises(DaemonError, match="no daemon is running"):
        daemon.call("ping")
    daemon.start()
    assert lock.daemon_pid(daemon.run_dir, "r0") == daemon.pid


def test_it_listens_on_tcp_too_where_configured(
    make: Callable[..., Daemon], free_port: Callable[[], int]
) -> None:
    port = free_port()
    daemon = make(f"listen 127.0.0.1:{port};")
    daemon.primary()
    status = daemon.call("status")
    assert isinstance(status, dict)
    assert f"nbd://127.0.0.1:{port}/1" in status["nbd_uris"]
    for uri in status["nbd_uris"]:
        client = nbd.NBD()
        client.connect_uri(uri)
        assert client.get_size() == SIZE
        client.shutdown()


def test_a_tcp_port_in_use_is_refused_in_words(make: Callable[..., Daemon]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DaemonError, match=f"cannot listen on 127.0.0.1:{port}: another prog"):
            make(f"listen 127.0.0.1:{port};")


def test_missing_metadata_is_the_starters_error(daemon: Daemon) -> None:
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    os.waitpid(daemon.pid, 0)
    os.truncate(daemon.disks[1], 0)
    os.truncate(daemon.disks[1], SIZE)
    with pytest.raises(MetadataError, match="disk1"):
        daemon.start()
    assert lock.daemon_pid(daemon.run_dir, "r0") is None
    assert not Path(daemon.socket).exists()


def test_a_front_end_that_cannot_start_shows_its_last_words(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    monkeypatch.setattr(spawn, "_plugin_path", lambda: broken)
    monkeypatch.setattr(spawn, "NATIVE_MODULE", "no_such_module")
    with pytest.raises(DaemonError) as refused:
        daemon.start()
    assert "ended before it was ready" in refused.value.message
    assert "no_such_module" in refused.value.hint


def test_the_daemon_keeps_nothing_of_its_starter(run_dir: Path, daemon: Daemon) -> None:
    targets = {
        int(name): os.readlink(f"/proc/{daemon.pid}/fd/{name}")
        for name in os.listdir(f"/proc/{daemon.pid}/fd")
    }
    log = f"{daemon.run_dir}/r0.log"
    assert (targets[0], targets[1], targets[2]) == ("/dev/null", log, log) or targets[1] == (
        "/dev/null"
    )
    ours = {os.readlink("/proc/self/fd/1"), os.readlink("/proc/self/fd/2")}
    assert not ours & {one for one in targets.values() if one.startswith(("pipe:", "/dev/pts"))}
    assert os.getsid(daemon.pid) == daemon.pid
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"


def test_the_daemon_outlives_the_process_that_started_it(daemon: Daemon) -> None:
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    os.waitpid(daemon.pid, 0)
    script = (
        "import sys; from pathlib import Path; from replicator import config;"
        "from replicator.runtime import spawn;"
        "spawn._plugin_path = lambda: Path(sys.argv[3]);"
        "spawn.NATIVE_MODULE = sys.argv[4];"
        "view = config.load(sys.argv[1]).view('r0', 'alice');"
        "print(spawn.start_daemon(view, sys.argv[1], 'alice', sys.argv[2], 30))"
    )
    arguments = [str(daemon.config), daemon.run_dir, str(SCRIPT), NATIVE_MODULE]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = int(done.stdout)
    try:
        time.sleep(0.5)
        assert lock.daemon_pid(daemon.run_dir, "r0") == pid
        daemon.call("ping")
    finally:
        os.kill(pid, signal.SIGKILL)
        until(lambda: lock.daemon_pid(daemon.run_dir, "r0") is None)


def test_a_daemon_without_front_end_runs_by_itself_with_the_real_engine(daemon: Daemon) -> None:
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    os.waitpid(daemon.pid, 0)
    config_path = str(daemon.config)
    daemon.pid = spawn.start_daemon(
        daemon.view, config_path, "alice", daemon.run_dir, 30, frontend="none"
    )
    status = daemon.call("status")
    assert isinstance(status, dict)
    assert (status["pid"], status["nbd_uris"]) == (daemon.pid, [])
    assert [one["disk"] for one in status["volumes"]] == ["Inconsistent", "Inconsistent"]
    daemon.call("detach", volume=1, force=False)
    daemon.call("attach", volume=1)
    with pytest.raises(StateRefused, match="attached already"):
        daemon.call("attach", volume=1)
    os.kill(daemon.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(daemon.pid, 0)[1]) == 0


def test_bad_commands_are_refused_with_what_is_known(daemon: Daemon) -> None:
    with pytest.raises(UsageError, match="no command 'frobnicate'"):
        daemon.call("frobnicate")
    with pytest.raises(UsageError, match="no argument 'volume'"):
        daemon.call("primary", volume=0)
    with pytest.raises(UsageError, match="expected int, found 'x'"):
        daemon.call("detach", volume="x")
    with pytest.raises(UsageError, match="r0 has no volume 9"):
        daemon.call("invalidate", volume=9)


def test_the_status_files_follow_the_state(daemon: Daemon) -> None:
    daemon.primary()
    until(lambda: "ro:Primary/Unknown" in Path(daemon.run_dir, "status").read_text())
    last = status_files.last_snapshot(daemon.run_dir, "r0")
    assert last is not None
    assert (last.pid, last.volumes[0].role) == (daemon.pid, "Primary")
    daemon.call("down", force=False)
    spawn.wait_daemon_ended(daemon.run_dir, "r0")
    assert "cs:" not in Path(daemon.run_dir, "status").read_text()


def test_connections_that_come_and_go_leave_no_threads_or_descriptors(daemon: Daemon) -> None:
    daemon.primary()

    def visit() -> None:
        client = daemon.client()
        cookies = [client.aio_pread(nbd.Buffer(512), n * 512) for n in range(40)]
        for cookie in cookies:
            while not client.aio_command_completed(cookie):
                client.poll(5000)
        client.shutdown()

    def resources() -> tuple[int, int]:
        base = f"/proc/{daemon.pid}"
        return len(os.listdir(f"{base}/task")), len(os.listdir(f"{base}/fd"))

    visit()
    until(lambda: open_count(daemon) == 0)
    time.sleep(0.3)
    before, memory = resources(), resident(daemon.pid)
    for _ in range(40):
        visit()
    until(lambda: open_count(daemon) == 0)
    until(lambda: resources() <= before)
    assert resident(daemon.pid) - memory < 2 << 20


def test_a_client_in_c_can_hammer_it(daemon: Daemon, program: Callable[[str], str]) -> None:
    daemon.primary()
    done = subprocess.run(
        [
            program("nbdcopy"),
            "--requests=32",
            "--connections=2",
            f"nbd+unix:///0?socket={daemon.socket}",
            f"nbd+unix:///1?socket={daemon.socket}",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    # The offset that fails on purpose must make the whole copy fail, in bounded time.
    assert done.returncode != 0


def open_count(daemon: Daemon) -> int:
    status = daemon.call("status")
    assert isinstance(status, dict)
    return sum(int(volume["open_count"]) for volume in status["volumes"])


def resident(pid: int) -> int:
    """Bytes of memory in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
