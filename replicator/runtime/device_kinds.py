"""The two ways to get a kernel block device from an NBD export: nbd-client, and nbdfuse with loop.

Each way is a pair of functions, attach and detach; both keep the DeviceRecord current on disk and
can be repeated. Detaching presumes that nobody holds the device. Every wait is bounded.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from replicator.errors import DeviceError
from replicator.runtime.device_record import DeviceRecord
from replicator.runtime.tools import TOOL_SECONDS, find_tool, process_start, run_tool, wait_until

NBD_DEVICES_MAX = 256
LOOP_BUSY = "is still in use"
FUSE_SECONDS = 10.0
END_SECONDS = 5.0


def has_nbd() -> bool:
    """True if the kernel has nbd, loaded now if need be, and nbd-client is installed."""
    if find_tool("nbd-client") is None:
        return False
    if not os.path.isdir("/sys/module/nbd") and find_tool("modprobe") is not None:
        try:
            run_tool(["modprobe", "nbd"])
        except DeviceError:
            return False
    return os.path.exists("/dev/nbd0")


def has_fuse_and_loop() -> bool:
    """True if nbdfuse, losetup and the kernel's parts for them are there and usable for us."""
    devices = ("/dev/fuse", "/dev/loop-control")
    return all(os.access(device, os.R_OK | os.W_OK) for device in devices) and all(
        find_tool(tool) is not None for tool in ("nbdfuse", "losetup")
    )


# nbd-client


def attach_nbd(record: DeviceRecord, path: Path, socket: Path, export: str) -> None:
    """Connect a free /dev/nbdN. Raises DeviceError."""
    device = _free_nbd()
    record.backing = device
    record.save(path)
    run_tool(["nbd-client", "-unix", str(socket), device, "-name", export, "-block-size", "512"])
    if not wait_until(lambda: _sectors(device) > 0, TOOL_SECONDS):
        run_tool(["nbd-client", "-d", device])
        raise DeviceError(f"{device} was connected but has no size")


def _free_nbd() -> str:
    for index in range(NBD_DEVICES_MAX):
        device = f"/dev/nbd{index}"
        if not os.path.exists(device):
            break
        if not os.path.exists(f"/sys/block/nbd{index}/pid"):
            return device
    raise DeviceError(
        "all /dev/nbd* devices are in use", hint="More of them: modprobe nbd nbds_max=64"
    )


def detach_nbd(record: DeviceRecord) -> None:
    index = os.path.basename(record.backing)
    if not record.backing or not os.path.exists(f"/sys/block/{index}/pid"):
        return
    run_tool(["nbd-client", "-d", record.backing])
    if not wait_until(lambda: not os.path.exists(f"/sys/block/{index}/pid"), END_SECONDS):
        raise DeviceError(f"{record.backing} {LOOP_BUSY}")


# nbdfuse and loop


def attach_fuse(record: DeviceRecord, path: Path, uri: str, directory: Path, log: Path) -> None:
    """Show the export as a file by nbdfuse, and that as a block device by a loop device with direct
    I/O: a cached one would show old data after the peer has written. Raises DeviceError."""
    file = directory / "nbd"
    record.fuse_dir = str(directory)
    record.save(path)
    directory.mkdir(mode=0o700, exist_ok=True)
    process = _start_nbdfuse(file, uri, log)
    record.fuse_pid = process.pid
    record.fuse_start = process_start(process.pid) or 0
    record.save(path)
    if not wait_until(lambda: _size(file) > 0 or process.poll() is not None, FUSE_SECONDS):
        raise DeviceError(f"nbdfuse did not show {file} within {FUSE_SECONDS:g} s")
    if process.poll() is not None:
        raise DeviceError(f"nbdfuse ended with exit status {process.returncode}", hint=f"See {log}")
    record.backing = run_tool(["losetup", "--find", "--show", "--direct-io=on", str(file)]).strip()
    record.save(path)


def detach_fuse(record: DeviceRecord) -> None:
    """Loop device, FUSE mount, nbdfuse, directory: whatever of them exists. Raises DeviceError."""
    for loop in _loops_on(record):
        run_tool(["losetup", "--detach", loop])
        # losetup succeeds at once, the kernel detaches when the last user is gone.
        if not _loop_ends(loop):
            raise DeviceError(f"{loop} {LOOP_BUSY}")
    if record.fuse_dir and _is_mounted(record.fuse_dir):
        run_tool(
            ["umount", record.fuse_dir]
            if os.geteuid() == 0
            else ["fusermount3", "-u", record.fuse_dir]
        )
    _end_process(record.fuse_pid, record.fuse_start)
    if record.fuse_dir and os.path.isdir(record.fuse_dir):
        os.rmdir(record.fuse_dir)


def _start_nbdfuse(file: Path, uri: str, log: Path) -> subprocess.Popen[bytes]:
    tool = find_tool("nbdfuse")
    if tool is None:
        raise DeviceError("nbdfuse is not installed", hint="apt-get install libnbd-bin fuse3")
    with log.open("ab") as output:
        return subprocess.Popen(
            [tool, str(file), uri],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )


def _loops_on(record: DeviceRecord) -> list[str]:
    """Loop devices on our file: the recorded one, and one made just before a crash."""
    if not record.fuse_dir:
        return []
    wanted = f"{record.fuse_dir}/nbd"
    return [
        f"/dev/{name}"
        for name in sorted(os.listdir("/sys/block"))
        if name.startswith("loop") and _loop_file(f"/dev/{name}") == wanted
    ]


def _loop_ends(loop: str) -> bool:
    return wait_until(lambda: not _loop_file(loop), END_SECONDS)


def _loop_file(loop: str) -> str:
    """The file behind a loop device, "" if it is free."""
    try:
        text = Path(f"/sys/block/{os.path.basename(loop)}/loop/backing_file").read_text().strip()
    except OSError:
        return ""
    return text.removesuffix(" (deleted)")


def _is_mounted(directory: str) -> bool:
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    return any(line.split()[4] == directory for line in lines)


def _end_process(pid: int, start: int) -> None:
    """Wait for nbdfuse to end by itself, then make it. Only if it is still the same process."""

    def gone() -> bool:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass  # started by another command, long ended
        return process_start(pid) != start

    if not pid or wait_until(gone, END_SECONDS):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process_start(pid) == start:
            os.kill(pid, number)
        if wait_until(gone, END_SECONDS):
            return
    raise DeviceError(f"nbdfuse (pid {pid}) does not end")


def _sectors(device: str) -> int:
    try:
        return int(Path(f"/sys/block/{os.path.basename(device)}/size").read_text())
    except (OSError, ValueError):
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
