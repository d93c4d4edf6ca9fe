"""The scenarios of docs/migration.md: a pair of kernels becomes a pair of replicators one node at a
time, under load, and goes back; its commands one after the other; the way back at any time.

Rules: as in interop_scenarios.py; the steps are those of the document. Node A is
ours (its disk that of "alice"), node B the guest's, until both are ours. One guest at a time: where
both nodes are kernels, both are in that guest.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from interop_scenarios import scenario
from interop_stage import Plan, Stage

from tests.integration.pair import Node

MIB = 1 << 20
AREA = 6 * MIB

KERNEL_PAIR = r"""
modprobe drbd usermode_helper=/bin/true minor_count=8
ip address replace 127.0.0.2/8 dev lo
for node in a b; do
    [ $node = a ] && disk=/dev/vdb minor=0 || { disk=/dev/vda; minor=1; }
    cat >/etc/drbd-$node.conf <<END
global { usage-count no; }
resource r$node {
    net { protocol C; ping-timeout 50; }
    disk { c-plan-ahead 0; resync-rate 20M; }
    volume 0 { device /dev/drbd$minor; disk $disk; meta-disk internal; }
    on a { address 127.0.0.1:7789; }
    on b { address 127.0.0.2:7789; }
}
END
done
node() { local n=$1; shift; __DRBD_NODE__=$n drbdadm -c /etc/drbd-$n.conf "$@" r$n 2>&1; }
"""
CREATE = "for n in a b; do node $n -- --force create-md >/dev/null || die create-md; done\n"
UP = "node a up; node b up\n"
SYNCED = r"""
for _ in $(seq 600); do
    [ "$(grep -c 'cs:Connected.*ds:UpToDate/UpToDate' /proc/drbd)" = 2 ] && break
    sleep 0.1
