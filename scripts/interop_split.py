"""Scenarios of interop.py in which both nodes were Primary while apart, and the policies after-sb-0pri,
after-sb-1pri, after-sb-2pri and rr-conflict decide, or refuse to, on both sides for themselves.

Rules: as in interop_scenarios.py. Who has to lose follows from what the scenario did and from the
manual of drbd.conf 8.4, not from either node. The blocks that the two write overlap, so that a victim
that kept anything of its own is found by the comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

from interop_scenarios import scenario
from interop_stage import Plan, Stage

BLOCK = 4096
OWN_FIRST, KERNEL_FIRST = 100, 101
"""The first block that each writes."""
OURS, KERNELS, NOBODY, EITHER = "replicator", "kernel", "nobody", "either"
BOTH = (OURS, KERNELS)


@dataclass(frozen=True)
class Split:
    """own, kernel: blocks that each changes while they are apart. older: who was Primary when the
    link broke. primaries: who is Primary when they meet again."""

    own: int
    kernel: int
    older: str = NOBODY
    primaries: tuple[str, ...] = ()


def other(name: str) -> str:
    return KERNELS if name == OURS else OURS


def blocks(name: str, split: Split, count: int) -> bytes:
    """Content that says who wrote it, and which block in which split it is."""
    line = "{} {} of {} {} {}\n"
    texts = (line.format(name, n, count, split.older, split.primaries) for n in range(count))
    return b"".join((text.encode() * (BLOCK // len(text) + 1))[:BLOCK] for text in texts)


def promote(stage: Stage, name: str) -> None:
    if name == OURS:
        stage.own.primary()
    elif name == KERNELS:
        stage.kernel.adm("primary")


def demote(stage: Stage, name: str) -> None:
    if name == OURS:
        stage.own.secondary()
    else:
        stage.kernel.adm("secondary")


def part(stage: Stage, split: Split) -> dict[str, bytearray]:
    """Both are Secondary and Connected; then they are apart and have both been Primary. What each
    disk has to hold."""
    promote(stage, split.older)
    stage.own.disconnect()
    stage.kernel.wait(cs="WFConnection")
    for name in BOTH:
        if name != split.older:
            promote(stage, name)
    held = {name: bytearray(stage.models[0]) for name in BOTH}
    data = blocks(OURS, split, split.own)
    if data:
        stage.own.write(OWN_FIRST * BLOCK, data)
        held[OURS][OWN_FIRST * BLOCK : OWN_FIRST * BLOCK + len(data)] = data
    data = blocks(KERNELS, split, split.kernel)
    if data:
        stage.kernel_writes_at(KERNEL_FIRST * BLOCK, data)
        held[KERNELS][KERNEL_FIRST * BLOCK : KERNEL_FIRST * BLOCK + len(data)] = data
    for name in BOTH:
        if name not in split.primaries:
            demote(stage, name)
    return held


def verdicts(stage: Stage) -> tuple[list[str], list[str]]:
    """What each side has said about split brains so far."""
    own = [line for line in stage.own.log().splitlines() if "handshake: " in line]
    kernel = stage.guest.sh("dmesg | grep Split-Brain", check=False).splitlines()
    return own, kernel


def healed(
    stage: Stage,
    split: Split,
    victim: str,
    policy: str,
    *,
    discarding: bool = False,
    demoted: str = NOBODY,
) -> None:
    """They meet, both find the same victim, and it gets the survivor's bytes. victim: EITHER if
    the connection decides. discarding: we connect with --discard-my-data. demoted: a Primary that
    loses its role in that."""
    held = part(stage, split)
    before = verdicts(stage)
    stage.own.connect(discard_my_data=discarding)
    stage.synced()
    said, kernel_said = (new[len(old) :] for new, old in zip(verdicts(stage), before, strict=True))
    if victim == EITHER:
        victim = OURS if any("handshake: target: " in line for line in said) else KERNELS
    stage.models[0] = held[other(victim)]
    outcome = "target" if victim == OURS else "source"
    stage.check(
        any(f"handshake: {outcome}: " in line and f"solved by {policy}" in line for line in said),
        f"we say {outcome}, solved by {policy}",
    )
    words = f"automatically solved. Sync from {'peer' if victim == KERNELS else 'this'} node"
    stage.check(any(words in line for line in kernel_said), f"the kernel says {words!r}")
    stage.compare()
    stage.same_generations(f"after {victim} was overwritten")
    primaries = [name for name in split.primaries if name != demoted]
    own, kernel = ("Primary" if name in primaries else "Secondary" for name in BOTH)
    stage.roles(own, kernel)
    for name in primaries:
        demote(stage, name)


def unsolved(
    stage: Stage, split: Split, victim: str, states: tuple[str, str] = ("StandAlone",) * 2
) -> None:
    """They meet, nobody loses anything, and they end in these connection states, ours first. Then
    the victim's copy is discarded by hand, as drbd.conf's manual says."""
    held = part(stage, split)
    stage.own.connect()
    stage.own.wait(cstate=states[0], timeout=40)
    stage.kernel.wait(cs=states[1], seconds=40)
    stage.pause(3)
    stage.wait(*states)
    stage.show(f"not solved: {split}")
    stage.say(f"       our reason: {stage.own.status()['last_error']}")
    for name, node in ((OURS, stage.pair.alice), (KERNELS, stage.pair.bob)):
        stage.holds(node, held[name], f"{name} has kept its own copy")
    if victim in split.primaries:
        demote(stage, victim)
    discard(stage, victim)
    stage.synced()
    survivor = other(victim)
    stage.models[0] = held[survivor]
    stage.compare()
    if survivor in split.primaries:
        demote(stage, survivor)


def discard(stage: Stage, victim: str) -> None:
    """connect --discard-my-data there, connect on the other node."""
    stage.own.disconnect()
    stage.kernel.adm("disconnect", check=False)
    stage.own.connect(discard_my_data=victim == OURS)
    stage.kernel.adm("connect", *(["--discard-my-data"] if victim == KERNELS else []))


def in_sync(stage: Stage) -> None:
    """Connected, both Secondary and UpToDate."""
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own.secondary()


@scenario(
    "asb-zero-changes",
    "split brain, discard-zero-changes: who changed nothing loses, on either side; both changed: stays",
    Plan(net="after-sb-0pri discard-zero-changes;"),
    seconds=300,
)
def asb_zero_changes(stage: Stage) -> None:
    policy = "after-sb-0pri discard-zero-changes"
    in_sync(stage)
    healed(stage, Split(own=5, kernel=0), KERNELS, policy)
    healed(stage, Split(own=0, kernel=5), OURS, policy)
    unsolved(stage, Split(own=3, kernel=5), OURS)


@scenario(
    "asb-least-changes",
    "split brain, discard-least-changes: who changed less loses, on either side, whoever would discard",
    Plan(net="after-sb-0pri discard-least-changes;"),
    seconds=300,
)
def asb_least_changes(stage: Stage) -> None:
    policy = "after-sb-0pri discard-least-changes"
    in_sync(stage)
    healed(stage, Split(own=9, kernel=4), KERNELS, policy)
    healed(stage, Split(own=4, kernel=9), OURS, policy)
    healed(stage, Split(own=5, kernel=2), KERNELS, policy, discarding=True)


@scenario(
    "asb-tie",
    "split brain with equal changes: which connection came from whom decides, and both know",
    Plan(net="after-sb-0pri discard-least-changes;"),
    seconds=300,
)
def asb_tie(stage: Stage) -> None:
    policy = "after-sb-0pri discard-least-changes"
    in_sync(stage)
    for number in (1, 2, 3, 4):
        healed(stage, Split(own=number, kernel=number), EITHER, policy)
    healed(stage, Split(own=0, kernel=0), EITHER, policy)


@scenario(
    "asb-younger-primary",
    "split brain, discard-younger-primary: who was Primary before wins, on either side",
    Plan(net="after-sb-0pri discard-younger-primary;"),
    seconds=300,
)
def asb_younger_primary(stage: Stage) -> None:
    policy = "after-sb-0pri discard-younger-primary"
    in_sync(stage)
    healed(stage, Split(own=2, kernel=6, older=OURS), KERNELS, policy)
    healed(stage, Split(own=6, kernel=2, older=KERNELS), OURS, policy)


@scenario(
    "asb-older-primary",
    "split brain, discard-older-primary: who was Primary before loses, on either side",
    Plan(net="after-sb-0pri discard-older-primary;"),
    seconds=300,
)
def asb_older_primary(stage: Stage) -> None:
    policy = "after-sb-0pri discard-older-primary"
    in_sync(stage)
    healed(stage, Split(own=6, kernel=2, older=OURS), OURS, policy)
    healed(stage, Split(own=2, kernel=6, older=KERNELS), KERNELS, policy)


@scenario(
    "asb-consensus",
    "split brain with one Primary, consensus: the Secondary loses if 0pri agrees, on either side",
    Plan(net="after-sb-0pri discard-least-changes; after-sb-1pri consensus;"),
    seconds=300,
)
def asb_consensus(stage: Stage) -> None:
    policy = "after-sb-1pri consensus"
    in_sync(stage)
    healed(stage, Split(own=3, kernel=7, primaries=(KERNELS,)), OURS, policy)
    healed(stage, Split(own=7, kernel=3, primaries=(OURS,)), KERNELS, policy)
    unsolved(stage, Split(own=7, kernel=3, primaries=(KERNELS,)), OURS)
    unsolved(stage, Split(own=3, kernel=7, primaries=(OURS,)), KERNELS)


@scenario(
    "asb-discard-secondary",
    "split brain, discard-secondary: with one Primary it wins; with none or two nothing is decided",
    Plan(net="after-sb-1pri discard-secondary;"),
    seconds=300,
)
def asb_discard_secondary(stage: Stage) -> None:
    policy = "after-sb-1pri discard-secondary"
    in_sync(stage)
    healed(stage, Split(own=7, kernel=3, primaries=(KERNELS,)), OURS, policy)
    healed(stage, Split(own=3, kernel=7, primaries=(OURS,)), KERNELS, policy)
    unsolved(stage, Split(own=3, kernel=7), KERNELS)
    unsolved(stage, Split(own=3, kernel=7, primaries=BOTH), OURS)


@scenario(
    "asb-call-pri-lost",
    "split brain with one Primary, call-pri-lost-after-sb: we step down to lose, the kernel does not",
    Plan(net="after-sb-0pri discard-least-changes; after-sb-1pri call-pri-lost-after-sb;"),
    seconds=300,
)
def asb_call_pri_lost(stage: Stage) -> None:
    policy = "after-sb-1pri call-pri-lost-after-sb"
    in_sync(stage)
    healed(stage, Split(own=3, kernel=7, primaries=(KERNELS,)), OURS, policy)
    losing = Split(own=3, kernel=7, primaries=(OURS,))
    healed(stage, losing, OURS, policy, demoted=OURS)
    refusing = Split(own=7, kernel=3, primaries=(KERNELS,))
    unsolved(stage, refusing, KERNELS, ("WFConnection", "StandAlone"))


AS_0PRI = "after-sb-0pri discard-least-changes; after-sb-1pri violently-as0p;"


@scenario(
    "rr-conflict",
    "the policies choose a Primary as the victim: it refuses and stands alone, the other waits",
    Plan(net=AS_0PRI),
    seconds=300,
)
def rr_conflict(stage: Stage) -> None:
    in_sync(stage)
    refusing = Split(own=7, kernel=3, primaries=(KERNELS,))
    unsolved(stage, refusing, KERNELS, ("WFConnection", "StandAlone"))
    refusing = Split(own=3, kernel=7, primaries=(OURS,))
    unsolved(stage, refusing, OURS, ("StandAlone", "WFConnection"))


@scenario(
    "rr-conflict-violently",
    "the same with rr-conflict violently: the Primary's data change under it, on either side",
    Plan(net=f"{AS_0PRI} rr-conflict violently;"),
    seconds=300,
)
def rr_conflict_violently(stage: Stage) -> None:
    policy = "after-sb-1pri violently-as0p"
    in_sync(stage)
    healed(stage, Split(own=7, kernel=3, primaries=(KERNELS,)), KERNELS, policy)
    healed(stage, Split(own=3, kernel=7, primaries=(OURS,)), OURS, policy)
