"""The NBD server's transmission phase without I/O: which requests come out of which bytes, what is
refused with which errno, and that memory and budget are kept whatever a client sends."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_plugin.native.inbox import BUFFER, LARGE, Inbox
from nbd_plugin.native.transmission import COST_MAX, REQUEST_COST, Request, Transmission
from tests.tools import nbd_bytes as nbd

MIB = 1 << 20
SIZE = 64 << 20
MAXIMUM = 32 << 20
PLENTY = 1 << 40


class Stream:
    """Feeds bytes as a connection would and collects what comes out."""

    def __init__(self, **agreed: Any) -> None:
        self.inbox = Inbox()
        self.transmission = Transmission(self.inbox, SIZE, **agreed)
        self.requests: list[Request] = []

    def feed(self, data: bytes, piece: int = BUFFER, budget: int = PLENTY) -> Stream:
        view = memoryview(data)
        while view and self.transmission.ended is None:
            space = self.inbox.get_space()
            assert len(space) > 0
            count = min(len(space), len(view), piece)
            space[:count] = view[:count]
            self.inbox.received(count)
            view = view[count:]
            self.requests += self.transmission.take(budget)
        return self


def requests(data: bytes, **agreed: Any) -> list[Request]:
    return Stream(**agreed).feed(data).requests


def only(data: bytes, **agreed: Any) -> Request:
    """The one request in `data`, after which a good one must still be understood."""
    found = requests(data + nbd.request(nbd.FLUSH, cookie=999), **agreed)
    assert [one.cookie for one in found[1:]] == [999]
    return found[0]


def test_a_write_comes_with_its_data() -> None:
    data = bytes(range(256)) * 4
    found = only(nbd.write(512, data, flags=nbd.FUA, cookie=7))
    assert found == Request(nbd.WRITE, nbd.FUA, 7, 512, 1024, REQUEST_COST + 1024, data, 0)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (nbd.READ, 0),
        (nbd.TRIM, nbd.FUA),
        (nbd.WRITE_ZEROES, nbd.NO_HOLE | nbd.FUA),
        (nbd.BLOCK_STATUS, nbd.REQ_ONE),
    ],
)
def test_commands_without_payload_come_with_their_range(command: int, flags: int) -> None:
    found = only(nbd.request(command, 512, 4096, flags=flags, cookie=1 << 63), allocation=True)
    assert (found.command, found.flags, found.cookie) == (command, flags, 1 << 63)
    assert (found.offset, found.length, found.error) == (512, 4096, 0)


@pytest.mark.parametrize("length", [LARGE, LARGE + 512, BUFFER, MIB, MIB + 512, MAXIMUM])
def test_large_payloads_arrive_whole_and_keep_their_content(length: int) -> None:
    pattern = bytes(range(251)) * (length // 251 + 2)
    first, second = pattern[:length], pattern[7 : 7 + length]
    found = Stream().feed(nbd.write(0, first) + nbd.write(512, second), 100_000).requests
    assert [one.length for one in found] == [length, length]
    assert bytes(found[0].data) == first, "not overwritten by what came later"
    assert bytes(found[1].data) == second


def test_the_end_of_the_export_is_where_it_is() -> None:
    assert only(nbd.request(nbd.READ, SIZE - 512, 512)).error == 0
    assert only(nbd.request(nbd.READ, SIZE - 512, 1024)).error == errno.EINVAL
    assert only(nbd.write(SIZE - 512, bytes(1024))).error == errno.ENOSPC
    assert only(nbd.request(nbd.WRITE_ZEROES, SIZE, 512)).error == errno.ENOSPC
    assert only(nbd.request(nbd.TRIM, SIZE, 512)).error == errno.EINVAL
    assert only(nbd.request(nbd.READ, (1 << 64) - 512, 512)).error == errno.EINVAL


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (nbd.request(nbd.READ, 100, 512), errno.EINVAL),
        (nbd.write(0, bytes(100)), errno.EINVAL),
        (nbd.request(nbd.READ, 0, 0), errno.EINVAL),
        (nbd.write(0, b""), errno.EINVAL),
        (nbd.request(nbd.READ, 0, MAXIMUM + 512), errno.EINVAL),
        (nbd.request(nbd.READ, 0, 512, flags=nbd.DF), errno.EINVAL),
        (nbd.request(nbd.READ, 0, 512, flags=32), errno.EINVAL),
        (nbd.request(nbd.FLUSH, 512, 0), errno.EINVAL),
        (nbd.request(nbd.FLUSH, 0, 512), errno.EINVAL),
        (nbd.request(nbd.CACHE, 0, 512), errno.EINVAL),
        (nbd.request(nbd.BLOCK_STATUS, 0, 512), errno.EINVAL),
        (nbd.request(77, 0, 512), errno.EINVAL),
        (nbd.request(nbd.TRIM, 0, 512, flags=nbd.NO_HOLE), errno.EINVAL),
        (nbd.request(nbd.WRITE_ZEROES, 0, 512, flags=nbd.FAST_ZERO), errno.ENOTSUP),
    ],
)
def test_a_request_that_must_not_be_carried_out_gets_its_errno(data: bytes, expected: int) -> None:
    assert only(data).error == expected


def test_df_is_allowed_where_structured_replies_are() -> None:
    assert only(nbd.request(nbd.READ, 0, 512, flags=nbd.DF), structured=True).error == 0


def test_fua_is_accepted_everywhere() -> None:
    for command in (nbd.READ, nbd.TRIM, nbd.WRITE_ZEROES):
        assert only(nbd.request(command, 0, 512, flags=nbd.FUA)).error == 0
    assert only(nbd.request(nbd.FLUSH, flags=nbd.FUA)).error == 0


def test_a_read_only_export_is_not_written() -> None:
    for data in (
        nbd.write(0, bytes(512)),
        nbd.request(nbd.TRIM, 0, 512),
        nbd.request(nbd.WRITE_ZEROES, 0, 512),
    ):
        assert only(data, read_only=True).error == errno.EPERM
    assert only(nbd.request(nbd.READ, 0, 512), read_only=True).error == 0


def test_the_payload_of_a_refused_write_is_skipped_however_long() -> None:
    length = MAXIMUM + 512
    found = only(nbd.write(0, bytes(length), cookie=5))
    assert (found.cookie, found.error, found.data) == (5, errno.EINVAL, b"")


def test_disc_ends_in_order_and_nothing_after_it_is_heard() -> None:
    stream = Stream().feed(
        nbd.request(nbd.FLUSH) + nbd.request(nbd.DISC) + nbd.request(nbd.FLUSH) + b"rubbish"
    )
    assert [one.command for one in stream.requests] == [nbd.FLUSH]
    assert stream.transmission.ended == ""


def test_a_wrong_magic_ends_the_connection_but_not_what_came_before() -> None:
    stream = Stream().feed(nbd.request(nbd.FLUSH) + b"\x25\x60\x95\x14" + bytes(24))
    assert len(stream.requests) == 1
    assert stream.transmission.ended == "a request begins with 0x25609514, expected 0x25609513"


def test_what_the_budget_does_not_allow_waits_and_comes_later_in_order() -> None:
    inbox = Inbox()
    transmission = Transmission(inbox, SIZE)
    count = BUFFER // 28
    data = b"".join(nbd.request(nbd.READ, 0, MAXIMUM, cookie=n) for n in range(count))
    inbox.get_space()[: len(data)] = data
    inbox.received(len(data))
    cookies: list[int] = []
    while len(cookies) < count:
        found = transmission.take(COST_MAX)
        assert len(found) == 1, "each is as dear as the whole budget"
        assert transmission.waiting or len(cookies) == count - 1
        cookies.append(found[0].cookie)
    assert cookies == list(range(count))
    assert transmission.take(COST_MAX) == []


def test_no_memory_is_taken_for_a_payload_that_the_budget_does_not_allow() -> None:
    stream = Stream()
    stream.feed(nbd.write(0, bytes(MAXIMUM))[:1000], budget=MAXIMUM)
    assert stream.transmission.waiting
    assert not stream.inbox.awaits_payload
    assert stream.transmission.take(COST_MAX) == []
    assert stream.inbox.awaits_payload


COMMANDS = st.one_of(
    st.builds(
        nbd.request,
        st.sampled_from([nbd.READ, nbd.FLUSH, nbd.TRIM, nbd.WRITE_ZEROES, nbd.CACHE, 99]),
        st.sampled_from([0, 512, 100, SIZE, 1 << 63]),
        st.sampled_from([0, 512, 4096, 100, MAXIMUM + 512]),
        flags=st.sampled_from([0, 1, 2, 16, 64]),
        cookie=st.integers(0, 2**64 - 1),
    ),
    st.builds(
        nbd.write,
        st.sampled_from([0, 512, 100, SIZE]),
        st.binary(min_size=512, max_size=512).map(lambda one: one * 2)
        | st.sampled_from([b"", bytes(100), bytes(LARGE + 512), bytes(range(256)) * 2048]),
        flags=st.sampled_from([0, 1, 2]),
        cookie=st.integers(0, 2**64 - 1),
    ),
)


def plain(found: list[Request]) -> list[tuple[object, ...]]:
    return [(*one[:6], bytes(one.data), one.error) for one in found]


@given(st.lists(COMMANDS, max_size=12), st.one_of(st.integers(1, 60), st.integers(1000, BUFFER)))
def test_how_the_bytes_are_cut_makes_no_difference(commands: list[bytes], piece: int) -> None:
    data = b"".join(commands)
    piece = max(piece, len(data) // 2000)
    whole, cut = Stream().feed(data), Stream().feed(data, piece)
    assert plain(cut.requests) == plain(whole.requests)
    assert len(whole.requests) == len(commands), "each request gets an answer"
    assert cut.transmission.ended is None


@given(st.lists(COMMANDS, max_size=12), st.integers(1, 3))
def test_budget_changes_when_but_not_what(commands: list[bytes], share: int) -> None:
    """With a budget for few at a time, as a connection gives it, the same requests come out."""
    data = b"".join(commands)
    expected = plain(Stream().feed(data).requests)
    stream, view, in_flight = Stream(), memoryview(data), 0
    budget = COST_MAX * share // 2 if share > 1 else COST_MAX
    while len(stream.requests) < len(expected):
        found = stream.transmission.take(budget - in_flight)
        in_flight += sum(one.cost for one in found)
        assert in_flight <= budget
        stream.requests += found
        if stream.transmission.waiting:
            in_flight = 0  # all that was under way ends
        elif not found:
            space = stream.inbox.get_space()
            count = min(len(space), len(view))
            assert count, "it neither waits for budget nor for bytes"
            space[:count] = view[:count]
            stream.inbox.received(count)
            view = view[count:]
    assert plain(stream.requests) == expected


@given(st.binary(max_size=300), st.lists(COMMANDS, max_size=3))
def test_garbage_ends_the_connection_and_never_raises(junk: bytes, before: list[bytes]) -> None:
    stream = Stream().feed(b"".join(before) + b"\0" + junk + bytes(28))
    assert len(stream.requests) == len(before)
    assert stream.transmission.ended


@given(st.lists(COMMANDS, min_size=1, max_size=4), st.data())
def test_a_spoilt_byte_never_raises_and_keeps_what_comes_out_within_the_export(
    commands: list[bytes], data: st.DataObject
) -> None:
    spoilt = bytearray(b"".join(commands))
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, min(len(spoilt), 200) - 1))] = data.draw(
            st.integers(0, 255)
        )
    for one in Stream().feed(bytes(spoilt)).requests:
        if not one.error and one.command != nbd.FLUSH:
            assert 0 < one.length <= SIZE - one.offset
            assert one.offset % 512 == one.length % 512 == 0
        if not one.error and one.command == nbd.WRITE:
            assert len(one.data) == one.length
