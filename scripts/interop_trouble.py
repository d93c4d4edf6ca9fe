"""Scenarios of interop.py in which the kernel's disk fails, its settings change, both nodes write, or
a file system moves from one to the other.

Rules: as in interop_scenarios.py.
"""

from __future__ import annotations

from interop_features import refused
from interop_guest import HOST
from interop_scenarios import scenario
from interop_stage import Plan, Stage

MIB = 1 << 20


@scenario(
    "kernel-disk-error",
    "the kernel's disk fails under our writes, then under its own, and is replaced",
    Plan(kernel_mapped=True, disk="on-io-error detach;"),
    seconds=240,
)
def kernel_disk_error(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    stage.kernel.fail_disk()
    stage.own_writes(301, 20)
    stage.own.wait(dstate="UpToDate/Diskless")
    stage.kernel.wait(ds="Diskless/UpToDate")
    stage.show("the kernel has lost its disk, and we go on")
    stage.kernel.mend_disk()
    stage.kernel.adm("attach")
    stage.synced()
    stage.compare()
    stage.own.secondary()
    stage.kernel.adm("primary")
    stage.kernel.fail_disk()
    stage.kernel_writes(302, 20)
    stage.own.wait(dstate="UpToDate/Diskless")
    stage.kernel_reads_model("from our disk")
    stage.kernel.mend_disk()
    stage.kernel.adm("attach")
    stage.synced()
    stage.show("the disk is back")
    stage.compare()


@scenario(
    "two-primaries",
    "allow-two-primaries on the kernel: we do not support it, and both stand alone",
    Plan(kernel_net="allow-two-primaries yes;"),
)
def two_primaries(stage: Stage) -> None:
    refused(stage, "two-primaries")


@scenario(
    "kernel-grows",
    "the kernel's size option is raised while connected",
    Plan(kernel_disk="size 8M;"),
)
def kernel_grows(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.check(stage.size() == 8 * MIB, "both agreed on the 8 MiB that the kernel asks for")
    stage.kernel_writes(341, 20)
    stage.compare()
    stage.guest.sh("drbdsetup resize 0 --size=$((14 * 2048)) 2>&1")
    stage.pause(2)
    stage.synced()
    stage.show("after growing")
    stage.model_from(stage.pair.bob, size=14 * MIB)
    stage.check(
        stage.own.status()["volumes"][0]["size_sectors"] == 14 * 2048, "we have 14 MiB as well"
    )
    stage.kernel_writes(342, 20)
    stage.compare()
    stage.kernel.adm("secondary")
    stage.own.primary()
    stage.guest.sh("drbdsetup resize 0 --size=$((17 * 2048)) 2>&1")
    stage.pause(2)
    stage.synced()
    stage.show("after growing again, with us as Primary")
    stage.model_from(stage.own, size=17 * MIB)
    stage.own_writes(343, 20)
    stage.guest.sh("drbdsetup resize 0 --size=$((18 * 2048)) --assume-clean 2>&1")
    stage.pause(2)
    stage.synced()
    stage.show("after growing with --assume-clean")
    stage.check(stage.kernel.counters()["oos"] == 0, "nothing of that had to be copied")
    stage.same_generations("after growing twice")
    stage.compare()


@scenario(
    "kernel-net-options",
    "the kernel's protocol and digests are changed while connected, and we follow",
)
def kernel_net_options(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    own, kernel = stage.own_port, 7789
    change = f"drbdsetup net-options ipv4:10.0.2.15:{kernel} ipv4:10.0.2.2:{own}"
    stage.guest.sh(f"{change} --protocol=A --verify-alg=sha1 2>&1")
    stage.kernel_writes(351, 20)
    stage.pause(1)
    stage.synced()
    stage.check(stage.own.status()["protocol"] == "A", "we have adopted protocol A")
    stage.compare()
    stage.own.disconnect()
    stage.own.connect()
    stage.synced()
    stage.own.cmd("verify", "r0")
    stage.wait("VerifyS", "VerifyT|Connected")
    stage.synced()
    stage.check("online verify done" in stage.own.log(), "verify-alg is adopted as well")
    stage.guest.sh(f"{change} --protocol=C --data-integrity-alg=sha1 2>&1")
    stage.kernel_writes(352, 20)
    stage.pause(2)
    stage.show("data-integrity-alg is set on the kernel alone")
    stage.synced()
    stage.compare()
    stage.own.disconnect()
    stage.own.connect()
    stage.own.wait(cstate="StandAlone")
    stage.check(
        "data-integrity-alg differs" in str(stage.own.status()["last_error"]), "we say what differs"
    )
    stage.kernel.wait(cs="StandAlone")
    stage.own.down()
    stage.own.up()
    stage.kernel.adm("connect")
    stage.synced()
    stage.compare()


MAKE_FILES = r"""
set -ex
modprobe nbd nbds_max=2
nbd-client {host} {port} /dev/nbd0 -N 0 -b 4096
mkfs.ext4 -q -F /dev/nbd0
mount /dev/nbd0 /mnt
mkdir /mnt/tree
for i in 1 2 3 4 5 6 7 8; do head -c $((i * 100000 + i)) /dev/urandom >/mnt/tree/file$i; done
(cd /mnt && sha256sum tree/* >/tmp/sums && cp /tmp/sums sums)
sync
rm /mnt/tree/file3
fstrim -v /mnt
cp /mnt/tree/file4 /mnt/tree/file3
sed -i 's/^.*file3$//' /tmp/sums
umount /mnt
fsck.ext4 -n -f /dev/nbd0
nbd-client -d /dev/nbd0
if dmesg | grep -E 'nbd0: .*(error|timed out)|EXT4-fs error'; then exit 1; fi
"""
CHECK_FILES = r"""
set -ex
fsck.ext4 -n -f /dev/drbd0
mount /dev/drbd0 /mnt
(cd /mnt && grep . /tmp/sums | sha256sum -c --quiet)
cmp /mnt/tree/file3 /mnt/tree/file4
umount /mnt
"""


@scenario(
    "nbd-client",
    "the kernel's nbd-client makes files on our export; the kernel's DRBD takes the volume over",
    Plan(nbd_listen=True),
    seconds=240,
)
def nbd_client(stage: Stage) -> None:
    stage.prepare()
    stage.up()
    stage.own_leads()
    stage.synced()
    text = stage.guest.sh(MAKE_FILES.format(host=HOST, port=stage.nbd_port), seconds=120)
    for line in text.splitlines():
        if not line.startswith("+"):
            stage.say(f"       guest: {line}")
    stage.own.secondary()
    stage.kernel.adm("primary")
    stage.guest.sh(CHECK_FILES, seconds=60)
    stage.kernel.adm("secondary")
    stage.show("the file system has moved to the kernel's node, and is whole")
    stage.model_from(stage.pair.bob)
    stage.compare()
