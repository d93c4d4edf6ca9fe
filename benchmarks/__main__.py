"""The command of `make bench`: choose what to measure, measure it, write the report.

Rules: contestants are all started first and then measured in turn, so that those who are compared
ran within seconds of each other; what cannot be measured is reported as missing with what to
install, and does not stop the rest. Exit code 0 if something was measured, 1 if not, 130 if
interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import machine, report, workloads
from benchmarks.contestants import CONTESTANTS, Served
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS, Scale, Scenario
from benchmarks.stage import BenchError, Stage
from benchmarks.workloads import WORKLOADS, Result, Workload
from tests.integration.pair import MIB, PairError

ROOT = Path(__file__).resolve().parent.parent
UNUSED = 16 * MIB
"""Bytes of a volume that are not touched: room for the metadata."""


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """One run. Fills `results`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.size = options.size * MIB
        self.results = Results(
            machine={**machine.facts(), "load_before": machine.load()},
            settings={
                "rounds": options.rounds,
                "seconds": options.seconds,
                "size_bytes": self.size,
                "directory": str(options.dir),
                "disk_directory": str(options.disk_dir),
                "quick": options.quick,
            },
        )
        wanted = tuple(options.only)
        self.contestants = [
            one
            for one in CONTESTANTS
            if (one.quick or not options.quick) and one.key.startswith(wanted or "")
        ]
        self.workloads = [one for one in WORKLOADS if one.quick or not options.quick]
        self.scenarios = [] if options.no_scenarios else SCENARIOS

    def run(self) -> None:
        self._leave_out_what_is_not_installed()
        for disk in (False, True):
            chosen = [one for one in self.workloads if one.disk == disk]
            if chosen:
                self._measure(self.options.disk_dir if disk else self.options.dir, chosen)
        for scenario in self.scenarios:
            self._scenario(scenario)
        self.results.machine["load_after"] = machine.load()

    def _leave_out_what_is_not_installed(self) -> None:
        for one in list(self.contestants):
            lacking = [
                package for program, package in one.needs.items() if not shutil.which(program)
            ]
            if lacking:
                self._miss(one.title, f"to install: apt-get install {' '.join(lacking)}")
                self.contestants.remove(one)

    def _miss(self, what: str, why: str) -> None:
        say(f"{what}: {why}")
        self.results.missing[what] = why

    def _measure(self, directory: Path, chosen: list[Workload]) -> None:
        with Stage(directory) as stage, ExitStack() as opened:
            targets = self._open(stage, opened)
            self.results.contestants = [one for one in self.contestants if one.key in targets]
            self.results.workloads += chosen
            for number in range(self.options.rounds):
                for workload in chosen:
                    self._round(stage, workload, targets, number)

    def _open(self, stage: Stage, opened: ExitStack) -> dict[str, Served]:
        targets = {}
        for one in self.contestants:
            say(f"starting {one.title}")
            try:
                targets[one.key] = opened.enter_context(one.open(stage, self.size))
                workloads.fill(targets[one.key], self.size - UNUSED, stage.directory)
            except (BenchError, PairError) as error:
                self._miss(one.title, str(error))
                targets.pop(one.key, None)
        return targets

    def _round(
        self, stage: Stage, workload: Workload, targets: dict[str, Served], number: int
    ) -> None:
        turn = [one for one in self.contestants if one.key in targets]
        first = number % len(turn) if turn else 0
        rates = []
        for one in turn[first:] + turn[:first]:
            try:
                result = self._fio(stage, workload, targets[one.key])
            except BenchError as error:
                self._miss(f"{one.title}: {workload.title}", str(error))
                continue
            self.results.add(workload.key, one.key, result)
            rates.append(f"{one.key} {report.digits(getattr(result, workload.measure))}")
        say(f"round {number + 1}: {workload.title}: {', '.join(rates)}")

    def _fio(self, stage: Stage, workload: Workload, served: Served) -> Result:
        size = self.size - UNUSED
        return workloads.run(served, workload.options, size, self.options.seconds, stage.directory)

    def _scenario(self, scenario: Scenario) -> None:
        scale = Scale(
            size=self.options.scenario_size * MIB,
            seconds=self.options.seconds,
            idle_seconds=self.options.idle_seconds,
        )
        for number in range(self.options.scenario_rounds):
            try:
                with Stage(self.options.dir) as stage:
                    numbers = scenario.run(stage, scale)
            except (BenchError, PairError) as error:
                self._miss(scenario.title, str(error))
                return
            self.results.add_numbers(numbers)
            words = (f"{name} {report.digits(value)}" for name, value in numbers.items())
            say(f"{scenario.title}, round {number + 1}: {', '.join(words)}")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure replicator beside its peers."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="few contestants and workloads, under two minutes")
    add("--rounds", type=int, help="of each workload (5; 3 if quick)")
    add("--seconds", type=float, help="of each fio run (2; 0.5 if quick)")
    add("--size", type=int, help="of a volume in MiB (256)", default=256)
    add("--dir", type=Path, default=Path("/dev/shm"), help="where both copies are (/dev/shm)")
    add("--disk-dir", type=Path, default=Path("/var/tmp"), help="a real disk (/var/tmp)")
    add("--out", type=Path, help="where the report is written (docs; build/bench if quick)")
    add("--only", action="append", default=[], metavar="PREFIX", help="contestants, e.g. native-C")
    add("--scenario-rounds", type=int, help="of resync, failover... (3; 1 if quick)")
    add("--no-scenarios", action="store_true", help="only fio")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.rounds = options.rounds or (3 if quick else 5)
    options.seconds = options.seconds or (0.5 if quick else 2.0)
    options.out = options.out or ROOT / ("build/bench" if quick else "docs")
    options.scenario_rounds = options.scenario_rounds or (1 if quick else 3)
    options.scenario_size = 256 if quick else 1024
    options.idle_seconds = 4.0 if quick else 30.0
    return options


def write(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "benchmarks.md": report.page(results),
        "benchmarks.svg": report.picture(results),
        "benchmarks.json": json.dumps(results.document(), indent=1) + "\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
    say(f"written: {directory}/benchmarks.md, .svg, .json")


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    if shutil.which("fio") is None:
        say("fio is not installed: make setup")
        return 1
    began = time.monotonic()
    bench = Bench(options)
    if (load := machine.load()) > 1:
        say(f"the machine is busy (load {load:g}): trust ratios, not rates")
    try:
        bench.run()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    print(report.summary(bench.results))
    write(bench.results, options.out)
    say(f"{time.monotonic() - began:.0f} s")
    return 0 if bench.results.fio or bench.results.numbers else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
