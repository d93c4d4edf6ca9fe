"""Rewriting blocks to measure (`replicator bench --write`) never changes, undoes or desynchronises data."""

from __future__ import annotations

import pytest

from protocol.states import Conn
from replicator.engine.probe import BLOCK, LINK, WRITE, WRITE_FLUSH, WRITE_HERE, WRITES
from replicator.errors import ReplicatorError, StateRefused, UsageError
from tests.simulation.pair import MIB, Node, Pair

WINDOW = 2 * MIB


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.up_synced()
    pair.alice.primary()
    pair.alice.write(0, bytes(range(256)) * (MIB // 256))
    pair.alice.flush()
    return pair


class Probes:
    """Steps of one kind, each begun when the one before has ended."""

    def __init__(self, node: Node, kind: str, count: int) -> None:
        self.node, self.kind, self.left = node, kind, count
        self.begun: list[float] = []
        self.errors: list[ReplicatorError] = []
        self.over = False
        self._next()

    def _next(self) -> None:
        self.left -= 1
        clock = self.node.clock
        self.node.r.probe(0, self.kind, lambda: self.begun.append(clock.now()), self._ended)

    def _ended(self, error: ReplicatorError | None) -> None:
        self.over = error is not None or self.left == 0
        if error is not None:
            self.errors.append(error)
        elif self.left:
            self._next()


@pytest.mark.parametrize("kind", [LINK, *WRITES])
def test_a_series_ends_and_leaves_both_copies_as_they_were(pair: Pair, kind: str) -> None:
    before = pair.alice.data()
    probes = Probes(pair.alice, kind, 40)
    pair.run_until(lambda: probes.over)
    assert probes.errors == [] and len(probes.begun) == 40
    pair.run(2)
    assert pair.alice.data() == pair.bob.data() == before
    volume = pair.alice.volume()
    assert (volume.bitmap.weight, volume.locks.count, volume.application.pending) == (0, 0, 0)


def test_the_peer_gets_mirrored_rewrites_and_no_others(pair: Pair) -> None:
    received = pair.bob.volume().counters.written
    for kind, sectors in ((WRITE_HERE, 0), (WRITE, 10 * BLOCK // 512)):
        probes = Probes(pair.alice, kind, 10)
        pair.run_until(lambda probes=probes: probes.over)
        assert pair.bob.volume().counters.written - received == sectors


@pytest.mark.parametrize("kind", WRITES)
def test_an_application_that_writes_the_same_blocks_meanwhile_is_never_undone(
    pair: Pair, kind: str
) -> None:
    """Many applications' writes of all blocks of the window, while all of them are rewritten."""
    probes = [Probes(pair.alice, kind, 200) for _ in range(8)]
    answers: list[int] = []
    asked = 0
    for turn in range(1, 5):
        for offset in range(0, WINDOW, 8 * BLOCK):
            content = bytes([turn]) * (8 * BLOCK)
            pair.alice.volume().write(offset, content, False, answers.append)
            asked += 1
        pair.run(0.01)
    pair.run_until(lambda: len(answers) == asked and all(one.over for one in probes))
    assert set(answers) == {0} and not any(one.errors for one in probes)
    pair.alice.flush()
    assert pair.alice.data()[:WINDOW] == b"\4" * WINDOW
    assert pair.bob.data() == pair.alice.data()


def test_without_the_peer_nothing_is_marked_for_a_resync(pair: Pair) -> None:
    pair.bob.kill()
    pair.run_until(lambda: pair.alice.volume().state.conn is not Conn.Connected)
    for kind in (LINK, WRITE, WRITE_FLUSH):
        with pytest.raises(StateRefused):
            Probes(pair.alice, kind, 1)
    probes = Probes(pair.alice, WRITE_HERE, 5)
    pair.run_until(lambda: probes.over)
    assert probes.errors == []
    assert pair.alice.volume().bitmap.weight == 0


def test_a_secondary_pings_and_writes_nothing(pair: Pair) -> None:
    probes = Probes(pair.bob, LINK, 3)
    pair.run_until(lambda: probes.over)
    for kind in WRITES:
        with pytest.raises(StateRefused, match="only a Primary"):
            Probes(pair.bob, kind, 1)


def test_an_unknown_kind_is_refused_with_the_known_ones(pair: Pair) -> None:
    with pytest.raises(UsageError) as refused:
        Probes(pair.alice, "everything", 1)
    assert "write-flush" in refused.value.hint
