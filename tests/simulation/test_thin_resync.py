"""Zeroes travel as holes and stay holes, with replicators and with kernels that agreed to it."""

from __future__ import annotations

import pytest

from protocol import features
from protocol.packets import SYNCER_ID, BlockDesc, BlockRequest, Command, Uuids, decode
from protocol.states import Conn, Disk
from replicator.engine.settings import DiskSettings, NetSettings
from tests.simulation.pair import MIB, Pair
from tests.simulation.scripted import FLAGS, ScriptedPeer, synced_alice

THIN = FLAGS | features.THIN_RESYNC


def sparse_pair(size: int = 24 * MIB, **arguments: object) -> Pair:
    """alice's disk is empty but for 4 KiB at 3 MiB; bob's is full of something else."""
    pair = Pair(size=size, **arguments)  # type: ignore[arg-type]
    pair.alice.media[0].current[3 * MIB : 3 * MIB + 4096] = b"data" * 1024
    bob = pair.bob.media[0]
    bob.current[: 20 * MIB] = b"old!" * (5 * MIB)
    return pair


def sent_by_alice(pair: Pair) -> int:
    link = pair.alice.r.link
    assert link is not None
    return link.data.channel.queued


@pytest.mark.parametrize("tells_holes", [True, False])
def test_an_empty_disk_is_copied_without_transferring_its_zeroes(tells_holes: bool) -> None:
    pair = sparse_pair()
    pair.up()
    pair.alice.disks[0].tells_holes = tells_holes
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.bob.data() == pair.alice.data()
    assert sent_by_alice(pair) < 1.2 * MIB
    assert pair.bob.disks[0].unmapped > 22 * MIB


def test_zeroes_inside_of_a_transferred_range_become_holes_too() -> None:
    pair = sparse_pair()
    pair.up()
    pair.alice.primary(force=True)
    pair.settle()
    size = len(pair.bob.data())
    assert pair.bob.disks[0].unmapped == size - 65536


def test_a_granularity_keeps_smaller_holes_allocated() -> None:
    disk = DiskSettings(al_extents=67, c_max_rate=0, rs_discard_granularity=MIB)
    pair = sparse_pair(disk=disk)
    pair.up()
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.bob.data() == pair.alice.data()
    assert pair.bob.disks[0].unmapped == len(pair.bob.data()) // MIB * MIB - MIB


def test_a_disk_that_has_all_its_space_keeps_it() -> None:
    pair = sparse_pair()
    pair.up()
    pair.bob.disks[0].allocated = True
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.bob.data() == pair.alice.data()
    assert pair.bob.disks[0].unmapped == 0


def test_a_write_that_overtakes_the_zeroes_of_a_resync_is_not_lost() -> None:
    pair = sparse_pair()
    pair.up()
    pair.alice.primary(force=True)
    for number in range(60):
        pair.alice.write(number * 397 * 512, bytes([number + 1]) * 4096)
    pair.settle()
    assert pair.bob.data() == pair.alice.data()


def test_a_source_that_did_not_agree_is_asked_for_data_only() -> None:
    pair = Pair()
    uuids = synced_alice(pair)
    peer = ScriptedPeer(pair)
    ahead = Uuids(uuids.current + 0x1000, uuids.current, 0, 0)
    peer.connect(ahead, Disk.UpToDate)
    become_source(pair, peer)
    assert peer.count(Command.RS_DATA_REQUEST) > 0
    assert peer.count(Command.RS_THIN_REQ) == 0


def test_a_kernel_source_that_agreed_may_answer_that_a_range_is_deallocated() -> None:
    pair = Pair()
    pair.fill()
    uuids = synced_alice(pair)
    peer = ScriptedPeer(pair, flags=THIN)
    ahead = Uuids(uuids.current + 0x1000, uuids.current, 0, 0)
    peer.connect(ahead, Disk.UpToDate)
    become_source(pair, peer)
    request = peer.last(Command.RS_THIN_REQ)
    assert isinstance(request, BlockRequest)
    peer.send(Command.RS_DEALLOCATED, BlockDesc(request.sector, request.blksize))
    pair.run(0.1)
    ack = peer.last(Command.RS_WRITE_ACK)
    assert (ack.sector, ack.block_id, ack.blksize) == (request.sector, SYNCER_ID, request.blksize)  # type: ignore[union-attr]
    start = request.sector << 9
    assert not any(pair.alice.data()[start : start + request.blksize])


