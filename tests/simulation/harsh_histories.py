"""Invented histories at their worst: faults that strike at a moment that matters, metadata on disks
of its own, disks that hang, connections that are lost in part or in the middle of a packet, clocks
that jump, outages of both nodes, and clusters that promote whoever is left.

The same account as in `disk_histories`, and more of it. A copy is looked at when it is promoted, not
only at the end: under protocol C it has all that was completed when the Primary died, under any
protocol no write that was made after a flush without all that came before that flush. FUA is a
promise like a flush. And two sound nodes may never accuse each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from errno import EIO
from functools import partial

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings
from replicator.errors import ReplicatorError
from tests.simulation import disk_histories
from tests.simulation.histories import SIZE, Account, Act
from tests.simulation.media_histories import MediaHistory
from tests.simulation.medium import stamps
from tests.simulation.pair import FLEXIBLE, INTERNAL, MIB, Node, Pair, create_md
from tests.simulation.strikes import MEETING, PARTING, WRITING, Watch

WEIGHTS = {
    **disk_histories.WEIGHTS,
    "strike": 30,
    "load": 6,
    "lose_source": 3,
    "survivor": 8,
    "fall_apart": 8,
    "force": 2,
    "replace_disk": 3,
    "rot_at_rest": 2,
    "rot": 3,
    "restore_backup": 4,
    "flip_bits": 3,
    "outage": 4,
    "meet_again": 6,
    "burst_cold": 4,
    "zero": 3,
    "cut_after_bytes": 3,
    "break_one": 2,
    "lose_one_way": 2,
    "clock_jumps": 2,
    "hang_disk": 2,
    "start_badly": 2,
    "order": 4,
    "settle": 4,
}
BLOWS = (
    *("kill", "power_loss", "survivor", "burst", "fall_apart") * 2,
    *("outage", "cut", "break_connections", "break_one", "lose_one_way", "cut_after_bytes"),
    *("flush", "trim", "fail_disk", "slow_disk", "hang_disk", "detach", "clock_jumps", "order"),
    *("pause_sync", "disconnect", "fail_over", "invalidate"),
)
"""Acts that strike; those named more often do so more often."""
WIDE = 36 * MIB + 512 * 1024
"""Ten extents of the activity log."""
ACCUSATIONS = (": expected ", "still marked here; connecting anew", "is outstanding")
"""What a node says of a peer that does not keep to the protocol."""


class HarshHistory(MediaHistory):
    """One invented history; run() plays it, heals everything, and checks."""

    weights = WEIGHTS
    source = "harsh acts"

    def __init__(self, seed: int, steps: int = 0, acts: list[Act] | None = None) -> None:
        super().__init__(seed, steps, acts)
        rng = self.rng
        external = rng.random() < 0.5
        size = rng.choice((SIZE, SIZE, SIZE, WIDE))
        if external and rng.random() < 0.5:
            size += 512 * rng.randrange(1, 8)
        al_extents = rng.choice((2, 3, 7, 67))
        self.pair = Pair(
            seed,
            size,
            self.volumes,
            net=replace(
                self._net(),
                ping_timeout=rng.choice((0.5, 0.5, 3.0)),
                ko_count=3,
                max_buffers=rng.choice((32, 2048, 2048)),
            ),
            disk=DiskSettings(
                al_extents=al_extents,
                c_max_rate=rng.choice((0, 0, size // 64)),
            ),
            epoch_per_completion=rng.random() < 0.2,
            placement=FLEXIBLE if external else INTERNAL,
        )
        self.pair.disk_delay = rng.choice((0.0001, 0.0005, 0.004))
        self.pair.network.base_latency = rng.choice((0.0001, 0.0004, 0.003))
        self.pair.network.slowness = rng.choice(((1.0, 1.0), (1.0, 1.0), (1.0, 8.0), (8.0, 1.0)))
        self.blocks = self.pair.alice.data_size() >> 12
        hot = rng.randrange(self.blocks - 4)
        self.hot = [hot, hot, hot + 1, hot + 2, *(rng.randrange(self.blocks) for _ in range(4))]
        """Blocks that half of all requests go to."""
        self.meta_slower = rng.choice((1, 1, 20)) if external else 1
        """How much longer a metadata device of its own takes."""
        self.watch = Watch(self.pair)
        self.flushes: list[list[tuple[int, dict[int, int]]]] = [[] for _ in self.accounts]
        """By volume, of flushes under the present Primary: the number of the last write before it
        was answered, and what it has promised."""
        self.completed: list[dict[int, int]] = []
        """By volume: what the Primary had completed when it died, under eyes of a peer that lives."""
        self.bad_disk: random.Random | None = None
        """Disks that are opened now fail now and then."""
        self.pair.opened = self._opened
        self.pair.changed = self._changed

    # --- who has what -------------------------------------------------------------------------

    def _promises_end(self, number: int) -> None:
        super()._promises_end(number)
        self.flushes[number].clear()

    def _gave_up(self, node: str, volume: int) -> None:
        super()._gave_up(node, volume)
        self.flushes[volume].clear()  # of whoever is Primary, or was last: seldom of the other

    def _fail_over(self) -> None:
        self._alone()
        if self._interrupted:
            if self.protocol != "C":
                return
            self.ambiguous = True
        super()._fail_over()

    def _try(self, call: Callable[[], None]) -> None:
        """Whatever is ordered: if it makes a node Primary, that is a moment to look."""
        before = self._primaries()
        super()._try(call)
        for node in self._primaries():
            if node not in before:
                self._promoted(node)

    def _promoted(self, node: Node) -> None:
        """What its applications see now must hold all promises, and be of one moment."""
        for number, account in enumerate(self.accounts):
            if node.volume(number).state.disk is not Disk.UpToDate:
                # What it had completed alone on a disk that it has lost is not where it reads now.
                account.forget_completions(node.name)
            elif not self.split:
                self._check_copy(node, number, account)
        for flushes in self.flushes:
            flushes.clear()

    def _check_copy(self, node: Node, number: int, account: Account) -> None:
        medium = node.media[number]
        must = Account()
        must.writes = account.writes
        must.flushed(account.floor[node.name], {node.name})
        for completed in self.completed[number : number + 1]:
            must.flushed(completed, {node.name})
        newest = max(
            (stamps(medium.current_page(s >> 3))[s & 7] for s in account.writes), default=0
        )
        for last, promised in self.flushes[number]:
            if newest > last:
                must.flushed(promised, {node.name})
        found = must.violations(node.name, medium)
        self.complaints += [f"{node.name} promoted: {words}" for words in found[:3]]

    def _mend(self) -> None:
        if self._interrupted:
            self.pair.network.cut = set()
            self.pair.network.break_all()

    # --- requests -----------------------------------------------------------------------------

    def _place(self) -> tuple[int, range]:
        rng = self.rng
        volume = rng.randrange(self.volumes)
        block = rng.choice(self.hot) if rng.random() < 0.5 else rng.randrange(self.blocks)
        first = block * 8 + rng.choice((0, 0, rng.randrange(8)))
        end = first + rng.choice((1, 3, 8, 8, 8, 16, 17, 64, 300))
        return volume, range(first, min(end, self.pair.alice.data_size() >> 9))

    def _put(self, volume: int, sectors: range, primary: Node) -> None:
        self.number += 1
        data = self.number.to_bytes(8, "little") * (64 * len(sectors))
        fua = self.rng.random() < 0.1
        done = self._submitted(primary, volume, sectors, self.number)
        if fua:
            done = self._promising(primary, volume, sectors, self.number, done)
        primary.volume(volume).write(sectors.start * 512, data, fua, done)

    def _promising(
        self, primary: Node, volume: int, sectors: range, number: int, done: Callable[[int], None]
    ) -> Callable[[int], None]:
        """The end of a request with FUA: as that of a flush, for these sectors."""
        account = self.accounts[volume]
        promised = {s: account.writes[s].index(number) for s in sectors}
        completed = self._promise(primary, volume, promised)

        def ended(error: int) -> None:
            done(error)
            if not error:
                completed()
                kept = account.not_given_up(primary.name, promised)
                account.flushed(kept, self._promised_by(primary, volume))
                self._alone()

        return ended

    def _flushed(self, primary: Node, volume: int, promised: dict[int, int]) -> None:
        """As ever; besides, no copy may show what is written from here on without what was flushed."""
        super()._flushed(primary, volume, promised)
        self.flushes[volume].append((self.number, promised))

    def _write(self, primary: Node) -> None:
        self._put(*self._place(), primary)

    def _burst_cold(self) -> None:
        """One write into each extent of the activity log, again and again: all of them cold."""
        primary = self._primary()
        if primary is None:
            return
        for _ in range(self.rng.choice((1, 3))):
            for block in range(self.rng.randrange(512), self.blocks - 1, 1024):
                self._put(0, range(block * 8, block * 8 + 8), primary)
        self.pair.run(self.rng.choice((0.0, 0.001, 0.01)))
        self._alone()

    def _zero(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        volume, sectors = self._place()
        done = self._submitted(primary, volume, sectors, 0)
        start, length = sectors.start * 512, len(sectors) * 512
        may_unmap, fua = self.rng.random() < 0.5, self.rng.random() < 0.2
        primary.volume(volume).zero(start, length, may_unmap, fua, done)

    # --- strikes ------------------------------------------------------------------------------

    def _strike(self) -> None:
        """Bring about something, wait for a moment in it, and let a fault strike there."""
        rng = self.rng
        kind = rng.choice((WRITING, PARTING, MEETING, MEETING))
        moment = rng.choice(kind)
        if rng.random() < 0.8:
            if kind == WRITING:
                rng.choice((self._work, self._load))()
            elif kind == PARTING:
                self._work()
                rng.choice((self._break_connections, self._disconnect, self._kill))()
            else:
                self._part_and_meet()
        reached = self.watch.until(moment, 3.0)
        for _ in range(rng.choice((0, 0, 0, 1, 2, 4, 9))):
            self.pair.clock.step()
        blow = rng.choice(BLOWS)
        self._note(f"  {moment}{'' if reached else ' (not reached)'}: {blow}")
        self._alone()
        getattr(self, f"_{blow}")()
        self._alone()

    def _work(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        for _ in range(self.rng.randint(1, 12)):
            self._write(primary)
        if self.rng.random() < 0.5:
            self._flush()
        self._alone()

    def _load(self) -> None:
        """Applications that go on while other things happen: writes with flushes among them, one after
        the other in the next milliseconds."""
        primary = self._primary()
        if primary is None:
            return
        rng, process, after = random.Random(self.rng.random()), primary.resource, 0.0
        apart = rng.choice((0.0001, 0.0005, 0.002))

        def request(call: Callable[[], None]) -> None:
            if primary.resource is process and primary.r.role is Role.Primary:
                others, self.rng = self.rng, rng
                call()
                self.rng = others

        for _ in range(rng.randint(5, 30)):
            flush = rng.random() < 0.25
            call = partial(self._ask_flush, primary) if flush else partial(self._write, primary)
            after += apart * 2 * rng.random()
            self.pair.clock.call_later(after, partial(request, call))
        self.pair.run(after * rng.random())
        self._alone()

    def _lose_source(self) -> None:
        """The source of a resync is lost in the middle of it, and somebody makes do with what the
        target has."""
        self._part_and_meet()
        self.watch.until("packet RS_DATA_REPLY", 3.0)
        for node in self.nodes:
            if node.is_(Conn.SyncSource):
                self._alone()
                self._end_of(node, self.rng.choice((Node.kill, Node.power_loss)))
                self.pair.run(self.rng.choice((0.01, 1.0)))
                self._force()
                return

    def _part_and_meet(self) -> None:
        """The nodes differ, and find each other again; who is down is started."""
        for node in self.nodes:
            if node.resource is None and self.rng.random() < 0.8:
                self._try(node.up)
        self._work()
        self._mend()
        self.pair.network.break_all()
        self._alone()
        self._work()
        self._connect()

    def _meet_again(self) -> None:
        self._part_and_meet()
        self.pair.run(self.rng.choice((0.0, 0.01, 0.1, 1.0)))

    def _settle(self) -> None:
        """A quiet time in which the nodes may find together."""
        self._mend()
        for node in self.nodes:
            if node.resource is None:
                self._try(node.up)
        self._attach()
        self._connect()
        self.pair.run(self.rng.choice((1.0, 20.0)))

    def _survivor(self) -> None:
        """The Primary's node fails, and what manages the cluster promotes the other one, which may
        have had to start anew, too."""
        primary = self._primary()
        if primary is not None:
            self._alone()
            other = self._other(primary)
            in_touch = other.name in self.current or self._together()
            how = self.rng.choice((Node.kill, Node.power_loss))
            self.completed = [a.before_flush(primary.name) for a in self.accounts]
            self._end_of(primary, how)
            self.pair.run(self.rng.choice((0.0, 0.0, 0.01, 3.0)))
            if other.resource is not None and self.rng.random() < 0.5:
                again = self.rng.choice((Node.kill, Node.power_loss))
                self._end_of(other, again)
                self._try(other.up)
                if again is Node.power_loss:
                    self.powerless.add(other.name)
                    self.completed = []
            if self.protocol != "C" or not in_touch:
                # Only a peer that lives, and was told before the end, has all that was completed.
                self.completed = []
            if self.protocol != "C" and in_touch and other.resource is not None:
                # What was on its way is given up, and the other's copy is the one that counts.
                self.discarded, self.ambiguous = primary.name, True
                self.current = {other.name}
        self._promote_whoever_is_left()

    def _promote_whoever_is_left(self) -> None:
        others = [n for n in self.nodes if n.resource is not None]
        if others and not self._primaries():
            known = others[0].name in self.current
            (self._fail_over if known else self._promote_wrongly)()
        self.completed = []
        self._work()
        self.pair.run(self.rng.choice((0.0, 0.01, 1.0)))
        self._alone()

    def _fall_apart(self) -> None:
        """The nodes lose sight of each other, the Primary goes on for a while and fails, and the
        other one is promoted by a cluster that asks nobody."""
        primary = self._primary()
        if primary is None:
            return
        rng = self.rng
        if rng.random() < 0.5:
            self.pair.network.cut = {"alice", "bob"}
        self.pair.network.break_all()
        self._alone()
        self.pair.run(rng.choice((0.0, 0.0, 0.01)))
        self._work()
        self.pair.run(rng.choice((0.0, 0.001, 0.01, 1.0)))
        self._end_of(primary, rng.choice((Node.kill, Node.power_loss)))
        self._mend()
        self._promote_whoever_is_left()
        if rng.random() < 0.2:
            self._force()
        if rng.random() < 0.5:
            self._try(primary.up)
            self.pair.run(rng.choice((0.01, 1.0)))

    def _force(self) -> None:
        """Nobody else is there, so an administrator declares this copy good, whatever it has."""
        running = [n for n in self.nodes if n.resource is not None]
        if len(running) != 1 or running[0].r.role is Role.Primary:
            return
        node = running[0]
        if node.name in self.blank:
            return
        self._note(f"  {node.name}")
        before = set(self.current)
        half_made = any(v.state.disk is Disk.Inconsistent for v in node.r.volumes.values())
        self._force_copy(node)
        if node.r.role is Role.Primary:
            self.split = self.split or half_made or before != {node.name}
            self.current &= {node.name}
            if self.protocol != "C":
                # What the other one had promised with its own disk alone, and not sent yet.
                self.discarded, self.ambiguous = self._other(node).name, True

    def _force_copy(self, node: Node) -> None:
        for number, account in enumerate(self.accounts):
            account.floor[node.name].clear()
            self.flushes[number].clear()
            self._binds_nobody(node.name, number)
        super()._try(lambda: node.primary(force=True))

    def _outage(self) -> None:
        """Both nodes lose power at the same moment."""
        for node in self.nodes:
            if node.resource is not None:
                self._end_of(node, Node.power_loss)
                self.powerless.add(node.name)

    # --- the network --------------------------------------------------------------------------

    def _cut_after_bytes(self) -> None:
        """The connections break in the middle of something."""
        most = self.rng.choice((64, 500, 5000, 50000))
        self.pair.network.breaks_after[self.rng.choice(self.nodes).name] = self.rng.randint(1, most)
        self._work()
        self.pair.run(self.rng.choice((0.0, 0.001, 0.01)))
        self._alone()

    def _break_one(self) -> None:
        channels = [c for c in self.pair.network.channels if c.open]
        if channels:
            self.pair.network.break_one(self.rng.choice(channels))
        self._alone()

    def _lose_one_way(self) -> None:
        """Of one connection, what leaves one end gets lost; everything else works."""
        channels = [c for c in self.pair.network.channels if c.open]
        if channels:
            self.rng.choice(channels).lossy = True
        self.pair.run(self.rng.choice((0.0, 0.5, 20.0)))
        self._alone()

    def _clock_jumps(self) -> None:
        """A machine was suspended, or both were."""
        seconds = self.rng.choice((1.0, 10.0, 600.0))
        node = self._some_running()
        if node is None or self.rng.random() < 0.5:
            self.pair.clock.time += seconds
        else:
            node.clock.ahead += seconds
        self._alone()

    # --- disks --------------------------------------------------------------------------------

    def _opened(self, node: Node, number: int) -> None:
        self.watch.opened(node, number)
        node.meta_disks[number].delay *= self.meta_slower
        if self.bad_disk is not None:
            chance = random.Random(self.bad_disk.random())
            node.meta_disks[number].fails = partial(_fails_at_times, chance, 0.1)

    def _fail_disk(self) -> None:
        super()._fail_disk()
        for node in self.nodes:
            if self.pair.placement.external and self.rng.random() < 0.2:
                for disk in node.meta_disks:
                    chance = random.Random(self.rng.random())
                    disk.fails = partial(_fails_at_times, chance, 0.5)

    def _start_badly(self) -> None:
        """Start a node whose disks cannot always be read or written."""
        self.bad_disk = self.rng
        try:
            down = [n for n in self.nodes if n.resource is None]
            if down:
                self._try(self.rng.choice(down).up)
        finally:
            self.bad_disk = None

    # --- orders -------------------------------------------------------------------------------

    def _order(self) -> None:
        """An order whose end nobody waits for."""
        node = self._some_running()
        if node is None:
            return
        number = self.rng.randrange(self.volumes)

        def ended(_error: ReplicatorError | None) -> None:
            """Nobody looks."""

        orders: dict[str, Callable[[], None]] = {
            "secondary": lambda: node.r.secondary(ended),
            "disconnect": lambda: node.r.disconnect(False, ended),
            "disconnect --force": lambda: node.r.disconnect(True, ended),
            "connect": lambda: node.r.connect(False, ended),
            "pause-sync": lambda: node.r.pause_sync(number, ended),
            "resume-sync": lambda: node.r.resume_sync(number, ended),
            "detach": lambda: node.r.detach(number, False, ended),
        }
        name = self.rng.choice(list(orders))
        self._note(f"  {node.name}: {name}")
        orders[name]()
        self.pair.run(self.rng.choice((0.0, 0.001, 1.0)))
        self._alone()

    # --- the end ------------------------------------------------------------------------------

    def heal(self) -> None:
        self.pair.run(6.0)  # orders whose end nobody has waited for end now
        self.pair.network.breaks_after.clear()
        self.pair.disk.c_max_rate = 0
        for node in self.nodes:
            for disk in node.meta_disks:
                disk.fails = disk.slow = None
            if node.resource is not None:
                for volume in node.r.volumes.values():
                    volume.settings.disk.c_max_rate = 0
        super().heal()

    def _give_one_up(self) -> None:
        """After many promotions by force nothing may tie the copies any more: then the one that is
        given up is created anew."""
        super()._give_one_up()
        self.pair.run(5)
        strangers = any("nothing in common" in node.r.last_error for node in self.nodes)
        if strangers and self._stand_alone():
            self._create_anew()

    def _create_anew(self) -> None:
        victim = next(node for node in self.nodes if node.name == self.discarded)
        other = self._other(victim)
        better = victim.is_(disk=Disk.UpToDate) and not other.is_(disk=Disk.UpToDate)
        if better or other.name in self.blank:
            victim = other
        self._note(f"  {victim.name} is created anew")
        self.discarded = victim.name
        victim.kill()
        for meta in victim.metas:
            create_md(meta, self.pair.placement)
        victim.up()
        if not self._other(victim).is_(disk=Disk.UpToDate):
            self._force_copy(self._other(victim))
        self._connect()

    def check(self) -> None:
        accused = [li for li in self.pair.lines if any(words in li for words in ACCUSATIONS)]
        self.complaints += [f"a sound peer was accused: {line}" for line in accused]
        super().check()


def _fails_at_times(chance: random.Random, share: float, *_call: object) -> int:
    """For Disk.fails: any call, with this probability."""
    return EIO if chance.random() < share else 0
