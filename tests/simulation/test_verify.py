"""Online verify between two nodes: every planted difference is found, and nothing else is, whoever
asks, whoever writes meanwhile, and whatever interrupts it."""

from __future__ import annotations

import random

import pytest

from protocol.states import Conn
from replicator.engine.settings import NetSettings
from replicator.errors import ReplicatorError
from tests.simulation.pair import MIB, Node, Pair

BLOCK = 4096
ROLES = ["primary", "secondary"]


def new_pair(
    seed: int = 1, *, kernel: bool = False, alg: str = "crc32c", **options: object
) -> Pair:
    """alice is Primary, both are UpToDate. kernel: each takes the other for a kernel's DRBD."""
    net = NetSettings(verify_alg=alg, **options)  # type: ignore[arg-type]
    pair = Pair(seed, net=net)
    pair.up_synced()
    if kernel:
        for node in (pair.alice, pair.bob):
            assert node.r.link is not None
            node.r.link.peer_extension = 0
    return pair


def asker(pair: Pair, role: str) -> Node:
    return pair.alice if role == "primary" else pair.bob


def verify(node: Node, start: int | None = None, stop: int | None = None) -> None:
    """Begin, and wait for the end on both nodes."""
    node.do(lambda done: node.r.verify(0, start, stop, done))
    pair = node.pair
    pair.run_until(lambda: pair.alice.is_(Conn.Connected) and pair.bob.is_(Conn.Connected))


def damage(node: Node, blocks: set[int]) -> None:
    """Change these blocks behind the engine's back."""
    medium = node.media[0]
    for block in blocks:
        old = medium.read(block * BLOCK, BLOCK)
        medium.put(block * BLOCK, bytes([old[0] ^ 0x55]) + old[1:])


def marked(node: Node) -> set[int]:
    bitmap = node.volume().bitmap
    assert bitmap is not None
    return {bit for bit in range(bitmap.bits) if bitmap.any_in(bit, 1)}


@pytest.mark.parametrize("kernel", [False, True], ids=["replicators", "as-kernels"])
@pytest.mark.parametrize("role", ROLES)
def test_exactly_the_blocks_that_differ_are_marked_on_both_nodes(role: str, kernel: bool) -> None:
    pair = new_pair(kernel=kernel)
    planted = {0, 5, 6, 7, 63, 500, 1007}
    damage(pair.bob, planted)
    verify(asker(pair, role))
    assert marked(pair.alice) == marked(pair.bob) == planted


@pytest.mark.parametrize("role", ROLES)
def test_equal_copies_are_found_equal(role: str) -> None:
    pair = new_pair()
    pair.alice.write(0, b"x" * 300 * 1024)
    verify(asker(pair, role))
    assert marked(pair.alice) == marked(pair.bob) == set()
    assert "out-of-sync" not in pair.alice.handlers.calls + pair.bob.handlers.calls


def test_what_was_found_is_said_and_the_handler_is_called_on_both_nodes() -> None:
    pair = new_pair()
    damage(pair.bob, {5, 6, 900})
    verify(pair.alice)
    for name, node in (("alice", pair.alice), ("bob", pair.bob)):
        lines = [line for line in pair.lines if f" {name} " in line]
        assert any("out of sync: start=40, size=16 (sectors)" in line for line in lines)
        assert any("out of sync: start=7200, size=8 (sectors)" in line for line in lines)
        assert any("found 3 4k blocks out of sync" in line for line in lines)
        assert node.handlers.calls.count("out-of-sync") == 1


