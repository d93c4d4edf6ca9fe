"""Answers that take the slower of the two sockets, and arrive in the next resync, or the next verify, over
the same connection: a disk has been detached and attached again meanwhile."""

from __future__ import annotations

from protocol.packets import SYNCER_ID, BlockAck, Command, Empty, Uuids
from protocol.states import Conn, Disk, Role
from replicator.engine.settings import NetSettings
from tests.simulation.pair import Node, Pair
from tests.simulation.scripted import ScriptedPeer, synced_alice

BLOCK = 4096
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


def new_pair(**options: str) -> Pair:
    pair = Pair(net=NetSettings(**options))  # type: ignore[arg-type]
    pair.up_synced()
    return pair


def hold_answers(node: Node) -> None:
    """What this node says on the socket of the acknowledgements stays in its queue."""
    assert node.r.link is not None
    node.r.link.meta.channel.stuck = True


def let_answers_go(node: Node) -> None:
    assert node.r.link is not None
    channel = node.r.link.meta.channel
    channel.stuck = False
    channel._flush()


def begin_resync(pair: Pair) -> None:
    """bob lacks block 0 and becomes target."""
    detach(pair.bob)
    pair.alice.write(0, OLD)
    attach(pair.bob)


def detach(node: Node) -> None:
    node.do(lambda done: node.r.detach(0, True, done))
    node.pair.run(0.01)


def attach(node: Node) -> None:
    node.do(lambda done: node.attach(0, done))


def write_and_begin_anew(pair: Pair) -> None:
    """bob's disk goes, and comes back when alice has written block 1, which takes long to read."""
    alice, bob = pair.alice, pair.bob
    detach(bob)
    alice.write(BLOCK, NEW)
    alice.disks[0].slow = lambda kind, *_: 0.1 if kind == "read" else 0.0
    attach(bob)
    pair.run(0.03)


