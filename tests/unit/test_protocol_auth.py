"""Challenge and response: known answers, and every way to be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import auth
from protocol.auth import AuthError
from protocol.errors import BadLength, BadValue

CHALLENGE = bytes(range(64))
ALGORITHMS = sorted(auth.RESPONSE_SIZES)


@pytest.mark.parametrize(
    ("alg", "expected"),
    [
        ("md5", "29f28f3923675806e2f1a58169378aa2"),
        ("sha1", "202cf0ae20d957f6cb4e48413fbb1c800753c3af"),
        ("sha256", "b5823bd1c056e32c6acfb97969ec13bb90276d9a25876e1c647d62ffdfaad9eb"),
    ],
)
def test_the_response_to_a_known_challenge_is_known(alg: str, expected: str) -> None:
    assert auth.response(alg, "drbdsecret", CHALLENGE).hex() == expected
    auth.verify(alg, b"drbdsecret", CHALLENGE, bytes.fromhex(expected))


@given(
    st.sampled_from(ALGORITHMS),
    st.binary(min_size=1, max_size=63),
    st.binary(min_size=64, max_size=128),
)
def test_a_response_is_accepted_by_the_node_that_sent_the_challenge(
    alg: str, secret: bytes, challenge: bytes
) -> None:
    answer = auth.response(alg, secret, challenge)
    assert len(answer) == auth.RESPONSE_SIZES[alg]
    auth.verify(alg, secret, challenge, answer)


@given(st.sampled_from(ALGORITHMS), st.data())
def test_one_wrong_bit_is_refused(alg: str, draw: st.DataObject) -> None:
    answer = bytearray(auth.response(alg, "secret", CHALLENGE))
    place = draw.draw(st.integers(0, len(answer) * 8 - 1))
    answer[place >> 3] ^= 1 << (place & 7)
    with pytest.raises(AuthError, match="shared-secret differs"):
        auth.verify(alg, "secret", CHALLENGE, bytes(answer))


def test_another_secret_or_challenge_is_refused() -> None:
    answer = auth.response("sha256", "secret", CHALLENGE)
    with pytest.raises(AuthError):
        auth.verify("sha256", "Secret", CHALLENGE, answer)
    with pytest.raises(AuthError):
        auth.verify("sha256", "secret", CHALLENGE[::-1], answer)


def test_a_response_of_another_length_cannot_be_one() -> None:
    answer = auth.response("sha256", "secret", CHALLENGE)
    for wrong in (b"", answer[:-1], answer + b"\0", auth.response("sha1", "secret", CHALLENGE)):
        with pytest.raises(BadLength, match=r"expected 32 bytes \(sha256\)"):
            auth.verify("sha256", "secret", CHALLENGE, wrong)


def test_our_own_challenge_sent_back_is_not_answered() -> None:
    with pytest.raises(AuthError, match="reflected"):
        auth.respond("sha256", "secret", CHALLENGE, CHALLENGE)
    other = CHALLENGE[::-1]
    answer = auth.respond("sha256", "secret", other, CHALLENGE)
    assert answer == auth.response("sha256", "secret", other)


@pytest.mark.parametrize("length", [0, 63, 129])
def test_a_challenge_has_64_to_128_bytes(length: int) -> None:
    with pytest.raises(BadLength, match=f"64 to 128 bytes, found {length}"):
        auth.response("md5", "secret", bytes(length))
    with pytest.raises(BadLength, match=f"64 to 128 bytes, found {length}"):
        auth.check_challenge(CHALLENGE, bytes(length))


def test_the_secret_never_shows_in_a_message() -> None:
    with pytest.raises(BadValue, match="1 to 63 bytes, found 64") as refusal:
        auth.response("md5", "sesame" * 10 + "open", CHALLENGE)
    assert "sesame" not in str(refusal.value)
    with pytest.raises(BadValue, match="1 to 63 bytes, found 0"):
        auth.response("md5", "", CHALLENGE)


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    assert auth.known("sha512") and not auth.known("rot13")
    with pytest.raises(BadValue, match=r"md5, sha1, .*found 'rot13'"):
        auth.response("rot13", "secret", CHALLENGE)
