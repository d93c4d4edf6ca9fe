"""Digests are those that a kernel computes for the same name."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import digests
from protocol.commands import MAX_DIGEST
from protocol.errors import BadValue


@pytest.mark.parametrize(
    ("alg", "data", "expected"),
    [
        # The first is the check value of the published catalogue of CRCs, 0xe3069283.
        ("crc32c", b"123456789", "839206e3"),
        ("crc32c", bytes(4096), "8941f998"),
        ("md5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
        ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
        ("sha256", b"abc", hashlib.sha256(b"abc").hexdigest()),
        ("xxh3-64", b"", "2d06800538d394c2"),
        ("xxh3-128", b"", "99aa06d3014798d86001c324468d497f"),
    ],
)
def test_known_data_has_a_known_digest(alg: str, data: bytes, expected: str) -> None:
    assert digests.digest(alg, data).hex() == expected


@given(st.sampled_from(digests.ALGORITHMS), st.binary(max_size=300))
def test_a_digest_has_its_size_whatever_kind_of_buffer_holds_the_data(
    alg: str, data: bytes
) -> None:
    expected = digests.digest(alg, data)
    assert len(expected) == digests.digest_size(alg) <= MAX_DIGEST
    assert digests.digest(alg, bytearray(data)) == expected
    assert digests.digest(alg, memoryview(b"x" + data)[1:]) == expected
    assert digests.digester(alg)(data) == expected


@given(st.sampled_from(digests.ALGORITHMS), st.binary(min_size=1, max_size=300), st.data())
def test_one_wrong_bit_changes_the_digest(alg: str, data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, len(data) * 8 - 1))
    other = bytearray(data)
    other[place >> 3] ^= 1 << (place & 7)
    assert digests.digest(alg, other) != digests.digest(alg, data)


def test_no_algorithm_means_no_digest() -> None:
    assert digests.digest_size("") == 0
    assert digests.digest("", b"data") == digests.digester("")(b"data") == b""
    assert not digests.known("")


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    for call in (digests.digest_size, digests.digester, lambda alg: digests.digest(alg, b"")):
        with pytest.raises(BadValue, match=r"crc32c, md5, .*found 'crc33'"):
            call("crc33")


def test_algorithms_no_kernel_has_are_marked() -> None:
    assert set(digests.REPLICATOR_ONLY) <= set(digests.ALGORITHMS)
    assert all(alg.startswith("xxh3") for alg in digests.REPLICATOR_ONLY)
