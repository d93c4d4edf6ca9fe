"""More scenarios of interop.py: protocols and options, administration, disks that are not there.

Rules: as in interop_scenarios.py.
"""

from __future__ import annotations

import re

from interop_scenarios import SLOW, scenario
from interop_stage import Plan, Stage


def both_lead(stage: Stage, seed: int) -> None:
    """Full sync, writes and an outage with us as Primary, then the same the other way round."""
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own_writes(seed, 40)
    stage.kernel.adm("disconnect")
    stage.own_writes(seed + 1, 20, area=4 << 20)
    stage.kernel.adm("connect")
    stage.synced()
    stage.own_writes(seed + 2, 20)
    stage.own.secondary()
    stage.kernel.adm("primary")
    stage.kernel_writes(seed + 3, 40)
    stage.own.disconnect()
    stage.kernel_writes(seed + 4, 20, area=4 << 20)
    stage.own.connect()
    stage.synced()
    stage.kernel_writes(seed + 5, 20)
    stage.kernel.adm("secondary")
    stage.roles("Secondary", "Secondary")
    stage.show("at the end")
    stage.same_generations("at the end")
    stage.compare()


@scenario("protocol-a", "protocol A in both directions", Plan(protocol="A"))
def protocol_a(stage: Stage) -> None:
    both_lead(stage, 100)


@scenario("protocol-b", "protocol B in both directions", Plan(protocol="B"))
def protocol_b(stage: Stage) -> None:
    both_lead(stage, 110)


@scenario(
    "digests",
    "authentication, data-integrity-alg and csums-alg, in both directions",
    Plan(
        net='cram-hmac-alg sha256; shared-secret "a word"; data-integrity-alg crc32c; csums-alg sha1;'
    ),
)
def digests(stage: Stage) -> None:
    both_lead(stage, 120)


@scenario(
    "digests-md5",
    "the same with other algorithms",
    Plan(
        net='cram-hmac-alg sha1; shared-secret "a word"; data-integrity-alg md5; csums-alg crc32c;'
    ),
)
def digests_md5(stage: Stage) -> None:
    both_lead(stage, 125)


@scenario("no-rle", "bitmaps sent plain, in both directions", Plan(net="use-rle no;"))
def no_rle(stage: Stage) -> None:
    both_lead(stage, 130)


@scenario(
    "epochs",
    "an epoch for each completed write, as DRBD closes them",
    Plan(sections={"replicator": "epoch-per-completion yes;"}),
)
def epochs(stage: Stage) -> None:
    both_lead(stage, 140)


@scenario("guest-dials", "only the host can be dialled", Plan(reachable="host"))
def guest_dials(stage: Stage) -> None:
    both_lead(stage, 150)


@scenario("host-dials", "only the guest can be dialled", Plan(reachable="guest"))
def host_dials(stage: Stage) -> None:
    both_lead(stage, 160)


