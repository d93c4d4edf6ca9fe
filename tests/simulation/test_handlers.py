"""The handlers that are not about fencing: when they are called, and what their answer decides."""

from __future__ import annotations

import errno

import pytest

from protocol.states import Conn, Disk
from tests.simulation.pair import Node, Pair
from tests.simulation.test_pair_faults import fail_data_area


def outdated_pair() -> Pair:
    """alice Primary with a write that bob misses, bob down."""
    pair = Pair()
    pair.up_synced()
    pair.bob.kill()
    pair.run(2)
    pair.alice.write(0, b"a" * 4096)
    return pair


@pytest.mark.parametrize("status", [1, 3, 127])
def test_before_resync_target_can_forbid_the_resync(status: int) -> None:
    pair = outdated_pair()
    pair.bob.up(connect=False)
    pair.bob.handlers.answers["before-resync-target"] = status
    pair.bob.connect()
    pair.run_until(lambda: pair.bob.is_(Conn.StandAlone))
    assert f"before-resync-target ended with exit status {status}" in pair.bob.r.last_error
    assert pair.bob.is_(disk=Disk.Outdated), "the data are old, but still consistent"
    assert pair.bob.data()[:4096] == bytes(4096)
    del pair.bob.handlers.answers["before-resync-target"]
    pair.bob.connect()
    pair.settle()
    assert pair.alice.data() == pair.bob.data()


@pytest.mark.parametrize("status", [1, 127])
def test_before_resync_source_can_forbid_the_resync(status: int) -> None:
    pair = outdated_pair()
    pair.alice.handlers.answers["before-resync-source"] = status
    pair.bob.up()
    pair.run_until(lambda: pair.alice.is_(Conn.StandAlone))
    assert "before-resync-source" in pair.alice.r.last_error
    pair.alice.write(4096, b"b" * 4096)


def test_exit_status_3_of_before_resync_source_is_ignored_as_drbd_does() -> None:
    pair = outdated_pair()
    pair.alice.handlers.answers["before-resync-source"] = 3
    pair.bob.up()
    pair.settle()


def test_nothing_is_written_on_the_target_before_its_handler_has_ended() -> None:
    """It may be making a snapshot of data that are still consistent."""
    pair = outdated_pair()
    pair.bob.up(connect=False)
    pair.bob.handlers.seconds["before-resync-target"] = 3.0
    pair.bob.connect()
    pair.run_until(lambda: "before-resync-target" in pair.bob.handlers.calls)
    before = pair.bob.data()
    answers: list[int] = []
    pair.alice.volume().write(8192, b"c" * 4096, False, answers.append)
    pair.run(2.5)
    assert pair.bob.data() == before
    assert pair.bob.is_(Conn.WFSyncUUID, Disk.Outdated)
    pair.settle()
    assert answers == [0]
    assert pair.alice.data() == pair.bob.data()


def test_a_handler_that_outlives_the_connection_begins_nothing() -> None:
    pair = outdated_pair()
    pair.bob.up(connect=False)
    pair.bob.handlers.seconds["before-resync-target"] = 1.0
    pair.bob.connect()
    pair.run_until(lambda: "before-resync-target" in pair.bob.handlers.calls)
    pair.network.break_all()
    pair.settle()
    assert pair.bob.handlers.calls.count("before-resync-target") == 2
    assert pair.bob.handlers.calls.count("after-resync-target") == 1
    assert pair.alice.data() == pair.bob.data()


def test_a_resync_calls_its_handlers_in_order() -> None:
    pair = outdated_pair()
    before = len(pair.alice.handlers.calls)
    pair.bob.up()
    pair.settle()
    assert pair.bob.handlers.calls == ["before-resync-target", "after-resync-target"]
    assert pair.alice.handlers.calls[before:] == ["before-resync-source"]


def lose_disk(node: Node) -> None:
    node.disks[0].fails = lambda _kind, _offset, _length: errno.EIO
    node.volume().write(0, b"x" * 4096, False, lambda _errno: None)
    node.pair.run(1)


def test_a_primary_that_loses_its_last_good_data_calls_pri_on_incon_degr_once() -> None:
    pair = outdated_pair()
    assert "pri-on-incon-degr" not in pair.alice.handlers.calls
    lose_disk(pair.alice)
    pair.run(10)
    assert pair.alice.handlers.calls.count("pri-on-incon-degr") == 1


def test_a_primary_that_still_reaches_good_data_does_not() -> None:
    pair = Pair()
    pair.up_synced()
    lose_disk(pair.alice)
    assert pair.alice.is_(disk=Disk.Diskless)
    assert "pri-on-incon-degr" not in pair.alice.handlers.calls


@pytest.mark.parametrize(
    ("policy", "called"), [("call-local-io-error", True), ("detach", False), ("pass_on", False)]
)
def test_local_io_error_is_called_only_where_it_is_the_policy(policy: str, called: bool) -> None:
    pair = Pair()
    pair.disk.on_io_error = policy
    pair.up_synced()
    fail_data_area(pair.alice, "write")
    pair.alice.write(0, b"a" * 4096)
    pair.run(1)
    assert ("local-io-error" in pair.alice.handlers.calls) is called
