"""How replicator grows: volumes from 1 GiB to 16 TiB (sparse files), and many resources on a machine.

Usage: python -m benchmarks.scale [--sizes 1,100,1024,16384] [--resources 100] [--dir DIR]
[--json FILE] (sizes in GiB). Prints the tables of docs/scale.md; nothing is asserted. By default the
files are in memory: what is measured is replicator, not a disk.

Rules: nodes are driven by the command `replicator`, as an administrator would; a figure is what one
run on one machine gave. Nothing here imports the engine.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import nbd

from benchmarks import machine
from benchmarks.processes import processor_percent, resident_mib
from tests.integration.pair import RESOURCE, Node, Pair

GIB = 1 << 30
BLOCK = 4096
SCATTERED = 10_000
DEPTH = 64
IDLE_SECONDS = 20.0
LARGEST_FILE = (16 << 40) - (1 << 20)
"""ext4 has no larger ones."""
PATIENCE = 600.0


def measure_volume(size: int, directory: Path) -> dict[str, float]:
    """One pair with a volume of `size` bytes; seconds, MiB and per cent of a processor."""
    figures: dict[str, float] = {}
    with Pair(sizes=[size], frontend="native", parent=directory) as pair:
        alice, bob = pair.nodes
        figures["create_md_s"] = _timed(lambda: [node.create_md() for node in pair.nodes]) / 2
        figures["up_s"] = _timed(lambda: [node.up() for node in pair.nodes]) / 2
        figures["connect_s"] = _timed(
            lambda: [node.wait(cstate="Connected", timeout=PATIENCE) for node in pair.nodes]
        )
        alice.cmd("new-current-uuid", "--clear-bitmap", f"{RESOURCE}/0", timeout=PATIENCE)
        figures["primary_s"] = _timed(alice.primary)
        bob.disconnect()
        _scatter(alice, size)
        bob.connect()
        figures["resync_s"] = _timed(
            lambda: bob.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=PATIENCE)
        )
        figures["rss_mib"] = max(resident_mib(node.pid()) for node in pair.nodes)
        figures["idle_percent"] = max(
            processor_percent([node.pid() for node in pair.nodes], IDLE_SECONDS)
        )
    return figures


def measure_resources(count: int, directory: Path) -> dict[str, float]:
    """`count` connected pairs of resources of 1 GiB, both nodes on this machine."""
    pairs: list[Pair] = []
    try:
        for _ in range(count):
            pair = Pair(sizes=[GIB], frontend="native", parent=directory)
            pairs.append(pair)
            for node in pair.nodes:
                node.create_md()
                node.up()
        for pair in pairs:
            pair.alice.wait(cstate="Connected", timeout=PATIENCE)
        pids = [node.pid() for pair in pairs for node in pair.nodes]
        memory = [resident_mib(pid) for pid in pids]
        idle = processor_percent(pids, IDLE_SECONDS)
        return {
            "resources": count,
            "rss_mib_mean": sum(memory) / len(memory),
            "pss_mib_mean": sum(map(_proportional_mib, pids)) / len(pids),
            "idle_percent_mean": sum(idle) / len(idle),
            "idle_percent_max": max(idle),
        }
    finally:
        for pair in pairs:
            pair.close()


def _timed(action: Any) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def _scatter(node: Node, size: int) -> None:
    """Write SCATTERED blocks all over the volume."""
    usable = int(node.status()["volumes"][0]["size_sectors"]) // 8
    choice = random.Random(size)
    data = nbd.Buffer.from_bytearray(bytearray(b"scattered block " * (BLOCK // 16)))
    with node.nbd() as handle:
        for _ in range(SCATTERED):
            while handle.aio_in_flight() >= DEPTH:
                handle.poll(-1)
            handle.aio_pwrite(data, choice.randrange(usable) * BLOCK, completion=lambda _error: 1)
        while handle.aio_in_flight():
            handle.poll(-1)
        handle.flush()


def _proportional_mib(pid: int) -> float:
    """Resident memory with what processes share divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


VOLUME_COLUMNS = {
    "create_md_s": "create-md, s",
    "up_s": "up, s",
    "connect_s": "connect, s",
    "primary_s": "primary, s",
    "resync_s": "resync of 10,000 blocks, s",
    "rss_mib": "memory, MiB",
    "idle_percent": "idle, % of a core",
}


def volume_table(rows: dict[int, dict[str, float]]) -> str:
    """rows: by size in GiB."""
    lines = ["| volume | " + " | ".join(VOLUME_COLUMNS.values()) + " |"]
    lines.append("|---|" + "---|" * len(VOLUME_COLUMNS))
    for gib, row in rows.items():
        name = f"{gib} GiB" if gib < 1024 else f"{gib / 1024:g} TiB"
        lines.append(
            f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in VOLUME_COLUMNS) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="1,100,1024,16384", help="volume sizes in GiB")
    parser.add_argument("--resources", type=int, default=100, help="0: not that part")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the files are")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.facts(), "load": machine.load(), "volumes": {}}
    for gib in map(int, filter(None, options.sizes.split(","))):
        result["volumes"][gib] = measure_volume(min(gib * GIB, LARGEST_FILE), options.dir)
        print(volume_table({gib: result["volumes"][gib]}), flush=True)
    if options.resources:
        result["resources"] = measure_resources(options.resources, options.dir)
        print(json.dumps(result["resources"], indent=1))
    print(volume_table(result["volumes"]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
