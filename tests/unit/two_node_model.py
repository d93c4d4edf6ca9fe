"""Two nodes in a few tuples: a model of who wrote what, to judge the verdicts of the handshake.

Data is modelled as a set of *patterns*. A pattern stands for any number of writes that share one
fate: is it on A's disk, on B's, is it marked in A's bitmap, in B's, was its completion promised to
an application. A resync copies what is marked, nothing else; so if UUIDs ever vouch for a copy
that marks do not cover, the patterns show it. Names of generations are renumbered in every state,
which makes equal situations equal and the number of states small enough to visit them all.

The model follows the table of events in docs/generations.md; it uses the product's UUID
primitives and its verdict, and nothing else of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from protocol.states import Disk, Role
from replicator.engine.generations import FORCED_STEP, JUST_CREATED, UuidSet
from replicator.engine.handshake import Handshake, Outcome, Verdict, resolve

A, B = 0, 1


@dataclass(frozen=True, order=True)
class Pattern:
    """on, marked: by node. promised: to an application, so it may not vanish unnoticed."""

    on: tuple[bool, bool]
    marked: tuple[bool, bool] = (False, False)
    promised: bool = False


@dataclass
class Node:
    uuids: UuidSet = field(default_factory=UuidSet)
    disk: Disk = Disk.Inconsistent
    primary: bool = False
    crashed: bool = False
    up: bool = True
    shared: bool = False
    """The peer may know this very `current` although a base is tracked (kept in memory only)."""

    def diverge(self, name: int) -> None:
        self.uuids.diverge(name, primary=True, peer_may_have_current=self.shared)
        self.shared = False

    def copy(self) -> Node:
        return replace(self, uuids=self.uuids.copy())


@dataclass
class World:
    nodes: list[Node]
    data: frozenset[Pattern]
    connected: bool = False
    source: int | None = None
    told: UuidSet | None = None
    """The source's set as the target knows it from the handshake."""
    names: int = 0
    meddled: bool = False
    """An administrator has intervened, so that conflicts may be of his making."""
    history: tuple[str, ...] = ()

    def copy(self, event: str) -> World:
        nodes = [node.copy() for node in self.nodes]
        return replace(self, nodes=nodes, history=(*self.history, event))

    def fresh(self) -> int:
        """A name that no generation in this world has; canonical() keeps them few and small."""
        self.names += 1
        return self.names << 4


class Violation(AssertionError):
    """A verdict that would lose or mix up data."""


def both(index: int, mine: bool, its: bool) -> tuple[bool, bool]:
    return (mine, its) if index == A else (its, mine)


def created() -> World:
    """Two nodes with fresh metadata and different junk on their disks, every block marked."""
    junk = {Pattern((True, False), (True, True)), Pattern((False, True), (True, True))}
    return World([Node(), Node()], frozenset(junk), names=1)


def in_service() -> World:
    """An established pair, equal, connected, both Secondary."""
    world = World([Node(), Node()], frozenset({Pattern((True, True), promised=True)}), names=2)
    for node in world.nodes:
        node.uuids = UuidSet(1 << 4, 0, 2 << 4, JUST_CREATED)
        node.disk = Disk.UpToDate
    world.connected = True
    return world


# Events. Each yields the worlds that may follow, none if it cannot happen.


def events(world: World) -> Iterator[World]:
    """What happens by itself, and what every administrator does every day."""
    for i in (A, B):
        yield from promote(world, i)
        yield from demote(world, i)
        yield from crash(world, i)
        yield from boot(world, i)
    yield from link_lost(world)
    yield from link_up(world)
    yield from finish(world)


def interventions(world: World) -> Iterator[World]:
    """By which an administrator overrides what the nodes know, or gives data up."""
    for i in (A, B):
        yield from force(world, i)
        yield from replace_disk(world, i)
        yield from invalidate(world, i)
        yield from link_up(world, discard=i)


def promote(world: World, i: int) -> Iterator[World]:
    node, peer = world.nodes[i], world.nodes[1 - i]
    if not node.up or node.primary or (world.connected and peer.primary):
        return
    good = node.disk is Disk.UpToDate
    if not good and not (world.connected and peer.disk is Disk.UpToDate):
        return
    after = world.copy(f"promote {'AB'[i]}")
    node = after.nodes[i]
    node.primary = True
    usable = world.connected and peer.disk >= Disk.Inconsistent
    if not usable:
        node.diverge(after.fresh())
    node.uuids.mark_role(primary=True)
    yield written(after)


def meddled(world: World) -> Iterator[World]:
    """The interventions in a world, which knows of them from then on."""
    yield from interventions(replace(world, meddled=True))


