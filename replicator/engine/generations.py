"""Data generations: the four UUIDs of a copy, how they move, and what two sets of them tell.

Rules:
1. Pure values and tables. Nothing here knows of disks, connections, configuration or policies;
   random numbers are handed in.
2. Bit 0 of a UUID only tells whether the node was Primary; every comparison masks it off.
3. `decide` is symmetric by construction: it also computes what the peer must conclude from the
   same facts, and refuses where the two would not be mirror images of each other.

Theory of operation: `current` names the data on the disk. `bitmap`, if not 0, says "everything
written since that generation is marked in my bitmap", so a peer still there can be brought up by
copying the marked blocks only. The two history slots remember older generations: a peer found there
is an ancestor, but which blocks it lacks is no longer known, so everything is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

JUST_CREATED = 4
"""`current` of fresh metadata: no data generation yet."""

SYNC_STEP = 1 << 48
"""Added to the tracked generation to name the resync that serves it."""

FORCED_STEP = 1 << 47
"""Added to a generation to name what a half-made copy was made of, when it is declared good: no
other copy bears such a name, and modulo SYNC_STEP it says which relatives it has."""

LOST_NAMES_MAX = 256
"""So many names of one resync may have been lost before two copies count as strangers."""

SPLIT_BRAIN = 100
"""Both copies changed since a common base; the after-split-brain policies may solve it."""
SPLIT_BRAIN_NO_BASE = -100
"""Split brain that the policies may only solve with always-asbp."""
UNRELATED = -1000
"""Nothing in common, or evidence that contradicts itself: never synchronise."""
NEEDS_NEWER = -1091
"""The rule that applies needs a newer protocol or a feature that the link does not have."""

CONTRADICTION = 0
"""Rule number of a decision refused because the peer would not decide the mirror image."""

_ALL = (1 << 64) - 1
_NO_ROLE = _ALL - 1
_NO_GENERATION = (0, JUST_CREATED)


@dataclass(slots=True)
class UuidSet:
    """The generation UUIDs of one copy, 64-bit unsigned each. Text form is C:B:H0:H1 in hex."""

    current: int = JUST_CREATED
    bitmap: int = 0
    history0: int = 0
    history1: int = 0

    @property
    def just_created(self) -> bool:
        """This copy has had no generation yet."""
        return self.current & _NO_ROLE == JUST_CREATED

    def copy(self) -> UuidSet:
        return replace(self)

    def masked(self) -> UuidSet:
        """A copy without the role marks, for comparisons."""
        return UuidSet(
            self.current & _NO_ROLE,
            self.bitmap & _NO_ROLE,
            self.history0 & _NO_ROLE,
            self.history1 & _NO_ROLE,
        )

    def knows(self, uuid: int) -> bool:
        """Whether any slot names that generation; role marks do not matter."""
        slots = (self.current, self.bitmap, self.history0, self.history1)
        return any((slot ^ uuid) & _NO_ROLE == 0 for slot in slots)

    def new_current(self, random: int, primary: bool) -> None:
        """Begin a new generation; from here on the old one is what the bitmap is relative to.

        Callers normally ensure that nothing is tracked yet. If something is (a forced promotion of
        an Outdated disk), the older base moves to history: the bitmap covers the time since then
        too, and the peer that is still there must stay recognisable.
        Raises ValueError if `random` (64 bits) is one of the two values that name no generation.
        """
        fresh = _generation(random)
        self.close_tracking()
        self.bitmap = self.current
        self.current = fresh | int(primary)

    def declare_good(self, random: int, primary: bool) -> None:
        """Somebody vouches for an Inconsistent copy: a new generation without a base.

        What it was called until now says nothing of what it holds. The peer may have that very
        name, and writes under it that never came here (a source whose resync was broken off before
        this node heard its name), or be at the base tracked here. Neither may be taken for an older
        state of this copy: only derived names are kept, by which a relative is recognised, and
        nobody is served. A copy that never had a generation just gets its first one. Raises
        ValueError as new_current.
        """
        if self.current & _NO_ROLE in _NO_GENERATION:
            self.new_current(random, primary)
            return
        fresh = _generation(random)
        if self.bitmap & _NO_ROLE not in _NO_GENERATION:
            self.history1, self.history0 = self.history0, _half_made(self.bitmap)
        self.bitmap = _half_made(self.current)
        self.current = fresh | int(primary)

    def diverge(self, random: int, primary: bool, *, peer_may_have_current: bool) -> bool:
        """This copy is about to take writes that the peer will not get: give its data a name that
        the peer cannot have. Returns whether the set has changed. Raises ValueError as new_current.

        If a base is tracked already the name usually is unknown to the peer. Not so if the peer may
        have completed a resync whose end this node did not hear: it then has this very `current`,
        might begin a generation of its own on top of it, and would later take this copy for a mere
        ancestor. So the name changes, while the base stays: a peer that did not complete goes on by
        bitmap, one that did is an ancestor now, and one that was promoted is a split brain.
        """
        if not self.bitmap:
            self.new_current(random, primary)
            return True
        if not peer_may_have_current:
            return False
        fresh = _generation(random)
        self.history1, self.history0 = self.history0, self.current
        self.current = fresh | int(primary)
        return True

    def close_tracking(self) -> None:
        """Nothing is tracked any more: the base, if there was one, becomes history."""
        if self.bitmap:
            self.history1, self.history0, self.bitmap = self.history0, self.bitmap, 0

    def track_ancestor(self, ancestor: int) -> bool:
        """All blocks are marked, on stable storage: what any ancestor lacks is among them. As the base
        it stays known, however many generations are begun here before it gets a full resync. Returns
        whether the set has changed."""
        if self.bitmap or (self.history0 ^ ancestor) & _NO_ROLE:
            return False
        self.bitmap, self.history0, self.history1 = self.history0, self.history1, 0
        return True

    def open_sync(self, random: int) -> int:
        """This node becomes sync source. Returns the sync UUID, to be sent once this set is stable.

        A resync that serves a tracked generation gets a name derived from it, so that both can be
        recognised as related should the name be lost on the way. Raises ValueError as new_current.
        """
        if self.bitmap & _NO_ROLE in _NO_GENERATION:
            sync = _generation(random)
        else:
            sync = _step(self.bitmap)
        self.close_tracking()
        self.bitmap = sync
        return sync

    def adopt_sync(self, uuid: int, primary: bool) -> None:
        """This node becomes sync target of the resync `uuid`. Its old generation is not remembered:
        from the first block on, the disk holds neither the one nor the other."""
        self.current = uuid & _NO_ROLE | int(primary)
        self.bitmap = 0

    def adopt_final(self, peer: UuidSet, primary: bool) -> None:
        """The resync is complete here: take over the identity of the source.

        peer: the source's set as it was told last: in the handshake, before it opened the resync, or
        when it was promoted after that. The result is what the source will have once it, too, has
        closed the resync.
        """
        sync = self.current & _NO_ROLE
        self.bitmap, self.history0, self.history1 = peer.bitmap, peer.history0, peer.history1
        self.close_tracking()
        if self.history0 != sync:
            self.bitmap = sync
        self.current = peer.current & _NO_ROLE | int(primary)
        self.close_tracking()

    def mark_role(self, primary: bool) -> None:
        self.current = self.current & _NO_ROLE | int(primary)

    def __str__(self) -> str:
        slots = (self.current, self.bitmap, self.history0, self.history1)
        return ":".join(f"{slot:016X}" for slot in slots)


def _generation(random: int) -> int:
    """`random` as a generation without role mark; raises ValueError if it would name none."""
    value = random & _NO_ROLE
    if value in _NO_GENERATION or random != random & _ALL:
        raise ValueError(f"{random:#x} cannot name a data generation: need 64 bits, not 0 or 4")
    return value


def _step(uuid: int) -> int:
    return uuid + SYNC_STEP & _ALL


def _half_made(uuid: int) -> int:
    return (uuid & _NO_ROLE) + FORCED_STEP & _ALL


class Decision(NamedTuple):
    """What two sets say, from the point of view of `own`.

    value: 0 no resync; +1 / -1 own is source / target of a bitmap resync; +2 / -2 the same with all
    blocks; SPLIT_BRAIN, SPLIT_BRAIN_NO_BASE, UNRELATED or NEEDS_NEWER.
    rule: the number of the row that decided, CONTRADICTION if none could.
    own, peer: corrected copies; the sets that went in are untouched.
    """

    value: int
    rule: int
    own: UuidSet
    peer: UuidSet


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the rules may look at. The sets are masked."""

    own: UuidSet
    peer: UuidSet
    own_crashed: bool
    peer_crashed: bool
    own_primary: bool
    peer_primary: bool
    arbiter: bool
    version: int
    write_same: bool
    extended: bool
    """Both nodes are replicators."""

    @property
    def same_data(self) -> bool:
        return self.own.current == self.peer.current

    @property
    def crashed(self) -> bool:
        return self.own_crashed or self.peer_crashed

    def seen_by_peer(self) -> Evidence:
        return Evidence(
            own=self.peer,
            peer=self.own,
            own_crashed=self.peer_crashed,
            peer_crashed=self.own_crashed,
            own_primary=self.peer_primary,
            peer_primary=self.own_primary,
            arbiter=not self.arbiter,
            version=self.version,
            write_same=self.write_same,
            extended=self.extended,
        )


