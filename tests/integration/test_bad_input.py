"""Bad input at the command line, in the configuration, on disks and in the run directory.

Each test gives a command as an administrator would, and looks at its exit code, at what the message
names, and at whether anything was touched that should not have been.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.metadata.superblock import Superblock
from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.integration.refusals import digest, refused, small_file_system

BLOCK = 4096
SIZE = 16 * MIB
NOT_UP = ("r0 is not up on this node", "replicator up r0")


@pytest.fixture
def small() -> Iterator[Pair]:
    with Pair(sizes=(SIZE,)) as fresh:
        yield fresh


@pytest.fixture
def alice(small: Pair) -> Node:
    return small.alice


@pytest.fixture(scope="module")
def idle() -> Iterator[Node]:
    """A node that is never started and has no metadata; for tests that change nothing."""
    with Pair(sizes=(SIZE,)) as fresh:
        yield fresh.alice


# Names


@pytest.mark.parametrize("command", ["up", "down", "primary", "status", "create-md", "sh-dev"])
def test_an_unknown_resource_is_named_with_those_there_are(idle: Node, command: str) -> None:
    before = digest(idle.backing())
    says = ("'nosuch' not defined in your config (for this host).", "replicator.conf: r0")
    refused(idle, command, "nosuch", code=1, says=says)
    refused(idle, command, "nosuch/7", code=1, says=("'nosuch' not defined",))
    assert digest(idle.backing()) == before


@pytest.mark.parametrize("name", ["r0/1", "r0/x", "r0/-1", "r0/"])
def test_an_unknown_volume_is_named_with_those_there_are(idle: Node, name: str) -> None:
    refused(idle, "create-md", name, code=1, says=(f"'{name}' not defined", "Volumes of r0: 0."))


@pytest.mark.parametrize("command", ["up", "role", "create-md", "dump"])
def test_a_node_that_is_not_in_the_file_is_told_which_are(idle: Node, command: str) -> None:
    says = ("its hosts are alice, bob", "this node is 'zoe'", "--node NAME")
    refused(idle, "--node", "zoe", command, RESOURCE, code=10, says=says)


@pytest.mark.parametrize(
    "command", ["primary", "connect", "disconnect", "attach", "invalidate", "nbd-uri", "wait-sync"]
)
def test_what_needs_a_daemon_says_how_to_start_it(idle: Node, command: str) -> None:
    refused(idle, command, RESOURCE, code=20, says=NOT_UP)


@pytest.mark.parametrize("command", ["down", "secondary"])
def test_stopping_what_is_not_up_is_no_error(idle: Node, command: str) -> None:
    assert idle.cmd(command, RESOURCE).stderr == ""


# Configuration


@pytest.mark.parametrize(
    ("old", "new", "code", "place", "says"),
    [
        ("protocol C;", "protocol D;", 10, "2:20", "protocol: expected one of A, B, C, found 'D'"),
        ("protocol C;", "protokol C;", 2, "2:11", "protocol"),
        ("net {", "net", 2, "2:9", "'{'"),
        ("minor", "mirror", 2, "7:", "expected ';', found 'mirror'"),
        ("address 127.0.0.1:", "address 127.0.0.256:", 2, "5:17", "127.0.0.256"),
        ("address 127.0.0.1:", "address 127.0.0.1:9", 2, "5:27", "65535"),
        ("resource r0 {", "resource r0 { resource r1 {", 2, "1:15", "resource"),
        ("meta-disk internal;", "meta-disk", 2, "10:9", "expected internal"),
        ("protocol C;", "ping-timeout 5000;", 10, "2:24", "expected a number from 1 to 300"),
        ("protocol C;", 'shared-secret "', 2, "2:25", "quoted string"),
        ("device", "devise", 2, "7:13", "did you mean 'device'?"),
    ],
)
def test_a_mistake_in_the_configuration_is_shown_with_its_place(
    idle: Node, tmp_path: Path, old: str, new: str, code: int, place: str, says: str
) -> None:
    path = tmp_path / "wrong.conf"
    text = idle.pair.config_path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    before = digest(idle.backing())
    for command in (("sh-nop",), ("create-md", "--force", RESOURCE)):
        refused(idle, "-c", str(path), *command, code=code, says=(f"{path}:{place}", says))
    assert digest(idle.backing()) == before


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "binary"])
def test_a_configuration_that_is_none_is_named(idle: Node, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 10)
    code = {"binary": 2, "empty": 1}.get(kind, 10)
    refused(idle, "-c", str(path), "up", RESOURCE, code=code, says=(str(path),))


# Disks


def test_a_missing_disk_is_named(alice: Node) -> None:
    alice.backing().unlink()
    for command in ("up", "create-md", "dump-md", "get-gi", "apply-al", "wipe-md"):
        says = ("r0:", f"cannot open {alice.backing()}: No such file", "check `disk`")
        refused(alice, command, RESOURCE, code=16, says=says)
    assert not alice.running()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("directory", "found a directory"),
        ("FIFO", "found a FIFO"),
        ("character device", "found a character device"),
        ("link to itself", "Too many levels of symbolic links"),
        ("file that nobody may open", "Permission denied"),
    ],
)
def test_what_is_no_disk_is_refused_without_waiting(alice: Node, kind: str, says: str) -> None:
    path = alice.backing()
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        targets = {"character device": "/dev/null", "link to itself": str(path)}
        path.symlink_to(targets.get(kind, "/proc/1/mem"))
    for command in ("up", "create-md", "dump-md"):
        refused(alice, command, RESOURCE, code=16, says=(str(path), says), timeout=20)


@pytest.mark.parametrize("size", [0, 512, BLOCK, 69631])
def test_a_disk_that_is_too_small_is_refused_with_both_sizes(alice: Node, size: int) -> None:
    os.truncate(alice.backing(), size)
    says = (str(alice.backing()), "expected at least 69632 bytes (68 KiB)", f"found {size}")
    for command in ("create-md", "up"):
        refused(alice, command, RESOURCE, code=10, says=(*says, "is this the right device?"))


def test_a_file_system_where_the_metadata_would_go_is_not_touched(alice: Node) -> None:
    disk = alice.backing()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True, timeout=30)
    before = digest(disk)
    says = (f"{disk}: found ext4 of {SIZE} bytes", "would destroy data", "wipefs")
    for options in ((), ("--force",)):
        refused(alice, "create-md", *options, RESOURCE, code=40, says=says)
    assert digest(disk) == before


def test_without_a_yes_neither_data_nor_metadata_is_replaced(alice: Node) -> None:
    disk = alice.backing()
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk), "8M"], check=True, timeout=30)
    before = digest(disk)
    refused(alice, "create-md", RESOURCE, code=1, says=("found ext4", "nothing was written"))
    assert digest(disk) == before
    alice.create_md()
    before = digest(disk)
    says = ("found valid v08 internal metadata", "nothing was written")
    refused(alice, "create-md", RESOURCE, code=1, says=says)
    refused(alice, "wipe-md", RESOURCE, code=1, says=("nothing was written",))
    assert digest(disk) == before


# Metadata


def superblock_at(disk: Path) -> int:
    return disk.stat().st_size - BLOCK


def put(disk: Path, offset: int, data: bytes) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_disk_without_metadata_says_how_to_make_it(alice: Node) -> None:
    before = digest(alice.backing())
    says = (str(alice.backing()), "no valid v08 metadata", "replicator create-md r0/0")
    refused(alice, "up", RESOURCE, code=10, says=says)
    for command in ("dump-md", "get-gi", "show-gi", "apply-al"):
        refused(alice, command, RESOURCE, code=1, says=says)
    assert digest(alice.backing()) == before


@pytest.mark.parametrize(("magic", "version"), [(0x8374026A, "v07"), (0x8374026D, "v09")])
def test_metadata_of_another_version_is_named_and_kept(
    alice: Node, magic: int, version: str
) -> None:
    alice.create_md()
    disk = alice.backing()
    put(disk, superblock_at(disk) + 60, magic.to_bytes(4, "big"))
    before = digest(disk)
    says = (f"found {version} metadata, expected v08", f"{magic:#010x}", "create-md r0/0")
    refused(alice, "up", RESOURCE, code=10, says=says)
    refused(alice, "create-md", RESOURCE, code=1, says=(version, "nothing was written"))
    assert digest(disk) == before


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("la_size_sect", 1 << 40, "at most 32688"),
        ("md_size_sect", 81, "80"),
        ("al_offset_sect", -72, "-64"),
        ("bm_offset_sect", -64, "-72"),
        ("bm_bytes_per_bit", 512, "4096"),
        ("al_stripes", 0xFFFFFFFF, "8 to 8192 blocks"),
        ("al_stripes", 0, "at least 1"),
        ("al_stripe_size_4k", 1, "8 to 8192 blocks"),
    ],
)
def test_a_damaged_field_of_the_metadata_is_named_with_what_it_should_be(
    alice: Node, field: str, value: int, expected: str
) -> None:
    alice.create_md()
    disk = alice.backing()
    at = superblock_at(disk)
    damaged = Superblock.decode(disk.read_bytes()[at:])
    setattr(damaged, field, value)
    put(disk, at, damaged.encode())
    before = digest(disk)
    says = (str(disk), field, expected, str(value), "restore-md r0/0", "create-md r0/0")
    refused(alice, "up", RESOURCE, code=10, says=says)
    refused(alice, "get-gi", RESOURCE, code=1, says=says)
    refused(alice, "create-md", RESOURCE, code=1, says=("damaged v08 metadata",))
    assert digest(disk) == before
    assert not alice.running()


@pytest.mark.parametrize("size", [12 * MIB, 20 * MIB, SIZE + 512 * 8])
def test_a_resized_disk_is_not_taken_for_a_new_one(alice: Node, size: int) -> None:
    alice.create_md()
    os.truncate(alice.backing(), size)
    before = digest(alice.backing())
    says = ("no valid v08 metadata", "if the disk was resized", "undo that")
    refused(alice, "up", RESOURCE, code=10, says=says)
    assert digest(alice.backing()) == before


def test_an_activity_log_that_is_damaged_but_needed_is_refused(small: Pair) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * BLOCK)
    alice.kill9()
    disk = alice.backing()
    start = superblock_at(disk) - 32 * 1024
    put(disk, start, os.urandom(32 * 1024))
    before = digest(disk)
    refused(alice, "up", RESOURCE, code=10, says=(str(disk), "activity log", "create-md"))
    refused(alice, "apply-al", RESOURCE, code=1, says=(str(disk), "activity log"))
    assert digest(disk) == before


def test_a_dump_that_is_none_is_refused_with_its_line(alice: Node, tmp_path: Path) -> None:
    alice.create_md()
    dump = tmp_path / "dump"
    good = alice.cmd("dump-md", RESOURCE).stdout
    before = digest(alice.backing())
    for text, part in (
        ("", "version"),
        (good.replace("la-size-sect", "la-sise-sect"), "line"),
        (good.replace('version "v08"', 'version "v09"'), "v09"),
        (good[: len(good) // 2], "line"),
    ):
        dump.write_text(text)
        refused(alice, "restore-md", "--force", RESOURCE, str(dump), code=10, says=(part,))
    dump.write_bytes(b"\xff\xfe\x00")
    refused(alice, "restore-md", RESOURCE, str(dump), code=1, says=(str(dump), "no text"))
    refused(alice, "restore-md", RESOURCE, "/nonexistent", code=1, says=("/nonexistent",))
    assert digest(alice.backing()) == before


# In use


def test_a_disk_in_use_is_refused_naming_its_user_and_the_way_out(small: Pair) -> None:
    small.start()
    alice = small.alice
    says = (str(alice.backing()), f"pid {alice.pid()}", "replicator down r0")
    for command in (("create-md", "--force"), ("wipe-md", "--force"), ("apply-al",)):
        refused(alice, *command, RESOURCE, code=20, says=says)
    elsewhere = ("--run-dir", str(small.directory / "other"))
    refused(alice, *elsewhere, "up", RESOURCE, code=20, says=says)
    alice.cmd(*elsewhere, "down", RESOURCE)
    assert alice.words()["cstate"] == "Connected"


def test_up_again_starts_no_second_daemon(small: Pair) -> None:
    small.start()
    pid = small.alice.pid()
    running = [small.alice.start("up", RESOURCE) for _ in range(4)]
    assert [one.wait(30) for one in running] == [0, 0, 0, 0]
    assert small.alice.pid() == pid


def test_of_two_that_start_it_at_once_both_succeed_with_one_daemon(alice: Node) -> None:
    alice.create_md()
    running = [alice.start("up", RESOURCE) for _ in range(3)]
    ends = [(one.wait(40), one.communicate()[1]) for one in running]
    # Who comes while the other holds the lock but has no daemon yet is told so.
    assert all(
        code == 0 or (code == 20 and "another daemon of this resource" in text)
        for code, text in ends
    ), ends
    assert [code for code, _ in ends].count(0) >= 1
    alice.cmd("up", RESOURCE)
    assert alice.words()["cstate"] == "WFConnection"


# Roles


def test_an_inconsistent_disk_is_not_promoted_without_force(small: Pair) -> None:
    small.start()
    says = ("r0/0: State change failed: (-2) Need access to UpToDate data", "is Inconsistent")
    message = refused(small.alice, "primary", RESOURCE, code=17, says=says)
    assert "replicator primary --force r0" in message
    assert small.alice.words()["role"] == "Secondary/Secondary"
    small.bob.down()
    refused(small.alice, "primary", RESOURCE, code=17, says=says)
    assert small.alice.words()["dstate"].startswith("Inconsistent/")


def test_a_second_primary_is_refused_and_told_where_the_first_is(small: Pair) -> None:
    small.start_synced()
    says = ("State change failed: (-1) Multiple primaries", "replicator secondary r0")
    for options in ((), ("--force",)):
        refused(small.bob, "primary", *options, RESOURCE, code=11, says=says)
    assert small.bob.words()["role"] == "Secondary/Primary"
    assert small.alice.words()["cstate"] == "Connected"


def test_a_client_of_a_secondary_is_refused_with_one_line_in_the_log(small: Pair) -> None:
    import nbd

    small.start()
    with pytest.raises(nbd.Error), small.bob.nbd():
        pass
    log = small.bob.log()
    reason = "refused to open: r0/0: this node is Secondary: the device can neither be read nor"
    assert reason in log
    assert "Traceback" not in log


# The run directory


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("/proc/replicator-test", "cannot create the run directory"),
        ("FILE", "exists and is no directory"),
        ("LONG", "at most 107 bytes"),
        ("READ-ONLY", "not writable"),
    ],
)
def test_an_unusable_run_directory_is_named_with_the_option_to_change_it(
    alice: Node, where: str, says: str
) -> None:
    alice.create_md()
    before = digest(alice.backing())
    base = alice.directory
    paths = {"FILE": base / "file", "LONG": base / ("d" * 100), "READ-ONLY": base / "ro"}
    path = paths.get(where, Path(where))
    if where == "FILE":
        path.write_text("")
    with small_file_system(base / "ro", "1m", ",ro"):
        run_dir = ("--run-dir", str(path))
        refused(alice, *run_dir, "up", RESOURCE, code=20, says=(str(path), says, "--run-dir"))
        refused(alice, *run_dir, "primary", RESOURCE, code=20, says=NOT_UP)
        for command in ("down", "secondary"):
            assert alice.cmd(*run_dir, command, RESOURCE).stderr == ""
        assert alice.cmd(*run_dir, "role", RESOURCE).stdout == "Unconfigured\n"
    assert digest(alice.backing()) == before


def test_a_full_run_directory_is_a_plain_error_and_down_still_works(alice: Node) -> None:
    alice.create_md()
    with small_file_system(alice.directory / "full", "64k") as full:
        run_dir = ("--run-dir", str(full))
        fill(full / "filler")
        refused(alice, *run_dir, "up", RESOURCE, code=20, says=("No space left", str(full)))
        assert alice.cmd(*run_dir, "down", RESOURCE).returncode == 0
        (full / "filler").unlink()
        alice.cmd(*run_dir, "up", RESOURCE)
        fill(full / "filler")
        alice.cmd(*run_dir, "primary", "--force", RESOURCE)
        assert alice.cmd(*run_dir, "role", RESOURCE).stdout == "Primary/Unknown\n"
        assert "role:Primary" in alice.cmd(*run_dir, "status", RESOURCE).stdout
        alice.cmd(*run_dir, "down", RESOURCE)
        assert alice.cmd(*run_dir, "role", RESOURCE).stdout == "Unconfigured\n"


def fill(path: Path) -> None:
    """Take all space there is."""
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(BLOCK))


# A backing file that cannot grow


def put_on_full_file_system(node: Node, directory: Path, size: int) -> None:
    """Replace the node's disk by a sparse file for which there is not enough room."""
    node.backing().unlink()
    file = directory / "disk"
    file.touch()
    os.truncate(file, size)
    node.backing().symlink_to(file)


