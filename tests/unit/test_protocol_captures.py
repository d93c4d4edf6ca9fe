"""Our codec against kernels: every recorded conversation is understood to its last byte.

tests/vectors/README.md says what was recorded.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import pytest

from protocol import auth, digests, features
from protocol.bitmaps import BitmapReceiver, BitmapSender
from protocol.compat import compare_protocol, compare_sync_param
from protocol.packets import (
    IN_SYNC,
    SYNCER_ID,
    Barrier,
    BarrierAck,
    BlockAck,
    BlockRequest,
    Command,
    Data,
    Features,
    Packet,
    ProtocolParams,
    Raw,
    Sizes,
    StateReport,
    SyncParam,
    decode,
    encode,
    encode_h80,
)
from protocol.states import Conn, StateWord
from tests.vectors import EARLY, MIXED, Conversation, Recorded, Stream, load, names

NAMES = names()
WITH_US = names(MIXED)
BLOCK = 4096
DEVICE_BITS = 1014
"""Both nodes' devices: 4056 KiB."""
DAMAGED = {16, 768}
"""Blocks of beta's disk that were overwritten behind DRBD's back in `verify`."""
SECRETS = {
    ("auth", "127.0.0.1"): "captured secret",
    ("auth", "127.0.0.2"): "captured secret",
    ("wrong-secret", "127.0.0.1"): "secret of alpha",
    ("wrong-secret", "127.0.0.2"): "secret of beta",
}

every_conversation = pytest.mark.parametrize("name", NAMES + WITH_US)


class Decoded(NamedTuple):
    recorded: Recorded
    packet: Packet


@cache
def decoded(name: str) -> dict[Stream, list[Decoded]]:
    """Every packet of a conversation, by stream. Data digests are where the sender's P_PROTOCOL said."""
    found = {}
    for stream in load(name).streams:
        digest_size, packets = 0, []
        for recorded in stream.frames():
            frame = recorded.frame
            packet = decode(frame.command, frame.payload, digest_size=digest_size)
            if isinstance(packet, ProtocolParams):
                digest_size = digests.digest_size(packet.integrity_alg)
            packets.append(Decoded(recorded, packet))
        found[stream] = packets
    return found


def of_kind(packets: list[Decoded], command: Command) -> list[Packet]:
    return [packet for recorded, packet in packets if recorded.frame.command == command]


def by_volume(packets: list[Decoded], *commands: Command) -> dict[int, list[Decoded]]:
    volumes: dict[int, list[Decoded]] = {}
    for one in packets:
        if one.recorded.frame.command in commands:
            volumes.setdefault(one.recorded.frame.volume, []).append(one)
    return volumes


def test_there_are_23_conversations_with_all_commands_a_kernel_sends() -> None:
    assert len(NAMES) == 23
    seen = Counter(
        Command(recorded.frame.command)
        for name in NAMES
        for packets in decoded(name).values()
        for recorded, _ in packets
    )
    never = set(Command) - set(seen)
    assert never == {
        Command.SUPERSEDED,
        Command.NEG_ACK,
        Command.NEG_DREPLY,
        Command.NEG_RS_DREPLY,
        Command.DELAY_PROBE,
        Command.RS_CANCEL,
        Command.RETRY_WRITE,
        Command.PROTOCOL_UPDATE,
        Command.WSAME,
        Command.EXTENSION,
        Command.META_EXTENSION,
    }
    assert seen.total() > 8000


@every_conversation
def test_every_stream_is_parsed_to_its_end(name: str) -> None:
    conversation = load(name)
    assert conversation.streams
    for stream in conversation.streams:
        assert sum(len(one.raw) for one in stream.frames()) == len(stream.data)
    totals = Counter[int]()
    for index, count in conversation.order:
        totals[index] += count
    assert all(totals[i] == len(s.data) for i, s in enumerate(conversation.streams))