def force(world: World, i: int) -> Iterator[World]:
    """primary --force on a copy that is not good: the administrator declares it so."""
    node, peer = world.nodes[i], world.nodes[1 - i]
    if not node.up or node.disk is Disk.UpToDate or world.source is not None:
        return
    if world.connected and (peer.disk is Disk.UpToDate or peer.primary):
        return
    after = world.copy(f"force {'AB'[i]}")
    node = after.nodes[i]
    half_made = node.disk is Disk.Inconsistent
    node.disk, node.primary = Disk.UpToDate, True
    begin = node.uuids.declare_good if half_made else node.uuids.new_current
    begin(after.fresh(), primary=True)
    if after.connected:
        after.connected = False  # the handshake is taken anew, with what changed
        yield from link_up(after)
    else:
        yield written(after)


def demote(world: World, i: int) -> Iterator[World]:
    if world.nodes[i].up and world.nodes[i].primary:
        after = world.copy(f"demote {'AB'[i]}")
        after.nodes[i].primary = False
        after.nodes[i].uuids.mark_role(primary=False)
        yield after


def crash(world: World, i: int) -> Iterator[World]:
    """Power loss; with writes in flight that reached any one of the two disks, or none."""
    node, peer = world.nodes[i], world.nodes[1 - i]
    if not node.up:
        return
    fates: list[tuple[str, Pattern | None]] = [("", None)]
    writing_here = node.primary and (node.disk is Disk.UpToDate or world.connected)
    if writing_here:
        # Not promised. The activity log marks it at the next boot of the node that wrote.
        mine = both(i, True, False)
        fates.append((" writing here", Pattern(mine, mine)))
        if world.connected:
            fates.append((" writing there", Pattern(both(i, False, True), mine)))
    if world.connected and peer.primary and peer.disk is Disk.UpToDate:
        # Promised, but in this node's volatile cache: the Primary marks what no barrier covered.
        kept = both(1 - i, True, False)
        fates.append((" cache lost", Pattern(kept, kept, promised=True)))
    for name, pattern in fates:
        after = world.copy(f"crash {'AB'[i]}{name}")
        node = after.nodes[i]
        node.up, node.crashed, node.primary = False, node.crashed or node.primary, False
        if pattern is not None:
            after.data |= {pattern}
        if world.source == 1 - i:
            yield disconnected(after.copy("near the end"), shared=True)
        yield disconnected(after)


def boot(world: World, i: int) -> Iterator[World]:
    if not world.nodes[i].up:
        after = world.copy(f"boot {'AB'[i]}")
        node = after.nodes[i]
        node.up = node.shared = True
        node.uuids.mark_role(primary=False)
        if node.disk is Disk.Consistent:
            node.disk = Disk.UpToDate
        yield after


def replace_disk(world: World, i: int) -> Iterator[World]:
    """create-md on an empty disk, while the node is down: what only it had is given up."""
    if world.nodes[i].up:
        return
    after = world.copy(f"replace {'AB'[i]}")
    after.nodes[i] = Node(up=False)
    after.data = frozenset(
        Pattern(
            both(i, False, p.on[1 - i]),
            both(i, True, p.marked[1 - i]),
            p.promised and p.on[1 - i],
        )
        for p in after.data
    ) | {Pattern(both(i, True, False), both(i, True, False))}
    yield after


def invalidate(world: World, i: int) -> Iterator[World]:
    """invalidate on a disconnected Secondary."""
    node = world.nodes[i]
    if not node.up or node.primary or world.connected or node.disk <= Disk.Inconsistent:
        return
    after = world.copy(f"invalidate {'AB'[i]}")
    after.nodes[i].disk = Disk.Inconsistent
    after.data = frozenset(
        replace(p, marked=both(i, True, p.marked[1 - i]), promised=p.promised and p.on[1 - i])
        for p in after.data
    )
    yield after


def link_lost(world: World) -> Iterator[World]:
    if world.connected:
        yield disconnected(world.copy("link lost"))
    if world.source is not None:
        yield disconnected(world.copy("link lost near the end"), shared=True)


def disconnected(world: World, shared: bool = False) -> World:
    """Contact with the peer's data is lost, by whatever cause.

    shared: the target may know the `current` of the source: it had asked for everything, so it may
    have finished; or it had not begun, and knew it before.
    """
    was_connected, world.connected = world.connected, False
    source, world.source, world.told = world.source, None, None
    if was_connected:
        for i, node in enumerate(world.nodes):
            node.shared = shared and i == source
            if node.up and node.primary and node.disk is Disk.UpToDate:
                node.diverge(world.fresh())
    return written(world)


