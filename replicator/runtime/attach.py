"""The block device node of a volume, /dev/drbdN: made when the volume becomes usable, taken away after.

The node is a real one with the numbers of the kernel device behind it (nbd or loop), not a symlink:
mount resolves symlinks, and then neither `df` nor the init scripts know the device by its name. It
exists only while the node is Primary.
Rules: a node that we did not make is never touched; a device that is mounted or open is never taken
away; everything made is in the DeviceRecord first.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from replicator.config.model import NodeView, VolumeView
from replicator.errors import ConfigError, DeviceError, ReplicatorError, StateRefused
from replicator.runtime import device_kinds, lock
from replicator.runtime.device_record import DeviceRecord
from replicator.runtime.holders import holders_of
from replicator.runtime.paths import RunFiles
from replicator.runtime.tools import run_tool

NODE_MODE = stat.S_IFBLK | 0o660
DRBD_MAJOR = 147
FLUSH_SECONDS = 30.0

NBD_CLIENT = "nbd-client"
NBDFUSE = "nbdfuse"
NONE = "none"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Attached:
    """What attach_device has done. kind "none": no kernel device, `reason` says why; then the NBD
    URI is the only way to the volume."""

    kind: str
    node: str = ""
    backing: str = ""
    reason: str = ""


def attach_device(view: NodeView, volume: int, run_dir: str) -> Attached:
    """Make the volume's device node. Its daemon must be up and Primary. Nothing happens if it is
    there already. Raises DeviceError when the configured way does not work here (with `auto` only
    if one that should have worked failed), StateRefused when an old device is still held open."""
    files, chosen = RunFiles(run_dir, view.resource), _volume(view, volume)
    pid = lock.daemon_pid(run_dir, view.resource) or 0
    record = DeviceRecord.load(files.device(volume))
    if record is not None:
        if record.daemon_pid == pid and _node_is(record):
            return Attached(record.kind, record.node, record.backing)
        detach_device(view, volume, run_dir)
    kind, reason = _choose(view)
    if kind == NONE:
        return Attached(NONE, reason=reason)
    _refuse_foreign_node(chosen.device)
    record = DeviceRecord(kind, chosen.device, pid)
    try:
        _attach(record, files, volume)
        _make_node(record, files.device(volume))
    except (ReplicatorError, OSError) as error:
        _undo(record, files.device(volume))
        if isinstance(error, ReplicatorError):
            raise
        raise DeviceError(
            f"{view.resource}/{volume}: cannot make {chosen.device}: {error}"
        ) from None
    return Attached(kind, record.node, record.backing)


def detach_device(view: NodeView, volume: int, run_dir: str) -> bool:
    """Take the volume's device node and all behind it away; False if there is none.

    Works without a daemon too. Raises StateRefused (-12) naming who holds it open; DeviceError if
    the kernel or a tool does not let go.
    """
    path = RunFiles(run_dir, view.resource).device(volume)
    record = DeviceRecord.load(path)
    if record is None:
        return False
    label = f"{view.resource}/{volume}"
    held = holders_of(record.number, record.backing) if record.backing else []
    if held:
        raise _held_open(label, record, held)
    _flush(record, lock.daemon_pid(run_dir, view.resource) or 0)
    try:
        _detach(record)
    except DeviceError as error:
        if device_kinds.LOOP_BUSY in error.message:
            held = holders_of(record.number, record.backing) or [error.message]
            raise _held_open(label, record, held) from None
        raise
    _remove_node(record)
    path.unlink(missing_ok=True)
    return True


def attached_device(view: NodeView, volume: int, run_dir: str) -> str | None:
    """The device node of the volume if we made one and it is still there."""
    record = DeviceRecord.load(RunFiles(run_dir, view.resource).device(volume))
    return record.node if record is not None and _node_is(record) else None


def device_users(view: NodeView, volume: int, run_dir: str) -> list[str]:
    """Who has the volume's kernel device open, also when the daemon is dead; [] if nobody."""
    record = DeviceRecord.load(RunFiles(run_dir, view.resource).device(volume))
    if record is None or not record.backing:
        return []
    return holders_of(record.number, record.backing)


def _volume(view: NodeView, number: int) -> VolumeView:
    for volume in view.volumes:
        if volume.number == number:
            return volume
    raise ConfigError(f"{view.resource} has no volume {number}")


