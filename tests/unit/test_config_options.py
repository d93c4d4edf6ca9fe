"""The option table: that it is complete and right, and how option values are read."""

from __future__ import annotations

import dataclasses
import re

import pytest

from protocol import auth, digests
from replicator.config import model
from replicator.config.option_table import ALL_OPTIONS, SECTIONS
from replicator.config.options import Effect, Kind, Option, Value, read_value
from replicator.config.settings import to_settings
from replicator.engine.settings import DiskSettings, NetSettings
from replicator.errors import ConfigError
from tests.unit.config_texts import load_text, resource, view_of

CLASSES: dict[str, type] = {
    "global": model.GlobalOptions,
    "net": model.NetOptions,
    "disk": model.DiskOptions,
    "options": model.ResourceOptions,
    "startup": model.StartupOptions,
    "replicator": model.ReplicatorOptions,
}


@pytest.mark.parametrize("section", CLASSES)
def test_every_option_has_its_field_and_every_field_its_option(section: str) -> None:
    fields = {field.name for field in dataclasses.fields(CLASSES[section])}
    assert fields == {option.field for option in SECTIONS[section].values()}


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda one: f"{one.section}.{one.name}")
def test_every_row_is_consistent(option: Option) -> None:
    expected = {Kind.NUMBER: int, Kind.BOOLEAN: bool, Kind.FLAG: bool, Kind.NAMES: tuple}
    assert type(option.default) is expected.get(option.kind, str)
    assert option.meaning and not option.meaning.endswith(".")
    if option.kind is Kind.NUMBER:
        assert isinstance(option.default, int)
        assert option.minimum <= option.default <= option.maximum
    if option.kind is Kind.CHOICE:
        assert option.choices and option.default in ("", *option.choices)


def row(section: str, name: str) -> Option:
    return SECTIONS[section][name]


@pytest.mark.parametrize(
    ("section", "name", "text", "value"),
    [
        ("disk", "resync-rate", "10M", 10240),
        ("disk", "resync-rate", "10m", 10240),
        ("disk", "resync-rate", "4G", 4194304),
        ("disk", "resync-rate", "33", 33),
        ("disk", "resync-rate", "33k", 33),
        ("disk", "resync-rate", "3s", 2),
        ("disk", "resync-rate", "007", 7),
        ("disk", "size", "10", 10),
        ("disk", "size", "10s", 10),
        ("disk", "size", "10G", 20971520),
        ("disk", "c-fill-target", "100k", 200),
        ("net", "sndbuf-size", "512k", 524288),
        ("net", "sndbuf-size", "1s", 512),
        ("net", "max-buffers", "8k", 8192),
        ("net", "timeout", "60", 60),
        ("net", "protocol", "c", "C"),
        ("net", "after-sb-0pri", "discard-node-alice", "discard-node-alice"),
        ("net", "use-rle", "no", False),
        ("net", "verify-alg", "", ""),
        ("net", "shared-secret", "x" * 64, "x" * 64),
        ("replicator", "listen", "127.0.0.1:10809", "127.0.0.1:10809"),
        ("replicator", "listen", "[::1]:10809", "[::1]:10809"),
        ("replicator", "tls-certificates", "/etc/tls", "/etc/tls"),
        ("replicator", "tls-required", "yes", True),
        ("startup", "become-primary-on", "alice bob", ("alice", "bob")),
    ],
)
def test_a_value_is_read_in_the_unit_of_its_option(
    section: str, name: str, text: str, value: Value
) -> None:
    assert read_value(row(section, name), text) == value


@pytest.mark.parametrize(
    ("section", "name", "text", "said"),
    [
        ("disk", "resync-rate", "0", "expected a number from 1 to 4194304, in units of KiB/s"),
        ("disk", "resync-rate", "5G", "found '5G'"),
        ("disk", "resync-rate", "10x", "suffixes are K, M and G"),
        ("disk", "resync-rate", "1T", "suffixes are K, M and G"),
        ("disk", "resync-rate", "1.5M", "found '1.5M'"),
        ("disk", "resync-rate", "", "found ''"),
        ("disk", "resync-rate", "-1", "found '-1'"),
        ("disk", "resync-rate", "9" * 60, "expected a number"),
        ("disk", "resync-rate", "\u0663", "expected a number"),
        ("net", "timeout", "6s", "sectors"),
        ("net", "timeout", "601", "from 1 to 600, in units of 0.1 s"),
        ("net", "protocol", "D", "one of A, B, C"),
        ("net", "use-rle", "true", "yes or no"),
        ("net", "shared-secret", "x" * 65, "at most 64 bytes"),
        ("net", "cram-hmac-alg", "sha3", "one of md5, sha1, sha224, sha256"),
        ("net", "after-sb-0pri", "discard-node-", "discard-node-NAME"),
        ("disk", "on-io-error", "panic", "one of pass_on, call-local-io-error, detach"),
        ("replicator", "listen", "127.0.0.1", "HOST:PORT"),
        ("replicator", "listen", "127.0.0.1:0", "HOST:PORT"),
        ("replicator", "listen", "[::g]:1", "HOST:PORT"),
        ("replicator", "listen", "", "HOST:PORT"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_what_was_expected(
    section: str, name: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        read_value(row(section, name), text)
    assert caught.value.message.startswith(f"{name}:")


def test_exactly_the_algorithms_are_allowed_that_the_wire_protocol_knows() -> None:
    assert set(row("net", "cram-hmac-alg").choices) == set(auth.RESPONSE_SIZES)
    for name in ("data-integrity-alg", "verify-alg", "csums-alg"):
        assert set(row("net", name).choices) == set(digests.ALGORITHMS)


def test_without_a_word_in_the_file_the_engine_gets_its_defaults() -> None:
    settings = to_settings(view_of(resource()))
    assert settings.net == NetSettings()
    assert settings.volumes[0].disk == DiskSettings()
    assert settings.on_no_data_accessible == "io-error"
    assert settings.frontend == "nbdkit" and settings.epoch_per_completion is False


@pytest.mark.parametrize(
    "option",
    [one for one in ALL_OPTIONS if one.section not in ("global", "replicator")],
    ids=lambda one: one.name,
)
def test_an_option_without_effect_earns_a_warning_and_any_other_none(option: Option) -> None:
    samples: dict[Kind, str] = {Kind.BOOLEAN: " yes", Kind.FLAG: "", Kind.NAMES: " alice"}
    samples[Kind.NUMBER] = f" {option.default}"
    samples[Kind.CHOICE] = f" {option.choices[0]}" if option.choices else ""
    samples[Kind.TEXT] = " r0"
    # A secret and its algorithm warn of each other; they come together here.
    also = "cram-hmac-alg sha1; shared-secret s;"
    other = f"net {{ {also} }}" if option.section != "net" else ""
    inner = (
        f"{option.section} {{ {also if not other else ''} {option.name}{samples[option.kind]}; }}"
    )
    warnings = load_text(resource(other + inner)).warnings
    if option.effect is Effect.NO:
        assert len(warnings) == 1
        assert warnings[0].startswith("drbd.conf:2: ")
        assert option.name in warnings[0] and "no effect" in warnings[0]
    else:
        assert warnings == []


def test_what_speaks_of_the_kernel_module_only_is_accepted_in_silence() -> None:
    globals_ = "usage-count yes; minor-count 64; dialog-refresh 0; disable-ip-verification;"
    assert load_text(f"global {{ {globals_} }}\n" + resource()).warnings == []
