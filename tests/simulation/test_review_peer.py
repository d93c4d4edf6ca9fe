"""Peers that answer late, never, or with what they should not, and connections that end just then."""

from __future__ import annotations

import errno

import pytest

from protocol.packets import (
    SYNCER_ID,
    BlockAck,
    BlockDesc,
    BlockRequest,
    Command,
    Data,
    Empty,
    Sizes,
    StateReply,
    StateRequest,
    Uuids,
    decode,
    encode,
)
from protocol.states import CONN_SHIFT, Conn, Disk, Role
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ReplicatorError
from tests.simulation.pair import MIB, Pair
from tests.simulation.scripted import ScriptedPeer, synced_alice

PART_OF_A_BITMAP = encode(0, Command.UNPLUG_REMOTE, Empty())
"""Anything that goes out while the rest is held."""
IMPATIENT = NetSettings(timeout=1.0, ko_count=3, ping_interval=1.0)
FULL_MASK = 0x1F << CONN_SHIFT


def as_target(pair, *, bits=0x10):
    """alice Secondary and SyncTarget of a scripted peer; she has asked for what is marked."""
    synced_alice(pair)
    peer = ScriptedPeer(pair)
    own = peer.same_uuids()
    peer.connect(Uuids(0xABC0, own.current, 0, 0), Disk.UpToDate)
    assert pair.alice.is_(Conn.WFBitMapT)
    peer.send_bitmap(range(bits))
    pair.run(0.05)
    peer.send_sync_uuid(0x5500)
    pair.run(0.05)
    assert pair.alice.is_(Conn.SyncTarget)
    return peer


def as_source(pair, *, primary=False):
    synced_alice(pair, primary=primary)
    peer = ScriptedPeer(pair)
    peer.connect(Uuids(4, 0, 0, 0), Disk.Inconsistent)
    peer.send_bitmap(range(8))
    pair.run(0.1)
    assert pair.alice.is_(Conn.SyncSource)
    peer.state(Disk.Inconsistent, conn=Conn.SyncTarget)
    pair.run(0.01)
    return peer


def connected(pair, *, primary=False, role=Role.Secondary):
    uuids = synced_alice(pair, primary=False)
    peer = ScriptedPeer(pair)
    peer.connect(uuids, Disk.UpToDate, role=role)
    peer.state(Disk.UpToDate, role=role)
    pair.run(0.01)
    assert pair.alice.synced
    if primary:
        peer.on_frame = lambda _letter, frame: (
            peer.send(Command.STATE_CHG_REPLY, StateReply(1))
            if frame.command == Command.STATE_CHG_REQ
            else None
        )
        pair.alice.primary()
        peer.on_frame = None
    return peer


# --- resync -------------------------------------------------------------------------------------


def test_resync_data_of_an_earlier_connection_is_not_taken_for_that_of_the_next():
    pair = Pair()
    peer = as_target(pair)
    alice = pair.alice
    alice.disks[0].slow = lambda kind, offset, _l: 2.0 if kind == "write" and offset == 0 else 0.0
    peer.send(Command.DATA, Data(0, 1, 1, 256, b"", b"1" * 4096))
    pair.run(0.01)
    peer.send(Command.RS_DATA_REPLY, Data(0, SYNCER_ID, 0, 0, b"", bytes(16 * 4096)))
    pair.run(0.05)
    peer.close()
    pair.run(0.1)
    alice.disks[0].slow = None
    again = ScriptedPeer(pair)
    own = again.same_uuids()
    again.connect(Uuids(0xABC0, own.current, 0, 0), Disk.UpToDate)
    again.send_bitmap(range(16))
    pair.run(0.05)
    again.send_sync_uuid(0x5600)
    pair.run(3)
    assert alice.is_(Conn.SyncTarget)
    assert again.count(Command.RS_WRITE_ACK) == 0
    assert alice.volume().bitmap.weight == 16
    again.send(Command.RS_DATA_REPLY, Data(0, SYNCER_ID, 0, 0, b"", b"2" * 65536))
    pair.run(1)
    assert alice.data()[:65536] == b"2" * 65536
    assert alice.is_(Conn.Connected, Disk.UpToDate)


