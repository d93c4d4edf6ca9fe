"""The usual requests and replies of the transmission phase, many at a time.

Its compiled twin is written by hand, in quick.c (replicator/compiled.py). There plain_requests() takes
what it can; here it takes none, and all are left to Transmission.take(), which knows every case.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nbd_plugin.native.transmission import Request

_SIMPLE_REPLY: Final = Struct(">IIQ")
SIMPLE_REPLY_MAGIC: Final = 0x67446698


def plain_requests(
    buffer: bytearray, start: int, end: int, size: int, budget: int, most: int, kind: type[Request]
) -> tuple[list[Request], int, int]:
    """Of bytes [start, end) of `buffer`, up to `most` of the READs and WRITEs at their beginning that
    are all here, fit into the budget, and have no flag but FUA and no fault in an export of `size`
    bytes. Returns them, where they end, and what is left of the budget."""
    return [], start, budget


def simple_reply(cookie: int, error: int) -> bytes:
    """error: one of the protocol's. Raises struct.error."""
    return _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