Test = Callable[[Evidence], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the decision table.

    text says, for people, what the row recognises; `result` is the decision if `applies`, unless
    the link is not `capable`; `correct` repairs the (unmasked) sets: own first, then the peer's.
    """

    number: int
    text: str
    applies: Test
    result: Callable[[Evidence], int]
    correct: Callable[[UuidSet, UuidSet], None] | None = None
    capable: Test | None = None


def _always(value: int) -> Callable[[Evidence], int]:
    return lambda _evidence: value


def _from_91(e: Evidence) -> bool:
    return e.version >= 91


def _with_write_same(e: Evidence) -> bool:
    return e.write_same


def _own_missed_end(e: Evidence) -> bool:
    """Own still serves a resync that the peer has completed: peer's set is own's, one step on."""
    own, peer = e.own, e.peer
    return own.bitmap == peer.history0 and own.history0 == peer.history1


def _after_missed_end(e: Evidence) -> int:
    """Whose copy goes on: that of the source, as with DRBD; but not if the target, complete, has been
    Primary since and crashed. Under A and B what it had flushed is on its own disk only."""
    since = e.peer_crashed and not (e.own_crashed or e.own_primary)
    return -1 if e.extended and since else 1


def _only_own_tracks(e: Evidence) -> bool:
    return e.same_data and e.own.bitmap != 0 and e.peer.bitmap == 0


def _only_peer_tracks(e: Evidence) -> bool:
    return e.same_data and e.own.bitmap == 0 and e.peer.bitmap != 0


def _sync_uuid_lost(source: UuidSet, target: UuidSet, version: int) -> bool:
    """Source opened a resync of the generation that target still has; its name never arrived.

    That name alone says so: the generation may have left the source's history since (DRBD wants to
    see it there, too). And several names in a row may be lost, if the connection breaks again and
    again while the target's disk does not answer (DRBD allows for one)."""
    if version < 96:
        return target.current == source.history0 and target.history0 == source.history1
    if target.current in _NO_GENERATION or not source.bitmap:
        return False
    steps, rest = divmod(source.bitmap - target.current & _NO_ROLE, SYNC_STEP)
    return not rest and 0 < steps <= LOST_NAMES_MAX


