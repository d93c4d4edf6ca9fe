"""Options that a kernel's administrator changes while the nodes are connected."""

from __future__ import annotations

import pytest

from protocol.errors import WireError
from protocol.packets import Command, Data, ProtocolParams, SyncParam
from protocol.states import Conn
from replicator.engine.settings import NetSettings
from tests.simulation.pair import Node, Pair
from tests.simulation.test_kernel_peer import hear

A, B, C = 1, 2, 3
DISCARD_LOCAL, DISCARD_REMOTE, DISCARD_SECONDARY = 5, 6, 8


def change(pair: Pair, packet: ProtocolParams) -> None:
    """alice has changed it, and says so to bob."""
    hear(pair.bob, Command.PROTOCOL_UPDATE, packet)


def says(pair: Pair, text: str) -> bool:
    return any(text in line for line in pair.lines)


def answered_without_peer(node: Node) -> bool:
    """Whether a write completes although nothing comes from the peer any more."""
    other = node.pair.bob if node is node.pair.alice else node.pair.alice
    other.clock.alive = False
    done: list[int] = []
    node.volume().write(0, b"a" * 512, False, done.append)
    node.pair.run(0.1)
    return done == [0]


@pytest.mark.parametrize(("code", "alone"), [(A, True), (C, False)])
def test_a_changed_protocol_is_that_of_the_next_write(code: int, alone: bool) -> None:
    pair = Pair(net=NetSettings(protocol="C" if code == A else "A"))
    pair.up_synced()
    pair.alice.secondary()
    pair.bob.primary()
    change(pair, ProtocolParams(code))
    assert pair.bob.r.snapshot().protocol == "_ABC"[code]
    assert answered_without_peer(pair.bob) is alone


def test_a_change_is_logged_with_the_advice_to_configure_it() -> None:
    pair = Pair()
    pair.up_synced()
    change(pair, ProtocolParams(B, after_sb_1p=DISCARD_SECONDARY))
    assert says(pair, "the peer has changed protocol from C to B")
    assert says(pair, "after-sb-1pri from disconnect to discard-secondary")
    assert says(pair, "change its configuration, too")


def test_what_is_local_to_the_peer_is_remote_here() -> None:
    pair = Pair()
    pair.up_synced()
    change(pair, ProtocolParams(C, after_sb_0p=DISCARD_LOCAL))
    assert pair.bob.r.settings.net.after_sb_0pri == "discard-remote"
    change(pair, ProtocolParams(C, after_sb_0p=DISCARD_REMOTE))
    assert pair.bob.r.settings.net.after_sb_0pri == "discard-local"


def test_nodes_that_changed_together_find_each_other_again() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.r.settings.net.protocol = "A"
    change(pair, ProtocolParams(A))
    pair.network.break_all()
    pair.run_until(lambda: not pair.alice.is_(Conn.Connected))
    pair.settle()


def test_digests_of_the_peer_are_checked_from_then_on() -> None:
    pair = Pair()
    pair.up_synced()
    change(pair, ProtocolParams(C, integrity_alg="sha1"))
    pair.alice.r.replication._integrity = "sha1"
    pair.alice.write(8192, b"with a digest..." * 256)
    assert pair.bob.data()[8192:12288] == b"with a digest..." * 256
    assert says(pair, "these nodes will not connect again")
    with pytest.raises(WireError, match="sha1 digest does not match"):
        hear(pair.bob, Command.DATA, Data(0, 1, 1, 0, b"\0" * 20, b"x" * 512))


def test_an_unknown_digest_ends_the_connection_with_the_reason() -> None:
    pair = Pair()
    pair.up_synced()
    change(pair, ProtocolParams(C, integrity_alg="crc32"))
    assert pair.bob.is_(Conn.StandAlone)
    assert "data-integrity-alg to crc32, which is not known here" in pair.bob.r.last_error


def test_a_verify_alg_that_is_set_later_makes_verify_possible() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.r.settings.net.verify_alg = "sha1"
    hear(pair.bob, Command.SYNC_PARAM89, SyncParam(250, verify_alg="sha1"))
    pair.bob.do(lambda done: pair.bob.r.verify(0, None, None, done))
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    assert says(pair, "online verify done")


def test_a_verify_alg_that_is_not_known_here_is_said_and_refused() -> None:
    pair = Pair(net=NetSettings(verify_alg="sha1"))
    pair.up_synced()
    hear(pair.bob, Command.SYNC_PARAM89, SyncParam(250, verify_alg="crc32"))
    assert says(pair, "the peer has set verify-alg to crc32, not known here")
    assert pair.bob.synced
