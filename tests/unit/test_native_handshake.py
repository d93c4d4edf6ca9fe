"""The NBD server's handshake without I/O: what each option is answered, and how it ends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd_plugin.native.handshake import OPTION_DATA_MAX, OPTIONS_MAX, Handshake, Phase, Tls, Wanted
from nbd_plugin.native.inbox import BUFFER, Inbox
from tests.tools import nbd_bytes as nbd
from tests.tools.nbd_bytes import OptionReply

SIZE = 1 << 30
EXPORTS = [(0, "r0/0 /dev/drbd0"), (3, "r0/3 /dev/drbd3")]
FLAGS = 1 | 4 | 8 | 32 | 64 | 256
"""HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN."""
SEND_DF = 128


class Conversation:
    """A handshake whose questions are answered by a rule: exports in `refused` are."""

    def __init__(self, *, refused: tuple[int, ...] = (), tls: Tls = Tls.NONE) -> None:
        self.inbox = Inbox()
        self.handshake = Handshake(self.inbox, EXPORTS, tls)
        self.refused = refused
        self.asked: list[Wanted] = []
        self.sent = b""

    def say(self, data: bytes, piece: int = BUFFER) -> Conversation:
        for start in range(0, len(data), piece):
            part = memoryview(data)[start : start + piece]
            while part:
                if self.handshake.phase in (Phase.TRANSMISSION, Phase.ENDED):
                    return self
                space = self.inbox.get_space()
                count = min(len(space), len(part))
                space[:count] = part[:count]
                self.inbox.received(count)
                part = part[count:]
                self._work()
        return self

    def _work(self) -> None:
        while (wanted := self.handshake.next()) is not None:
            self.asked.append(wanted)
            if wanted.export in self.refused:
                self.handshake.refuse("this node is Secondary")
            else:
                self.handshake.grant(SIZE)
        self.sent += self.handshake.take_output()

    @property
    def phase(self) -> Phase:
        return self.handshake.phase

    def replies(self) -> list[OptionReply]:
        assert self.sent.startswith(nbd.GREETING)
        return nbd.option_replies(self.sent.removeprefix(nbd.GREETING))


def conversation(
    *options: bytes, refused: tuple[int, ...] = (), tls: Tls = Tls.NONE
) -> Conversation:
    return Conversation(refused=refused, tls=tls).say(nbd.client_flags() + b"".join(options))


def kinds(talk: Conversation) -> list[tuple[int, int]]:
    return [(reply.option, reply.kind) for reply in talk.replies()]


def test_the_server_speaks_first_and_offers_what_it_can() -> None:
    assert Handshake(Inbox(), EXPORTS).take_output() == nbd.GREETING


@pytest.mark.parametrize(
    ("flags", "padding"),
    [(0, 124), (1, 124), (3, 0), (2, 0)],
    ids=["old", "fixed", "both", "short"],
)
def test_export_name_opens_with_size_and_flags_and_padding_unless_agreed(
    flags: int, padding: int
) -> None:
    talk = Conversation().say(nbd.client_flags(flags) + nbd.option(nbd.EXPORT_NAME, b"3"))
    assert talk.sent == nbd.GREETING + struct.pack(">QH", SIZE, FLAGS) + bytes(padding)
    assert (talk.phase, talk.asked) == (Phase.TRANSMISSION, [Wanted(3, True)])


def test_go_opens_and_tells_the_size() -> None:
    talk = conversation(nbd.go("0"))
    assert talk.replies() == [
        OptionReply(nbd.GO, nbd.REP_INFO, struct.pack(">HQH", 0, SIZE, FLAGS)),
        OptionReply(nbd.GO, nbd.ACK, b""),
    ]
    assert (talk.phase, talk.asked) == (Phase.TRANSMISSION, [Wanted(0, True)])


def test_the_empty_name_is_the_lowest_export() -> None:
    assert conversation(nbd.go("")).asked == [Wanted(0, True)]


def test_go_tells_what_else_was_asked_for() -> None:
    replies = conversation(nbd.go("", (1, 2, 3, 77))).replies()
    assert [reply.data for reply in replies[1:]] == [
        struct.pack(">H", 1) + b"0",
        struct.pack(">H", 2) + b"r0/0 /dev/drbd0",
        struct.pack(">HIII", 3, 512, 4096, 32 << 20),
        b"",
    ]


def test_info_tells_the_same_and_leaves_the_choice_open() -> None:
    talk = conversation(nbd.go("3", number=nbd.INFO), nbd.go("0"))
    assert talk.asked == [Wanted(3, False), Wanted(0, True)]
    assert kinds(talk) == [
        (nbd.INFO, nbd.REP_INFO),
        (nbd.INFO, nbd.ACK),
        (nbd.GO, nbd.REP_INFO),
        (nbd.GO, nbd.ACK),
    ]


def test_a_refused_export_is_refused_with_the_reason_and_another_may_be_asked_for() -> None:
    talk = conversation(nbd.go("0"), nbd.go("3"), refused=(0,))
    assert talk.replies()[0] == OptionReply(nbd.GO, nbd.ERR_POLICY, b"this node is Secondary")
    assert talk.phase is Phase.TRANSMISSION


def test_export_name_cannot_be_refused_so_the_connection_ends() -> None:
    talk = conversation(nbd.option(nbd.EXPORT_NAME, b"0"), refused=(0,))
    assert (talk.phase, talk.handshake.ended) == (Phase.ENDED, "this node is Secondary")
    assert talk.sent == nbd.GREETING


@pytest.mark.parametrize("name", ["1", "00", "r0", "../etc", " 0", "\u0663", "x" * 4096])
def test_an_export_that_there_is_not_is_unknown(name: str) -> None:
    talk = conversation(nbd.go(name))
    assert kinds(talk) == [(nbd.GO, nbd.ERR_UNKNOWN)]
    assert b"there are 0, 3" in talk.replies()[0].data
    assert talk.asked == []


def test_a_name_longer_than_the_protocol_allows_is_too_big() -> None:
    assert kinds(conversation(nbd.go("x" * 4097))) == [(nbd.GO, nbd.ERR_TOO_BIG)]


def test_an_unknown_export_name_ends_the_connection() -> None:
    talk = conversation(nbd.option(nbd.EXPORT_NAME, b"7"))
    assert talk.phase is Phase.ENDED
    assert "no export '7'" in talk.handshake.ended


def test_list_names_the_exports_and_what_they_are() -> None:
    assert conversation(nbd.option(nbd.LIST)).replies() == [
        OptionReply(nbd.LIST, nbd.SERVER, nbd.text("0") + b"r0/0 /dev/drbd0"),
        OptionReply(nbd.LIST, nbd.SERVER, nbd.text("3") + b"r0/3 /dev/drbd3"),
        OptionReply(nbd.LIST, nbd.ACK, b""),
    ]


def test_abort_is_acknowledged_and_ends_without_complaint() -> None:
    talk = conversation(nbd.option(nbd.ABORT))
    assert kinds(talk) == [(nbd.ABORT, nbd.ACK)]
    assert (talk.phase, talk.handshake.ended) == (Phase.ENDED, "")


def test_starttls_is_refused_and_the_client_may_go_on_without() -> None:
    talk = conversation(nbd.option(nbd.STARTTLS), nbd.go())
    assert kinds(talk)[0] == (nbd.STARTTLS, nbd.ERR_POLICY)
    assert talk.phase is Phase.TRANSMISSION


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_tls_begins_at_starttls_and_the_options_go_on_inside(tls: Tls) -> None:
    talk = conversation(nbd.option(nbd.STARTTLS), tls=tls)
    assert kinds(talk) == [(nbd.STARTTLS, nbd.ACK)]
    assert talk.phase is Phase.SECURING
    talk.handshake.secured()
    talk.say(nbd.option(nbd.STARTTLS) + nbd.go())
    assert kinds(talk)[1] == (nbd.STARTTLS, nbd.ERR_INVALID), "not twice"
    assert talk.phase is Phase.TRANSMISSION


def test_what_was_agreed_in_clear_is_forgotten_when_tls_begins() -> None:
    talk = conversation(nbd.option(nbd.STRUCTURED_REPLY), tls=Tls.OFFERED)
    assert talk.handshake.structured
    talk.say(nbd.option(nbd.STARTTLS))
    assert not talk.handshake.structured


def test_bytes_in_clear_behind_starttls_end_the_handshake() -> None:
    talk = conversation(nbd.option(nbd.STARTTLS) + nbd.go(), tls=Tls.OFFERED)
    assert talk.phase is Phase.ENDED
    assert "clear" in talk.handshake.ended
    assert talk.sent == nbd.GREETING, "no acknowledgement that could be mistaken for a start"


@pytest.mark.parametrize("number", [nbd.LIST, nbd.INFO, nbd.GO, nbd.STRUCTURED_REPLY, 99])
def test_where_tls_is_required_every_other_option_says_so(number: int) -> None:
    talk = conversation(nbd.option(number, nbd.text("0") + b"\0\0"), tls=Tls.REQUIRED)
    assert kinds(talk) == [(number, nbd.ERR_TLS_REQD)]
    assert talk.asked == []


def test_where_tls_is_required_a_client_may_leave_and_an_old_one_is_dropped() -> None:
    assert kinds(conversation(nbd.option(nbd.ABORT), tls=Tls.REQUIRED)) == [(nbd.ABORT, nbd.ACK)]
    talk = conversation(nbd.option(nbd.EXPORT_NAME, b"0"), tls=Tls.REQUIRED)
    assert (talk.phase, talk.handshake.ended) == (Phase.ENDED, "TLS is required")


@pytest.mark.parametrize("number", [0, 4, nbd.EXTENDED_HEADERS, 12, 0xFFFFFFFF])
def test_an_unknown_option_is_unsupported_and_its_data_skipped(number: int) -> None:
    talk = conversation(nbd.option(number, b"some data"), nbd.go())
    assert kinds(talk)[0] == (number, nbd.ERR_UNSUP)
    assert talk.phase is Phase.TRANSMISSION


def test_structured_replies_bring_the_flag_for_df() -> None:
    talk = conversation(nbd.option(nbd.STRUCTURED_REPLY), nbd.go())
    assert talk.handshake.structured
    assert talk.replies()[1].data == struct.pack(">HQH", 0, SIZE, FLAGS | SEND_DF)


def test_a_read_only_export_says_so() -> None:
    handshake = Handshake(inbox := Inbox(), EXPORTS)
    data = nbd.client_flags() + nbd.option(nbd.EXPORT_NAME)
    inbox.get_space()[: len(data)] = data
    inbox.received(len(data))
    assert handshake.next() == Wanted(0, True)
    handshake.grant(SIZE, read_only=True)
    assert handshake.take_output().endswith(struct.pack(">QH", SIZE, FLAGS | 2))


def test_the_allocation_context_is_listed() -> None:
    for queries in ((), ("base:",), ("base:allocation", "other:x")):
        talk = conversation(
            nbd.option(nbd.STRUCTURED_REPLY), nbd.meta_context(nbd.LIST_META_CONTEXT, "", *queries)
        )
        assert talk.replies()[1:] == [
            OptionReply(9, nbd.META_CONTEXT, struct.pack(">I", 0) + b"base:allocation"),
            OptionReply(9, nbd.ACK, b""),
        ]


def test_other_contexts_are_not_there() -> None:
    talk = conversation(
        nbd.option(nbd.STRUCTURED_REPLY),
        nbd.meta_context(nbd.LIST_META_CONTEXT, "", "qemu:dirty-bitmap"),
        nbd.meta_context(nbd.SET_META_CONTEXT, "", "base:", "x"),
        nbd.go(),
    )
    assert kinds(talk)[1:3] == [(9, nbd.ACK), (10, nbd.ACK)]
    assert not talk.handshake.allocation


@pytest.mark.parametrize(
    ("chosen", "opened", "agreed"), [("0", "0", True), ("", "0", True), ("3", "0", False)]
)
def test_a_context_holds_for_the_export_it_was_set_for(
    chosen: str, opened: str, agreed: bool
) -> None:
    talk = conversation(
        nbd.option(nbd.STRUCTURED_REPLY),
        nbd.meta_context(nbd.SET_META_CONTEXT, chosen, "base:allocation"),
        nbd.go(opened),
    )
    assert talk.replies()[1].data == struct.pack(">I", 1) + b"base:allocation"
    assert talk.handshake.allocation is agreed


def test_setting_contexts_again_forgets_the_first_choice() -> None:
    talk = conversation(
        nbd.option(nbd.STRUCTURED_REPLY),
        nbd.meta_context(nbd.SET_META_CONTEXT, "0", "base:allocation"),
        nbd.meta_context(nbd.SET_META_CONTEXT, "0"),
        nbd.go("0"),
    )
    assert not talk.handshake.allocation


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(nbd.option(nbd.LIST, b"x"), id="list with data"),
        pytest.param(nbd.option(nbd.STARTTLS, b"x"), id="starttls with data"),
        pytest.param(nbd.option(nbd.STRUCTURED_REPLY, b"x"), id="structured reply with data"),
        pytest.param(nbd.option(nbd.GO), id="go without data"),
        pytest.param(nbd.option(nbd.GO, nbd.text("0")), id="go without infos"),
        pytest.param(nbd.option(nbd.GO, b"\xff\xff\xff\xff0\0\0"), id="name beyond the data"),
        pytest.param(nbd.option(nbd.GO, nbd.text("0") + b"\0\2\0\1"), id="infos beyond the data"),
        pytest.param(nbd.option(nbd.GO, nbd.text("0") + b"\0\0junk"), id="data beyond the infos"),
        pytest.param(nbd.meta_context(nbd.SET_META_CONTEXT, "0"), id="contexts before structured"),
        pytest.param(
            nbd.option(nbd.LIST_META_CONTEXT, nbd.text("0") + b"\xff\xff\xff\xff"),
            id="queries beyond the data",
        ),
    ],
)
def test_a_malformed_option_is_invalid_and_the_next_one_is_heard(malformed: bytes) -> None:
    talk = conversation(malformed, nbd.go("0"))
    assert talk.replies()[0].kind == nbd.ERR_INVALID
    assert talk.replies()[0].data, "the client is told what is wrong"
    assert talk.phase is Phase.TRANSMISSION


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (nbd.client_flags(8), "unknown client flags 0x8"),
        (nbd.client_flags() + b"GET / HTTP/1.0\r\n\r\n", "an option begins with b'GET / HT'"),
        (
            nbd.client_flags() + nbd.option(nbd.GO, length=OPTION_DATA_MAX + 1),
            f"{OPTION_DATA_MAX + 1} bytes of data",
        ),
        (nbd.client_flags(0) + nbd.option(nbd.LIST), "knows only EXPORT_NAME"),
        (nbd.client_flags() + nbd.option(nbd.LIST) * (OPTIONS_MAX + 1), "more than 1000 options"),
    ],
    ids=["flags", "magic", "length", "not fixed", "too many"],
)
def test_what_cannot_be_answered_ends_the_handshake_with_its_reason(
    data: bytes, reason: str
) -> None:
    talk = Conversation().say(data)
    assert talk.phase is Phase.ENDED
    assert reason in talk.handshake.ended


def test_an_option_as_long_as_allowed_is_waited_for() -> None:
    talk = conversation(nbd.option(99, bytes(OPTION_DATA_MAX)), nbd.go())
    assert kinds(talk)[0] == (99, nbd.ERR_UNSUP)
    assert talk.phase is Phase.TRANSMISSION


NAMES = st.sampled_from(["", "0", "3", "9", "\N{SNOWMAN}", "x" * 200])
OPTIONS = st.one_of(
    st.builds(nbd.go, NAMES, st.tuples(st.integers(0, 9)), number=st.just(nbd.INFO)),
    st.builds(nbd.option, st.integers(0, 20), st.binary(max_size=60)),
    st.builds(nbd.meta_context, st.sampled_from([9, 10]), NAMES, st.sampled_from(["base:", "q"])),
    st.just(nbd.option(nbd.STRUCTURED_REPLY)),
    st.builds(nbd.go, NAMES),
)


@given(st.lists(OPTIONS, max_size=12), st.integers(1, 90))
def test_how_the_bytes_are_cut_makes_no_difference(options: list[bytes], piece: int) -> None:
    data = nbd.client_flags() + b"".join(options)
    whole, cut = Conversation(refused=(3,)).say(data), Conversation(refused=(3,)).say(data, piece)
    assert cut.sent == whole.sent
    assert (cut.phase, cut.handshake.ended) == (whole.phase, whole.handshake.ended)
    assert (cut.asked, cut.handshake.allocation) == (whole.asked, whole.handshake.allocation)


@given(st.binary(max_size=400), st.booleans())
def test_garbage_is_answered_or_ends_the_handshake_and_never_raises(
    data: bytes, greeted: bool
) -> None:
    talk = Conversation().say((nbd.client_flags() if greeted else b"") + data)
    assert talk.phase in Phase
    if talk.phase is Phase.ENDED:
        assert talk.asked == []


@given(st.lists(OPTIONS, min_size=1, max_size=5), st.data())
def test_a_spoilt_byte_is_answered_or_ends_the_handshake_and_never_raises(
    options: list[bytes], data: st.DataObject
) -> None:
    stream = bytearray(nbd.client_flags() + b"".join(options))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    talk = Conversation().say(bytes(stream))
    assert talk.sent.startswith(nbd.GREETING)
