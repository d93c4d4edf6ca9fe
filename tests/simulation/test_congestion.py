"""on-congestion: a peer that cannot keep up, and what becomes of the two copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import NetSettings
from tests.simulation.pair import MIB, Pair

FILL = 64 * 1024
BLOCK = 4096


def slow_peer(policy: str = "pull-ahead", seed: int = 0, **net: object) -> Pair:
    """In sync under protocol A; then bob's disk becomes slow."""
    settings = {"protocol": "A", "on_congestion": policy, "congestion_fill": FILL, **net}
    pair = Pair(seed, net=NetSettings(**settings))  # type: ignore[arg-type]
    pair.up_synced()
    pair.bob.disks[0].slow = lambda _kind, _offset, _length: 1.0
    return pair


def write_blocks(pair: Pair, count: int, start: int = 0) -> None:
    """One after the other, each answered before the next."""
    for number in range(start, start + count):
        pair.alice.write(number * BLOCK, bytes([number % 255 + 1]) * BLOCK)


def speed_up(pair: Pair) -> None:
    pair.bob.disks[0].slow = None


def ahead(pair: Pair) -> None:
    write_blocks(pair, 100)
    pair.run_until(lambda: pair.bob.is_(Conn.Behind))
    assert pair.alice.is_(Conn.Ahead, Disk.UpToDate, Disk.Consistent)
    assert pair.bob.is_(disk=Disk.Outdated)


@pytest.mark.parametrize("seed", range(6))
def test_a_primary_pulls_ahead_and_its_peer_catches_up(seed: int) -> None:
    pair = slow_peer(seed=seed)
    before = pair.clock.now()
    ahead(pair)
    assert pair.clock.now() - before < 2, "the application did not wait for the peer's disk"
    assert "catch up" in pair.alice.r.snapshot().volumes[0].waiting_for
    sent = pair.alice.volume().counters.sent
    write_blocks(pair, 50, start=200)
    assert pair.alice.volume().counters.sent == sent, "no data while it is ahead"
    speed_up(pair)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.volume().bitmap.weight == pair.bob.volume().bitmap.weight == 0
    write_blocks(pair, 10, start=300)
    pair.run(5)
    assert pair.alice.data() == pair.bob.data()


def test_writes_during_the_catching_up_reach_the_peer_too() -> None:
    pair = slow_peer()
    ahead(pair)
    speed_up(pair)
    pair.run_until(lambda: pair.alice.is_(Conn.SyncSource))
    write_blocks(pair, 10, start=50)
    pair.settle()
    pair.run(5)
    assert pair.alice.data() == pair.bob.data()


def cut(pair: Pair) -> None:
    pair.network.break_all()


def power_loss(pair: Pair) -> None:
    pair.alice.flush()
    pair.alice.power_loss()
    pair.run(1)
    pair.alice.up()


def power_loss_of_the_peer(pair: Pair) -> None:
    pair.bob.power_loss()
    pair.run(1)
    pair.bob.up()


def demote_and_restart(pair: Pair) -> None:
    pair.alice.secondary()
    pair.alice.kill()
    pair.run(1)
    pair.alice.up()


def disconnect(pair: Pair) -> None:
    pair.alice.disconnect()
    pair.run(1)
    pair.alice.connect()


@pytest.mark.parametrize(
    "what", [cut, power_loss, power_loss_of_the_peer, demote_and_restart, disconnect]
)
def test_what_was_left_out_is_copied_whatever_ends_the_connection(
    what: Callable[[Pair], None],
) -> None:
    pair = slow_peer()
    ahead(pair)
    kept = pair.alice.data()
    what(pair)
    speed_up(pair)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.data()[: 100 * BLOCK] == kept[: 100 * BLOCK]


def test_a_peer_that_is_behind_cannot_take_over() -> None:
    pair = slow_peer()
    ahead(pair)
    pair.run(3)
    pair.alice.power_loss()
    pair.bob.kill()
    pair.bob.up(connect=False)
    assert pair.bob.is_(disk=Disk.Outdated, role=Role.Secondary)


def test_disconnect_gives_the_connection_up() -> None:
    pair = slow_peer("disconnect")
    write_blocks(pair, 100)
    assert pair.alice.is_(Conn.StandAlone)
    assert "congestion" in pair.alice.r.last_error
    speed_up(pair)
    pair.alice.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("net", [{"policy": "block"}, {"congestion_fill": 0}])
def test_without_the_policy_or_the_threshold_nothing_changes(net: dict[str, object]) -> None:
    pair = slow_peer(**net)  # type: ignore[arg-type]
    write_blocks(pair, 100)
    assert pair.alice.is_(Conn.Connected)


def test_a_peer_that_keeps_up_is_not_left_behind() -> None:
    """Also if nobody flushes: what it has had for long does not count as in flight."""
    pair = slow_peer()
    speed_up(pair)
    for _ in range(200):
        pair.alice.write(0, b"k" * BLOCK)
        pair.run(0.005)
        assert pair.alice.is_(Conn.Connected)


def test_extents_in_use_count_as_well() -> None:
    big = Pair(
        size=40 * MIB,
        net=NetSettings(protocol="A", on_congestion="pull-ahead", congestion_extents=4),
    )
    big.up_synced()
    big.bob.disks[0].slow = lambda _kind, _offset, _length: 1.0
    for extent in range(6):
        big.alice.write(extent * 4 * MIB, b"e" * BLOCK)
    assert big.alice.is_(Conn.Ahead)
    big.bob.disks[0].slow = None
    big.settle()
    assert big.alice.data() == big.bob.data()
