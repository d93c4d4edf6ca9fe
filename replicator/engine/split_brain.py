"""The after-split-brain policies: which copy is given up when both changed, and when none is.

Rules:
1. Tables only: one per number of current Primaries, as in drbd.conf. A policy that is not in the
   table for that number solves nothing.
2. This file does not know UUID rules, disks or connections; whether a policy may be applied at
   all is `handshake`'s decision.
3. Both nodes compute the same answer from mirrored inputs, because both have the same policies
   (checked when connecting) and `arbiter` is true on exactly one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

UNSOLVED = 0
SOURCE = 1
TARGET = -1


@dataclass(frozen=True, slots=True)
class Conflict:
    """A split brain as the policies see it.

    own_was_primary, peer_was_primary: that node was Primary already when the link broke (bit 0 of
    its bitmap UUID). Weights are marked blocks, as exchanged. own_demotable: nobody holds the
    device of this node open.
    """

    own_primary: bool
    peer_primary: bool
    own_was_primary: bool
    peer_was_primary: bool
    own_weight: int
    peer_weight: int
    arbiter: bool
    own_demotable: bool = False


class Resolution(NamedTuple):
    """value: UNSOLVED, SOURCE or TARGET. policy: "after-sb-0pri discard-zero-changes", for people.
    demote: this node must first become Secondary. peer_demotes: the peer does that, or gives up.
    handlers: programs to run."""

    value: int
    policy: str
    demote: bool = False
    handlers: tuple[str, ...] = ()
    peer_demotes: bool = False


Policy = Callable[[Conflict], int]


def _unsolved(_conflict: Conflict) -> int:
    return UNSOLVED


def _tie(conflict: Conflict) -> int:
    return TARGET if conflict.arbiter else SOURCE


def _zero_changes(conflict: Conflict) -> int:
    """A node without changes loses nothing by being the target."""
    own, peer = conflict.own_weight, conflict.peer_weight
    if own == 0 and peer == 0:
        return _tie(conflict)
    if peer == 0:
        return SOURCE
    return TARGET if own == 0 else UNSOLVED


def _least_changes(conflict: Conflict) -> int:
    own, peer = conflict.own_weight, conflict.peer_weight
    if own == peer:
        return _tie(conflict)
    return TARGET if own < peer else SOURCE


def _younger_primary(conflict: Conflict) -> int:
    """The younger one became Primary only after the break."""
    if conflict.own_was_primary != conflict.peer_was_primary:
        return SOURCE if conflict.own_was_primary else TARGET
    return _zero_changes(conflict) or _least_changes(conflict)


def _older_primary(conflict: Conflict) -> int:
    if conflict.own_was_primary != conflict.peer_was_primary:
        return TARGET if conflict.own_was_primary else SOURCE
    return _zero_changes(conflict) or _least_changes(conflict)


NO_PRIMARY: dict[str, Policy] = {
    "disconnect": _unsolved,
    "discard-younger-primary": _younger_primary,
    "discard-older-primary": _older_primary,
    "discard-zero-changes": _zero_changes,
    "discard-least-changes": _least_changes,
    "discard-local": lambda _conflict: TARGET,
    "discard-remote": lambda _conflict: SOURCE,
}
"""after-sb-0pri: policy to decision."""

CONSENSUS = "consensus"
CALL_PRI_LOST = "call-pri-lost-after-sb"

ONE_PRIMARY: tuple[str, ...] = (
    "disconnect",
    CONSENSUS,
    "violently-as0p",
    "discard-secondary",
    CALL_PRI_LOST,
)
"""Policies of after-sb-1pri."""

TWO_PRIMARIES: tuple[str, ...] = ("disconnect", "violently-as0p", CALL_PRI_LOST)
"""Policies of after-sb-2pri."""


def solve(conflict: Conflict, policy_0pri: str, policy_1pri: str, policy_2pri: str) -> Resolution:
    """Apply the policy for the number of nodes that are Primary now."""
    as_0pri = NO_PRIMARY.get(policy_0pri, _unsolved)(conflict)
    primaries = conflict.own_primary + conflict.peer_primary
    if primaries == 0:
        return Resolution(as_0pri, f"after-sb-0pri {policy_0pri}")
    if primaries == 1:
        policy, known = policy_1pri, ONE_PRIMARY
    else:
        policy, known = policy_2pri, TWO_PRIMARIES
    name = f"after-sb-{primaries}pri {policy}"
    if policy not in known:
        return Resolution(UNSOLVED, name)
    if policy in (CONSENSUS, "violently-as0p", CALL_PRI_LOST):
        name += f" (after-sb-0pri {policy_0pri})"
    if policy == CALL_PRI_LOST and as_0pri == TARGET and conflict.own_primary:
        return _give_up_role(conflict, name)
    value = _with_primary(conflict, policy, as_0pri)
    peer_demotes = policy == CALL_PRI_LOST and value == SOURCE and conflict.peer_primary
    return Resolution(value, name, peer_demotes=peer_demotes)


def _with_primary(conflict: Conflict, policy: str, as_0pri: int) -> int:
    secondary_is_target = SOURCE if conflict.own_primary else TARGET
    if policy == "disconnect":
        return UNSOLVED
    if policy == "discard-secondary":
        return secondary_is_target
    if policy == CONSENSUS:
        return as_0pri if as_0pri == secondary_is_target else UNSOLVED
    return as_0pri


def _give_up_role(conflict: Conflict, name: str) -> Resolution:
    """This node is Primary and would be overwritten: only if nobody uses its device."""
    if conflict.own_demotable:
        return Resolution(TARGET, name, demote=True)
    return Resolution(UNSOLVED, name, handlers=("pri-lost-after-sb",))
