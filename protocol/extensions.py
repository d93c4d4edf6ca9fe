"""Our own packets: what two replicators tell each other that DRBD 8.4 has no packet for.

A replicator shows itself in P_CONNECTION_FEATURES, by a mark and an extension version at the end of
the reserved bytes (`Features.replicator`), which kernels send as zeroes and do not look at. Only
when both ends have shown it may P_EXTENSION (0x7a01, data socket) and P_META_EXTENSION (0x7a02,
meta socket) be sent; an unknown command on the meta socket makes a kernel stand alone.

Rules:
1. The payload is one msgpack map of at most 64 KiB: "kind" and that kind's fields, all of them,
   no others. What changes gets a new extension version; the lower of the two nodes' is spoken.
2. The first packet either way is HELLO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from protocol.commands import MAX_EXTENSION, MAX_SECTORS, MAX_VOLUME, SECTOR
from protocol.errors import BadLength, BadValue, WireError

EXTENSION_VERSION = 1
HELLO = "hello"
REFUSAL = "refusal"
"""Why the sender is about to close the connection for good."""

MAX_TEXT = 255
MAX_VOLUMES = 256
MAX_REASON = 2000

Check = Callable[[object], bool]


class Extension(NamedTuple):
    """kind: a key of `KINDS`; fields: exactly those of that kind."""

    kind: str
    fields: dict[str, Any]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()


def _is_volumes(value: object) -> bool:
    """Volume number -> size in bytes, 0 for a diskless one."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_VOLUMES
        and all(_is_number(number, MAX_VOLUME) for number in value)
        and all(_is_number(size, MAX_SECTORS * SECTOR) for size in value.values())
    )


def _is_reason(value: object) -> bool:
    """Lines of text: it is shown to people, so it must not be able to steer their terminal."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_REASON
        and all(letter.isprintable() or letter == "\n" for letter in value)
    )


def _is_number(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


KINDS: dict[str, dict[str, tuple[Check, str]]] = {
    HELLO: {
        "software": (_is_text, "the version of the software, as text"),
        "node": (_is_text, "the node's name"),
        "resource": (_is_text, "the resource's name"),
        "volumes": (_is_volumes, "a map from volume numbers to sizes in bytes"),
    },
    REFUSAL: {"reason": (_is_reason, f"up to {MAX_REASON} characters for people")},
}
"""kind -> field -> (check, what it is)."""


def encode_extension(kind: str, fields: dict[str, Any]) -> bytes:
    """The payload of an extension packet, for `Raw`. Raises WireError for what may not be sent."""
    _check(kind, fields)
    payload: bytes = msgpack.packb({"kind": kind, **fields}, use_bin_type=True)
    if len(payload) > MAX_EXTENSION:
        raise BadLength(
            f"extension {kind}: expected at most {MAX_EXTENSION} bytes, found {len(payload)}"
        )
    return payload


def decode_extension(payload: bytes) -> Extension:
    """Raises WireError for anything that `encode_extension` would not have made."""
    if len(payload) > MAX_EXTENSION:
        raise BadLength(f"extension: expected at most {MAX_EXTENSION} bytes, found {len(payload)}")
    try:
        # Keys may be numbers: volumes. unpackb bounds every length by the payload's.
        fields = msgpack.unpackb(payload, raw=False, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadValue(f"extension: expected msgpack, found something else: {error}") from error
    if not isinstance(fields, dict):
        raise BadValue(f"extension: expected a map, found {type(fields).__name__}")
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise BadValue("extension: expected a kind, found none")
    _check(kind, fields)
    return Extension(kind, fields)


def _check(kind: str, fields: dict[Any, Any]) -> None:
    schema = KINDS.get(kind)
    if schema is None:
        raise BadValue(f"extension: expected kind {' or '.join(KINDS)}, found {ascii(kind)[:80]}")
    unexpected = fields.keys() - schema.keys()
    if unexpected:
        found = ascii(min(map(str, unexpected)))[:80]
        raise BadValue(f"extension {kind}: expected only {', '.join(schema)}, found {found}")
    for name, (is_valid, meaning) in schema.items():
        if name not in fields:
            raise BadValue(f"extension {kind}: expected {name} ({meaning}), found none")
        if not is_valid(fields[name]):
            raise _bad_field(kind, name, meaning, fields[name])


def _bad_field(kind: str, name: str, meaning: str, value: object) -> WireError:
    return BadValue(f"extension {kind}: {name}: expected {meaning}, found {ascii(value)[:80]}")