@pytest.mark.parametrize("kernel", [False, True], ids=["replicators", "as-kernels"])
@pytest.mark.parametrize("protocol", ["A", "B", "C"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("seed", range(3))
def test_writes_meanwhile_raise_no_false_alarm(
    seed: int, role: str, protocol: str, kernel: bool
) -> None:
    pair = new_pair(seed, kernel=kernel, protocol=protocol)
    planted = {3, 400, 1000}
    damage(pair.bob, planted)
    rng = random.Random(seed)
    node = asker(pair, role)
    node.volume().settings.disk.c_max_rate = 40 << 20
    node.do(lambda done: node.r.verify(0, None, None, done))
    writes = 0
    while node.volume().verify.left:
        # Not on the planted blocks: a write there may mend them before they are looked at.
        first = rng.choice([4, 100, 401, 500, 801])
        offset = (first + rng.randrange(99)) * BLOCK + 512 * rng.randrange(8)
        length = 512 * rng.randrange(1, 40)
        end = min(offset + length, (first + 99) * BLOCK)
        pair.alice.volume().write(offset, rng.randbytes(end - offset), False, lambda _errno: None)
        writes += 1
        pair.run(rng.choice([0.0, 0.0001, 0.0003]))
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    pair.run(2)
    assert writes > 10
    assert marked(pair.alice) == marked(pair.bob) == planted


def test_roles_that_change_meanwhile_raise_no_false_alarm() -> None:
    pair = new_pair()
    rng = random.Random(4)
    pair.bob.volume().settings.disk.c_max_rate = 10 << 20
    pair.bob.do(lambda done: pair.bob.r.verify(0, None, None, done))
    primary, other = pair.alice, pair.bob
    changes = 0
    while pair.bob.volume().verify.left:
        for _ in range(3):
            offset = rng.randrange(1000) * BLOCK
            primary.volume().write(offset, rng.randbytes(BLOCK), False, lambda _errno: None)
        primary.secondary()
        primary, other = other, primary
        primary.primary()
        changes += 1
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    assert changes > 1
    assert marked(pair.alice) == marked(pair.bob) == set()


def test_the_marked_blocks_are_copied_after_disconnect_and_connect() -> None:
    pair = new_pair()
    pair.alice.write(0, b"good" * (MIB // 2))
    damage(pair.bob, {0, 17, 1000})
    verify(pair.bob)
    pair.alice.disconnect()
    pair.alice.connect()
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    pair.settle()
    assert pair.bob.data() == pair.alice.data()
    assert marked(pair.alice) == marked(pair.bob) == set()


def test_only_the_sectors_asked_for_are_compared_and_the_next_run_goes_on_there() -> None:
    pair = new_pair()
    damage(pair.bob, {10, 20, 30})
    verify(pair.alice, 15 * 8 + 3, 25 * 8)
    assert marked(pair.alice) == marked(pair.bob) == {20}
    verify(pair.alice)
    assert marked(pair.alice) == {20, 30}
    verify(pair.alice)
    assert marked(pair.alice) == {10, 20, 30}


def test_a_run_that_was_cut_off_is_resumed_where_it_was() -> None:
    pair = new_pair()
    pair.disk.c_max_rate = 256 << 10
    for node in (pair.alice, pair.bob):
        node.volume().settings.disk.c_max_rate = 256 << 10
    damage(pair.bob, {1, 900})
    pair.alice.do(lambda done: pair.alice.r.verify(0, None, None, done))
    pair.run(4)
    assert pair.alice.is_(Conn.VerifyS)
    progress = pair.alice.r.snapshot().volumes[0].progress
    assert progress is not None and progress.verify and 0 < progress.left < progress.total
    pair.alice.disconnect()
    resume_at = pair.alice.volume().verify.resume_at
    assert 8 < resume_at < 900 * 8
    pair.alice.connect()
    pair.settle()
    damage(pair.bob, {2})
    verify(pair.alice)
    assert marked(pair.alice) == marked(pair.bob) == {900}
    assert any(f"online verify of sectors {resume_at} to" in line for line in pair.lines)


def test_the_rate_is_kept() -> None:
    pair = new_pair()
    pair.alice.volume().settings.disk.c_max_rate = 512 << 10
    started = pair.clock.now()
    verify(pair.alice)
    assert 7 < pair.clock.now() - started < 9


@pytest.mark.parametrize("pauser", ["alice", "bob"])
def test_a_pause_by_either_node_holds_it_and_is_shown(pauser: str) -> None:
    pair = new_pair()
    pair.alice.volume().settings.disk.c_max_rate = 256 << 10
    pair.alice.do(lambda done: pair.alice.r.verify(0, None, None, done))
    pair.run(2)
    node = pair.alice if pauser == "alice" else pair.bob
    node.do(lambda done: node.r.pause_sync(0, done))
    pair.run(1)
    left = pair.alice.volume().verify.left
    pair.run(20)
    assert pair.alice.volume().verify.left == left > 0
    assert "verify paused by" in pair.alice.r.snapshot().volumes[0].waiting_for
    node.do(lambda done: node.r.resume_sync(0, done))
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    assert pair.alice.volume().verify.left == 0


@pytest.mark.parametrize("kernel", [False, True], ids=["replicators", "as-kernels"])
@pytest.mark.parametrize("role", ROLES)
def test_a_lost_connection_ends_it_and_leaves_no_range_locked(role: str, kernel: bool) -> None:
    pair = new_pair(kernel=kernel)
    node = asker(pair, role)
    for delay in (0.001, 0.003, 0.006, 0.011):
        node.do(lambda done: node.r.verify(0, 0, None, done))
        pair.run(delay)
        pair.network.break_all()
        pair.run_until(lambda: not node.is_(Conn.VerifyS))
        pair.alice.write(0, b"z" * MIB)
        pair.settle()
        assert pair.alice.volume().locks.count == pair.bob.volume().locks.count == 0


def test_a_peer_that_loses_its_disk_ends_it() -> None:
    pair = new_pair()
    pair.alice.volume().settings.disk.c_max_rate = 256 << 10
    pair.alice.do(lambda done: pair.alice.r.verify(0, None, None, done))
    pair.run(1)
    pair.bob.do(lambda done: pair.bob.r.detach(0, True, done))
    pair.run(1)
    assert pair.alice.is_(Conn.Connected)
    pair.alice.write(0, b"o" * 512) if False else pair.alice.write(0, b"o" * 512)


def test_a_block_that_cannot_be_read_counts_as_different() -> None:
    pair = new_pair()
    for node in (pair.alice, pair.bob):
        node.volume().settings.disk.on_io_error = "pass_on"
    pair.bob.disks[0].fails = lambda kind, offset, _length: (
        5 if kind == "read" and offset == 0 else 0
    )
    pair.alice.do(lambda done: pair.alice.r.verify(0, 0, 64, done))
    pair.run(1)
    # bob's disk is Inconsistent from then on, which ends the run; nothing is called equal.
    assert pair.alice.is_(Conn.Connected)
    assert any("verify read at sector 0" in line for line in pair.lines)


@pytest.mark.parametrize(
    ("code", "spoil"),
    [
        ("(-14)", lambda pair: setattr(pair.alice.r.settings.net, "verify_alg", "")),
        ("(-14)", lambda pair: setattr(pair.bob.r.settings.net, "verify_alg", "")),
        ("(-15)", lambda pair: pair.bob.disconnect()),
        ("(-8)", lambda pair: pair.bob.do(lambda done: pair.bob.r.verify(0, 0, None, done))),
    ],
    ids=["no-algorithm-here", "no-algorithm-there", "not-connected", "runs-already"],
)
def test_it_is_refused_with_the_code_that_drbd_gives(code: str, spoil: object) -> None:
    pair = new_pair()
    pair.bob.volume().settings.disk.c_max_rate = 256 << 10
    assert callable(spoil)
    spoil(pair)
    pair.run(0.2)
    with pytest.raises(ReplicatorError, match="State change failed") as caught:
        pair.alice.do(lambda done: pair.alice.r.verify(0, None, None, done))
    assert code in str(caught.value)


def test_for_want_of_a_peer_it_is_refused_with_what_helps_in_this_state() -> None:
    pair = new_pair()
    hints = []
    for part in (pair.bob.disconnect, pair.alice.disconnect):
        part()
        pair.run(0.2)
        with pytest.raises(ReplicatorError) as caught:
            pair.alice.do(lambda done: pair.alice.r.verify(0, None, None, done))
        hints.append(caught.value.hint)
    assert hints == [
        "see what it waits for: replicator status r0",
        "replicator connect r0; replicator wait-connect r0",
    ]


def test_sectors_outside_the_volume_are_refused() -> None:
    pair = new_pair()
    with pytest.raises(ReplicatorError, match="sectors"):
        pair.alice.do(lambda done: pair.alice.r.verify(0, 1 << 40, None, done))
    with pytest.raises(ReplicatorError, match="before the stop"):
        pair.alice.do(lambda done: pair.alice.r.verify(0, 80, 80, done))
    assert pair.alice.synced


def test_a_promotion_between_question_and_answer_raises_no_false_alarm() -> None:
    pair = new_pair(kernel=True)
    pair.alice.secondary()
    pair.alice.disks[0].slow = lambda kind, _offset, _length: 0.3 if kind == "read" else 0.0
    pair.bob.do(lambda done: pair.bob.r.verify(0, None, None, done))
    assert pair.bob.volume().verify.outstanding
    pair.bob.primary()
    pair.bob.write(0, b"n" * MIB)
    pair.run_until(lambda: pair.alice.synced and pair.bob.synced)
    assert marked(pair.alice) == marked(pair.bob) == set()


@pytest.mark.parametrize("role", ROLES)
def test_to_a_kernel_a_primary_waits_until_what_was_written_there_is_stable(role: str) -> None:
    pair = new_pair(kernel=True, protocol="A")
    reads: list[float] = []

    def on_alice(kind: str, offset: int, _length: int) -> float:
        if kind == "read" and offset == 100 * BLOCK:
            reads.append(pair.clock.now())
        return 0.0

    pair.bob.disks[0].slow = lambda kind, _offset, _length: 0.4 if kind == "write" else 0.0
    pair.alice.disks[0].slow = on_alice
    pair.alice.write(100 * BLOCK, b"w" * BLOCK)
    written = pair.clock.now()
    node = asker(pair, role)
    node.do(lambda done: node.r.verify(0, 100 * 8, 101 * 8, done))
    pair.run_until(lambda: bool(reads))
    assert not pair.alice.r.replication.log.unacknowledged
    assert reads[0] > written + 0.4
