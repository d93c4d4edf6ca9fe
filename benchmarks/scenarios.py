"""Measurements of a pair that are not fio on an idle volume: resync, failover, idle, memory.

Each returns named numbers; the names and units are in `NUMBERS`. Rules: a scenario makes its own
pair and removes it; what a peer tool can do at best is measured in the same scenario.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbd

from benchmarks import workloads
from benchmarks.contestants import FAST_RESYNC, Served, nbd_options
from benchmarks.processes import processor_percent, resident_mib
from benchmarks.stage import BenchError, Stage, wait_until
from tests.integration.pair import MIB, RESOURCE, Node, Pair

METADATA_ROOM = 8 * MIB
SYNC_SECONDS = 120.0
FAILOVER_SECONDS = 60.0
TIB = 1 << 40

NUMBERS = {
    "resync_mib_s": ("full resync, nothing else going on", "MiB/s"),
    "dd_mib_s": ("dd into a TCP socket, dd out of it", "MiB/s"),
    "idle_p50_us": ("4 KiB write, depth 1, no resync: median", "µs"),
    "idle_p99_us": ("4 KiB write, depth 1, no resync: 99 %", "µs"),
    "resync_p50_us": ("the same during a resync: median", "µs"),
    "resync_p99_us": ("the same during a resync: 99 %", "µs"),
    "failover_s": ("SIGKILL of the Primary to the first write taken by its peer", "s"),
    "idle_cpu_percent": ("processor time of a daemon of an idle pair, the busier one", "%"),
    "rss_mib": ("resident memory of a daemon after all of the above, the larger one", "MiB"),
    "rss_tib_mib": ("resident memory of a daemon with a volume of 1 TiB", "MiB"),
}
"""name: (what it is, unit)"""

Numbers = dict[str, float]


@dataclass(frozen=True)
class Scale:
    """size: bytes of a volume; seconds: of a measurement that has to last."""

    size: int
    seconds: float
    idle_seconds: float


@dataclass(frozen=True)
class Scenario:
    key: str
    title: str
    run: Callable[[Stage, Scale], Numbers]


# resync


def resync_beside_dd(stage: Stage, scale: Scale) -> Numbers:
    with Pair(
        sizes=(scale.size,), frontend="native", sections=FAST_RESYNC, parent=stage.directory
    ) as pair:
        _fill_synced(pair, scale.size, stage)
        pair.bob.cmd("invalidate", RESOURCE)
        pair.bob.cmd("wait-sync", RESOURCE, timeout=SYNC_SECONDS)
        return {
            "resync_mib_s": scale.size / MIB / _last_resync_seconds(pair.bob.log()),
            "dd_mib_s": _dd_mib_s(pair.alice.backing(), pair.bob.backing(), scale.size),
            "rss_mib": max(resident_mib(node.pid()) for node in pair.nodes),
        }


def _last_resync_seconds(log: str) -> float:
    """Of the target's log, by its own clock: two starts of a command are no part of a rate."""
    times = {
        what: datetime.fromisoformat(line.split(maxsplit=1)[0])
        for line in log.splitlines()
        for what in ("-> SyncTarget", "resync done")
        if what in line
    }
    return (times["resync done"] - times["-> SyncTarget"]).total_seconds()


