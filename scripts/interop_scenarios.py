"""The scenarios of interop.py: each is a function of a stage, and a plan for it.

Rules: a scenario begins with Stage.prepare() and ends with comparing both disks with what was
written; it raises an error where the two sides do not do what two DRBD nodes would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from interop_stage import Plan, Stage


@dataclass(frozen=True)
class Scenario:
    """seconds: time limit, boot of the guest included."""

    name: str
    text: str
    play: Callable[[Stage], None]
    plan: Plan = field(default_factory=Plan)
    seconds: float = 180


SCENARIOS: list[Scenario] = []


def scenario(
    name: str, text: str, plan: Plan | None = None, seconds: float = 180
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def add(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
        SCENARIOS.append(Scenario(name, text, play, plan or Plan(), seconds))
        return play

    return add


@scenario("kernel-primary", "kernel Primary: full sync to us, writes, trim, zeroes; outage, resync")
def kernel_primary(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.show("connected, both new")
    stage.kernel_leads()
    stage.synced()
    stage.show("after the initial sync")
    stage.compare()
    stage.kernel_writes(11)
    stage.compare()
    stage.kernel.adm("disconnect")
    stage.kernel_writes(12, area=4 << 20)
    stage.show("kernel disconnected, and has written")
    before = stage.own.status()["volumes"][0]["nr"]
    stage.kernel.adm("connect")
    stage.synced()
    stage.expect_little_copied(before, stage.own.status()["volumes"][0]["nr"])
    stage.own.disconnect()
    stage.kernel_writes(13, area=4 << 20)
    stage.own.connect()
    stage.synced()
    stage.show("after two outages")
    stage.compare()


@scenario(
    "own-primary", "we Primary: full sync to the kernel, writes, trim, zeroes; outage, resync"
)
def own_primary(stage: Stage) -> None:
    stage.prepare()
    stage.up(own_first=False)
    stage.own_leads()
    stage.synced()
    stage.show("after the initial sync")
    stage.compare()
    stage.own_writes(21)
    stage.compare()
    stage.own.disconnect()
    stage.own_writes(22, area=4 << 20)
    before = stage.kernel.counters()["nr"]
    stage.own.connect()
    stage.synced()
    stage.expect_little_copied(before, stage.kernel.counters()["nr"])
    stage.kernel.adm("disconnect")
    stage.own_writes(23, area=4 << 20)
    stage.kernel.adm("connect")
    stage.synced()
    stage.show("after two outages")
    stage.compare()


@scenario("role-switch", "Primary here, there, and back; a second Primary is refused on both sides")
def role_switch(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own_writes(31, 30)
    code, text = stage.kernel.adm_code("primary")
    stage.check(code != 0, f"kernel: primary refused while we are: {text.splitlines()[0]}")
    stage.own.secondary()
    stage.roles("Secondary", "Secondary")
    stage.same_generations("both Secondary")
    stage.kernel.adm("primary")
    stage.roles("Secondary", "Primary")
    stage.kernel_writes(32, 30)
    refused = stage.own.cmd("primary", "r0", check=False)
    stage.check(
        refused.returncode == 11, f"ours: primary refused: {refused.stderr.splitlines()[0]}"
    )
    stage.kernel.adm("secondary")
    stage.own.primary()
    stage.roles("Primary", "Secondary")
    stage.own_writes(33, 30)
    stage.show("Primary is back here")
    stage.same_generations("after the switches")
    stage.compare()


SLOW = "c-plan-ahead 0; resync-rate 1M;"


@scenario(
    "busy-sync-to-kernel", "we write while the initial sync to the kernel runs", Plan(disk=SLOW)
)
def busy_sync_to_kernel(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.wait("SyncSource", "SyncTarget")
    writes = stage.own_writes_meanwhile(41, 60, pause=0.03)
    stage.show("resync and writes")
    writes.join()
    still = stage.kernel.states()["cs"]
    stage.synced()
    stage.check(still == "SyncTarget", f"the writes ended while the kernel was still {still}")
    stage.same_generations("after the sync")
    stage.compare()


@scenario("busy-sync-to-us", "the kernel writes while the initial sync to us runs", Plan(disk=SLOW))
def busy_sync_to_us(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.wait("SyncTarget", "SyncSource")
    stage.show("the resync has begun")
    stage.kernel_writes(42, 50)
    still = stage.own.words()["cstate"]
    stage.synced()
    stage.check(still == "SyncTarget", f"the writes ended while we were still {still}")
    stage.same_generations("after the sync")
    stage.compare()


@scenario(
    "broken-sync-to-us",
    "the sync to us is interrupted by each side, and by our death",
    Plan(disk=SLOW),
)
def broken_sync_to_us(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    for breaking, mending in (
        (lambda: stage.kernel.adm("disconnect"), lambda: stage.kernel.adm("connect")),
        (stage.own.disconnect, stage.own.connect),
        (stage.own.kill9, stage.own.up),
    ):
        stage.wait("SyncTarget", "SyncSource")
        breaking()
        stage.kernel_writes(50, 10)
        stage.show("interrupted")
        mending()
    stage.synced()
    stage.same_generations("after the sync")
    stage.compare()


@scenario(
    "broken-sync-to-kernel",
    "the sync to the kernel is interrupted by each side, and by our death",
    Plan(disk=SLOW),
)
def broken_sync_to_kernel(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()

    def again() -> None:
        stage.own.up()
        stage.own.primary()

    for seed, breaking, mending in (
        (51, lambda: stage.kernel.adm("disconnect"), lambda: stage.kernel.adm("connect")),
        (52, stage.own.disconnect, stage.own.connect),
        (53, stage.own.kill9, again),
    ):
        stage.wait("SyncSource", "SyncTarget")
        breaking()
        if stage.own.running():
            stage.own_writes(seed, 10)
        stage.show("interrupted")
        mending()
    stage.synced()
    stage.same_generations("after the sync")
    stage.compare()


@scenario(
    "own-crash-primary", "we die as Primary while writing; we come back, or the kernel takes over"
)
def own_crash_primary(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    writes = stage.own_writes_meanwhile(61, 4000, pause=0.002)
    stage.pause(1.5)
    stage.own.kill9()
    stage.check(writes.failed(), "the writes were cut off")
    stage.kernel.wait(cs="WFConnection")
    stage.own.up()
    stage.synced()
    stage.model_from(stage.own)
    stage.compare()
    stage.own.primary()
    writes = stage.own_writes_meanwhile(62, 4000, pause=0.002)
    stage.pause(1.5)
    stage.own.kill9()
    stage.check(writes.failed(), "the writes were cut off")
    stage.kernel.wait(cs="WFConnection")
    stage.kernel.adm("primary")
    stage.kernel_writes(63, 10)
    stage.own.up()
    stage.synced()
    stage.show("the kernel has taken over, we are back")
    stage.model_from(stage.pair.bob)
    stage.compare()
    stage.same_generations("after the crash")


@scenario(
    "kernel-crash", "the guest dies as Primary while writing, later as Secondary", seconds=240
)
def kernel_crash(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel.start_writing(71, 4000, stage.size())
    stage.pause(4)
    stage.reboot_guest()
    stage.own.wait(cstate="WFConnection")
    stage.kernel.adm("up")
    stage.synced()
    stage.show("the guest is back after dying as Primary")
    stage.model_from(stage.pair.bob)
    stage.compare()
    stage.own.primary()
    writes = stage.own_writes_meanwhile(72, 300, pause=0.01)
    stage.pause(1)
    stage.reboot_guest()
    writes.join()
    stage.kernel.adm("up")
    stage.synced()
    stage.show("the guest is back after dying as Secondary")
    stage.compare()
    stage.same_generations("after the crashes")


@scenario(
    "lost-network",
    "the guest's network card is cut for a while, each side Primary in turn",
    Plan(net="ping-int 2; ping-timeout 20; timeout 15;"),
    seconds=240,
)
def lost_network(stage: Stage) -> None:
    cut = "ip link set eth0 down; sleep {0}; ip link set eth0 up"
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.guest.sh(cut.format(12))
    stage.synced()
    stage.guest.sh("ip link set eth0 down")
    stage.kernel_writes(81, 20)
    stage.show("cut, and the kernel has written")
    stage.guest.sh("ip link set eth0 up")
    stage.synced()
    stage.compare()
    stage.kernel.adm("secondary")
    stage.own.primary()
    stage.guest.sh("ip link set eth0 down")
    stage.own_writes(82, 20)
    stage.own.wait(cstate="WFConnection")
    stage.guest.sh("ip link set eth0 up")
    stage.synced()
    stage.own.freeze()
    stage.kernel.wait(cs="WFConnection|Unconnected|NetworkFailure")
    stage.own.thaw()
    stage.synced()
    stage.own_writes(83, 20)
    stage.show("after a frozen daemon")
    stage.compare()