def all_went_well(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    pair.settle()
    assert alice.volume().bitmap.weight == bob.volume().bitmap.weight == 0
    assert bob.data() == alice.data()
    assert not [line for line in pair.lines if "connection ended" in line]


def test_the_answer_to_a_targets_last_ping_does_not_end_its_next_resync() -> None:
    """Its source had not seen the acknowledgements of that one yet, and took its end for a mistake."""
    pair = new_pair()
    alice, bob = pair.alice, pair.bob
    begin_resync(pair)
    hold_answers(bob)
    pair.run_until(lambda: bob.is_(Conn.SyncTarget) and bob.volume().bitmap.weight == 0)
    pair.run(0.01)
    write_and_begin_anew(pair)
    hold_answers(alice)
    let_answers_go(bob)
    pair.run(0.005)  # its ping is answered, but the answer not heard
    hold_answers(bob)
    pair.run_until(lambda: bob.is_(Conn.SyncTarget) and bob.volume().bitmap.weight == 0)
    let_answers_go(alice)
    pair.run(0.01)
    let_answers_go(bob)
    all_went_well(pair)


def test_the_answer_to_a_sources_last_ping_does_not_end_its_next_resync() -> None:
    pair = new_pair()
    alice, bob = pair.alice, pair.bob
    begin_resync(pair)
    pair.run_until(lambda: bob.synced)
    hold_answers(bob)
    pair.run(0.01)  # alice has heard that it is done, and has asked for more
    write_and_begin_anew(pair)
    let_answers_go(bob)
    pair.run_until(lambda: alice.is_(pdsk=Disk.UpToDate))
    assert bob.is_(Conn.Connected, Disk.UpToDate)
    all_went_well(pair)


def test_a_demotion_is_heard_while_the_source_waits_for_the_answer_to_its_last_ping() -> None:
    """Its report looks like one more report of the end; without it this node could not be promoted."""
    pair = new_pair()
    alice, bob = pair.alice, pair.bob
    alice.secondary()
    bob.primary()
    detach(bob)
    bob.write(0, OLD)
    attach(bob)
    pair.run_until(lambda: bob.synced)
    hold_answers(bob)
    pair.run(0.01)
    bob.secondary()
    pair.run(0.01)
    assert alice.is_(Conn.SyncSource)
    let_answers_go(bob)
    all_went_well(pair)
    assert alice.volume().state.peer is Role.Secondary
    alice.primary()


def test_an_acknowledgement_from_the_resync_before_clears_no_mark() -> None:
    """Its block has been written once more, while the target had no disk."""
    pair = new_pair()
    alice, bob = pair.alice, pair.bob
    detach(bob)
    alice.write(BLOCK, OLD)
    attach(bob)
    hold_answers(bob)
    pair.run_until(lambda: bob.is_(Conn.SyncTarget) and bob.volume().bitmap.weight == 0)
    write_and_begin_anew(pair)
    let_answers_go(bob)
    pair.run_until(lambda: alice.volume().bitmap.weight == 0)
    assert bob.data()[BLOCK : 2 * BLOCK] == NEW
    all_went_well(pair)


def test_what_was_found_equal_in_the_resync_before_is_not_taken_for_equal_in_the_next() -> None:
    """The target would be done with a block that it has never got, and be good with older data if the
    source failed now."""
    pair = new_pair(csums_alg="crc32c")
    alice, bob = pair.alice, pair.bob
    detach(bob)
    alice.write(BLOCK, bytes(BLOCK))  # as it was
    hold_answers(alice)
    attach(bob)
    pair.run_until(lambda: alice.is_(Conn.SyncSource) and alice.volume().bitmap.weight == 0)
    write_and_begin_anew(pair)
    let_answers_go(alice)
    pair.run_until(lambda: bob.is_(disk=Disk.UpToDate))
    assert bob.data()[BLOCK : 2 * BLOCK] == NEW
    all_went_well(pair)


def test_the_answer_to_a_ping_at_the_end_of_a_verify_does_not_end_the_next_one() -> None:
    pair = new_pair(verify_alg="crc32c")
    alice, bob = pair.alice, pair.bob
    alice.r.verify(0, None, None, lambda _error: None)
    pair.run_until(lambda: bob.is_(Conn.VerifyT) and bob.volume().verify.total > 0)
    pair.run_until(lambda: bob.volume().verify.left == 0)
    hold_answers(alice)
    pair.run_until(lambda: alice.is_(Conn.Connected) and bob.is_(Conn.Connected))
    alice.disks[0].slow = lambda kind, *_: 0.1 if kind == "read" else 0.0
    alice.do(lambda done: alice.r.verify(0, None, None, done))
    assert bob.is_(Conn.VerifyT)
    let_answers_go(alice)
    pair.run(0.05)
    assert bob.is_(Conn.VerifyT)
    all_went_well(pair)


def test_what_a_kernel_found_equal_in_the_resync_before_is_not_taken_for_equal_in_the_next() -> (
    None
):
    """A kernel that is the source names its next resync whatever of the one before is under way."""
    pair = Pair(net=NetSettings(csums_alg="crc32c"))
    alice = pair.alice
    synced_alice(pair)
    kernel = ScriptedPeer(pair)
    generation = Uuids(0xABC0, kernel.same_uuids().current, 0, 0)
    kernel.connect(generation, Disk.UpToDate)
    kernel.send_bitmap(range(1))
    pair.run(0.05)
    kernel.send_sync_uuid(0x5500)
    pair.run(0.05)
    assert kernel.count(Command.CSUM_RS_REQUEST) == 1
    detach(alice)
    kernel.answers_pings = False
    attach(alice)
    kernel.send(Command.UUIDS, generation._replace(bitmap=0x5500))
    kernel.state(Disk.UpToDate)
    pair.run(0.01)
    kernel.send_bitmap(range(1))
    pair.run(0.05)
    kernel.send_sync_uuid(0x5600)
    pair.run(0.05)
    equal = BlockAck(0, SYNCER_ID, BLOCK, 1)
    kernel.send(Command.RS_IS_IN_SYNC, equal)
    pair.run(0.01)
    kernel.send(Command.PING_ACK, Empty())
    kernel.answers_pings = True
    pair.run(0.1)
    assert alice.is_(Conn.SyncTarget)
    assert alice.volume().bitmap.weight == 1
    assert kernel.count(Command.CSUM_RS_REQUEST) == 2
    kernel.send(Command.RS_IS_IN_SYNC, equal)
    pair.run(0.1)
    assert alice.is_(Conn.Connected, Disk.UpToDate)
