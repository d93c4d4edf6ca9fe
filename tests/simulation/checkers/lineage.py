"""Whose data is whose: what each copy contains, and which verdicts of a handshake that allows.

A copy that takes writes which the other does not get is in an era of its own. Who is in one is seen
from outside: who is Primary, which disks are good, who is connected to whom. A completed resync gives
the target the eras of its source. So at every handshake

  - equal eras: nothing to do, or a resync either way (blocks in flight at a crash); no split brain;
  - one copy has eras more: it must be the source, unless nothing was written in them;
  - both have: split brain; a resync only towards a copy that was given up, by a person or a policy;
  - one was declared good by force when it was half made: nobody knows what it contains, so it is a
    split brain, whatever was written in the eras of either.

A copy that is Inconsistent is target whatever it contains. To refuse is always safe, but a split
brain may only be claimed where both have eras of their own, or `suspected` says that it is hard to
tell. Both nodes come to the same verdict.
What this file must not know: UUIDs, bitmaps, or how the engine decides.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.handshake import Outcome
from tests.simulation.checkers import observe
from tests.simulation.checkers.observe import Decided
from tests.simulation.pair import Pair

RESYNC_SOURCE = (Conn.SyncSource, Conn.PausedSyncS)
RESYNC_TARGET = (Conn.SyncTarget, Conn.PausedSyncT)
OTHER = {"alice": "bob", "bob": "alice"}
MIRRORED = {
    Outcome.NOTHING: Outcome.NOTHING,
    Outcome.SOURCE: Outcome.TARGET,
    Outcome.TARGET: Outcome.SOURCE,
}


class Lineage:
    """One volume of a pair. suspected: whether the nodes may see a split brain that is none."""

    def __init__(self, pair: Pair, number: int, suspected: Callable[[], bool]) -> None:
        self._nodes = {node.name: node for node in (pair.alice, pair.bob)}
        self._number = number
        self._suspected = suspected
        self.eras: dict[str, set[int]] = {"alice": {0}, "bob": {0}}
        self._written: set[int] = set()
        self._unpromised: set[int] = set()
        """Eras of the peer of a Primary without disk, with writes that no flush has promised."""
        self._doubtful: set[int] = set()
        """Eras of a copy that perhaps could not write down that it was in one."""
        self._own: dict[str, int | None] = {"alice": None, "bob": None}
        """The era that a copy is in now, alone."""
        self._shared: dict[str, set[int]] = {"alice": {0}, "bob": {0}}
        """The eras of a copy when its node was last connected: what a resync target gets of it."""
        self._states: dict[str, StateWord | None] = {"alice": None, "bob": None}
        self._put_back: set[str] = set()
        """Nodes with an old copy: one of so long ago that the other has no name for it is refused."""
        self._half_made: set[str] = set()
        """Nodes whose copy was Inconsistent until somebody declared it good."""
        self._next = 1
        self._verdicts: dict[str, dict[str, Outcome]] = {}

    # --- what is seen -------------------------------------------------------------------------

    def look(self) -> None:
        """Follow the states; cheap if none has changed."""
        for name, node in self._nodes.items():
            before, now = self._states[name], observe.state_of(node, self._number)
            if now is not before:
                self._states[name] = now
                self._changed(name, before, now)

    def _changed(self, name: str, before: StateWord | None, now: StateWord | None) -> None:
        if now is None:
            self._own[name] = None
            return
        self._forget_if_failed(name, before, now)
        if before is not None and before.conn in RESYNC_TARGET and now.disk is Disk.UpToDate:
            self.eras[name] = set(self._shared[OTHER[name]])
            self._put_back.discard(name)
            self._half_made.clear()
        self._note_force(name, before, now)
        if before is not None and before.disk >= Disk.Negotiating > now.disk:
            self._verdicts.clear()
        parted = before is not None and before.conn >= Conn.Connected > now.conn
        if parted:
            self._own[name] = None
        receivers = self._receivers(name, now)
        if len(receivers) == 1:
            self._begin_era(receivers[0])
        elif len(receivers) == 2:
            self._own = {"alice": None, "bob": None}
        if now.conn >= Conn.Connected:
            self._shared[name] = set(self.eras[name])

    def _forget_if_failed(self, name: str, before: StateWord | None, now: StateWord) -> None:
        """A disk that fails when the other copy is out of use already: it may not have been able to
        write down that it was the only one. Two faults at once, of which nobody can tell later."""
        node, number = self._nodes[name], self._number
        failing = node.disks[number].fails or node.meta_disks[number].fails
        lost = before is not None and before.disk is Disk.UpToDate and now.disk <= Disk.Failed
        if lost and failing:
            self._doubtful.update(self._surplus(name)[-1:])

    def _note_force(self, name: str, before: StateWord | None, now: StateWord) -> None:
        if before is None or before.conn > Conn.Connected or before.disk is not Disk.Inconsistent:
            return
        if (before.role, now.role, now.disk) == (Role.Secondary, Role.Primary, Disk.UpToDate):
            self._half_made.add(name)

    def _receivers(self, name: str, state: StateWord) -> list[str]:
        """The copies that get what this node, if it is Primary, writes."""
        if state.role is not Role.Primary:
            return []
        found = [name] if state.disk is Disk.UpToDate else []
        theirs = self._states[OTHER[name]]
        complete = theirs and (theirs.conn, theirs.disk) == (Conn.Connected, Disk.UpToDate)
        if state.conn in RESYNC_SOURCE and complete:
            found.append(OTHER[name])  # the end of the resync has not been heard of yet
        elif state.conn >= Conn.Connected and state.pdsk is Disk.UpToDate:
            found.append(OTHER[name])
        return found

    def _begin_era(self, copy: str) -> None:
        own = self._own[copy]
        if own is None or own in self.eras[OTHER[copy]]:
            self._own[copy] = self._next
            self.eras[copy].add(self._next)
            self._next += 1
        state = self._states[copy]
        if state is not None and state.conn >= Conn.Connected:
            self._shared[copy] = set(self.eras[copy])

    def era_of_writes(self, primary: str) -> int | None:
        """The era of the one copy that gets what this Primary writes now; None if both do."""
        self.look()
        state = self._states[primary]
        receivers = self._receivers(primary, state) if state is not None else []
        return self._own[receivers[0]] if len(receivers) == 1 else None

    def completed(self, primary: str, began: int | None, *, flushed: bool = False) -> None:
        """An application's write was acknowledged by this Primary, or a flush. began: the era in
        which the write was submitted; the other copy may have one that is older than this era.

        What only the peer of a Primary without disk has counts from the flush on: until then the
        Primary may lose sight of it, go on with its own disk again, and say so at the next flush.
        """
        self.look()
        state = self._states[primary]
        receivers = self._receivers(primary, state) if state is not None else []
        own = self._own[receivers[0]] if len(receivers) == 1 else None
        if own is None or not (flushed or own == began):
            return
        if receivers == [primary] or (flushed and own in self._unpromised):
            self._written.add(own)
        elif not flushed:
            self._unpromised.add(own)

    def put_back(self, name: str, eras: set[int]) -> None:
        """A node that is down has an old copy again, which contains these eras."""
        self.eras[name], self._shared[name], self._own[name] = set(eras), set(eras), None
        self._put_back.add(name)

    def in_doubt(self) -> bool:
        """A disk failed as its copy began an era: the other copy may have begun one for that Primary."""
        return bool(self._doubtful.intersection(self._surplus("alice") + self._surplus("bob")))

    # --- what is judged -----------------------------------------------------------------------

    def decided(self, event: Decided) -> list[str]:
        """Violations by this verdict. Eras that were empty are shared when the copies are equal."""
        self.look()
        outcome, facts = event.verdict.outcome, event.facts
        found = self._unlike_the_peer(event)
        if min(facts.own_disk, facts.peer_disk) <= Disk.Failed:
            return found
        own_bad, peer_bad = (
            disk <= Disk.Inconsistent for disk in (facts.own_disk, facts.peer_disk)
        )
        if own_bad or peer_bad:
            legal = {Outcome.GIVE_UP} | ({Outcome.TARGET} if own_bad else {Outcome.SOURCE})
            if own_bad and peer_bad:
                legal = {Outcome.GIVE_UP, Outcome.NOTHING}
        else:
            legal = self._legal(event)
        if outcome not in legal:
            words = ", ".join(sorted(one.value for one in legal))
            found.append(
                f"{event.node}/{self._number}: verdict {outcome.value} by rule "
                f"{event.verdict.rule}, legal is only {words}; eras of its own "
                f"{self._surplus(event.node)}, of the peer {self._surplus(OTHER[event.node])}, "
                f"written {sorted(self._written)}"
            )
        if outcome is Outcome.NOTHING and not own_bad and not peer_bad:
            both = self.eras["alice"] | self.eras["bob"]
            self.eras = {"alice": set(both), "bob": set(both)}
        return found

    def _legal(self, event: Decided) -> set[Outcome]:
        facts = event.facts
        solved = event.verdict.split_brain and event.verdict.outcome is not Outcome.GIVE_UP
        if self._half_made and not (facts.own_discard or facts.peer_discard or solved):
            return {Outcome.GIVE_UP}
        own, peer = self._surplus(event.node), self._surplus(OTHER[event.node])
        legal = set()
        claims_split = event.verdict.split_brain or event.verdict.rule == 100
        suspected = self._suspected() or self._half_made or self._put_back
        if not claims_split or (own and peer) or suspected:
            legal.add(Outcome.GIVE_UP)
        known = self._written - self._doubtful
        lost, peers_lost = (bool(known.intersection(eras)) for eras in (own, peer))
        if not peers_lost or event.facts.peer_discard or solved:
            legal.add(Outcome.SOURCE)
        if not lost or event.facts.own_discard or solved:
            legal.add(Outcome.TARGET)
        if not lost and not peers_lost:
            legal.add(Outcome.NOTHING)
        return legal

    def _surplus(self, name: str) -> list[int]:
        return sorted(self.eras[name] - self.eras[OTHER[name]])

    def _unlike_the_peer(self, event: Decided) -> list[str]:
        """The first verdicts of both nodes on one connection, or since one of them has lost its disk there,
        have to be each other's mirror image. A node may refuse what the other would do, for reasons of
        its own. About a disk that has gone since it was announced there is nothing to agree on."""
        peer = self._states[OTHER[event.node]]
        if peer is not None and peer.disk < Disk.Negotiating:
            return []
        verdicts = self._verdicts.setdefault(event.link, {})
        if event.node in verdicts:
            return []
        verdicts[event.node] = outcome = event.verdict.outcome
        theirs = verdicts.get(OTHER[event.node])
        if theirs is None or Outcome.GIVE_UP in (outcome, theirs) or MIRRORED[outcome] is theirs:
            return []
        return [
            f"volume {self._number}: {event.node} decides {outcome.value}, its peer {theirs.value}"
        ]
