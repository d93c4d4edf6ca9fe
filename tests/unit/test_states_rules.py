"""The state rules: what follows by itself, what cannot be, what is refused with which code."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from protocol.states import Conn, Disk, Role
from replicator.engine.states import (
    CLAMP,
    FENCING,
    REFUSALS,
    STATES,
    TRANSITIONS,
    State,
    adjust,
    cluster_wide,
    contact_lost,
    permitted,
    possible,
    replicated,
    valid,
)

P, S = Role.Primary, Role.Secondary
GOOD = Disk.UpToDate

CONNECTED = State(S, S, Conn.Connected, GOOD, GOOD)
"""An idle, healthy pair."""
ALONE = State(S, Role.Unknown, Conn.WFConnection, GOOD, Disk.DUnknown)
SYNC_SOURCE = State(P, S, Conn.SyncSource, GOOD, Disk.Inconsistent)
SYNC_TARGET = State(S, P, Conn.SyncTarget, Disk.Inconsistent, GOOD)


# What follows by itself


@pytest.mark.parametrize("conn", [conn for conn in Conn if conn < Conn.Connected])
def test_without_a_connection_the_peer_is_unknown(conn: Conn) -> None:
    lost = adjust(CONNECTED._replace(peer=P, conn=conn, peer_isp=True))
    assert (lost.peer, lost.pdsk, lost.peer_isp) == (Role.Unknown, Disk.DUnknown, False)


@pytest.mark.parametrize("known", [Disk.Inconsistent, Disk.Outdated])
def test_without_a_connection_a_known_bad_peer_disk_stays_known(known: Disk) -> None:
    assert adjust(CONNECTED._replace(conn=Conn.BrokenPipe, pdsk=known)).pdsk is known


@pytest.mark.parametrize("lost", [Disk.Diskless, Disk.Failed])
@pytest.mark.parametrize("state", [SYNC_SOURCE, SYNC_TARGET])
def test_a_resync_ends_when_a_disk_fails(state: State, lost: Disk) -> None:
    assert adjust(state._replace(disk=lost)).conn is Conn.Connected
    assert adjust(state._replace(pdsk=lost)).conn is Conn.Connected


def test_a_disk_whose_negotiation_broke_off_is_dropped_unless_it_may_be_used() -> None:
    broken = State(P, Role.Unknown, Conn.NetworkFailure, Disk.Negotiating, GOOD)
    assert adjust(broken).disk is Disk.Diskless
    prepared = State(disk=Disk.Consistent, pdsk=Disk.Outdated)
    settled = adjust(broken, prepared=prepared)
    assert (settled.disk, settled.pdsk) == (Disk.Consistent, Disk.Outdated)


@pytest.mark.parametrize("open_question", [Disk.Consistent, Disk.Outdated])
def test_a_connection_settles_whether_data_is_current(open_question: Disk) -> None:
    state = adjust(CONNECTED._replace(disk=open_question, pdsk=open_question))
    assert (state.disk, state.pdsk) == (GOOD, GOOD)


def test_a_target_to_be_is_no_longer_current_but_keeps_its_data_until_blocks_arrive() -> None:
    about_to = adjust(CONNECTED._replace(conn=Conn.WFBitMapT))
    assert about_to.disk is Disk.Outdated
    assert adjust(about_to._replace(conn=Conn.SyncTarget)).disk is Disk.Inconsistent


def test_pausing_and_resuming_a_resync_keep_the_disks_what_they_are() -> None:
    paused = adjust(SYNC_TARGET._replace(user_isp=True))
    assert (paused.conn, paused.disk) == (Conn.PausedSyncT, Disk.Inconsistent)
    resumed = adjust(paused._replace(user_isp=False, peer_isp=True))
    assert resumed.conn is Conn.PausedSyncT, "another pause is still on"
    assert adjust(resumed._replace(peer_isp=False)) == SYNC_TARGET
    assert adjust(SYNC_SOURCE._replace(aftr_isp=True)).conn is Conn.PausedSyncS


def test_resuming_a_target_that_had_not_begun_makes_it_inconsistent() -> None:
    waiting = State(S, P, Conn.PausedSyncT, Disk.Outdated, GOOD)
    assert adjust(waiting) == SYNC_TARGET


def test_an_unconfigured_volume_waits_for_no_other() -> None:
    gone = State(S, Role.Unknown, Conn.StandAlone, Disk.Diskless, Disk.DUnknown, aftr_isp=True)
    assert not adjust(gone).aftr_isp
    assert adjust(gone._replace(role=P)).aftr_isp


def test_stonith_freezes_a_primary_once_when_it_loses_its_peer() -> None:
    lost = CONNECTED._replace(role=P, conn=Conn.NetworkFailure)
    old = CONNECTED._replace(role=P)
    frozen = adjust(lost, fencing="resource-and-stonith", old=old)
    assert frozen.susp_fen
    assert not adjust(lost, fencing="resource-only", old=old).susp_fen
    thawed = frozen._replace(susp_fen=False, conn=Conn.Unconnected)
    assert not adjust(thawed, fencing="resource-and-stonith", old=frozen).susp_fen
    fenced = lost._replace(pdsk=Disk.Outdated)
    assert not adjust(fenced, fencing="resource-and-stonith", old=old).susp_fen


def test_without_any_good_data_a_primary_is_frozen_only_if_told_so() -> None:
    lost = State(P, Role.Unknown, Conn.WFConnection, Disk.Diskless, Disk.DUnknown)
    old = State(P, S, Conn.Connected, Disk.Diskless, GOOD)
    assert adjust(lost, on_no_data="suspend-io", old=old).susp_nod
    assert not adjust(lost, on_no_data="io-error", old=old).susp_nod
    assert not adjust(lost, on_no_data="suspend-io", old=lost).susp_nod


def test_adjusting_twice_changes_nothing_more() -> None:
    """For every combination of roles, connection and disks."""
    for conn, disk, pdsk, role in product(Conn, Disk, Disk, (P, S)):
        if disk is Disk.DUnknown:
            continue
        once = adjust(State(role, S, conn, disk, pdsk))
        assert adjust(once, old=once) == once
        if once.conn in CLAMP:
            least, most, peer_least, peer_most = CLAMP[once.conn]
            assert least <= once.disk <= most and peer_least <= once.pdsk <= peer_most
        assert State.unpack(once.pack()) == once


# What cannot be


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (Conn.StandAlone, Conn.Unconnected, 0),
        (Conn.StandAlone, Conn.StandAlone, 0),
        (Conn.StandAlone, Conn.Disconnecting, -9),
        (Conn.StandAlone, Conn.WFConnection, -15),
        (Conn.WFConnection, Conn.Connected, -15),
        (Conn.WFConnection, Conn.SyncTarget, -15),
        (Conn.WFReportParams, Conn.Connected, 0),
        (Conn.BrokenPipe, Conn.Unconnected, 0),
        (Conn.BrokenPipe, Conn.Disconnecting, 0),
        (Conn.BrokenPipe, Conn.NetworkFailure, -18),
        (Conn.TearDown, Conn.WFConnection, -18),
        (Conn.Disconnecting, Conn.StandAlone, 0),
        (Conn.Disconnecting, Conn.Unconnected, -18),
        (Conn.Connected, Conn.NetworkFailure, 0),
        (Conn.SyncSource, Conn.Connected, 0),
    ],
)
def test_connection_changes(old: Conn, new: Conn, code: int) -> None:
    assert possible(State(conn=old), State(conn=new)) == code


def test_a_missing_disk_cannot_fail() -> None:
    assert possible(State(disk=Disk.Diskless), State(disk=Disk.Failed)) == -11
    assert possible(State(disk=GOOD), State(disk=Disk.Failed)) == 0


# What is refused

REFUSED: list[tuple[int, State, dict[str, Any]]] = [
    (-1, CONNECTED._replace(role=P, peer=P), {}),
    (-20, CONNECTED._replace(role=P), {"other_volume_primary_on_peer": True}),
    (-12, CONNECTED, {"open_count": 1}),
    (-2, ALONE._replace(role=P, disk=Disk.Consistent), {}),
    (-2, ALONE._replace(role=P, disk=Disk.Outdated), {}),
    (-7, ALONE._replace(role=P), {"fencing": "resource-only"}),
    (-7, ALONE._replace(role=P), {"fencing": "resource-and-stonith"}),
    (-2, CONNECTED._replace(role=P, disk=Disk.Inconsistent, pdsk=Disk.Inconsistent), {}),
    (-4, SYNC_SOURCE._replace(role=S, disk=Disk.Diskless), {}),
    (-5, SYNC_SOURCE._replace(pdsk=Disk.Diskless), {}),
    (-2, SYNC_SOURCE._replace(role=S, disk=Disk.Consistent), {}),
    (-6, CONNECTED._replace(disk=Disk.Outdated), {}),
    (-14, CONNECTED._replace(conn=Conn.VerifyS), {"has_verify_alg": False}),
    (-17, CONNECTED._replace(conn=Conn.VerifyS), {"version": 87}),
    (-2, CONNECTED._replace(role=P, disk=Disk.Consistent, pdsk=Disk.Consistent), {}),
    (-15, CONNECTED._replace(conn=Conn.StartingSyncS, pdsk=Disk.DUnknown), {}),
    (-6, CONNECTED._replace(pdsk=Disk.DUnknown), {}),
]


@pytest.mark.parametrize(("code", "state", "facts"), REFUSED)
def test_a_state_is_refused_with_its_code_unless_it_was_so_before(
    code: int, state: State, facts: dict[str, Any]
) -> None:
    assert valid(state, **facts) == code
    assert valid(state, old=state, **facts) == 0, "it makes nothing worse"


def test_every_state_row_is_exercised_above() -> None:
    assert {code for code, _ in STATES} == {code for code, _, _ in REFUSED}
    assert len(STATES) <= len(REFUSED)


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        (CONNECTED, {}),
        (CONNECTED._replace(role=P), {}),
        (CONNECTED._replace(role=P, peer=P), {"two_primaries": True}),
        (CONNECTED._replace(role=P), {"open_count": 3}),
        (CONNECTED._replace(role=P, disk=Disk.Diskless), {}),
        (ALONE._replace(role=P), {"fencing": "dont-care"}),
        (ALONE._replace(role=P, pdsk=Disk.Outdated), {"fencing": "resource-and-stonith"}),
        (SYNC_SOURCE, {}),
        (SYNC_TARGET._replace(role=P, peer=S), {}),
        (CONNECTED._replace(conn=Conn.VerifyT), {}),
    ],
)
def test_states_that_nothing_speaks_against(state: State, facts: dict[str, Any]) -> None:
    assert valid(state, **facts) == 0


def test_a_second_reason_is_no_excuse() -> None:
    """The old state was invalid, too, but for another reason."""
    outdated = CONNECTED._replace(disk=Disk.Outdated)
    assert valid(outdated._replace(role=P, peer=P), old=outdated) == -1


def test_nor_is_a_reason_that_was_there_before() -> None:
    """Outdated and Connected, as a disk is that has met a node without one, and then Primary."""
    outdated = CONNECTED._replace(disk=Disk.Outdated, pdsk=Disk.Diskless)
    assert valid(outdated._replace(role=P), old=outdated) == -2
    assert valid(outdated._replace(user_isp=True), old=outdated) == 0


FORBIDDEN: list[tuple[int, State, State]] = [
    (-8, SYNC_SOURCE, SYNC_SOURCE._replace(conn=Conn.StartingSyncS)),
    (-8, SYNC_SOURCE, SYNC_SOURCE._replace(conn=Conn.VerifyS)),
    (-9, State(), State(conn=Conn.Disconnecting)),
    (-11, CONNECTED._replace(disk=Disk.Diskless), CONNECTED),
    (-13, State(), State(conn=Conn.WFConnection)),
    (-16, ALONE._replace(disk=Disk.Inconsistent), ALONE._replace(disk=Disk.Outdated)),
    (-15, ALONE, ALONE._replace(conn=Conn.StartingSyncT)),
    (-15, ALONE, ALONE._replace(conn=Conn.VerifyS)),
    (-15, ALONE, ALONE._replace(conn=Conn.SyncTarget)),
    (-21, ALONE, ALONE._replace(conn=Conn.Disconnecting, pdsk=Disk.Outdated)),
    (-18, ALONE._replace(conn=Conn.Unconnected), ALONE._replace(conn=Conn.Disconnecting)),
    (
        -18,
        CONNECTED._replace(conn=Conn.WFBitMapT, disk=Disk.Inconsistent),
        CONNECTED._replace(conn=Conn.WFBitMapT, disk=Disk.Inconsistent, role=P),
    ),
]


@pytest.mark.parametrize(("code", "old", "new"), FORBIDDEN)
def test_a_change_is_refused_for_where_it_starts(code: int, old: State, new: State) -> None:
    assert permitted(old, new) == code


def test_every_transition_row_is_exercised() -> None:
    assert {code for code, _ in TRANSITIONS} == {code for code, _, _ in FORBIDDEN}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (CONNECTED, CONNECTED._replace(role=P)),
        (CONNECTED._replace(role=P), CONNECTED),
        (CONNECTED, CONNECTED._replace(conn=Conn.StartingSyncT)),
        (CONNECTED, CONNECTED._replace(conn=Conn.VerifyS)),
        (CONNECTED, CONNECTED._replace(conn=Conn.Disconnecting)),
        (SYNC_SOURCE, SYNC_SOURCE._replace(user_isp=True)),
        (SYNC_TARGET, SYNC_TARGET._replace(role=P, peer=S)),
        (ALONE, ALONE._replace(disk=Disk.Outdated)),
        (State(conn=Conn.StandAlone), State(conn=Conn.Unconnected)),
    ],
)
def test_everyday_changes_are_permitted(old: State, new: State) -> None:
    assert permitted(old, new) == 0


def test_while_parameters_are_exchanged_only_the_connection_may_go_on() -> None:
    exchanging = ALONE._replace(conn=Conn.WFReportParams)
    for conn in (Conn.Connected, Conn.WFBitMapS, Conn.WFBitMapT):
        assert (
            permitted(exchanging, exchanging._replace(conn=conn), exchanging_parameters=True) == 0
        )
    promoted = exchanging._replace(role=P)
    assert permitted(exchanging, promoted, exchanging_parameters=True) == -18
    assert permitted(exchanging, promoted) == 0


def test_every_code_that_a_table_can_return_has_a_text() -> None:
    used = {code for code, _ in STATES + TRANSITIONS} | {-10, -19}
    assert used <= REFUSALS.keys()
    assert all(REFUSALS.values())


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-1, "Multiple primaries not allowed by config"),
        (-2, "Need access to UpToDate data"),
        (-6, "Refusing to be Outdated while Connected"),
        (-7, "Refusing to be Primary while peer is not outdated"),
        (-10, "State change was refused by peer node"),
        (-12, "Device is held open by someone"),
        (-16, "Disk state is lower than outdated"),
    ],
)
def test_texts_that_cluster_managers_read_are_those_they_know(code: int, text: str) -> None:
    assert REFUSALS[code] == text


def test_the_fencing_policies_are_those_of_the_configuration() -> None:
    assert FENCING == ("dont-care", "resource-only", "resource-and-stonith")


# Who must be asked, and what a change means


@pytest.mark.parametrize(
    ("new", "asked"),
    [
        (CONNECTED._replace(role=P), True),
        (CONNECTED._replace(conn=Conn.StartingSyncS), True),
        (CONNECTED._replace(conn=Conn.StartingSyncT), True),
        (CONNECTED._replace(disk=Disk.Failed), True),
        (CONNECTED._replace(conn=Conn.Disconnecting), True),
        (CONNECTED._replace(conn=Conn.VerifyS), True),
        (CONNECTED._replace(conn=Conn.WFReportParams), True),
        (CONNECTED._replace(user_isp=True), False),
        (CONNECTED._replace(conn=Conn.NetworkFailure), False),
    ],
)
def test_the_peer_is_asked_before_what_concerns_it(new: State, asked: bool) -> None:
    assert cluster_wide(CONNECTED, new) is asked


def test_nobody_is_asked_without_a_connection_or_for_a_demotion() -> None:
    assert not cluster_wide(ALONE, ALONE._replace(role=P))
    assert not cluster_wide(CONNECTED._replace(role=P), CONNECTED)


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        (GOOD, Disk.DUnknown, True),
        (GOOD, Disk.Outdated, True),
        (GOOD, Disk.Failed, True),
        (GOOD, Disk.Inconsistent, False),
        (Disk.Inconsistent, Disk.DUnknown, True),
        (Disk.Inconsistent, GOOD, False),
        (Disk.Outdated, Disk.DUnknown, False),
        (Disk.DUnknown, Disk.Outdated, True),
        (Disk.DUnknown, Disk.Diskless, True),
        (Disk.DUnknown, GOOD, False),
        (Disk.Diskless, Disk.DUnknown, False),
    ],
)
def test_contact_with_the_data_of_the_peer_is_lost(old: Disk, new: Disk, lost: bool) -> None:
    before = CONNECTED._replace(pdsk=old)
    assert contact_lost(before, before._replace(pdsk=new)) is lost


@pytest.mark.parametrize("before", [Disk.DUnknown, Disk.Consistent])
def test_contact_is_not_lost_by_a_target_that_says_that_it_is_one(before: Disk) -> None:
    old = CONNECTED._replace(conn=Conn.WFBitMapS, pdsk=before)
    assert not contact_lost(old, old._replace(pdsk=Disk.Outdated))
    assert contact_lost(old, old._replace(pdsk=Disk.Failed))


@pytest.mark.parametrize(
    ("conn", "pdsk", "route"),
    [
        (Conn.Connected, GOOD, "data"),
        (Conn.VerifyS, GOOD, "data"),
        (Conn.SyncTarget, GOOD, "data"),
        (Conn.SyncSource, Disk.Inconsistent, "data"),
        (Conn.PausedSyncS, Disk.Consistent, "data"),
        (Conn.WFBitMapS, Disk.Inconsistent, "out-of-sync"),
        (Conn.Ahead, Disk.Inconsistent, "out-of-sync"),
        (Conn.Connected, Disk.Inconsistent, "local"),
        (Conn.Connected, Disk.Diskless, "local"),
        (Conn.StartingSyncS, Disk.Inconsistent, "local"),
        (Conn.WFConnection, Disk.DUnknown, "local"),
        (Conn.StandAlone, Disk.Outdated, "local"),
    ],
)
def test_where_a_write_goes(conn: Conn, pdsk: Disk, route: str) -> None:
    assert replicated(conn, pdsk) == route
