"""The transmission phase, server side: from the bytes that have arrived to requests that may be
carried out, or only answered with an error.

Rules:
1. A request is admitted while its cost fits the caller's budget; what is not admitted stays in the
   Inbox, unread as far as that is possible. Memory for a payload is taken on admission.
2. Each request is checked against the protocol and the export's size. One that fails the check is
   still handed over, with the errno to answer; its payload is skipped.
3. What breaks the framing ends the connection, with the reason in `ended`; nothing a client sends
   raises an exception.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from nbd_plugin.native.inbox import LARGE, Inbox
from nbd_plugin.native.quick import plain_requests
from nbd_plugin.native.wire import (
    CMD_BLOCK_STATUS,
    CMD_DISC,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    FLAG_DF,
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    FLAG_REQ_ONE,
    MAXIMUM_BLOCK,
    MINIMUM_BLOCK,
    REQUEST,
    REQUEST_MAGIC,
)

REQUEST_COST: Final = 4096
"""What a request costs of the budget in addition to its payload, in bytes."""

AT_ONCE: Final = 16
"""Requests taken together. What has come beyond that is for the loop's next turn: so the peer and the
client get their share of a long burst while the rest of it is still being parsed."""

HEADER: Final = REQUEST.size

COST_MAX: Final = REQUEST_COST + MAXIMUM_BLOCK
"""The dearest request: a budget must be able to reach it."""

_FLAGS: Final = {
    CMD_READ: FLAG_FUA,
    CMD_WRITE: FLAG_FUA,
    CMD_FLUSH: FLAG_FUA,
    CMD_TRIM: FLAG_FUA,
    CMD_WRITE_ZEROES: FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: FLAG_FUA | FLAG_REQ_ONE,
}
"""What each command may carry. FUA means nothing for some, but has to be accepted everywhere."""

_WRITING: Final = frozenset({CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES})
_GROWING: Final = frozenset({CMD_WRITE, CMD_WRITE_ZEROES})
"""Commands that fail with ENOSPC beyond the end; the others with EINVAL."""


class Request(NamedTuple):
    """One request. error: 0, or the errno to answer instead of carrying it out."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    cost: int
    data: bytes | memoryview = b""
    error: int = 0


class Transmission:
    """size: bytes of the export. structured, allocation: what the handshake has agreed.

    Call take() whenever bytes have arrived or budget has come free.
    """

    def __init__(
        self,
        inbox: Inbox,
        size: int,
        *,
        structured: bool = False,
        allocation: bool = False,
        read_only: bool = False,
    ) -> None:
        self.ended: str | None = None
        """"" after DISC, else what the client did wrong."""
        self.waiting = False
        """A request is here that the budget was too small for."""
        self.more = False
        """More may be here than was taken together."""
        self._inbox = inbox
        self._size = size
        self._read_only = read_only
        self._flags = dict(_FLAGS)
        if structured:
            self._flags[CMD_READ] |= FLAG_DF
        if not allocation:
            del self._flags[CMD_BLOCK_STATUS]
        self._skip = 0
        self._pending: Request | None = None

    def take(self, budget: int) -> list[Request]:
        """Complete requests whose costs fit into `budget` together, in the order they came: AT_ONCE of
        them, or all if the Inbox has to be emptied."""
        inbox = self._inbox
        requests: list[Request] = []
        self.waiting = self.more = False
        if self._pending is not None and not self._finish_payload(requests):
            return requests
        if requests:
            budget -= sum(request.cost for request in requests)
        elif not (self._skip or self._read_only or self.ended is not None):
            requests, inbox.start, budget = plain_requests(
                inbox.buffer, inbox.start, inbox.end, self._size, budget, AT_ONCE, Request
            )
        while self.ended is None:
            if len(requests) >= AT_ONCE and inbox.has_room:
                self.more = True
                break
            if self._skip:
                self._skip -= inbox.skip(self._skip)
            start = inbox.start
            here = inbox.end - start
            if here < HEADER:
                break
            magic, flags, command, cookie, offset, length = REQUEST.unpack_from(inbox.buffer, start)
            if magic != REQUEST_MAGIC:
                self.ended = f"a request begins with {magic:#010x}, expected {REQUEST_MAGIC:#010x}"
                break
            if command == CMD_DISC:
                self.ended = ""
                break
            error = self._check(command, flags, offset, length)
            data_moves = not error and command <= CMD_WRITE
            cost = REQUEST_COST + length if data_moves else REQUEST_COST
            if cost > budget:
                self.waiting = True
                break
            data = b""
            if command == CMD_WRITE:
                if error:
                    self._skip = length
                elif here >= HEADER + length:
                    data = inbox.take(start + HEADER, length)
                    inbox.start = start + length
                elif length <= LARGE:
                    break
                else:
                    inbox.start = start + HEADER
                    inbox.begin_payload(length)
                    self._pending = Request(command, flags, cookie, offset, length, cost)
                    break
            inbox.start += HEADER
            budget -= cost
            requests.append(Request(command, flags, cookie, offset, length, cost, data, error))
        return requests

    def _finish_payload(self, requests: list[Request]) -> bool:
        """The write whose payload is on its way, if it is complete now."""
        data = self._inbox.take_payload()
        if data is None or self._pending is None:
            return False
        requests.append(self._pending._replace(data=data))
        self._pending = None
        return True

    def _check(self, command: int, flags: int, offset: int, length: int) -> int:
        """0, or the errno of a request that must not be carried out."""
        allowed = self._flags.get(command)
        if allowed is None or flags & ~allowed:
            return errno.EINVAL
        if command == CMD_FLUSH:
            return errno.EINVAL if offset or length else 0
        if self._read_only and command in _WRITING:
            return errno.EPERM
        if flags & FLAG_FAST_ZERO:
            return errno.ENOTSUP
        if not length or (offset | length) % MINIMUM_BLOCK:
            return errno.EINVAL
        if command <= CMD_WRITE and length > MAXIMUM_BLOCK:
            return errno.EINVAL
        if offset + length > self._size:
            return errno.ENOSPC if command in _GROWING else errno.EINVAL
        return 0
