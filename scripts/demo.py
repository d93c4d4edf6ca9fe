#!/usr/bin/env python3
"""The demo: two nodes mirror a volume, one is killed, the other takes over, the first comes back.

Everything is real: the command `replicator`, nbdkit, a mounted ext4 where the rights allow one, TCP
between the nodes; only both nodes run on this machine, in one temporary directory. Whatever happens,
interruption included, the demo takes down and removes what it has made.

Exit code 0 if every check held, 1 if not, 130 if interrupted.
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

# What follows is found only by that path, hence not at the top (E402).
from demo_stage import (  # noqa: E402
    DemoFailed,
    MountedFiles,
    RawBlocks,
    Storage,
    heading,
    say,
    shell,
    show_status,
    why_not_mounted,
)

from tests.integration.pair import MIB, RESOURCE, Pair, PairError  # noqa: E402

SYNC_SECONDS = 60
# A fixed rate, so that the bar can be seen and the time the demo takes is known.
SECTIONS = {"disk": "c-plan-ahead 0; resync-rate 200M;"}


class Story:
    """The steps in order. checks: what was verified, as told at the end."""

    def __init__(self, pair: Pair, storage: Storage) -> None:
        self.pair = pair
        self.alice, self.bob = pair.nodes
        self.storage = storage
        self.checks: list[str] = []
        self.total_kib = 0

    def run(self) -> None:
        self.create()
        self.first_sync()
        self.use_and_kill()
        self.take_over()
        self.come_back()
        self.compare()

    def create(self) -> None:
        heading("1. Two nodes, one resource")
        shell(self.alice, "cat $REPLICATOR_CONF")
        for node in self.pair.nodes:
            shell(node, f"replicator create-md {RESOURCE}")
        for node in self.pair.nodes:
            shell(node, f"replicator up {RESOURCE}")
        shell(self.alice, f"replicator wait-connect --timeout 20 {RESOURCE}")
        say("both disks are Inconsistent: nobody has said yet which one has the good data")
        show_status(self.alice)

    def first_sync(self) -> None:
        heading("2. Alice's data is declared good, and copied to bob in full")
        shell(self.alice, f"replicator primary --force {RESOURCE}")
        self.wait_sync()
        volume = self.alice.status()["volumes"][0]
        self.total_kib = volume["size_sectors"] // 2
        show_status(self.alice)
        self.checks.append(f"full synchronisation of {self.total_kib} KiB")

    def use_and_kill(self) -> None:
        heading("3. Alice works: every write goes to both disks")
        self.storage.prepare(self.alice)
        self.storage.write(self.alice, "first")
        show_status(self.alice)
        heading("4. Alice dies")
        pid = self.alice.pid()
        shell(self.alice, f"kill -9 {pid}")
        if not self.wait_dead():
            raise DemoFailed(f"process {pid} survived SIGKILL")
        self.storage.lose(self.alice)
        self.bob.wait(cstate="WFConnection")
        show_status(self.bob)

    def take_over(self) -> None:
        heading("5. Bob takes over, and has everything alice had synced")
        shell(self.bob, f"replicator primary {RESOURCE}")
        self.storage.use(self.bob)
        self.storage.verify(self.bob, "first")
        self.checks.append("after the crash bob had every byte that was synced on alice")
        say("bob works on alone, and notes which blocks alice misses")
        self.storage.write(self.bob, "second")
        show_status(self.bob)

    def come_back(self) -> None:
        heading("6. Alice comes back; only what may differ is copied")
        shell(self.alice, f"replicator down {RESOURCE}")
        shell(self.alice, f"replicator up {RESOURCE}")
        shell(self.alice, f"replicator wait-connect --timeout 20 {RESOURCE}")
        self.wait_sync()
        show_status(self.alice)
        copied = self.alice.status()["volumes"][0]["nr"]
        share = 100 * copied / self.total_kib
        say(f"copied to alice: {copied} of {self.total_kib} KiB ({share:.1f} %)")
        if not 0 < copied < self.total_kib / 2:
            raise DemoFailed("that is not the changed part alone")
        self.checks.append(f"resynchronised {copied} of {self.total_kib} KiB ({share:.1f} %)")

    def compare(self) -> None:
        heading("7. Are both copies the same?")
        self.storage.verify(self.bob, "first")
        self.storage.verify(self.bob, "second")
        self.checks.append("bob's own writes intact as well")
        self.storage.release(self.bob)
        shell(self.bob, f"replicator secondary {RESOURCE}")
        self.alice.wait(cstate="Connected", dstate="UpToDate/UpToDate", role="Secondary/Secondary")
        show_status(self.bob)
        for node in self.pair.nodes:
            shell(node, f"replicator down {RESOURCE}")
        shell(self.alice, f"cmp --bytes={self.total_kib * 1024} alice/disk-0 bob/disk-0")
        self.checks.append(f"all {self.total_kib} KiB equal on both disks, byte by byte")

    def wait_sync(self) -> None:
        shell(
            self.alice,
            f"replicator wait-sync --timeout {SYNC_SECONDS} {RESOURCE}",
            seconds=SYNC_SECONDS + 10,
        )
        for node in self.pair.nodes:
            node.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=10)

    def wait_dead(self) -> bool:
        end = time.monotonic() + 10
        while self.alice.running():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def choose_storage(no_mount: bool) -> Storage:
    reason = "--no-mount was given" if no_mount else why_not_mounted()
    if not reason:
        return MountedFiles()
    say(f"no file system on the device, {reason}: raw blocks are written through NBD instead")
    return RawBlocks()


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def play(size_mib: int, no_mount: bool) -> list[str]:
    """Tell the story; returns what was checked. Raises DemoFailed or PairError."""
    storage = choose_storage(no_mount)
    with Pair(sizes=[size_mib * MIB], attach=storage.attach, sections=SECTIONS) as pair:
        say(f"everything is in {pair.directory}; each node's commands run there, with")
        say("REPLICATOR_CONF, REPLICATOR_NODE and REPLICATOR_RUN_DIR set to that node's")
        story = Story(pair, storage)
        try:
            story.run()
        finally:
            heading("Clearing up")
            # From here on an impatient second interruption must not leave anything behind.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
    return story.checks


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="two replicating nodes on this machine")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each disk (1024)")
    parser.add_argument("--no-mount", action="store_true", help="use NBD only, mount nothing")
    options = parser.parse_args(argv)
    if not 160 <= options.size <= 65536:
        parser.error("--size: from 160 to 65536 MiB")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    started = time.monotonic()
    try:
        checks = play(options.size, options.no_mount)
    except KeyboardInterrupt:
        print("\nDEMO INTERRUPTED; everything was cleared up", flush=True)
        return 130
    except (DemoFailed, PairError) as problem:
        notes = "\n".join(getattr(problem, "__notes__", []))
        print(f"\nDEMO FAILED: {problem}\n{notes}", flush=True)
        return 1
    heading(f"DEMO PASSED in {time.monotonic() - started:.0f} s")
    for check in checks:
        print(f"  held: {check}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