done
grep -q 'cs:Connected.*ds:UpToDate/UpToDate' /proc/drbd || { cat /proc/drbd; exit 1; }
cat /proc/drbd
"""
DOWN = "node a down; node b down\n"


def kernel_pair(stage: Stage, script: str) -> str:
    """Both nodes as kernels in one guest, which ends afterwards."""
    alice, bob = stage.pair.alice.backing(0), stage.pair.bob.backing(0)
    stage.start_kernel_with([bob, alice])
    stage.guest.booted()
    text = stage.guest.sh(KERNEL_PAIR + script, seconds=120)
    stage.guest.close()
    return text


def two_kernels(stage: Stage) -> None:
    """Two kernels in sync; then A is down, and B a kernel in a guest of its own."""
    b = stage.pair.bob
    stage.guest.close()
    first = "node b primary --force\n" + SYNCED + "node b secondary\n"
    kernel_pair(stage, CREATE + UP + first + DOWN)
    stage.model_from(b, size=b.backing(0).stat().st_size - 40 * 1024)
    stage.start_kernel_with([b.backing(0)])
    stage.configure_kernel()
    stage.kernel.adm("up")


def little_was_copied(stage: Stage, title: str, copied: int) -> None:
    total = len(stage.models[0]) >> 10
    stage.check(0 < copied < total // 2, f"resync of {title}: {copied} of {total} KiB")


def own_resync(node: Node) -> int:
    """KiB of the last resync."""
    return int(re.findall(r"resync done \([0-9.]+ s, (\d+) KiB", node.log())[-1])


def kernel_resync(stage: Stage) -> int:
    return int(re.findall(r"will sync (\d+) KB", stage.guest.messages(200))[-1])


@scenario(
    "rolling-migration",
    "two kernels become two replicators one by one, under load, and go back",
    Plan(disk="c-plan-ahead 0; resync-rate 20M;"),
    600,
)
def rolling_migration(stage: Stage) -> None:
    a, b = stage.own, stage.pair.bob
    two_kernels(stage)
    stage.compare()
    to_replicators(stage, a, b)
    back_to_kernels(stage, a, b)


def to_replicators(stage: Stage, a: Node, b: Node) -> None:
    """A, the roles, B."""
    stage.say("    -- A is down, B a kernel and Primary, and goes on writing")
    stage.kernel.adm("primary")
    stage.kernel_writes(601, 20, area=AREA)
    join = stage.kernel_writes_meanwhile(602, 40, pause=0.05, area=AREA)
    a.up()
    a.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=90)
    join()
    stage.show("A is a replicator on the disk it had as a kernel")
    little_was_copied(stage, "A", own_resync(a))
    stage.compare()
    stage.kernel.adm("secondary")
    a.primary()
    stop_load = stage.own_load(6100, area=AREA)
    stage.pause(1)
    stage.stop_kernel()
    b.up()
    b.wait(cstate="Connected", dstate="UpToDate/UpToDate", timeout=90)
    stop_load()
    stage.say(f"       both are replicators: {b.words()}")
    little_was_copied(stage, "B", own_resync(b))
    stage.compare()


def back_to_kernels(stage: Stage, a: Node, b: Node) -> None:
    """And back, B first."""
    stop_load = stage.own_load(6500, area=AREA)
    stage.pause(1)
    b.down()
    stage.start_kernel_with([b.backing(0)])
    stage.configure_kernel()
    stage.kernel.adm("up")
    stage.synced()
    stop_load()
    stage.show("B is a kernel again")
    little_was_copied(stage, "B", kernel_resync(stage))
    stage.compare()
    a.secondary()
    stage.kernel.adm("primary")
    stage.kernel_writes(605, 20, area=AREA)
    a.down()
    stage.kernel_writes(606, 20, area=AREA)
    stage.kernel.adm("secondary")
    stage.stop_kernel()
    text = kernel_pair(stage, UP + SYNCED + DOWN)
    for line in text.splitlines():
        if "cs:" in line or "ns:" in line:
            stage.say(f"       kernels   |{line}")
    stage.compare()


MAKE_FILES = r"""
set -e
mkfs.ext4 -q -F /dev/drbd0
mount /dev/drbd0 /mnt
for i in 1 2 3 4; do head -c $((i * 300000 + i)) /dev/urandom >/mnt/file$i; done
cd /mnt && sha256sum file* >sums
"""
CHECK_FILES = "cd {0} && sha256sum -c --quiet sums"
MOUNT_AND_CHECK = f"mount /dev/drbd0 /mnt && ({CHECK_FILES.format('/mnt')})"


@scenario(
    "migration-as-written",
    "every command of docs/migration.md, with a file system that moves from node to node",
    Plan(disk="c-plan-ahead 0; resync-rate 20M;", attach="auto"),
    600,
)
def migration_as_written(stage: Stage) -> None:
    a, b = stage.own, stage.pair.bob
    two_kernels(stage)
    stage.kernel.adm("primary")
    stage.guest.sh(MAKE_FILES)
    dumped = a.cmd("dump", "r0")
    stage.check(not dumped.stderr, "A: replicator dump r0 has no warning")
    join(stage, a, "A")
    stage.guest.sh("umount /mnt")
    stage.kernel.adm("secondary")
    a.cmd("primary", "r0")
    mounted = mount_here(stage, a)
    stage.say("       A: mounted, all files are as B wrote them")
    (mounted / "file5").write_bytes(b"written on A\n" * 50000)
    run(stage, "cd {0} && sha256sum file* >sums", mounted)
    stage.kernel.adm("down")
    stage.guest.sh("modprobe -r drbd")
    stage.guest.close()
    (mounted / "file6").write_bytes(b"written while B was down\n" * 50000)
    run(stage, "cd {0} && sha256sum file* >sums && sync", mounted)
    join(stage, b, "B")
    b.cmd("down", "r0")
    stage.start_kernel_with([b.backing(0)])
    stage.configure_kernel()
    stage.kernel.adm("up")
    stage.kernel.adm("wait-connect")
    a.cmd("wait-sync", "r0")
    stage.check(stage.kernel.adm("dstate").split() == ["UpToDate/UpToDate"], "B: in sync")
    stage.show("B is a kernel again")
    run(stage, "umount {0}", mounted)
    a.cmd("secondary", "r0")
    stage.kernel.adm("primary")
    stage.guest.sh(MOUNT_AND_CHECK)
    stage.say("       B: mounted, all files are as A wrote them")
    a.cmd("down", "r0")
    stage.guest.sh("umount /mnt")
    stage.kernel.adm("secondary")
    stage.stop_kernel()
    check = f"node b primary && fsck.ext4 -n -f /dev/drbd1 && node b secondary\n{DOWN}"
    kernel_pair(stage, UP + SYNCED + "set -e\n" + check)
    stage.model_from(b, size=b.backing(0).stat().st_size - 40 * 1024)
    stage.compare()


def join(stage: Stage, node: Node, name: str) -> None:
    """The document's commands for a node whose module has been unloaded."""
    node.cmd("up", "r0")
    node.cmd("wait-sync", "r0")
    text = node.cmd("status", "r0").stdout
    good = "replication:Established" in text and text.count("disk:UpToDate") == 2
    stage.check(good, f"{name}: up, wait-sync, status: {' '.join(text.split())}")


def mount_here(stage: Stage, node: Node) -> Path:
    """Our device on this host, mounted; the files in it have been compared with their checksums."""
    point = stage.directory / "mnt"
    point.mkdir()
    run(stage, f"mount {node.device()} {{0}}", point)
    run(stage, CHECK_FILES, point)
    return point


def run(stage: Stage, command: str, point: Path) -> None:
    """A shell command on this host; {0}: where the file system is mounted."""
    words = ["sh", "-c", command.format(point)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    stage.check(done.returncode == 0, f"host: {command.format('/mnt')} {done.stderr}".rstrip())


@scenario(
    "migration-way-back",
    "a replicator that has just joined is taken down in the middle of its resync, and is a kernel again",
    Plan(disk="c-plan-ahead 0; resync-rate 1M;"),
    400,
)
def migration_way_back(stage: Stage) -> None:
    a = stage.own
    two_kernels(stage)
    stage.kernel.adm("primary")
    stage.kernel_writes(611, 60)
    a.up()
    stage.wait("SyncTarget", "SyncSource")
    stage.pause(1)
    stage.show("A has joined")
    left = a.status()["volumes"][0]["oos"]
    a.down()
    stage.check(left > 0, f"A was taken down with {left} KiB left")
    stage.kernel_writes(612, 10)
    stage.kernel.adm("secondary")
    stage.stop_kernel()
    kernel_pair(stage, UP + SYNCED + DOWN)
    stage.compare()
