"""The story of a pair, told with the real engine on both sides of a pretended world."""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.settings import NetSettings
from replicator.errors import NoUsableDataError, StateRefused
from tests.simulation.pair import MIB, Pair


def test_two_fresh_nodes_connect_and_both_are_inconsistent():
    pair = Pair()
    pair.up()
    assert pair.alice.is_(disk=Disk.Inconsistent, pdsk=Disk.Inconsistent, role=Role.Secondary)
    assert pair.bob.is_(disk=Disk.Inconsistent, pdsk=Disk.Inconsistent)


def test_promoting_an_inconsistent_disk_needs_force():
    pair = Pair()
    pair.up()
    with pytest.raises(NoUsableDataError):
        pair.alice.primary()


def test_the_first_forced_promotion_starts_a_full_sync_that_makes_both_equal():
    pair = Pair()
    for index, node in enumerate((pair.alice, pair.bob)):
        node.media[0].current[:MIB] = bytes([index + 1]) * MIB
        node.media[0].stable[:MIB] = bytes([index + 1]) * MIB
    pair.up_synced()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.data()[:MIB] == b"\x01" * MIB
    assert pair.alice.volume().bitmap.weight == 0
    assert pair.bob.volume().bitmap.weight == 0


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_writes_reach_the_peer(protocol):
    pair = Pair(net=NetSettings(protocol=protocol))
    pair.up_synced()
    pair.alice.write(8192, b"x" * 4096)
    pair.alice.write(MIB, b"y" * (3 * MIB // 2))
    pair.alice.flush()
    pair.run(2)
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.data()[8192:12288] == b"x" * 4096


def test_two_writers_are_refused():
    pair = Pair()
    pair.up_synced()
    with pytest.raises(StateRefused):
        pair.bob.primary()


def test_roles_can_be_switched():
    pair = Pair()
    pair.up_synced()
    pair.alice.secondary()
    pair.bob.primary()
    pair.bob.write(0, b"b" * 4096)
    pair.bob.flush()
    assert pair.alice.data()[:4096] == b"b" * 4096


def test_after_an_outage_only_what_was_written_is_resynchronised():
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.alice.write(MIB, b"z" * 8192)
    pair.alice.flush()
    pair.bob.up()
    before = pair.bob.volume().counters.received
    pair.settle()
    assert pair.bob.volume().counters.received - before == 16
    assert pair.alice.data() == pair.bob.data()


def test_after_the_primary_dies_the_other_takes_over_and_the_first_becomes_target():
    pair = Pair()
    pair.up_synced()
    pair.alice.write(0, b"1" * 4096)
    pair.alice.flush()
    pair.alice.kill()
    pair.run(1)
    pair.bob.primary()
    assert pair.bob.read(0, 4096) == b"1" * 4096
    pair.bob.write(4096, b"2" * 4096)
    pair.bob.flush()
    pair.alice.up()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.alice.data()[4096:8192] == b"2" * 4096


def test_a_split_brain_is_seen_by_both_and_nothing_is_overwritten():
    pair = Pair()
    pair.up_synced()
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.alice.write(0, b"a" * 4096)
    pair.run(1)
    pair.bob.primary()
    pair.bob.write(0, b"b" * 4096)
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))
    assert pair.alice.data()[:4096] == b"a" * 4096
    assert pair.bob.data()[:4096] == b"b" * 4096
    assert "split-brain" in pair.alice.handlers.calls
    assert "split-brain" in pair.bob.handlers.calls


def test_discard_my_data_heals_a_split_brain():
    pair = Pair()
    test = pair.up_synced
    test()
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.alice.write(0, b"a" * 4096)
    pair.run(1)
    pair.bob.primary()
    pair.bob.write(8192, b"b" * 4096)
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))
    pair.bob.secondary()
    pair.bob.connect(discard_my_data=True)
    pair.alice.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.data()[:4096] == b"a" * 4096
    assert pair.bob.data()[8192:12288] == bytes(4096)


def test_a_missed_end_of_resync_never_turns_a_later_split_brain_into_a_silent_overwrite():
    """DRBD 8.4's own rules lose the source's writes here: its generation is the target's already."""
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.alice.write(0, b"1" * 4096)
    pair.bob.up()
    # The target finishes, but what it says never reaches the source.
    pair.run_until(lambda: pair.bob.is_(Conn.SyncTarget))
    pair.run_until(lambda: pair.alice.volume().bitmap.weight == 0)
    pair.network.cut = {"bob"}
    pair.run_until(lambda: pair.bob.is_(Conn.Connected, Disk.UpToDate), 5)
    pair.network.break_all()
    pair.network.cut = {"alice", "bob"}
    pair.run(1)
    pair.alice.write(8192, b"a" * 4096)
    pair.alice.flush()
    pair.bob.primary()
    pair.bob.write(16384, b"b" * 4096)
    pair.bob.flush()
    pair.bob.secondary()
    pair.network.cut = set()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone) and pair.bob.is_(Conn.StandAlone))
    assert pair.alice.data()[8192:12288] == b"a" * 4096
    assert pair.bob.data()[16384:20480] == b"b" * 4096


def test_what_a_flush_promised_is_on_the_peers_stable_storage():
    pair = Pair()
    pair.up_synced()
    for number in range(1, 20):
        pair.alice.write(number * 4096, bytes([number]) * 4096)
    pair.alice.flush()
    pair.alice.kill()
    pair.bob.power_loss()
    pair.bob.up()
    pair.run(1)
    pair.bob.primary()
    for number in range(1, 20):
        assert pair.bob.read(number * 4096, 4096) == bytes([number]) * 4096
