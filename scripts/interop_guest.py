"""A guest with the kernel's own drivers, and the DRBD 8.4 node in it, driven from the host.

The guest is booted by the program `run-guest` in the directory REPLICATOR_VM_TOOLS, which is not
part of this project: it boots a Debian guest, runs a script in it, shares a directory with it as
/share and forwards TCP ports. Commands reach the guest as files in the shared directory.

Rules: every command and every wait has a time limit; failures show the kernel's messages.
What this file must not know: scenarios, and how the node on the host works.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

TOOLS_VARIABLE = "REPLICATOR_VM_TOOLS"
GUEST_PORT = 7789
HOST = "10.0.2.2"
"""What the guest calls the host's loopback."""
GUEST = "10.0.2.15"
"""The guest's own address."""
BOOT_SECONDS = 90
POLL = 0.05

# Runs in the guest: takes command files in turn until one is called `end`.
AGENT = r"""#!/bin/bash
cd /share
mkdir -p /run/lock /var/lib/drbd
number=0
echo 0 >ready.new && mv ready.new ready
while :; do
    if [ -e "command-$number" ]; then
        timeout "$(cat "limit-$number")" bash "command-$number" >"out-$number" 2>&1 </dev/null
        echo $? >"code.new" && mv code.new "code-$number"
        number=$((number + 1))
    elif [ -e end ]; then
        exit 0
    else
        sleep 0.03
    fi
done
"""

PREAMBLE = r"""
export PATH=$PATH:/usr/sbin:/sbin
die() { echo "$*"; exit 1; }
"""

# Writes where, what and how much a seed says; the host repeats it on its own picture of the disk.
WRITER = r"""
import fcntl, mmap, os, struct, sys, time
sys.path.insert(0, "/share")
from interop_writes import batch

device, seed, count, size, pause = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
fd = os.open(device, os.O_RDWR | os.O_DIRECT)
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
for kind, offset, data in batch(seed, count, size):
    if kind == "write":
        buffer = mmap.mmap(-1, len(data))
        buffer.write(data)
        written = os.pwritev(fd, [buffer], offset)
        if written != len(data):
            sys.exit(f"wrote {written} of {len(data)} bytes at {offset}")
        buffer.close()
    elif kind == "flush":
        os.fsync(fd)
    else:
        code = BLKZEROOUT if kind == "zero" else BLKDISCARD
        fcntl.ioctl(fd, code, struct.pack("QQ", offset, len(data)))
    if pause:
        time.sleep(pause)
os.fsync(fd)
os.close(fd)
print("written")
"""


class GuestFailed(AssertionError):
    """The guest did not do what it was told; the text says what and shows its messages."""


def tools_directory() -> Path:
    """Where run-guest is. Raises GuestFailed naming what is missing."""
    value = os.environ.get(TOOLS_VARIABLE, "")
    if not value:
        raise GuestFailed(
            f"{TOOLS_VARIABLE} is not set: it has to name the directory with the program run-guest, "
            "which boots a guest with the kernel's nbd and DRBD 8.4 drivers"
        )
    program = Path(value) / "run-guest"
    if not os.access(program, os.X_OK):
        raise GuestFailed(f"{TOOLS_VARIABLE}={value}: there is no program {program}")
    return Path(value)


