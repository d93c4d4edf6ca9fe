"""Fencing and handlers with real daemons: a handler script runs, and what it says is what happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.integration.test_stalled_disk import nbd_buffer

SIZE = 16 * MIB
NET = "ping-int 1; ping-timeout 5; timeout 10; connect-int 1;"

OUTDATE_PEER = """#!/bin/sh
# As outdate-peer.sh does by ssh: the other node marks its data as old.
env | grep -E '^(DRBD|REPLICATOR)_' | sort > "$0.env"
peer_run_dir=$(echo "$REPLICATOR_RUN_DIR" | sed "s,/$REPLICATOR_NODE/run,/$DRBD_PEER/run,")
replicator --node "$DRBD_PEER" --run-dir "$peer_run_dir" outdate "$DRBD_RESOURCE"
case $? in
    0) exit 4;;
    5) exit 3;;
    17) exit 6;;
    *) exit 5;;
esac
"""


def handler(directory: Path, text: str) -> Path:
    path = directory / "handler"
    path.write_text(text)
    path.chmod(0o755)
    return path


def fencing_pair(script: Path, policy: str = "resource-and-stonith", more: str = "") -> Pair:
    return Pair(
        sizes=(SIZE,),
        sections={
            "net": NET,
            "disk": f"fencing {policy};",
            "handlers": f'fence-peer "{script}"; {more}',
        },
    )


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def cstate_is_frozen(node: Node) -> bool:
    return bool(node.status()["volumes"][0]["susp_fen"])


def test_the_peer_is_outdated_by_the_handler_and_io_goes_on(tmp_path: Path) -> None:
    """The whole way: the Secondary dies, the handler outdates its disk, the Primary goes on; the
    Secondary cannot take over with its old data, and is brought up to date when it is back."""
    unfenced = tmp_path / "unfenced"
    script = handler(tmp_path, OUTDATE_PEER)
    more = f'unfence-peer "touch {unfenced}";'
    with fencing_pair(script, more=more) as pair:
        pair.start_synced()
        unfenced.unlink(missing_ok=True)  # after the first synchronisation it was called, too
        alice, bob = pair.nodes
        bob.kill9()
        alice.wait(dstate="UpToDate/Outdated")
        alice.write(0, b"a" * 4096)
        environment = Path(f"{script}.env").read_text().splitlines()
        assert set(environment) >= {
            f"DRBD_CONF={pair.config_path}",
            f"DRBD_LL_DISK={alice.backing()}",
            f"DRBD_MINOR={alice.minors[0]}",
            "DRBD_PEER=bob",
            "DRBD_PEERS=bob",
            "DRBD_PEER_ADDRESS=127.0.0.1",
            "DRBD_PEER_AF=ipv4",
            f"DRBD_RESOURCE={RESOURCE}",
            "DRBD_VOLUME=0",
            "REPLICATOR_NODE=alice",
        }
        alice.kill9()
        bob.up()
        assert bob.words()["dstate"] == "Outdated/DUnknown"
        assert bob.cmd("primary", RESOURCE, check=False).returncode == 17
        alice.up()
        for node in pair.nodes:
            node.wait(cstate="Connected", dstate="UpToDate/UpToDate")
        wait_for(unfenced.exists, "unfence-peer")
        alice.cmd("primary", RESOURCE)
        assert bob.cmd("outdate", RESOURCE, check=False).returncode == 11
        assert alice.cmd("outdate", RESOURCE, check=False).returncode == 17


def test_io_is_frozen_while_the_handler_fails_until_an_administrator_resumes_it(
    tmp_path: Path,
) -> None:
    script = handler(tmp_path, "#!/bin/sh\nsleep 2\nexit 1\n")
    with fencing_pair(script) as pair:
        pair.start_synced()
        alice = pair.alice
        with alice.nbd() as handle:
            pair.bob.kill9()
            wait_for(lambda: cstate_is_frozen(alice), "alice notices")
            cookie = handle.aio_pwrite(nbd_buffer(b"a" * 4096), 0)
            shown = alice.cmd("status", RESOURCE).stdout
            assert "suspended:fencing" in shown
            assert "running handler: fence-peer, for" in shown
            failed = "fence-peer ended with exit status 1"
            wait_for(lambda: failed in alice.cmd("status", RESOURCE).stdout, failed)
            assert " C s-----" in alice.cmd("status", "--proc", RESOURCE).stdout
            handle.poll(500)
            assert not handle.aio_command_completed(cookie)
            alice.cmd("resume-io", RESOURCE)
            while not handle.aio_command_completed(cookie):
                assert handle.poll(20_000), "the write was never completed"
        assert alice.read(0, 4096) == b"a" * 4096


def test_a_frozen_daemon_is_stopped_without_the_frozen_write(tmp_path: Path) -> None:
    script = handler(tmp_path, "#!/bin/sh\nexit 1\n")
    with fencing_pair(script) as pair:
        pair.start_synced()
        alice = pair.alice
        with alice.nbd() as handle:
            pair.bob.kill9()
            wait_for(lambda: cstate_is_frozen(alice), "alice notices")
            handle.aio_pwrite(nbd_buffer(b"x" * 4096), 0)
            handle.poll(300)
            alice.down(force=True)
        assert not alice.running()
        assert alice.backing().read_bytes()[:4096] == bytes(4096)


@pytest.mark.parametrize(("status", "code"), [(4, 0), (1, 11)])
def test_a_takeover_asks_the_handler(tmp_path: Path, status: int, code: int) -> None:
    script = handler(tmp_path, f"#!/bin/sh\nexit {status}\n")
    with fencing_pair(script, "resource-only") as pair:
        pair.start_synced()
        pair.alice.kill9()
        pair.bob.wait(cstate=("WFConnection", "Unconnected"))
        done = pair.bob.cmd("primary", RESOURCE, check=False)
        assert done.returncode == code, done.stderr
        if code:
            assert "(-7) Refusing to be Primary while peer is not outdated" in done.stderr
            assert "replicator primary --force r0" in done.stderr
        else:
            assert pair.bob.words() == {
                "cstate": "WFConnection",
                "dstate": "UpToDate/Outdated",
                "role": "Primary/Unknown",
            }


def test_suspend_io_and_resume_io_by_hand() -> None:
    with Pair(sizes=(SIZE,), sections={"net": NET}) as pair:
        pair.start_synced()
        alice = pair.alice
        alice.cmd("suspend-io", RESOURCE)
        assert "suspended:user" in alice.cmd("status", RESOURCE).stdout
        with alice.nbd() as handle:
            cookie = handle.aio_pwrite(nbd_buffer(os.urandom(4096)), 0)
            handle.poll(500)
            assert not handle.aio_command_completed(cookie)
            alice.cmd("resume-io", RESOURCE)
            while not handle.aio_command_completed(cookie):
                assert handle.poll(20_000), "the write was never completed"
        assert "suspended" not in alice.cmd("status", RESOURCE).stdout
