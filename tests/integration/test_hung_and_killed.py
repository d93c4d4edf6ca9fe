"""Daemons that hang, and commands and daemons that are ended at any moment.

A hung daemon must not hang its administrator: every command ends in bounded time with words that
help. Whatever is killed, the next command finds a state it can go on from, with all data in it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration import processes
from tests.integration.pair import FRONTEND, MIB, RESOURCE, Node, Pair
from tests.integration.refusals import NEVER, refused

SIZE = 16 * MIB
HANG_NOTICED = 40.0
"""More than any command may take on a daemon that hangs, on a busy machine."""
MOMENTS = [0.0, 0.1, 0.2, 0.35]
"""Seconds after its start at which a command is ended."""


BOTH_FRONT_ENDS = pytest.mark.parametrize("small", ["nbdkit", "native"], indirect=True)


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """With nbdkit, unless the test is run with both front ends."""
    with Pair(sizes=(SIZE,), frontend=getattr(request, "param", FRONTEND)) as fresh:
        yield fresh


@pytest.fixture
def alice(small: Pair) -> Node:
    return small.alice


# A daemon that hangs


@pytest.fixture(scope="module")
def frozen() -> Iterator[Node]:
    """A Primary, connected and in sync, that has stopped doing anything."""
    with Pair(sizes=(SIZE,)) as pair:
        pair.start_synced()
        pair.alice.freeze()
        yield pair.alice


LOOKING = {
    "status": "role:Primary",
    "role": "Primary/Secondary",
    "cstate": "Connected",
    "dstate": "UpToDate/UpToDate",
}
CHANGING = [
    *("primary", "secondary", "connect", "disconnect", "attach", "detach", "invalidate"),
    *("invalidate-remote", "pause-sync", "resume-sync", "down", "nbd-uri", "up"),
    *("wait-connect", "wait-sync"),
]


@pytest.mark.parametrize("command", LOOKING)
def test_looking_at_a_hung_daemon_shows_its_last_state_and_says_so(
    frozen: Node, command: str
) -> None:
    started = time.monotonic()
    done = frozen.cmd(command, RESOURCE, timeout=HANG_NOTICED)
    assert time.monotonic() - started < 10
    assert LOOKING[command] in done.stdout
    assert f"the daemon (pid {frozen.pid()}) did not answer status" in done.stdout + done.stderr


def test_no_command_waits_without_end_for_a_hung_daemon(frozen: Node) -> None:
    pid = frozen.pid()

    def give(command: str) -> tuple[str, int, str, float]:
        started = time.monotonic()
        done = frozen.cmd(command, RESOURCE, check=False, timeout=120)
        return command, done.returncode, done.stderr, time.monotonic() - started

    with ThreadPoolExecutor(len(CHANGING)) as pool:
        ends = list(pool.map(give, CHANGING))
    for command, code, text, seconds in ends:
        assert code == 20, (command, code, text)
        assert f"r0: the daemon (pid {pid}) did not answer" in text, (command, text)
        assert "r0: r0:" not in text, (command, text)
        assert seconds < HANG_NOTICED, (command, seconds)
        assert not any(word in text for word in NEVER), (command, text)
    assert frozen.pid() == pid


@pytest.mark.parametrize("command", ["create-md", "wipe-md"])
def test_the_disk_of_a_hung_daemon_stays_protected(frozen: Node, command: str) -> None:
    says = (f"pid {frozen.pid()}", "replicator down r0")
    refused(frozen, command, "--force", RESOURCE, code=20, says=says)


def test_what_hangs_can_be_ended_by_force_and_started_again(small: Pair) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * 4096)
    alice.freeze()
    message = refused(alice, "secondary", RESOURCE, code=20, says=("did not answer",), timeout=60)
    assert "replicator down --force r0" in message
    alice.cmd("down", "--force", RESOURCE, timeout=60)
    assert not alice.running()
    alice.up()
    alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    alice.primary()
    assert alice.read(0, 4096) == b"x" * 4096


# What a killed daemon leaves behind


@BOTH_FRONT_ENDS
def test_after_a_kill_everything_says_that_it_is_not_up_and_up_goes_on(small: Pair) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * 4096)
    alice.kill9()
    assert (alice.run_dir / "r0.sock").exists(), "a kill leaves its socket behind"
    for command in ("role", "cstate", "dstate"):
        assert alice.cmd(command, RESOURCE).stdout == "Unconfigured\n"
    refused(alice, "primary", RESOURCE, code=20, says=("not up", "replicator up r0"))
    assert alice.cmd("secondary", RESOURCE).stderr == ""
    alice.up()
    alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    alice.primary()
    assert alice.read(0, 4096) == b"x" * 4096


def test_down_clears_up_after_a_kill(small: Pair) -> None:
    small.start()
    small.alice.kill9()
    small.alice.down()
    left = sorted(path.name for path in small.alice.run_dir.iterdir())
    assert left == [".status.lock", "r0.log", "status"]


@pytest.mark.parametrize("text", ["1\n", "garbage", "", "99999999\n"])
def test_a_stale_pid_file_stops_nobody_and_harms_nobody(alice: Node, text: str) -> None:
    alice.create_md()
    for name in ("r0.sock", "r0.nbd.sock", "r0.status.json"):
        (alice.run_dir / name).write_text("rubbish")
    (alice.run_dir / "r0.pid").write_text(text)
    assert alice.cmd("role", RESOURCE).stdout == "Unconfigured\n"
    assert alice.cmd("down", "--force", RESOURCE).stderr == ""
    (alice.run_dir / "r0.pid").write_text(text)
    alice.up()
    assert alice.words()["cstate"] == "WFConnection"


def test_a_directory_in_the_place_of_a_socket_is_a_plain_error(alice: Node) -> None:
    alice.create_md()
    for name in ("r0.sock", "r0.nbd.sock"):
        (alice.run_dir / name).mkdir()
        refused(alice, "up", RESOURCE, code=20, says=(str(alice.run_dir / name),))
        done = alice.cmd("down", RESOURCE)
        assert not any(word in done.stderr for word in ("Traceback", "internal error"))
        (alice.run_dir / name).rmdir()
    alice.up()


# Commands that are ended half-way


def end_command(node: Node, signal_number: int, after: float, *words: str) -> None:
    """Start the command, and end it at that moment if it still runs."""
    process = node.start(*words)
    time.sleep(after)
    process.send_signal(signal_number)
    process.communicate(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_create_md_ended_at_any_moment_leaves_old_new_or_no_metadata(
    alice: Node, number: int
) -> None:
    alice.create_md()
    whole = alice.cmd("get-gi", RESOURCE).stdout
    for after in MOMENTS:
        end_command(alice, number, after, "create-md", "--force", RESOURCE)
        found = alice.cmd("get-gi", RESOURCE, check=False)
        assert found.stdout == whole or (
            found.returncode == 1 and "no valid v08 metadata" in found.stderr
        )
        alice.create_md()
    alice.up()
    assert alice.words()["dstate"] == "Inconsistent/DUnknown"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_up_ended_at_any_moment_can_be_given_again(small: Pair, number: int) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * 4096)
    for after in MOMENTS:
        alice.down()
        end_command(alice, number, after, "up", RESOURCE)
        alice.up()
        alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    alice.primary()
    assert alice.read(0, 4096) == b"x" * 4096
    assert len(daemons(alice)) == 1


def daemons(node: Node) -> list[int]:
    """Processes that serve this node's resource."""
    found = processes.processes_of(node.run_dir)
    program = "nbdkit" if FRONTEND == "nbdkit" else "nbd_plugin.native"
    return [pid for pid in found if program in processes.command_line(pid)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_primary_ended_at_any_moment_leaves_one_role_on_both_nodes(
    small: Pair, number: int
) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * 4096)
    for after in MOMENTS:
        alice.secondary()
        end_command(alice, number, after, "primary", RESOURCE)
        alice.primary()
        small.bob.wait(role="Secondary/Primary", cstate="Connected")
        assert alice.read(0, 4096) == b"x" * 4096


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_ended_while_it_is_promoted_keeps_all_data(small: Pair, number: int) -> None:
    small.start_synced()
    alice = small.alice
    alice.write(0, b"x" * 4096)
    alice.secondary()
    for after in MOMENTS:
        command = alice.start("primary", RESOURCE)
        time.sleep(after)
        pid = alice.pid()
        os.kill(pid, number)
        assert processes.wait_until(lambda pid=pid: not processes.alive(pid), 40)
        code, text = command.wait(30), command.communicate()[1]
        assert code in (0, 20), (code, text)
        assert not any(word in text for word in NEVER), text
        alice.up()
        alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    alice.primary()
    assert alice.read(0, 4096) == b"x" * 4096
    alice.secondary()
    for node in small.nodes:
        node.down()
    assert small.difference(size=SIZE - MIB) is None


@BOTH_FRONT_ENDS
def test_a_term_signal_is_an_orderly_end_also_with_a_client_and_no_resync_follows(
    small: Pair,
) -> None:
    small.start_synced()
    alice = small.alice
    with alice.nbd() as handle:
        handle.pwrite(b"x" * 4096, 0)
        handle.flush()
        pid = alice.pid()
        os.kill(pid, signal.SIGTERM)
        assert processes.wait_until(lambda: not processes.alive(pid), 40)
    assert alice.cmd("get-gi", RESOURCE).stdout.strip().endswith(":1:1:0:0:0:0:0"), "no crash"
    alice.up()
    alice.wait(cstate="Connected", dstate="UpToDate/UpToDate")
    assert alice.status()["volumes"][0]["nr"] == 0, "nothing had to be copied back"
