"""Packets between two replicators: strict msgpack maps, nothing else."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.commands import MAX_EXTENSION
from protocol.errors import BadLength, BadValue, WireError
from protocol.extensions import (
    HELLO,
    MAX_REASON,
    REFUSAL,
    Extension,
    decode_extension,
    encode_extension,
)
from protocol.packets import Command, Raw, decode, encode

FIELDS: dict[str, Any] = {
    "software": "0.1.0",
    "node": "alpha",
    "resource": "r0",
    "volumes": {0: 4 << 20, 7: 0},
}

text = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40)
hellos = st.fixed_dictionaries(
    {
        "software": text,
        "node": text,
        "resource": text,
        "volumes": st.dictionaries(st.integers(0, 65534), st.integers(0, 1 << 60), max_size=5),
    }
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner)
    ),
    max_leaves=8,
)


@given(hellos)
def test_a_hello_arrives_as_it_was_sent(fields: dict[str, Any]) -> None:
    frame = encode(0, Command.EXTENSION, Raw(encode_extension(HELLO, fields)))
    raw = decode(Command.EXTENSION, frame[16:])
    assert isinstance(raw, Raw)
    assert decode_extension(raw.payload) == Extension(HELLO, fields)


@given(st.binary(max_size=300))
def test_garbage_raises_nothing_but_a_wire_error(payload: bytes) -> None:
    with pytest.raises(WireError, match="extension"):
        decode_extension(payload)


@given(anything)
def test_other_msgpack_raises_nothing_but_a_wire_error(value: Any) -> None:
    with pytest.raises(WireError, match="extension"):
        decode_extension(msgpack.packb(value))


@given(st.sampled_from(sorted(FIELDS)), anything)
def test_a_field_of_another_kind_is_refused_or_is_a_right_one(field: str, value: Any) -> None:
    payload = msgpack.packb({"kind": HELLO, **FIELDS, field: value})
    try:
        fields = decode_extension(payload).fields
    except BadValue as error:
        assert field in str(error)
        return
    assert encode_extension(HELLO, fields) == payload


@given(hellos, st.data())
def test_a_truncated_packet_is_refused(fields: dict[str, Any], draw: st.DataObject) -> None:
    payload = encode_extension(HELLO, fields)
    with pytest.raises(WireError, match="extension"):
        decode_extension(payload[: draw.draw(st.integers(0, len(payload) - 1))])


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != field}
    with pytest.raises(BadValue, match=f"extension hello: expected {field}"):
        encode_extension(HELLO, fields)
    with pytest.raises(BadValue, match=f"extension hello: expected {field}"):
        decode_extension(msgpack.packb({"kind": HELLO, **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node", ""),
        ("node", "a" * 256),
        ("node", "alpha\n"),
        ("node", b"alpha"),
        ("volumes", {65535: 0}),
        ("volumes", {-1: 0}),
        ("volumes", {"0": 0}),
        ("volumes", {True: 0}),
        ("volumes", {0: -1}),
        ("volumes", {0: 1 << 61}),
        ("volumes", dict.fromkeys(range(257), 0)),
        ("volumes", []),
    ],
)
def test_a_field_out_of_its_range_is_refused_on_both_ends(field: str, value: Any) -> None:
    fields = {**FIELDS, field: value}
    with pytest.raises(BadValue, match=f"extension hello: {field}: expected"):
        encode_extension(HELLO, fields)
    with pytest.raises(BadValue, match=f"extension hello: {field}: expected"):
        decode_extension(msgpack.packb({"kind": HELLO, **fields}, use_bin_type=True))


def test_a_field_nobody_knows_and_a_kind_nobody_knows_are_refused() -> None:
    with pytest.raises(BadValue, match="expected only software, .*found 'colour'"):
        encode_extension(HELLO, {**FIELDS, "colour": "blue"})
    with pytest.raises(BadValue, match="expected kind hello or refusal, found 'goodbye'"):
        encode_extension("goodbye", {})
    with pytest.raises(BadValue, match="expected a kind"):
        decode_extension(msgpack.packb(FIELDS))


def test_a_refusal_carries_lines_of_text_for_people() -> None:
    fields = {"reason": "split brain\n  run `replicator connect --discard-my-data` – on one node"}
    assert decode_extension(encode_extension(REFUSAL, fields)) == Extension(REFUSAL, fields)


@pytest.mark.parametrize("reason", ["", "x" * (MAX_REASON + 1), "\x1b[2J", "a\tb", b"no", 7])
def test_a_reason_that_is_no_text_or_could_steer_a_terminal_is_refused(reason: Any) -> None:
    with pytest.raises(BadValue, match="extension refusal: reason"):
        decode_extension(msgpack.packb({"kind": REFUSAL, "reason": reason}))


def test_what_is_longer_than_64_kib_is_not_even_looked_at() -> None:
    with pytest.raises(BadLength, match="at most 65536"):
        decode_extension(b"\xc1" * (MAX_EXTENSION + 1))


def test_deep_nesting_is_refused() -> None:
    for head in (b"\x91", b"\x81\x01"):
        with pytest.raises(WireError, match="extension"):
            decode_extension(head * 30_000 + b"\x00")
