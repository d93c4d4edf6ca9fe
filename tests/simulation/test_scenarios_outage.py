"""Outages an administrator knows: one node after the other goes and returns, alone or together."""

from __future__ import annotations

import random

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import DiskSettings
from tests.simulation.pair import MIB, Pair, differing_blocks

BLOCK = 4096
EXTENT = 4 * MIB


def copied(pair: Pair, since: int = 0) -> list[int]:
    """KiB of each resync since that line of the log."""
    words = "resync as source: "
    return [int(line.split(words)[1].split(" ")[0]) for line in pair.lines[since:] if words in line]


def equal(pair: Pair) -> bool:
    return not differing_blocks(pair.alice, pair.bob)


def test_a_crashed_primary_gets_back_what_was_active_and_no_more():
    pair = Pair(size=6 * EXTENT)
    pair.up_synced()
    for extent in (0, 3):
        pair.alice.write(extent * EXTENT, b"x" * BLOCK)
    pair.alice.flush()
    pair.alice.power_loss()
    pair.run(1)
    lines = len(pair.lines)
    pair.alice.up()
    pair.settle()
    assert copied(pair, lines) == [2 * EXTENT // 1024]
    assert equal(pair)


def test_a_clean_stop_costs_no_resync():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"x" * BLOCK)
    pair.alice.secondary()
    pair.run(5)
    lines = len(pair.lines)
    for node in (pair.alice, pair.bob):
        node.kill()
    pair.bob.up()
    pair.alice.up()
    pair.settle()
    assert copied(pair, lines) == []


@pytest.mark.parametrize("first", ["alice", "bob"])
@pytest.mark.parametrize("died_first", ["alice", "bob"])
def test_after_a_power_failure_of_both_either_may_start_first(first, died_first):
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"f" * BLOCK)
    pair.alice.flush()
    pair.alice.volume().write(BLOCK, b"?" * BLOCK, False, lambda _errno: None)
    pair.run(0.0005)
    nodes = {"alice": pair.alice, "bob": pair.bob}
    for name in (died_first, *(nodes.keys() - {died_first})):
        nodes[name].power_loss()
    for name in (first, *(nodes.keys() - {first})):
        nodes[name].up()
    pair.settle()
    assert equal(pair)
    assert pair.alice.data()[:BLOCK] == b"f" * BLOCK
    assert pair.alice.volume().bitmap.weight == 0


def test_one_node_alone_then_the_other_joins_and_has_everything():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"1" * BLOCK)
    pair.alice.secondary()
    pair.run(2)
    for node in (pair.alice, pair.bob):
        node.kill()
    pair.bob.up()
    pair.run(1)
    pair.bob.primary()
    pair.bob.write(BLOCK, b"2" * BLOCK)
    lines = len(pair.lines)
    pair.alice.up()
    pair.settle()
    assert equal(pair)
    assert pair.alice.data()[: 2 * BLOCK] == b"1" * BLOCK + b"2" * BLOCK
    assert copied(pair, lines) == [4]


def test_each_started_alone_is_a_split_brain_and_neither_is_overwritten():
    pair = Pair()
    pair.up_synced()
    pair.alice.secondary()
    pair.run(2)
    for node, content in ((pair.alice, b"a"), (pair.bob, b"b")):
        pair.alice.kill()
        pair.bob.kill()
        node.up()
        pair.run(1)
        node.primary()
        node.write(0, content * BLOCK)
        node.secondary()
        pair.run(2)
    pair.alice.up()
    pair.run(5)
    assert pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone)
    assert pair.alice.data()[:BLOCK] == b"a" * BLOCK
    assert pair.bob.data()[:BLOCK] == b"b" * BLOCK


