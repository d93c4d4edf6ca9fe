"""What a kernel's DRBD 8.4 says and a replicator never does: told to one node of a pair by hand."""

from __future__ import annotations

import pytest

from protocol.packets import BlockDesc, Command, Sizes, StateReport, SyncUuid, encode
from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.settings import NetSettings
from tests.simulation.pair import MIB, Node, Pair

HEADER_BYTES = 16
AHEAD = StateWord(
    role=Role.Primary,
    peer=Role.Secondary,
    conn=Conn.Ahead,
    disk=Disk.UpToDate,
    pdsk=Disk.Consistent,
)


def hear(node: Node, command: Command, packet: object) -> None:
    """The node gets a packet as if its peer had sent it."""
    link = node.r.link
    assert link is not None
    frame = encode(0, command, packet, wsame=link.with_wsame)  # type: ignore[arg-type]
    node.r.packet(link, command, 0, frame[HEADER_BYTES:])


def marked_blocks(node: Node) -> int:
    bitmap = node.volume().bitmap
    assert bitmap is not None
    return bitmap.weight


def test_while_the_peer_is_ahead_this_copy_does_not_count_as_up_to_date() -> None:
    pair = Pair()
    pair.up_synced()
    hear(pair.bob, Command.STATE, StateReport(AHEAD.pack()))
    assert pair.bob.is_(conn=Conn.Behind, disk=Disk.Outdated, pdsk=Disk.UpToDate)


def test_what_the_peer_wrote_while_ahead_is_copied_when_it_says_so_without_bitmaps() -> None:
    pair = Pair()
    pair.up_synced()
    # A write that only the news is sent of.
    pair.alice.media[0].current[8192:16384] = b"new!" * 2048
    hear(pair.bob, Command.STATE, StateReport(AHEAD.pack()))
    hear(pair.bob, Command.OUT_OF_SYNC, BlockDesc(16, 8192))
    assert marked_blocks(pair.bob) == 2
    hear(pair.bob, Command.SYNC_UUID, SyncUuid(0x1122334455667788))
    pair.run_until(lambda: pair.bob.is_(conn=Conn.SyncTarget, disk=Disk.Inconsistent))
    pair.run_until(lambda: pair.bob.synced)
    assert pair.bob.data() == pair.alice.data()
    assert marked_blocks(pair.bob) == 0


def test_a_refused_kernel_is_left_the_time_to_read_why() -> None:
    pair = Pair()
    pair.up_synced()
    assert pair.bob.r.link is not None
    pair.bob.r.link.peer_extension = 0
    pair.bob.r.refuse_peer("for this test")
    pair.run(0.7)
    assert pair.bob.is_(conn=Conn.StandAlone)
    assert pair.alice.is_(conn=Conn.Connected)
    pair.run(1)
    assert pair.alice.is_(conn=Conn.WFConnection)


def grown_pair(flags: int) -> Pair:
    """alice, Primary, has just raised `size` from 2 to 3 MiB and told bob as a kernel tells it."""
    pair = Pair()
    for node in (pair.alice, pair.bob):
        node.media[0].current[: 4 * MIB - 65536] = node.name[0].encode() * (4 * MIB - 65536)
        pair.disk.size = 2 * MIB if node is pair.alice else 0
        node.up()
    pair.run_until(lambda: pair.alice.is_(Conn.Connected) and pair.bob.is_(Conn.Connected))
    pair.alice.primary(force=True)
    pair.settle()
    assert pair.bob.volume().size_sectors == 4096
    pair.alice.volume().exchange.user_size = 6144
    capacity = pair.alice.volume().own_capacity
    hear(pair.bob, Command.SIZES, Sizes(capacity, 6144, 0, dds_flags=flags))
    return pair


def test_a_size_of_zero_is_answered_and_the_part_that_grew_is_copied() -> None:
    pair = grown_pair(flags=0)
    pair.run_until(lambda: pair.bob.is_(conn=Conn.SyncTarget))
    pair.settle()
    assert pair.bob.volume().size_sectors == pair.alice.volume().size_sectors == 6144
    assert pair.bob.data()[: 3 * MIB] == pair.alice.data()[: 3 * MIB]
    assert marked_blocks(pair.alice) == marked_blocks(pair.bob) == 0


def test_the_size_that_the_peer_has_set_is_what_this_node_reports_from_then_on() -> None:
    pair = grown_pair(flags=0)
    assert pair.bob.volume().exchange.user_size == 6144


def test_a_secondary_that_grows_first_is_copied_to_all_the_same() -> None:
    pair = grown_pair(flags=0)
    pair.settle()
    pair.bob.volume().exchange.user_size = 0
    capacity = pair.bob.volume().own_capacity
    hear(pair.alice, Command.SIZES, Sizes(capacity, 0, 0))
    pair.run_until(lambda: pair.alice.is_(conn=Conn.SyncSource))
    pair.settle()
    assert pair.bob.data() == pair.alice.data()


def test_a_part_that_is_vouched_for_is_not_copied() -> None:
    pair = grown_pair(flags=2)
    pair.run(3)
    assert pair.bob.synced
    assert pair.bob.volume().size_sectors == 6144
    assert marked_blocks(pair.bob) == 0


def epochs_of(pair: Pair, *writes: tuple[int, int]) -> list[int]:
    """alice writes (offset, bytes) one by one to a kernel; the writes of each epoch she then has."""
    log = pair.alice.r.replication.log
    pair.disk_delay = 0
    pair.bob.disks[0].hangs = True  # nothing is acknowledged meanwhile
    for offset, length in writes:
        pair.alice.volume().write(offset, b"k" * length, False, lambda _errno: None)
        pair.run(0.01)
    return [len(epoch.writes) for epoch in (*log.closed, log.current)]


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_overlapping_writes_are_in_epochs_of_their_own_for_a_kernel(protocol: str) -> None:
    pair = Pair(net=NetSettings(protocol=protocol))
    pair.up_synced()
    assert pair.alice.r.link is not None
    pair.alice.r.link.peer_extension = 0
    found = epochs_of(pair, (0, 8192), (8192, 4096), (4096, 512), (65536, 4096), (66048, 512))
    assert found == [2, 2, 1]


def test_a_replicator_orders_overlapping_writes_itself() -> None:
    pair = Pair(net=NetSettings(protocol="A"))
    pair.up_synced()
    assert epochs_of(pair, (0, 8192), (0, 8192), (4096, 512)) == [3]


def test_zeroing_has_an_epoch_of_its_own_for_a_kernel() -> None:
    pair = Pair(net=NetSettings(protocol="A"))
    pair.up_synced()
    assert pair.alice.r.link is not None
    pair.alice.r.link.peer_extension = 0
    log, volume = pair.alice.r.replication.log, pair.alice.volume()
    pair.bob.disks[0].hangs = True
    volume.write(0, b"k" * 4096, False, lambda _errno: None)
    volume.zero(1 << 20, 1 << 20, True, False, lambda _errno: None)
    volume.write(8192, b"k" * 4096, False, lambda _errno: None)
    pair.run(0.01)
    assert [len(epoch.writes) for epoch in (*log.closed, log.current)] == [1, 1, 1]
