"""Keeps Python's thread state alive in nbdkit's worker threads, and frees those of dead threads.

nbdkit's Python glue makes a thread state for each callback and destroys it after. A worker that has
taken one more reference (PyGILState_Ensure) serves two to three times as many requests. When such a
thread ends nobody gives the reference back, so the states of threads that are gone are freed when
connections open and close.
"""

from __future__ import annotations

import ctypes
import os
import threading

_api = ctypes.pythonapi
_api.PyGILState_Ensure.restype = ctypes.c_int
_api.PyThreadState_Get.restype = ctypes.c_void_p
_api.PyThreadState_Clear.argtypes = [ctypes.c_void_p]
_api.PyThreadState_Delete.argtypes = [ctypes.c_void_p]

_local = threading.local()
_kept: dict[int, int] = {}
"""Native thread id -> its kept thread state."""


def keep() -> None:
    """Keep the calling thread's state. Cheap when it is kept already."""
    if getattr(_local, "kept", False):
        return
    thread = threading.get_native_id()
    _free(thread)
    _api.PyGILState_Ensure()
    _local.kept = True
    _kept[thread] = _api.PyThreadState_Get()


def sweep() -> int:
    """Free the states of threads that have ended; returns how many are still kept."""
    for thread in list(_kept):
        if not os.path.exists(f"/proc/self/task/{thread}"):
            _free(thread)
    return len(_kept)


def _free(thread: int) -> None:
    """The number may be in use again by a new thread: what is kept under it belongs to a dead one."""
    state = _kept.pop(thread, None)
    if state is not None:
        _api.PyThreadState_Clear(state)
        _api.PyThreadState_Delete(state)
