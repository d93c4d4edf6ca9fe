"""Two real nodes, real clients, real kills, for as long as one likes; nothing may be lost.

    python -m tests.integration.torture --minutes 60
    python -m tests.integration.torture --seed 7 --game 12      one game of that plan again

A game is a fresh pair, with front end, protocol and disks of its own, a network between the nodes
that can be cut anywhere, and a number of rounds (torture_rounds says what happens in them and what
is checked). The plan of all games comes from the seed; when exactly what happens is up to the
machine, so a game played again is the same plan but not the same run.

When something does not hold, everything is kept that was there at that moment: both disks, logs,
configuration, status, and the story of the round. Exit code 0 if all held, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration import torture_disks
from tests.integration.pair import MIB, NAMES, Pair
from tests.integration.refusals import own_config
from tests.integration.torture_disks import PlainDisk
from tests.integration.torture_rounds import KINDS, WEIGHTS, TortureRounds
from tests.tools.faulty_network import FaultyNetwork

SECTIONS = {
    "net": "timeout 15; ping-int 2; ping-timeout 5; connect-int 2;",
    "disk": "al-extents 67; c-plan-ahead 0; resync-rate 500M;",
}
"""Silence is noticed within 2.5 s, and a new connection is tried every 2 s."""
SIZE = 24 * MIB
ROUNDS = 12
FRONTENDS = ("nbdkit", "native")
PROTOCOLS = ("C", "C", "B", "A")


class TortureFailed(AssertionError):
    """A promise was broken; the text says which one and where everything is kept."""


@dataclass(slots=True)
class Game:
    """What one game is played with: the front end and the kind of disk of each node, by name."""

    name: str
    protocol: str
    frontends: dict[str, str]
    disks: dict[str, str]
    rounds: list[str]
    longest: float = 6.0
    disk_io: str = "buffered"

    @staticmethod
    def planned(seed: int, number: int, rounds: int = ROUNDS) -> Game:
        """Game `number` of the plan of that seed, of so many rounds."""
        name = f"{seed}/{number}"
        rng = random.Random(name)
        kinds, weights = list(KINDS), [WEIGHTS.get(kind, 1) for kind in KINDS]
        return Game(
            name,
            rng.choice(PROTOCOLS),
            {node: rng.choice(FRONTENDS) for node in NAMES},
            {node: rng.choice(list(torture_disks.KINDS)) for node in NAMES},
            rng.choices(kinds, weights, k=rounds),
            disk_io=rng.choice(("buffered", "direct")),
        )

    def __str__(self) -> str:
        nodes = ", ".join(f"{n}: {self.frontends[n]} on {self.disks[n]}" for n in NAMES)
        return f"game {self.name}: protocol {self.protocol}, {self.disk_io}; {nodes}"


@dataclass(slots=True)
class Total:
    """What all games have done."""

    games: int = 0
    rounds: int = 0
    writes: int = 0
    cut_short: int = 0
    missing_under_a: int = 0
    cuts: int = 0
    passed: int = 0
    most_files: int = 0
    most_memory: int = 0
    done: Counter[str] = field(default_factory=Counter)

    def add(self, rounds: TortureRounds) -> None:
        tally = rounds.tally
        self.games += 1
        self.rounds += tally.rounds
        self.writes += tally.acknowledged + tally.others
        self.cut_short += tally.unanswered
        self.missing_under_a += tally.missing_under_a
        self.cuts += rounds.network.cuts
        self.passed += rounds.network.passed
        self.most_files = max(self.most_files, rounds.bounds.most_files)
        self.most_memory = max(self.most_memory, rounds.bounds.most_memory)
        self.done += rounds.done

    def __str__(self) -> str:
        what = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        return (
            f"{self.games} games, {self.rounds} rounds: {self.writes} writes checked, "
            f"{self.cut_short} cut short, {self.missing_under_a} not at the peer under protocol A; "
            f"{self.cuts} connections cut, {self.passed >> 20} MiB between the nodes; "
            f"a daemon grew by at most {self.most_files} files and {self.most_memory >> 20} MiB; "
            f"{what}"
        )


def play(game: Game) -> TortureRounds:
    """One game, from create-md to down. Raises TortureFailed, after it has kept everything."""
    with ExitStack() as stack:
        pair = Pair(sizes=(SIZE,), protocol=game.protocol, frontend="nbdkit", sections=SECTIONS)
        made: list[PlainDisk] = []
        stack.callback(lambda: [disk.close() for disk in made])
        stack.enter_context(pair)
        network = stack.enter_context(_network_of(pair))
        for node in pair.nodes:
            chosen = f"frontend {game.frontends[node.name]}; disk-io {game.disk_io};"
            own_config(pair, node, "frontend nbdkit;", chosen)
            peer = pair.other(node)
            text = node.config_path.read_text()
            real = _port(pair, peer.name)
            node.config_path.write_text(text.replace(f":{real};", f":{network.ports[peer.name]};"))
            made.append(torture_disks.KINDS[game.disks[node.name]](node, SIZE))
            stack.callback(made[-1].repair)
        disks = dict(zip(NAMES, made, strict=True))
        rounds = TortureRounds(pair, game.protocol, network, disks, game.name, game.longest)
        try:
            rounds.start()
            for kind in game.rounds:
                rounds.play(kind)
            rounds.end()
        except Exception as error:
            raise TortureFailed(_keep(game, pair, rounds, error)) from error
        return rounds


def _port(pair: Pair, name: str) -> int:
    found = re.search(rf"on {name} {{\s*address 127\.0\.0\.1:(\d+);", pair.config_path.read_text())
    assert found, name
    return int(found[1])


def _network_of(pair: Pair) -> FaultyNetwork:
    return FaultyNetwork({node.name: _port(pair, node.name) for node in pair.nodes})


def _keep(game: Game, pair: Pair, rounds: TortureRounds, error: Exception) -> str:
    """Keep what there is to see of a failed game; returns the message."""
    kept = Path(tempfile.mkdtemp(prefix="replicator-torture-", dir="/tmp"))
    story = "\n".join(rounds.story)
    text = (
        f"{game}\nrounds: {' '.join(game.rounds)}\n{story}\n"
        f"after {rounds.tally.rounds} rounds: {type(error).__name__}: {error}\n"
    )
    (kept / "story.txt").write_text(text + "".join(traceback.format_exception(error)))
    for node in pair.nodes:
        place = kept / node.name
        place.mkdir()
        shutil.copy(node.config_path, place)
        for path in (*node.run_dir.glob("*.log"), *node.run_dir.glob("*.json")):
            shutil.copy(path, place)
        if node.running():
            (place / "threads.txt").write_text(_threads(node.pid()))
        with contextlib.suppress(subprocess.SubprocessError):
            copy = ["cp", "--sparse=always", "--dereference", str(node.backing()), str(place)]
            subprocess.run(copy, capture_output=True, timeout=30)
    return f"{text}kept in {kept}\nagain: --seed {game.name.replace('/', ' --game ')}"


def _threads(pid: int) -> str:
    """Where each thread of the process is inside the kernel: shows what a hung daemon waits for."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(OSError):
            comm, where = ((task / name).read_text().strip() for name in ("comm", "stack"))
            found.append(f"{task.name} {comm}\n{where}\n")
    return "\n".join(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="faults of all kinds on two nodes under load")
    parser.add_argument("--minutes", type=float, default=5, help="begin games for this long (5)")
    parser.add_argument("--seed", type=int, default=None, help="of the plan, not of time")
    parser.add_argument("--game", type=int, default=None, help="only this one of the plan")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each game ({ROUNDS})")
    parser.add_argument("--only", choices=KINDS, default=None, help="only rounds of this kind")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    total, end, number = Total(), time.monotonic() + 60 * options.minutes, options.game or 0
    print(f"torture, seed {seed}", flush=True)
    while options.game in (None, number) and time.monotonic() < end:
        game = Game.planned(seed, number, options.rounds)
        if options.only:
            game.rounds = [options.only] * options.rounds
        started = time.monotonic()
        try:
            rounds = play(game)
        except TortureFailed as error:
            print(f"FAILED: {error}\nbefore that: {total}", flush=True)
            return 1
        total.add(rounds)
        print(f"{game}: {len(game.rounds)} rounds, {time.monotonic() - started:.0f} s", flush=True)
        number += 1
    print(f"PASSED: seed {seed}: {total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
