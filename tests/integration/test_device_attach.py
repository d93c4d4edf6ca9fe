"""Attaching a volume to the kernel by nbdfuse and a loop device: made, used, refused, taken away.

nbdkit's memory plugin stands in for the daemon: attaching only needs its socket and its lock. These
tests need root, /dev/fuse and loop devices.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator import config
from replicator.config.model import NodeView
from replicator.errors import DeviceError, StateRefused
from replicator.runtime import attach, device_kinds, lock, tools
from replicator.runtime.attach import attach_device, attached_device, detach_device
from replicator.runtime.device_record import DeviceRecord
from replicator.runtime.holders import holders_of
from replicator.runtime.paths import RunFiles

pytestmark = [
    pytest.mark.needs(
        "nbdkit", "nbdfuse", "losetup", "mkfs.ext4", "mount", "umount", "fusermount3"
    ),
    pytest.mark.timeout(120),
]

MIB = 1 << 20
BLKGETSIZE64 = 0x80081272


class Stage:
    """A run directory with a stand-in daemon, and the view that attaches from it."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = str(directory)
        self.files = RunFiles(self.run_dir, "r0")
        # Configurations name devices under /dev/drbd only; this name no other test uses.
        self.node = Path(f"/dev/drbd_test_{os.getpid()}")
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()
        self.view = self.configured("nbdfuse")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.lock_fd = -1
        self.start_daemon()

    def configured(self, how: str) -> NodeView:
        path = Path(self.run_dir, "r0.conf")
        path.write_text(
            f"""resource r0 {{
              replicator {{ attach {how}; }}
              device {self.node} minor 7; disk /tmp/none; meta-disk internal;
              on alice {{ address 127.0.0.1:7001; }} on bob {{ address 127.0.0.1:7002; }}
            }}"""
        )
        return config.load(str(path)).view("r0", "alice")

    def start_daemon(self) -> None:
        self.files.nbd.unlink(missing_ok=True)
        process = subprocess.Popen(["nbdkit", "-f", "-U", str(self.files.nbd), "memory", "64M"])
        self.processes.append(process)
        assert tools.wait_until(self.files.nbd.exists, 10)
        self.lock_fd = lock.acquire(self.files)
        lock.write_pid(self.lock_fd, process.pid)

    def kill_daemon(self) -> None:
        self.processes[-1].kill()
        self.processes[-1].wait()
        os.close(self.lock_fd)
        self.lock_fd = -1

    def attach(self) -> attach.Attached:
        return attach_device(self.view, 0, self.run_dir)

    def detach(self) -> bool:
        return detach_device(self.view, 0, self.run_dir)

    def record(self) -> DeviceRecord:
        record = DeviceRecord.load(self.files.device(0))
        assert record is not None
        return record

    def mount(self) -> None:
        subprocess.run(["mkfs.ext4", "-q", str(self.node)], check=True, timeout=30)
        subprocess.run(["mount", str(self.node), str(self.mount_point)], check=True, timeout=30)

    def umount(self) -> None:
        subprocess.run(["umount", str(self.mount_point)], check=True, timeout=30)

    def assert_nothing_left(self) -> None:
        assert not self.node.exists()
        assert not self.files.device(0).exists()
        assert not self.files.fuse_dir(0).exists()
        assert self.run_dir not in Path("/proc/self/mountinfo").read_text()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.mount_point)], capture_output=True, check=False)
        try:
            self.detach()
        finally:
            self.node.unlink(missing_ok=True)
            for process in self.processes:
                process.kill()
                process.wait()
            if self.lock_fd >= 0:
                os.close(self.lock_fd)


@pytest.fixture
def stage(run_dir: Path) -> Iterator[Stage]:
    made = Stage(run_dir)
    yield made
    made.close()


def size_of(node: Path) -> int:
    with node.open("rb") as device:
        return int.from_bytes(fcntl.ioctl(device, BLKGETSIZE64, bytes(8)), "little")


