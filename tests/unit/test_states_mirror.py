"""State words and state-change requests as they look from the other side of the link."""

from __future__ import annotations

import pytest

from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.states import State, apply_request, mirror, mirror_request

P, S = Role.Primary, Role.Secondary
CONNECTED = State(S, S, Conn.Connected, Disk.UpToDate, Disk.UpToDate)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        (0x00009109, 0x00010916),  # SyncSource, SyncTarget
        (0x000090D9, 0x000108E6),  # WFBitMapS, WFBitMapT
        (0x000110A9, 0x000110A6),  # Connected, Primary and Secondary
        (0x000110AA, 0x000110AA),
    ],
)
def test_the_two_ends_of_a_link_report_mirrored_words(word: int, other: int) -> None:
    assert mirror(StateWord.unpack(word)).pack() == other
    assert mirror(StateWord.unpack(other)).pack() == word


def test_pauses_here_are_the_pause_of_the_peer_there_and_suspension_is_private() -> None:
    word = CONNECTED._replace(susp=True, susp_nod=True, susp_fen=True)
    assert mirror(word) == CONNECTED
    assert mirror(CONNECTED._replace(user_isp=True)) == CONNECTED._replace(peer_isp=True)
    assert mirror(CONNECTED._replace(aftr_isp=True)) == CONNECTED._replace(peer_isp=True)
    assert mirror(CONNECTED._replace(peer_isp=True)) == CONNECTED


REQUESTS: list[tuple[str, int, int, State]] = [
    ("promote", 0x00003, 0x00001, CONNECTED._replace(peer=P)),
    ("promote --force", 0x01E03, 0x01001, CONNECTED._replace(peer=P)),
    ("invalidate", 0x001F0, 0x000C0, CONNECTED._replace(conn=Conn.StartingSyncS)),
    ("invalidate-remote", 0x001F0, 0x000B0, CONNECTED._replace(conn=Conn.StartingSyncT)),
    ("verify", 0x001F0, 0x00120, CONNECTED._replace(conn=Conn.VerifyT)),
    ("detach", 0x01E00, 0x00400, CONNECTED._replace(pdsk=Disk.Failed)),
    ("remove volume", 0x001F0, 0x00090, CONNECTED._replace(conn=Conn.WFReportParams)),
    ("disconnect", 0x001F0, 0x00010, CONNECTED._replace(conn=Conn.TearDown)),
    (
        "disconnect, requester Outdated",
        0x01FF0,
        0x00A10,
        CONNECTED._replace(conn=Conn.TearDown, pdsk=Disk.Outdated),
    ),
    (
        "disconnect, peer Outdated",
        0x1E1F0,
        0x0A010,
        CONNECTED._replace(conn=Conn.TearDown, disk=Disk.Outdated),
    ),
]


@pytest.mark.parametrize(("name", "mask", "val", "result"), REQUESTS)
def test_a_request_of_the_peer_is_applied_in_own_terms(
    name: str, mask: int, val: int, result: State
) -> None:
    assert apply_request(CONNECTED, *mirror_request(mask, val)) == result, name


def test_a_request_cannot_touch_what_its_mask_does_not_cover() -> None:
    mask, val = mirror_request(0x00003, 0x1FFFD)
    assert apply_request(CONNECTED, mask, val).conn is Conn.Connected


def test_a_request_cannot_suspend_io_here() -> None:
    everything = 0x7FE0000
    mask, val = mirror_request(everything, everything)
    after = apply_request(CONNECTED, mask, val)
    assert after == CONNECTED._replace(peer_isp=True)


@pytest.mark.parametrize("conn", [Conn.SyncSource, Conn.WFBitMapT, Conn.VerifyT, 24, 31])
def test_connection_states_that_nobody_may_request_are_refused(conn: int) -> None:
    with pytest.raises(ValueError, match=f"connection state {int(conn)}"):
        mirror_request(0x1F0, conn << 4)


def test_a_disk_code_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="11 is not a valid Disk"):
        apply_request(CONNECTED, *mirror_request(0x1E00, 11 << 9))


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (0, Disk.Diskless),
        (1, Disk.Attaching),
        (2, Disk.Failed),
        (3, Disk.Failed),
        (5, Disk.Inconsistent),
        (6, Disk.Outdated),
        (9, Disk.UpToDate),
    ],
)
def test_disk_numbers_of_a_9_kernel_are_translated(sent: int, meant: Disk) -> None:
    mask, val = mirror_request(0x1E00, sent << 9, peer_is_v9=True)
    assert apply_request(CONNECTED, mask, val).pdsk is meant
