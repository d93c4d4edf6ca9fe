"""The built-in NBD server in a real pair: clients that misbehave beside one that does not, roles, TCP."""

from __future__ import annotations

import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator

import nbd
import pytest

from tests.integration.pair import MIB, RESOURCE, Pair
from tests.tools import nbd_bytes

pytestmark = pytest.mark.timeout(120)

HELD_OPEN = 11


@pytest.fixture
def mirror(free_port: Callable[[], int]) -> Iterator[Pair]:
    """On TCP too; alice is Primary."""
    sections = {
        "replicator": f"listen 127.0.0.1:{free_port()};",
        "disk": "c-plan-ahead 0; resync-rate 500M;",
    }
    # Both nodes would listen on the same port: bob is brought up without one.
    with Pair(sizes=(16 * MIB,), frontend="native", sections=sections) as pair:
        own = pair.directory / "bob.conf"
        text = pair.config_path.read_text()
        own.write_text(text.replace(sections["replicator"], ""))
        pair.bob.config_path = own
        pair.start_synced()
        yield pair


def raw(pair: Pair) -> socket.socket:
    """A connection of our own to alice's server."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(str(pair.alice.run_dir / f"{RESOURCE}.nbd.sock"))
    return made


def ended(client: socket.socket) -> bytes:
    """All that the server still says, until it closes the connection."""
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def opened(pair: Pair) -> int:
    return int(pair.alice.status()["volumes"][0]["open_count"])


def test_bad_clients_do_not_disturb_a_good_one(mirror: Pair) -> None:
    rng = random.Random(8)
    greeting = nbd_bytes.client_flags() + nbd_bytes.go("0")
    misdeeds = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        rng.randbytes(5000),
        nbd_bytes.client_flags() + rng.randbytes(5000),
        greeting + rng.randbytes(5000),
        greeting + nbd_bytes.write(0, bytes(512)) + bytes(28),
    ]
    with mirror.alice.nbd() as good:
        for number, misdeed in enumerate(misdeeds * 3):
            data = rng.randbytes(65536)
            good.pwrite(data, number * 65536)
            with raw(mirror) as bad:
                bad.sendall(misdeed)
                ended(bad)
            assert good.pread(65536, number * 65536) == data
        good.flush()
        deadline = time.monotonic() + 10
        while opened(mirror) != 1:
            assert time.monotonic() < deadline, "the bad clients' volumes were not closed"
    assert "a request begins with" in mirror.alice.log()
    assert mirror.difference(size=8 * MIB) is None


def test_clients_that_leave_in_the_middle_leave_nothing_open(mirror: Pair) -> None:
    greeting = nbd_bytes.client_flags() + nbd_bytes.go("0")
    reads = b"".join(nbd_bytes.request(nbd_bytes.READ, 0, MIB) for _ in range(100))
    for rest in (b"", nbd_bytes.write(0, bytes(MIB))[:-100], reads):
        with raw(mirror) as client:
            client.sendall(greeting + rest)
            client.recv(18)
    deadline = time.monotonic() + 10
    while opened(mirror):
        assert time.monotonic() < deadline
    mirror.alice.secondary()


def test_a_demotion_is_refused_while_a_client_is_connected(mirror: Pair) -> None:
    with mirror.alice.nbd() as client:
        refused = mirror.alice.cmd("secondary", RESOURCE, check=False)
        assert refused.returncode == HELD_OPEN
        assert "held open" in refused.stderr
        client.pwrite(b"x" * 512, 0)
    deadline = time.monotonic() + 10
    while opened(mirror):
        assert time.monotonic() < deadline
    mirror.alice.secondary()
    with pytest.raises(nbd.Error), mirror.alice.nbd():
        pass
    assert "this node is Secondary" in mirror.alice.log()


def test_the_refusal_says_what_to_do(mirror: Pair) -> None:
    mirror.alice.secondary()
    with raw(mirror) as client:
        client.sendall(nbd_bytes.client_flags() + nbd_bytes.go("0") + nbd_bytes.option(2))
        replies = nbd_bytes.option_replies(ended(client).removeprefix(nbd_bytes.GREETING))
    assert replies[0].kind == nbd_bytes.ERR_POLICY
    assert b"replicator primary r0" in replies[0].data


def test_unix_and_tcp_clients_see_the_same_volume(mirror: Pair) -> None:
    uris = mirror.alice.status()["nbd_uris"]
    assert [uri.partition(":")[0] for uri in uris] == ["nbd+unix", "nbd"]
    data = os.urandom(3 * MIB)
    writer, reader = nbd.NBD(), nbd.NBD()
    writer.connect_uri(uris[1])
    reader.connect_uri(uris[0])
    writer.pwrite(data, 512, nbd.CMD_FLAG_FUA)
    assert reader.pread(len(data), 512) == data
    with pytest.raises(nbd.Error) as refused:
        reader.set_strict_mode(0)
        reader.pread(512, 16 * MIB)
    assert refused.value.errnum == errno.EINVAL
    writer.shutdown()
    reader.shutdown()


def test_everything_is_gone_after_down(mirror: Pair) -> None:
    with raw(mirror) as client:
        client.sendall(nbd_bytes.client_flags() + nbd_bytes.go("0"))
        client.recv(18)
        mirror.alice.down(force=True)
        ended(client)
    left = sorted(path.name for path in mirror.alice.run_dir.iterdir())
    assert left == [".status.lock", "r0.log", "status"]
    assert not mirror.alice.running()
