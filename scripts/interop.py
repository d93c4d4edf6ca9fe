#!/usr/bin/env python3
"""Does our node work with the kernel's DRBD 8.4 as its peer? `make interop`; not part of `make test`.

The kernel's node runs in an emulated guest; REPLICATOR_VM_TOOLS names the directory with the
program that boots it (see interop_guest.py). What both sides show is printed side by side; at the
end there is a table of the scenarios. Exit code 0 if all passed.

    REPLICATOR_VM_TOOLS=DIR scripts/interop.py [--list] [--pcap DIR] [--record DIR] [SCENARIO...]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

# What follows is found only by that path, hence not at the top (E402); the modules of
# scenarios are imported for what they add to SCENARIOS (F401).
import interop_disks  # noqa: E402, F401
import interop_ext4  # noqa: E402, F401
import interop_features  # noqa: E402, F401
import interop_migration  # noqa: E402, F401
import interop_recorded  # noqa: E402, F401
import interop_split  # noqa: E402, F401
import interop_trouble  # noqa: E402, F401
import interop_verify  # noqa: E402, F401
from interop_guest import GUEST, HOST, GuestFailed, tools_directory  # noqa: E402
from interop_scenarios import SCENARIOS, Scenario  # noqa: E402
from interop_stage import Stage  # noqa: E402

from tests.simulation.recording import ALPHA, BETA  # noqa: E402
from tests.vectors.from_pcap import vector  # noqa: E402


def say(text: str) -> None:
    print(text, flush=True)


class OutOfTime(Exception):
    """A scenario took longer than it may."""


def alarm(number: int, frame: FrameType | None) -> None:
    raise OutOfTime("the scenario's time limit ran out")


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def show_if_possible(stage: Stage) -> None:
    """The states of both nodes after a failure, unless one of them cannot be asked any more."""
    try:
        stage.show("when it failed")
    except (AssertionError, OSError) as problem:
        say(f"    no state to show: {problem}")


def keep(stage: Stage, scenario: Scenario, pcap: Path | None, record: Path | None) -> None:
    """Packets and conversation of the guest that was there last, in these directories."""
    raw = stage.guest.pcap.read_bytes()
    if pcap is not None:
        (pcap / f"{scenario.name}.pcap").write_bytes(raw)
    if record is not None:
        names = {HOST: ALPHA, GUEST: BETA}
        (record / f"{scenario.name}.msgpack.gz").write_bytes(vector(raw, names))


def run(scenario: Scenario, pcap: Path | None, record: Path | None) -> str:
    """Play it; returns "" or, in one line, why it failed."""
    say(f"\n=== {scenario.name}: {scenario.text}")
    signal.setitimer(signal.ITIMER_REAL, scenario.seconds)
    try:
        with Stage(scenario.plan, say, scenario.seconds + 60) as stage:
            try:
                scenario.play(stage)
                if stage.guest.running:
                    stage.show("at the end")
            except (AssertionError, OutOfTime, OSError, KeyError) as problem:
                signal.setitimer(signal.ITIMER_REAL, 0)
                say(f"    FAILED: {type(problem).__name__}: {problem}")
                show_if_possible(stage)
                say(stage.report())
                return str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                keep(stage, scenario, pcap, record)
    except (AssertionError, OutOfTime) as problem:
        say(f"    FAILED while clearing up: {problem}")
        return str(problem).splitlines()[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def chosen(names: Sequence[str]) -> list[Scenario]:
    """Raises GuestFailed for a name that there is not."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise GuestFailed(f"no such scenario: {', '.join(unknown)}; see --list")
    return [known[name] for name in names] if names else list(SCENARIOS)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="our node and the kernel's DRBD 8.4 as peers")
    parser.add_argument("--list", action="store_true", help="print the scenarios and stop")
    parser.add_argument("--pcap", type=Path, metavar="DIR", help="keep the packets of each there")
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="keep the conversation of each as a test vector"
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all")
    options = parser.parse_args(argv)
    if options.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:<22} {scenario.text}")
        return 0
    try:
        tools_directory()
        scenarios = chosen(options.scenarios)
    except GuestFailed as problem:
        print(f"interop: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGALRM, alarm)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    for directory in filter(None, (options.pcap, options.record)):
        directory.mkdir(parents=True, exist_ok=True)
    results: list[tuple[Scenario, str, float]] = []
    for scenario in scenarios:
        started = time.monotonic()
        failure = run(scenario, options.pcap, options.record)
        results.append((scenario, failure, time.monotonic() - started))
    say("\n=== scenarios")
    for scenario, failure, seconds in results:
        verdict = f"FAIL  {failure}" if failure else "pass"
        say(f"  {scenario.name:<22} {seconds:5.0f} s of {scenario.seconds:.0f}  {verdict}")
    return 1 if any(failure for _, failure, _ in results) else 0


if __name__ == "__main__":
    sys.exit(main())