@every_conversation
@pytest.mark.parametrize("piece", [7, 1448])
def test_every_stream_gives_the_same_frames_in_small_pieces(name: str, piece: int) -> None:
    for stream in load(name).streams:
        if len(stream.data) < 200_000 or piece > 100:
            assert stream.frames(piece) == stream.frames()


def without_pad(command: int, raw: bytes) -> bytes:
    """The frame with the four bytes zeroed that a kernel leaves as they were in memory."""
    if Command(command) in (Command.OUT_OF_SYNC, Command.RS_DEALLOCATED):
        return raw[:28] + bytes(4) + raw[32:]
    if isinstance(decode(command, raw[16:]), BlockRequest):
        return raw[:36] + bytes(4) + raw[40:]
    return raw


@every_conversation
def test_every_packet_is_encoded_again_byte_for_byte(name: str) -> None:
    for packets in decoded(name).values():
        for (frame, raw), packet in packets:
            if frame.command in EARLY:
                assert encode_h80(frame.command, packet) == raw
            else:
                again = encode(frame.volume, frame.command, packet)
                if again != raw:
                    assert again == without_pad(frame.command, raw)


@every_conversation
def test_the_nodes_agree_on_version_101_and_one_of_them_is_ours_at_most(name: str) -> None:
    conversation = load(name)
    for stream, packets in decoded(name).items():
        own = of_kind(packets, Command.CONNECTION_FEATURES)
        peer = of_kind(decoded(name)[conversation.peer_of(stream)], Command.CONNECTION_FEATURES)
        for one, other in zip(own, peer, strict=False):
            assert isinstance(one, Features) and isinstance(other, Features)
            flags = 15 if name != "rec-digests" else 7
            assert features.agree(one, other) == features.Agreed(101, flags, 0)


def data_streams(conversation: Conversation) -> list[tuple[Stream, Stream]]:
    """Both directions of each data socket on which parameters were exchanged."""
    return [
        (stream, conversation.peer_of(stream))
        for stream in conversation.streams
        if stream.socket == "d"
        and stream.sender == "127.0.0.1"
        and of_kind(decoded(conversation.name)[stream], Command.PROTOCOL)
    ]


@every_conversation
def test_parameters_fit_together_unless_the_conversation_is_about_that(name: str) -> None:
    conversation = load(name)
    for alpha, beta in data_streams(conversation):
        [own], [peer] = (of_kind(decoded(name)[one], Command.PROTOCOL) for one in (alpha, beta))
        assert isinstance(own, ProtocolParams) and isinstance(peer, ProtocolParams)
        verdict = compare_protocol(own, peer)
        if name == "other-protocol":
            assert verdict == "protocol differs: C here, A on the peer"
        else:
            assert verdict is None
        for one, other in zip(
            of_kind(decoded(name)[alpha], Command.SYNC_PARAM89),
            of_kind(decoded(name)[beta], Command.SYNC_PARAM89),
            strict=False,
        ):
            assert isinstance(one, SyncParam) and isinstance(other, SyncParam)
            assert compare_sync_param(one, other) is None


@every_conversation
def test_parameters_come_in_this_order_for_each_volume(name: str) -> None:
    order = [Command.SYNC_PARAM89, Command.SIZES, Command.UUIDS, Command.STATE]
    for pair in data_streams(load(name)):
        for stream in pair:
            packets = decoded(name)[stream]
            established = [one for one in packets if one.recorded.frame.command not in EARLY]
            first = established[0].recorded.frame.command
            assert first in (Command.PROTOCOL, Command.AUTH_CHALLENGE)
            for volume in by_volume(packets, *order).values():
                assert [one.recorded.frame.command for one in volume[:4]] == order


@every_conversation
def test_every_state_word_names_states_of_8_4(name: str) -> None:
    for packets in decoded(name).values():
        for packet in of_kind(packets, Command.STATE):
            assert isinstance(packet, StateReport)
            assert StateWord.unpack(packet.word).pack() == packet.word


