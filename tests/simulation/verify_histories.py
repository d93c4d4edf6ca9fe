"""Invented histories in which either node verifies online, again and again, among everything else.

No disk is damaged here, and two nodes that are Connected and UpToDate hold the same but for what is
under way: so a verify that finds a difference is wrong, or has found a fault of the engine. And no
range stays locked, nor does either node accuse the other, however a run ends.
"""

from __future__ import annotations

from replicator.errors import ReplicatorError
from tests.simulation.harsh_histories import ACCUSATIONS
from tests.simulation.histories import Act, History

WEIGHTS = {
    "burst": 40,
    "flush": 8,
    "verify": 30,
    "short_pause": 25,
    "pause": 10,
    "switch_roles": 8,
    "start": 4,
    "connect": 4,
    "mend": 3,
    "break_connections": 2,
    "into_resync": 2,
    "kill": 1,
    "power_loss": 1,
    "cut": 1,
    "fail_over": 1,
    "disconnect": 1,
}


class VerifyHistory(History):
    """One invented history; run() plays it, heals everything, and checks."""

    weights = WEIGHTS
    source = "verify acts"

    def __init__(self, seed: int, steps: int = 0, acts: list[Act] | None = None) -> None:
        super().__init__(seed, steps, acts)
        self.pair.net.verify_alg = "crc32c"
        self.kernels = self.rng.random() < 0.4
        """Each node takes the other for a kernel, as far as verifies are concerned."""
        self.pair.disk.c_max_rate = self.rng.choice((0, 0, 4 << 20))
        self.verifies = 0

    def _verify(self) -> None:
        node = self._some_running()
        if node is None:
            return
        if self.kernels:
            for one in self.nodes:
                link = one.r.replication.link if one.resource is not None else None
                if link is not None:
                    link.peer_extension = 0
        start = self.rng.choice((None, 0, 0, self.rng.randrange(0, 16000)))
        self._try(lambda: node.do(lambda done: node.r.verify(0, start, None, done)))
        self.verifies += 1

    def _short_pause(self) -> None:
        self.pair.run(self.rng.choice((0.0001, 0.001, 0.004)))

    def _switch_roles(self) -> None:
        """A planned one: the Primary steps back, the other takes over."""
        primary = self._primary()
        if primary is None or not self._together():
            return
        try:
            primary.secondary()
            self._other(primary).primary()
        except ReplicatorError:
            pass

    def check(self) -> None:
        super().check()
        wrong = [line for line in self.pair.lines if "out of sync: start=" in line]
        wrong += [line for line in self.pair.lines if any(w in line for w in ACCUSATIONS)]
        assert not wrong, "\n".join(wrong)
