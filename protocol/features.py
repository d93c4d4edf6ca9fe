"""The features handshake: what we announce, and what two announcements come to.

Rules: pure arithmetic on `Features`; what a node does with what was agreed is decided elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.errors import Incompatible
from protocol.messages import Features

__all__ = [
    "PROTOCOL_MAX",
    "PROTOCOL_MIN",
    "THIN_RESYNC",
    "TRIM",
    "WSAME",
    "WZEROES",
    "Agreed",
    "Incompatible",
    "agree",
    "feature_names",
    "is_drbd9",
    "own_features",
]

PROTOCOL_MIN = 100
PROTOCOL_MAX = 101

TRIM = 1
"""Discards may be sent, as P_TRIM."""
THIN_RESYNC = 2
"""P_RS_THIN_REQ and P_RS_DEALLOCATED may be sent."""
WSAME = 4
"""P_SIZES has its 56-byte form; discards of up to 128 MiB, otherwise 4 MiB."""
WZEROES = 8
"""P_ZEROES may be sent, and P_TRIM no longer promises zeroes."""

_NAMES = {
    TRIM: "TRIM",
    THIN_RESYNC: "THIN_RESYNC",
    WSAME: "WSAME",
    WZEROES: "WRITE_ZEROES",
}


class Agreed(NamedTuple):
    """features: feature bits; replicator: the extension version, 0 with a kernel peer."""

    version: int
    features: int
    replicator: int = 0


def own_features(feature_flags: int, replicator: int) -> Features:
    """Our announcement. Leave WZEROES out with data-integrity-alg: a kernel sends P_ZEROES
    without a digest but expects one, which breaks the connection."""
    return Features(PROTOCOL_MIN, feature_flags, PROTOCOL_MAX, replicator)


def agree(own: Features, peer: Features) -> Agreed:
    """The highest version both speak and the features both have. Raises Incompatible."""
    version = min(own.protocol_max, peer.protocol_max)
    if version < max(own.protocol_min, peer.protocol_min):
        raise Incompatible(
            "P_CONNECTION_FEATURES: no protocol version in common: expected one of "
            f"{own.protocol_min} to {own.protocol_max} (ours), found "
            f"{peer.protocol_min} to {peer.protocol_max} (the peer's); "
            "the node with the lower numbers must be upgraded"
        )
    features = own.feature_flags & peer.feature_flags
    return Agreed(version, features, min(own.replicator, peer.replicator))


def is_drbd9(peer: Features) -> bool:
    """A DRBD 9 kernel: its state change *requests* number disk states from Failed up one higher."""
    return peer.protocol_max > PROTOCOL_MAX


def feature_names(flags: int) -> str:
    """For people: "TRIM+WSAME", or "none"; unknown bits in hexadecimal."""
    names = [name for bit, name in _NAMES.items() if flags & bit]
    rest = flags & ~sum(_NAMES)
    if rest:
        names.append(hex(rest))
    return "+".join(names) or "none"
