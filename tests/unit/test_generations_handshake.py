"""The verdict of the handshake: disks, policies, roles and the administrator on top of the UUIDs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from protocol.states import Disk, Role
from replicator.engine.generations import CONTRADICTION, FORCED_STEP, JUST_CREATED, UuidSet
from replicator.engine.handshake import Handshake, Outcome, Verdict, resolve
from replicator.engine.split_brain import NO_PRIMARY, ONE_PRIMARY, TWO_PRIMARIES

P, S = Role.Primary, Role.Secondary
A0, A1, B1, OLD, OLDER = 0x100, 0x200, 0x300, 0x400, 0x500

EQUAL = (UuidSet(A0, 0, OLD, 4), UuidSet(A0, 0, OLD, 4))
OWN_AHEAD = (UuidSet(A1, A0, OLD, 4), UuidSet(A0, 0, OLD, 4))
PEER_AHEAD = (OWN_AHEAD[1], OWN_AHEAD[0])
SPLIT = (UuidSet(A1, A0 | 1, OLD, 4), UuidSet(B1, A0, OLD, 4))
NO_BASE = (UuidSet(A1, 0, OLD, 4), UuidSet(B1, 0, OLD, 4))
HALF_MADE = (UuidSet(A1, A0, OLD, 4), UuidSet(B1, A1 + FORCED_STEP, OLD, 4))
UNRELATED = (UuidSet(A1, 0, OLD, 4), UuidSet(B1, 0, OLDER, 4))


def shake(sets: tuple[UuidSet, UuidSet], **facts: Any) -> Handshake:
    return replace(Handshake(own=sets[0].copy(), peer=sets[1].copy(), resource="r0"), **facts)


SWAPPED = (
    ("own", "peer"),
    ("own_weight", "peer_weight"),
    ("own_crashed", "peer_crashed"),
    ("own_discard", "peer_discard"),
    ("own_role", "peer_role"),
    ("own_disk", "peer_disk"),
)
COUNTERPART = {"discard-local": "discard-remote", "discard-remote": "discard-local"}


def at_peer(h: Handshake) -> Handshake:
    """The same handshake as the other node sees it."""
    facts: dict[str, Any] = {"arbiter": not h.arbiter}
    for own, peer in SWAPPED:
        facts[own], facts[peer] = getattr(h, peer), getattr(h, own)
    facts["after_sb_0pri"] = COUNTERPART.get(h.after_sb_0pri, h.after_sb_0pri)
    return replace(h, **facts)


def sides(h: Handshake) -> tuple[Verdict, Verdict]:
    return resolve(h), resolve(at_peer(h))


SOURCE, TARGET, NOTHING, GIVE_UP = (
    Outcome.SOURCE,
    Outcome.TARGET,
    Outcome.NOTHING,
    Outcome.GIVE_UP,
)
MIRROR = {SOURCE: TARGET, TARGET: SOURCE, NOTHING: NOTHING, GIVE_UP: GIVE_UP}


def check_both(h: Handshake, outcome: Outcome, *, full: bool = False) -> Verdict:
    here, there = sides(h)
    assert (here.outcome, there.outcome) == (outcome, MIRROR[outcome]), (here, there)
    assert here.full == there.full == full
    return here


def test_equal_copies_connect_without_a_resync() -> None:
    verdict = check_both(shake(EQUAL), NOTHING)
    assert not verdict.split_brain and not verdict.handlers


def test_equal_copies_with_marked_blocks_connect_and_say_how_to_copy_them() -> None:
    verdict = check_both(shake(EQUAL, own_weight=7), NOTHING)
    assert "here 7" in verdict.reason and "replicator invalidate r0" in verdict.reason


def test_the_newer_copy_is_source_by_bitmap() -> None:
    verdict = check_both(shake(OWN_AHEAD), SOURCE)
    assert verdict.rule == 70
    assert str(OWN_AHEAD[0]) in verdict.reason and str(OWN_AHEAD[1]) in verdict.reason


def test_the_corrected_sets_come_with_the_verdict_and_the_inputs_stay() -> None:
    missed_end = (UuidSet(A0, OLD, OLDER, 4), UuidSet(A0, 0, OLD, OLDER))
    h = shake(missed_end)
    verdict = resolve(h)
    assert verdict.own == UuidSet(A0, 0, OLD, OLDER)
    assert h.own == missed_end[0]


def test_a_node_without_a_disk_has_nothing_to_compare() -> None:
    check_both(shake(SPLIT, own_disk=Disk.Diskless), NOTHING)
    check_both(shake(UNRELATED, peer_disk=Disk.Failed), NOTHING)


# Disks


@pytest.mark.parametrize(
    ("sets", "full"),
    [
        (EQUAL, False),
        (OWN_AHEAD, False),
        (PEER_AHEAD, False),
        (SPLIT, False),
        (NO_BASE, True),
        (HALF_MADE, True),
    ],
)
def test_a_single_inconsistent_disk_is_the_target_whatever_the_uuids_say(
    sets: tuple[UuidSet, UuidSet], full: bool
) -> None:
    for good in (Disk.Outdated, Disk.Consistent, Disk.UpToDate):
        h = shake(sets, own_disk=good, peer_disk=Disk.Inconsistent)
        assert not check_both(h, SOURCE, full=full).split_brain


def test_an_inconsistent_disk_does_not_make_unrelated_data_acceptable() -> None:
    check_both(shake(UNRELATED, peer_disk=Disk.Inconsistent), GIVE_UP)


def test_a_replaced_disk_is_filled_completely() -> None:
    sets = (EQUAL[0], UuidSet(JUST_CREATED, 0, 0, 0))
    check_both(shake(sets, peer_disk=Disk.Inconsistent), SOURCE, full=True)


def test_an_inconsistent_source_is_refused_on_both_nodes() -> None:
    h = shake(OWN_AHEAD, own_disk=Disk.Inconsistent, peer_disk=Disk.Inconsistent)
    verdict = check_both(h, GIVE_UP)
    assert "primary --force r0" in verdict.reason


def test_two_fresh_inconsistent_disks_wait_for_somebody_to_choose() -> None:
    fresh = UuidSet()
    h = shake((fresh, fresh), own_disk=Disk.Inconsistent, peer_disk=Disk.Inconsistent)
    check_both(h, NOTHING)


# Refusals


def test_unrelated_data_is_never_copied_not_even_on_demand() -> None:
    h = shake(UNRELATED, own_discard=True, always_asbp=True, after_sb_0pri="discard-local")
    verdict = check_both(h, GIVE_UP)
    assert "create-md r0" in verdict.reason and not verdict.split_brain


def test_contradicting_uuids_are_refused_and_point_to_the_metadata() -> None:
    verdict = check_both(shake((UuidSet(A0, A1, 0, 0), UuidSet(A1, A0, 0, 0))), GIVE_UP)
    assert verdict.rule == CONTRADICTION and "get-gi r0" in verdict.reason


def test_a_missing_feature_is_named() -> None:
    h = shake(EQUAL, own_crashed=True, peer_role=P, write_same=False)
    assert "write-same" in check_both(h, GIVE_UP).reason


def test_split_brain_gives_up_calls_both_handlers_and_tells_what_to_do() -> None:
    verdict = check_both(shake(SPLIT), GIVE_UP)
    assert verdict.split_brain
    assert verdict.handlers == ("initial-split-brain", "split-brain")
    assert "replicator connect --discard-my-data r0" in verdict.reason
    assert "rule 90" in verdict.reason


# By hand


@pytest.mark.parametrize(("sets", "full"), [(SPLIT, False), (NO_BASE, True), (HALF_MADE, True)])
def test_discard_my_data_on_one_node_solves_a_split_brain(
    sets: tuple[UuidSet, UuidSet], full: bool
) -> None:
    verdict = check_both(shake(sets, own_discard=True), TARGET, full=full)
    assert verdict.split_brain and verdict.handlers == ("initial-split-brain",)


def test_discard_my_data_on_both_nodes_solves_nothing() -> None:
    verdict = check_both(shake(SPLIT, own_discard=True, peer_discard=True), GIVE_UP)
    assert "both nodes were told to discard" in verdict.reason


def test_discard_my_data_is_ignored_without_a_split_brain() -> None:
    check_both(shake(OWN_AHEAD, own_discard=True), SOURCE)
    check_both(shake(EQUAL, own_discard=True), NOTHING)


def test_copies_forced_into_service_apart_are_copied_completely() -> None:
    forced = (UuidSet(A1, 4, 0, 0), UuidSet(B1, 4, 0, 0))
    check_both(shake(forced, own_discard=True), TARGET, full=True)
    check_both(shake(forced, after_sb_0pri="discard-remote"), SOURCE, full=True)


# Policies. SPLIT: own was Primary when the link broke, the peer became it afterwards.

ZERO_PRI: list[tuple[str, int, int, Outcome]] = [
    ("disconnect", 0, 9, GIVE_UP),
    ("discard-younger-primary", 0, 9, SOURCE),
    ("discard-older-primary", 9, 0, TARGET),
    ("discard-zero-changes", 5, 0, SOURCE),
    ("discard-zero-changes", 0, 5, TARGET),
    ("discard-zero-changes", 5, 9, GIVE_UP),
    ("discard-least-changes", 5, 9, TARGET),
    ("discard-least-changes", 9, 5, SOURCE),
    ("discard-local", 9, 0, TARGET),
    ("discard-remote", 0, 9, SOURCE),
    ("no-such-policy", 0, 9, GIVE_UP),
]


@pytest.mark.parametrize(("policy", "own_weight", "peer_weight", "outcome"), ZERO_PRI)
def test_after_sb_0pri(policy: str, own_weight: int, peer_weight: int, outcome: Outcome) -> None:
    h = shake(SPLIT, after_sb_0pri=policy, own_weight=own_weight, peer_weight=peer_weight)
    verdict = check_both(h, outcome)
    assert f"after-sb-0pri {policy}" in verdict.reason


@pytest.mark.parametrize("policy", ["discard-younger-primary", "discard-older-primary"])
@pytest.mark.parametrize(
    ("own_weight", "peer_weight", "outcome"),
    [(0, 5, TARGET), (5, 0, SOURCE), (5, 9, TARGET), (9, 5, SOURCE), (7, 7, SOURCE)],
)
def test_primaries_of_the_same_age_are_told_apart_by_their_changes(
    policy: str, own_weight: int, peer_weight: int, outcome: Outcome
) -> None:
    same_age = (SPLIT[0], UuidSet(B1, A0 | 1, OLD, 4))
    facts: dict[str, Any] = {"own_weight": own_weight, "peer_weight": peer_weight}
    check_both(shake(same_age, after_sb_0pri=policy, **facts), outcome)


@pytest.mark.parametrize("policy", ["discard-zero-changes", "discard-least-changes"])
def test_in_a_tie_the_arbiter_is_the_target(policy: str) -> None:
    check_both(shake(SPLIT, after_sb_0pri=policy, arbiter=True), TARGET)
    check_both(shake(SPLIT, after_sb_0pri=policy, arbiter=False), SOURCE)


ONE_PRI: list[tuple[str, str, Outcome, Outcome]] = [
    # policy, 0pri policy, own verdict as Primary, the Secondary's verdict
    ("disconnect", "discard-remote", GIVE_UP, GIVE_UP),
    ("consensus", "discard-remote", SOURCE, TARGET),
    ("consensus", "discard-local", GIVE_UP, GIVE_UP),
    ("violently-as0p", "discard-remote", SOURCE, TARGET),
    ("violently-as0p", "discard-local", GIVE_UP, SOURCE),  # then rr-conflict refuses
    ("discard-secondary", "disconnect", SOURCE, TARGET),
    ("call-pri-lost-after-sb", "discard-remote", SOURCE, TARGET),
    ("call-pri-lost-after-sb", "discard-local", GIVE_UP, SOURCE),
    ("discard-remote", "discard-remote", GIVE_UP, GIVE_UP),  # belongs to 0pri only
]


@pytest.mark.parametrize(("policy", "zero", "here", "there"), ONE_PRI)
def test_after_sb_1pri(policy: str, zero: str, here: Outcome, there: Outcome) -> None:
    h = shake(SPLIT, own_role=P, after_sb_1pri=policy, after_sb_0pri=zero)
    assert tuple(one.outcome for one in sides(h)) == (here, there)


def test_violently_twice_overwrites_a_primary_and_says_so() -> None:
    policies: dict[str, Any] = {"after_sb_1pri": "violently-as0p", "after_sb_0pri": "discard-local"}
    h = shake(SPLIT, own_role=P, rr_conflict="violently", **policies)
    assert "changes under this Primary" in check_both(h, TARGET).reason


CALL_PRI_LOST: dict[str, Any] = {
    "after_sb_1pri": "call-pri-lost-after-sb",
    "after_sb_0pri": "discard-local",
}


def test_a_primary_nobody_uses_steps_down_and_is_the_target() -> None:
    verdict = check_both(shake(SPLIT, own_role=P, own_demotable=True, **CALL_PRI_LOST), TARGET)
    assert verdict.demote and "pri-lost-after-sb" not in verdict.handlers


def test_a_primary_in_use_calls_the_handler_and_gives_up() -> None:
    verdict = resolve(shake(SPLIT, own_role=P, own_demotable=False, **CALL_PRI_LOST))
    assert verdict.outcome is GIVE_UP and not verdict.demote
    assert verdict.handlers == ("initial-split-brain", "pri-lost-after-sb", "split-brain")


@pytest.mark.parametrize(
    ("policy", "here", "there"),
    [
        ("disconnect", GIVE_UP, GIVE_UP),
        ("violently-as0p", GIVE_UP, SOURCE),
        ("call-pri-lost-after-sb", GIVE_UP, SOURCE),
        ("consensus", GIVE_UP, GIVE_UP),
        ("discard-secondary", GIVE_UP, GIVE_UP),
    ],
)
def test_after_sb_2pri(policy: str, here: Outcome, there: Outcome) -> None:
    facts: dict[str, Any] = {"own_role": P, "peer_role": P, "after_sb_2pri": policy}
    h = shake(SPLIT, after_sb_0pri="discard-local", **facts)
    assert tuple(one.outcome for one in sides(h)) == (here, there)


def test_the_policies_leave_copies_without_a_common_base_alone() -> None:
    check_both(shake(NO_BASE, after_sb_0pri="discard-remote"), GIVE_UP)


def test_always_asbp_lets_the_policies_decide_with_a_full_sync() -> None:
    check_both(shake(NO_BASE, after_sb_0pri="discard-remote", always_asbp=True), SOURCE, full=True)


def test_an_unsolved_policy_leaves_the_choice_to_discard_my_data() -> None:
    h = shake(SPLIT, after_sb_0pri="discard-zero-changes", own_weight=1, peer_weight=1)
    check_both(replace(h, peer_discard=True), SOURCE)


def test_a_policy_that_decides_comes_before_discard_my_data() -> None:
    h = shake(SPLIT, after_sb_0pri="discard-least-changes", own_weight=1, peer_weight=2)
    check_both(replace(h, peer_discard=True), TARGET)


# Roles against the direction


@pytest.mark.parametrize(
    ("policy", "outcome", "handlers"),
    [
        ("disconnect", GIVE_UP, ()),
        ("call-pri-lost", GIVE_UP, ("pri-lost",)),
        ("violently", TARGET, ()),
        ("no-such-policy", GIVE_UP, ()),
    ],
)
def test_a_primary_that_would_be_overwritten_follows_rr_conflict(
    policy: str, outcome: Outcome, handlers: tuple[str, ...]
) -> None:
    here, there = sides(shake(PEER_AHEAD, own_role=P, rr_conflict=policy))
    assert (here.outcome, here.handlers) == (outcome, handlers)
    assert there.outcome is SOURCE


def test_a_primary_without_usable_data_of_its_own_may_be_overwritten() -> None:
    check_both(shake(EQUAL, own_role=P, own_disk=Disk.Inconsistent), TARGET)


# Dry run


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (EQUAL, "would connect without a resync"),
        (OWN_AHEAD, "would become sync source of a bitmap-based resync"),
        ((EQUAL[0], UuidSet()), "would become sync source of a full resync"),
        (PEER_AHEAD, "would become sync target of a bitmap-based resync"),
    ],
)
def test_a_dry_run_tells_and_does_nothing(sets: tuple[UuidSet, UuidSet], text: str) -> None:
    verdict = check_both(shake(sets, dry_run=True), GIVE_UP)
    assert text in verdict.reason and not verdict.full


# All of it


def test_the_two_nodes_never_act_on_contradictory_verdicts() -> None:
    """Whatever roles, disks, marks and policies: mirror images, or somebody gives up and nobody
    starts as target of a peer that will not be source."""
    roles = (P, S)
    disks = (Disk.Inconsistent, Disk.Outdated, Disk.UpToDate)
    policies = [
        *((zero, "disconnect", "disconnect") for zero in NO_PRIMARY),
        *(("discard-least-changes", one, "disconnect") for one in ONE_PRIMARY),
        *(("discard-local", "disconnect", two) for two in TWO_PRIMARIES),
    ]
    all_sets = (EQUAL, OWN_AHEAD, PEER_AHEAD, SPLIT, NO_BASE, HALF_MADE, UNRELATED)
    seen = set()
    for sets, own_role, peer_role, own_disk, peer_disk, crashed, discard, policy in product(
        all_sets, roles, roles, disks, disks, (False, True), ("", "own", "peer"), policies
    ):
        h = shake(
            sets,
            own_role=own_role,
            peer_role=peer_role,
            own_disk=own_disk,
            peer_disk=peer_disk,
            own_crashed=crashed,
            own_discard=discard == "own",
            peer_discard=discard == "peer",
            after_sb_0pri=policy[0],
            after_sb_1pri=policy[1],
            after_sb_2pri=policy[2],
            own_weight=3,
        )
        here, there = sides(h)
        outcomes = (here.outcome, there.outcome)
        seen.add(outcomes)
        if GIVE_UP in outcomes:
            assert TARGET not in outcomes, h
        else:
            assert outcomes == (here.outcome, MIRROR[here.outcome]), h
            assert here.full == there.full, h
            assert (here.own, here.peer) == (there.peer, there.own), h
        if here.outcome is SOURCE:
            assert own_disk > Disk.Inconsistent, h
    assert len(seen) == 6, "not every pair of outcomes was met"
