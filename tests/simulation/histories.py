"""Invented histories of a pair, each from one seed, and an account of what had to survive.

The account knows nothing of the engine: it notes for every sector which writes were submitted and
which of them a flush has promised, and later asks whether what is read was allowed.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from protocol.states import Conn, Disk, Role
from replicator.engine import split_brain
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from tests.simulation.checkers.guard import Guard
from tests.simulation.checkers.promises import Promises
from tests.simulation.medium import Medium, stamps
from tests.simulation.pair import MIB, Node, Pair, differing_blocks

SIZE = 8 * MIB + 512 * 1024
"""Three extents of the activity log, as few bytes as that takes."""
PLACES = [
    *range(0, 1024, 31),
    *range(1024, 2048, 31),
    *range(2048, 2144, 3),
]
"""Blocks that the workload writes to: as many in every extent of the activity log."""


SYMMETRICAL = [p for p in split_brain.NO_PRIMARY if p not in ("discard-local", "discard-remote")]
"""Policies of after-sb-0pri by which both nodes choose the same copy."""


class Account:
    """Per sector: ids of submitted writes in order; per node and sector the index of the oldest
    that this node may show: what a flush has promised to be there."""

    def __init__(self) -> None:
        self.writes: dict[int, list[int]] = {}
        self.floor: dict[str, dict[int, int]] = {"alice": {}, "bob": {}}
        self._completed: dict[str, dict[int, int]] = {"alice": {}, "bob": {}}
        self._given_up: dict[str, dict[int, int]] = {"alice": {}, "bob": {}}
        """Per node and sector: how many writes there were when a split brain was last solved
        against this node."""

    def submitted(self, sectors: range, number: int) -> None:
        for sector in sectors:
            self.writes.setdefault(sector, [0]).append(number)

    def completed(self, node: str, sectors: range, number: int) -> None:
        """A write was acknowledged by the Primary `node`."""
        completed, before = self._completed[node], self._given_up[node]
        for sector in sectors:
            index = self.writes[sector].index(number)
            if index >= before.get(sector, 0):
                completed[sector] = max(index, completed.get(sector, 0))

    def before_flush(self, node: str) -> dict[int, int]:
        return dict(self._completed[node])

    def flushed(self, promised: dict[int, int], nodes: set[str]) -> None:
        """A flush has promised these on the disks of `nodes`."""
        for node in nodes:
            floor = self.floor[node]
            for sector, index in promised.items():
                floor[sector] = max(index, floor.get(sector, 0))

    def forget_completions(self, node: str) -> None:
        """After a crash a completed write that was not flushed is only allowed, not promised."""
        self._completed[node].clear()

    def given_up(self, node: str) -> None:
        """A split brain was solved against this node: see united(). What it has completed and promised
        is void from here on, not only when both are in sync again: before that it may be promoted
        again, or the next split brain may come."""
        self.floor[node].clear()
        self._completed[node].clear()
        self._given_up[node] = {sector: len(numbers) for sector, numbers in self.writes.items()}

    def not_given_up(self, node: str, promised: dict[int, int]) -> dict[int, int]:
        """What of this was submitted after a split brain was last solved against `node`: the rest was
        on a copy that is no more."""
        before = self._given_up[node]
        return {
            sector: index for sector, index in promised.items() if index >= before.get(sector, 0)
        }

    def united(self, discarded: str | None) -> None:
        """Both copies are said to be equal: whatever was promised on either node must be there,
        save what an administrator has given up on one of them."""
        alice, bob = self.floor["alice"], self.floor["bob"]
        if discarded is not None:
            kept = bob if discarded == "alice" else alice
            # Nor does its next flush, as Primary again, promise what was completed on the copy
            # that is no more; it does promise what was submitted after the decision.
            completed = self._completed[discarded]
            self._completed[discarded] = self.not_given_up(discarded, completed)
        else:
            kept = {s: max(alice.get(s, 0), bob.get(s, 0)) for s in alice.keys() | bob.keys()}
        self.floor = {"alice": dict(kept), "bob": dict(kept)}

    def violations(self, node: str, medium: Medium) -> list[str]:
        """What this disk of `node` should not hold."""
        found = []
        floor = self.floor[node]
        for sector, numbers in self.writes.items():
            value = stamps(medium.current_page(sector >> 3))[sector & 7]
            if value == numbers[-1]:
                continue
            allowed = numbers[floor.get(sector, 0) :]
            if value < 0:
                found.append(f"sector {sector} is torn inside")
            elif value not in allowed:
                found.append(f"sector {sector} holds {value}, allowed {allowed} of {numbers}")
        return found


@dataclass(frozen=True)
class Act:
    """One step of a history: what is done, and the seed of everything random about it, so that a
    history without some other step still does the same here."""

    name: str
    seed: int


WEIGHTS = {
    "burst": 40,
    "flush": 12,
    "pause": 6,
    "into_resync": 6,
    "kill": 4,
    "power_loss": 4,
    "start": 7,
    "cut": 3,
    "mend": 4,
    "break_connections": 2,
    "fail_over": 3,
    "promote_wrongly": 1,
    "disconnect": 2,
    "connect": 3,
}
"""Kinds of acts (methods `_NAME` of History) and how often they are chosen."""


LENGTHS = (4, 6, 8, 12, 16, 24, 40, 60, 120)
"""How many acts a history has. Short ones are cheap and seldom find anything twice; long ones reach
what needs several faults in a row."""


class History:
    """One invented history; run() plays it, heals everything, and checks.

    steps: how many acts; 0: the seed chooses. acts: other than those that the seed stands for, to
    play a part of it.
    """

    weights = WEIGHTS
    source = "acts"
    """With the seed: where the acts come from, so that each kind of history has its own."""

    def __init__(self, seed: int, steps: int = 0, acts: list[Act] | None = None) -> None:
        self.seed = seed
        self.acts = self._invent(steps) if acts is None else acts
        self.rng = rng = random.Random(seed)
        self.protocol = rng.choice("ABCCC")
        self.pair = Pair(
            seed,
            SIZE,
            net=NetSettings(
                protocol=self.protocol,
                max_epoch_size=rng.choice((3, 64, 2048)),
                use_rle=rng.random() < 0.8,
            ),
            disk=DiskSettings(al_extents=rng.choice((2, 3, 67)), c_max_rate=0),
            epoch_per_completion=rng.random() < 0.2,
        )
        self.pair.disk_delay = rng.choice((0.0001, 0.0005, 0.004))
        self.pair.network.base_latency = rng.choice((0.0001, 0.0004, 0.003))
        self.account = Account()
        self.current: set[str] = set()
        """Nodes that have everything that was promised."""
        self.split = False
        """Both nodes have been promoted apart from each other: a split brain is to be expected."""
        self.discarded: str | None = None
        """The node whose changes the administrator has given up."""
        self.number = 0
        self.guard: Guard | None = None

    def _invent(self, steps: int) -> list[Act]:
        rng = random.Random(f"{self.source} {self.seed}")
        steps = steps or rng.choice(LENGTHS)
        chosen = rng.choices(list(self.weights), list(self.weights.values()), k=steps)
        return [Act(name, rng.getrandbits(48)) for name in chosen]

    # --- the play -----------------------------------------------------------------------------

    def run(self) -> None:
        self._choose_policies()
        self.guard = Guard(self.pair, suspected=self._may_suspect, gave_up=self._gave_up)
        self.guard.promises = [
            Promises(self.pair, number, self.protocol, account.writes, self._may_suspect)
            for number, account in enumerate(self._books())
        ]
        if self.rng.random() < 0.05:
            self.pair.up_synced()
        else:
            self.pair.up_prepared()
        self.current = {"alice", "bob"}
        for act in self.acts:
            self.rng = random.Random(act.seed)
            self._note(act.name)
            getattr(self, f"_{act.name}")()
            self.guard.look()
            self._note_current()
        self.rng = random.Random(self.seed)
        self.heal()
        self.check()

    def _books(self) -> list[Account]:
        """The accounts of all volumes."""
        return [self.account]

    def _choose_policies(self) -> None:
        """Some pairs solve a split brain by themselves. With more than one volume the copies that
        are given up may lie on both nodes, which the account could not follow."""
        rng = random.Random(f"policies {self.seed}")
        if len(self.pair.alice.media) == 1 and rng.random() < 0.4:
            net = self.pair.net
            net.after_sb_0pri = rng.choice(SYMMETRICAL)
            net.after_sb_1pri = rng.choice(split_brain.ONE_PRIMARY)
            net.after_sb_2pri = rng.choice(split_brain.TWO_PRIMARIES)
            net.always_asbp = rng.random() < 0.3

    def _may_suspect(self) -> bool:
        """A split brain may be claimed that the lineage of the copies does not show."""
        return self.split

    def _gave_up(self, node: str, volume: int) -> None:
        self._books()[volume].given_up(node)
        self._binds_nobody(node, volume)

    def _binds_nobody(self, node: str, volume: int) -> None:
        """What this node, as Primary, had flushed alone need not be anywhere any more."""
        if self.guard is not None:
            self.guard.promises[volume].given_up(node)

    def _era(self, primary: Node, volume: int) -> int | None:
        return self.guard.era_of_writes(primary.name, volume) if self.guard is not None else None

    def _acknowledged(
        self, primary: Node, volume: int, began: int | None, *, flushed: bool = False
    ) -> None:
        if self.guard is not None:
            self.guard.completed(primary.name, volume, began, flushed=flushed)

    def _completed(self, primary: Node, volume: int, sectors: range, number: int) -> None:
        if self.guard is not None:
            self.guard.promises[volume].written(primary, sectors, number)

    def _promise(self, primary: Node, volume: int, promised: dict[int, int]) -> Callable[[], None]:
        """A flush is asked for that promises this: what has to be called when it is completed."""
        if self.guard is None:
            return lambda: None
        promises, account = self.guard.promises[volume], self._books()[volume]
        before = promises.holders(primary)

        def completed() -> None:
            kept = account.not_given_up(primary.name, promised)
            promises.flushed(primary, before, kept, self.number)

        return completed

    def _note(self, words: str) -> None:
        """A line of the trace, among what the nodes log."""
        self.pair.lines.append(f"{self.pair.clock.time:10.4f} ------ {words}")

    @property
    def nodes(self) -> list[Node]:
        return [self.pair.alice, self.pair.bob]

    def _other(self, node: Node) -> Node:
        return self.pair.bob if node is self.pair.alice else self.pair.alice

    def _primaries(self) -> list[Node]:
        return [n for n in self.nodes if n.resource is not None and n.resource.role is Role.Primary]

    def _primary(self) -> Node | None:
        """A Primary; any of the two, where a mistake has made both so."""
        primaries = self._primaries()
        return self.rng.choice(primaries) if primaries else None

    def _note_current(self) -> None:
        """Who has all data now: both, once they are in sync again."""
        if self.guard is not None and self.guard.given_up is not None:
            self.discarded, self.guard.given_up = self.guard.given_up, None
        if not self._together():
            return
        primary = self._primary()
        if primary is not None and primary.r.replication.log.unacknowledged:
            return
        self.account.united(self.discarded)
        self.discarded = None
        self.split = False
        if primary is not None or not self.current:
            self.current = {"alice", "bob"}

    def _alone(self) -> None:
        """The Primary's peer may miss what is written from here on."""
        primaries = self._primaries()
        if len(primaries) > 1:
            self.split = True
            self.current = set()
        elif primaries and not self._together():
            self.current &= {primaries[0].name}

    def _burst(self) -> None:
        primary = self._primary()
        if primary is None or not primary.is_(disk=Disk.UpToDate):
            return
        for _ in range(self.rng.randint(1, 12)):
            self._write(primary)
        self.pair.run(self.rng.choice((0.0, 0.0003, 0.001, 0.01)))
        self._alone()

    def _write(self, primary: Node) -> None:
        self.number += 1
        number = self.number
        first = self.rng.choice(PLACES) * 8 + self.rng.randrange(8)
        sectors = range(first, first + self.rng.choice((1, 3, 8, 8, 17)))
        self.account.submitted(sectors, number)
        began = self._era(primary, 0)

        def done(errno: int) -> None:
            if not errno:
                self.account.completed(primary.name, sectors, number)
                self._completed(primary, 0, sectors, number)
                self._acknowledged(primary, 0, began)
                self._alone()

        data = struct.pack("<Q", number) * (64 * len(sectors))
        primary.volume().write(first * 512, data, self.rng.random() < 0.05, done)

    def _flush(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        promised = self.account.before_flush(primary.name)
        completed = self._promise(primary, 0, promised)

        def done(errno: int) -> None:
            if not errno:
                completed()
                both = self._together() and self.protocol == "C"
                self.account.flushed(promised, {"alice", "bob"} if both else {primary.name})
                self._alone()

        primary.volume().flush(done)
        self.pair.run(self.rng.choice((0.0, 0.001, 0.01, 0.1)))

    def _pause(self) -> None:
        self.pair.run(self.rng.choice((0.01, 0.3, 2.0, 12.0)))

    def _into_resync(self) -> None:
        """Go on until some node is in a resync or its handshake, and a few events into it."""
        clock = self.pair.clock
        end = clock.time + 3.0
        while clock.time < end and not any(
            n.resource is not None and n.volume().state.conn > Conn.Connected for n in self.nodes
        ):
            if not clock.step():
                break
        for _ in range(self.rng.choice((0, 5, 20, 60, 120))):
            clock.step()

    def _some_running(self) -> Node | None:
        running = [n for n in self.nodes if n.resource is not None]
        return self.rng.choice(running) if running else None

    def _kill(self) -> None:
        self._end(lambda node: node.kill())

    def _power_loss(self) -> None:
        self._end(lambda node: node.power_loss())

    def _end(self, how: Callable[[Node], None]) -> None:
        node = self._some_running()
        if node is not None:
            self._end_of(node, how)
            self.pair.run(self.rng.choice((0.0, 0.001, 1.0)))

    def _end_of(self, node: Node, how: Callable[[Node], None]) -> None:
        self._alone()
        self.account.forget_completions(node.name)
        if node.r.role is Role.Primary and self.protocol != "C":
            # A flush promised the Primary's disk only.
            self.current &= {node.name}
        self._note(f"  {node.name}")
        how(node)
        if self.guard is not None:
            self.guard.look()

    def _start(self) -> None:
        down = [n for n in self.nodes if n.resource is None]
        if down:
            node = self.rng.choice(down)
            self._note(f"  {node.name}")
            node.up()

    def _cut(self) -> None:
        both = {"alice", "bob"}
        self.pair.network.cut = self.rng.choice((both, both, {"alice"}, {"bob"}))
        self.pair.run(self.rng.choice((0.0, 0.2, 5.0, 20.0)))
        self._alone()

    def _mend(self) -> None:
        if self.pair.network.cut:
            # What was lost on the way stays lost: the connections of that time are of no use.
            self.pair.network.cut = set()
            self.pair.network.break_all()
            self._alone()

    def _break_connections(self) -> None:
        self.pair.network.break_all()
        self._alone()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except ReplicatorError as error:
            self._note(f"  refused: {error.message}")

    def _fail_over(self) -> None:
        """Another node becomes Primary, if it has all the data and nobody else is Primary."""
        self._alone()
        if self.protocol != "C" and self.pair.network.cut:
            return  # nobody can say what of the last writes has reached the other side
        primary = self._primary()
        if primary is not None and self.rng.random() < 0.5:
            self._try(primary.secondary)
            primary = self._primary()
        if primary is not None:
            return
        candidates = [n for n in self.nodes if n.resource is not None and n.name in self.current]
        if candidates:
            node = self.rng.choice(candidates)
            self._note(f"  {node.name}")
            self._try(node.primary)
            self._alone()

    def _promote_wrongly(self) -> None:
        """An operator's or cluster manager's mistake: promote whoever is there, whatever it has."""
        running = [n for n in self.nodes if n.resource is not None]
        if not running:
            return
        node = self.rng.choice(running)
        if node in self._primaries():
            return
        lost = self._primary() is not None or node.name not in self.current
        if self.protocol != "C" and lost:
            return  # what a Primary completes before it sees that it is alone may be lost with it
        self._note(f"  {node.name}")
        before = set(self.current)
        self._try(node.primary)
        if node in self._primaries() and not node.synced:
            self.split = self.split or before != {node.name}
            self.current &= {node.name}

    def _disconnect(self) -> None:
        node = self._some_running()
        if node is not None and node.r.conn is not Conn.StandAlone:
            self._try(node.disconnect)
            self._alone()

    def _connect(self) -> None:
        for node in self.nodes:
            if node.resource is not None and node.r.conn is Conn.StandAlone:
                self._try(node.connect)

    # --- the end ------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults: the pair must come together by itself, or after a split brain with the
        one decision that only a person can take."""
        self._note("heal")
        self._mend()
        for node in self.nodes:
            if node.resource is None:
                node.up()
        self._meet()
        if self._stand_alone():
            assert self.split, "a split brain that nobody has caused"
            self._give_one_up()
        self.pair.settle(300.0)
        self._note_current()
        if self._primary() is None:
            self.rng.choice(self.nodes).primary()
        primary = self._primary()
        assert primary is not None
        primary.flush()
        self.pair.run(30.0)

    def _meet(self) -> None:
        """Go on until both are in sync, or both have refused."""

        def settled() -> bool:
            return self._together() or self._stand_alone()

        def missed() -> bool:
            """One was told to connect in the moment in which the other one refused it."""
            alone = any(node.is_(Conn.StandAlone) for node in self.nodes)
            return alone and self.pair.clock.time > late

        late = self.pair.clock.time + 60.0
        self._connect()
        self.pair.run_until(lambda: settled() or missed(), 300.0)
        if not settled():
            self._connect()
            self.pair.run_until(settled, 300.0)

    def _together(self) -> bool:
        return all(node.synced for node in self.nodes)

    def _stand_alone(self) -> bool:
        return all(node.is_(Conn.StandAlone) for node in self.nodes)

    def _give_one_up(self) -> None:
        victim, other = self.rng.sample(self.nodes, 2)
        self._note(f"  discard {victim.name}'s changes")
        self.discarded = victim.name
        victim.secondary()
        if self.pair.net.after_sb_0pri != "disconnect" and other.r.role is Role.Primary:
            # A policy comes before the person, and may give up the other one.
            other.secondary()
        victim.connect(discard_my_data=True)
        other.connect()

    def check(self) -> None:
        alice, bob = self.nodes
        problems = self.account.violations("alice", alice.media[0])
        if differing := differing_blocks(alice, bob):
            problems.append(f"{len(differing)} blocks differ, the first is {differing[0]}")
        if self.guard is not None:
            problems += self.guard.counters.left_when_idle()
        for node in self.nodes:
            bitmap = node.volume().bitmap
            assert bitmap is not None
            if bitmap.weight:
                problems.append(f"{node.name}: {bitmap.weight} bits are still set")
            if node.volume().locks.count or node.volume().application.pending:
                problems.append(f"{node.name}: something still holds locks or is pending")
        assert not problems, "\n".join(problems)
