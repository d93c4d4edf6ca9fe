"""Scenarios of interop.py about online verify: started on either side, with either side as Primary.

Rules: as in interop_scenarios.py.
"""

from __future__ import annotations

from collections.abc import Callable

from interop_scenarios import scenario
from interop_stage import Plan, Stage

MIB = 1 << 20
BLOCK = 4096
WRITTEN = 4 * MIB
"""Writes go below this while a verify runs; planted differences lie above."""
VERIFYING = Plan(net="verify-alg crc32c;", disk="c-plan-ahead 0; resync-rate 4M;")


def damage_own(stage: Stage, blocks: list[int]) -> None:
    """Change blocks of our disk behind the daemon's back."""
    with stage.own.backing(0).open("r+b") as file:
        for block in blocks:
            file.seek(block * BLOCK + 100)
            file.write(b"damaged")


def damage_kernel(stage: Stage, blocks: list[int]) -> None:
    """Change blocks of the kernel's disk behind its back."""
    for block in blocks:
        stage.guest.sh(
            f"tr '\\0' D </dev/zero | head -c {BLOCK} >/tmp/block && "
            f"dd if=/tmp/block of=/dev/vda bs={BLOCK} seek={block} oflag=direct conv=notrunc 2>&1"
        )


def oos(stage: Stage) -> tuple[int, int]:
    """KiB out of sync: as we say, as the kernel says."""
    return stage.own.status()["volumes"][0]["oos"], stage.kernel.counters()["oos"]


def verify_and_repair(
    stage: Stage,
    ask: Callable[[], object],
    write: Callable[[], Callable[[], None]],
    damage: Callable[[Stage, list[int]], None],
    asker: str,
) -> None:
    """A clean run with writes, one that finds what was planted, and the resync that repairs it.

    damage: of the Secondary, so that the Primary's copy is the good one."""
    states = ("VerifyS", "VerifyT") if asker == "replicator" else ("VerifyT", "VerifyS")
    ask()
    stage.wait(*states)
    join = write()
    stage.show(f"{asker} verifies, the Primary writes")
    join()
    stage.synced()
    found = oos(stage)
    stage.check(found == (0, 0), f"no false alarm while writing (out of sync: {found} KiB)")
    damage(stage, [2000, 2001, 3500, 4000])
    ask()
    stage.wait(*states)
    stage.synced()
    stage.show(f"{asker} has found what was planted")
    found = oos(stage)
    stage.check(found == (16, 16), f"four blocks found, no more (out of sync: {found} KiB)")
    stage.kernel.adm("disconnect")
    stage.kernel.adm("connect")
    stage.synced()
    stage.check(oos(stage) == (0, 0), "disconnect and connect have repaired them")
    stage.compare()


@scenario("verify-own-primary", "online verify from either side, we are Primary", VERIFYING, 300)
def verify_own_primary(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    seeds = iter((401, 402))

    def write() -> Callable[[], None]:
        writes = stage.own_writes_meanwhile(next(seeds), 60, pause=0.02, area=WRITTEN)
        return writes.join

    def own_verify() -> None:
        stage.own.cmd("verify", "--start", "0", "r0")

    def kernel_verify() -> None:
        stage.kernel.adm("verify")

    verify_and_repair(stage, own_verify, write, damage_kernel, "replicator")
    verify_and_repair(stage, kernel_verify, write, damage_kernel, "kernel")
    stage.same_generations("after two verifies")


@scenario(
    "verify-kernel-primary", "online verify from either side, the kernel is Primary", VERIFYING, 300
)
def verify_kernel_primary(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    seeds = iter((411, 412))

    def write() -> Callable[[], None]:
        return stage.kernel_writes_meanwhile(next(seeds), 40, pause=0.02, area=WRITTEN)

    def own_verify() -> None:
        stage.own.cmd("verify", "--start", "0", "r0")

    def kernel_verify() -> None:
        stage.kernel.adm("verify")

    verify_and_repair(stage, own_verify, write, damage_own, "replicator")
    verify_and_repair(stage, kernel_verify, write, damage_own, "kernel")
    stage.same_generations("after two verifies")


@scenario(
    "verify-part",
    "sectors from and to, on either side; a run cut off by a disconnect, and resumed",
    Plan(net="verify-alg sha1;", disk="c-plan-ahead 0; resync-rate 2M;"),
    300,
)
def verify_part(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    damage_kernel(stage, [100, 1100, 4000])
    stage.own.cmd("verify", "--start", "8000", "--stop", "10000", "r0")
    stage.synced()
    stage.check(oos(stage) == (4, 4), f"only the block between is found: {oos(stage)} KiB")
    stage.guest.sh("drbdsetup verify 0 --start=0s --stop=2000s 2>&1")
    stage.pause(1)
    stage.synced()
    stage.check(oos(stage) == (8, 8), f"the kernel stops where it was told: {oos(stage)} KiB")
    stage.own.cmd("verify", "--start", "0", "r0")
    stage.pause(3)
    stage.own.disconnect()
    resumed = stage.own.log().count("to be resumed at")
    stage.check(resumed == 1, "cut off by a disconnect")
    stage.own.connect()
    stage.synced()
    stage.own.cmd("verify", "r0")
    stage.wait("VerifyS", "VerifyT")
    stage.show("resumed")
    stage.synced()
    stage.check(oos(stage) == (4, 4), f"the last block is found: {oos(stage)} KiB")
    stage.own.disconnect()
    stage.own.connect()
    stage.synced()
    stage.compare()
