"""Rules that span hosts, resources and sections: what drbdadm refuses, and traps worth a warning.

Rules: reads resolved resources, changes nothing. Problems make the configuration invalid; an
`unusable` reason only keeps one resource from running; warnings are for people.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from itertools import combinations

from replicator.config.model import DiskOptions, NetOptions, ReplicatorOptions, Where
from replicator.config.resolve import HostConfig, ResourceConfig, VolumeConfig, typed
from replicator.config.syntax import Sections

SMALLEST_AL = 67


def find_problems(resources: Sequence[ResourceConfig], common: Sections) -> list[str]:
    """Lines "FILE:LINE: what is wrong", empty if the configuration is valid."""
    problems: list[str] = []
    claims = _Claims(problems)
    for resource in resources:
        _check_hosts(resource, problems)
        for host in resource.hosts:
            _claim_host(resource, host, common, claims)
            _check_tls(resource, host, common, problems)
        _check_become_primary(resource, common, problems)
    return problems


class _Claims:
    """Things that only one place may use."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._owners: dict[tuple[str, ...], tuple[Where, str]] = {}
        self._storage: dict[tuple[str, str], list[tuple[int | None, Where, str]]] = {}

    def claim(self, key: tuple[str, ...], what: str, where: Where, owner: str) -> None:
        other = self._owners.setdefault(key, (where, owner))
        if other != (where, owner):
            self._problems.append(
                f"{where}: {owner}: {what} is used twice; first by {other[1]} at {other[0]}"
            )

    def claim_storage(
        self, machine: str, path: str, slot: int | None, where: Where, owner: str
    ) -> None:
        """slot: of an indexed metadata device; None claims all of `path`."""
        users = self._storage.setdefault((machine, path), [])
        for other_slot, other_where, other_owner in users:
            if slot is None or other_slot is None or slot == other_slot:
                shown = path if slot is None else f"{path} [{slot}]"
                self._problems.append(
                    f"{where}: {owner}: {shown} on {machine} is used twice; "
                    f"first by {other_owner} at {other_where}"
                )
                break
        users.append((slot, where, owner))


def _claim_host(
    resource: ResourceConfig, host: HostConfig, common: Sections, claims: _Claims
) -> None:
    owner = f"resource {resource.name}, {host.title}"
    address = host.address
    packed = str(address.host)
    if address.family == "ipv6":
        packed = ipaddress.IPv6Address(address.host).compressed
    key = ("address", address.family, packed, str(address.port))
    claims.claim(key, f"address {address.endpoint}", host.where, owner)
    listen = _own_options(resource, host, common).listen
    for machine in host.machines:
        if listen != "unix":
            claims.claim(("listen", machine, listen), f"listen {listen}", host.where, owner)
        for volume in host.volumes:
            _claim_volume(machine, volume, owner, claims)


def _own_options(resource: ResourceConfig, host: HostConfig, common: Sections) -> ReplicatorOptions:
    layers = [one.get("replicator", {}) for one in (common, resource.sections, host.sections)]
    return typed(ReplicatorOptions, "replicator", *layers)


def _check_tls(
    resource: ResourceConfig, host: HostConfig, common: Sections, problems: list[str]
) -> None:
    options = _own_options(resource, host, common)
    place = f"{host.where}: resource {resource.name}, {host.title}"
    directory = options.tls_certificates
    if directory and not directory.startswith("/"):
        problems.append(f"{place}: tls-certificates: expected an absolute path, found {directory}")
    wanted = {"tls-required": options.tls_required, "tls-verify-peer": options.tls_verify_peer}
    for name, value in wanted.items():
        if value and not directory:
            problems.append(f"{place}: {name} is set, but tls-certificates is not")


def _claim_volume(machine: str, volume: VolumeConfig, owner: str, claims: _Claims) -> None:
    if not volume.implicit:
        owner = f"{owner}, volume {volume.number}"
    device = volume.device
    claims.claim(
        ("minor", machine, str(device.minor)),
        f"minor {device.minor} on {machine}",
        volume.where,
        owner,
    )
    claims.claim(
        ("device", machine, device.path), f"device {device.path} on {machine}", volume.where, owner
    )
    if volume.disk:
        claims.claim_storage(machine, volume.disk, None, volume.where, f"{owner}, disk")
    meta = volume.meta_disk
    if meta and meta.kind != "internal":
        slot = meta.index if meta.kind == "indexed" else None
        claims.claim_storage(machine, meta.path, slot, volume.where, f"{owner}, meta-disk")