def test_a_kernels_first_state_says_it_is_still_waiting_for_the_connection() -> None:
    for name in NAMES:
        for pair in data_streams(load(name)):
            for stream in pair:
                first = of_kind(decoded(name)[stream], Command.STATE)[0]
                assert isinstance(first, StateReport)
                assert StateWord.unpack(first.word).conn is Conn.WFConnection


@every_conversation
def test_every_epoch_is_acknowledged_in_order_with_its_number_of_writes(name: str) -> None:
    conversation, packets = load(name), decoded(name)
    writes = (Command.DATA, Command.TRIM, Command.ZEROES)
    acknowledged = {
        stream.sender: [
            packet
            for other in conversation.streams
            if other.sender == stream.sender
            for packet in of_kind(packets[other], Command.BARRIER_ACK)
        ]
        for stream in conversation.streams
    }
    epochs: dict[str, list[BarrierAck]] = {}
    for stream in conversation.streams:
        count = 0
        receiver = conversation.peer_of(stream).sender
        for recorded, packet in packets[stream]:
            count += recorded.frame.command in writes
            if isinstance(packet, Barrier):
                epochs.setdefault(receiver, []).append(BarrierAck(packet.barrier, count))
                count = 0
    for sender, acks in acknowledged.items():
        expected = epochs.get(sender, [])
        if name != "lost-peer":  # there a connection was cut with epochs under way
            assert acks == expected
        assert all(ack in expected for ack in acks)


@every_conversation
def test_sequence_numbers_count_writes_and_acknowledgements_of_a_volume(name: str) -> None:
    conversation, packets = load(name), decoded(name)
    for stream in conversation.streams:
        numbers: dict[int, list[int]] = {}
        for recorded, packet in packets[stream]:
            if isinstance(packet, BlockAck):
                numbers.setdefault(recorded.frame.volume, []).append(packet.seq_num)
        for series in numbers.values():
            assert all(earlier < later for earlier, later in pairwise(series))


# --- authentication -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auth", "wrong-secret"])
def test_each_response_is_the_hmac_of_the_others_challenge_under_its_own_secret(name: str) -> None:
    conversation, packets = load(name), decoded(name)
    checked = 0
    for stream in conversation.streams:
        peer = conversation.peer_of(stream)
        for mine, answer in zip(
            of_kind(packets[peer], Command.AUTH_CHALLENGE),
            of_kind(packets[stream], Command.AUTH_RESPONSE),
            strict=True,
        ):
            assert isinstance(mine, Raw) and isinstance(answer, Raw)
            assert len(mine.payload) == auth.CHALLENGE_SIZE
            secret = SECRETS[name, stream.sender]
            auth.verify("sha256", secret, mine.payload, answer.payload)
            verifier = SECRETS[name, peer.sender]
            if verifier != secret:
                with pytest.raises(auth.AuthError):
                    auth.verify("sha256", verifier, mine.payload, answer.payload)
            checked += 1
    assert checked == 2


# --- bitmaps --------------------------------------------------------------------------------------


def transfers() -> list[tuple[str, list[tuple[int, bytes]]]]:
    """Every bitmap that was sent, as its packets."""
    found = []
    for name in NAMES:
        for packets in decoded(name).values():
            volumes = by_volume(packets, Command.BITMAP, Command.COMPRESSED_BITMAP)
            for volume in volumes.values():
                receiver, current = BitmapReceiver(DEVICE_BITS), []
                for recorded, _ in volume:
                    frame = recorded.frame
                    receiver.receive(frame.command, frame.payload)
                    current.append((frame.command, frame.payload))
                    if receiver.complete:
                        found.append((name, current))
                        receiver, current = BitmapReceiver(DEVICE_BITS), []
                assert not current, f"{name}: a bitmap did not end"
    return found


