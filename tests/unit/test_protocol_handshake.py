"""What two nodes agree on: versions, features, and whether their parameters fit together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import features
from protocol.compat import (
    AFTER_SB_CODES,
    AFTER_SB_NAMES,
    PROTOCOL_CODES,
    PROTOCOL_NAMES,
    compare_protocol,
    compare_sync_param,
)
from protocol.errors import Incompatible
from protocol.features import THIN_RESYNC, TRIM, WSAME, WZEROES, Agreed, agree
from protocol.packets import Features, ProtocolParams, SyncParam

OURS = features.own_features(TRIM | WSAME | WZEROES, 1)


def test_a_kernel_8_4_11_gets_version_101_and_the_features_both_have() -> None:
    assert agree(OURS, Features(86, 15, 101)) == Agreed(101, TRIM | WSAME | WZEROES, 0)


def test_a_drbd_9_kernel_comes_down_to_version_101() -> None:
    peer = Features(86, 0x1FF, 124)
    assert agree(OURS, peer) == Agreed(101, TRIM | WSAME | WZEROES, 0)
    assert features.is_drbd9(peer) and not features.is_drbd9(OURS)


def test_two_replicators_speak_the_older_ones_extensions() -> None:
    assert agree(OURS, OURS._replace(replicator=7)).replicator == 1


@pytest.mark.parametrize("peer", [Features(86, 0, 99), Features(102, 0, 124)])
def test_without_a_common_version_both_ranges_are_named(peer: Features) -> None:
    with pytest.raises(
        Incompatible,
        match=f"100 to 101 .*found {peer.protocol_min} to {peer.protocol_max}",
    ):
        agree(OURS, peer)


ranges = st.tuples(st.integers(80, 130), st.integers(0, 30)).map(
    lambda one: (one[0], one[0] + one[1])
)
announcements = st.builds(
    lambda span, flags, extension: Features(span[0], flags, span[1], extension),
    ranges,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 9),
)


@given(announcements, announcements)
def test_both_sides_come_to_the_same_agreement(own: Features, peer: Features) -> None:
    try:
        agreed = agree(own, peer)
    except Incompatible:
        with pytest.raises(Incompatible):
            agree(peer, own)
        assert own.protocol_max < peer.protocol_min or peer.protocol_max < own.protocol_min
        return
    assert agree(peer, own) == agreed
    for side in (own, peer):
        assert side.protocol_min <= agreed.version <= side.protocol_max
        assert agreed.features & ~side.feature_flags == 0


def test_features_are_shown_by_name() -> None:
    assert features.feature_names(0) == "none"
    assert features.feature_names(TRIM | THIN_RESYNC | WSAME | WZEROES | 16) == (
        "TRIM+THIN_RESYNC+WSAME+WRITE_ZEROES+0x10"
    )


# --- P_PROTOCOL -----------------------------------------------------------------------------------

C = ProtocolParams(PROTOCOL_CODES["C"])

params = st.builds(
    ProtocolParams,
    st.integers(1, 3),
    *(st.integers(0, 10),) * 3,
    st.integers(0, 3),
    st.integers(0, 1),
    st.sampled_from(["", "crc32c", "sha1"]),
)


def test_equal_parameters_fit_together() -> None:
    assert compare_protocol(C, C) is None


@given(params, params)
def test_both_sides_come_to_the_same_verdict(own: ProtocolParams, peer: ProtocolParams) -> None:
    assert (compare_protocol(own, peer) is None) == (compare_protocol(peer, own) is None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("protocol", 1, "protocol differs: C here, A on the peer"),
        (
            "after_sb_0p",
            AFTER_SB_CODES["discard-zero-changes"],
            "after-sb-0pri differs: disconnect here, discard-zero-changes on the peer",
        ),
        (
            "after_sb_1p",
            AFTER_SB_CODES["consensus"],
            "after-sb-1pri differs: disconnect here, consensus on the peer",
        ),
        (
            "after_sb_2p",
            AFTER_SB_CODES["call-pri-lost-after-sb"],
            "after-sb-2pri differs: disconnect here, call-pri-lost-after-sb on the peer",
        ),
        ("two_primaries", 1, "allow-two-primaries differs: no here, yes on the peer"),
        ("integrity_alg", "sha1", "data-integrity-alg differs: none here, sha1 on the peer"),
    ],
)
def test_a_difference_is_named_as_in_the_configuration_with_both_values(
    field: str, value: Any, message: str
) -> None:
    assert compare_protocol(C, C._replace(**{field: value})) == message


def test_local_here_fits_remote_there_and_not_local() -> None:
    local = C._replace(after_sb_0p=AFTER_SB_CODES["discard-local"])
    remote = C._replace(after_sb_0p=AFTER_SB_CODES["discard-remote"])
    assert compare_protocol(local, remote) is None
    assert compare_protocol(remote, local) is None
    assert compare_protocol(local, local) == (
        "after-sb-0pri differs: discard-local here, discard-local on the peer"
    )


def test_one_node_may_discard_its_data_but_not_both() -> None:
    discard = C._replace(conn_flags=1)
    assert compare_protocol(discard, C) is None
    assert compare_protocol(C, discard) is None
    assert compare_protocol(discard, discard) == (
        "discard-my-data is set on both nodes: it can be set on one only"
    )


def test_the_dry_run_flag_may_differ() -> None:
    assert compare_protocol(C._replace(conn_flags=2), C) is None


def test_algorithms_of_verify_and_checksums_must_be_the_same_and_rates_need_not() -> None:
    own = SyncParam(250, "crc32c", "md5")
    assert compare_sync_param(own, SyncParam(10240, "crc32c", "md5", 0, 1, 2, 3)) is None
    assert compare_sync_param(own, own._replace(verify_alg="")) == (
        "verify-alg differs: crc32c here, none on the peer"
    )
    assert compare_sync_param(own, own._replace(csums_alg="sha1")) == (
        "csums-alg differs: md5 here, sha1 on the peer"
    )


def test_codes_and_names_are_one_to_one() -> None:
    assert {AFTER_SB_CODES[name] for name in AFTER_SB_NAMES.values()} == set(range(11))
    assert {PROTOCOL_CODES[name] for name in PROTOCOL_NAMES.values()} == {1, 2, 3}