def test_blocks_marked_again_at_the_very_end_of_a_resync_are_copied_too():
    """As many as in the pass before: that is progress all the same."""
    pair = Pair()
    peer = as_target(pair, bits=1)
    served = 0

    def serve(_letter, frame):
        nonlocal served
        if frame.command == Command.RS_DATA_REQUEST:
            served += 1
            request = decode_request(frame)
            if served < 3:
                block = 800 + served
                peer.send(Command.OUT_OF_SYNC, BlockDesc(block * 8, 4096))
            data = bytes(request.blksize)
            peer.send(Command.RS_DATA_REPLY, Data(request.sector, SYNCER_ID, 0, 0, b"", data))

    peer.on_frame = serve
    serve("d", next(f for _l, f in peer.heard if f.command == Command.RS_DATA_REQUEST))
    before = pair.clock.steps
    pair.run(2)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate)
    assert pair.clock.steps - before < 2000


def decode_request(frame):
    return decode(frame.command, frame.payload)


def test_a_cancelled_resync_request_is_asked_again():
    pair = Pair()
    peer = as_target(pair)
    assert peer.count(Command.RS_DATA_REQUEST) == 1
    peer.send(Command.RS_CANCEL, BlockAck(0, SYNCER_ID, 65536, 1))
    pair.run(5)
    assert peer.count(Command.RS_DATA_REQUEST) >= 2


def test_a_source_whose_target_gives_up_on_some_blocks_ends_the_resync_too():
    pair = Pair()
    peer = as_source(pair)
    peer.state(Disk.Inconsistent, conn=Conn.Connected)
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Inconsistent)
    assert pair.alice.volume().bitmap.weight


def test_a_source_that_cannot_read_a_block_ends_with_the_target_still_inconsistent():
    pair = Pair(disk=DiskSettings(al_extents=67, c_max_rate=0, on_io_error="pass_on"))
    pair.up_synced()
    pair.bob.kill()
    pair.alice.write(0, b"x" * 4096)
    pair.alice.write(MIB, b"y" * 4096)
    pair.alice.disks[0].fails = lambda kind, offset, _l: (
        errno.EIO if kind == "read" and offset == MIB else 0
    )
    pair.bob.up()
    pair.run_until(lambda: pair.bob.is_(Conn.Connected, Disk.Inconsistent))
    pair.run(1)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Inconsistent)
    assert pair.bob.data()[:4096] == b"x" * 4096
    pair.alice.disks[0].fails = None
    pair.network.break_all()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


def test_a_write_under_way_while_the_bitmaps_are_exchanged_needs_no_second_connection():
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.run(0.1)
    pair.alice.write(0, b"0" * 4096)
    alice = pair.alice
    alice.disks[0].slow = lambda kind, offset, _l: (
        20.0 if kind == "write" and offset == 8 * 4096 else 0.0
    )
    answers = []
    alice.volume().write(8 * 4096, b"w" * 4096, False, answers.append)
    pair.run(0.01)
    alice.disks[0].slow = None
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.SyncSource), 15)
    lines = len(pair.lines)
    pair.settle()
    pair.run(30)
    assert alice.data() == pair.bob.data()
    assert alice.volume().bitmap.weight == pair.bob.volume().bitmap.weight == 0
    assert not [line for line in pair.lines[lines:] if "connection ended" in line]


