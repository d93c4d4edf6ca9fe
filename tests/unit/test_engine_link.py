"""The handshake of a connection as a scripted peer sees it: features, authentication, framing."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protocol import auth
from protocol.framing import FrameReader
from protocol.packets import (
    Barrier,
    Command,
    Empty,
    Features,
    Raw,
    block_ack,
    data_header,
    decode,
    encode,
    encode_h80,
)
from protocol.states import Conn
from replicator.engine.link import EXTENSION_VERSION, Phase
from replicator.engine.settings import NetSettings
from tests.unit.link_talk import KERNEL, REPLICATOR, SECRET, THEIR_CHALLENGE, Talk, frame

# --- features ------------------------------------------------------------------------------------


def test_the_first_thing_said_is_our_features() -> None:
    talk = Talk()
    talk.clock.run(0.01)
    reader = FrameReader("d")
    reader.feed(bytes(talk.data.heard))
    frame = reader.next_frame()
    assert frame is not None
    packet: Any = decode(frame.command, frame.payload)
    assert (packet.protocol_min, packet.protocol_max) == (100, 101)
    assert packet.replicator == EXTENSION_VERSION


@pytest.mark.parametrize(
    ("features", "version", "extension", "wsame", "zeroes"),
    [
        (KERNEL, 101, 0, True, False),
        (REPLICATOR, 101, EXTENSION_VERSION, True, True),
        (Features(86, 1, 100, 0), 100, 0, False, False),
        (Features(101, 0, 122, 0), 101, 0, False, False),
    ],
)
def test_what_both_can_is_agreed_upon(
    features: Features, version: int, extension: int, wsame: bool, zeroes: bool
) -> None:
    talk = Talk()
    talk.up(features)
    link = talk.link
    assert (link.version, link.peer_extension) == (version, extension)
    assert (link.with_wsame, link.with_zeroes) == (wsame, zeroes)


def test_zeroes_are_not_offered_together_with_data_digests() -> None:
    talk = Talk(NetSettings(data_integrity_alg="md5"))
    talk.up(REPLICATOR)
    assert not talk.link.with_zeroes


@pytest.mark.parametrize("features", [Features(86, 1, 99, 0), Features(102, 1, 122, 0)])
def test_no_common_version_stands_alone_and_names_both_ranges(features: Features) -> None:
    talk = Talk()
    talk.say(encode_h80(Command.CONNECTION_FEATURES, features))
    state, reason, stand_alone = talk.end()
    assert stand_alone and state is Conn.Disconnecting
    assert (
        "100 to 101" in reason and f"{features.protocol_min} to {features.protocol_max}" in reason
    )
    assert talk.owner.up == 0


def test_extensions_are_refused_from_a_peer_that_is_no_replicator() -> None:
    talk = Talk()
    talk.up(KERNEL)
    talk.say(encode(0, Command.EXTENSION, Raw(b"\x80")))
    state, reason, _ = talk.end()
    assert state is Conn.ProtocolError and "from a replicator" in reason


def test_a_peer_that_says_nothing_is_given_four_ping_timeouts() -> None:
    talk = Talk()
    talk.clock.run(1.9)
    assert not talk.owner.lost
    talk.clock.run(0.2)
    state, reason, stand_alone = talk.end()
    assert state is Conn.BrokenPipe and not stand_alone
    assert "no features within 2 s" in reason


def test_what_arrived_before_the_handshake_began_is_not_lost() -> None:
    features = encode_h80(Command.CONNECTION_FEATURES, REPLICATOR)
    barrier = encode(0, Command.BARRIER, Barrier(7))
    ping = encode(0, Command.PING, Empty())
    talk = Talk(None, features + barrier[:5], ping)
    talk.say(barrier[5:])
    assert talk.owner.up == 1
    assert [name for name, *_ in talk.owner.packets] == ["BARRIER"]
    assert talk.said_meta() == ["PING_ACK"]


# --- authentication ------------------------------------------------------------------------------


def challenge_of(talk: Talk) -> bytes:
    frame = talk.said()[0]
    assert frame.command == Command.AUTH_CHALLENGE
    return frame.payload


def response_to(talk: Talk, alg: str = "sha256", secret: str = "open sesame") -> bytes:
    return encode(0, Command.AUTH_RESPONSE, Raw(auth.response(alg, secret, challenge_of(talk))))


def challenged(net: NetSettings = SECRET) -> Talk:
    """Features exchanged, the peer's challenge sent and answered."""
    talk = Talk(net)
    talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    talk.say(encode(0, Command.AUTH_CHALLENGE, Raw(THEIR_CHALLENGE)))
    return talk


def test_both_prove_that_they_know_the_secret() -> None:
    talk = challenged()
    assert [Command(frame.command).name for frame in talk.said()] == [
        "AUTH_CHALLENGE",
        "AUTH_RESPONSE",
    ]
    assert talk.said()[1].payload == auth.response("sha256", "open sesame", THEIR_CHALLENGE)
    assert talk.owner.up == 0, "up before the peer has proven anything"
    talk.say(response_to(talk))
    assert talk.owner.up == 1 and talk.link.phase is Phase.UP


def test_a_wrong_secret_stands_alone() -> None:
    talk = challenged()
    talk.say(response_to(talk, secret="open barley"))
    _state, reason, stand_alone = talk.end()
    assert stand_alone and "shared-secret differs" in reason
    assert "open sesame" not in reason


def test_another_algorithm_on_the_peer_ends_the_connection() -> None:
    talk = challenged()
    talk.say(response_to(talk, alg="sha1"))
    _state, reason, _ = talk.end()
    assert "cram-hmac-alg" in reason and "sha256" in reason
    assert talk.owner.up == 0