def test_the_node_is_a_real_block_device_with_the_loops_numbers(stage: Stage) -> None:
    attached = stage.attach()
    assert attached.kind == "nbdfuse"
    found = os.lstat(stage.node)
    assert stat.S_ISBLK(found.st_mode)
    assert found.st_rdev == os.stat(attached.backing).st_rdev
    assert size_of(stage.node) == 64 * MIB
    assert attached_device(stage.view, 0, stage.run_dir) == str(stage.node)
    assert stage.detach() is True
    stage.assert_nothing_left()


def test_the_loop_device_uses_direct_io(stage: Stage) -> None:
    name = os.path.basename(stage.attach().backing)
    assert Path(f"/sys/block/{name}/loop/dio").read_text().strip() == "1"


def test_attaching_twice_is_once_and_detaching_nothing_is_nothing(stage: Stage) -> None:
    assert stage.detach() is False
    first = stage.attach()
    assert stage.attach() == first
    assert stage.detach() is True
    assert stage.detach() is False


def test_a_mounted_device_is_not_taken_away(stage: Stage) -> None:
    stage.attach()
    stage.mount()
    with pytest.raises(StateRefused) as refused:
        stage.detach()
    assert refused.value.code == -12
    assert f"mounted on {stage.mount_point}" in refused.value.message
    assert refused.value.hint == f"umount {stage.mount_point}"
    (stage.mount_point / "file").write_text("still there")
    stage.umount()
    assert stage.detach() is True
    stage.assert_nothing_left()


def test_a_device_that_a_process_has_open_is_not_taken_away(stage: Stage) -> None:
    stage.attach()
    with subprocess.Popen(["sleep", "60"], stdin=stage.node.open("rb")) as reader:
        with pytest.raises(StateRefused, match=rf"open by process {reader.pid} \(sleep\)"):
            stage.detach()
        reader.kill()
    assert stage.detach() is True


def test_a_mount_in_another_namespace_is_noticed(stage: Stage) -> None:
    stage.attach()
    subprocess.run(["mkfs.ext4", "-q", str(stage.node)], check=True, timeout=30)
    script = f"mount {stage.node} {stage.mount_point} && echo mounted && read line"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mounted\n"
        with pytest.raises(StateRefused, match="mounted in another mount namespace"):
            stage.detach()
        other.kill()
    assert tools.wait_until(lambda: not holders_of(stage.record().number, str(stage.node)), 10)
    assert stage.detach() is True