def test_a_disk_that_shrinks_in_the_middle_of_a_resync_ends_the_connection():
    pair = Pair()
    peer = as_target(pair)
    size = pair.alice.volume().size_sectors
    peer.send(Command.SIZES, Sizes(size // 2, 0, size // 2))
    pair.run(1)
    assert "small" in pair.alice.r.last_error
    assert pair.alice.volume().size_sectors == size


# --- what nobody may ask or tell ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "val"),
    [
        (0xC, Role.Primary << 2),
        (0x1E000, Disk.Failed << 13),
        (0x1E000, Disk.UpToDate << 13),
        (FULL_MASK, Conn.Disconnecting << CONN_SHIFT),
        (FULL_MASK, Conn.Connected << CONN_SHIFT),
    ],
    ids=["our role", "our disk failed", "our disk good", "disconnect", "connected"],
)
def test_a_peer_may_not_change_what_is_not_its_own(mask, val):
    pair = Pair()
    peer = as_source(pair)
    before = pair.alice.volume().state
    peer.send(Command.STATE_CHG_REQ, StateRequest(mask, val))
    pair.run(0.5)
    assert peer.last(Command.STATE_CHG_REPLY).retcode < 1
    assert pair.alice.volume().state == before


def test_a_volume_that_the_peer_removes_and_adds_again_is_compared_anew():
    pair = Pair()
    peer = connected(pair)
    known = peer.same_uuids()
    peer.send(Command.STATE_CHG_REQ, StateRequest(FULL_MASK, Conn.WFReportParams << CONN_SHIFT))
    pair.run(0.1)
    assert peer.last(Command.STATE_CHG_REPLY).retcode == 1
    assert pair.alice.is_(Conn.WFReportParams)
    peer.report(Uuids(0x999990, known.current, 0, 0), Disk.UpToDate)
    pair.run(0.1)
    assert pair.alice.is_(Conn.WFBitMapT)


def test_a_disk_that_is_reported_without_its_generations_ends_the_connection():
    pair = Pair()
    synced_alice(pair)
    peer = ScriptedPeer(pair)
    peer.connect(None, Disk.UpToDate)
    pair.run(0.5)
    assert pair.alice.r.link is None
    assert "UUIDS" in pair.alice.r.last_error


def test_a_primary_is_not_written_by_its_peer():
    pair = Pair()
    peer = connected(pair, primary=True)
    before = pair.alice.data()
    peer.send(Command.DATA, Data(0, 1, 1, 256, b"", b"!" * 4096))
    pair.run(0.5)
    assert pair.alice.data() == before
    assert "Primary" in pair.alice.r.last_error


# --- answers that never come --------------------------------------------------------------------


def test_a_peer_that_never_reports_is_given_up():
    pair = Pair(net=IMPATIENT)
    synced_alice(pair)
    peer = ScriptedPeer(pair)
    peer.features()
    peer.protocol_params()
    pair.run(10)
    assert not pair.alice.is_(Conn.WFReportParams)
    assert pair.alice.r.last_error


def test_a_read_that_the_peer_never_answers_ends():
    pair = Pair(net=IMPATIENT)
    peer = connected(pair, primary=True)
    pair.alice.r.cluster.connection_lost()
    peer.on_frame = lambda _letter, frame: (
        peer.send(Command.STATE_CHG_REPLY, StateReply(1))
        if frame.command == Command.STATE_CHG_REQ
        else None
    )
    pair.alice.do(lambda done: pair.alice.r.detach(0, False, done))
    answers = []
    pair.alice.volume().read(0, 4096, lambda errno, _data: answers.append(errno))
    pair.run(10)
    assert answers and answers[0]


def test_a_resync_request_that_the_peer_never_answers_ends_the_connection():
    pair = Pair(net=IMPATIENT)
    as_target(pair)
    pair.run(10)
    assert not pair.alice.is_(Conn.SyncTarget)
    assert "resync" in pair.alice.r.last_error


def test_a_question_that_the_peer_never_answers_ends_the_command():
    pair = Pair(net=IMPATIENT)
    connected(pair)
    answers = []
    pair.alice.r.invalidate(0, answers.append)
    pair.run(10)
    assert len(answers) == 1
    assert isinstance(answers[0], ReplicatorError)


def test_answers_that_take_no_end_are_not_piled_up():
    pair = Pair(size=64 * MIB)
    peer = as_source(pair)
    alice = pair.alice
    peer.deaf = True
    channel = alice.r.link.data.channel
    channel.stuck = True
    for number in range(600):
        peer.send(Command.RS_DATA_REQUEST, BlockRequest(number % 32 * 2048, SYNCER_ID, MIB))
    pair.run(0.5)
    assert channel.unsent < 100 * MIB


# --- connections that end just then -------------------------------------------------------------


def test_a_disconnect_whose_connection_breaks_first_stands_alone_all_the_same():
    pair = Pair()
    peer = connected(pair)
    answers = []
    pair.alice.r.disconnect(False, answers.append)
    pair.run(0.01)
    peer.close()
    pair.run(5)
    assert answers == [None]
    assert pair.alice.is_(Conn.StandAlone)


@pytest.mark.python_engine
def test_a_promotion_does_not_slip_into_a_handshake():
    pair = Pair()
    uuids = synced_alice(pair)
    answers = []
    peer = ScriptedPeer(pair)
    pair.run_until(lambda: pair.alice.r.link is not None, 5)
    # The promotion finds no connection; when it is carried out there is one.
    original = pair.alice.r.soon

    def late(action):
        pair.clock.call_later(0.05, action)

    pair.alice.r.soon = late
    pair.alice.r.primary(False, answers.append)
    pair.alice.r.soon = original
    peer.features()
    peer.protocol_params()
    pair.run(0.1)
    assert pair.alice.is_(Conn.WFReportParams)
    assert pair.alice.r.role is Role.Secondary
    peer.report(uuids, Disk.UpToDate, role=Role.Primary)
    pair.run(5)
    assert isinstance(answers[0], ReplicatorError)
    assert pair.alice.r.role is Role.Secondary


def test_a_promotion_refused_for_one_volume_is_taken_back_for_the_others():
    pair = Pair(volumes=2)
    pair.up_synced()
    pair.alice.secondary()
    original = pair.bob.r.cluster._judge
    pair.bob.r.cluster._judge = lambda volume, request: (
        -10 if volume.number == 1 else original(volume, request)
    )
    with pytest.raises(ReplicatorError):
        pair.alice.primary()
    pair.run(0.5)
    assert pair.bob.volume(0).state.peer is Role.Secondary


def test_a_disk_attached_during_a_handshake_is_compared_before_it_counts():
    pair = Pair()
    uuids = synced_alice(pair)
    alice = pair.alice
    alice.do(lambda done: alice.r.detach(0, False, done))
    peer = ScriptedPeer(pair)
    peer.features()
    answers = []
    alice.attach(0, answers.append)
    pair.run(0.1)
    peer.protocol_params()
    peer.send(Command.SIZES, Sizes(0, 0, 0))
    peer.state(Disk.Diskless)
    pair.run(0.1)
    assert answers == [None]
    assert alice.is_(Conn.Connected)
    assert peer.count(Command.UUIDS) == 1
    assert uuids.current


# --- several volumes ----------------------------------------------------------------------------


def test_bitmaps_of_two_volumes_are_sent_one_after_the_other(monkeypatch):
    from replicator.engine import exchange

    monkeypatch.setattr(exchange, "BITMAP_WINDOW", -1 + 4096)
    pair = Pair(volumes=2, size=160 * MIB, net=NetSettings(use_rle=False))
    synced_alice(pair)
    peer = ScriptedPeer(pair)
    peer.connect(Uuids(4, 0, 0, 0), Disk.Inconsistent)
    pair.run(1)
    order = [f.volume for _l, f in peer.heard if f.command == Command.BITMAP]
    assert order == sorted(order)
    assert set(order) == {0, 1}
    between = [
        f.command
        for _l, f in peer.heard
        if f.command in (Command.BITMAP, Command.STATE, Command.DATA, Command.OUT_OF_SYNC)
    ]
    first, last = between.index(Command.BITMAP), len(between) - between[::-1].index(Command.BITMAP)
    volume_changes = between[first:last]
    assert volume_changes.count(Command.DATA) == 0


def test_under_a_a_write_held_behind_a_bitmap_is_not_complete():
    pair = Pair(volumes=2, net=NetSettings(protocol="A"))
    pair.up_synced()
    link = pair.alice.r.link
    link.hold_data(True)
    answers = []
    pair.alice.volume(1).write(0, bytes(4096), False, answers.append)
    pair.run(0.05)
    link.send_uninterrupted(PART_OF_A_BITMAP)
    pair.run(0.05)
    assert answers == []
    link.hold_data(False)
    pair.run(0.1)
    assert answers == [0]
