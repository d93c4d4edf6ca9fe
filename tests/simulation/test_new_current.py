"""new-current-uuid: the first synchronisation skipped, a disk carried there by hand, and refusals."""

from __future__ import annotations

from errno import EIO

import pytest

from protocol.states import Conn, Disk
from replicator.errors import NoDiskError, ReplicatorError, StateRefused
from tests.simulation.pair import Node, Pair

BLOCK = 4096


def fresh_pair() -> Pair:
    """Two disks just created, connected, both Inconsistent."""
    pair = Pair()
    for node in (pair.alice, pair.bob):
        node.up()
    pair.run_until(lambda: all(node.is_(Conn.Connected) for node in (pair.alice, pair.bob)))
    return pair


def new_current_uuid(node: Node, clear_bitmap: bool = True) -> None:
    node.do(lambda done: node.r.new_current_uuid(0, clear_bitmap, done))


def out_of_sync(node: Node) -> int:
    bitmap = node.volume().bitmap
    assert bitmap is not None
    return bitmap.weight


def test_two_fresh_disks_are_declared_equal_without_copying() -> None:
    pair = fresh_pair()
    new_current_uuid(pair.bob)
    pair.run(1)
    for node in (pair.alice, pair.bob):
        assert node.is_(Conn.Connected, Disk.UpToDate, Disk.UpToDate)
        assert out_of_sync(node) == 0
        assert node.volume().store.uuids.bitmap == 0
    assert pair.alice.volume().store.uuids.current == pair.bob.volume().store.uuids.current
    assert not any("SyncSource" in line for line in pair.lines)
    pair.alice.primary()
    pair.alice.write(0, b"x" * BLOCK)
    pair.alice.flush()
    assert pair.bob.data()[:BLOCK] == b"x" * BLOCK


def test_the_declaration_survives_a_restart_of_both() -> None:
    pair = fresh_pair()
    new_current_uuid(pair.alice)
    pair.run(1)
    for node in (pair.alice, pair.bob):
        node.power_loss()
    for node in (pair.alice, pair.bob):
        node.up()
    pair.settle()
    assert all(
        node.is_(Conn.Connected, Disk.UpToDate, Disk.UpToDate) for node in (pair.alice, pair.bob)
    )
    assert not any("SyncSource" in line for line in pair.lines)


def test_a_peer_that_has_not_heard_of_it_is_synchronised_in_full() -> None:
    pair = fresh_pair()
    pair.bob.media[0].current[0:BLOCK] = b"!" * BLOCK
    answers: list[ReplicatorError | None] = []
    pair.alice.r.new_current_uuid(0, True, answers.append)
    pair.bob.power_loss()
    pair.run_until(lambda: bool(answers))
    assert answers == [None]
    assert pair.alice.is_(disk=Disk.UpToDate)
    pair.bob.up()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("clear_bitmap", [True, False])
def test_once_a_generation_exists_it_is_refused_while_connected(clear_bitmap: bool) -> None:
    pair = Pair()
    pair.up_synced()
    before = str(pair.alice.volume().store.uuids)
    with pytest.raises(StateRefused, match="not both just created") as refused:
        new_current_uuid(pair.alice, clear_bitmap)
    assert "replicator disconnect r0" in refused.value.hint
    assert str(pair.alice.volume().store.uuids) == before
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.UpToDate)


def test_fresh_and_connected_it_must_be_said_that_the_disks_are_equal() -> None:
    pair = fresh_pair()
    with pytest.raises(StateRefused) as refused:
        new_current_uuid(pair.alice, clear_bitmap=False)
    assert "--clear-bitmap r0/0" in refused.value.hint
    assert pair.alice.is_(disk=Disk.Inconsistent)


def test_alone_a_generation_begins_whose_changes_are_copied_later() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.disconnect()
    before = pair.alice.volume().store.uuids.current
    new_current_uuid(pair.alice, clear_bitmap=False)
    uuids = pair.alice.volume().store.uuids
    assert uuids.current != before
    assert uuids.bitmap & ~1 == before & ~1
    pair.alice.write(BLOCK, b"y" * BLOCK)
    pair.alice.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_alone_with_clear_bitmap_what_was_carried_there_is_not_copied_again() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.disconnect()
    pair.alice.write(BLOCK, b"z" * BLOCK)
    pair.alice.flush()
    assert out_of_sync(pair.alice) == 1
    pair.alice.secondary()
    new_current_uuid(pair.alice)
    assert out_of_sync(pair.alice) == 0


def test_when_the_cleared_bitmap_cannot_be_written_nothing_counts_as_equal() -> None:
    pair = Pair()
    pair.up_synced()
    pair.alice.disconnect()
    pair.alice.write(BLOCK, b"z" * BLOCK)
    pair.alice.flush()
    pair.alice.secondary()
    end = pair.alice.data_size()
    pair.alice.disks[0].fails = lambda kind, offset, _length: (
        EIO if kind == "write" and offset >= end else 0
    )
    with pytest.raises(NoDiskError, match="given up"):
        new_current_uuid(pair.alice)
    pair.run(10)
    assert pair.alice.is_(disk=Disk.Diskless)
    pair.alice.disks[0].fails = None
    pair.alice.do(lambda done: pair.alice.attach(0, done))
    pair.alice.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_while_it_looks_for_its_peer_it_is_refused() -> None:
    pair = Pair()
    pair.alice.up()
    with pytest.raises(StateRefused, match="StandAlone"):
        new_current_uuid(pair.alice)


def test_without_a_disk_it_is_refused() -> None:
    pair = Pair()
    pair.up_synced()
    pair.bob.do(lambda done: pair.bob.r.detach(0, True, done))
    with pytest.raises(NoDiskError, match="Diskless"):
        new_current_uuid(pair.bob)