def test_what_is_written_reaches_the_daemon(stage: Stage) -> None:
    stage.attach()
    data = os.urandom(MIB)
    with stage.node.open("r+b") as device:
        device.write(data)
    assert stage.detach() is True
    copied = subprocess.run(
        ["nbdcopy", f"nbd+unix:///0?socket={stage.files.nbd}", "-"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert copied.stdout[:MIB] == data


def test_after_a_kill_of_the_daemon_everything_can_be_taken_away(stage: Stage) -> None:
    stage.attach()
    stage.kill_daemon()
    started = time.monotonic()
    assert stage.detach() is True
    assert time.monotonic() - started < 20
    stage.assert_nothing_left()


def test_a_mount_that_outlived_the_daemon_is_named_and_goes_after_umount(stage: Stage) -> None:
    stage.attach()
    stage.mount()
    stage.kill_daemon()
    assert attach.device_users(stage.view, 0, stage.run_dir) == [f"mounted on {stage.mount_point}"]
    with pytest.raises(StateRefused, match="mounted on"):
        stage.detach()
    stage.umount()
    assert stage.detach() is True
    stage.assert_nothing_left()


def test_a_device_of_a_former_daemon_is_replaced(stage: Stage) -> None:
    stage.attach()
    former = stage.record()
    stage.kill_daemon()
    stage.start_daemon()
    stage.attach()
    assert stage.record().daemon_pid == stage.processes[-1].pid
    assert stage.record().fuse_pid != former.fuse_pid
    with stage.node.open("r+b") as device:
        device.write(bytes(4096))


def test_a_node_that_is_not_ours_is_never_touched(stage: Stage) -> None:
    os.mknod(stage.node, stat.S_IFBLK | 0o600, os.makedev(147, 7))
    with pytest.raises(DeviceError, match="belongs to DRBD's kernel module"):
        stage.attach()
    assert os.stat(stage.node).st_rdev == os.makedev(147, 7)
    stage.node.unlink()
    stage.node.write_text("precious")
    with pytest.raises(DeviceError, match="was not made by replicator"):
        stage.attach()
    assert stage.node.read_text() == "precious"
    stage.node.unlink()
    stage.attach()


def test_a_node_changed_by_somebody_else_is_left_alone(stage: Stage) -> None:
    stage.attach()
    stage.node.unlink()
    stage.node.write_text("another")
    assert stage.detach() is True
    assert stage.node.read_text() == "another"


def test_a_crash_between_losetup_and_its_record_leaves_nothing_behind(stage: Stage) -> None:
    stage.attach()
    record = stage.record()
    stage.node.unlink()
    record.backing, record.major, record.minor = "", -1, -1
    record.save(stage.files.device(0))
    assert stage.detach() is True
    stage.assert_nothing_left()


def test_nbdfuse_that_cannot_connect_is_an_error_and_undone(stage: Stage) -> None:
    stage.kill_daemon()
    stage.files.nbd.unlink(missing_ok=True)
    with pytest.raises(DeviceError, match="nbdfuse"):
        stage.attach()
    stage.assert_nothing_left()


def test_nbdfuse_that_was_killed_can_be_cleaned_up(stage: Stage) -> None:
    stage.attach()
    os.kill(stage.record().fuse_pid, signal.SIGKILL)
    assert stage.detach() is True
    stage.assert_nothing_left()


def test_none_and_an_impossible_way_are_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.view = stage.configured("none")
    assert stage.attach() == attach.Attached("none", reason="the configuration says `attach none`")
    monkeypatch.setattr(device_kinds, "has_nbd", lambda: False)
    stage.view = stage.configured("nbd-client")
    with pytest.raises(DeviceError, match="the kernel has no nbd"):
        stage.attach()
    monkeypatch.setattr(device_kinds, "has_fuse_and_loop", lambda: False)
    stage.view = stage.configured("nbdfuse")
    with pytest.raises(DeviceError, match="needs /dev/fuse"):
        stage.attach()
    stage.view = stage.configured("auto")
    assert stage.attach().reason == "the kernel offers neither nbd nor FUSE and loop devices"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert stage.attach().reason == "only root can attach block devices"


def test_nbd_client_is_told_socket_device_and_export(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the kernel's nbd only the conversation with the tool can be tested."""
    calls: list[list[str]] = []
    monkeypatch.setattr(device_kinds, "run_tool", lambda words: calls.append(words) or "")
    monkeypatch.setattr(device_kinds, "_free_nbd", lambda: "/dev/nbd3")
    monkeypatch.setattr(device_kinds, "_sectors", lambda device: 2048)
    record = DeviceRecord("nbd-client", str(stage.node), 1)
    path = stage.files.device(0)
    device_kinds.attach_nbd(record, path, stage.files.nbd, "0")
    assert calls == [
        ["nbd-client", "-unix", str(stage.files.nbd), "/dev/nbd3", "-name", "0"]
        + ["-block-size", "512"]
    ]
    assert DeviceRecord.load(path) == record
    assert record.backing == "/dev/nbd3"
    path.unlink()


def test_a_tool_that_hangs_or_fails_is_an_error_in_time(
    program: Callable[[str], str],
) -> None:
    started = time.monotonic()
    with pytest.raises(DeviceError, match="sleep 60 did not finish within 0.2 s"):
        tools.run_tool(["sleep", "60"], 0.2)
    assert time.monotonic() - started < 5
    with pytest.raises(DeviceError, match="losetup --detach /dev/nothing failed"):
        tools.run_tool(["losetup", "--detach", "/dev/nothing"])
    with pytest.raises(DeviceError, match="no-such-tool is not installed"):
        tools.run_tool(["no-such-tool"])
