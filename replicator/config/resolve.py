"""Syntax tree to resources: what hosts and volumes inherit from their resource is filled in.

Rules: one resource at a time. A problem is a line of text with its place, appended to a list, so
that one run shows all of them; what spans resources is `check`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from replicator.config.model import Address, MetaDisk, Where
from replicator.config.option_table import SECTIONS
from replicator.config.syntax import (
    Device,
    HostPart,
    ResourcePart,
    Sections,
    Settings,
    VolumePart,
)

T = TypeVar("T")


@dataclass(slots=True)
class VolumeConfig:
    """One volume on one host, with everything it inherits but options of outer sections."""

    number: int
    implicit: bool
    device: Device
    disk: str
    """"" only in a stacked-on-top-of section."""
    meta_disk: MetaDisk | None
    """None only in a stacked-on-top-of section."""
    settings: Settings
    where: Where


@dataclass(slots=True)
class HostConfig:
    """One side of a resource. kind: "on", "floating" or "stacked-on-top-of"."""

    kind: str
    title: str
    names: tuple[str, ...]
    address: Address
    volumes: list[VolumeConfig]
    """In order of their numbers."""
    sections: Sections
    where: Where

    @property
    def machines(self) -> tuple[str, ...]:
        """Names that stand for the machines this section may run on, for uniqueness."""
        return self.names or (self.address.endpoint,)


@dataclass(slots=True)
class ResourceConfig:
    """One resource as configured. `sections` holds its own settings, without those of `common`."""

    name: str
    where: Where
    sections: Sections
    hosts: list[HostConfig] = field(default_factory=list)
    unusable: str = ""
    """Why replicator cannot run this resource although its syntax is right; "" if it can."""

    @property
    def stacked(self) -> bool:
        return any(host.kind == "stacked-on-top-of" for host in self.hosts)

    @property
    def host_names(self) -> list[str]:
        return [name for host in self.hosts for name in host.machines]


def resolve(part: ResourcePart, problems: list[str]) -> ResourceConfig:
    """Fill in inheritance; append what is missing or contradictory to `problems`."""
    resource = ResourceConfig(part.name, part.where, part.sections)
    for host in part.hosts:
        resolved = _resolve_host(part, host, problems)
        if resolved:
            resource.hosts.append(resolved)
    resource.unusable = _why_unusable(resource, part)
    return resource


def _resolve_host(part: ResourcePart, host: HostPart, problems: list[str]) -> HostConfig | None:
    place = f"{host.where}: {part.title}, {host.title}"
    if (host.implicit or part.implicit) and (host.volumes or part.volumes):
        problems.append(
            f"{place}: device, disk or meta-disk stand both in volume sections and outside; "
            "write either volume sections or a single volume without"
        )
        return None
    if host.address is None:
        problems.append(f"{place}: 'address' is missing")
        return None
    volumes = _volumes(part, host, place, problems)
    return HostConfig(
        host.kind, host.title, host.names, host.address, volumes, host.sections, host.where
    )


def _volumes(
    part: ResourcePart, host: HostPart, place: str, problems: list[str]
) -> list[VolumeConfig]:
    stacked = host.kind == "stacked-on-top-of"
    explicit = sorted(host.volumes.keys() | part.volumes.keys())
    pairs: list[tuple[VolumePart | None, VolumePart | None]]
    pairs = [(host.volumes.get(number), part.volumes.get(number)) for number in explicit]
    if not pairs:
        empty = VolumePart(0, host.where, implicit=True)
        pairs = [(host.implicit or empty, part.implicit)]
    volumes = [_volume(own, inherited, stacked, place, problems) for own, inherited in pairs]
    return [volume for volume in volumes if volume]


def _volume(
    own: VolumePart | None,
    inherited: VolumePart | None,
    stacked: bool,
    place: str,
    problems: list[str],
) -> VolumeConfig | None:
    first = own or inherited
    assert first is not None
    other = inherited if own else None
    device = first.device or (other.device if other else None)
    disk = first.disk or (other.disk if other else None)
    meta_disk = first.meta_disk or (other.meta_disk if other else None)
    label = place if first.implicit else f"{place}, volume {first.number}"
    missing = ["device"] if device is None else []
    if not stacked:
        missing += ["disk"] if disk is None else []
        missing += ["meta-disk"] if meta_disk is None else []
    problems.extend(f"{label}: '{word}' is missing" for word in missing)
    if device is None or missing:
        return None
    settings = {**(other.settings if other else {}), **first.settings}
    return VolumeConfig(
        first.number, first.implicit, device, disk or "", meta_disk, settings, first.where
    )


def _why_unusable(resource: ResourceConfig, part: ResourcePart) -> str:
    if resource.stacked:
        return "stacked resources (stacked-on-top-of) are not supported"
    proxies = [host.proxy for host in part.hosts if host.proxy]
    if proxies:
        return f"connections through drbd-proxy ({proxies[0]}) are not supported"
    for host in resource.hosts:
        if host.address.family not in ("ipv4", "ipv6"):
            return f"address family {host.address.family} ({host.where}) is not supported"
    if len(part.hosts) != 2:
        return (
            f"expected exactly two hosts (one peer), found {len(part.hosts)} "
            "'on' or 'floating' sections"
        )
    if len({host.address.family for host in resource.hosts}) > 1:
        return "one address is IPv4 and the other IPv6; the hosts cannot reach each other"
    return ""


def typed(make: Callable[..., T], section: str, *layers: Settings) -> T:
    """An option class from defaults and settings; a later layer overrides an earlier one."""
    values = {option.field: option.default for option in SECTIONS[section].values()}
    for layer in layers:
        values.update({one.option.field: one.value for one in layer.values()})
    return make(**values)