def write_all(node: Node, mebibytes: int) -> list[int]:
    """Write and flush one MiB after the other; returns those for which that succeeded."""
    import nbd

    done = []
    with node.nbd() as handle:
        for number in range(mebibytes):
            try:
                handle.pwrite(bytes([number + 1]) * MIB, number * MIB)
                handle.flush()
            except nbd.Error:
                continue
            done.append(number)
    return done


def test_a_primary_whose_disk_is_full_goes_on_with_the_peers(small: Pair) -> None:
    alice = small.alice
    with small_file_system(small.directory / "fs", "8m") as fs:
        put_on_full_file_system(alice, fs, SIZE)
        small.start_synced()
        assert write_all(alice, 14) == list(range(14))
        status = alice.cmd("status", RESOURCE).stdout
        assert "disk:Diskless" in status
        assert "disk error: local write at sector" in status
        assert "no space left on device (ENOSPC); detach" in status
        assert "replicator attach r0/0" in status
        for number in range(14):
            assert alice.read(number * MIB, MIB) == bytes([number + 1]) * MIB
        assert "Traceback" not in alice.log()


def test_a_secondary_whose_disk_is_full_leaves_the_primary_alone(small: Pair) -> None:
    alice, bob = small.nodes
    with small_file_system(small.directory / "fs", "8m") as fs:
        put_on_full_file_system(bob, fs, SIZE)
        small.start()
        alice.primary(force=True)
        assert write_all(alice, 14) == list(range(14))
        bob.wait(dstate="Diskless/UpToDate")
        alice.wait(dstate="UpToDate/Diskless")
        assert "no space left on device" in bob.cmd("status", RESOURCE).stdout
        for number in range(14):
            assert alice.read(number * MIB, MIB) == bytes([number + 1]) * MIB


def test_alone_on_a_full_disk_writes_fail_and_nothing_that_was_written_is_lost(small: Pair) -> None:
    alice = small.alice
    with small_file_system(small.directory / "fs", "8m") as fs:
        put_on_full_file_system(alice, fs, SIZE)
        alice.create_md()
        alice.up()
        alice.primary(force=True)
        done = write_all(alice, 14)
        assert 4 < len(done) < 8
        assert alice.words()["dstate"] == "Diskless/DUnknown"
        assert "Traceback" not in alice.log()
        alice.secondary()
        says = ("(-2) Need access to UpToDate data", "replicator attach r0/0")
        message = refused(alice, "primary", RESOURCE, code=17, says=says)
        assert "--force" not in message, "forcing cannot help without a disk"
        subprocess.run(["mount", "-o", "remount,size=32m", str(fs)], check=True, timeout=20)
        alice.cmd("attach", RESOURCE)
        alice.primary()
        for number in done:
            assert alice.read(number * MIB, MIB) == bytes([number + 1]) * MIB
        assert write_all(alice, 14) == list(range(14))
