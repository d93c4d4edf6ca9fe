"""Scenarios of interop.py made to be recorded: `--record tests/vectors/mixed` keeps what the nodes said.

Rules: small disks of readable lines, few and readable writes, so that a recording is small and what
a node had that no packet shows can be made up again. What is done here is recognised in the packets
by tests/simulation/replayed.py, which plays either side without a guest.
"""

from __future__ import annotations

from interop_scenarios import scenario
from interop_split import KERNELS, OURS, Split, demote, healed, in_sync, other, promote
from interop_stage import Plan, Stage

MIB = 1 << 20
SIZES = (4 * MIB,)
FAST = "c-plan-ahead 0; resync-rate 10M;"


BLOCK = 4096


def writes(stage: Stage, name: str, first: int, *lengths: int) -> None:
    """The Primary writes a range of each of these lengths, from this block on, 256 KiB apart."""
    for number, length in enumerate(lengths):
        offset = first * BLOCK + number * (256 << 10)
        line = f"{name} wrote {length} bytes at {offset}\n".encode()
        data = (line * (length // len(line) + 1))[:length]
        if name == OURS:
            stage.own.write(offset, data)
        else:
            stage.kernel_writes_at(offset, data)
        stage.models[0][offset : offset + length] = data


def usual_run(stage: Stage, first: str) -> None:
    """That node's disk is copied to the other; it writes; the other one is Primary and writes."""
    stage.prepare()
    stage.up()
    if first == OURS:
        stage.own_leads()
    else:
        stage.kernel_leads()
    stage.synced()
    for name in (first, other(first)):
        promote(stage, name)
        writes(stage, name, 100 if name == OURS else 500, 512, 4096, 20480)
        demote(stage, name)
        stage.roles("Secondary", "Secondary")
    stage.compare()


@scenario(
    "rec-source",
    "to be recorded: full sync to the kernel, writes, change of roles, discard, zeroes",
    Plan(sizes=SIZES, lines=True, disk=FAST),
)
def rec_source(stage: Stage) -> None:
    usual_run(stage, OURS)
    stage.own.primary()
    with stage.own.nbd() as handle:
        handle.trim(64 << 10, 1 * MIB)
        handle.zero(64 << 10, 2 * MIB)
        handle.flush()
    for offset in (1 * MIB, 2 * MIB):
        stage.models[0][offset : offset + (64 << 10)] = bytes(64 << 10)
    stage.compare()
    stage.own.secondary()
    stage.own.disconnect()


@scenario(
    "rec-target",
    "to be recorded: full sync to us, writes, change of roles",
    Plan(sizes=SIZES, lines=True, disk=FAST),
)
def rec_target(stage: Stage) -> None:
    usual_run(stage, KERNELS)
    stage.kernel.adm("disconnect")


def outage(stage: Stage, name: str) -> None:
    """That node is Primary and writes without the other, and the other gets it."""
    promote(stage, name)
    stage.own.disconnect()
    stage.kernel.wait(cs="WFConnection")
    writes(stage, name, 100 if name == OURS else 500, 4096, 20480, 65536)
    stage.own.connect()
    stage.synced()
    writes(stage, name, 120 if name == OURS else 520, 4096)
    demote(stage, name)
    stage.roles("Secondary", "Secondary")
    stage.compare()


@scenario(
    "rec-outage",
    "to be recorded: each writes without the other, and the other is synchronised",
    Plan(sizes=SIZES, lines=True, disk=FAST),
)
def rec_outage(stage: Stage) -> None:
    in_sync(stage)
    outage(stage, OURS)
    outage(stage, KERNELS)
    stage.own.disconnect()


@scenario(
    "rec-split-brain",
    "to be recorded: split brains that discard-least-changes heals, both ways",
    Plan(sizes=SIZES, lines=True, disk=FAST, net="after-sb-0pri discard-least-changes;"),
)
def rec_split_brain(stage: Stage) -> None:
    policy = "after-sb-0pri discard-least-changes"
    in_sync(stage)
    healed(stage, Split(own=4, kernel=2), KERNELS, policy)
    healed(stage, Split(own=2, kernel=4), OURS, policy)
    stage.own.disconnect()


@scenario(
    "rec-digests",
    "to be recorded: authentication, data digests, resync by checksum, online verify",
    Plan(
        sizes=SIZES,
        lines=True,
        disk=FAST,
        net='cram-hmac-alg sha256; shared-secret "captured secret"; data-integrity-alg crc32c; '
        "csums-alg crc32c; verify-alg crc32c;",
    ),
)
def rec_digests(stage: Stage) -> None:
    in_sync(stage)
    outage(stage, OURS)
    outage(stage, KERNELS)
    stage.own.cmd("verify", "r0")
    stage.pause(5)
    stage.check("online verify done" in stage.own.log(), "verified")
    stage.own.disconnect()