def test_our_own_challenge_sent_back_is_not_answered() -> None:
    talk = Talk(SECRET)
    talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    talk.say(encode(0, Command.AUTH_CHALLENGE, Raw(challenge_of(talk))))
    _state, reason, stand_alone = talk.end()
    assert stand_alone and "reflected" in reason
    assert len(talk.said()) == 1, "it was answered"


def test_a_peer_without_a_secret_is_told_apart_by_the_reason() -> None:
    talk = Talk(SECRET)
    talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    talk.say(encode(0, Command.BARRIER, Barrier(1)))
    _state, reason, stand_alone = talk.end()
    assert stand_alone and "cram-hmac-alg missing" in reason
    assert not talk.owner.packets


def test_a_response_instead_of_a_challenge_and_the_reverse_end_the_connection() -> None:
    talk = Talk(SECRET)
    talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    talk.say(response_to(talk))
    assert talk.end()[2]
    talk = challenged()
    talk.say(encode(0, Command.AUTH_CHALLENGE, Raw(THEIR_CHALLENGE)))
    assert "expected an authentication response" in talk.end()[1]


@pytest.mark.parametrize("silent_after", ["features", "challenge"])
def test_authentication_does_not_wait_for_ever(silent_after: str) -> None:
    talk = Talk(SECRET)
    talk.say(encode_h80(Command.CONNECTION_FEATURES, REPLICATOR))
    if silent_after == "challenge":
        talk.say(encode(0, Command.AUTH_CHALLENGE, Raw(THEIR_CHALLENGE)))
    talk.clock.run(3)
    state, reason, _ = talk.end()
    assert state is Conn.BrokenPipe and "within 2 s" in reason


def test_nothing_of_the_meta_socket_is_heard_before_the_peer_has_proven_itself() -> None:
    talk = challenged()
    talk.say_meta(encode(0, Command.PING, Empty()) + block_ack(0, Command.WRITE_ACK, 0, 1, 512, 1))
    assert talk.said_meta() == [] and not talk.owner.packets
    talk.say(response_to(talk))
    assert talk.said_meta() == ["PING_ACK"]
    assert [name for name, *_ in talk.owner.packets] == ["WRITE_ACK"]


# --- framing -------------------------------------------------------------------------------------


def conversation() -> list[bytes]:
    """Data socket of a peer: features, then packets of many sizes."""
    packets = [encode_h80(Command.CONNECTION_FEATURES, REPLICATOR)]
    for number in range(6):
        length = 512 << number
        packets.append(data_header(0, Command.DATA, 8, number, number, 0, b"", length))
        packets.append(bytes([number]) * length)
        packets.append(encode(0, Command.BARRIER, Barrier(number)))
        packets.append(encode(0, Command.UNPLUG_REMOTE, Empty()))
    return packets


def result_of(pieces: list[bytes]) -> list[tuple[str, int, int, bytes]]:
    talk = Talk()
    for piece in pieces:
        talk.link.data.received(piece)
    assert not talk.owner.lost
    return talk.owner.packets


def test_the_result_does_not_depend_on_how_the_bytes_arrive() -> None:
    packets = conversation()
    stream = b"".join(packets)
    whole = result_of([stream])
    assert len(whole) == 18
    assert result_of(packets) == whole
    assert result_of([stream[at : at + 1] for at in range(len(stream))]) == whole
    rng = random.Random(4)
    for _ in range(20):
        cuts = sorted({rng.randrange(len(stream)) for _ in range(30)} | {0})
        pieces = [stream[a:b] for a, b in zip(cuts, [*cuts[1:], len(stream)], strict=True)]
        assert result_of(pieces) == whole


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (frame(0x7777), "known command"),
        (frame(Command.BARRIER, bytes(7)), "length"),
        (frame(Command.BARRIER, bytes(8), pad=1), "pad"),
        (frame(Command.INITIAL_DATA), "before the features handshake"),
        (encode(0, Command.PING, Empty()), "expected on the meta socket"),
        (bytes(16), "magic"),
        (encode_h80(Command.CONNECTION_FEATURES, REPLICATOR), "h80 header"),
    ],
)
def test_a_frame_that_cannot_be_ends_the_connection_with_a_reason(
    packet: bytes, words: str
) -> None:
    talk = Talk()
    talk.up()
    talk.say(packet)
    state, reason, stand_alone = talk.end()
    assert state is Conn.ProtocolError and not stand_alone
    assert words in reason
    assert "bob" in reason, "the reason must name the connection"


def test_an_oversized_frame_ends_the_connection_before_its_payload_is_awaited() -> None:
    talk = Talk()
    talk.up()
    header = bytearray(data_header(0, Command.DATA, 0, 1, 1, 0, b"", 4096)[:16])
    header[8:12] = (1 << 30).to_bytes(4, "big")
    talk.say(bytes(header))
    _state, reason, _ = talk.end()
    assert "P_DATA" in reason and "length of 1073741824" in reason


def test_a_packet_that_the_owner_refuses_ends_the_connection_and_what_follows_is_not_heard() -> (
    None
):
    talk = Talk()
    talk.up()
    refused = frame(Command.STATE_CHG_REQ, bytes(8))
    misaligned = frame(Command.DATA_REQUEST, bytes(20) + (513).to_bytes(4, "big"))
    talk.say(misaligned + refused)
    assert talk.end()[0] is Conn.ProtocolError
    assert len(talk.owner.packets) == 1
