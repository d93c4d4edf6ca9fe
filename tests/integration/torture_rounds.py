"""Rounds of faults on two real nodes under load, with a look at every block after each.

A round begins and ends with both nodes connected, in sync and with the same bytes. What each kind of
round does to them is below; the three kinds that kill in the middle of writes are crash_rounds'.
What is checked after each round, besides what crash_rounds checks:
  no daemon gave its connection up or its disk away that was not made to (a round in which nobody
      disconnects must come back without `connect`);
  the metadata on both disks is well formed;
  no daemon holds more descriptors or memory than torture_checks allows;
and when two nodes have become Primary apart from each other:
  neither copy is changed before the administrator has decided, then both have the winner's.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import Any

from tests.integration.crash_client import CrashClient
from tests.integration.crash_journal import Journal
from tests.integration.crash_rounds import CrashRounds, RoundFailed
from tests.integration.pair import RESOURCE, Node, Pair
from tests.integration.torture_checks import Bounds, metadata_problems
from tests.integration.torture_disks import PlainDisk
from tests.integration.torture_faults import ALONE, GROUPS, Fault, Stage, ask, connect
from tests.tools.faulty_network import FaultyNetwork

LOAD_SECONDS = 120.0
"""The longest that the load of a round may take, stalls included."""
PAUSE = 0.003
"""Seconds between the looks of the client at its answers: the load leaves room for others."""
SPLIT_NUMBERS = 1 << 32
"""Numbers of writes on the other side of a split brain begin that much higher."""


def _nothing() -> None:
    """A round of writes and no more."""


class _Actor(Thread):
    """Does something to the nodes while the client writes; its error is raised by `finish`."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(name="actor", daemon=True)
        self.done = Event()
        self._act = act
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._act()
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def finish(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


class TortureRounds(CrashRounds):
    """pair: not started; network: between its nodes; disks: by node name; seed: of all choices;
    longest: seconds that a fault lasts at most, others not counted that overlap with it."""

    def __init__(
        self,
        pair: Pair,
        protocol: str,
        network: FaultyNetwork,
        disks: dict[str, PlainDisk],
        seed: str,
        longest: float = 6.0,
    ) -> None:
        super().__init__(pair, protocol, "", 0)
        self._rng = random.Random(seed)
        self.network = network
        self.disks = disks
        self._longest = longest
        self.bounds = Bounds()
        self.done: Counter[str] = Counter()
        """Rounds and faults, by name."""
        self.story: list[str] = []
        """What was done in the round that is under way, with its times."""

    def start(self) -> None:
        """As crash_rounds does, and all blocks are unmapped: a full file system has no room for them."""
        super().start()
        with self._primary.nbd() as handle:
            handle.trim(self._size, 0)
            handle.flush()
        self._before = self._image(self._primary)

    def play(self, kind: str) -> None:
        """One round. Raises RoundFailed, PairError, ClientError or an error of the command line."""
        self.story = [f"round {kind}; Primary {self._primary.name}"]
        KINDS[kind](self)
        self._at_rest()
        self.done[kind] += 1
        self.tally.rounds += 1

    # ---- kinds of rounds

    def _one_fault(self) -> None:
        groups = [*GROUPS.values(), ALONE]
        fault = self._pick(self._rng.choice(groups))
        self._under_load(lambda: self._last(fault, self._duration()))

    def _many_faults(self) -> None:
        count = self._rng.randint(3, 9)
        self._under_load(lambda: self._overlapping(count))

    def _primary_killed_among_faults(self) -> None:
        """Nobody is promoted in its place, so that it must have everything, whatever the peer has."""
        journal, client = self._client(killed := Event())

        def kill() -> None:
            self._tell(f"kill {self._primary.name}")
            killed.set()
            self._primary.kill9()

        count = self._rng.randint(1, 4)
        actor = _Actor(lambda: self._overlapping(count, ("peer", "network"), kill))
        actor.start()
        client.run(actor.done.is_set, seconds=LOAD_SECONDS, pause=PAUSE)
        actor.finish()
        self._expect(journal, self._image(self._primary), journal.acknowledged, "killed Primary")
        self._await_up(self._up(self._primary))
        # It may just be meeting its peer, which is no moment to change a role.
        self._await(
            lambda: ask(self._primary, "primary", force=False),
            lambda: f"{self._primary.name} cannot become Primary again: {self._primary.words()}",
        )
        image = self._image(self._primary)
        self._expect(journal, image, journal.acknowledged, "Primary that was killed")
        self.tally.add_killed(journal)
        self._begin(journal, image)
        self._under_load(_nothing)

    def _split_brain(self) -> None:
        """The network is silent, the peer is promoted, both are written to, one of them gives in."""
        old, heir = self._primary, self._peer

        mine, theirs = self._two_primaries(
            begin=lambda: self.network.silence(True), end=lambda: self.network.silence(False)
        )
        self._await_split_brain()
        journals = {old.name: mine, heir.name: theirs}
        images = {
            node.name: self._checked(journals[node.name], node, "before the decision")
            for node in (old, heir)
        }
        winner, loser = self._rng.sample((old, heir), 2)
        self._discard(loser, winner)
        if self._image(winner) != images[winner.name]:
            raise RoundFailed(f"{winner.name} won the split brain, but its copy was changed")
        self._go_on(winner, loser, journals[winner.name], mine, theirs)

    def _frozen_primary_replaced(self) -> None:
        """The Primary hangs, its peer is promoted; then the Primary goes on as if nothing were."""
        old, heir = self._primary, self._peer

        mine, theirs = self._two_primaries(begin=old.freeze, end=old.thaw)
        self._checked(mine, old, "after it was thawed")
        self._await_apart()
        self._discard(old, heir)
        self._go_on(heir, old, theirs, mine, theirs)

    def _roles_exchanged(self) -> None:
        self._exchange_roles()
        self._under_load(_nothing)

    # ---- load

    def _client(self, killed: Event | None = None) -> tuple[Journal, CrashClient]:
        return self._client_of(self._primary, Journal(self._before, self._number), killed)

    def _client_of(
        self, node: Node, journal: Journal, killed: Event | None = None
    ) -> tuple[Journal, CrashClient]:
        # A source of its own: the actor draws from ours at the same time.
        rng = random.Random(self._rng.getrandbits(64))
        return journal, CrashClient(node.run_dir / f"{RESOURCE}.nbd.sock", journal, rng, killed)

    def _under_load(self, act: Callable[[], None]) -> None:
        """Write while `act` is done, then wait until both are in sync, and check."""
        journal, client = self._client()
        first, after = self._some(), self._some()
        client.run(lambda: len(journal.writes) >= first, pause=PAUSE)
        actor = _Actor(act)
        actor.start()
        client.run(actor.done.is_set, seconds=LOAD_SECONDS, pause=PAUSE)
        actor.finish()
        enough = len(journal.writes) + after
        client.run(lambda: len(journal.writes) >= enough, pause=PAUSE)
        self._settle(client, journal)

    def _some(self) -> int:
        """A number of writes."""
        return self._rng.randint(20, 300)

    # ---- faults

    def _stage(self) -> Stage:
        return Stage(self._primary, self._peer, self.network, self.disks, self._rng)

    def _pick(self, faults: Sequence[Fault]) -> Fault:
        return self._rng.choice([fault for fault in faults if self._possible(fault)])

    def _possible(self, fault: Fault) -> bool:
        node = {"peer_disk_fails": self._peer, "primary_disk_fails": self._primary}
        return fault.__name__ not in node or self.disks[node[fault.__name__].name].can_fail

    def _duration(self) -> float:
        """Seconds: mostly a moment, sometimes longer than any time limit of the connection."""
        return self._rng.choice(
            (0.0, self._rng.uniform(0, 0.5), self._rng.uniform(0, self._longest))
        )

    def _tell(self, what: str) -> None:
        self.story.append(f"{time.strftime('%H:%M:%S')} {what}")

    def _start_fault(self, fault: Fault) -> Iterator[None]:
        self._tell(fault.__name__)
        self.done[fault.__name__] += 1
        running = fault(self._stage())
        next(running)
        return running

    def _end_fault(self, name: str, running: Iterator[None]) -> None:
        self._tell(f"{name} ends")
        if next(running, "over") != "over":
            raise AssertionError(f"{name} has more than one yield")

    def _last(self, fault: Fault, seconds: float) -> None:
        running = self._start_fault(fault)
        time.sleep(seconds)
        self._end_fault(fault.__name__, running)

    def _overlapping(
        self,
        count: int,
        groups: Sequence[str] = tuple(GROUPS),
        after_last: Callable[[], None] = _nothing,
    ) -> None:
        """Start `count` faults, one of a group at a time, and end them in any order; `after_last`:
        done when all are started."""
        active: dict[str, tuple[str, Iterator[None]]] = {}
        while count or active:
            group = self._rng.choice(groups if count else list(active))
            if group in active:
                self._end_fault(*active.pop(group))
            else:
                fault = self._pick(GROUPS[group])
                active[group] = fault.__name__, self._start_fault(fault)
                count -= 1
                if not count:
                    after_last()
            time.sleep(self._duration() / 2)

    # ---- two Primaries

    def _two_primaries(
        self, begin: Callable[[], None], end: Callable[[], None]
    ) -> tuple[Journal, Journal]:
        """While the Primary is written to, part it from its peer, promote that and write to it too;
        returns what was written to either, all of it answered."""
        heir, mine_some = self._peer, self._some()
        mine, client = self._client()
        made: list[Journal] = []

        def act() -> None:
            acknowledged = list(mine.acknowledged)
            begin()
            self._await_alone(heir)
            self._promote(heir)
            found = self._image(heir)
            must = mine.prefix(found) if self._protocol == "A" else acknowledged
            self._expect(
                mine, found, must, f"{heir.name}, promoted while it could not see its peer"
            )
            theirs, other = self._client_of(heir, Journal(found, self._number + SPLIT_NUMBERS))
            made.append(theirs)
            enough = self._some()
            other.run(lambda: len(theirs.writes) >= enough, pause=PAUSE)
            other.finish()
            end()

        client.run(lambda: len(mine.writes) >= mine_some, pause=PAUSE)
        actor = _Actor(act)
        actor.start()
        client.run(actor.done.is_set, seconds=LOAD_SECONDS, pause=PAUSE)
        actor.finish()
        client.finish()
        return mine, made[0]

    def _go_on(self, winner: Node, loser: Node, journal: Journal, *journals: Journal) -> None:
        """After the decision: the winner, whose journal it is, is written to, and both are equal."""
        self.tally.others += sum(len(one.writes) for one in journals)
        self._before = self._checked(journal, winner, "after the decision")
        self._number = max(one.next_number for one in journals)
        self._primary, self._peer = winner, loser
        self._under_load(_nothing)

    def _await_alone(self, node: Node) -> None:
        self._await(
            lambda: self._volume(node)["peer_role"] == "Unknown",
            lambda: f"{node.name} does not notice that its peer is silent",
        )

    def _await_split_brain(self) -> None:
        def both_alone() -> bool:
            return all(self._resource(node)["cstate"] == "StandAlone" for node in self._pair.nodes)

        self._await(both_alone, lambda: f"no split brain: {[n.words() for n in self._pair.nodes]}")
        for node in self._pair.nodes:
            said = self._resource(node)["last_error"]
            if "split brain" not in said:
                raise RoundFailed(f"{node.name} is StandAlone and does not say why: {said!r}")

    def _await_apart(self) -> None:
        """Both were Primary: whether or not the old one wrote, they must not just go together."""

        def apart() -> bool:
            return any(self._resource(node)["cstate"] == "StandAlone" for node in self._pair.nodes)

        self._await(apart, lambda: f"two Primaries: {[n.words() for n in self._pair.nodes]}")

    def _discard(self, loser: Node, winner: Node) -> None:
        """As docs/guide.md says it."""
        self._tell(f"{loser.name} gives in")
        self._call(loser, "secondary")
        ask(loser, "disconnect", force=True)
        connect(loser, discard_my_data=True)
        connect(winner)
        self._await_synced()

    def _resource(self, node: Node) -> dict[str, Any]:
        found: dict[str, Any] = self._call(node, "status")
        return found

    # ---- checks

    def _checked(self, journal: Journal, node: Node, when: str) -> bytes:
        image = self._image(node)
        self._expect(journal, image, journal.writes, f"disk of {node.name} {when}")
        return image

    def _at_rest(self) -> None:
        problems = [
            problem
            for node in self._pair.nodes
            for problem in (*self.bounds.problems(node), *metadata_problems(node, closed=False))
        ]
        for node in self._pair.nodes:
            marked = self._volume(node)["oos"]
            if marked:
                problems.append(f"{node.name}: in sync, but {marked} KiB are out of sync")
        if problems:
            raise RoundFailed("; ".join(problems))

    def end(self) -> None:
        """Take both down in good order, and look at what they leave. Raises RoundFailed."""
        # Otherwise the Primary marks what it does not know to be stable on the peer that leaves.
        with self._primary.nbd() as handle:
            handle.flush()
        self._call(self._primary, "secondary")
        for node in self._pair.nodes:
            node.down()
        problems = [p for node in self._pair.nodes for p in metadata_problems(node, closed=True)]
        if self._pair.difference(size=self._size) is not None:
            problems.append("the disks differ after both went down")
        if problems:
            raise RoundFailed("; ".join(problems))


KINDS: dict[str, Callable[[TortureRounds], None]] = {
    "kill-primary": CrashRounds._kill_primary,
    "kill-secondary": CrashRounds._kill_secondary,
    "kill-both": CrashRounds._kill_both,
    "one-fault": TortureRounds._one_fault,
    "many-faults": TortureRounds._many_faults,
    "primary-killed-among-faults": TortureRounds._primary_killed_among_faults,
    "split-brain": TortureRounds._split_brain,
    "frozen-primary-replaced": TortureRounds._frozen_primary_replaced,
    "roles-exchanged": TortureRounds._roles_exchanged,
}
WEIGHTS = {"one-fault": 4, "many-faults": 4, "primary-killed-among-faults": 2}
"""How often against once for the others."""
