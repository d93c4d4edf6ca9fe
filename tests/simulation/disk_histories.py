"""Invented histories in which disks fail, come and go, copies are invalidated and resyncs paused.

The same account as in `histories`, with two volumes on some pairs, and with reads: what was
completed may not be unseen again. on-io-error is detach: what pass_on lets happen to the only good
copy no engine can mend.
"""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable
from functools import partial

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from tests.simulation import histories
from tests.simulation.histories import PLACES, SIZE, Account, Act, History
from tests.simulation.pair import Node, Pair, create_md, differing_blocks

WEIGHTS = {
    **histories.WEIGHTS,
    "read": 10,
    "fail_disk": 5,
    "slow_disk": 4,
    "detach": 4,
    "attach": 9,
    "invalidate": 2,
    "invalidate_remote": 2,
    "pause_sync": 3,
    "resume_sync": 4,
    "trim": 5,
}
KINDS = ("read", "write", "flush", "metadata")


class DiskHistory(History):
    """One invented history; run() plays it, heals everything, and checks."""

    weights = WEIGHTS
    source = "disk acts"

    def __init__(self, seed: int, steps: int = 0, acts: list[Act] | None = None) -> None:
        super().__init__(seed, steps, acts)
        rng = self.rng
        self.volumes = rng.choice((1, 1, 2))
        self.pair = Pair(
            seed,
            SIZE,
            self.volumes,
            net=self._net(),
            disk=DiskSettings(
                al_extents=rng.choice((2, 3, 67)),
                c_max_rate=rng.choice((0, 0, 8 << 20)),
            ),
            epoch_per_completion=rng.random() < 0.2,
        )
        self.accounts = [Account() for _ in range(self.volumes)]
        self.torn: set[tuple[str, int]] = set()
        """(node, volume) whose disk has lost what a failed flush should have kept."""
        self.complaints: list[str] = []
        self.ambiguous = False
        """A split brain may be suspected that is none: where nothing is lost by it, it is allowed."""
        self.powerless: set[str] = set()
        """Nodes that have lost power since both were last in sync."""
        self.pair.changed = self._changed

    def _net(self) -> NetSettings:
        rng = self.rng
        return NetSettings(
            protocol=self.protocol,
            max_epoch_size=rng.choice((3, 64, 2048)),
            use_rle=rng.random() < 0.8,
            csums_alg=rng.choice(("", "", "crc32c")),
            data_integrity_alg=rng.choice(("", "", "crc32c")),
        )

    def _may_suspect(self) -> bool:
        doubts = self.guard is not None and any(one.in_doubt() for one in self.guard.lineages)
        return self.split or self.ambiguous or doubts

    def _books(self) -> list[Account]:
        return self.accounts

    # --- who has what -------------------------------------------------------------------------

    def _holders(self, primary: Node) -> set[str]:
        """The nodes that get what this Primary writes now, on disks that count."""
        holders = {"alice", "bob"}
        other = self._other(primary)
        if other.resource is None or other.r.conn is not Conn.Connected:
            holders.discard(other.name)
        for number, volume in primary.r.volumes.items():
            if volume.state.disk is not Disk.UpToDate:
                holders.discard(primary.name)
            theirs = other.volume(number).state.disk if other.resource is not None else None
            if {volume.state.pdsk, theirs} != {Disk.UpToDate}:
                # It may have refused a write before the Primary hears what became of its disk.
                holders.discard(other.name)
        return holders

    def _promised_by(self, primary: Node, volume: int) -> set[str]:
        """The nodes that a flush which this Primary answers now makes a promise for."""
        if self.protocol != "C" and primary.volume(volume).state.disk is Disk.UpToDate:
            return {primary.name}
        return self._holders(primary)

    def _alone(self) -> None:
        primaries = self._primaries()
        if len(primaries) > 1:
            self.split = True
            self.current = set()
        elif primaries and not self._together():
            self.current &= self._holders(primaries[0])

    def _note_current(self) -> None:
        together = self._together()
        if together:
            self.powerless.clear()
            self.ambiguous = False
        self.account = self.accounts[0]
        discarded = self.discarded
        super()._note_current()
        if together and discarded is not self.discarded or together and not self.split:
            for account in self.accounts[1:]:
                primary = self._primary()
                if primary is None or not primary.r.replication.log.unacknowledged:
                    account.united(discarded)

    def _changed(self, node: Node) -> None:
        """Under A and B a Primary that loses its disk and then the connection has lost what was on
        its way, also if it had promised it with that disk: the peer's copy is all there is. The peer may
        be back before the next act."""
        if self.protocol == "C" or node.r.role is not Role.Primary:
            return
        for number, volume in node.r.volumes.items():
            if volume.state.disk < Disk.UpToDate and volume.state.conn < Conn.Connected:
                self._promises_end(number)

    def _promises_end(self, number: int) -> None:
        account = self.accounts[number]
        for node in self.nodes:
            account.floor[node.name].clear()
            account.forget_completions(node.name)
            self._binds_nobody(node.name, number)

    def _power_loss(self) -> None:
        running = {n.name for n in self.nodes if n.resource is not None}
        super()._power_loss()
        self.powerless |= running - {n.name for n in self.nodes if n.resource is not None}

    def _end_of(self, node: Node, how: Callable[[Node], None]) -> None:
        super()._end_of(node, how)
        for account in self.accounts:
            account.forget_completions(node.name)
        self.torn = {(n, v) for n, v in self.torn if n != node.name}

    # --- requests -----------------------------------------------------------------------------

    def _burst(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        for _ in range(self.rng.randint(1, 12)):
            self._write(primary)
        self.pair.run(self.rng.choice((0.0, 0.0003, 0.001, 0.01)))
        self._alone()

    def _place(self) -> tuple[int, range]:
        volume = self.rng.randrange(self.volumes)
        first = self.rng.choice(PLACES) * 8 + self.rng.randrange(8)
        return volume, range(first, first + self.rng.choice((1, 3, 8, 8, 17)))

    def _write(self, primary: Node) -> None:
        self.number += 1
        number = self.number
        volume, sectors = self._place()
        data = struct.pack("<Q", number) * (64 * len(sectors))
        done = self._submitted(primary, volume, sectors, number)
        fua = self.rng.random() < 0.05
        primary.volume(volume).write(sectors.start * 512, data, fua, done)

    def _submitted(
        self, primary: Node, volume: int, sectors: range, number: int
    ) -> Callable[[int], None]:
        account = self.accounts[volume]
        account.submitted(sectors, number)
        began = self._era(primary, volume)

        def done(error: int) -> None:
            if not error:
                account.completed(primary.name, sectors, number)
                self._completed(primary, volume, sectors, number)
                self._acknowledged(primary, volume, began)
                self._alone()

        return done

    def _fail_over(self) -> None:
        if self.pair.network.cut:
            self.ambiguous = True  # the Primary may not have seen yet that it is alone
        super()._fail_over()
        self._diskless_promoted()

    def _promote_wrongly(self) -> None:
        if self.protocol != "C":
            return  # what was completed before the connection was seen to be lost may be lost, too
        super()._promote_wrongly()
        self._diskless_promoted()

    def _diskless_promoted(self) -> None:
        """Its own disk may have a generation that the peer, whose data it uses, never heard of."""
        for node in self._primaries():
            self.ambiguous = self.ambiguous or not node.is_(disk=Disk.UpToDate)

    def _trim(self) -> None:
        primary = self._primary()
        if primary is None:
            return
        volume, sectors = self._place()
        done = self._submitted(primary, volume, sectors, 0)
        primary.volume(volume).trim(sectors.start * 512, len(sectors) * 512, False, done)

    def _flush(self) -> None:
        primary = self._primary()
        if primary is not None:
            self._ask_flush(primary)
            self.pair.run(self.rng.choice((0.0, 0.001, 0.01, 0.1)))

    def _ask_flush(self, primary: Node) -> None:
        number = self.rng.randrange(self.volumes)
        account = self.accounts[number]
        promised = account.before_flush(primary.name)
        completed = self._promise(primary, number, promised)

        def done(error: int) -> None:
            if error:
                account.forget_completions(primary.name)
                return
            completed()
            kept = account.not_given_up(primary.name, promised)
            account.flushed(kept, self._promised_by(primary, number))
            self._flushed(primary, number, kept)
            self._alone()

        primary.volume(number).flush(done)

    def _flushed(self, primary: Node, volume: int, _promised: dict[int, int]) -> None:
        """A flush was answered."""
        self._acknowledged(primary, volume, None, flushed=True)

    def _read(self) -> None:
        primary = self._primary()
        if primary is not None:
            self._read_at(primary, *self._place_to_read())
            self.pair.run(self.rng.choice((0.0, 0.01)))

    def _place_to_read(self) -> tuple[int, range]:
        """Mostly where something has been written, and not long ago."""
        volume, sectors = self._place()
        written = list(self.accounts[volume].writes)[-64:]
        if written and self.rng.random() < 0.8:
            first = self.rng.choice(written)
            sectors = range(first, min(first + len(sectors), self.pair.alice.data_size() >> 9))
        return volume, sectors

    def _read_at(self, primary: Node, number: int, sectors: range) -> None:
        if self.split or self.discarded or len(self._primaries()) > 1:
            return
        account = self.accounts[number]
        if self.powerless - {primary.name} and not primary.is_(disk=Disk.UpToDate):
            return  # it reads from a peer that may have lost what no flush has promised
        completed = account.before_flush(primary.name)

        def done(error: int, data: bytes) -> None:
            if not error and not self.split and primary.resource is not None:
                self._check_read(account, sectors, completed, data)

        primary.volume(number).read(sectors.start * 512, len(sectors) * 512, done)

    def _check_read(
        self, account: Account, sectors: range, completed: dict[int, int], data: bytes
    ) -> None:
        for index, sector in enumerate(sectors):
            value = struct.unpack_from("<Q", data, index * 512)[0]
            numbers = account.writes.get(sector, [0])
            allowed = numbers[completed.get(sector, 0) :]
            if value not in allowed:
                self.complaints.append(f"read {value} at sector {sector}, allowed {allowed}")

    # --- disks --------------------------------------------------------------------------------

    def _some_disk(self) -> tuple[Node, int] | None:
        node = self._some_running()
        return (node, self.rng.randrange(self.volumes)) if node is not None else None

    def _fail_disk(self) -> None:
        chosen = self._some_disk()
        if chosen is None:
            return
        node, number = chosen
        kind = self.rng.choice(KINDS)
        chance = random.Random(self.rng.random())
        limit = node.data_size(number)
        self._note(f"  {node.name}/{number}: {kind}")

        def fails(what: str, offset: int, _length: int) -> int:
            if kind == "metadata":
                hit = offset >= limit
            else:
                hit = what == kind and offset < limit
            if not hit or chance.random() < 0.3:
                return 0
            if what == "flush":
                self.torn.add((node.name, number))
            return errno.EIO

        node.disks[number].fails = fails

    def _slow_disk(self) -> None:
        chosen = self._some_disk()
        if chosen is None:
            return
        node, number = chosen
        chance = random.Random(self.rng.random())
        most = self.rng.choice((0.0, 0.01, 0.1, 3.0))
        node.disks[number].slow = lambda _kind, _offset, _length: chance.random() ** 4 * most

    def _detach(self) -> None:
        chosen = self._some_disk()
        if chosen is not None:
            node, number = chosen
            self._note(f"  {node.name}/{number}")
            self._try(lambda: node.do(lambda done: node.r.detach(number, False, done), 60))
            self._alone()

    def _attach(self) -> None:
        for node in self.nodes:
            if node.resource is not None and self.rng.random() < 0.7:
                self._attach_all(node)

    def _attach_all(self, node: Node) -> None:
        for number, volume in node.r.volumes.items():
            if volume.state.disk is Disk.Diskless:
                self._before_attach(node, number)
                self._try(partial(node.do, partial(node.attach, number), 60))

    def _before_attach(self, node: Node, number: int) -> None:
        self._note(f"  {node.name}/{number}")
        # The peer may have begun a generation of its own for this Primary, unheard.
        self.ambiguous = self.ambiguous or node.r.role is Role.Primary
        torn = (node.name, number) in self.torn
        if torn or self.protocol != "C" or node.r.role is not Role.Primary:
            # What was completed without this disk is not on it. To applications that still run
            # it must not show that.
            self.accounts[number].forget_completions(node.name)
        if torn:
            # The system has dropped what it could not write.
            self.torn.discard((node.name, number))
            node.media[number].power_loss(self.pair.rng)
            other = self._other(node)
            if other.resource is None or other.volume(number).state.disk is not Disk.UpToDate:
                # Nor was it anywhere else, if it was the only good one.
                self.accounts[number].forget_completions(other.name)

    # --- resync -------------------------------------------------------------------------------

    @property
    def _interrupted(self) -> bool:
        """What is sent may get lost while both nodes believe that they are connected."""
        network = self.pair.network
        ends = [channel for channel in network.channels if channel.open]
        return bool(network.cut) or any(e.lossy for e in ends) or len(ends) not in (0, 4)

    @property
    def _may_give_up_a_copy(self) -> bool:
        """Under A and B what is on its way would be given up with a Primary's copy."""
        return self.protocol == "C" or not self._interrupted

    def _invalidate(self) -> None:
        node = self._some_running()
        if node is None or not self._may_give_up_a_copy:
            return
        if node.name in self.current and len(self.current) == 1:
            return
        number = self.rng.randrange(self.volumes)
        alone = node.volume(number).state.conn < Conn.Connected
        others = [n for n in self.nodes if n is not node and n.is_(disk=Disk.UpToDate)]
        if alone and not (others and self.current - {node.name}):
            return
        self._note(f"  {node.name}/{number}")
        if alone:
            self.current.discard(node.name)
        self._try(lambda: node.do(lambda done: node.r.invalidate(number, done), 60))

    def _invalidate_remote(self) -> None:
        node = self._some_running()
        if node is None or not self._may_give_up_a_copy:
            return
        if node.name not in self.current or self.split:
            return
        number = self.rng.randrange(self.volumes)
        if node.disks[number].fails is not None:
            return  # to give up the other copy while this one is failing is no good idea
        self._note(f"  {node.name}/{number}")
        if node.volume(number).state.conn < Conn.Connected and node.r.role is Role.Primary:
            self.current = {node.name}
        self._try(lambda: node.do(lambda done: node.r.invalidate_remote(number, done), 60))

    def _pause_sync(self) -> None:
        self._pausing(True)

    def _resume_sync(self) -> None:
        self._pausing(False)

    def _pausing(self, pause: bool) -> None:
        node = self._some_running()
        if node is not None:
            number = self.rng.randrange(self.volumes)
            call = node.r.pause_sync if pause else node.r.resume_sync
            self._try(lambda: node.do(lambda done: call(number, done), 60))

    # --- the end ------------------------------------------------------------------------------

    def heal(self) -> None:
        """Disks are good again, and whoever has none gets it back; then as ever."""
        self._note("heal disks")
        self._mend()
        for node in self.nodes:
            if node.resource is None:
                node.up()
            for disk in node.disks:
                disk.fails = disk.slow = None
        self.pair.run(5)  # orders that are still under way end
        for turn in range(6):
            if self._together():
                break
            if turn % 2:
                # What two nodes that are connected cannot agree on, a new connection settles.
                for node in self.nodes:
                    self._try(node.disconnect)
                    if (self.split or self.ambiguous) and turn > 2:
                        self._try(node.secondary)
                    self._attach_all(node)
            self._connect()
            self._resume_all()
            self.pair.run(20)
            for node in self.nodes:
                self._attach_all(node)
            self._give_up_lost_use()
            self._make_anew()
            self.pair.run(20)
        self._copy_marked()
        self.split = self._may_suspect()
        try:
            super().heal()
        except OSError:
            # A flush says once that something has been lost; from then on all is well again.
            for node in self._primaries():
                node.flush()
            self.pair.run(30)

    def _resume_all(self) -> None:
        for node in self.nodes:
            for number, volume in node.r.volumes.items():
                if volume.state.user_isp:
                    self._try(partial(node.do, partial(node.r.resume_sync, number)))

    def _copy_marked(self) -> None:
        """Marks without a reason to synchronise, of an order that a crash has undone: a person has
        to say what is to be copied."""
        for number in range(self.volumes):
            marked = [n for n in self.nodes if (b := n.volume(number).bitmap) and b.weight]
            if self._together() and marked:
                self._note(f"  {number} is copied because of marks")
                self._resume_all()
                bob = self.pair.bob
                self._try(partial(bob.do, partial(bob.r.invalidate, number)))
                self.pair.run(60)

    def _give_up_lost_use(self) -> None:
        """A Primary that has lost sight of its data cannot go on with another generation."""
        for node in self.nodes:
            if node.is_(Conn.StandAlone) and "its applications use" in node.r.last_error:
                self._note(f"  {node.name} gives up its role")
                self._try(node.secondary)

    def _make_anew(self) -> None:
        """A copy that was being overwritten, and whose source has gone on alone under so many names
        that none of them is known to both: its administrator does what the refusal says."""
        if not (self._stand_alone() and "unrelated data" in self.pair.alice.r.last_error):
            return
        for node in self.nodes:
            for number, volume in node.r.volumes.items():
                if volume.state.disk is Disk.Inconsistent:
                    self._note(f"  {node.name}/{number} is made anew")
                    node.kill()
                    create_md(node.metas[number], self.pair.placement)
                    node.up()
                    return

    def check(self) -> None:
        problems = list(self.complaints)
        if self.guard is not None:
            problems += self.guard.counters.left_when_idle()
        for number, account in enumerate(self.accounts):
            alice, bob = self.nodes
            problems += account.violations("alice", alice.media[number])
            if differing := differing_blocks(alice, bob, number):
                problems.append(
                    f"volume {number}: {len(differing)} blocks differ, the first is {differing[0]}"
                )
            for node in self.nodes:
                problems += self._left_over(node, number)
        assert not problems, "\n".join(problems)

    def _left_over(self, node: Node, number: int) -> list[str]:
        volume = node.volume(number)
        found = []
        if volume.bitmap is None or volume.bitmap.weight:
            found.append(f"{node.name}/{number}: bits are still set")
        if volume.locks.count or volume.application.pending:
            found.append(f"{node.name}/{number}: something still holds locks or is pending")
        if volume.resync.unacknowledged or volume.resync.outstanding:
            found.append(f"{node.name}/{number}: the resync still expects something")
        return found
