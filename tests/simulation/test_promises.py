"""The checker of promises: it sees each broken one at the moment when it is given."""

from __future__ import annotations

import pytest

from replicator.engine.settings import NetSettings
from tests.simulation.checkers.promises import Promises
from tests.simulation.pair import Node, Pair

SECTORS = range(80, 88)
OFFSET = SECTORS.start * 512


class Applications:
    """What writes to alice: numbered writes of one block, and flushes, reported to the checker."""

    def __init__(self, protocol: str) -> None:
        self.pair = Pair(1, net=NetSettings(protocol=protocol))
        self.pair.up_synced()
        self.pair.alice.flush()
        self.writes: dict[int, list[int]] = {sector: [0] for sector in range(256)}
        self.promises = Promises(self.pair, 0, protocol, self.writes)

    @property
    def alice(self) -> Node:
        return self.pair.alice

    @property
    def bob(self) -> Node:
        return self.pair.bob

    def write(self, number: int, sectors: range = SECTORS) -> None:
        for sector in sectors:
            self.writes[sector].append(number)
        data = number.to_bytes(8, "little") * (64 * len(sectors))
        self.alice.write(sectors.start * 512, data)
        self.promises.written(self.alice, sectors, number)

    def flush(self, last: int) -> None:
        before = self.promises.holders(self.alice)
        promised = {sector: len(w) - 1 for sector, w in self.writes.items() if len(w) > 1}
        self.alice.flush()
        self.promises.flushed(self.alice, before, promised, last)


@pytest.mark.parametrize("protocol", ["A", "B", "C"])
def test_nodes_that_keep_their_promises_are_not_accused(protocol):
    apps = Applications(protocol)
    for number in range(1, 20):
        apps.write(number)
        apps.write(100 + number, range(160, 168))
        if number % 3 == 0:
            apps.flush(100 + number)
    apps.pair.run(5)
    assert apps.promises.violations == []


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_completed_write_that_is_not_on_a_disk_is_found(name):
    apps = Applications("C")
    apps.write(1)
    node = apps.alice if name == "alice" else apps.bob
    node.media[0].put(OFFSET, bytes(4096))
    apps.promises.written(apps.alice, SECTORS, 1)
    assert apps.promises.violations == [
        f"write 1 was completed, but not on {name}'s disk: volume 0, sector 80 holds 0, allowed [1]"
    ]


def test_a_completed_write_may_be_overwritten_by_a_later_one():
    apps = Applications("C")
    apps.write(1)
    apps.write(2)
    apps.promises.written(apps.alice, SECTORS, 1)
    assert apps.promises.violations == []


def test_under_a_nothing_is_asked_of_the_peer_when_a_write_is_complete():
    apps = Applications("A")
    apps.write(1)
    apps.pair.run(1)
    apps.bob.media[0].put(OFFSET, bytes(4096))
    apps.promises.written(apps.alice, SECTORS, 1)
    assert apps.promises.violations == []


def test_a_flush_of_what_only_a_cache_has_is_found():
    apps = Applications("C")
    apps.write(1)
    before = apps.promises.holders(apps.alice)
    assert before == {"alice", "bob"}
    apps.promises.flushed(apps.alice, before, dict.fromkeys(SECTORS, 1), 1)
    assert sorted(words.split(":")[0] for words in apps.promises.violations) == [
        f"a flush was completed, but on {name}'s disk not all is stable"
        for name in ("alice", "bob")
    ]


def test_under_a_a_later_write_before_the_flushed_one_is_stable_is_found():
    apps = Applications("A")
    apps.write(1)
    apps.pair.run(0.01)
    before = apps.promises.holders(apps.alice)
    apps.alice.media[0].settle(apps.alice.media[0].seal())
    apps.promises.flushed(apps.alice, before, dict.fromkeys(SECTORS, 1), 1)
    assert apps.promises.violations == [], "bob has promised nothing yet"
    apps.write(2, range(160, 168))
    apps.pair.run(0.01)
    assert apps.promises.violations == [
        "a flush before write 2 was completed, but on bob's disk not all is stable: volume 0, "
        "sector 80 holds 0, allowed [1]"
    ]


def test_what_was_flushed_on_a_copy_that_was_given_up_since_binds_nobody():
    apps = Applications("A")
    apps.write(1)
    apps.pair.run(0.01)
    before = apps.promises.holders(apps.alice)
    apps.alice.media[0].settle(apps.alice.media[0].seal())
    apps.promises.flushed(apps.alice, before, dict.fromkeys(SECTORS, 1), 1)
    apps.promises.given_up("alice")
    apps.write(2, range(160, 168))
    apps.pair.run(0.01)
    assert apps.promises.violations == []