def _choose(view: NodeView) -> tuple[str, str]:
    """(kind, reason for "none")."""
    wanted = view.replicator.attach
    if wanted == NONE:
        return NONE, "the configuration says `attach none`"
    if wanted == NBD_CLIENT:
        if not device_kinds.has_nbd():
            raise DeviceError(
                "attach nbd-client: the kernel has no nbd, or nbd-client is not installed",
                hint="Set `attach auto;` in the section replicator, or: modprobe nbd",
            )
        return NBD_CLIENT, ""
    if wanted == NBDFUSE:
        if not device_kinds.has_fuse_and_loop():
            raise DeviceError(
                "attach nbdfuse: needs /dev/fuse, /dev/loop-control, nbdfuse and losetup",
                hint="Set `attach auto;` in the section replicator, or run as root with fuse3.",
            )
        return NBDFUSE, ""
    if os.geteuid() != 0:
        return NONE, "only root can attach block devices"
    if device_kinds.has_nbd():
        return NBD_CLIENT, ""
    if device_kinds.has_fuse_and_loop():
        return NBDFUSE, ""
    return NONE, "the kernel offers neither nbd nor FUSE and loop devices"


def _attach(record: DeviceRecord, files: RunFiles, volume: int) -> None:
    path = files.device(volume)
    if record.kind == NBD_CLIENT:
        device_kinds.attach_nbd(record, path, files.nbd, str(volume))
    else:
        uri = f"nbd+unix:///{volume}?socket={files.nbd}"
        device_kinds.attach_fuse(record, path, uri, files.fuse_dir(volume), files.log)
    found = os.stat(record.backing)
    record.major, record.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    record.save(path)


def _detach(record: DeviceRecord) -> None:
    if record.kind == NBD_CLIENT:
        device_kinds.detach_nbd(record)
    else:
        device_kinds.detach_fuse(record)


def _undo(record: DeviceRecord, path: Path) -> None:
    """After a failed attach. What cannot be undone stays recorded, for the next detach."""
    try:
        _detach(record)
        _remove_node(record)
        path.unlink(missing_ok=True)
    except (DeviceError, OSError):
        pass


def _flush(record: DeviceRecord, daemon: int) -> None:
    """Write out what the kernel caches for the device, while there is a daemon to take it."""
    if record.backing and daemon and daemon == record.daemon_pid:
        run_tool(["blockdev", "--flushbufs", record.backing], FLUSH_SECONDS)


def _refuse_foreign_node(node: str) -> None:
    """A node at our place that no record names: a kernel DRBD's, or an administrator's."""
    try:
        found = os.lstat(node)
    except FileNotFoundError:
        return
    if stat.S_ISBLK(found.st_mode) and os.major(found.st_rdev) == DRBD_MAJOR:
        raise DeviceError(
            f"{node} belongs to DRBD's kernel module",
            hint="Use another `device` here, or take the resource down there.",
        )
    raise DeviceError(
        f"{node} exists and was not made by replicator",
        hint=f"If nothing needs it: rm {node}",
    )


def _make_node(record: DeviceRecord, path: Path) -> None:
    os.makedirs(os.path.dirname(record.node), exist_ok=True)
    os.mknod(record.node, NODE_MODE, os.makedev(record.major, record.minor))
    os.chmod(record.node, stat.S_IMODE(NODE_MODE))
    owner = os.stat(record.backing)
    os.chown(record.node, owner.st_uid, owner.st_gid)


def _node_is(record: DeviceRecord) -> bool:
    """True if the node exists with the numbers that we gave it."""
    try:
        found = os.lstat(record.node)
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and record.number == (
        os.major(found.st_rdev),
        os.minor(found.st_rdev),
    )


def _remove_node(record: DeviceRecord) -> None:
    if _node_is(record):
        os.unlink(record.node)


def _held_open(label: str, record: DeviceRecord, held: list[str]) -> StateRefused:
    place = next((one.removeprefix("mounted on ") for one in held if "mounted on" in one), "")
    return StateRefused(
        f"{label}: Device is held open by someone: {record.node}: {'; '.join(held)}",
        code=-12,
        hint=f"umount {place}" if place else "Close it first.",
    )
