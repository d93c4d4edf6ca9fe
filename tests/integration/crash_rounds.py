"""Rounds of killing a daemon with SIGKILL in the middle of writes, and looking for what was lost.

    python -m tests.integration.crash_rounds --rounds 200 --protocol C --victim primary

A round, the roles changing places from one to the next:
  primary    the Primary's daemon is killed, the peer is promoted and written to while the killed
             node comes back
  secondary  the Secondary's daemon is killed, sometimes once more while it is resynchronised; the
             Primary works on meanwhile; then the roles are exchanged
  both       both are killed one right after the other, both come back, and one is made Primary

What is checked in each round, sector by sector (see crash_journal for "replaced"):
  the killed Primary's disk holds every acknowledged write, under any protocol: a write is answered
      when at least the local disk has it, and a kill takes nothing from the page cache;
  the promoted peer's disk holds
      C  every acknowledged write, because the peer had written it,
      B  every acknowledged write too: the peer had received it, and the peer was not killed,
      A  a prefix of the stream: if a write is there, so is every write that had been acknowledged
         before it was sent, flushed ones included. Newer ones may be missing, flushed or not:
         under A a flush is answered when the local disk is flushed;
  no request fails, except on the connection to a daemon that was killed;
  after `both` the Primary holds every acknowledged write, whoever it is: the node that was Primary
      when it crashed is the source of the resync;
  after the resync both data areas are the same, byte by byte, and hold every write of the round.

Process kills say nothing about power loss: for that see tests/simulation. Exit code 0 if all held,
1 if not, with the round, the sectors and both logs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from replicator.errors import ReplicatorError
from replicator.runtime import control
from tests.integration.crash_client import ClientError, CrashClient
from tests.integration.crash_journal import SECTOR, Journal, Write
from tests.integration.pair import MIB, RESOURCE, Node, Pair, PairError

VICTIMS = ("primary", "secondary", "both")
SECTIONS = {
    "net": "connect-int 7;",
    "disk": "al-extents 67; c-plan-ahead 0; resync-rate 500M;",
}
WAIT_SECONDS = 30.0
PROMOTE_SECONDS = 10.0
POLL = 0.005
LATEST_KILL = 0.3
"""Seconds of writing after which the kill comes at the latest."""
PAUSE = 0.01
"""Seconds between requests while a node starts: it needs the processors too."""
REPORT_EVERY = 20
LOG_LINES = 40


class RoundFailed(AssertionError):
    """A promise was broken; the text says where."""


@dataclass(slots=True)
class Tally:
    """What all rounds together have done; lost and different end the run when they are not 0.

    acknowledged, flushed, unanswered: writes at the moment when their Primary was killed;
    others: writes that were not cut short, all checked as well."""

    rounds: int = 0
    acknowledged: int = 0
    flushed: int = 0
    unanswered: int = 0
    others: int = 0
    missing_under_a: int = 0
    lost: int = 0
    different: int = 0

    def add_killed(self, journal: Journal) -> None:
        done = len(journal.acknowledged)
        self.acknowledged += done
        self.flushed += len(journal.flushed_writes)
        self.unanswered += len(journal.writes) - done

    def __str__(self) -> str:
        newer = f", {self.missing_under_a} not yet at the peer" if self.missing_under_a else ""
        killed = (
            f"{self.acknowledged} writes acknowledged before a kill ({self.flushed} flushed{newer}), "
            f"{self.unanswered} unanswered; "
        )
        return (
            f"{killed if self.acknowledged or self.unanswered else ''}{self.others} other writes; "
            f"{self.lost} lost, {self.different} different"
        )


class CrashRounds:
    """pair: not started yet, with one volume; attach must be none."""

    def __init__(self, pair: Pair, protocol: str, victim: str, seed: int) -> None:
        self.tally = Tally()
        self._pair = pair
        self._protocol = protocol
        self._victim = victim
        self._rng = random.Random(seed)
        self._primary, self._peer = pair.nodes
        self._size = 0
        self._before = b""
        self._number = 1

    def start(self) -> None:
        """Bring both nodes up and in sync; alice is Primary."""
        self._pair.start_synced()
        self._size = self._volume(self._primary)["size_sectors"] * SECTOR
        self._before = self._image(self._primary)

    def run(self, rounds: int, say: Callable[[str], None] = lambda line: None) -> Tally:
        """Raises RoundFailed, PairError or ClientError."""
        play = {"primary": self._kill_primary, "secondary": self._kill_secondary}
        since, done = time.monotonic(), 0
        for number in range(1, rounds + 1):
            play.get(self._victim, self._kill_both)()
            self.tally.rounds = number
            if number % REPORT_EVERY == 0 or number == rounds:
                pace = (time.monotonic() - since) / (number - done)
                say(f"round {number:4}: {self.tally}; {pace:.2f} s per round")
                since, done = time.monotonic(), number
        return self.tally

    # ---- the three kinds of rounds

    def _kill_primary(self) -> None:
        dead, heir = self._primary, self._peer
        journal = self._write_until_killed(dead)
        self._await_end(dead)
        self._expect(
            journal, self._image(dead), journal.acknowledged, f"disk of killed {dead.name}"
        )
        self._promote(heir)
        image = self._image(heir)
        self._check_heir(journal, image, heir)
        self.tally.add_killed(journal)
        self._begin(journal, image)
        self._primary, self._peer = heir, dead
        self._write_while_it_returns()

    def _kill_secondary(self) -> None:
        victim = self._peer
        journal, client = self._client()
        written = self._rng.randint(0, 400)
        killer = _Killer([victim.pid()], self._delay())
        killer.start()
        client.run(killer.done.is_set)
        client.run(lambda: len(journal.writes) >= written)
        self._await_end(victim)
        self._return_while(client, journal, self._rng.random() < 0.25)
        self._settle(client, journal)
        self._exchange_roles()

    def _kill_both(self) -> None:
        first, second = self._rng.sample(self._pair.nodes, 2)
        pids = [first.pid(), second.pid()]
        journal, client = self._client(killed := Event())
        killer = _Killer(pids, self._delay(), killed, gap=self._rng.choice((0, 0, 0.001, 0.02)))
        self._write_until_broken(client, killer)
        for node in self._pair.nodes:
            self._await_end(node)
        self._expect(journal, self._image(self._primary), journal.acknowledged, "killed Primary")
        starting = [self._up(node) for node in self._pair.nodes]
        for process in starting:
            self._await_up(process)
        self._await_synced()
        heir = self._rng.choice(self._pair.nodes)
        self._promote(heir)
        image = self._image(heir)
        self._expect(journal, image, journal.acknowledged, f"{heir.name} after both came back")
        self.tally.add_killed(journal)
        self._begin(journal, image)
        self._primary, self._peer = heir, self._pair.other(heir)
        after, client = self._client()
        client.run(lambda: len(after.writes) >= 50)
        self._settle(client, after)

    # ---- steps

    def _client(self, killed: Event | None = None) -> tuple[Journal, CrashClient]:
        journal = Journal(self._before, self._number)
        socket = self._primary.run_dir / f"{RESOURCE}.nbd.sock"
        return journal, CrashClient(socket, journal, self._rng, killed)

    def _delay(self) -> float:
        return self._rng.uniform(0, LATEST_KILL)

    def _begin(self, journal: Journal, image: bytes) -> None:
        """The journal is closed; what is on the disk now is where the next one begins."""
        self._before, self._number = image, journal.next_number

    def _write_until_killed(self, node: Node) -> Journal:
        journal, client = self._client(killed := Event())
        self._write_until_broken(client, _Killer([node.pid()], self._delay(), killed))
        return journal

    def _write_until_broken(self, client: CrashClient, killer: _Killer) -> None:
        killer.start()
        client.run(lambda: False)
        killer.join()
        if not client.broken:
            raise RoundFailed("the connection to a killed daemon is still there")

    def _check_heir(self, journal: Journal, image: bytes, heir: Node) -> None:
        must = journal.acknowledged
        if self._protocol == "A":
            must = journal.prefix(image)
            newer = [w for w in journal.acknowledged if w not in set(must)]
            self.tally.missing_under_a += sum(not _visible(w, image) for w in newer if w.data)
        self._expect(journal, image, must, f"disk of promoted {heir.name}")

    def _write_while_it_returns(self) -> None:
        journal, client = self._client()
        self._return_while(client, journal, again=False)
        self._settle(client, journal)

    def _return_while(self, client: CrashClient, journal: Journal, again: bool) -> None:
        """Start the killed peer, keep writing until both are in sync; with `again` kill it anew."""
        victim, enough = self._peer, len(journal.writes) + self._rng.randint(0, 300)
        starting = self._up(victim)
        client.run(lambda: starting.poll() is not None, pause=PAUSE)
        self._await_up(starting)
        if again:
            killer = _Killer([victim.pid()], self._rng.uniform(0, 0.1))
            killer.start()
            client.run(killer.done.is_set)
            self._await_end(victim)
            starting = self._up(victim)
            client.run(lambda: starting.poll() is not None, pause=PAUSE)
            self._await_up(starting)
        client.run(lambda: len(journal.writes) >= enough)

    def _settle(self, client: CrashClient, journal: Journal) -> None:
        """Wait until both have the same, and see that they have, and that it is the right thing."""
        self._await_synced()
        client.finish()
        # The last write went out after a flush: a peer that shows it has applied all before it.
        last = client.last
        backing = self._peer.backing()
        self._await(
            lambda: _read(backing, last.first * SECTOR, SECTOR) == last.sector(last.first),
            lambda: f"{self._peer.name} does not show the last write",
        )
        image = self._image(self._primary)
        self._expect(journal, image, journal.writes, f"disk of Primary {self._primary.name}")
        different = self._pair.difference(size=self._size)
        if different is not None:
            self.tally.different += 1
            raise RoundFailed(
                f"the disks differ at byte {different} (sector {different // SECTOR})"
            )
        self.tally.others += len(journal.writes)
        self._begin(journal, image)

    def _exchange_roles(self) -> None:
        self._call(self._primary, "secondary")
        self._primary, self._peer = self._peer, self._primary
        self._promote(self._primary)

    def _promote(self, node: Node) -> None:
        """As an administrator would: as soon as the node knows that its peer is no Primary."""
        self._await(
            lambda: self._volume(node)["peer_role"] != "Primary",
            lambda: f"{node.name} still takes its peer for Primary",
        )
        self._call(node, "primary", force=False)

    def _up(self, node: Node) -> subprocess.Popen[str]:
        return node.start("up", RESOURCE)

    def _await_up(self, process: subprocess.Popen[str]) -> None:
        out, err = process.communicate(timeout=WAIT_SECONDS)
        self._pair.background.remove(process)
        if process.returncode != 0:
            raise RoundFailed(f"replicator up ended with {process.returncode}: {out}{err}")

    def _await_end(self, node: Node) -> None:
        self._await(lambda: not node.running(), lambda: f"{node.name} survived SIGKILL")

    def _await_synced(self) -> None:
        def synced() -> bool:
            found = [self._volume(node) for node in self._pair.nodes]
            return all(
                (v["cs"], v["disk"], v["peer_disk"]) == ("Connected", "UpToDate", "UpToDate")
                for v in found
            )

        self._await(synced, lambda: f"no sync: {[n.words() for n in self._pair.nodes]}")

    def _await(self, condition: Callable[[], bool], problem: Callable[[], str]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > end:
                raise RoundFailed(f"after {WAIT_SECONDS:g} s: {problem()}")
            time.sleep(POLL)

    # ---- looking

    def _expect(self, journal: Journal, image: bytes, must: Sequence[Write], where: str) -> None:
        problems = journal.problems(image, must)
        if problems:
            self.tally.lost += 1
            raise RoundFailed("\n  ".join([f"{where} is not what it must be:", *problems]))

    def _image(self, node: Node) -> bytes:
        return _read(node.backing(), 0, self._size)

    def _volume(self, node: Node) -> dict[str, Any]:
        volume: dict[str, Any] = self._call(node, "status")["volumes"][0]
        return volume

    @staticmethod
    def _call(node: Node, cmd: str, **args: object) -> Any:
        return control.call(str(node.run_dir), RESOURCE, cmd, args, PROMOTE_SECONDS)


class _Killer(Thread):
    """Kills processes after a delay, in a thread, so that the moment depends on no answer."""

    def __init__(
        self, pids: Sequence[int], delay: float, begun: Event | None = None, gap: float = 0
    ) -> None:
        super().__init__(daemon=True)
        self.done = Event()
        self._pids, self._delay, self._gap = pids, delay, gap
        self._begun = begun or Event()

    def run(self) -> None:
        time.sleep(self._delay)
        self._begun.set()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(self._gap)
        self.done.set()


def _visible(write: Write, image: bytes) -> bool:
    """Whether any sector of the image shows the write."""
    return any(
        image[sector * SECTOR : (sector + 1) * SECTOR] == write.sector(sector)
        for sector in range(write.first, write.first + write.count)
    )


def _read(path: os.PathLike[str], offset: int, length: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def play(
    rounds: int,
    protocol: str,
    victim: str,
    *,
    seed: int,
    frontend: str = "nbdkit",
    disk_io: str = "buffered",
    size: int = 32 * MIB,
    say: Callable[[str], None] = lambda line: None,
) -> Tally:
    """All of it, with a fresh pair; `size`: bytes of each backing file; say: told of each round.
    Raises RoundFailed with the reason and both logs."""
    sections = SECTIONS | {"replicator": f"disk-io {disk_io};"}
    with Pair(sizes=(size,), protocol=protocol, frontend=frontend, sections=sections) as pair:
        game = CrashRounds(pair, protocol, victim, seed)
        game.start()
        try:
            return game.run(rounds, say)
        except (RoundFailed, PairError, ClientError, ReplicatorError) as error:
            logs = "".join(f"\n--- log of {n.name}:\n{_tail(n)}" for n in pair.nodes)
            raise RoundFailed(
                f"round {game.tally.rounds + 1}, seed {seed}: {error}\n{game.tally}{logs}"
            ) from error


def _tail(node: Node) -> str:
    return "\n".join(node.log().splitlines()[-LOG_LINES:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="kill daemons in the middle of writes, lose nothing"
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--protocol", choices="ABC", default="C")
    parser.add_argument("--victim", choices=VICTIMS, default="primary")
    parser.add_argument("--frontend", choices=("nbdkit", "native"), default="nbdkit")
    parser.add_argument("--disk-io", choices=("buffered", "direct"), default="buffered")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices, not of time")
    parser.add_argument("--size", type=int, default=32, metavar="MIB", help="of each disk (32)")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    what = f"protocol {options.protocol}, victim {options.victim}, seed {seed}"
    what += f", {options.frontend}, disk-io {options.disk_io}"
    print(f"{options.rounds} rounds, {what}", flush=True)
    try:
        tally = play(
            options.rounds,
            options.protocol,
            options.victim,
            seed=seed,
            frontend=options.frontend,
            disk_io=options.disk_io,
            size=options.size * MIB,
            say=lambda line: print(line, flush=True),
        )
    except RoundFailed as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    print(f"PASSED: {tally.rounds} rounds, {what}: {tally}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
