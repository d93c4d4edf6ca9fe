"""Invented histories of a pair, each from one seed, and an account of what had to survive.

The account knows nothing of the engine: it notes for every sector which writes were submitted and
which of them a flush has promised, and later asks whether what is read was allowed.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from tests.simulation.pair import MIB, Node, Pair

SIZE = 12 * MIB
BLOCKS_IN_USE = 96
"""Blocks that the workload writes to, spread over all extents."""


class Account:
    """Per sector: ids of submitted writes in order, and the index of the oldest still allowed."""

    def __init__(self) -> None:
        self.writes: dict[int, list[int]] = {}
        self.floor: dict[int, int] = {}
        self._completed: dict[int, int] = {}

    def submitted(self, sectors: range, number: int) -> None:
        for sector in sectors:
            self.writes.setdefault(sector, [0]).append(number)

    def completed(self, sectors: range, number: int) -> None:
        for sector in sectors:
            index = self.writes[sector].index(number)
            self._completed[sector] = max(index, self._completed.get(sector, 0))

    def before_flush(self) -> dict[int, int]:
        return dict(self._completed)

    def flushed(self, promised: dict[int, int]) -> None:
        for sector, index in promised.items():
            self.floor[sector] = max(index, self.floor.get(sector, 0))

    def forget_completions(self) -> None:
        """After a crash a completed write that was not flushed is only allowed, not promised."""
        self._completed.clear()

    def violations(self, data: bytes) -> list[str]:
        found = []
        for sector, numbers in self.writes.items():
            content = data[sector * 512 : sector * 512 + 512]
            value = struct.unpack_from("<Q", content)[0]
            allowed = numbers[self.floor.get(sector, 0) :]
            if content != struct.pack("<Q", value) * 64:
                found.append(f"sector {sector} is torn inside")
            elif value not in allowed:
                found.append(f"sector {sector} holds {value}, allowed {allowed} of {numbers}")
        return found


class History:
    """One invented history; run() plays it, heals everything, and checks."""

    def __init__(self, seed: int, steps: int = 60) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
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
        self.steps = steps
        self.account = Account()
        self.current: set[str] = set()
        """Nodes that have everything that was promised."""
        self.number = 0
        self.trace: list[str] = []

    # --- the play -----------------------------------------------------------------------------

    def run(self) -> None:
        self.pair.up_synced()
        self.current = {"alice", "bob"}
        acts: list[tuple[int, Callable[[], None]]] = [
            (40, self._burst),
            (12, self._flush),
            (6, self._pause),
            (4, self._kill),
            (4, self._power_loss),
            (7, self._start),
            (3, self._cut),
            (4, self._mend),
            (2, self._break_connections),
            (3, self._fail_over),
            (2, self._disconnect),
            (3, self._connect),
        ]
        weights = [weight for weight, _act in acts]
        for _ in range(self.steps):
            act = self.rng.choices(acts, weights)[0][1]
            self.trace.append(f"{self.pair.clock.time:9.4f} {act.__name__}")
            act()
            self._note_current()
        self.heal()
        self.check()

    @property
    def nodes(self) -> list[Node]:
        return [self.pair.alice, self.pair.bob]

    def _primary(self) -> Node | None:
        for node in self.nodes:
            if node.resource is not None and node.resource.role is Role.Primary:
                return node
        return None

    def _note_current(self) -> None:
        """Who has all data now, seen from the Primary."""
        primary = self._primary()
        if primary is None:
            return
        if all(n.resource is not None and n.synced for n in self.nodes):
            self.current = {"alice", "bob"}

    def _alone(self) -> None:
        """The Primary's peer may miss what is written from here on."""
        primary = self._primary()
        if primary is not None and not all(n.resource is not None and n.synced for n in self.nodes):
            self.current = {primary.name}

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
        block = self.rng.randrange(BLOCKS_IN_USE) * 31
        first = block * 8 + self.rng.randrange(8)
        sectors = range(first, first + self.rng.choice((1, 3, 8, 8, 17)))
        self.account.submitted(sectors, number)

        def done(errno: int) -> None:
            if not errno:
                self.account.completed(sectors, number)
                self._alone()

        data = struct.pack("<Q", number) * (64 * len(sectors))
        primary.volume().write(first * 512, data, self.rng.random() < 0.05, done)

    def _flush(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        promised = self.account.before_flush()

        def done(errno: int) -> None:
            if not errno:
                self.account.flushed(promised)
                self._alone()

        primary.volume().flush(done)
        self.pair.run(self.rng.choice((0.0, 0.001, 0.01, 0.1)))

    def _pause(self) -> None:
        self.pair.run(self.rng.choice((0.01, 0.3, 2.0, 12.0)))

    def _some_running(self) -> Node | None:
        running = [n for n in self.nodes if n.resource is not None]
        return self.rng.choice(running) if running else None

    def _kill(self) -> None:
        self._end(lambda node: node.kill())

    def _power_loss(self) -> None:
        self._end(lambda node: node.power_loss())

    def _end(self, how: Callable[[Node], None]) -> None:
        node = self._some_running()
        if node is None:
            return
        self._alone()
        if node is self._primary():
            self.account.forget_completions()
            if self.protocol != "C":
                # A flush promised the Primary's disk only.
                self.current = {node.name}
        self.trace.append(f"          {node.name}")
        how(node)
        self.pair.run(self.rng.choice((0.0, 0.001, 1.0)))

    def _start(self) -> None:
        down = [n for n in self.nodes if n.resource is None]
        if down:
            node = self.rng.choice(down)
            self.trace.append(f"          {node.name}")
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

    def _break_connections(self) -> None:
        self.pair.network.break_all()
        self._alone()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except ReplicatorError as error:
            self.trace.append(f"          refused: {error.message}")

    def _fail_over(self) -> None:
        """Another node becomes Primary, if it has all the data and nobody else is Primary."""
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
            self.trace.append(f"          {node.name}")
            self._try(node.primary)
            self._alone()

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
        """No more faults: the pair must come together by itself."""
        self.trace.append(f"{self.pair.clock.time:9.4f} heal")
        self._mend()
        for node in self.nodes:
            if node.resource is None:
                node.up()
        self._connect()
        self.pair.settle(300.0)
        if self._primary() is None:
            self.rng.choice(self.nodes).primary()
        primary = self._primary()
        assert primary is not None
        primary.flush()
        self.pair.run(30.0)

    def check(self) -> None:
        alice, bob = (node.data() for node in self.nodes)
        problems = self.account.violations(alice)
        if alice != bob:
            differing = [
                i for i in range(0, len(alice), 4096) if alice[i : i + 4096] != bob[i : i + 4096]
            ]
            problems.append(f"{len(differing)} blocks differ, the first at {differing[0]}")
        for node in self.nodes:
            bitmap = node.volume().bitmap
            assert bitmap is not None
            if bitmap.weight:
                problems.append(f"{node.name}: {bitmap.weight} bits are still set")
            if node.volume().locks.count or node.volume().application.pending:
                problems.append(f"{node.name}: something still holds locks or is pending")
        assert not problems, "\n".join(problems)