def _undo_open_sync(source: UuidSet, target: UuidSet) -> None:
    if (source.history0 ^ target.current) & _NO_ROLE == 0:
        source.bitmap, source.history0 = source.history0, source.history1
    else:
        source.bitmap = target.current


def _forget_name(source: UuidSet) -> None:
    """Nobody has that name, and as history it would only push out one that the target may have."""
    source.bitmap = 0


def _is_ancestor(of: UuidSet, current: int) -> bool:
    return current in (of.history0, of.history1)


def _keep_ancestor(source: UuidSet, target: UuidSet) -> None:
    """What source tracks is of no use to an ancestor. Drop that base instead of letting it push the
    ancestor out of history: were the name of the full sync lost twice, the copies would be
    strangers."""
    if target.current & _NO_ROLE != source.history0 & _NO_ROLE:
        source.history0, source.history1 = source.history1, source.history0
    source.bitmap = 0


def _share_history(e: Evidence) -> bool:
    """A generation that both knew once. Slots that name none (0, 4) prove no kinship.

    The bitmap slots count as well: a source that missed the end of a resync keeps the sync UUID
    there, while the target has it in its history. (DRBD looks at the history slots only, and calls
    such copies unrelated: refused all the same, but then not even --discard-my-data helps.)
    """
    own = {e.own.bitmap, e.own.history0, e.own.history1} - set(_NO_GENERATION)
    return not own.isdisjoint((e.peer.bitmap, e.peer.history0, e.peer.history1))