@scenario("two-volumes", "two volumes of different size", Plan(sizes=(20 << 20, 9 << 20)))
def two_volumes(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    for volume in (0, 1):
        stage.synced(volume=volume)
    stage.own_writes(171, 30, volume=0)
    stage.own_writes(172, 30, volume=1)
    stage.kernel.adm("disconnect")
    stage.own_writes(173, 10, volume=1)
    stage.kernel.adm("connect")
    for volume in (0, 1):
        stage.synced(volume=volume)
    stage.own.secondary()
    stage.kernel.adm("primary")
    stage.kernel_writes(174, 30, volume=0)
    stage.kernel_writes(175, 30, volume=1)
    stage.show("two volumes")
    stage.compare()


@scenario(
    "wrong-secret",
    "different secrets: both stand alone",
    Plan(
        net="cram-hmac-alg sha256;",
        own_net='shared-secret "one";',
        kernel_net='shared-secret "another";',
    ),
)
def wrong_secret(stage: Stage) -> None:
    refused(stage, "authentication|secret")


@scenario(
    "other-protocol",
    "protocol C here, A there: both stand alone",
    Plan(protocol="C", kernel_protocol="A"),
)
def other_protocol(stage: Stage) -> None:
    refused(stage, "protocol")


@scenario(
    "other-verify-alg",
    "verify-alg differs: both stand alone",
    Plan(own_net="verify-alg sha1;", kernel_net="verify-alg md5;"),
)
def other_verify_alg(stage: Stage) -> None:
    refused(stage, "verify-alg differs: sha1 here, md5 on the peer")


@scenario(
    "secret-here-only",
    "only our node wants authentication: we stand alone, the kernel goes on dialling",
    Plan(own_net='cram-hmac-alg sha1; shared-secret "one";'),
)
def secret_here_only(stage: Stage) -> None:
    refused(stage, "cram-hmac-alg missing in the peer", kernel="WFConnection")


@scenario(
    "secret-there-only",
    "only the kernel wants authentication: both stand alone",
    Plan(kernel_net='cram-hmac-alg sha1; shared-secret "one";'),
)
def secret_there_only(stage: Stage) -> None:
    refused(stage, "the peer wants authentication")


@scenario(
    "xxh3",
    "a digest that no kernel knows: we stand alone and say what to choose",
    Plan(own_net="verify-alg xxh3-128;"),
)
def xxh3(stage: Stage) -> None:
    refused(stage, "choose one of the kernel's", kernel="StandAlone|WFConnection")


def refused(stage: Stage, word: str, kernel: str = "StandAlone") -> None:
    """The two must not connect; ours says why."""
    stage.prepare()
    stage.own.up()
    stage.kernel.adm("up", check=False)
    stage.own.wait(cstate="StandAlone", timeout=40)
    stage.kernel.wait(cs=kernel, seconds=60)
    stage.show("refused")
    reason = str(stage.own.status()["last_error"])
    stage.check(bool(re.search(word, reason, re.I)), f"our reason: {reason}")


@scenario("smaller-peer", "the kernel's disk is smaller than ours, which has data", seconds=240)
def smaller_peer(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own_writes(180, 20)
    stage.own.secondary()
    stage.kernel.adm("down")
    stage.guest.sh("drbdadm -- --force wipe-md r0 >/dev/null 2>&1; dmsetup --version >/dev/null")
    stage.guest.sh(
        "echo '0 32768 linear /dev/vda 0' | dmsetup create small && "
        "sed -i 's,disk /dev/vda,disk /dev/mapper/small,' /etc/drbd.conf && "
        "drbdadm -- --force create-md r0 >/dev/null 2>&1 && drbdadm up r0"
    )
    stage.own.wait(cstate="StandAlone", timeout=40)
    stage.kernel.wait(cs="StandAlone|WFConnection", seconds=40)
    stage.show("refused: the peer is too small")
    stage.check("small" in str(stage.own.status()["last_error"]), "our reason names the size")


@scenario("pause", "pause-sync and resume-sync on each side", Plan(disk=SLOW))
def pause(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.wait("SyncTarget", "SyncSource")
    stage.kernel.adm("pause-sync")
    stage.wait("PausedSyncT", "PausedSyncS")
    stage.show("paused by the kernel")
    stage.kernel.adm("resume-sync")
    stage.wait("SyncTarget", "SyncSource")
    stage.own.cmd("pause-sync", "r0")
    stage.wait("PausedSyncT", "PausedSyncS")
    stage.kernel_writes(190, 10)
    stage.own.cmd("resume-sync", "r0")
    stage.synced()
    stage.compare()


@scenario("invalidate", "invalidate and invalidate-remote on each side", seconds=240)
def invalidate(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    for name, command in (
        ("invalidate on the kernel", lambda: stage.kernel.adm("invalidate")),
        ("invalidate-remote here", lambda: stage.own.cmd("invalidate-remote", "r0")),
    ):
        copied = stage.kernel.counters()["nr"]
        command()
        stage.pause(1)
        stage.synced()
        copied = stage.kernel.counters()["nr"] - copied
        stage.check(copied == len(stage.models[0]) >> 10, f"{name}: {copied} KiB to the kernel")
    stage.own_writes(195, 20)
    stage.own.secondary()
    for name, command in (
        ("invalidate here", lambda: stage.own.cmd("invalidate", "r0")),
        ("invalidate-remote on the kernel", lambda: stage.kernel.adm("invalidate-remote")),
    ):
        copied = stage.own.status()["volumes"][0]["nr"]
        command()
        stage.pause(1)
        stage.synced()
        copied = stage.own.status()["volumes"][0]["nr"] - copied
        stage.check(copied == len(stage.models[0]) >> 10, f"{name}: {copied} KiB to us")
    stage.same_generations("after four full syncs")
    stage.compare()


@scenario("kernel-diskless", "the kernel detaches as Primary, uses our disk, attaches again")
def kernel_diskless(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel.adm("detach")
    stage.own.wait(dstate="UpToDate/Diskless")
    stage.kernel.wait(ds="Diskless/UpToDate")
    stage.kernel_writes(201, 30)
    stage.kernel_reads_model("while diskless")
    stage.show("the kernel is Primary without disk")
    stage.kernel.adm("attach")
    stage.synced()
    stage.compare()
    stage.kernel.adm("secondary")
    stage.own.primary()
    stage.kernel.adm("detach")
    stage.own_writes(202, 20)
    stage.kernel.adm("attach")
    stage.synced()
    stage.compare()


@scenario("own-diskless", "we detach as Primary, use the kernel's disk, attach again")
def own_diskless(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own.cmd("detach", "r0")
    stage.own.wait(dstate="Diskless/UpToDate")
    stage.kernel.wait(ds="UpToDate/Diskless")
    stage.own_writes(211, 30)
    found = stage.own.read(0, len(stage.models[0]))
    stage.check(found == stage.models[0], "read through the kernel: what was written")
    stage.show("we are Primary without disk")
    stage.own.cmd("attach", "r0")
    stage.synced()
    stage.compare()
    stage.own.secondary()
    stage.kernel.adm("primary")
    stage.own.cmd("detach", "r0")
    stage.kernel_writes(212, 20)
    stage.own.cmd("attach", "r0")
    stage.synced()
    stage.compare()


@scenario("both-diskless", "neither has a disk; the kernel attaches first, then we do")
def both_diskless(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel.adm("secondary")
    for first in ("kernel", "own"):
        stage.own.cmd("detach", "r0")
        stage.own.wait(dstate="Diskless/UpToDate")
        stage.kernel.adm("detach")
        stage.kernel.wait(ds="Diskless/Diskless")
        if first == "kernel":
            stage.kernel.adm("attach")
            stage.kernel.wait(ds="UpToDate/Diskless")
            stage.kernel.adm("primary")
            stage.kernel_writes(221, 20)
            stage.kernel.adm("secondary")
            stage.own.cmd("attach", "r0")
        else:
            stage.own.cmd("attach", "r0")
            stage.own.wait(dstate="UpToDate/Diskless")
            stage.own.primary()
            stage.own_writes(222, 20)
            stage.own.secondary()
            stage.kernel.adm("attach")
        stage.synced()
        stage.compare()


@scenario(
    "split-brain",
    "both were Primary while apart; solved by discarding ours, then theirs",
    seconds=300,
)
def split_brain(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.own.secondary()

    def split(seed: int, keep_own: bool) -> None:
        stage.own.disconnect()
        stage.kernel.adm("disconnect", check=False)
        stage.own.primary()
        stage.kernel.adm("primary")
        if keep_own:
            stage.own_writes(seed, 10, area=4 << 20)
            stage.kernel.write(seed + 1, 10, 4 << 20)
        else:
            kept = stage.models[0][:]
            stage.own_writes(seed + 1, 10, area=4 << 20)
            stage.models[0] = kept
            stage.kernel_writes(seed, 10, area=4 << 20)
        stage.own.secondary()
        stage.kernel.adm("secondary")
        stage.own.connect()
        stage.kernel.adm("connect")
        stage.own.wait(cstate="StandAlone", timeout=40)
        stage.kernel.wait(cs="StandAlone", seconds=40)
        stage.check("plit" in str(stage.own.status()["last_error"]), "our reason names split brain")
        stage.show("split brain")

    split(220, keep_own=False)
    stage.own.connect(discard_my_data=True)
    stage.kernel.adm("connect")
    stage.synced()
    stage.compare()
    split(230, keep_own=True)
    stage.kernel.adm("connect", "--discard-my-data")
    stage.own.connect()
    stage.synced()
    stage.same_generations("after two split brains")
    stage.compare()


@scenario(
    "forced-inconsistent",
    "our invalidated copy is declared good by force: the kernel, of the same generation, is no ancestor",
    seconds=240,
)
def forced_inconsistent(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.kernel.adm("secondary")
    for seed, keep_own in ((240, True), (250, False)):
        stage.own.disconnect()
        stage.own.cmd("invalidate", "r0")
        stage.own.primary(force=True)
        kept = stage.models[0][:]
        stage.own_writes(seed, 10, area=4 << 20)
        stage.own.secondary()
        stage.own.connect()
        stage.own.wait(cstate="StandAlone", timeout=40)
        stage.kernel.wait(cs="StandAlone", seconds=40)
        stage.show("both copies are kept")
        if keep_own:
            stage.kernel.adm("connect", "--discard-my-data")
            stage.own.connect()
        else:
            stage.models[0] = kept
            stage.own.connect(discard_my_data=True)
            stage.kernel.adm("connect")
        stage.synced()
        stage.same_generations("after the split brain")
        stage.compare()


@scenario("skip-initial-sync", "the kernel says that both new disks are equal")
def skip_initial_sync(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.guest.sh("drbdadm new-current-uuid --clear-bitmap r0/0")
    stage.synced()
    stage.show("no initial sync")
    stage.check(stage.kernel.counters()["ns"] == 0, "nothing was copied")
    stage.same_generations("after the skipped sync")


@scenario(
    "kernel-ahead",
    "the kernel pulls ahead while we do not read, and comes back",
    Plan(
        protocol="A",
        net="sndbuf-size 64k; ping-timeout 300; timeout 300; connect-int 60; ping-int 60;",
        kernel_net="on-congestion pull-ahead; congestion-fill 400k;",
    ),
    seconds=240,
)
def kernel_ahead(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.own.freeze()
    stage.kernel_writes(250, 40)
    stage.kernel.wait(cs="Ahead")
    stage.show_kernel("ahead, we are frozen")
    stage.own.thaw()
    stage.synced()
    stage.kernel_writes(251, 20)
    stage.show("after the kernel was ahead")
    stage.check("-> Behind" in stage.own.log(), "we knew that we were Behind meanwhile")
    stage.pause(2)
    stage.synced()
    stage.compare()


@scenario(
    "thin",
    "the kernel as target would take thin resync",
    Plan(kernel_disk="rs-discard-granularity 65536;"),
)
def thin(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.compare()


@scenario(
    "deep-queue",
    "fio with 16 writes in flight on the kernel's device, and through ours",
    seconds=300,
)
def deep_queue(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    job = "--name=j --rw=randwrite --bsrange=4k-64k --direct=1 --iodepth=16 --fsync=20"
    text = stage.guest.sh(
        f"fio {job} --filename=/dev/drbd0 --ioengine=libaio --runtime=15 --time_based", seconds=90
    )
    stage.say("       kernel: " + next(line for line in text.splitlines() if "write: IOPS" in line))
    stage.model_from(stage.pair.bob)
    stage.compare()
    stage.kernel.adm("secondary")
    stage.own.primary()
    stage.own_fio(job.replace("--direct=1", ""), 10)
    stage.model_from(stage.own)
    stage.compare()
