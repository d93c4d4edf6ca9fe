"""The configuration back to text: canonical drbd.conf, as `dump` prints it.

Rules: prints what was set, not defaults; inheritance of hosts and volumes is written out, so that
reading the text again gives the same configuration, by this program and by drbdadm alike.
"""

from __future__ import annotations

import re

from replicator.config.model import Address
from replicator.config.option_table import ALL_OPTIONS, SECTIONS
from replicator.config.options import Kind, is_ipv4
from replicator.config.resolve import HostConfig, ResourceConfig, VolumeConfig
from replicator.config.syntax import Sections, Setting, Settings

_ORDER = ("options", "net", "disk", "startup", "handlers", "replicator")
_KEYWORDS = frozenset(
    {
        "global",
        "common",
        "resource",
        "include",
        "skip",
        "on",
        "floating",
        "volume",
        "stacked-on-top-of",
        "ignore-on",
        "proxy",
        "syncer",
        "protocol",
        "device",
        "minor",
        "disk",
        "meta-disk",
        "flexible-meta-disk",
        "address",
        "yes",
        "no",
        "ask",
        "ipv4",
        "ipv6",
        "ssocks",
        "sdp",
        "sci",
        "inside",
        "outside",
        "memlimit",
        "plugin",
    }
)
RESERVED = (
    _KEYWORDS
    | frozenset(SECTIONS)
    | frozenset(option.name for option in ALL_OPTIONS)
    | frozenset(f"no-{option.name}" for option in ALL_OPTIONS if option.negatable)
    | frozenset(word for option in ALL_OPTIONS for word in (*option.aliases, option.syncer))
)
"""Words that drbdadm takes for keywords wherever they stand unquoted."""


def quoted(text: str) -> str:
    """`text` as one word of the configuration language, in quotes if it needs them."""
    plain = re.fullmatch(r"[A-Za-z_./-][A-Za-z0-9._/-]*|[0-9]+[kKmMgGs]?", text)
    if plain and text not in RESERVED and not is_ipv4(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dump_global(settings: Settings) -> str:
    return "\n".join(_block("global", _settings(settings)))


def dump_common(sections: Sections) -> str:
    return "\n".join(_block("common", _sections(sections)))


def dump_resource(resource: ResourceConfig) -> str:
    lines = [f"# resource {resource.name}: defined at {resource.where}"]
    if resource.unusable:
        lines.append(f"# not usable: {resource.unusable}")
    body: list[str] = []
    for host in resource.hosts:
        body += _host(host)
    body += _sections(resource.sections)
    # drbdadm takes a bare number for a number, never for a name.
    name = quoted(resource.name) if not resource.name.isdigit() else f'"{resource.name}"'
    return "\n".join(lines + _block(f"resource {name}", body))


def _block(head: str, body: list[str]) -> list[str]:
    return [f"{head} {{", *(f"    {line}" for line in body), "}"]


def _line(name: str, value: str) -> str:
    return f"{name:<16} {value};"


def _sections(sections: Sections) -> list[str]:
    lines: list[str] = []
    for name in _ORDER:
        if sections.get(name):
            lines += _block(name, _settings(sections[name]))
    return lines


def _settings(settings: Settings) -> list[str]:
    return [_setting(one) for one in settings.values()]


def _setting(setting: Setting) -> str:
    option = setting.option
    if option.kind is Kind.FLAG:
        return f"{option.name};"
    if option.kind is Kind.NAMES:
        return _line(option.name, " ".join(quoted(one) for one in setting.text.split()))
    if option.kind is Kind.TEXT or option.choice_prefixes or not setting.text:
        return _line(option.name, quoted(setting.text))
    return _line(option.name, setting.text)


def _host(host: HostConfig) -> list[str]:
    body: list[str] = _sections(host.sections)
    for volume in host.volumes:
        statements = _volume(volume)
        body += statements if volume.implicit else _block(f"volume {volume.number}", statements)
    if host.kind == "floating":
        return _block(f"floating {_address(host.address)}", body)
    body.append(_line("address", _address(host.address)))
    names = " ".join(quoted(name) if not name.isdigit() else f'"{name}"' for name in host.names)
    return _block(f"{host.kind} {names}", body)


def _volume(volume: VolumeConfig) -> list[str]:
    lines = _block("disk", _settings(volume.settings)) if volume.settings else []
    device = volume.device
    shown = f"{quoted(device.name)} minor {device.minor}" if device.name else str(device)
    lines.append(_line("device", shown))
    if volume.disk:
        lines.append(_line("disk", quoted(volume.disk)))
    meta = volume.meta_disk
    if meta and meta.kind == "internal":
        lines.append(_line("meta-disk", "internal"))
    elif meta:
        slot = f" [{meta.index}]" if meta.kind == "indexed" else ""
        lines.append(_line("meta-disk", quoted(meta.path) + slot))
    return lines


def _address(address: Address) -> str:
    return str(address)