def _half_made_relative(copy: UuidSet, of: UuidSet) -> bool:
    """`copy` was declared good when it was half made of a generation that `of` has, or of a resync
    of one (their names differ by steps of SYNC_STEP)."""
    slots = (of.current, of.bitmap, of.history0, of.history1)
    names = {_half_made(slot) % SYNC_STEP for slot in slots if slot not in _NO_GENERATION}
    return any(slot % SYNC_STEP in names for slot in (copy.bitmap, copy.history0, copy.history1))


def _one_serves_the_other(e: Evidence) -> bool:
    return e.own.current == e.peer.bitmap or e.peer.current == e.own.bitmap


def _by_role(e: Evidence) -> int:
    if e.own_primary and e.peer_primary:
        return SPLIT_BRAIN_NO_BASE
    return 1 if e.own_primary else -1


def _by_crash(e: Evidence) -> int:
    if e.own_crashed and e.peer_crashed:
        return -1 if e.arbiter else 1
    return 1 if e.own_crashed else -1


RULES: tuple[Rule, ...] = (
    Rule(
        10,
        "both copies were just created",
        lambda e: e.own.current == JUST_CREATED and e.peer.current == JUST_CREATED,
        _always(0),
    ),
    Rule(
        20,
        "this copy was just created, the peer's has data",
        lambda e: e.own.current in _NO_GENERATION and e.peer.current != JUST_CREATED,
        _always(-2),
    ),
    Rule(
        30,
        "this copy has data, the peer's was just created",
        lambda e: e.own.current != JUST_CREATED and e.peer.current in _NO_GENERATION,
        _always(2),
    ),
    Rule(
        34,
        "same data; this node missed the end of a resync that it served",
        lambda e: _only_own_tracks(e) and _own_missed_end(e),
        _after_missed_end,
        correct=lambda own, _peer: own.close_tracking(),
        capable=_from_91,
    ),
    Rule(
        36,
        "same data; the peer never stored the name of the resync that this node began",
        _only_own_tracks,
        _always(1),
        correct=lambda own, _peer: _forget_name(own),
        capable=_from_91,
    ),
    Rule(
        35,
        "same data; the peer missed the end of a resync that it served",
        lambda e: _only_peer_tracks(e) and _own_missed_end(e.seen_by_peer()),
        lambda e: -_after_missed_end(e.seen_by_peer()),
        correct=lambda _own, peer: peer.close_tracking(),
        capable=_from_91,
    ),
    Rule(
        37,
        "same data; this node never stored the name of the resync that the peer began",
        _only_peer_tracks,
        _always(-1),
        correct=lambda _own, peer: _forget_name(peer),
        capable=_from_91,
    ),
    Rule(
        40,
        "same data, nobody crashed while Primary: only the link was interrupted",
        lambda e: e.same_data and not e.crashed,
        _always(0),
    ),
    Rule(
        41,
        "same data after a crash of a Primary, and a node is Primary now",
        lambda e: e.same_data and (e.own_primary or e.peer_primary),
        _by_role,
        capable=_with_write_same,
    ),
    Rule(
        40,
        "same data after a crash of a Primary: its blocks in flight may differ",
        lambda e: e.same_data,
        _by_crash,
    ),
    Rule(
        45,
        "one copy was declared good by force when it was half made of the other, or of a relative",
        lambda e: (
            not _one_serves_the_other(e)
            and (_half_made_relative(e.own, e.peer) or _half_made_relative(e.peer, e.own))
        ),
        _always(SPLIT_BRAIN_NO_BASE),
    ),
    Rule(
        50,
        "the peer has tracked its changes since this copy's generation",
        lambda e: e.own.current == e.peer.bitmap,
        _always(-1),
    ),
    Rule(
        51,
        "the peer began a resync of this copy's generation whose name got lost",
        lambda e: _sync_uuid_lost(e.peer, e.own, e.version),
        _always(-1),
        correct=lambda own, peer: _undo_open_sync(peer, own),
        capable=_from_91,
    ),
    Rule(
        60,
        "this copy is an ancestor of the peer's, changes no longer tracked",
        lambda e: _is_ancestor(e.peer, e.own.current),
        _always(-2),
        correct=lambda own, peer: _keep_ancestor(peer, own),
    ),
    Rule(
        70,
        "this node has tracked its changes since the peer's generation",
        lambda e: e.own.bitmap == e.peer.current,
        _always(1),
    ),
    Rule(
        71,
        "this node began a resync of the peer's generation whose name got lost",
        lambda e: _sync_uuid_lost(e.own, e.peer, e.version),
        _always(1),
        correct=lambda own, peer: _undo_open_sync(own, peer),
        capable=_from_91,
    ),
    Rule(
        80,
        "the peer's copy is an ancestor of this one, changes no longer tracked",
        lambda e: _is_ancestor(e.own, e.peer.current),
        _always(2),
        correct=lambda own, peer: _keep_ancestor(own, peer),
    ),
    Rule(
        90,
        "both copies changed since the same generation",
        lambda e: e.own.bitmap != 0 and e.own.bitmap == e.peer.bitmap,
        _always(SPLIT_BRAIN),
    ),
    Rule(
        100,
        "the copies have a common ancestor, but nothing tracks their differences",
        _share_history,
        _always(SPLIT_BRAIN_NO_BASE),
    ),
    Rule(
        100,
        "the copies have nothing in common",
        lambda _evidence: True,
        _always(UNRELATED),
    ),
)
"""In order; the first row that applies decides, and the last always does."""