def _dd_mib_s(source: Path, target: Path, size: int) -> float:
    """Copy `source` over itself in `target` by a TCP connection, as dd does it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    began = time.monotonic()
    with sender, receiver:
        sending = subprocess.Popen(
            ["dd", f"if={source}", "bs=1M", "status=none"],
            stdin=subprocess.DEVNULL,
            stdout=sender.fileno(),
        )
        receiving = subprocess.Popen(
            ["dd", f"of={target}", "bs=1M", "iflag=fullblock", "conv=notrunc", "status=none"],
            stdin=receiver.fileno(),
        )
        sender.close()
        codes = (sending.wait(SYNC_SECONDS), receiving.wait(SYNC_SECONDS))
    if any(codes):
        raise BenchError(f"dd ended with {codes}")
    return size / MIB / (time.monotonic() - began)


def latency_during_resync(stage: Stage, scale: Scale) -> Numbers:
    """With the default resync controller, which is meant to spare the application."""
    size = max(2 * scale.size, 1536 * MIB)  # so that it lasts: alone it goes at full speed at first
    with Pair(sizes=(size,), frontend="native", parent=stage.directory) as pair:
        _fill_synced(pair, size, stage)
        alone = _write_alone(pair, stage, scale)
        pair.alice.cmd("invalidate-remote", RESOURCE)
        pair.alice.wait(cstate="SyncSource")
        busy = _write_alone(pair, stage, scale)
        if pair.alice.words()["cstate"] != "SyncSource":
            raise BenchError("the resync was over before its latency had been measured")
        return {
            "idle_p50_us": alone.p50_us,
            "idle_p99_us": alone.p99_us,
            "resync_p50_us": busy.p50_us,
            "resync_p99_us": busy.p99_us,
        }


def _fill_synced(pair: Pair, size: int, stage: Stage) -> None:
    """Both nodes UpToDate and without holes, which a resync would leave out."""
    pair.start()
    pair.alice.cmd("new-current-uuid", "--clear-bitmap", RESOURCE)
    pair.alice.primary()
    workloads.fill(_served(pair), size - METADATA_ROOM, stage.directory)


def _write_alone(pair: Pair, stage: Stage, scale: Scale) -> workloads.Result:
    options = ("--rw=randwrite", "--bs=4k", "--iodepth=1")
    return workloads.run(_served(pair), options, 64 * MIB, scale.seconds, stage.directory)


def _served(pair: Pair) -> Served:
    return Served(nbd_options(pair.alice.nbd_uri()), tuple(node.pid() for node in pair.nodes))


# failover


def failover(stage: Stage, scale: Scale) -> Numbers:
    """What a cluster manager does that learns of the death at once: promote, and let clients write."""
    with Pair(frontend="native", sections=FAST_RESYNC, parent=stage.directory) as pair:
        pair.start_synced()
        uri = pair.bob.nbd_uri()
        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(_write_until_it_fails, pair.alice.nbd_uri())
            wait_until(lambda: writer.running(), "the writer starts")
            time.sleep(0.3)
            began = time.monotonic()
            pair.alice.kill9()
            _promote(pair.bob, began + FAILOVER_SECONDS)
            client = nbd.NBD()
            client.connect_uri(uri)
            client.pwrite(b"\1" * 4096, 0, nbd.CMD_FLAG_FUA)
            ended = time.monotonic()
            client.shutdown()
            _check_it_wrote(writer)
        return {"failover_s": ended - began}


def _write_until_it_fails(uri: str) -> int:
    """Number of writes that were accepted."""
    client = nbd.NBD()
    client.connect_uri(uri)
    written = 0
    try:
        while True:
            client.pwrite(b"\2" * 4096, written % 1000 * 4096)
            written += 1
    except nbd.Error:
        return written


def _check_it_wrote(writer: Future[int]) -> None:
    if not writer.result(FAILOVER_SECONDS):
        raise BenchError("nothing was written before the Primary was killed")


def _promote(node: Node, deadline: float) -> None:
    while node.cmd("primary", RESOURCE, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise BenchError(f"not promoted within {FAILOVER_SECONDS:g} s: {node.log()[-500:]}")


# idle


def idle(stage: Stage, scale: Scale) -> Numbers:
    with Pair(frontend="native", sections=FAST_RESYNC, parent=stage.directory) as pair:
        pair.start_synced()
        time.sleep(2)  # the end of the resync is still being written down
        pids = [node.pid() for node in pair.nodes]
        return {"idle_cpu_percent": max(processor_percent(pids, scale.idle_seconds))}


# memory


def memory_of_a_tib(stage: Stage, scale: Scale) -> Numbers:
    """Connected, all of it out of sync: the bitmap is as busy as it can be."""
    with Pair(sizes=(TIB,), frontend="native", parent=stage.directory) as pair:
        pair.start()
        return {"rss_tib_mib": max(resident_mib(node.pid()) for node in pair.nodes)}


SCENARIOS = (
    Scenario("resync", "full resync beside dd", resync_beside_dd),
    Scenario("latency", "latency during a resync", latency_during_resync),
    Scenario("failover", "failover", failover),
    Scenario("idle", "an idle pair", idle),
    Scenario("memory", "a volume of 1 TiB", memory_of_a_tib),
)
