"""An established connection as a scripted peer sees it: keep-alive, holding, pausing, endings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.packets import (
    Barrier,
    Command,
    Empty,
    block_ack,
    decode,
    encode,
    encode_h80,
)
from protocol.states import Conn
from replicator.engine.settings import NetSettings
from tests.unit.link_talk import REPLICATOR, SECRET, Talk

# --- keep-alive ----------------------------------------------------------------------------------


def test_a_ping_is_answered_at_once() -> None:
    talk = Talk()
    talk.up()
    talk.say_meta(encode(0, Command.PING, Empty()) * 3)
    assert talk.said_meta() == ["PING_ACK"] * 3


def test_a_quiet_connection_is_asked_every_ping_int_and_ended_without_an_answer() -> None:
    talk = Talk()
    talk.up()
    talk.clock.run(9.9)
    assert talk.said_meta() == []
    talk.clock.run(0.2)
    assert talk.said_meta() == ["PING"]
    talk.say_meta(encode(0, Command.PING_ACK, Empty()))
    talk.clock.run(11)
    assert talk.said_meta() == ["PING", "PING"]
    state, reason, stand_alone = talk.end()
    assert state is Conn.NetworkFailure and not stand_alone
    assert "no answer to a ping within 0.5 s" in reason


def test_whatever_the_peer_says_counts_as_life() -> None:
    talk = Talk()
    talk.up()
    for _ in range(8):
        talk.say(encode(0, Command.UNPLUG_REMOTE, Empty()), 5)
    assert talk.said_meta() == []


def test_a_busy_peer_may_answer_a_ping_late() -> None:
    talk = Talk()
    talk.up()
    heard: list[int] = []
    talk.link.ping(lambda: heard.append(1))
    for _ in range(8):
        talk.say(encode(0, Command.UNPLUG_REMOTE, Empty()), 0.3)
    assert not talk.owner.lost and not heard
    talk.say_meta(encode(0, Command.PING_ACK, Empty()))
    assert heard == [1]
    talk.clock.run(2)
    assert not talk.owner.lost


def test_pings_are_answered_in_order_and_none_may_be_answered_unasked() -> None:
    talk = Talk()
    talk.up()
    heard: list[int] = []
    for number in range(3):
        talk.link.ping(lambda n=number: heard.append(n))  # type: ignore[misc]
    talk.say_meta(encode(0, Command.PING_ACK, Empty()) * 2)
    assert heard == [0, 1]
    talk.say_meta(encode(0, Command.PING_ACK, Empty()))
    assert heard == [0, 1, 2]
    talk.say_meta(encode(0, Command.PING_ACK, Empty()))
    assert "no ping is outstanding" in talk.end()[1]


def test_a_ping_after_the_end_does_nothing() -> None:
    talk = Talk()
    talk.up()
    talk.link.fail(Conn.NetworkFailure, "test")
    talk.link.ping(lambda: pytest.fail("answered"))
    talk.clock.run(5)
    assert len(talk.owner.lost) == 1


# --- sending and holding -------------------------------------------------------------------------


def barriers(talk: Talk) -> list[int]:
    frames = [decode(frame.command, frame.payload) for frame in talk.said()]
    return [packet.barrier for packet in frames if isinstance(packet, Barrier)]


def test_held_data_waits_in_order_behind_what_must_not_be_interrupted() -> None:
    talk = Talk()
    talk.up()
    link = talk.link
    link.send_data(encode(0, Command.BARRIER, Barrier(1)))
    link.hold_data(True)
    link.send_data(encode(0, Command.BARRIER, Barrier(3)))
    link.send_uninterrupted(encode(0, Command.BARRIER, Barrier(2)))
    talk.clock.run(0.01)
    assert barriers(talk) == [1, 2]
    link.hold_data(False)
    link.send_data(encode(0, Command.BARRIER, Barrier(4)))
    talk.clock.run(0.01)
    assert barriers(talk) == [1, 2, 3, 4]


def test_the_owner_is_told_how_much_the_system_has_taken() -> None:
    talk = Talk()
    talk.up()
    talk.link.send_data(encode(0, Command.BARRIER, Barrier(1)))
    talk.clock.run(0.01)
    assert talk.owner.sent[-1] == talk.link.data.channel.queued == 80 + 24


def test_paused_data_keeps_its_order_and_the_meta_socket_goes_on() -> None:
    talk = Talk()
    talk.up()
    talk.say(encode(0, Command.BARRIER, Barrier(1)))
    talk.link.pause_data()
    talk.say(encode(0, Command.BARRIER, Barrier(2)) + encode(0, Command.BARRIER, Barrier(3)))
    talk.say(encode(0, Command.BARRIER, Barrier(4)))
    talk.say_meta(encode(0, Command.PING, Empty()))
    assert len(talk.owner.packets) == 1
    assert talk.said_meta() == ["PING_ACK"]
    talk.link.resume_data()
    talk.clock.run(0.01)
    assert [int(payload[3]) for *_, payload in talk.owner.packets] == [1, 2, 3, 4]


def test_the_data_socket_is_read_only_when_nothing_speaks_against_it() -> None:
    talk = Talk()
    talk.up()
    link = talk.link
    numbers = iter(range(1, 20))

    def reads() -> bool:
        before = link.data.last_received
        talk.say(encode(0, Command.BARRIER, Barrier(next(numbers))))
        return link.data.last_received > before

    assert reads()
    link.pause_data()
    link.buffers_full(True)
    assert not reads()
    link.resume_data()
    assert not reads(), "the buffers are still full"
    link.buffers_full(False)
    assert reads()
    link.buffers_full(True)
    link.pause_data()
    link.buffers_full(False)
    assert not reads(), "the data is still paused"
    link.resume_data()
    assert reads()
    assert [int(payload[3]) for *_, payload in talk.owner.packets] == list(range(1, 7))


# --- the end -------------------------------------------------------------------------------------


def test_what_the_peer_said_last_on_the_other_socket_is_still_heard() -> None:
    talk = Talk()
    talk.up()
    talk.data.channel.close()
    talk.say_meta(block_ack(0, Command.WRITE_ACK, 8, 1, 4096, 1))
    assert [name for name, *_ in talk.owner.packets] == ["WRITE_ACK"]
    assert not talk.owner.lost
    talk.clock.run(0.3)
    assert talk.end()[0] is Conn.BrokenPipe


def test_when_both_sockets_have_ended_nothing_is_waited_for() -> None:
    talk = Talk()
    talk.up()
    talk.data.channel.close()
    talk.meta.channel.close()
    talk.clock.run(0.01)
    assert talk.end()[0] is Conn.BrokenPipe


@pytest.mark.parametrize("net", [NetSettings(), SECRET])
def test_sockets_that_end_during_the_handshake_end_the_connection_once(net: NetSettings) -> None:
    talk = Talk(replace(net))
    if net is SECRET:
        talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    talk.data.channel.close()
    talk.clock.run(5)
    assert talk.end()[0] is Conn.BrokenPipe
    assert talk.owner.up == 0


def test_failing_twice_tells_the_owner_once() -> None:
    talk = Talk()
    talk.up()
    talk.link.fail(Conn.NetworkFailure, "first")
    talk.link.fail(Conn.BrokenPipe, "second", stand_alone=True)
    assert talk.end() == (Conn.NetworkFailure, "first", False)
    talk.link.send_data(b"x")
    talk.link.send_meta(b"x")


def test_no_timer_is_left_after_the_end() -> None:
    talk = Talk()
    talk.up()
    talk.link.ping()
    talk.link.fail(Conn.NetworkFailure, "test")
    talk.clock.run(1)
    assert not [timer for *_, timer in talk.clock._queue if timer.action is not None]
