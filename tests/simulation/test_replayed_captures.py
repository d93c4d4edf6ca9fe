"""What a kernel said, said to the engine: it answers as the other kernel did, or as we did before.

tests/vectors/README.md says what was recorded, `replayed` how the engine takes a node's place and
what is not compared.
"""

from __future__ import annotations

import pytest

from protocol import features
from protocol.states import Conn, Disk
from replicator.engine import generations
from tests.simulation import recording
from tests.simulation.recording import ALPHA, BETA
from tests.simulation.replayed import Replayed, blocks_copied_by, comparable
from tests.vectors import MIXED, names

NODES = {"alpha": ALPHA, "beta": BETA}
REFUSED = {"wrong-secret", "other-protocol"}
NOT_ALIKE = {
    ("two-primaries", "alpha"): "allow-two-primaries has no effect: the second one is refused",
    ("two-primaries", "beta"): "allow-two-primaries has no effect: the second one is refused",
    ("ahead", "alpha"): "becomes Ahead when acknowledgements are late, which a replay is not",
    ("two-volumes", "alpha"): "asks the peer about all volumes before it promotes the first",
}
"""Roles that the engine does not play as the kernel did, and why not."""

EVERYTHING = [(name, node) for name in names() + names(MIXED) for node in NODES]
ALIKE = [one for one in EVERYTHING if one not in NOT_ALIKE]


@pytest.mark.parametrize(("name", "node"), ALIKE)
def test_the_engine_says_what_the_recorded_node_said_in_its_place(name: str, node: str) -> None:
    play = Replayed(name, NODES[node])
    play.play()
    assert play.answers == [None] * play.orders
    for number in range(play.volumes):
        copied = [blocks_copied_by(session, play.node, number) for session in play.sessions]
        assert play.copied[number] == set().union(*copied)
    if name in REFUSED:
        assert play.alice.is_(Conn.StandAlone, Disk.Inconsistent)
        return
    for number in range(play.volumes):
        assert play.alice.is_(disk=Disk.UpToDate)
        assert play.alice.data(number) == recording.final_content(
            play.sessions, play.node, play.peer, number
        )


@pytest.mark.parametrize(("name", "node"), sorted(NOT_ALIKE))
def test_the_table_of_what_differs_is_still_true(name: str, node: str) -> None:
    play = Replayed(name, NODES[node])
    with pytest.raises(AssertionError):
        play.play()


def test_a_wrong_answer_of_the_engine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "_step", lambda uuid: uuid + 2)
    with pytest.raises(AssertionError, match="SYNC_UUID"):
        Replayed("outage", ALPHA).play()


def test_another_announcement_to_a_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PROTOCOL_MIN", 99)
    with pytest.raises(AssertionError, match="protocol_min=99"):
        Replayed("rec-source", ALPHA).play()


def test_what_is_compared_tells_different_packets_apart() -> None:
    seen = {}
    for session in recording.sessions("outage"):
        for step in session.steps:
            seen.setdefault(str(comparable(step.packet)), step.packet)
    assert len(seen) > 20