def test_split_brains_can_be_healed_again_and_again():
    pair = Pair()
    pair.up_synced()
    for turn in range(5):
        survivor, victim = (pair.alice, pair.bob) if turn % 2 else (pair.bob, pair.alice)
        pair.network.cut = {"alice", "bob"}
        pair.run(20)
        for node in (pair.alice, pair.bob):
            if node.r.role is not Role.Primary:
                node.primary()
            node.write(turn * BLOCK, node.name.encode()[:1] * BLOCK)
        pair.network.cut = set()
        pair.network.break_all()
        pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))
        victim.secondary()
        victim.connect(discard_my_data=True)
        survivor.connect()
        pair.settle()
        assert equal(pair)
        wanted = survivor.name.encode()[:1] * BLOCK
        assert victim.data()[turn * BLOCK : (turn + 1) * BLOCK] == wanted


@pytest.mark.parametrize("generations", [1, 2, 5])
def test_a_disk_restored_from_an_older_image_is_never_taken_for_current(generations):
    """Its generation is one that the other node knows as past, or does not know any more."""
    pair = Pair()
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.kill()
    image = dict(bob.media[0].pages)
    for turn in range(generations):
        pair.run(1)
        alice.write(turn * BLOCK, b"%d" % turn * BLOCK)
        bob.up()
        pair.settle()
        alice.write((turn + 8) * BLOCK, b"%d" % turn * BLOCK)
        alice.flush()
        bob.kill()
    pair.run(1)
    before = alice.data()
    bob.media[0].pages = image
    bob.up()
    pair.run(20)
    assert alice.data() == before
    if alice.is_(Conn.StandAlone):
        assert generations > 1, "the generation is still in its history"
    else:
        assert alice.synced and equal(pair)
        assert "SyncTarget" not in "".join(line for line in pair.lines if " alice " in line)


def test_a_restored_image_that_is_promoted_alone_is_a_split_brain():
    pair = Pair()
    pair.up_synced()
    image = dict(pair.bob.media[0].pages)
    pair.bob.kill()
    pair.run(1)
    pair.alice.write(0, b"n" * BLOCK)
    pair.network.cut = {"alice", "bob"}
    pair.bob.media[0].pages = image
    pair.bob.up()
    pair.bob.primary()
    pair.bob.write(BLOCK, b"o" * BLOCK)
    pair.network.cut = set()
    pair.run(30)
    assert pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone)
    assert pair.alice.data()[:BLOCK] == b"n" * BLOCK


def test_an_error_on_the_secondarys_disk_costs_later_only_what_it_missed():
    pair = Pair(size=6 * EXTENT)
    pair.up_synced()
    alice, bob = pair.alice, pair.bob
    bob.disks[0].fails = lambda kind, offset, _l: 5 if kind == "write" and offset < MIB else 0
    alice.write(0, b"1" * BLOCK)
    pair.run(1)
    assert bob.is_(disk=Disk.Diskless) and alice.is_(Conn.Connected, Disk.UpToDate)
    alice.write(2 * MIB, b"2" * 8 * BLOCK)
    lines = len(pair.lines)
    bob.do(lambda done: bob.attach(0, done))
    pair.settle()
    assert equal(pair)
    assert sum(copied(pair, lines)) == 9 * 4


@pytest.mark.parametrize("external_peer_delay", [0.0, 0.004])
def test_a_tiny_activity_log_never_keeps_a_write_waiting_for_long(external_peer_delay):
    """Seven extents in the log, random writes to sixteen: each has to wait for others to leave."""
    pair = Pair(size=16 * EXTENT, disk=DiskSettings(al_extents=7, c_max_rate=0))
    pair.up_synced()
    pair.network.base_latency += external_peer_delay
    rng = random.Random(7)
    started: dict[int, float] = {}
    took: list[float] = []

    def submit(number: int) -> None:
        def done(errno: int) -> None:
            assert not errno
            took.append(pair.clock.time - started.pop(number))
            if len(took) + len(started) < 600:
                submit(number + 32)

        started[number] = pair.clock.time
        block = rng.randrange(pair.alice.data_size() // BLOCK)
        pair.alice.volume().write(block * BLOCK, b"w" * BLOCK, False, done)

    for number in range(32):
        submit(number)
    pair.run_until(lambda: len(took) >= 600, 120)
    assert max(took) < 0.5
    pair.run(2)
    assert equal(pair)
