"""A resource with one node on this host, ours, and one in a guest, the kernel's DRBD 8.4.

Rules: everything is done as an administrator would, on both sides; every wait is bounded; what both
sides show is printed together. Each data disk has a model: what it has to contain, kept from the
disk's first content and every write, so that two equally wrong copies are found as well.
What this file must not know: which scenarios there are.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from interop_guest import Guest, GuestFailed, KernelNode
from interop_writes import batch

from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.simulation.recording import ALPHA, BETA, BLOCK, content
from tests.tools.ports import FreePorts

# Long keep-alive limits: the guest's processor is emulated.
NET = "ping-timeout 50; socket-check-timeout 5; connect-int 3; timeout 29;"
SECTOR = 512


class StageFailed(AssertionError):
    """A check of a scenario did not hold."""


@dataclass
class Plan:
    """How the two nodes of a scenario are configured. net, disk: text for these sections on both
    nodes; own_net, kernel_net: on one of them. reachable: which node can be dialled: "both", "host"
    or "guest". sizes: bytes of each disk image, metadata included."""

    sizes: tuple[int, ...] = (20 * MIB,)
    protocol: str = "C"
    kernel_protocol: str = ""
    net: str = ""
    disk: str = ""
    own_net: str = ""
    own_disk: str = ""
    kernel_net: str = ""
    kernel_disk: str = ""
    reachable: str = "both"
    kernel_mapped: bool = False
    """Whether the kernel's disk can be made to fail (KernelNode.fail_disk)."""
    lines: bool = False
    """Whether the disks begin with lines that say whose block it is and which, instead of noise."""
    attach: str = "none"
    """How our node's volumes become devices of this host: see Pair."""
    nbd_listen: bool = False
    """Whether our node serves NBD on TCP, too: Stage.nbd_port."""
    sections: dict[str, str] = field(default_factory=dict)
    """Other sections of our node's resource."""


