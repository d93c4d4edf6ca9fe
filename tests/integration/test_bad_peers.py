"""Peers that cannot be worked with: what is refused is refused on both nodes, visibly, and kept.

Where the other end must be wrong in a way that no replicator can be, a plain socket takes its place.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from protocol.packets import Command, Features, encode_h80
from replicator.engine.establish import INITIAL_DATA, INITIAL_META
from tests.integration.pair import MIB, RESOURCE, Node, Pair
from tests.integration.refusals import (
    address,
    digest,
    eventually,
    last_error,
    own_config,
    says_in_status_and_log,
)

SIZE = 16 * MIB
H80_MAGIC, H100_MAGIC = 0x83740267, 0x8620EC20
NET = 'cram-hmac-alg sha1; shared-secret "abc"; data-integrity-alg crc32c;'


@contextmanager
def small(**sections: str) -> Iterator[Pair]:
    """Both with fresh metadata, not started."""
    with Pair(sizes=(SIZE,), sections=sections) as pair:
        for node in pair.nodes:
            node.create_md()
        yield pair


def up_both(pair: Pair) -> None:
    for node in pair.nodes:
        node.up()


def stays_alone(node: Node) -> None:
    """A peer that cannot be worked with is not dialled for ever."""
    eventually("StandAlone", lambda: node.status()["cstate"] == "StandAlone", node)
    assert "replicator connect r0" in node.cmd("status", RESOURCE).stdout


# Two configurations that do not go together


@pytest.mark.parametrize(
    ("old", "new", "here", "there"),
    [
        (
            "protocol C;",
            "protocol A;",
            "protocol differs: C here, A on the peer",
            "protocol differs: A here, C on the peer",
        ),
        (
            "crc32c",
            "sha1",
            "data-integrity-alg differs: crc32c here, sha1 on the peer",
            "data-integrity-alg differs: sha1 here, crc32c on the peer",
        ),
        (
            "data-integrity-alg crc32c;",
            "",
            "data-integrity-alg differs: crc32c here, none on the peer",
            "data-integrity-alg differs: none here, crc32c on the peer",
        ),
        ('"abc"', '"abd"', "the peer's shared-secret differs", "the peer's shared-secret differs"),
        (
            'cram-hmac-alg sha1; shared-secret "abc";',
            "",
            "is cram-hmac-alg missing in the peer's configuration?",
            "the peer wants authentication, but cram-hmac-alg and shared-secret are not configured",
        ),
        (
            "cram-hmac-alg sha1",
            "cram-hmac-alg md5",
            "cram-hmac-alg is sha1 here, it must be the same on the peer",
            "cram-hmac-alg is md5 here, it must be the same on the peer",
        ),
        (
            "protocol C;",
            "protocol C; after-sb-0pri discard-zero-changes;",
            "after-sb-0pri differs: disconnect here, discard-zero-changes on the peer",
            "after-sb-0pri differs: discard-zero-changes here, disconnect on the peer",
        ),
        (
            "protocol C;",
            "protocol C; csums-alg md5;",
            "csums-alg differs: none here, md5 on the peer",
            "csums-alg differs: md5 here, none on the peer",
        ),
    ],
)
def test_settings_that_differ_are_named_with_both_values_on_both_nodes(
    old: str, new: str, here: str, there: str
) -> None:
    with small(net=NET) as pair:
        own_config(pair, pair.bob, old, new)
        up_both(pair)
        says_in_status_and_log(pair.alice, here)
        says_in_status_and_log(pair.bob, there)
        for node in pair.nodes:
            stays_alone(node)
            assert node.words()["dstate"] == "Inconsistent/DUnknown"


def test_after_the_configuration_is_repaired_the_nodes_connect() -> None:
    with small() as pair:
        own_config(pair, pair.bob, "protocol C;", "protocol B;")
        up_both(pair)
        stays_alone(pair.bob)
        stays_alone(pair.alice)
        pair.bob.down()
        pair.bob.config_path = pair.config_path
        pair.bob.up()
        pair.alice.connect()
        pair.alice.wait(cstate="Connected")
        assert last_error(pair.alice) == ""


def test_another_resource_on_the_other_end_is_named_on_both_nodes() -> None:
    with small() as pair:
        own_config(pair, pair.bob, f"resource {RESOURCE} ", "resource r9 ")
        pair.alice.up()
        pair.bob.cmd("up", "r9")
        says_in_status_and_log(
            pair.alice, "wrong resource on the other end: expected r0, found r9 on node bob"
        )
        stays_alone(pair.alice)
        eventually(
            "the refusal on bob",
            lambda: (
                "wrong resource on the other end: expected r9, found r0 on node alice"
                in pair.bob.cmd("status", "r9").stdout
            ),
            pair.alice,
        )
        pair.bob.cmd("down", "r9")


def test_a_peer_whose_disk_is_smaller_than_good_data_is_refused_on_both_nodes() -> None:
    with small() as pair:
        alice, bob = pair.nodes
        up_both(pair)
        alice.wait(cstate="Connected")
        alice.primary(force=True)
        alice.wait(dstate="UpToDate/UpToDate")
        alice.write(8 * MIB, b"x" * 4096)
        bob.down()
        os.truncate(bob.backing(), 0)
        os.truncate(bob.backing(), SIZE // 2)
        bob.create_md()
        bob.up()
        reason = (
            "the peer's disk is too small: this volume has 32688 sectors, the peer offers 16304"
        )
        says_in_status_and_log(alice, reason)
        says_in_status_and_log(bob, reason)
        stays_alone(alice)
        assert alice.words()["role"] == "Primary/Unknown"
        assert alice.read(8 * MIB, 4096) == b"x" * 4096
        alice.write(0, b"y" * 4096)


def test_two_that_were_primary_apart_are_refused_on_both_nodes_and_keep_their_data() -> None:
    with small() as pair:
        alice, bob = pair.nodes
        up_both(pair)
        alice.wait(cstate="Connected")
        alice.primary(force=True)
        alice.wait(dstate="UpToDate/UpToDate")
        for node in pair.nodes:
            node.disconnect(force=True)
        bob.primary()
        alice.write(0, b"a" * 4096)
        bob.write(0, b"b" * 4096)
        for node in pair.nodes:
            node.connect()
        for node in pair.nodes:
            says_in_status_and_log(node, "split brain, both copies are kept")
            assert "replicator connect --discard-my-data r0" in last_error(node)
            stays_alone(node)
        assert alice.read(0, 4096) == b"a" * 4096
        assert bob.read(0, 4096) == b"b" * 4096


# The network


def test_a_port_in_use_is_said_at_once_and_taken_when_it_is_free() -> None:
    with small() as pair, socket.socket() as other:
        where = address(pair, pair.alice)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(where)
        other.listen()
        done = pair.alice.cmd("up", RESOURCE)
        reason = f"cannot listen on 127.0.0.1:{where[1]}: another program uses that port"
        assert f"warning: r0: {reason}" in done.stderr
        says_in_status_and_log(pair.alice, reason)
        other.close()
        pair.bob.up()
        for node in pair.nodes:
            node.wait(cstate="Connected", timeout=40)
        assert pair.alice.log().count(reason) == 1, "said once, not at every attempt"


@contextmanager
def pretended_peer(node: Node, first: bytes = INITIAL_DATA) -> Iterator[socket.socket]:
    """The data socket of a peer that has dialled both sockets; the node is up."""
    where = address(node.pair, node)
    with ExitStack() as stack:
        data = stack.enter_context(socket.create_connection(where, 5))
        data.sendall(first)
        meta = stack.enter_context(socket.create_connection(where, 5))
        meta.sendall(INITIAL_META)
        yield data


def features(least: int, most: int) -> bytes:
    return encode_h80(Command.CONNECTION_FEATURES, Features(least, 0, most, 0))


@pytest.fixture(scope="module")
def waiting() -> Iterator[Node]:
    """A node that is up and waits for its peer, with a digest of its untouched disk."""
    with small() as pair:
        pair.alice.up()
        yield pair.alice


@pytest.mark.parametrize(("least", "most"), [(86, 99), (80, 86), (110, 122)])
def test_a_peer_of_another_version_is_refused_with_both_ranges(
    waiting: Node, least: int, most: int
) -> None:
    if waiting.status()["cstate"] == "StandAlone":
        waiting.connect()
    with pretended_peer(waiting) as data:
        data.sendall(features(least, most))
        says_in_status_and_log(
            waiting,
            f"no protocol version in common: expected one of 100 to 101 (ours), found {least} to "
            f"{most} (the peer's)",
        )
        stays_alone(waiting)
        data.settimeout(5)
        own = data.recv(80)
        assert struct.unpack_from(">IHHI", own)[0:4] == (H80_MAGIC, 0xFFFE, 72, 100)
    waiting.connect()


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a DRBD peer"),
        (bytes(64), "not a DRBD peer"),
        (INITIAL_DATA + b"\xff" * 4096, "expected magic 0x83740267 (h80), found 0xffffffff"),
        (
            INITIAL_DATA + struct.pack(">IHH", H80_MAGIC, 0xFFFE, 0xFFFF) + bytes(0xFFFF),
            "P_CONNECTION_FEATURES: expected 72 bytes, found a length of 65535",
        ),
        (
            INITIAL_DATA
            + features(86, 101)
            + struct.pack(">IHHII", H100_MAGIC, 0, 0, 0x7FFFFFFF, 0),
            "P_DATA: expected 24 to 1048664 bytes, found a length of 2147483647",
        ),
        (
            INITIAL_DATA
            + features(86, 101)
            + struct.pack(">IHHII", H100_MAGIC, 0, Command.DATA, 24, 0)
            + bytes(24),
            "expected PROTOCOL as first packet",
        ),
    ],
)
def test_garbage_ends_the_connection_with_its_reason_and_nothing_else(
    waiting: Node, sent: bytes, says: str
) -> None:
    pid, before = waiting.pid(), digest(waiting.backing())
    with pretended_peer(waiting, sent):
        eventually(f"'{says}' in the log", lambda: says in waiting.log(), waiting)
    assert waiting.status()["cstate"] == "WFConnection"
    assert (waiting.pid(), digest(waiting.backing())) == (pid, before)
    assert "Traceback" not in waiting.log()


def test_many_silent_connections_neither_fill_the_daemon_nor_keep_the_peer_out() -> None:
    with small() as pair, ExitStack() as stack:
        pair.alice.up()
        where = address(pair, pair.alice)
        descriptors = f"/proc/{pair.alice.pid()}/fd"
        before = len(os.listdir(descriptors))
        for _ in range(100):
            stack.enter_context(socket.create_connection(where, 5))
        pair.bob.up()
        pair.alice.wait(cstate="Connected")
        eventually(
            "few descriptors", lambda: len(os.listdir(descriptors)) < before + 10, pair.alice
        )


def test_garbage_while_connected_does_not_disturb_the_connection() -> None:
    with small() as pair:
        up_both(pair)
        pair.alice.wait(cstate="Connected")
        pair.alice.primary(force=True)
        pair.alice.wait(dstate="UpToDate/UpToDate")
        for sent in (INITIAL_DATA + b"\xff" * 100, INITIAL_META, b"x" * 5, os.urandom(5000)):
            with pretended_peer(pair.alice, sent), pretended_peer(pair.bob, sent):
                pair.alice.write(0, b"z" * 4096)
        time.sleep(0.5)
        assert pair.alice.words() == {
            "cstate": "Connected",
            "dstate": "UpToDate/UpToDate",
            "role": "Primary/Secondary",
        }
        assert "connection ended" not in pair.alice.log()
