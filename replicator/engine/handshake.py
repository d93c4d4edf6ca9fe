"""The verdict of the handshake: who synchronises whom, by what, or why nobody does.

Rules:
1. Pure: from what both nodes told each other to one `Verdict`. Running the handlers, demoting,
   setting bits and changing states are the caller's business, in the order the verdict implies.
2. UUIDs are compared in `generations`, conflicts are solved in `split_brain`; this file orders the
   steps. Each step either settles the matter or hands on; nothing is decided twice.
3. In doubt the verdict is GIVE_UP: both copies stay as they are and a person is told what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from protocol.states import Disk, Role
from replicator.engine import generations, split_brain
from replicator.engine.generations import Decision, UuidSet


class Outcome(Enum):
    NOTHING = "nothing"
    SOURCE = "source"
    TARGET = "target"
    GIVE_UP = "give-up"


@dataclass
class Handshake:
    """Everything the verdict depends on. `own` and `peer` are not changed.

    own_weight, peer_weight: marked 4 KiB blocks, as each node announced them.
    own_crashed, peer_crashed: the crashed-Primary marks. own_discard, peer_discard: the node was
    told connect --discard-my-data. own_disk, peer_disk: the state the disk has or, while it
    negotiates, will have (the caller translates Negotiating). arbiter: this node accepted the
    second connection. extended: both nodes are replicators. own_negotiating, peer_negotiating: that
    disk is being attached; until then a Primary there uses the other copy. own_demotable: nobody
    holds the device open, so that the node could become Secondary for call-pri-lost-after-sb.
    resource: only for messages.
    """

    own: UuidSet
    peer: UuidSet
    own_weight: int = 0
    peer_weight: int = 0
    own_crashed: bool = False
    peer_crashed: bool = False
    own_discard: bool = False
    peer_discard: bool = False
    own_role: Role = Role.Secondary
    peer_role: Role = Role.Secondary
    own_disk: Disk = Disk.UpToDate
    peer_disk: Disk = Disk.UpToDate
    arbiter: bool = False
    version: int = 101
    write_same: bool = True
    extended: bool = False
    after_sb_0pri: str = "disconnect"
    after_sb_1pri: str = "disconnect"
    after_sb_2pri: str = "disconnect"
    rr_conflict: str = "disconnect"
    always_asbp: bool = False
    dry_run: bool = False
    own_demotable: bool = False
    own_negotiating: bool = False
    peer_negotiating: bool = False
    resource: str = "RES"


class Verdict(NamedTuple):
    """outcome and `full` (set all bits first) say what to do; the rest is why.

    rule: of `generations.RULES`. split_brain: one was seen, solved or not. reason: for people.
    own, peer: the corrected sets, valid with every outcome. handlers: programs to run, in order.
    demote: become Secondary before going on as TARGET. peer_demotes: the peer does so, or gives up.
    """

    outcome: Outcome
    full: bool
    rule: int
    split_brain: bool
    reason: str
    own: UuidSet
    peer: UuidSet
    handlers: tuple[str, ...] = ()
    demote: bool = False
    peer_demotes: bool = False


@dataclass(frozen=True, slots=True)
class _Course:
    """Where the steps have got to. value as in `Decision`; notes are sentences for people."""

    value: int
    decision: Decision
    split_brain: bool = False
    handlers: tuple[str, ...] = ()
    demote: bool = False
    peer_demotes: bool = False
    notes: tuple[str, ...] = field(default=())

    def noting(self, *notes: str) -> tuple[str, ...]:
        return self.notes + notes


_UNRESOLVED = generations.SPLIT_BRAIN_NO_BASE


def resolve(h: Handshake) -> Verdict:
    """Decide on a connection of two disks. Never raises for what a peer may have sent."""
    decision = _decide(h)
    course = _Course(decision.value, decision, notes=(_evidence(h, decision),))
    if min(h.own_disk, h.peer_disk) <= Disk.Failed:
        note = "one node has no disk, so there is nothing to synchronise"
        return _verdict(replace(course, value=0, notes=(note,)), Outcome.NOTHING, h)
    if decision.value == generations.UNRELATED:
        return _give_up(course, h, _unrelated_advice(h, decision))
    if decision.value == generations.NEEDS_NEWER:
        return _give_up(course, h, _newer_advice(decision))
    course = _respect_inconsistent_disk(course, h)
    if abs(course.value) == generations.SPLIT_BRAIN:
        course = _solve_split_brain(course, h)
    if course.value == _UNRESOLVED:
        return _unsolved(course, h)
    conflict = _conflict_with_state(course, h)
    if conflict is not None:
        return conflict
    return _carry_out(course, h)


def _decide(h: Handshake) -> Decision:
    return generations.decide(
        h.own,
        h.peer,
        own_crashed=h.own_crashed,
        peer_crashed=h.peer_crashed,
        own_primary=h.own_role is Role.Primary,
        peer_primary=h.peer_role is Role.Primary,
        arbiter=h.arbiter,
        version=h.version,
        write_same=h.write_same,
        extended=h.extended,
    )


def _evidence(h: Handshake, decision: Decision) -> str:
    name = f"rule {decision.rule}: " if decision.rule != generations.CONTRADICTION else ""
    return f"{name}{generations.rule_text(decision)} (own UUIDs {h.own}, peer {h.peer})"


def _respect_inconsistent_disk(course: _Course, h: Handshake) -> _Course:
    """If exactly one copy is unusable it is the target, whatever the UUIDs say."""
    own_bad = h.own_disk <= Disk.Inconsistent
    if own_bad == (h.peer_disk <= Disk.Inconsistent):
        return course
    full = course.value == generations.SPLIT_BRAIN_NO_BASE or abs(course.value) == 2
    full = full or (abs(course.value) == generations.SPLIT_BRAIN and not _common_base(course))
    value = (-1 if own_bad else 1) * (2 if full else 1)
    if value == course.value:
        return course
    whose = "this node's" if own_bad else "the peer's"
    note = f"{whose} disk is Inconsistent, the other is not, which settles the direction"
    return replace(course, value=value, notes=course.noting(note))


def _common_base(course: _Course) -> bool:
    """Whether the marked blocks of both nodes together are all that differs.

    Not if the common "generation" is that of fresh metadata: two copies forced into service apart
    need not ever have been equal.
    """
    if course.decision.rule == 41:
        return True
    base = course.decision.own.masked().bitmap
    return course.decision.rule == 90 and base != generations.JUST_CREATED


def _solve_split_brain(course: _Course, h: Handshake) -> _Course:
    course = replace(course, split_brain=True, handlers=("initial-split-brain",))
    ambiguous = course.value == generations.SPLIT_BRAIN_NO_BASE
    if not ambiguous or h.always_asbp:
        course = _solve_by_policy(course, h, full=ambiguous or not _common_base(course))
    else:
        note = "the after-sb policies do not apply without a common base (see always-asbp)"
        course = replace(course, notes=course.noting(note))
    # A policy chose this node as target, but its device is in use: the peer goes by that choice,
    # so another one here would make both nodes source.
    refused = "pri-lost-after-sb" in course.handlers
    if course.value == _UNRESOLVED and not refused:
        course = _solve_by_hand(course, h)
    return course


def _solve_by_policy(course: _Course, h: Handshake, *, full: bool) -> _Course:
    conflict = split_brain.Conflict(
        own_primary=h.own_role is Role.Primary,
        peer_primary=h.peer_role is Role.Primary,
        own_was_primary=bool(course.decision.own.bitmap & 1),
        peer_was_primary=bool(course.decision.peer.bitmap & 1),
        own_weight=h.own_weight,
        peer_weight=h.peer_weight,
        arbiter=h.arbiter,
        own_demotable=h.own_demotable,
    )
    solution = split_brain.solve(conflict, h.after_sb_0pri, h.after_sb_1pri, h.after_sb_2pri)
    handlers = course.handlers + solution.handlers
    if solution.value == split_brain.UNSOLVED:
        notes = course.noting(f"{solution.policy} does not solve it")
        return replace(course, value=_UNRESOLVED, handlers=handlers, notes=notes)
    return replace(
        course,
        value=solution.value * (2 if full else 1),
        handlers=handlers,
        demote=solution.demote,
        peer_demotes=solution.peer_demotes,
        notes=course.noting(f"solved by {solution.policy}"),
    )


def _solve_by_hand(course: _Course, h: Handshake) -> _Course:
    """connect --discard-my-data on exactly one node. Without a common base all blocks are copied:
    blocks that nobody marked may differ."""
    if h.own_discard and h.peer_discard:
        notes = course.noting("both nodes were told to discard their data, so neither may")
        return replace(course, notes=notes)
    if not (h.own_discard or h.peer_discard):
        return course
    value = -1 if h.own_discard else 1
    whose = "this node" if h.own_discard else "the peer"
    return replace(
        course,
        value=value if _common_base(course) else 2 * value,
        notes=course.noting(f"solved by --discard-my-data on {whose}"),
    )


def _unsolved(course: _Course, h: Handshake) -> Verdict:
    course = replace(course, handlers=(*course.handlers, "split-brain"))
    advice = (
        "split brain, both copies are kept; on the node whose changes may be lost: "
        f"replicator secondary {h.resource}; replicator connect --discard-my-data {h.resource}; "
        f"on the other: replicator connect {h.resource}"
    )
    return _give_up(course, h, advice)


def _conflict_with_state(course: _Course, h: Handshake) -> Verdict | None:
    """The direction is known; refuse it where roles or disks do not allow it."""
    res = h.resource
    if course.value != 0 and min(h.own_disk, h.peer_disk) <= Disk.Inconsistent:
        source_bad = (h.own_disk if course.value > 0 else h.peer_disk) <= Disk.Inconsistent
        if source_bad:
            source = "this node" if course.value > 0 else "the peer"
            advice = (
                f"{source} would be sync source, but its disk is Inconsistent; if its data is to "
                f"be used all the same, there: replicator primary --force {res}"
            )
            return _give_up(course, h, advice)
    if _lets_used_copy_go(course, h):
        advice = (
            "that would overwrite the copy that the Primary's applications use now; the disk is not "
            "attached. If its changes may be lost, on the Primary, when nothing uses the device: "
            f"replicator secondary {res}; replicator disconnect {res}; replicator attach {res}; "
            f"replicator connect --discard-my-data {res}"
        )
        return _give_up(course, h, advice)
    in_use = h.own_role is Role.Primary and h.own_disk >= Disk.Consistent and not course.demote
    in_use = in_use and not h.own_negotiating
    if course.value < 0 and in_use:
        return _role_contradicts(course, h)
    return None


def _lets_used_copy_go(course: _Course, h: Handshake) -> bool:
    """A Primary without a disk works on the other node's copy. Whatever the disk is that it attaches,
    that copy is not overwritten under its applications; no policy has said that either."""
    own = course.value > 0 and h.own_negotiating and h.own_role is Role.Primary
    peers = course.value < 0 and h.peer_negotiating and h.peer_role is Role.Primary
    return (own and h.peer_disk is Disk.UpToDate) or (peers and h.own_disk is Disk.UpToDate)


def _role_contradicts(course: _Course, h: Handshake) -> Verdict | None:
    """This node would be overwritten under its running applications."""
    if h.rr_conflict == "violently":
        return None
    if h.rr_conflict == "call-pri-lost":
        course = replace(course, handlers=(*course.handlers, "pri-lost"))
    advice = (
        f"this node is Primary but would become sync target, and rr-conflict is {h.rr_conflict}; "
        f"stop what uses the device, then replicator secondary {h.resource} and "
        f"replicator connect {h.resource}"
    )
    return _give_up(course, h, advice)


def _carry_out(course: _Course, h: Handshake) -> Verdict:
    notes = course.notes
    if course.value == 0:
        outcome = Outcome.NOTHING
        if h.own_weight or h.peer_weight:
            notes += (_marked_blocks(h),)
    else:
        outcome = Outcome.SOURCE if course.value > 0 else Outcome.TARGET
    if outcome is Outcome.TARGET and h.own_role is Role.Primary and not course.demote:
        notes += ("the data changes under this Primary",)
    course = replace(course, notes=notes)
    if h.dry_run:
        return _give_up(replace(course, demote=False), h, f"dry run: would {_plan(course.value)}")
    return _verdict(course, outcome, h)


def _plan(value: int) -> str:
    if value == 0:
        return "connect without a resync"
    side = "sync source" if value > 0 else "sync target"
    return f"become {side} of a {'full' if abs(value) == 2 else 'bitmap-based'} resync"


def _marked_blocks(h: Handshake) -> str:
    return (
        f"no resync, although blocks are marked out of sync (here {h.own_weight}, peer "
        f"{h.peer_weight}); to copy them: replicator disconnect {h.resource} and "
        f"replicator invalidate {h.resource} on the node to be overwritten, then connect"
    )


def _unrelated_advice(h: Handshake, decision: Decision) -> str:
    if decision.rule == generations.CONTRADICTION:
        return f"check the metadata of both nodes: replicator get-gi {h.resource}"
    return (
        "unrelated data, nothing is copied; check that this is the right peer. If one copy may be "
        f"lost, there: replicator down {h.resource}; replicator create-md {h.resource}; "
        f"replicator up {h.resource}"
    )


def _newer_advice(decision: Decision) -> str:
    if decision.rule == 41:
        need = "the write-same feature on both nodes"
    else:
        need = "protocol version 91 on both nodes"
    return (
        f"this situation needs {need}; demote the Primary or upgrade the older node, then connect"
    )


def _give_up(course: _Course, h: Handshake, advice: str) -> Verdict:
    course = replace(course, notes=course.noting(advice), demote=False)
    return _verdict(course, Outcome.GIVE_UP, h)


def _verdict(course: _Course, outcome: Outcome, h: Handshake) -> Verdict:
    resync = outcome in (Outcome.SOURCE, Outcome.TARGET)
    return Verdict(
        outcome=outcome,
        full=resync and abs(course.value) == 2,
        rule=course.decision.rule,
        split_brain=course.split_brain,
        reason="; ".join(course.notes),
        own=course.decision.own,
        peer=course.decision.peer,
        handlers=course.handlers,
        demote=course.demote,
        peer_demotes=course.peer_demotes,
    )