class Stage:
    """Both nodes, not started. own: our node; kernel: the guest's; models: expected contents."""

    def __init__(self, plan: Plan, say: Callable[[str], None], seconds: float) -> None:
        self.plan = plan
        self.say = say
        self.directory = Path(tempfile.mkdtemp(prefix="replicator-interop-", dir="/tmp"))
        self._ports_held = FreePorts()
        sections = dict(plan.sections)
        if plan.nbd_listen:
            self.nbd_port = self._ports_held.take()
            sections["replicator"] = f"listen 127.0.0.1:{self.nbd_port};"
        self.pair = Pair(
            sizes=plan.sizes,
            protocol=plan.protocol,
            attach=plan.attach,
            sections={
                "net": f"{NET} {plan.net} {plan.own_net}",
                "disk": f"{plan.disk} {plan.own_disk}",
                **sections,
            },
        )
        self.own: Node = self.pair.alice
        self.own_port, guest_port = self._ports()
        self.models: list[bytearray] = [bytearray() for _ in plan.sizes]
        for number, size in enumerate(plan.sizes):
            self._fill(self.own.backing(number), size, seed=2 * number + 1, sender=ALPHA)
            self._fill(self.pair.bob.backing(number), size, seed=2 * number + 2, sender=BETA)
        if plan.reachable == "host":
            self._point_own_node_at_nobody(guest_port)
        self._boot = 0
        self._seconds = seconds
        self._guest_port = guest_port
        self._start_guest()

    def _start_guest(self) -> None:
        self.start_kernel_with([self.pair.bob.backing(n) for n, _ in enumerate(self.plan.sizes)])

    def start_kernel_with(self, disks: Sequence[Path]) -> None:
        """Boot a guest with these disks; its DRBD is not configured."""
        self._boot += 1
        self.guest = Guest(
            self.directory / f"boot-{self._boot}",
            [f"{disk},discard=unmap" for disk in disks],
            self._guest_port,
            name="guest",
            seconds=self._seconds,
        )
        self.kernel = KernelNode(self.guest, RESOURCE)

    def reboot_guest(self) -> None:
        """Power cut: the guest is gone at once, and another one has its disks."""
        self.guest.kill()
        self._start_guest()
        self.configure_kernel()

    def start_kernel(self) -> None:
        """A guest with the kernel's disks as they are now, configured, DRBD not up."""
        self._start_guest()
        self.configure_kernel()

    def stop_kernel(self) -> None:
        """Taken down in good order, and the guest with it: its disks can be used here."""
        self.kernel.adm("down")
        self.guest.close()

    def swap_disks(self) -> None:
        """Each node gets the other's disk. Both have to be stopped."""
        for number, _size in enumerate(self.plan.sizes):
            own, kernel = self.own.backing(number), self.pair.bob.backing(number)
            between = own.with_name("between")
            own.rename(between)
            kernel.rename(own)
            between.rename(kernel)

    def referee(self, node: Node, title: str) -> None:
        """drbdmeta reads the metadata of a stopped node's disk, and sees there what we see."""
        for word in ("dump-md", "get-gi"):
            command = ["drbdmeta", "--force", "0", "v08", str(node.backing(0)), "internal", word]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            force = ["--force"] if word == "dump-md" else []
            ours = node.cmd(word, *force, RESOURCE, check=False)
            same = self._statements(done.stdout) == self._statements(ours.stdout)
            if done.returncode or not same:
                self.say(f"drbdmeta:\n{done.stdout}{done.stderr}\nreplicator:\n{ours.stdout}")
            self.check(done.returncode == 0 and same, f"{word} of drbdmeta and ours: {title}")

    @staticmethod
    def _statements(text: str) -> list[str]:
        """Without comments and words about unclean metadata. dump-md of drbdmeta prints no flags;
        they are at the end of get-gi."""
        lines = (line.split("#")[0].strip() for line in text.splitlines())
        ends = (";", "{", "}", "0", "1")
        return [line for line in lines if line.endswith(ends) and not line.startswith("flags")]

    def _ports(self) -> tuple[int, int]:
        own, guest = re.findall(r"address 127\.0\.0\.1:(\d+)", self.pair.config_path.read_text())
        return int(own), int(guest)

    def _point_own_node_at_nobody(self, port: int) -> None:
        text = self.pair.config_path.read_text()
        self.pair.config_path.write_text(text.replace(f":{port};", ":9;"))

    def _fill(self, path: Path, size: int, *, seed: int, sender: str) -> None:
        noise = random.Random(seed).randbytes
        data = content(sender, size // BLOCK) if self.plan.lines else noise(size)
        with path.open("r+b") as file:
            file.write(data)

    # ---- beginnings

    def prepare(self) -> None:
        """The guest is up, both nodes have their configuration and fresh metadata."""
        self.configure_kernel()
        self.kernel.create_md()
        self.own.create_md()

    def configure_kernel(self) -> None:
        """The guest is up and has the kernel node's configuration."""
        plan = self.plan
        self.guest.booted()
        self.kernel.configure(
            9 if plan.reachable == "guest" else self.own_port,
            len(plan.sizes),
            net=f"protocol {plan.kernel_protocol or plan.protocol}; {NET} {plan.net} {plan.kernel_net}",
            disk=f"{plan.disk} {plan.kernel_disk}",
            mapped=plan.kernel_mapped,
        )

    def up(self, *, own_first: bool = True) -> None:
        """Both up and Connected."""
        if own_first:
            self.own.up()
        self.kernel.adm("up")
        if not own_first:
            self.own.up()
        self.wait("Connected", "Connected")

    def own_leads(self) -> None:
        """Our node's data is declared good; the model is its disk's content."""
        self._take_models(self.own)
        self.own.primary(force=True)

    def kernel_leads(self) -> None:
        """The kernel's data is declared good; the model is its disk's content."""
        self._take_models(self.pair.bob)
        self.kernel.adm("primary", "--force")

    def _take_models(self, node: Node) -> None:
        for number in range(len(self.models)):
            size = self.size(number)
            self.models[number] = bytearray(node.backing(number).read_bytes()[:size])

    def size(self, volume: int = 0) -> int:
        """Bytes of the device: known from the model, or else from our node."""
        if self.models[volume]:
            return len(self.models[volume])
        for one in self.own.status()["volumes"]:
            if one["volume"] == volume:
                return int(one["size_sectors"]) * SECTOR
        raise StageFailed(f"our node has no volume {volume}")

    # ---- states

    def wait(
        self,
        own_cs: str = "Connected",
        kernel_cs: str = "Connected",
        *,
        own_ds: str = "",
        kernel_ds: str = "",
        volume: int = 0,
        seconds: float = 60,
    ) -> None:
        """Until our connection state is `own_cs`, the kernel's is `kernel_cs`, and so on."""
        more = {"ds": kernel_ds} if kernel_ds else {}
        self.own.wait(cstate=own_cs, dstate=own_ds, volume=volume, timeout=seconds)
        self.kernel.wait(cs=kernel_cs, volume=volume, seconds=seconds, **more)

    def synced(self, *, volume: int = 0, seconds: float = 90) -> None:
        """Until both are Connected and UpToDate/UpToDate."""
        good = "UpToDate/UpToDate"
        self.wait(own_ds=good, kernel_ds=good, volume=volume, seconds=seconds)

    def roles(self, own: str, kernel: str) -> None:
        """Until both nodes see these roles."""
        self.own.wait(role=f"{own}/{kernel}", timeout=20)
        self.kernel.wait(ro=f"{kernel}/{own}", seconds=20)

    def show(self, title: str) -> None:
        """What both sides show, one above the other."""
        own = self.own.cmd("status", "--proc", check=False).stdout
        self.say(f"    -- {title}")
        for name, text in (("replicator", own), ("kernel", self.kernel.proc())):
            for line in text.splitlines():
                if line.strip() and not line.startswith(("version:", "srcversion", "replicator")):
                    self.say(f"       {name:<10}|{line}")

    def show_kernel(self, title: str) -> None:
        """What the kernel shows, while our node cannot be asked."""
        self.say(f"    -- {title}")
        for line in self.kernel.proc().splitlines()[2:]:
            self.say(f"       kernel    |{line}")

    # ---- data

    def own_writes(
        self, seed: int, count: int = 60, *, volume: int = 0, area: int = 0, pause: float = 0
    ) -> None:
        """A batch through our NBD export, and into the model."""
        size = area or self.size(volume)
        model = self.models[volume]
        with self.own.nbd(volume) as handle:
            for kind, offset, data in batch(seed, count, size):
                if kind == "write":
                    handle.pwrite(data, offset)
                elif kind == "zero":
                    handle.zero(len(data), offset)
                elif kind == "discard":
                    handle.trim(len(data), offset)
                else:
                    handle.flush()
                model[offset : offset + len(data)] = data
                if pause:
                    time.sleep(pause)
            handle.flush()

    def own_writes_meanwhile(
        self, seed: int, count: int, *, pause: float, area: int = 0
    ) -> Background:
        """own_writes in a thread; join() raises what went wrong in it."""
        return Background(lambda: self.own_writes(seed, count, pause=pause, area=area))

    def own_load(self, seed: int, *, area: int) -> Callable[[], None]:
        """own_writes in a thread, batch after batch, until the result is called, which raises what
        went wrong in it."""
        stopping = threading.Event()

        def write() -> None:
            number = seed
            while not stopping.is_set():
                self.own_writes(number, 20, pause=0.05, area=area)
                number += 1

        load = Background(write)

        def stop() -> None:
            self.check(load.running, "the application has been writing all the time")
            stopping.set()
            load.join()

        return stop

    def kernel_writes_at(self, offset: int, data: bytes) -> None:
        """One write on the kernel's device, in whole sectors, and a flush; not into the model."""
        (self.guest.share / "data").write_bytes(data)
        self.guest.sh(
            f"dd if=/share/data of=/dev/drbd0 bs={len(data)} count=1 seek={offset} "
            "oflag=direct,seek_bytes conv=notrunc,fsync 2>&1"
        )

    def kernel_writes(
        self, seed: int, count: int = 60, *, volume: int = 0, area: int = 0, pause: float = 0
    ) -> None:
        """A batch on the kernel's device, and into the model."""
        size = area or self.size(volume)
        self.kernel.write(seed, count, size, volume=volume, pause=pause)
        self.apply(seed, count, size, volume=volume)

    def kernel_writes_meanwhile(
        self, seed: int, count: int, *, pause: float, area: int = 0
    ) -> Callable[[], None]:
        """kernel_writes in the background; the result waits for its end."""
        size = area or self.size()
        number = self.kernel.start_writing(seed, count, size, pause=pause)

        def join() -> None:
            self.kernel.finish_writing(number)
            self.apply(seed, count, size)

        return join

    def apply(self, seed: int, count: int, size: int, *, volume: int = 0) -> None:
        """A batch into the model alone."""
        model = self.models[volume]
        for _, offset, data in batch(seed, count, size):
            model[offset : offset + len(data)] = data

    def kernel_reads_model(self, title: str) -> None:
        """The kernel's device reads as the model says."""
        digest = hashlib.sha256(self.models[0]).hexdigest()
        self.guest.sh("echo 3 >/proc/sys/vm/drop_caches")
        found = self.guest.sh("sha256sum </dev/drbd0", seconds=90).split()[0]
        self.check(found == digest, f"the kernel reads what was written, {title}")

    def own_fio(self, job: str, seconds: int) -> None:
        """fio through our NBD export."""
        command = f"fio {job} --ioengine=nbd --runtime={seconds} --time_based"
        words = [*command.split(), f"--uri={self.own.nbd_uri()}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 60)
        lines = [line for line in done.stdout.splitlines() if "write: IOPS" in line]
        self.check(done.returncode == 0 and bool(lines), f"ours: {(lines or [done.stderr])[0]}")

    def compare(self) -> None:
        """Both disks hold what the models say. Call it when nothing is being written."""
        if self.guest.running:
            self.guest.sh("sync")
        for number, model in enumerate(self.models):
            for name, node in (("replicator", self.pair.alice), ("kernel", self.pair.bob)):
                self._equal(f"volume {number} of {name}", node.backing(number), model)
        total = sum(len(model) for model in self.models) >> 10
        self.say(f"       both disks compared with what was written: {total} KiB equal")

    @staticmethod
    def _equal(title: str, disk: Path, model: bytearray) -> None:
        found = disk.read_bytes()[: len(model)]
        if found != model:
            wrong = [
                block
                for block in range(0, len(model), 4096)
                if found[block : block + 4096] != model[block : block + 4096]
            ]
            raise StageFailed(
                f"{title}: {len(wrong)} blocks are not as written, "
                f"the first at byte {wrong[0]}, the last at {wrong[-1]}"
            )

    def holds(self, node: Node, model: bytearray, title: str) -> None:
        """The node's first disk holds what this model says; for nodes that must not be equal."""
        self.guest.sh("sync")
        self._equal(title, node.backing(0), model)
        self.say(f"       {title}")

    def check(self, condition: bool, text: str) -> None:
        """Note what was seen; raises StageFailed if it is not as it should be."""
        if not condition:
            raise StageFailed(text)
        self.say(f"       {text}")

    def expect_little_copied(self, before: int, after: int) -> None:
        """A resync by bitmap moves less than half of the volume. before, after: KiB counters."""
        copied, total = after - before, len(self.models[0]) >> 10
        self.check(0 < copied < total // 2, f"resynchronised {copied} of {total} KiB")

    def model_from(self, node: Node, *, size: int = 0) -> None:
        """After writes nobody followed: what has to be on both disks is what this node has.
        size: of the only volume, if it has changed."""
        if size:
            self.models[0] = bytearray(size)
        self._take_models(node)

    def same_generations(self, title: str) -> None:
        """Current, bitmap and history UUIDs are the same on both nodes, but for the role's bit."""
        own = self._uuids(self.own.cmd("get-gi", RESOURCE).stdout)
        kernel = self._uuids(self.kernel.adm("get-gi"))
        self.check(own == kernel, f"generations, {title}: ours {own}, the kernel's {kernel}")

    @staticmethod
    def _uuids(text: str) -> list[str]:
        found = re.findall(r"\b([0-9A-F]{16})(?=:)", text)
        return [f"{int(uuid, 16) & ~1:016X}" for uuid in found]

    @staticmethod
    def pause(seconds: float) -> None:
        """Let something go on for a while; what is waited for has its own wait."""
        time.sleep(seconds)

    # ---- the end

    def report(self) -> str:
        """For a failed scenario: the ends of both logs."""
        return f"--- our log\n{self.own.log()[-4000:]}\n--- kernel\n{self.guest.messages(60)}"

    def close(self) -> None:
        try:
            self.pair.close()
        finally:
            self.guest.close()
            self._ports_held.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class Background:
    """Something done in a thread. join() raises its error."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def failed(self, seconds: float = 20) -> bool:
        """Whether it ended with an error, within the time."""
        self._thread.join(seconds)
        return self._error is not None

    def join(self, seconds: float = 90) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise GuestFailed(f"the writes did not end within {seconds:g} s")
        if self._error is not None:
            raise self._error
