"""May two nodes with these parameters work together? Names and codes of what P_PROTOCOL compares.

Rules: a comparison returns None or one sentence with both values, in the words of drbd.conf; to
refuse the connection because of it is the engine's doing (DRBD stands alone).
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.digests import REPLICATOR_ONLY
from protocol.messages import ProtocolParams, SyncParam

CF_DISCARD_MY_DATA = 1
CF_DRY_RUN = 2

PROTOCOL_NAMES = {1: "A", 2: "B", 3: "C"}
PROTOCOL_CODES = {name: code for code, name in PROTOCOL_NAMES.items()}

AFTER_SB_NAMES = {
    0: "disconnect",
    1: "discard-younger-primary",
    2: "discard-older-primary",
    3: "discard-zero-changes",
    4: "discard-least-changes",
    5: "discard-local",
    6: "discard-remote",
    7: "consensus",
    8: "discard-secondary",
    9: "call-pri-lost-after-sb",
    10: "violently-as0p",
}
"""All policies by their code; which of the three options may have which is drbd.conf's rule."""
AFTER_SB_CODES = {name: code for code, name in AFTER_SB_NAMES.items()}

_DISCARD_LOCAL, _DISCARD_REMOTE = 5, 6
_MIRRORED = {_DISCARD_LOCAL: _DISCARD_REMOTE, _DISCARD_REMOTE: _DISCARD_LOCAL}


def mirrored_policy(code: int) -> int:
    """The after-sb code of the peer as this node has to read it: its "local" is our "remote"."""
    return _MIRRORED.get(code, code)


def compare_protocol(own: ProtocolParams, peer: ProtocolParams) -> str | None:
    """What makes the two P_PROTOCOL packets incompatible, the first difference found, or None."""
    if own.protocol != peer.protocol:
        mine = PROTOCOL_NAMES.get(own.protocol, str(own.protocol))
        return _differs("protocol", mine, PROTOCOL_NAMES.get(peer.protocol, str(peer.protocol)))
    policies = (
        ("after-sb-0pri", own.after_sb_0p, peer.after_sb_0p),
        ("after-sb-1pri", own.after_sb_1p, peer.after_sb_1p),
        ("after-sb-2pri", own.after_sb_2p, peer.after_sb_2p),
    )
    for option, mine_code, peer_code in policies:
        if mine_code != mirrored_policy(peer_code):
            return _differs(option, _policy(mine_code), _policy(peer_code))
    if own.conn_flags & peer.conn_flags & CF_DISCARD_MY_DATA:
        return "discard-my-data is set on both nodes: it can be set on one only"
    if own.two_primaries != peer.two_primaries:
        mine, theirs = _yes_no(own.two_primaries), _yes_no(peer.two_primaries)
        return _differs("allow-two-primaries", mine, theirs)
    if own.integrity_alg != peer.integrity_alg:
        return _differs("data-integrity-alg", own.integrity_alg, peer.integrity_alg)
    return None


def compare_sync_param(own: SyncParam, peer: SyncParam) -> str | None:
    """What makes the first two P_SYNC_PARAM89 packets incompatible, or None. Rates may differ."""
    if own.verify_alg != peer.verify_alg:
        return _differs("verify-alg", own.verify_alg, peer.verify_alg)
    if own.csums_alg != peer.csums_alg:
        return _differs("csums-alg", own.csums_alg, peer.csums_alg)
    return None


def needs_replicator(algorithms: Mapping[str, str]) -> str | None:
    """algorithms: option -> its value. What a kernel peer cannot compute, or None."""
    for option, name in algorithms.items():
        if name in REPLICATOR_ONLY:
            return (
                f"{option} is {name} here, which only a replicator knows, and the peer is none: "
                "choose one of the kernel's, for example crc32c or sha256, on both nodes"
            )
    return None


def _differs(option: str, mine: str, theirs: str) -> str:
    return f"{option} differs: {mine or 'none'} here, {theirs or 'none'} on the peer"


def _policy(code: int) -> str:
    return AFTER_SB_NAMES.get(code, f"code {code}")


def _yes_no(flag: int) -> str:
    return "yes" if flag else "no"