def _check_hosts(resource: ResourceConfig, problems: list[str]) -> None:
    seen: dict[str, Where] = {}
    for host in resource.hosts:
        for name in host.names:
            if name in seen:
                problems.append(
                    f"{host.where}: resource {resource.name}: host {name} is named twice; "
                    f"first at {seen[name]}"
                )
            seen[name] = host.where
    if not resource.stacked:
        for one, other in combinations(resource.hosts, 2):
            _check_same_volumes(resource, one, other, problems)


def _check_same_volumes(
    resource: ResourceConfig, one: HostConfig, other: HostConfig, problems: list[str]
) -> None:
    here = {volume.number: volume for volume in one.volumes}
    there = {volume.number: volume for volume in other.volumes}
    place = f"{other.where}: resource {resource.name}"
    for number in sorted(here.keys() ^ there.keys()):
        has, lacks = (one, other) if number in here else (other, one)
        problems.append(f"{place}: volume {number} is defined {has.title} but not {lacks.title}")
    for number in sorted(here.keys() & there.keys()):
        if here[number].implicit != there[number].implicit:
            problems.append(
                f"{place}: volume {number} has a volume section on one host but not on the other"
            )


def _check_become_primary(resource: ResourceConfig, common: Sections, problems: list[str]) -> None:
    setting = resource.sections.get("startup", {}).get("become-primary-on")
    if setting is None or not isinstance(setting.value, tuple):
        return
    net = net_options(resource, common)
    for name in setting.value:
        if name == "both" and not net.allow_two_primaries:
            problems.append(
                f"{setting.where}: resource {resource.name}: become-primary-on is both, "
                "but allow-two-primaries is not set"
            )
        elif name != "both" and name not in resource.host_names:
            problems.append(
                f"{setting.where}: resource {resource.name}: become-primary-on names {name}, "
                f"expected one of the hosts {', '.join(resource.host_names)}"
            )


def net_options(resource: ResourceConfig, common: Sections) -> NetOptions:
    return typed(NetOptions, "net", common.get("net", {}), resource.sections.get("net", {}))


def disk_options(
    resource: ResourceConfig, common: Sections, volume: VolumeConfig | None = None
) -> DiskOptions:
    """Of one volume, or (None) as far as the resource says."""
    own = volume.settings if volume else {}
    return typed(
        DiskOptions, "disk", common.get("disk", {}), resource.sections.get("disk", {}), own
    )


def why_options_clash(resource: ResourceConfig, common: Sections) -> str:
    """Combinations that DRBD refuses when the resource is brought up; "" if there is none."""
    net = net_options(resource, common)
    if net.allow_two_primaries and net.protocol != "C":
        return f"allow-two-primaries needs protocol C, found protocol {net.protocol}"
    if net.on_congestion != "block" and net.protocol != "A":
        return f"on-congestion {net.on_congestion} needs protocol A, found protocol {net.protocol}"
    volumes = [volume for host in resource.hosts for volume in host.volumes]
    fencing = {disk_options(resource, common, volume).fencing for volume in volumes}
    if "resource-and-stonith" in fencing and net.protocol == "A":
        return "fencing resource-and-stonith needs protocol B or C, found protocol A"
    policy = net.after_sb_0pri
    name = policy.removeprefix("discard-node-")
    if name != policy and name not in resource.host_names:
        return (
            f"after-sb-0pri {policy}: expected one of the hosts "
            f"{', '.join(resource.host_names)}, found {name}"
        )
    return ""


def find_warnings(resources: Sequence[ResourceConfig], common: Sections) -> list[str]:
    """Lines "FILE:LINE: what looks wrong"."""
    names = {resource.name for resource in resources}
    warnings: list[str] = []
    for resource in resources:
        place = f"{resource.where}: resource {resource.name}"
        if resource.unusable:
            warnings.append(f"{place} cannot be used: {resource.unusable}")
            continue
        net = net_options(resource, common)
        warnings += [f"{place}: {text}" for text in _net_warnings(net)]
        disk = disk_options(resource, common)
        after = disk.resync_after.partition("/")[0]
        if after and after not in names:
            warnings.append(f"{place}: resync-after names resource {after}, which does not exist")
        if disk.al_extents < SMALLEST_AL:
            warnings.append(f"{place}: al-extents {disk.al_extents} counts as {SMALLEST_AL}")
    return warnings


def _net_warnings(net: NetOptions) -> list[str]:
    texts = []
    if net.shared_secret and not net.cram_hmac_alg:
        texts.append("shared-secret without cram-hmac-alg: the peer is NOT authenticated")
    if net.cram_hmac_alg and not net.shared_secret:
        texts.append("cram-hmac-alg without shared-secret: the secret is empty")
    shortest = min(net.connect_int, net.ping_int)
    if net.timeout >= shortest * 10:
        texts.append(
            f"timeout is {net.timeout / 10:g} s; it should be less than connect-int and ping-int "
            f"({shortest} s)"
        )
    return texts
