"""Scenarios of interop.py in which the nodes exchange their disks: the metadata that one wrote is
attached by the other, clean, after a crash, with marked blocks, and in the middle of a resync.

Rules: as in interop_scenarios.py. While a disk belongs to nobody, drbdmeta reads it as well.
"""

from __future__ import annotations

from interop_scenarios import scenario
from interop_stage import Plan, Stage


def referee_both(stage: Stage) -> None:
    stage.referee(stage.pair.alice, "our disk")
    stage.referee(stage.pair.bob, "the kernel's disk")


def stop_both(stage: Stage) -> None:
    """In good order, both Secondary."""
    stage.own.down()
    stage.stop_kernel()


def exchange(stage: Stage) -> None:
    """Both are stopped; afterwards both are up, with each other's disk."""
    referee_both(stage)
    stage.swap_disks()
    stage.start_kernel()
    stage.own.up()
    stage.kernel.adm("up")


@scenario("disk-swap-clean", "the nodes exchange their disks, nothing is copied", seconds=240)
def disk_swap_clean(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel_writes(501, 20)
    stage.kernel.adm("secondary")
    stop_both(stage)
    exchange(stage)
    stage.synced()
    stage.show("with each other's disk")
    moved = stage.own.status()["volumes"][0]
    stage.check(moved["ns"] == moved["nr"] == 0, "nothing was copied")
    stage.same_generations("after the exchange")
    stage.own.primary()
    stage.own_writes(502, 20)
    stage.own.secondary()
    stop_both(stage)
    exchange(stage)
    stage.synced()
    stage.kernel.adm("primary")
    stage.kernel_writes(503, 20)
    stage.compare()


@scenario(
    "disk-swap-crash", "a Primary dies while writing, and the other kind gets its disk", seconds=300
)
def disk_swap_crash(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel.start_writing(511, 4000, stage.size())
    stage.pause(4)
    stage.guest.kill()
    stage.own.wait(cstate="WFConnection")
    stage.own.down()
    exchange(stage)
    stage.synced()
    stage.show("we have the disk of the kernel that died as Primary")
    stage.check("activity log" in stage.own.log(), "we have applied the kernel's activity log")
    stage.model_from(stage.own)
    stage.compare()
    stage.same_generations("after that")
    stage.own.primary()
    writes = stage.own_writes_meanwhile(512, 4000, pause=0.002)
    stage.pause(1.5)
    stage.own.kill9()
    stage.check(writes.failed(), "our writes were cut off")
    stage.kernel.wait(cs="WFConnection")
    stage.stop_kernel()
    exchange(stage)
    stage.synced()
    stage.show("the kernel has the disk on which we died as Primary")
    stage.model_from(stage.pair.bob)
    stage.compare()
    stage.same_generations("after both crashes")


@scenario("disk-swap-bits", "the marks of a Primary alone are found by the other kind", seconds=300)
def disk_swap_bits(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own.disconnect()
    stage.own_writes(521, 20, area=4 << 20)
    marked = stage.own.status()["volumes"][0]["oos"]
    stage.own.secondary()
    stop_both(stage)
    exchange(stage)
    stage.synced()
    copied = stage.own.status()["volumes"][0]["nr"]
    stage.check(0 < copied <= marked, f"{copied} of {marked} marked KiB copied from the kernel")
    stage.compare()
    stage.kernel.adm("primary")
    stage.own.disconnect()
    stage.kernel_writes(522, 20, area=4 << 20)
    marked = stage.kernel.counters()["oos"]
    stage.kernel.adm("secondary")
    stop_both(stage)
    exchange(stage)
    stage.synced()
    copied = stage.kernel.counters()["nr"]
    stage.check(0 < copied <= marked, f"{copied} of {marked} marked KiB copied to the kernel")
    stage.same_generations("after both")
    stage.compare()


@scenario(
    "disk-swap-mid-sync",
    "both die in the middle of a full sync, and go on with each other's disk",
    Plan(disk="c-plan-ahead 0; resync-rate 1M;"),
    300,
)
def disk_swap_mid_sync(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    total = stage.size() >> 10
    for title in ("from us", "from the kernel"):
        stage.pause(5)
        stage.show(f"in the middle of the sync {title}")
        left = stage.kernel.counters()["oos"]
        stage.check(0 < left < total, f"{left} of {total} KiB left")
        stage.own.kill9()
        stage.guest.kill()
        exchange(stage)
        stage.kernel.wait(cs="SyncTarget|SyncSource")
    stage.synced()
    stage.show("at last")
    stage.same_generations("after the sync")
    stage.compare()