_MIRROR = {1: -1, -1: 1, 2: -2, -2: 2}


def mirrored(value: int) -> int:
    """The decision a peer must reach when this node reaches `value`."""
    return _MIRROR.get(value, value)


def rule_text(decision: Decision) -> str:
    """For people: what the rule that decided has recognised."""
    if decision.rule == CONTRADICTION:
        return "the UUIDs contradict each other: the nodes would not agree who is source"
    rows = [rule for rule in RULES if rule.number == decision.rule]
    if decision.rule == 40:
        return rows[0 if decision.value == 0 else 1].text
    if decision.rule == 100:
        return rows[1 if decision.value == UNRELATED else 0].text
    return rows[0].text


def decide(
    own: UuidSet,
    peer: UuidSet,
    *,
    own_crashed: bool,
    peer_crashed: bool,
    own_primary: bool,
    peer_primary: bool,
    arbiter: bool,
    version: int = 101,
    write_same: bool = True,
    extended: bool = False,
) -> Decision:
    """Compare two sets of UUIDs and say which copy, if any, must be brought up to which.

    own_crashed, peer_crashed: the crashed-Primary marks. own_primary, peer_primary: roles now.
    arbiter: own accepted the second connection (exactly one node of a pair did); breaks ties.
    version, write_same: the agreed protocol version and whether that feature was agreed.
    extended: both nodes are replicators, so that rules may differ from a kernel's.
    """
    evidence = Evidence(
        own=own.masked(),
        peer=peer.masked(),
        own_crashed=own_crashed,
        peer_crashed=peer_crashed,
        own_primary=own_primary,
        peer_primary=peer_primary,
        arbiter=arbiter,
        version=version,
        write_same=write_same,
        extended=extended,
    )
    new_own, new_peer = own.copy(), peer.copy()
    rule, value = _first_match(evidence)
    _, peer_value = _first_match(evidence.seen_by_peer())
    if mirrored(value) != peer_value:
        return Decision(UNRELATED, CONTRADICTION, new_own, new_peer)
    if rule.correct is not None and value != NEEDS_NEWER:
        rule.correct(new_own, new_peer)
    return Decision(value, rule.number, new_own, new_peer)


def _first_match(evidence: Evidence) -> tuple[Rule, int]:
    rule = next(rule for rule in RULES if rule.applies(evidence))
    if rule.capable is not None and not rule.capable(evidence):
        return rule, NEEDS_NEWER
    return rule, rule.result(evidence)
