"""Files that tell the state to whoever only reads files: RESOURCE.status.json and `status`.

Each daemon writes its own snapshot as JSON; whoever writes then makes the common text anew from the
snapshots of all resources whose daemon lives. Every file appears by rename, so that readers never
see half of one. Blocking calls, for a thread beside the loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from replicator.engine.snapshot import ResourceSnapshot
from replicator.runtime import lock, paths
from replicator.runtime.paths import RunFiles
from replicator.status.proc import proc_text

SUFFIX = ".status.json"


def write_snapshot(run_dir: str, snapshot: ResourceSnapshot) -> None:
    """Write this resource's JSON and the node's text. Raises OSError."""
    text = json.dumps(snapshot.to_dict(), indent=1) + "\n"
    replace_file(RunFiles(run_dir, snapshot.name).status, text)
    write_node_text(run_dir)


def last_snapshot(run_dir: str, resource: str) -> ResourceSnapshot | None:
    """What the resource's daemon, alive or not, wrote last; None if nothing readable is there."""
    return _read(RunFiles(run_dir, resource).status)


def clean_run_dir(run_dir: str, resource: str) -> None:
    """Remove what a daemon that is gone has left behind: sockets, pid file, status. The log stays.
    Does nothing while a daemon lives. Raises OSError, DaemonError."""
    files = RunFiles(run_dir, resource)
    left = (files.control, files.nbd, files.status, files.pid)
    if not any(os.path.lexists(path) for path in left):
        return
    held = lock.try_acquire(files)
    if held is None:
        return
    try:
        for path in left:
            path.unlink(missing_ok=True)
    finally:
        os.close(held)
    write_node_text(run_dir)


def write_node_text(run_dir: str) -> None:
    """Make RUN_DIR/status anew from the snapshots of all living daemons. Raises OSError."""
    with _exclusive(paths.status_lock(run_dir)):
        replace_file(paths.status_text(run_dir), proc_text(living_snapshots(run_dir)))


def living_snapshots(run_dir: str) -> list[ResourceSnapshot]:
    """The last written snapshots of all resources here whose daemon lives, by name."""
    found = []
    for path in sorted(Path(run_dir).glob(f"*{SUFFIX}")):
        resource = path.name.removesuffix(SUFFIX)
        if lock.is_free(RunFiles(run_dir, resource).pid):
            continue
        snapshot = _read(path)
        if snapshot is not None:
            found.append(snapshot)
    return found


def replace_file(path: Path, text: str) -> None:
    """Put a file in place as a whole, readable for all. Raises OSError."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            os.fchmod(fd, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: Path) -> ResourceSnapshot | None:
    try:
        return ResourceSnapshot.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        # Gone meanwhile, or written by another version of the program.
        return None


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
