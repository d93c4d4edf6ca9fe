"""What nbdkit knows about the client that is being served, and does not tell Python plugins.

nbdkit exports these functions to plugins written in C; its process is ours, so they can be called.
Rules: only from a callback of a connection, where nbdkit has one to speak of.
"""

from __future__ import annotations

import ctypes
import socket

_nbdkit = ctypes.CDLL(None)
ADDRESS_BYTES = 128
"""Of a sockaddr_storage; its first two are the family, in the machine's byte order."""


def came_in_clear_by_network() -> bool:
    """Whether the client uses no TLS, and came by something else than a Unix socket."""
    return _nbdkit.nbdkit_is_tls() != 1 and _family() != socket.AF_UNIX


def _family() -> int:
    """The address family; -1 if nbdkit does not know."""
    address = ctypes.create_string_buffer(ADDRESS_BYTES)
    length = ctypes.c_uint32(ADDRESS_BYTES)
    if _nbdkit.nbdkit_peer_name(address, ctypes.byref(length)) == -1 or length.value < 2:
        return -1
    return ctypes.c_uint16.from_buffer(address).value
