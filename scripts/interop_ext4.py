"""A real file system on a mixed pair: written, trimmed and changed apart on either node.

Rules: as in interop_scenarios.py; after each step the two disks are compared, with each other byte by byte,
and by the checksums that are among the files.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from interop_migration import kernel_resync, little_was_copied
from interop_scenarios import scenario
from interop_stage import Plan, Stage

from tests.integration.pair import Node

# Nothing is to be written after `sync` (also no times of access), or comparing would be a race.
MAKE = "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/drbd0 && mount -o noatime /dev/drbd0 /mnt"
SUMS = "sha256sum file* >sums; sync"
CHECK = "echo 3 >/proc/sys/vm/drop_caches; sha256sum -c --quiet sums; sync"


@dataclass
class Mounted:
    """The file system on the node that is Primary. here: on this host, by our node."""

    stage: Stage
    node: Node
    point: str
    here: bool

    def sh(self, *commands: str) -> str:
        """One after the other, in the root directory of the file system."""
        text = f"set -e; cd {self.point}; " + "; ".join(commands)
        if not self.here:
            return self.stage.guest.sh(text, seconds=90)
        done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, timeout=90)
        self.stage.check(
            done.returncode == 0, f"host: {'; '.join(commands)} {done.stderr}".rstrip()
        )
        return done.stdout

    def add(self, name: str, size: int) -> None:
        """A new file, and a change in the middle of an old one."""
        self.sh(
            f"head -c {size} /dev/urandom >{name}",
            "head -c 5000 /dev/urandom | dd of=file1 bs=5000 seek=7 conv=notrunc status=none",
            SUMS,
        )

    def equal(self, title: str) -> None:
        self.sh(CHECK)
        self.stage.show(title)
        marked = self.stage.own.status()["volumes"][0]["oos"], self.stage.kernel.counters()["oos"]
        self.stage.check(marked == (0, 0), f"out of sync here and there: {marked} KiB")
        self.stage.model_from(self.node)
        self.stage.compare()

    def trim(self) -> None:
        """Remove a file and tell the device; both disks give the space back."""
        stage, disks = self.stage, [node.backing(0) for node in self.stage.pair.nodes]
        self.sh("head -c 2500000 /dev/urandom >large; sync")
        before = [disk.stat().st_blocks for disk in disks]
        self.sh("rm large; sync")
        stage.say(f"       fstrim: {self.sh('fstrim -v .').strip()}")
        freed = [(b - disk.stat().st_blocks) // 2 for b, disk in zip(before, disks, strict=True)]
        stage.check(min(freed) > 2000, f"freed on our disk and the kernel's: {freed} KiB")
        self.equal("after fstrim")

    def outages(self) -> None:
        """Either side ends the connection; files are written meanwhile; what was written is copied."""
        stage = self.stage
        stage.kernel.adm("disconnect")
        self.add("file7", 400_000)
        stage.kernel.adm("connect")
        self._synced_again("the kernel's disconnect")
        stage.own.disconnect()
        self.add("file8", 300_000)
        stage.own.connect()
        self._synced_again("ours")

    def _synced_again(self, whose: str) -> None:
        self.stage.synced()
        little_was_copied(self.stage, f"what was written after {whose}", kernel_resync(self.stage))
        self.equal(f"after {whose}")


@scenario(
    "guest-ext4",
    "ext4 in the guest: files, fstrim, outages by either side; it moves to us, and back, likewise",
    Plan(attach="auto"),
    400,
)
def guest_ext4(stage: Stage) -> None:
    in_guest = Mounted(stage, stage.pair.bob, "/mnt", here=False)
    stage.prepare()
    stage.up()
    stage.kernel_leads()
    stage.synced()
    stage.guest.sh(MAKE, seconds=90)
    in_guest.sh(*(f"head -c {n}00000 /dev/urandom >file{n}" for n in range(1, 7)), SUMS)
    in_guest.equal("the guest has made a file system and files")
    in_guest.trim()
    in_guest.outages()
    stage.guest.sh("umount /mnt")
    stage.kernel.adm("secondary")
    on_host(stage)
    stage.kernel.adm("primary")
    stage.guest.sh("fsck.ext4 -n -f /dev/drbd0 && mount -o noatime /dev/drbd0 /mnt", seconds=60)
    in_guest.equal("it is back in the guest")
    in_guest.outages()
    in_guest.trim()
    stage.guest.sh("umount /mnt && fsck.ext4 -n -f /dev/drbd0")
    stage.model_from(stage.pair.bob)
    stage.compare()


def on_host(stage: Stage) -> None:
    """We are Primary, with the same file system, the same ways."""
    stage.own.primary()
    subprocess.run(["e2fsck", "-f", "-n", stage.own.device()], check=True, capture_output=True)
    point = stage.directory / "mnt"
    point.mkdir()
    mounted = Mounted(stage, stage.own, str(point), here=True)
    try:
        subprocess.run(["mount", "-o", "noatime", stage.own.device(), point], check=True)
        mounted.equal("the file system has moved to us")
        mounted.trim()
        mounted.outages()
    finally:
        subprocess.run(["umount", point], check=False)
    stage.own.secondary()
