"""How the four UUIDs of a copy move: the life of a pair of disks, replayed step by step.

Each step also runs the handshake decision on the state it leaves, seen from both sides.
"""

from __future__ import annotations

import pytest

from replicator.engine.generations import FORCED_STEP, JUST_CREATED, SYNC_STEP, UuidSet, decide

# Bit 0 clear, so that the role mark of `current` is the only low bit in sight.
A0, A1, A2, A3, B1, S0, OTHER = (0x1111 * n << 8 for n in range(1, 8))
P = 1
"""The mark of a Primary."""


class Pair:
    """Two copies, and the decisions that a handshake would reach now."""

    def __init__(self, a: UuidSet, b: UuidSet) -> None:
        self.a, self.b = a, b

    def decisions(self, *, a_crashed: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
        """((A's value, rule), (B's value, rule)), both Secondary, B the arbiter."""
        ours = decide(
            self.a,
            self.b,
            own_crashed=a_crashed,
            peer_crashed=False,
            own_primary=False,
            peer_primary=False,
            arbiter=False,
        )
        theirs = decide(
            self.b,
            self.a,
            own_crashed=False,
            peer_crashed=a_crashed,
            own_primary=False,
            peer_primary=False,
            arbiter=True,
        )
        return (ours.value, ours.rule), (theirs.value, theirs.rule)


def created() -> UuidSet:
    return UuidSet(JUST_CREATED, 0, 0, 0)


def synchronised(primary: bool = True) -> Pair:
    """After the initial synchronisation from A."""
    return Pair(UuidSet(A0 | primary, 0, S0, 4), UuidSet(A0, 0, S0, 4))


def test_fresh_copies_have_nothing_to_synchronise() -> None:
    assert Pair(created(), created()).decisions() == ((0, 10), (0, 10))


def test_forcing_a_fresh_node_to_primary_makes_it_source_of_a_full_sync() -> None:
    pair = Pair(created(), created())
    pair.a.new_current(A0, primary=True)
    assert pair.a == UuidSet(A0 | P, 4, 0, 0)
    assert pair.decisions() == ((2, 30), (-2, 20))


def test_initial_sync_names_itself_and_leaves_both_copies_with_one_identity() -> None:
    pair = Pair(created(), created())
    pair.a.new_current(A0, primary=True)
    told = pair.a.copy()
    sync = pair.a.open_sync(S0)
    assert sync == S0
    pair.b.adopt_sync(sync, primary=False)
    assert (pair.a, pair.b) == (UuidSet(A0 | P, S0, 4, 0), UuidSet(S0, 0, 0, 0))
    assert pair.decisions() == ((1, 70), (-1, 50))
    pair.b.adopt_final(told, primary=False)
    assert pair.b == UuidSet(A0, 0, S0, 4)
    assert pair.decisions() == ((1, 34), (-1, 35)), "B finished, A missed it"
    pair.a.close_tracking()
    assert pair.a == UuidSet(A0 | P, 0, S0, 4)
    assert pair.decisions() == ((0, 40), (0, 40))


def test_an_ancestor_for_which_everything_is_marked_is_tracked() -> None:
    pair = Pair(UuidSet(A1 | P, 0, A0 | P, S0), UuidSet(A0, 0, S0, 4))
    assert pair.decisions() == ((2, 80), (-2, 60))
    told = pair.a.copy()
    assert pair.a.track_ancestor(pair.b.current)
    assert pair.a == UuidSet(A1 | P, A0 | P, S0, 0)
    assert pair.decisions() == ((1, 70), (-1, 50)), "should the connection break now"
    sync = pair.a.open_sync(OTHER)
    assert pair.decisions() == ((1, 71), (-1, 51)), "or before its name arrives"
    pair.b.adopt_sync(sync, primary=False)
    pair.b.adopt_final(told, primary=False)
    pair.a.close_tracking()
    assert pair.a.masked() == pair.b.masked()


def test_only_an_ancestor_can_be_tracked_and_only_if_nothing_is() -> None:
    for slots in ((A1, 0, S0, A0), (A1, S0, A0, 4), (A0, 0, S0, 4)):
        uuids = UuidSet(*slots)
        assert not uuids.track_ancestor(A0)
        assert uuids == UuidSet(*slots)


def test_a_clean_role_switch_changes_nothing_but_the_marks() -> None:
    pair = synchronised()
    pair.a.mark_role(primary=False)
    pair.b.mark_role(primary=True)
    assert (pair.a, pair.b) == (UuidSet(A0, 0, S0, 4), UuidSet(A0 | P, 0, S0, 4))
    assert pair.decisions() == ((0, 40), (0, 40))


def test_a_primary_that_lost_its_peer_serves_it_by_bitmap_afterwards() -> None:
    pair = synchronised()
    pair.a.new_current(A1, primary=True)
    assert pair.a == UuidSet(A1 | P, A0 | P, S0, 4)
    assert pair.decisions() == ((1, 70), (-1, 50))
    told = pair.a.copy()
    sync = pair.a.open_sync(OTHER)
    assert sync == A0 + SYNC_STEP | P, "derived from what was tracked, not from the random number"
    assert pair.a == UuidSet(A1 | P, A0 + SYNC_STEP | P, A0 | P, S0)
    assert pair.decisions() == ((1, 71), (-1, 51)), "the name of the resync got lost on the way"
    pair.b.adopt_sync(sync, primary=False)
    assert pair.b == UuidSet(A0 + SYNC_STEP, 0, S0, 4)
    assert pair.decisions() == ((1, 70), (-1, 50)), "interrupted, it goes on by bitmap"
    pair.b.adopt_final(told, primary=False)
    pair.a.close_tracking()
    assert pair.a == UuidSet(A1 | P, 0, A0 + SYNC_STEP | P, A0 | P)
    assert pair.b == UuidSet(A1, 0, A0 + SYNC_STEP, A0 | P)
    assert pair.decisions() == ((0, 40), (0, 40))


def test_a_crashed_primary_is_source_as_long_as_nobody_was_promoted() -> None:
    pair = synchronised(primary=False)
    assert pair.decisions(a_crashed=True) == ((1, 40), (-1, 40))
    pair.b.new_current(B1, primary=True)
    assert pair.decisions(a_crashed=True) == ((-1, 50), (1, 70))


def test_both_promoted_while_apart_is_split_brain_and_the_marks_tell_who_was_first() -> None:
    pair = synchronised()
    pair.a.new_current(A1, primary=True)
    pair.b.new_current(B1, primary=True)
    assert (pair.a.bitmap & 1, pair.b.bitmap & 1) == (1, 0)
    assert pair.decisions() == ((100, 90), (100, 90))


def test_both_forced_on_fresh_disks_while_apart_is_split_brain() -> None:
    pair = Pair(created(), created())
    pair.a.new_current(A0, primary=True)
    pair.b.new_current(B1, primary=True)
    assert pair.decisions() == ((100, 90), (100, 90))


def test_a_replaced_disk_is_filled_completely() -> None:
    assert Pair(synchronised().a, created()).decisions() == ((2, 30), (-2, 20))


def test_a_peer_one_synchronisation_behind_is_filled_completely() -> None:
    pair = Pair(UuidSet(A2 | P, A1 | P, A0 | P, S0), synchronised().b)
    assert pair.decisions() == ((2, 80), (-2, 60))


def test_a_peer_too_far_behind_counts_as_unrelated() -> None:
    pair = Pair(UuidSet(A3 | P, 0, A2 | P, A1 | P), synchronised().b)
    assert pair.decisions() == ((-1000, 100), (-1000, 100))


def test_skipping_the_initial_sync_leaves_equal_copies() -> None:
    pair = Pair(UuidSet(A0, 0, 0, 0), UuidSet(A0, 0, 0, 0))
    assert pair.decisions() == ((0, 40), (0, 40))


def test_a_new_generation_while_tracking_keeps_the_older_base_recognisable() -> None:
    forced = UuidSet(A1, A0, S0, 4)
    forced.new_current(A2, primary=True)
    assert forced == UuidSet(A2 | P, A1, A0, S0)


def test_a_half_made_copy_declared_good_has_no_base_and_is_a_split_brain_with_its_source() -> None:
    pair = synchronised()
    sync = pair.a.open_sync(OTHER)
    unnamed, named = pair.b.copy(), pair.b.copy()
    named.adopt_sync(sync, primary=False)
    for copy, base in ((unnamed, A0), (named, sync)):
        copy.declare_good(B1, primary=True)
        assert copy == UuidSet(B1 | P, base + FORCED_STEP, S0, 4)
        assert Pair(pair.a, copy).decisions() == ((-100, 45), (-100, 45))


def test_what_a_half_made_copy_tracked_is_no_base_either() -> None:
    source = UuidSet(A0, OTHER, 0, 0)
    copy = UuidSet(A1, A0 | P, 0, 0)
    copy.declare_good(B1, primary=False)
    assert copy == UuidSet(B1, A1 + FORCED_STEP, A0 + FORCED_STEP, 0)
    assert Pair(source, copy).decisions() == ((-100, 45), (-100, 45))


def test_declaring_a_copy_good_that_was_just_created_begins_its_first_generation() -> None:
    copy = created()
    copy.declare_good(A0, primary=True)
    assert copy == UuidSet(A0 | P, 4, 0, 0)
    assert Pair(copy, created()).decisions() == ((2, 30), (-2, 20))


def test_diverging_without_a_base_is_a_new_generation() -> None:
    uuids = UuidSet(A0, 0, S0, 4)
    assert uuids.diverge(A1, primary=True, peer_may_have_current=False)
    assert uuids == UuidSet(A1 | P, A0, S0, 4)


def test_diverging_while_tracking_keeps_the_name_that_the_peer_cannot_have() -> None:
    uuids = UuidSet(A1 | P, A0, S0, 4)
    assert not uuids.diverge(A2, primary=True, peer_may_have_current=False)
    assert uuids == UuidSet(A1 | P, A0, S0, 4)


def test_a_source_that_may_have_missed_the_end_of_the_resync_diverges_but_keeps_serving() -> None:
    pair = Pair(UuidSet(A1 | P, A0 + SYNC_STEP, A0, S0), UuidSet(A0 + SYNC_STEP, 0, S0, 4))
    told = UuidSet(A1 | P, A0, S0, 4)
    assert pair.a.diverge(A2, primary=True, peer_may_have_current=True)
    assert pair.a == UuidSet(A2 | P, A0 + SYNC_STEP, A1 | P, A0)
    assert pair.decisions() == ((1, 70), (-1, 50)), "a target that did not finish goes on by bitmap"
    pair.b.adopt_final(told, primary=False)
    assert pair.decisions() == ((2, 80), (-2, 60)), "one that did is an ancestor now"
    pair.b.new_current(B1, primary=True)
    assert pair.decisions() == ((-100, 100), (-100, 100)), "and after its promotion a rival"


def test_an_ancestor_stays_known_however_often_the_name_of_its_full_sync_is_lost() -> None:
    source, ancestor = UuidSet(A2, A1, A0, S0), UuidSet(S0, 0, 0, 0)
    for number in range(1, 6):
        decision = decide(
            source,
            ancestor,
            own_crashed=False,
            peer_crashed=False,
            own_primary=False,
            peer_primary=False,
            arbiter=False,
        )
        assert (decision.value, decision.rule) == (2, 80)
        source = decision.own
        source.open_sync(OTHER * number)


def test_a_set_knows_the_generations_in_its_slots_whatever_the_role_marks() -> None:
    uuids = UuidSet(A1 | P, A0, S0 | P, 4)
    assert all(uuids.knows(uuid) for uuid in (A1, A0 | P, S0, 4))
    assert not uuids.knows(A2)


def test_closing_tracking_twice_pushes_history_once() -> None:
    uuids = UuidSet(A1, A0, S0, 4)
    uuids.close_tracking()
    uuids.close_tracking()
    assert uuids == UuidSet(A1, 0, A0, S0)


def test_a_sync_of_fresh_metadata_gets_a_random_name_even_with_the_role_mark_on_it() -> None:
    assert UuidSet(A0 | P, 4, 0, 0).open_sync(OTHER) == OTHER
    assert UuidSet(A0 | P, 4 | P, 0, 0).open_sync(OTHER | 1) == OTHER


def test_a_derived_sync_name_wraps_at_64_bits() -> None:
    base = 0xFFFF << 48 | 0x10
    assert UuidSet(A0, base, 0, 0).open_sync(OTHER) == 0x10


def test_the_target_does_not_remember_the_generation_it_gives_up() -> None:
    target = UuidSet(A0, B1, S0, 4)
    target.adopt_sync(A1 | P, primary=False)
    assert target == UuidSet(A1, 0, S0, 4)


@pytest.mark.parametrize("useless", [0, 1, 4, 5, 1 << 64, -2])
def test_a_random_number_that_names_no_generation_is_refused(useless: int) -> None:
    with pytest.raises(ValueError, match="cannot name a data generation"):
        UuidSet().new_current(useless, primary=True)
    with pytest.raises(ValueError, match="cannot name a data generation"):
        UuidSet().open_sync(useless)


def test_the_text_form_is_sixteen_digits_each() -> None:
    text = "0000000000000004:0000000000000000:00000000000000AB:FFFFFFFFFFFFFFFF"
    assert str(UuidSet(4, 0, 0xAB, (1 << 64) - 1)) == text