class Guest:
    """One booted guest. disks: raw images, /dev/vda and so on. port: on the host's 127.0.0.1,
    forwarded to GUEST_PORT of the guest. directory: for the files of this guest, empty."""

    def __init__(
        self, directory: Path, disks: list[str], port: int, *, name: str, seconds: float
    ) -> None:
        self.share = directory / "share"
        self.share.mkdir(parents=True)
        self.pcap = directory / "eth0.pcap"
        self._number = 0
        script = directory / "agent"
        script.write_text(AGENT)
        (self.share / "writer.py").write_text(WRITER)
        writes = Path(__file__).with_name("interop_writes.py")
        (self.share / "interop_writes.py").write_text(writes.read_text())
        command = [str(tools_directory() / "run-guest"), "--name", name, "--share", str(self.share)]
        command += ["--forward", f"{port}:{GUEST_PORT}", "--timeout", str(seconds)]
        command += ["--pcap", str(self.pcap), "--console", str(directory / "console")]
        for disk in disks:
            command += ["--disk", disk]
        self._log = (directory / "run-guest.log").open("wb")
        self._process = subprocess.Popen(
            [*command, str(script)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def booted(self) -> None:
        """Wait until the guest takes commands."""
        self._await(self.share / "ready", BOOT_SECONDS, "boot")

    def _await(self, path: Path, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not path.exists():
            if self._process.poll() is not None:
                raise GuestFailed(f"the guest ended during: {what}\n{self._tail()}")
            if time.monotonic() > end:
                raise GuestFailed(f"the guest did not finish within {seconds:g} s: {what}")
            time.sleep(POLL)

    def _tail(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-3000:]

    def start(self, script: str, *, seconds: float = 60) -> int:
        """Hand a shell script to the guest; returns its number for finish(). The guest runs one
        after the other."""
        number = self._number
        self._number += 1
        (self.share / f"limit-{number}").write_text(f"{seconds:g}")
        draft = self.share / "draft"
        draft.write_text(PREAMBLE + script + "\n")
        draft.rename(self.share / f"command-{number}")
        return number

    def finish(self, number: int, *, seconds: float = 60) -> tuple[int, str]:
        """Exit code and output of a script that was started."""
        code = self.share / f"code-{number}"
        command = (self.share / f"command-{number}").read_text()[len(PREAMBLE) :]
        self._await(code, seconds + 20, command.strip())
        text = (self.share / f"out-{number}").read_text(errors="replace")
        return int(code.read_text()), text

    def sh(self, script: str, *, seconds: float = 60, check: bool = True) -> str:
        """Run a shell script in the guest and return its output. Raises GuestFailed if `check` and
        its exit code is not 0."""
        code, text = self.finish(self.start(script, seconds=seconds), seconds=seconds)
        if check and code != 0:
            raise GuestFailed(f"guest: exit code {code}: {script}\n{text}\n{self.messages()}")
        return text

    def code(self, script: str, *, seconds: float = 60) -> tuple[int, str]:
        """Exit code and output of a script that may fail."""
        return self.finish(self.start(script, seconds=seconds), seconds=seconds)

    def messages(self, lines: int = 40) -> str:
        """The end of what the kernel has said about DRBD."""
        try:
            number = self.start(f"dmesg | grep -iE 'drbd|nbd' | tail -n {lines}", seconds=10)
            return self.finish(number, seconds=10)[1]
        except GuestFailed as problem:
            return f"(no messages: {problem})"

    def close(self) -> None:
        """End the guest, by force if it does not end by itself."""
        (self.share / "end").touch()
        try:
            self._process.wait(8)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def kill(self) -> None:
        """End it as a power cut would. What its kernel had not handed to the disks is lost."""
        self._process.kill()  # run-guest has asked the system to end the emulator with it
        self._process.wait()
        self._log.close()
        # The forwarded port must be free for the next guest.
        time.sleep(1)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


class KernelNode:
    """The kernel's DRBD node in a guest, as far as an administrator sees it."""

    def __init__(self, guest: Guest, resource: str) -> None:
        self.guest = guest
        self.resource = resource

    def configure(
        self,
        peer_port: int,
        volumes: int,
        *,
        net: str,
        disk: str,
        mapped: bool = False,
    ) -> None:
        """Load the driver and write drbd.conf. peer_port: where the node on the host listens.
        mapped: the first disk lies below a device that fail_disk() can make fail."""
        lines = [f"volume {n} {{ {self._volume(n, mapped)} }}" for n in range(volumes)]
        text = "\n".join(
            [
                "global { usage-count no; }",
                f"resource {self.resource} {{",
                f"    net {{ {net} }}",
                f"    disk {{ {disk} }}",
                *lines,
                f"    on guest {{ address {GUEST}:{GUEST_PORT}; }}",
                f"    on host {{ address {HOST}:{peer_port}; }}",
                "}",
            ]
        )
        self.guest.sh(
            "modprobe drbd usermode_helper=/bin/true minor_count=8\n"
            f"cat >/etc/drbd.conf <<'END'\n{text}\nEND"
        )
        if mapped:
            self.guest.sh(f"echo {self._table('linear')} | dmsetup create vda")

    @staticmethod
    def _volume(number: int, mapped: bool) -> str:
        disk = "mapper/vda" if mapped and number == 0 else f"vd{'abcd'[number]}"
        return f"device /dev/drbd{number}; disk /dev/{disk}; meta-disk internal;"

    @staticmethod
    def _table(kind: str) -> str:
        where = " /dev/vda 0" if kind == "linear" else ""
        return f"0 $(blockdev --getsz /dev/vda) {kind}{where}"

    def fail_disk(self) -> None:
        """From now on the mapped disk answers everything with an error."""
        self._reload("error")

    def mend_disk(self) -> None:
        """The mapped disk works again, with what it held."""
        self._reload("linear")

    def _reload(self, kind: str) -> None:
        self.guest.sh(
            "dmsetup suspend --noflush vda && "
            f"echo {self._table(kind)} | dmsetup load vda && dmsetup resume vda"
        )

    def adm(self, *words: str, check: bool = True, seconds: float = 60) -> str:
        """drbdadm WORDS... RESOURCE; its output."""
        command = shlex.join(["drbdadm", *words, self.resource])
        return self.guest.sh(f"{command} 2>&1", check=check, seconds=seconds)

    def adm_code(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """Exit code and output of a drbdadm command that may be refused."""
        return self.guest.code(
            shlex.join(["drbdadm", *words, self.resource]) + " 2>&1", seconds=seconds
        )

    def create_md(self) -> None:
        self.guest.sh(f"drbdadm -- --force create-md {self.resource} >/dev/null 2>&1")

    def proc(self) -> str:
        return self.guest.sh("cat /proc/drbd")

    def states(self, volume: int = 0) -> dict[str, str]:
        """cs, ro, ds of a volume; all empty if it is not configured."""
        found = re.search(rf"^ *{volume}: cs:(\S+)(?: ro:(\S+) ds:(\S+))?", self.proc(), re.M)
        values = found.groups(default="") if found else ("", "", "")
        return dict(zip(("cs", "ro", "ds"), values, strict=True))

    def wait(self, *, volume: int = 0, seconds: float = 60, **wanted: str) -> None:
        """Wait, in the guest, until cs, ro, ds are as given (regular expressions)."""
        fields = [f"{key}:{wanted[key]}" for key in ("cs", "ro", "ds") if key in wanted]
        pattern = rf"^ *{volume}: .*" + ".* ".join(rf"\b{field}( |$)" for field in fields)
        script = (
            f"for _ in $(seq {int(seconds * 8)}); do\n"
            f"    grep -Eq {shlex.quote(pattern)} /proc/drbd && exit 0\n"
            "    sleep 0.1\ndone\ncat /proc/drbd\nexit 1"
        )
        code, text = self.guest.code(script, seconds=seconds + 5)
        if code != 0:
            raise GuestFailed(
                f"kernel: after {seconds:g} s expected {' '.join(fields)}, found\n{text}\n"
                f"{self.guest.messages()}"
            )

    def write(self, seed: int, count: int, size: int, *, volume: int = 0, pause: float = 0) -> None:
        """Carry out interop_writes.batch(seed, count, size) on the device."""
        self.finish_writing(self.start_writing(seed, count, size, volume=volume, pause=pause))

    def start_writing(
        self, seed: int, count: int, size: int, *, volume: int = 0, pause: float = 0
    ) -> int:
        words = f"{seed} {count} {size} {pause}"
        return self.guest.start(f"python3 /share/writer.py /dev/drbd{volume} {words}", seconds=120)

    def finish_writing(self, number: int) -> None:
        code, text = self.guest.finish(number, seconds=120)
        if code != 0:
            raise GuestFailed(f"writing in the guest: exit code {code}\n{text}")

    def counters(self, volume: int = 0) -> Mapping[str, int]:
        """ns, nr, oos and so on of a volume."""
        section = re.search(rf"^ *{volume}: .*\n(.*)", self.proc(), re.M)
        pairs = re.findall(r"\b([a-z]+):(\d+)", section.group(1)) if section else []
        return {key: int(value) for key, value in pairs}
