"""When the administrator's handlers of one volume are called, and what their exit status decides.

Calls that need no more than one line are where their events are: split brains in `exchange`, fencing
in `fencing`, a failed disk in `volume`, the end of a resync in `resync`.
What this file must not know: how a handler is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.states import Conn, StateWord
from replicator.engine.states import without_data

if TYPE_CHECKING:
    from replicator.engine.volume import Volume

BEFORE_TARGET, BEFORE_SOURCE = "before-resync-target", "before-resync-source"

IGNORED = {BEFORE_TARGET: frozenset({0}), BEFORE_SOURCE: frozenset({0, 3})}
"""Exit statuses with which the resync goes on; any other keeps it from beginning."""


def before_resync(volume: Volume, event: str, go: Callable[[], None]) -> None:
    """Ask the handler whether the resync may begin: `go` if it may, else StandAlone. Nothing, if the
    connection ends meanwhile."""
    link = volume.resource.replication.link
    assert link is not None

    def ended(status: int) -> None:
        if link.closed:
            return
        if status in IGNORED[event]:
            go()
            return
        reason = f"{volume.name}: {event} ended with exit status {status}, so no resync"
        link.fail(Conn.Disconnecting, reason, stand_alone=True)

    volume.resource.handlers.call(event, volume.number, ended)


def state_changed(volume: Volume, old: StateWord, new: StateWord) -> None:
    """A Primary has lost, or never had, all good data."""
    if without_data(new) and not without_data(old):
        volume.resource.handlers.call("pri-on-incon-degr", volume.number, None)
