"""cram-hmac-alg: each node proves that it knows the shared secret, by HMACs of random challenges.

Both send a challenge of 64 random bytes, and answer the other's with HMAC(secret, challenge). The
randomness comes from the caller; nothing here keeps a state.
"""

from __future__ import annotations

import hmac

from protocol.commands import MAX_CHALLENGE, MIN_CHALLENGE
from protocol.errors import AuthError, BadLength, BadValue

__all__ = [
    "CHALLENGE_SIZE",
    "MAX_SECRET",
    "RESPONSE_SIZES",
    "AuthError",
    "check_challenge",
    "known",
    "respond",
    "response",
    "verify",
]

CHALLENGE_SIZE = 64
"""What we send. 8.4 takes up to 128 bytes, DRBD 9 exactly 64."""
MAX_SECRET = 63
"""Bytes of the shared secret, without NUL."""

RESPONSE_SIZES = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}
"""Bytes of P_AUTH_RESPONSE by cram-hmac-alg: the hash's name, as drbd.conf has it."""


def known(alg: str) -> bool:
    return alg in RESPONSE_SIZES


def response(alg: str, secret: str | bytes, challenge: bytes) -> bytes:
    """HMAC(secret, the peer's whole challenge). Raises BadValue for an unknown alg or an unusable
    secret, BadLength for a challenge outside 64 to 128 bytes."""
    if alg not in RESPONSE_SIZES:
        names = ", ".join(RESPONSE_SIZES)
        raise BadValue(f"cram-hmac-alg: expected one of {names}, found {alg!r}")
    key = secret.encode() if isinstance(secret, str) else secret
    if not 1 <= len(key) <= MAX_SECRET:
        raise BadValue(f"shared-secret: expected 1 to {MAX_SECRET} bytes, found {len(key)}")
    if not MIN_CHALLENGE <= len(challenge) <= MAX_CHALLENGE:
        raise BadLength(
            f"P_AUTH_CHALLENGE: expected {MIN_CHALLENGE} to {MAX_CHALLENGE} bytes, "
            f"found {len(challenge)}"
        )
    return hmac.digest(key, challenge, alg)


def respond(alg: str, secret: str | bytes, challenge: bytes, own_challenge: bytes) -> bytes:
    """The answer to the peer's challenge, unless that is our own. Raises as `check_challenge` and
    `response` do."""
    check_challenge(own_challenge, challenge)
    return response(alg, secret, challenge)


def check_challenge(own: bytes, peer: bytes) -> None:
    """Refuse a peer that sends our own challenge back, to have us answer it for it.

    Raises AuthError; BadLength for a challenge outside 64 to 128 bytes.
    """
    if not MIN_CHALLENGE <= len(peer) <= MAX_CHALLENGE:
        raise BadLength(
            f"P_AUTH_CHALLENGE: expected {MIN_CHALLENGE} to {MAX_CHALLENGE} bytes, "
            f"found {len(peer)}"
        )
    if hmac.compare_digest(own, peer):
        raise AuthError("P_AUTH_CHALLENGE: expected the peer's own challenge, found ours reflected")


def verify(alg: str, secret: str | bytes, own_challenge: bytes, answer: bytes) -> None:
    """Check the peer's P_AUTH_RESPONSE to our challenge, in constant time.

    Raises BadLength if it cannot be an answer of this algorithm, AuthError if it is the wrong one.
    """
    expected = response(alg, secret, own_challenge)
    if len(answer) != len(expected):
        raise BadLength(
            f"P_AUTH_RESPONSE: expected {len(expected)} bytes ({alg}), found {len(answer)}"
        )
    if not hmac.compare_digest(expected, answer):
        raise AuthError(
            f"P_AUTH_RESPONSE: expected the {alg} HMAC of our challenge under the shared secret, "
            "found another: the peer's shared-secret differs"
        )
