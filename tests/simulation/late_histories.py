"""Invented histories in which something comes late: writes that a slow disk ends when the connection that
they were sent over has gone and the next one is there, resync data that the applications of a
Primary, which is the target, have overtaken, and the news that a disk has failed.

Harsh histories, besides; they meet such a moment once in thousands. Here it is brought about, on purpose
and often. What this file must not know: what the engine does against it.
"""

from __future__ import annotations

import random
from errno import EIO

from protocol.states import Disk, Role
from tests.simulation import harsh_histories
from tests.simulation.harsh_histories import HarshHistory
from tests.simulation.pair import Node

WEIGHTS = {
    **harsh_histories.WEIGHTS,
    "outlive": 60,
    "overtake": 60,
    "half_made": 20,
    "fade": 30,
    "refuse": 20,
    "come_and_go": 60,
}
MEANWHILE = (
    *("break_connections", "cut", "kill", "power_loss", "survivor", "disconnect", "detach") * 2,
    *("break_one", "lose_one_way", "fail_disk", "flush", "burst", "read", "start", "fail_over"),
    *("attach", "invalidate", "invalidate_remote", "order", "promote_wrongly", "connect"),
)
"""What happens to a pair in which a disk is on its way out or in."""


def refuse_writes(kind: str, _offset: int, _length: int) -> int:
    return EIO if kind == "write" else 0