def written(world: World) -> World:
    """Every Primary that can, writes."""
    new = set()
    for i in (A, B):
        node, peer = world.nodes[i], world.nodes[1 - i]
        if not (node.up and node.primary):
            continue
        if world.connected:
            if world.source is not None or {node.disk, peer.disk} == {Disk.UpToDate}:
                new.add(Pattern((True, True), promised=True))
        elif node.disk is Disk.UpToDate:
            new.add(Pattern(both(i, True, False), both(i, True, False), promised=True))
    world.data |= new
    return world


def finish(world: World) -> Iterator[World]:
    """The target has everything that is marked; the source hears of it, or the link drops first."""
    if world.source is None or world.told is None:
        return
    source = world.source
    for heard in (True, False):
        after = world.copy("resync finished" if heard else "resync finished unheard")
        after.data = frozenset(
            replace(p, on=(p.on[source], p.on[source])) if any(p.marked) else p for p in after.data
        )
        if any(p.on[A] != p.on[B] for p in after.data):
            raise Violation(f"the resync left differences: {describe(after)}")
        after.data = frozenset(
            replace(p, marked=both(source, p.marked[source] and not heard, False))
            for p in after.data
        )
        target = after.nodes[1 - source]
        target.uuids.adopt_final(world.told, target.primary)
        target.disk, target.crashed = Disk.UpToDate, False
        if heard:
            after.nodes[source].uuids.close_tracking()
            after.nodes[source].crashed = False
            after.source, after.told = None, None
            yield written(after)
        else:
            yield disconnected(after, shared=True)


def link_up(world: World, discard: int | None = None) -> Iterator[World]:
    if world.connected or not (world.nodes[A].up and world.nodes[B].up):
        return
    if discard is not None and world.nodes[discard].primary:
        return
    verdicts = [verdict(world, i, discard) for i in (A, B)]
    judge(world, verdicts)
    event = "link up" if discard is None else f"link up discarding {'AB'[discard]}"
    if Outcome.GIVE_UP in {one.outcome for one in verdicts}:
        after = world.copy(event)
        for node, one in zip(after.nodes, verdicts, strict=True):
            node.uuids = one.own.copy()
        yield after
        return
    for lost in (False, True):
        begun = started(world.copy(event + (", sync UUID lost" if lost else "")), verdicts, lost)
        if begun is not None:
            yield begun
    begun = started(world.copy(event + ", the source dies unheard"), verdicts, True, dies=True)
    if begun is not None:
        yield begun


def verdict(world: World, i: int, discard: int | None) -> Verdict:
    node, peer = world.nodes[i], world.nodes[1 - i]
    return resolve(
        Handshake(
            own=node.uuids,
            peer=peer.uuids,
            own_weight=sum(p.marked[i] for p in world.data),
            peer_weight=sum(p.marked[1 - i] for p in world.data),
            own_crashed=node.crashed,
            peer_crashed=peer.crashed,
            own_discard=discard == i,
            peer_discard=discard == 1 - i,
            own_role=Role.Primary if node.primary else Role.Secondary,
            peer_role=Role.Primary if peer.primary else Role.Secondary,
            own_disk=node.disk,
            peer_disk=peer.disk,
            arbiter=i == A,
            extended=True,
        )
    )


def judge(world: World, verdicts: list[Verdict]) -> None:
    """The invariants of a handshake. Raises Violation."""
    outcomes = [one.outcome for one in verdicts]
    if not compatible(*outcomes):
        raise Violation(f"the nodes disagree, {outcomes}: {describe(world)}")
    if Outcome.GIVE_UP in outcomes and not world.meddled:
        only = [
            [p for p in world.data if p.promised and p.on == both(i, True, False)] for i in (A, B)
        ]
        if not all(only):
            raise Violation(f"false alarm, only one copy has changed: {describe(world)}")
    for i, one in enumerate(verdicts):
        solved_by_hand = one.split_brain and one.outcome is not Outcome.GIVE_UP
        if one.outcome is Outcome.TARGET and not solved_by_hand:
            lost = [p for p in world.data if p.promised and p.on[i] and not p.on[1 - i]]
            if lost:
                raise Violation(f"{'AB'[i]} would lose promised writes: {describe(world)}")
        equal = one.outcome is Outcome.NOTHING and world.nodes[i].disk > Disk.Inconsistent
        if equal and any(p.on[A] != p.on[B] for p in world.data):
            raise Violation(f"taken for equal, but differ: {describe(world)}")


