"""What a process under a mounted file system asks of the kernel, where it has the rights.

It must not wait for memory that only its own writes can free: lock its memory, be treated as an
I/O flusher, be spared by the OOM killer, keep the memory it has had. Each step is tried and its
failure only noted. Call from the main thread before other threads exist: threads inherit the
flusher flag.
"""

from __future__ import annotations

import ctypes
import os
import resource

PR_SET_PDEATHSIG = 1
PR_SET_IO_FLUSHER = 57
MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4
"""Lock pages when they are first touched: untouched thread stacks cost nothing."""

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
KEPT_MEMORY = 24 << 20
"""Bytes of freed memory that are not given back. With the C library's own limits every large request
would get fresh pages from the kernel and return them: a page fault for each 4 KiB that it carries.
More than a resync or eight large writes have under way is not worth keeping."""
LARGEST_KEPT = 32 << 20
"""Bytes; the library takes no higher limit for what it maps separately."""
HEAP_STEP = 1 << 20

CAP_IPC_LOCK = 14
OOM_NEVER = -1000


def protect_process() -> list[str]:
    """Do all that is permitted; returns, for the log, what was not."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = []
    # nbdkit, given its sockets by LISTEN_FDS, asks to be ended with whoever started it: that is the
    # command `up`, which is gone in a moment.
    libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        failed.append(f"I/O flusher: {os.strerror(ctypes.get_errno())}")
    if not _may_lock_everything():
        failed.append("memory lock: not permitted (RLIMIT_MEMLOCK)")
    elif libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        failed.append(f"memory lock: {os.strerror(ctypes.get_errno())}")
    _keep_memory(libc)
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(OOM_NEVER))
    except OSError as error:
        failed.append(f"OOM protection: {error.strerror}")
    return failed


def _keep_memory(libc: ctypes.CDLL) -> None:
    """A matter of speed; a C library that has no such call does without."""
    if hasattr(libc, "mallopt"):
        # The other limits hold for the first arena only: let all threads use that.
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TOP_PAD, HEAP_STEP)


def _may_lock_everything() -> bool:
    """With a finite limit MCL_FUTURE would make later allocations fail: then better no lock."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> CAP_IPC_LOCK & 1)
    except OSError:
        pass
    return False