class LateHistory(HarshHistory):
    """One invented history; run() plays it, heals everything, and checks."""

    weights = WEIGHTS
    source = "late acts"

    def _primary_in_sync(self) -> Node | None:
        """The only Primary of a pair that has found together, if it does."""
        self._settle()
        self._fail_over()
        return self._primary() if self._together() and len(self._primaries()) == 1 else None

    def _outlive(self) -> None:
        """The disk is slow with writes of a connection that breaks. The nodes meet again, and have soon
        copied what they know of."""
        primary = self._primary_in_sync()
        if primary is None:
            return
        rng = self.rng
        disk = primary.disks[rng.randrange(self.volumes)]
        chance = random.Random(rng.random())
        most = rng.choice((1.0, 20.0))
        disk.slow = lambda kind, _offset, _length: (
            chance.random() * most if kind == "write" else 0.0
        )
        for _ in range(rng.randint(1, 6)):
            self._write(primary)
        self.pair.run(rng.choice((0.0, 0.0001, 0.001)))
        disk.slow = None
        self.pair.network.break_all()
        self._alone()
        if rng.random() < 0.5:
            self._work()
        self.watch.until("sync ends", 30.0)
        self._alone()

    def _overtake(self) -> None:
        """A Primary gets its disk back, and its applications write where the resync is copying."""
        primary = self._primary_in_sync()
        if primary is None:
            return
        rng = random.Random(self.rng.random())  # the slow disk draws from it, too
        number = rng.randrange(self.volumes)
        self._try(lambda: primary.do(lambda done: primary.r.detach(number, False, done), 60))
        self._alone()
        places = [self._place()[1] for _ in range(rng.randint(1, 6))]
        for sectors in places:
            self._put(number, sectors, primary)
        self.pair.run(0.1)
        source = self._other(primary).disks[number]
        source.slow = lambda kind, _offset, _length: rng.random() * 0.1 if kind == "read" else 0.0
        self._attach_all(primary)
        self.watch.until("packet RS_DATA_REQUEST", 3.0)
        for sectors in places:
            if primary.r.role is Role.Primary:
                self._put(number, sectors, primary)
            for _ in range(rng.choice((0, 1, 3))):
                self.pair.clock.step()
        self.pair.run(rng.choice((0.0, 0.05, 0.5)))
        source.slow = None
        self._alone()

    def _half_made(self) -> None:
        """A source fails amid a resync, somebody declares the half copy good, and the source is back."""
        primary = self._primary_in_sync()
        if primary is None:
            return
        rng = self.rng
        self.pair.network.break_all()
        self._alone()
        self._work()
        self.watch.until("packet RS_DATA_REPLY", 5.0)
        for _ in range(rng.choice((0, 1, 3, 9))):
            self.pair.clock.step()
        self._end_of(primary, rng.choice((Node.kill, Node.power_loss)))
        self._force()
        self._work()
        self.pair.run(rng.choice((0.0, 0.01, 1.0)))
        if rng.random() < 0.3:
            self._fall_apart()
        self._try(primary.up)
        self.pair.run(rng.choice((0.1, 2.0)))

    def _fade(self) -> None:
        """A Primary's disk fails amid writes, and moments later the connection, so that the peer may
        not have heard of it. Then the disk comes back, before the connection does or afterwards."""
        primary = self._primary_in_sync()
        if primary is None:
            return
        rng = self.rng
        disk = primary.disks[rng.randrange(self.volumes)]
        disk.fails = refuse_writes
        for _ in range(rng.randint(1, 4)):
            self._write(primary)
        if rng.random() < 0.5:
            self._flush()
        self.pair.run(rng.choice((0.0, 0.0005, 0.001, 0.002)))
        self._alone()
        self.pair.network.break_all()
        self._alone()
        self.pair.run(rng.choice((0.0, 0.1, 3.0)))
        self._attach_all(primary)
        self._read()
        self._work()

    def _refuse(self) -> None:
        """The peer's disk is detached or fails amid writes: it refuses those that come after, and what
        it says of them, and of the disk, takes two sockets."""
        primary = self._primary_in_sync()
        if primary is None:
            return
        rng = self.rng
        other, number = self._other(primary), rng.randrange(self.volumes)
        for _ in range(rng.randint(1, 12)):
            self._write(primary)
        for _ in range(rng.choice((0, 0, 1, 3, 9, 30))):
            self.pair.clock.step()
        if rng.random() < 0.7:
            self._note(f"  {other.name}/{number}")
            self._try(lambda: other.r.detach(number, False, lambda _error: None))
        else:
            other.disks[number].fails = refuse_writes
        for _ in range(rng.randint(0, 6)):
            self._write(primary)
            self.pair.clock.step()
        if rng.random() < 0.3:
            self._flush()
        self.pair.run(rng.choice((0.001, 0.01, 0.5)))
        other.disks[number].fails = None
        self._alone()

    def _come_and_go(self) -> None:
        """A disk is detached, missed and attached again, and something else happens before that has
        come to its end. Then the same once more, maybe on the other node."""
        if self._primary_in_sync() is None:
            return
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2))):
            node, number = rng.choice(self.nodes), rng.randrange(self.volumes)
            missed = (
                self._take_and_give_back(node, number) if node.resource is not None else range(0)
            )
            what = rng.choice(MEANWHILE)
            self._note(f"  meanwhile: {what}")
            getattr(self, f"_{what}")()
            self._alone()
            self._pass_events()
            primary = self._primary()
            if primary is not None and missed:
                self._read_at(primary, number, missed)
        self.pair.run(rng.choice((0.0, 0.01, 1.0)))
        self._alone()

    def _take_and_give_back(self, node: Node, number: int) -> range:
        """Order both, without waiting for their ends. Returns sectors that are written meanwhile."""

        def attach() -> None:
            node.attach(number, _ignore)

        self._try(lambda: node.r.detach(number, False, _ignore))
        self._pass_events()
        primary, sectors = self._primary(), self._place()[1]
        if primary is not None:
            self._put(number, sectors, primary)
        self._work()
        self.pair.run(self.rng.choice((0.0, 0.001, 0.1)))
        if node.resource is not None and node.volume(number).state.disk is Disk.Diskless:
            self._before_attach(node, number)
            self._try(attach)
        self._pass_events()
        return sectors

    def _pass_events(self) -> None:
        for _ in range(self.rng.choice((0, 1, 3, 9, self.rng.randrange(60)))):
            self.pair.clock.step()
        self._alone()


def _ignore(_error: object) -> None:
    """Who ordered it has gone."""
