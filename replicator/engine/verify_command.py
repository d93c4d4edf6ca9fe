"""verify: begin an online verify, agreed with the peer.

Rules: refused unless both copies are UpToDate, connected, and nothing else is running; the reasons
have DRBD's codes. The command is done when the comparison has begun.
What this file must not know: how blocks are compared (`verify`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import CONN_MASK, CONN_SHIFT, Conn
from replicator.engine.cluster import SUCCESS
from replicator.engine.refusals import refusal, soon
from replicator.engine.verify import BLOCK_SECTORS, objection
from replicator.errors import DaemonError, ReplicatorError, UsageError

if TYPE_CHECKING:
    from replicator.engine.volume import AdminDone, Volume


def verify(volume: Volume, start: int | None, stop: int | None, done: AdminDone) -> None:
    """start, stop: sectors; None: where the last run was cut off, else the beginning; the end.

    Errors: UsageError for sectors outside the volume, StateRefused or NoUsableDataError with DRBD's
    code, DaemonError if the connection ends before the peer has answered.
    """
    resource = volume.resource

    def answered(code: int | None) -> None:
        if code is None:
            done(DaemonError(f"{volume.name}: the connection was lost before the peer answered"))
            return
        code = code if code < SUCCESS else objection(volume)
        if code:
            done(refusal(volume, code))
            return
        first, end = _range(volume, start, stop)
        volume.change(conn=Conn.VerifyS)
        volume.verify.begin(first, end)
        done(None)

    code = objection(volume)
    error = refusal(volume, code) if code else _outside(volume, start, stop)
    if error is not None:
        soon(resource, done, error)
        return
    mask, val = CONN_MASK << CONN_SHIFT, Conn.VerifyS << CONN_SHIFT
    resource.cluster.ask(volume, mask, val, answered)


def _range(volume: Volume, start: int | None, stop: int | None) -> tuple[int, int]:
    first = volume.verify.resume_at if start is None else start
    first -= first % BLOCK_SECTORS
    end = volume.size_sectors if stop is None else min(stop, volume.size_sectors)
    return (first if first < end or start is not None else 0), end


def _outside(volume: Volume, start: int | None, stop: int | None) -> ReplicatorError | None:
    first, end = _range(volume, start, stop)
    if 0 <= first < end:
        return None
    return UsageError(
        f"{volume.name}: verify from sector {first} to {end}: expected a start before the stop, "
        f"both within the volume's {volume.size_sectors} sectors"
    )