def compatible(one: Outcome, other: Outcome) -> bool:
    """Mirror images; or somebody gives up and nobody would be overwritten meanwhile."""
    pair = {one, other}
    if Outcome.GIVE_UP in pair:
        return Outcome.TARGET not in pair
    return pair in ({Outcome.NOTHING}, {Outcome.SOURCE, Outcome.TARGET})


def names_what_the_target_misses() -> bool:
    """Whether a Primary that becomes source of an equal copy takes a new generation first, because
    its target does not get what it writes until the resync has begun. A kernel does not."""
    return True


def started(world: World, verdicts: list[Verdict], lost: bool, dies: bool = False) -> World | None:
    """lost: the target never hears the name of its resync. dies: because the source goes down, after
    a Primary there has completed a write, which it need not send to a target that has not begun."""
    for node, one in zip(world.nodes, verdicts, strict=True):
        node.uuids = one.own.copy()
    if verdicts[A].outcome is Outcome.NOTHING:
        if lost or (world.nodes[A].primary and world.nodes[B].primary):
            return None  # two Primaries: the connection is refused before anything happens
        world.connected = True
        for node in world.nodes:
            node.disk = Disk.UpToDate if node.disk > Disk.Inconsistent else node.disk
        return written(world)
    source = A if verdicts[A].outcome is Outcome.SOURCE else B
    origin, target = world.nodes[source], world.nodes[1 - source]
    known = target.uuids.knows(origin.uuids.current)
    full = verdicts[A].full
    world.data = frozenset(
        # What was promised on the target only is given up with everybody's knowledge.
        replace(
            p,
            marked=(full or any(p.marked),) * 2,
            promised=p.promised and p.on[source],
        )
        for p in world.data
    )
    origin.disk = Disk.UpToDate
    origin.shared = known
    if known and (origin.primary or dies) and names_what_the_target_misses():
        origin.diverge(world.fresh())
    world.told = origin.uuids.copy()
    sync = origin.uuids.open_sync(world.fresh())
    world.connected, world.source = True, source
    if lost:
        target.disk = min(target.disk, Disk.Outdated)
        if dies and not target.primary:
            mine = both(source, True, False)
            world.data |= {Pattern(mine, mine, promised=True)}
            origin.up, origin.crashed, origin.primary = False, True, False
        return disconnected(world, shared=origin.shared)
    target.disk = Disk.Inconsistent
    target.uuids.adopt_sync(sync, target.primary)
    return written(world)


def describe(world: World) -> str:
    nodes = "; ".join(
        f"{'AB'[i]} {node.uuids} {node.disk.name}"
        f"{' Primary' if node.primary else ''}{' crashed' if node.crashed else ''}"
        for i, node in enumerate(world.nodes)
    )
    return f"{' > '.join(world.history)} | {nodes} | {sorted(world.data)}"


Canonical = tuple[object, ...]


def canonical(world: World) -> tuple[World, Canonical]:
    """The world with generations renumbered by first appearance, and its identity."""
    numbers: dict[int, int] = {}

    def renamed(uuid: int) -> int:
        low = uuid % FORCED_STEP
        if low & ~1 in (0, JUST_CREATED):
            return uuid
        number = numbers.setdefault(low >> 4, len(numbers) + 1)
        return uuid - low | number << 4 | low & 1

    def renamed_set(uuids: UuidSet) -> UuidSet:
        slots = (uuids.current, uuids.bitmap, uuids.history0, uuids.history1)
        return UuidSet(*(renamed(slot) for slot in slots))

    for node in world.nodes:
        node.uuids = renamed_set(node.uuids)
    if world.told is not None:
        world.told = renamed_set(world.told)
    world.names = len(numbers)
    nodes = tuple((str(n.uuids), n.disk, n.primary, n.crashed, n.up, n.shared) for n in world.nodes)
    rest = (world.data, world.connected, world.source, str(world.told), world.meddled)
    return world, (nodes, *rest)


def explore(start: World, depth: int, *, meddling: bool) -> tuple[int, list[Violation]]:
    """Visit every state within `depth` events; with `meddling`, interventions are among them.

    Stops after the depth at which something goes wrong first. Returns the number of states and what
    went wrong.
    """
    frontier = [canonical(start)]
    seen = {frontier[0][1]}
    violations: list[Violation] = []
    for _ in range(depth):
        following = []
        for world, _identity in frontier:
            sources = [events(world)]
            if meddling:
                sources.append(meddled(world))
            try:
                for after in chain.from_iterable(sources):
                    one = canonical(after)
                    if one[1] not in seen:
                        seen.add(one[1])
                        following.append(one)
            except Violation as violation:
                violations.append(violation)
        if violations:
            break
        frontier = following
    return len(seen), violations
