"""Digests of data: data-integrity-alg, csums-alg, verify-alg.

Rules: names are those of drbd.conf, which are the kernel's, so that a kernel peer computes the same
bytes; xxh3-64 and xxh3-128 are ours, for pairs of replicators. Unkeyed: they find damage, not
forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import google_crc32c
import xxhash

from protocol.errors import BadValue

Buffer = bytes | bytearray | memoryview


def _crc32c(data: Buffer) -> bytes:
    # The library reads bytes only; the kernel's digest of a CRC is little-endian.
    whole = data if type(data) is bytes else bytes(data)
    crc: int = google_crc32c.value(whole)
    return crc.to_bytes(4, "little")


def _hashlib(name: str) -> Callable[[Buffer], bytes]:
    def compute(data: Buffer) -> bytes:
        return hashlib.new(name, data, usedforsecurity=False).digest()

    return compute


_ALGORITHMS: dict[str, tuple[int, Callable[[Buffer], bytes]]] = {
    "crc32c": (4, _crc32c),
    "md5": (16, _hashlib("md5")),
    "sha1": (20, _hashlib("sha1")),
    "sha224": (28, _hashlib("sha224")),
    "sha256": (32, _hashlib("sha256")),
    "sha384": (48, _hashlib("sha384")),
    "sha512": (64, _hashlib("sha512")),
    "xxh3-64": (8, xxhash.xxh3_64_digest),
    "xxh3-128": (16, xxhash.xxh3_128_digest),
}

ALGORITHMS = tuple(_ALGORITHMS)
REPLICATOR_ONLY = ("xxh3-64", "xxh3-128")
"""No kernel knows these: only for pairs of replicators."""


def known(alg: str) -> bool:
    return alg in _ALGORITHMS


def digest_size(alg: str) -> int:
    """Bytes; 0 for "", which means none. Raises BadValue for an unknown name."""
    return _find(alg)[0] if alg else 0


def digest(alg: str, data: Buffer) -> bytes:
    """The digest of `data`; b"" for "". Raises BadValue for an unknown name."""
    return _find(alg)[1](data) if alg else b""


def digester(alg: str) -> Callable[[Buffer], bytes]:
    """The function behind `digest`, for those who call it for every packet."""
    if not alg:
        return lambda data: b""
    return _find(alg)[1]


def _find(alg: str) -> tuple[int, Callable[[Buffer], bytes]]:
    row = _ALGORITHMS.get(alg)
    if row is None:
        raise BadValue(f"digest algorithm: expected one of {', '.join(_ALGORITHMS)}, found {alg!r}")
    return row
