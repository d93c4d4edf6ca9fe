"""Histories of faults under `fencing resource-and-stonith`, with a fence-peer handler that does its job.

The handler outdates the other node, if it runs by the command `outdate`, else on its disk; it always
gets there, takes a random while, and sometimes fails. Under these circumstances no order of kills,
cuts and promotions (never forced) may lead to a split brain, to two Primaries, or to the loss of what a
flush has promised; and in the end the pair comes together without a person.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from protocol.states import Disk
from replicator.engine.settings import DiskSettings
from replicator.errors import ReplicatorError
from replicator.metadata.layout import geometry
from replicator.metadata.superblock import Flags, Superblock
from tests.simulation import world
from tests.simulation.histories import History
from tests.simulation.pair import INTERNAL, Node

EXIT_CODES = {0: 4, 5: 3, 17: 6}
"""Of `outdate`, and what outdate-peer makes of them."""


class OutdatePeer:
    """The handlers of one node."""

    def __init__(self, history: FencingHistory, node: Node, clock: world.OwnedClock) -> None:
        self._history = history
        self._node = node
        self._clock = clock
        self.calls: list[str] = []

    def call(self, event: str, volume: int | None, done: Callable[[int], None] | None) -> None:
        self.calls.append(event)
        clock, rng = self._clock, self._history.pair.rng
        if event == "fence-peer":
            assert done is not None
            clock.call_later(rng.choice((0.01, 1.0, 8.0)), lambda: self._fence(done))
        elif done is not None:
            clock.call_soon(lambda: done(0))

    def _fence(self, done: Callable[[int], None]) -> None:
        pair = self._history.pair
        if pair.rng.random() < 0.1:
            done(1)
            return
        peer = self._history._other(self._node)
        disk = peer.volume().state.disk if peer.resource is not None else Disk.Diskless
        if disk is not Disk.Diskless:
            peer.r.outdate(0, lambda error: done(EXIT_CODES.get(_exit_code(error), 20)))
        else:
            done(4 if _outdate_medium(peer) else 3)


def _exit_code(error: ReplicatorError | None) -> int:
    return 0 if error is None else error.exit_code


def _outdate_medium(node: Node) -> bool:
    """`outdate` without a daemon. False: Inconsistent."""
    medium = node.media[0]
    offset = geometry(medium.size, INTERNAL).sb_offset
    superblock = Superblock.decode(medium.read(offset, 4096))
    if not superblock.flags & Flags.CONSISTENT:
        return False
    superblock.flags &= ~Flags.WAS_UP_TO_DATE
    medium.put(offset, superblock.encode())
    return True


class FencingHistory(History):
    def __init__(self, seed: int, steps: int = 0) -> None:
        super().__init__(seed, steps)
        self.protocol = self.pair.net.protocol = "C"
        self.pair.disk = DiskSettings(
            al_extents=self.pair.disk.al_extents, c_max_rate=0, fencing="resource-and-stonith"
        )
        for node in self.nodes:
            node.new_handlers = partial(OutdatePeer, self, node)

    def _promote_wrongly(self) -> None:
        """Not wrong here: whoever may not be Primary is refused."""
        self._promote()

    def _fail_over(self) -> None:
        primary = self._primary()
        if primary is not None and self.rng.random() < 0.3:
            self._try(primary.secondary)
        self._promote()

    def _promote(self) -> None:
        # No cluster manager promotes a node in the middle of a resync to it.
        bad = Disk.Inconsistent
        running = [n for n in self.nodes if n.resource is not None and not n.is_(disk=bad)]
        if running:
            node = self.rng.choice(running)
            self._note(f"  {node.name}")
            for primary in self._primaries():
                if primary is not node and not primary.is_(disk=Disk.UpToDate):
                    # It was promoted as sync target and has lost the source: it serves errors only.
                    primary.do(lambda done, p=primary: p.r.shutdown(done, force=True))
                    primary.kill()
            self._try(node.primary)
            self._alone()

    def _alone(self) -> None:
        assert len(self._primaries()) <= 1, "two Primaries"
        super()._alone()

    def heal(self) -> None:
        super().heal()
        assert not self.split
