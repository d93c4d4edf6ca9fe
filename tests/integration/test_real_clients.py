"""Programs that people use, on a volume of a real pair: libnbd's tools, qemu, fio, and a file system;
all with both front ends.

Each test checks what the program says and what both nodes' disks hold afterwards. Nothing is faked;
programs that are missing fail the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.pair import MIB, RESOURCE, Node, Pair

pytestmark = [pytest.mark.needs("nbdkit"), pytest.mark.timeout(120)]

FAST = {"disk": "c-plan-ahead 0; resync-rate 500M;"}
FRONTENDS = ("nbdkit", "native")
RUN_SECONDS = 60
DETACH_REFUSED = 11
Program = Callable[[str], str]


def run(*command: str | Path, code: int = 0) -> str:
    """Standard output of a program that must end with this exit code."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=[*FRONTENDS, "native direct"])
def mirror(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both UpToDate; the tests leave them so, and alice Primary. direct: disks past the page cache."""
    frontend, _, direct = request.param.partition(" ")
    sections = FAST | ({"replicator": "disk-io direct;"} if direct else {})
    with Pair(sizes=(64 * MIB,), frontend=frontend, sections=sections) as pair:
        pair.start_synced()
        yield pair


@pytest.fixture
def uri(mirror: Pair) -> str:
    return mirror.alice.nbd_uri()


def size_of(pair: Pair) -> int:
    return int(pair.alice.status()["volumes"][0]["size_sectors"]) * 512


def assert_both_hold(pair: Pair, content: bytes, offset: int = 0) -> None:
    """Protocol C: what the client was told is written is in both backing files, without waiting."""
    for node in pair.nodes:
        with node.backing().open("rb") as file:
            file.seek(offset)
            assert file.read(len(content)) == content, f"{node.name} has other data"
    assert pair.difference(size=size_of(pair)) is None


@pytest.fixture
def image(mirror: Pair, tmp_path: Path) -> Path:
    """Random data, with holes, exactly as large as the volume."""
    path = tmp_path / "image"
    rng = random.Random(4)
    with path.open("wb") as file:
        file.truncate(size_of(mirror))
        for offset in range(0, size_of(mirror) - 2 * MIB, 3 * MIB):
            file.seek(offset)
            file.write(rng.randbytes(2 * MIB))
    return path


# libnbd


@pytest.mark.needs("nbdinfo")
def test_nbdinfo_shows_a_writable_export_with_all_that_a_file_system_wants(
    mirror: Pair, uri: str
) -> None:
    assert int(run("nbdinfo", "--size", uri)) == size_of(mirror)
    (export,) = json.loads(run("nbdinfo", "--json", uri))["exports"]
    assert export["export-name"] == "0"
    assert export["description"] == f"{RESOURCE}/0 {mirror.alice.device()}"
    assert export["block_size_minimum"] == 512
    assert export["is_read_only"] is False
    for ability in ("flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{ability}"] is True, ability


@pytest.mark.needs("nbdinfo")
def test_a_secondary_serves_nobody(mirror: Pair) -> None:
    run("nbdinfo", "--size", mirror.bob.nbd_uri(), code=1)


@pytest.mark.needs("nbdcopy")
@pytest.mark.parametrize("options", [[], ["--connections=4", "--requests=32"], ["--synchronous"]])
def test_nbdcopy_brings_an_image_in_and_out_again(
    mirror: Pair, uri: str, image: Path, tmp_path: Path, options: list[str]
) -> None:
    run("nbdcopy", "--flush", *options, image, uri)
    assert_both_hold(mirror, image.read_bytes())
    copy = tmp_path / "copy"
    run("nbdcopy", *options, uri, copy)
    assert copy.read_bytes() == image.read_bytes()


# qemu


@pytest.mark.needs("qemu-img")
def test_qemu_img_converts_to_the_volume_and_back_and_finds_no_difference(
    mirror: Pair, uri: str, image: Path, tmp_path: Path
) -> None:
    with image.open("r+b") as file:
        file.write(b"a new beginning" * 4096)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
    assert_both_hold(mirror, image.read_bytes())
    back = tmp_path / "back.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, back)
    assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", image, back)


@pytest.mark.needs("qemu-img")
def test_qemu_img_compare_finds_a_changed_byte(mirror: Pair, uri: str, image: Path) -> None:
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    with image.open("r+b") as file:
        file.seek(5 * MIB)
        byte = file.read(1)
        file.seek(5 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    said = run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri, code=1)
    assert "Content mismatch at offset" in said


@pytest.mark.needs("qemu-io")
def test_qemu_io_writes_zeroes_and_discards_on_both_nodes(mirror: Pair, uri: str) -> None:
    steps = [
        *("write -P 0xab 0 1M", "write -P 0xcd 1M 1M", "write -f -P 0xef 2M 4k"),
        *("write -z 256k 64k", "write -z -u 512k 64k", "discard 1M 128k", "flush"),
        *("read -P 0xab 0 256k", "read -P 0 256k 64k", "read -P 0 512k 64k", "read -P 0 1M 128k"),
        *("read -P 0xcd 1179648 917504", "read -P 0xef 2M 4k"),
    ]
    said = run("qemu-io", "-f", "raw", *(word for step in steps for word in ("-c", step)), uri)
    assert "Pattern verification failed" not in said
    expected = bytearray(b"\xab" * MIB + b"\xcd" * MIB)
    for start, length in ((256, 64), (512, 64), (1024, 128)):
        expected[start * 1024 : (start + length) * 1024] = bytes(length * 1024)
    assert_both_hold(mirror, bytes(expected))


# fio


def fio(uri: str, *options: str) -> None:
    common = ["--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--size=48m"]
    run(
        "fio",
        *common,
        *("--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512", "--io_size=24m"),
        *("--iodepth=16", "--fsync=64", "--verify=crc32c", "--verify_fatal=1"),
        *(
            "--randrepeat=1",
            "--allrandrepeat=1",
            "--randseed=77",
            "--verify_state_save=0",
            "--minimal",
            *options,
        ),
    )


@pytest.mark.needs("fio")
def test_fio_verifies_what_it_wrote_also_after_a_change_of_roles(mirror: Pair, uri: str) -> None:
    fio(uri, "--do_verify=1")
    assert mirror.difference(size=size_of(mirror)) is None
    mirror.alice.secondary()
    mirror.bob.primary()
    try:
        fio(mirror.bob.nbd_uri(), "--verify_only")
    finally:
        mirror.bob.secondary()
        mirror.alice.primary()


@pytest.mark.needs("fio")
def test_fio_finds_data_that_was_changed_behind_its_back(mirror: Pair, uri: str) -> None:
    """The proof that the test above can fail."""
    fio(uri, "--do_verify=0")
    mirror.alice.write(0, random.Random(5).randbytes(48 * MIB))
    with pytest.raises(AssertionError, match="verify"):
        fio(uri, "--verify_only")


# a file system on the block device


@pytest.fixture(params=FRONTENDS)
def attached(request: pytest.FixtureRequest) -> Iterator[Pair]:
    frontend = request.param
    with Pair(sizes=(64 * MIB,), attach="nbdfuse", frontend=frontend, sections=FAST) as pair:
        pair.start_synced()
        yield pair


def fill(directory: Path) -> dict[str, str]:
    """Files of many sizes; their names and checksums."""
    rng = random.Random(6)
    sums = {}
    for number in range(60):
        path = directory / f"dir{number % 7}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        content = rng.randbytes(rng.choice((1, 4095, 70_000, 400_000)))
        path.write_bytes(content)
        sums[str(path.relative_to(directory))] = hashlib.sha256(content).hexdigest()
    return sums


def sums_of(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("file*"))
    }


def mount(node: Node, program: Program) -> Path:
    point = node.directory / "mnt"
    point.mkdir(exist_ok=True)
    run(program("mount"), "-t", "ext4", node.device(), point)
    return point


@pytest.mark.needs("nbdfuse", "losetup", "mount", "mkfs.ext4", "e2fsck")
def test_a_file_system_moves_from_node_to_node(attached: Pair, program: Program) -> None:
    alice, bob = attached.nodes
    assert Path(alice.device()).is_block_device(), "primary attaches the device"
    assert not os.path.lexists(bob.device()), "only a Primary has a device node"

    run(program("mkfs.ext4"), "-q", "-E", "nodiscard", alice.device())
    point = mount(alice, program)
    sums = fill(point)
    run("sync", "--file-system", point)
    refused = alice.cmd("secondary", RESOURCE, check=False)
    assert refused.returncode == DETACH_REFUSED, refused.stderr
    assert str(point) in refused.stderr, "the message names who holds the device"
    assert sums_of(point) == sums, "a refused demotion leaves the mount as it was"

    run(program("umount"), point)
    run(program("e2fsck"), "-f", "-n", alice.device())
    alice.secondary()
    assert not os.path.lexists(alice.device())
    assert attached.difference(size=size_of(attached)) is None

    bob.primary()
    run(program("e2fsck"), "-f", "-n", bob.device())
    point = mount(bob, program)
    assert sums_of(point) == sums
    for path in point.glob("dir[0-3]"):
        run("rm", "-r", path)
    run(program("fstrim"), point)
    kept = {name: digest for name, digest in sums.items() if name[3] not in "0123"}
    assert kept and sums_of(point) == kept
    run(program("umount"), point)
    run(program("e2fsck"), "-f", "-n", bob.device())
    bob.secondary()
    assert attached.difference(size=size_of(attached)) is None


@pytest.mark.needs("nbdfuse", "losetup", "mount", "mkfs.ext4", "e2fsck")
def test_synced_files_survive_the_kill_of_the_primary_under_a_mounted_file_system(
    attached: Pair, program: Program
) -> None:
    alice, bob = attached.nodes
    run(program("mkfs.ext4"), "-q", "-E", "nodiscard", alice.device())
    point = mount(alice, program)
    sums = fill(point)
    run("sync", "--file-system", point)
    alice.kill9()
    run(program("umount"), "--lazy", point)
    bob.wait(cstate="WFConnection")
    bob.primary()
    point = mount(bob, program)  # replays the journal
    assert sums_of(point) == sums
    run(program("umount"), point)
    run(program("e2fsck"), "-f", "-n", bob.device())
    alice.up()
    for node in attached.nodes:
        node.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    bob.secondary()
    assert attached.difference(size=size_of(attached)) is None