def test_every_bitmap_is_complete_and_our_sender_would_have_sent_the_same_packets() -> None:
    everything = transfers()
    assert len(everything) >= 36
    for name, packets in everything:
        receiver, bitmap = BitmapReceiver(DEVICE_BITS), 0
        for command, payload in packets:
            for first, count in receiver.receive(command, payload):
                bitmap |= ((1 << count) - 1) << first
        again = BitmapSender(DEVICE_BITS, bitmap.to_bytes(128, "little"), name != "no-rle")
        assert list(again) == packets, name


def test_a_bitmap_has_as_many_bits_as_the_devices_announced_have_blocks() -> None:
    for name in NAMES:
        for packets in decoded(name).values():
            for packet in of_kind(packets, Command.SIZES):
                assert isinstance(packet, Sizes)
                assert packet.d_size in (0, DEVICE_BITS * 8)


# --- digests --------------------------------------------------------------------------------------


def test_every_data_digest_is_that_of_the_data() -> None:
    checked = Counter[int]()
    for packets in decoded("integrity").values():
        for recorded, packet in packets:
            if isinstance(packet, Data):
                assert packet.digest == digests.digest("crc32c", packet.data)
                checked[recorded.frame.command] += 1
    assert checked[Command.DATA] > 20
    assert checked[Command.RS_DATA_REPLY] > 3


@pytest.mark.parametrize("name", ["csums", "outage-csums"])
def test_a_checksum_request_is_answered_with_data_only_where_the_digest_differs(name: str) -> None:
    conversation, packets = load(name), decoded(name)
    requests, replies, equal = {}, {}, set()
    for stream in conversation.streams:
        for recorded, packet in packets[stream]:
            command = recorded.frame.command
            if command == Command.CSUM_RS_REQUEST and isinstance(packet, BlockRequest):
                requests[packet.sector] = packet
            elif command == Command.RS_DATA_REPLY and isinstance(packet, Data):
                replies[packet.sector] = packet
            elif command == Command.RS_IS_IN_SYNC and isinstance(packet, BlockAck):
                equal.add(packet.sector)
    assert requests
    for sector, request in requests.items():
        assert request.block_id == SYNCER_ID
        assert (sector in equal) != (sector in replies)
        if sector in replies:
            assert len(replies[sector].data) == request.blksize
            assert digests.digest("crc32c", replies[sector].data) != request.digest


def test_every_verified_block_has_one_verdict_and_the_damaged_ones_are_found() -> None:
    replied, verdicts = Counter[int](), Counter[tuple[int, bool]]()
    for packets in decoded("verify").values():
        for recorded, packet in packets:
            if recorded.frame.command == Command.OV_REPLY and isinstance(packet, BlockRequest):
                assert len(packet.digest) == digests.digest_size("crc32c")
                replied[packet.sector // 8] += 1
            elif recorded.frame.command == Command.OV_RESULT and isinstance(packet, BlockAck):
                verdicts[packet.sector // 8, packet.block_id == IN_SYNC] += 1
    # Two runs over the device; between them two places of beta's disk were damaged.
    assert replied == dict.fromkeys(range(DEVICE_BITS), 2)
    damaged = {block for block, equal in verdicts if not equal}
    assert damaged == DAMAGED
    assert verdicts.total() == 2 * DEVICE_BITS
    assert all(verdicts[block, True] == (1 if block in damaged else 2) for block in replied)


# --- data -----------------------------------------------------------------------------------------


def test_resync_data_is_what_the_block_numbers_in_it_say() -> None:
    checked = 0
    for packets in decoded("invalidate").values():
        for packet in of_kind(packets, Command.RS_DATA_REPLY):
            assert isinstance(packet, Data) and packet.block_id == SYNCER_ID
            for offset in range(0, len(packet.data), BLOCK):
                line = packet.data[offset : offset + 16]
                block = packet.sector // 8 + offset // BLOCK
                if line[:5] in (b"alpha", b"beta "):
                    assert int(line[5:15]) == block
                    checked += 1
    assert checked > 500