def become_source(pair: Pair, peer: ScriptedPeer) -> None:
    """alice has found that she needs what the peer has: one marked range, and the sync begins."""
    pair.run_until(lambda: pair.alice.is_(Conn.WFBitMapT), 5)
    peer.send_bitmap(range(256))
    pair.run_until(lambda: pair.alice.is_(Conn.WFSyncUUID), 5)
    peer.send_sync_uuid(0x1122334455667788)
    pair.run(0.1)


def target_of(pair: Pair, peer: ScriptedPeer, uuids: Uuids) -> None:
    """The peer has alice's former generation, and 256 blocks of alice's are marked."""
    bitmap = pair.alice.volume().bitmap
    assert bitmap is not None
    peer.connect(uuids, Disk.Inconsistent)
    pair.run_until(lambda: pair.alice.is_(Conn.WFBitMapS), 5)
    peer.send_bitmap(range(256))
    pair.run_until(lambda: pair.alice.is_(Conn.SyncSource), 5)
    pair.run(0.1)


def ask(pair: Pair, peer: ScriptedPeer, command: Command) -> None:
    peer.send(command, BlockRequest(0, SYNCER_ID, 65536))
    pair.run(0.1)


def test_a_kernel_target_that_asks_for_it_is_told_of_zeroes() -> None:
    pair = Pair()
    uuids = synced_alice(pair, primary=True)
    pair.alice.write(MIB, b"more" * 1024)
    peer = ScriptedPeer(pair, flags=THIN)
    target_of(pair, peer, uuids)
    ask(pair, peer, Command.RS_THIN_REQ)
    assert peer.last(Command.RS_DEALLOCATED) == BlockDesc(0, 65536)
    assert peer.count(Command.RS_DATA_REPLY) == 0


def test_a_target_that_asks_for_data_gets_data_even_if_all_of_it_is_zero() -> None:
    pair = Pair()
    uuids = synced_alice(pair, primary=True)
    pair.alice.write(MIB, b"more" * 1024)
    peer = ScriptedPeer(pair, flags=THIN)
    target_of(pair, peer, uuids)
    ask(pair, peer, Command.RS_DATA_REQUEST)
    assert peer.count(Command.RS_DEALLOCATED) == 0
    replies = [f for _l, f in peer.heard if f.command == Command.RS_DATA_REPLY]
    assert not any(decode(Command.RS_DATA_REPLY, replies[-1].payload).data)  # type: ignore[union-attr]


def test_a_thin_request_that_was_not_agreed_ends_the_connection() -> None:
    pair = Pair()
    uuids = synced_alice(pair, primary=True)
    pair.alice.write(MIB, b"more" * 1024)
    peer = ScriptedPeer(pair)
    target_of(pair, peer, uuids)
    ask(pair, peer, Command.RS_THIN_REQ)
    assert "THIN_RESYNC was not agreed upon" in pair.alice.r.last_error


@pytest.mark.parametrize("option", ["csums_alg", "data_integrity_alg", "verify_alg"])
def test_digests_that_only_a_replicator_knows_are_refused_to_a_kernel(option: str) -> None:
    pair = Pair(net=NetSettings(**{option: "xxh3-128"}))  # type: ignore[arg-type]
    pair.alice.up()
    peer = ScriptedPeer(pair)
    peer.data.channel.send(b"")
    try:
        peer.features()
    except AssertionError:
        pass
    pair.run(2)
    assert pair.alice.is_(Conn.StandAlone)
    name = option.replace("_", "-")
    assert f"{name} is xxh3-128 here, which only a replicator knows" in pair.alice.r.last_error


def test_a_csums_resync_with_xxh3_copies_only_what_differs() -> None:
    pair = Pair(net=NetSettings(csums_alg="xxh3-128"))
    pair.fill()
    pair.bob.media[0].put(0, pair.alice.data())
    pair.bob.media[0].current[MIB : MIB + 4096] = b"?" * 4096
    pair.up()
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.alice.data() == pair.bob.data()
    assert pair.bob.volume().counters.received >> 1 <= 1024
