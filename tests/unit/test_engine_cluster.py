"""Commands that both nodes must agree to: one answer each, whatever happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from protocol.packets import Command, StateReply, encode
from protocol.states import ROLE_MASK, Conn, Disk, Role
from replicator.errors import ReplicatorError, StateRefused
from tests.simulation.pair import INTERNAL, MIB, Node, Pair, apply_al

Result = ReplicatorError | None


def synced(**options: int) -> Pair:
    pair = Pair(**options)  # type: ignore[arg-type]
    pair.up_synced()
    return pair


def start(command: Callable[[Callable[[Result], None]], None]) -> list[Result]:
    results: list[Result] = []
    command(results.append)
    return results


def test_both_becoming_primary_at_once_leaves_exactly_one() -> None:
    for seed in range(12):
        pair = Pair(seed=seed)
        pair.up_synced()
        pair.alice.secondary()
        pair.run(1)
        alice = start(lambda done, p=pair: p.alice.r.primary(False, done))  # type: ignore[misc]
        pair.run(0.0003 * (seed % 4))
        bob = start(lambda done, p=pair: p.bob.r.primary(False, done))  # type: ignore[misc]
        pair.run(20)
        assert len(alice) == len(bob) == 1
        primaries = [n for n in (pair.alice, pair.bob) if n.is_(role=Role.Primary)]
        assert len(primaries) == 1
        assert sorted(error is None for error in (*alice, *bob)) == [False, True]
        refused = alice[0] or bob[0]
        assert isinstance(refused, StateRefused) and refused.hint
        assert pair.alice.synced and pair.bob.synced


def test_a_second_primary_is_refused_with_the_command_that_helps() -> None:
    pair = synced()
    with pytest.raises(StateRefused, match=r"\(-1\)") as caught:
        pair.bob.primary()
    assert "secondary r0" in (caught.value.hint or "")


def test_a_question_whose_answer_never_comes_ends_with_the_connection() -> None:
    pair = synced()
    pair.alice.secondary()
    answers: list[int | None] = []
    pair.network.cut = {"alice", "bob"}
    cluster = pair.alice.r.cluster
    for _ in range(3):
        cluster.ask(pair.alice.volume(), ROLE_MASK, int(Role.Primary), answers.append)
    pair.run(1)
    assert answers == []
    pair.run(30)
    assert answers == [None] * 3


def test_without_a_connection_the_answer_is_none() -> None:
    pair = Pair()
    pair.alice.up()
    answers: list[int | None] = []
    for _ in range(3):
        pair.alice.r.cluster.ask(pair.alice.volume(), ROLE_MASK, int(Role.Primary), answers.append)
    assert answers == [], "an answer came from inside the question"
    pair.run(0.1)
    assert answers == [None] * 3


@pytest.mark.parametrize("command", [Command.STATE_CHG_REPLY, Command.CONN_ST_CHG_REPLY])
def test_an_answer_to_nothing_ends_the_connection(command: Command) -> None:
    pair = synced()
    assert pair.bob.r.link is not None
    pair.bob.r.link.send_meta(encode(0, command, StateReply(1)))
    pair.run(0.1)
    assert "nothing was asked" in pair.alice.r.last_error
    pair.settle()


def test_a_disconnect_makes_the_peer_wait_and_not_stand_alone() -> None:
    pair = synced()
    pair.bob.disconnect()
    pair.run(1)
    assert pair.bob.is_(Conn.StandAlone) and pair.alice.is_(Conn.WFConnection)
    pair.bob.connect()
    pair.settle()


def test_a_disconnect_from_a_peer_that_is_silent_ends_soon() -> None:
    pair = synced()
    pair.network.cut = {"bob"}
    before = pair.clock.time
    pair.alice.disconnect()
    assert pair.clock.time - before <= 2.1
    assert pair.alice.is_(Conn.StandAlone)


COMMANDS: dict[str, Callable[[Node, Callable[[Result], None]], None]] = {
    "primary": lambda n, done: n.r.primary(False, done),
    "secondary": lambda n, done: n.r.secondary(done),
    "connect": lambda n, done: n.r.connect(False, done),
    "disconnect": lambda n, done: n.r.disconnect(False, done),
    "disconnect by force": lambda n, done: n.r.disconnect(True, done),
    "invalidate": lambda n, done: n.r.invalidate(0, done),
    "invalidate-remote": lambda n, done: n.r.invalidate_remote(0, done),
    "pause-sync": lambda n, done: n.r.pause_sync(0, done),
    "resume-sync": lambda n, done: n.r.resume_sync(0, done),
    "detach": lambda n, done: n.r.detach(0, False, done),
}


@pytest.mark.parametrize("seed", range(25))
def test_commands_at_any_moment_end_exactly_once(seed: int) -> None:
    pair = synced(seed=seed, size=4 * MIB)
    rng = random.Random(seed)
    pending: list[tuple[str, list[Result]]] = []
    for _ in range(25):
        node = rng.choice((pair.alice, pair.bob))
        name = rng.choice(list(COMMANDS))
        pending.append((name, start(lambda done, c=COMMANDS[name], n=node: c(n, done))))  # type: ignore[misc]
        if rng.random() < 0.15:
            pair.network.break_all()
        if rng.random() < 0.1 and node.is_(disk=Disk.Diskless):
            disk = node.disks[0]
            apply_al(node.media[0])
            pending.append(
                ("attach", start(lambda done, n=node, d=disk: n.r.attach(0, d, d, INTERNAL, done)))  # type: ignore[misc]
            )
        pair.run(rng.choice((0.0, 0.0004, 0.01, 0.6)))
    pair.run(30)
    for name, results in pending:
        assert len(results) == 1, f"{name} ended {len(results)} times"
        error = results[0]
        assert error is None or isinstance(error, ReplicatorError)
    both = [n for n in (pair.alice, pair.bob) if n.is_(role=Role.Primary)]
    if pair.alice.is_(Conn.Connected):
        assert len(both) <= 1


def test_a_full_resync_needs_both_disks() -> None:
    pair = synced()
    pair.bob.do(lambda done: pair.bob.r.detach(0, False, done))
    pair.run(1)
    with pytest.raises(StateRefused, match=r"\(-4\) Can not resync without local disk"):
        pair.bob.do(lambda done: pair.bob.r.invalidate(0, done))
    with pytest.raises(StateRefused, match=r"\(-5\) Can not resync without remote disk"):
        pair.alice.do(lambda done: pair.alice.r.invalidate_remote(0, done))
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)


def test_a_disk_that_goes_while_the_peer_is_asked_for_a_full_resync_ends_both_commands() -> None:
    pair = synced()
    resync = start(lambda done: pair.bob.r.invalidate(0, done))
    detach = start(lambda done: pair.bob.r.detach(0, True, done))
    pair.run(2)
    assert detach == [None]
    assert len(resync) == 1 and isinstance(resync[0], StateRefused)
    assert pair.bob.is_(Conn.Connected, Disk.Diskless)
    assert pair.alice.is_(Conn.Connected, Disk.UpToDate, Disk.Diskless)
