"""The error for a state change that the rules refuse, with the next safe command where there is one.

What this file must not know: who asked for the change, or how errors are printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.states import Conn, Disk
from replicator.engine.states import REFUSALS
from replicator.errors import NoUsableDataError, ReplicatorError, StateRefused

if TYPE_CHECKING:
    from replicator.engine.resource import Resource
    from replicator.engine.volume import AdminDone, Volume

NEED_UP_TO_DATE, TWO_PRIMARIES, IN_USE, TRANSIENT = -2, -1, -12, -18
CANNOT_BE_OUTDATED, PEER_NOT_OUTDATED = -6, -7
NO_LOCAL_DISK, NO_REMOTE_DISK = -4, -5
RUNS_ALREADY, NO_VERIFY_ALG, NOT_CONNECTED = -8, -14, -15


def refusal(volume: Volume, code: int) -> ReplicatorError:
    """The error for a state-change code, with the next safe command where there is one."""
    name = volume.resource.settings.name
    text = f"{volume.name}: State change failed: ({code}) {REFUSALS.get(code, 'refused')}"
    state = volume.state
    if code == NEED_UP_TO_DATE:
        found = f"this disk is {state.disk.name}, the peer's {state.pdsk.name}"
        if state.disk <= Disk.Failed:
            other = f"attach the disk: replicator attach {volume.name}"
        else:
            other = f"if this copy is to count as the good one: replicator primary --force {name}"
        if state.disk is Disk.Consistent:
            found += "; fence-peer did not prove that it has nothing newer"
        return NoUsableDataError(
            f"{text} ({found})",
            hint=f"connect to a peer that has UpToDate data; or, {other}",
        )
    hints = {
        TWO_PRIMARIES: f"on the node that is Primary now: replicator secondary {name}",
        PEER_NOT_OUTDATED: "fence-peer could not fence the peer, see the log; if the peer is "
        f"certainly down: replicator primary --force {name}",
        IN_USE: "unmount the file system or stop what uses the device, then try again",
        TRANSIENT: "try again in a moment",
        RUNS_ALREADY: f"see how far it is: replicator status {name}",
        NO_VERIFY_ALG: "set verify-alg in the net section of both nodes, then on both: "
        f"replicator down {name}; replicator up {name}",
        NOT_CONNECTED: f"replicator connect {name}; replicator wait-connect {name}"
        if state.conn is Conn.StandAlone
        else f"see what it waits for: replicator status {name}",
    }
    return StateRefused(text, code=code, hint=hints.get(code, ""))


def soon(resource: Resource, done: AdminDone, error: ReplicatorError | None = None) -> None:
    resource.soon(lambda: done(error))
