"""Config: a whole valid configuration, and each node's view of it.

Rules: built from a syntax tree; reads no files and asks the system nothing (whether an address is
this host's is a function it is given).
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.config import check, dump
from replicator.config.model import (
    Address,
    DiskOptions,
    GlobalOptions,
    MetaDisk,
    NodeView,
    ReplicatorOptions,
    ResourceOptions,
    StartupOptions,
    VolumeView,
)
from replicator.config.resolve import HostConfig, ResourceConfig, VolumeConfig, resolve, typed
from replicator.config.syntax import Sections, Settings, Tree
from replicator.config.words import nearest, printable
from replicator.errors import ConfigError, UsageError

MAX_PROBLEMS_SHOWN = 20

IsLocal = Callable[[Address], bool]


class Config:
    """What the configuration files say.

    path: the file that was loaded; resources: by name, in file order; warnings: lines for people,
    "FILE:LINE: ...", also every option that is set and has no effect.
    """

    def __init__(self, tree: Tree, is_local: IsLocal) -> None:
        """Raises ConfigError that lists every contradiction found."""
        self.path = tree.file
        self._is_local = is_local
        self._common: Sections = tree.common.sections if tree.common else {}
        self._has_common = tree.common is not None
        self._global_settings = tree.global_settings
        problems: list[str] = []
        self.resources: dict[str, ResourceConfig] = {
            name: resolve(part, problems) for name, part in tree.resources.items()
        }
        resources = list(self.resources.values())
        problems += check.find_problems(resources, self._common)
        _raise_for(problems)
        for resource in resources:
            resource.unusable = resource.unusable or check.why_options_clash(resource, self._common)
        self.warnings: list[str] = tree.warnings + check.find_warnings(resources, self._common)

    @property
    def global_options(self) -> GlobalOptions:
        return typed(GlobalOptions, "global", self._global_settings)

    def dump(self, resource: str | None = None) -> str:
        """Canonical text of everything, or of one resource (UsageError if there is none)."""
        if resource is not None:
            return dump.dump_resource(self._resource(resource)) + "\n"
        parts = [f"# {self.path}"]
        if self._global_settings:
            parts.append(dump.dump_global(self._global_settings))
        if self._has_common:
            parts.append(dump.dump_common(self._common))
        parts += [dump.dump_resource(one) for one in self.resources.values()]
        return "\n\n".join(parts) + "\n"

    def view(self, resource_name: str, node: str) -> NodeView:
        """One resource as `node` sees it.

        Raises UsageError for an unknown resource, ConfigError when the node is not one of its hosts
        or the resource is one that replicator cannot run.
        """
        resource = self._resource(resource_name)
        if resource.unusable:
            raise ConfigError(
                f"resource {resource.name} ({resource.where}) cannot be used: {resource.unusable}",
                hint="change the configuration; 'dump' shows how it was read",
            )
        own = self._own_side(resource, node)
        if own is None:
            hosts = ", ".join(resource.host_names)
            raise ConfigError(
                f"'{resource.name}' not defined in your config (for this host).",
                hint=f"its hosts are {hosts}, this node is '{node}'; "
                "use --node NAME to act as another",
            )
        peer = next(host for host in resource.hosts if host is not own)
        return self._view(resource, own, peer, node)

    def views(self, node: str) -> list[NodeView]:
        """Every resource of this node that can run; `unusable` tells of the others."""
        return [
            self.view(resource.name, node)
            for resource in self.resources.values()
            if not resource.unusable and self._own_side(resource, node)
        ]

    def unusable(self, node: str) -> dict[str, str]:
        """Resources of this node that replicator cannot run -> why. Stacked ones are left out, as
        drbdadm leaves them out of `all`."""
        return {
            resource.name: resource.unusable
            for resource in self.resources.values()
            if resource.unusable and not resource.stacked and self._own_side(resource, node)
        }

    def _resource(self, name: str) -> ResourceConfig:
        if name in self.resources:
            return self.resources[name]
        near = nearest(name, self.resources)
        known = ", ".join(list(self.resources)[:20]) or "none"
        raise UsageError(
            f"'{printable(name)}' not defined in your config (for this host).",
            hint=f"did you mean '{near}'?" if near else f"resources in {self.path}: {known}",
        )

    def _own_side(self, resource: ResourceConfig, node: str) -> HostConfig | None:
        named = [host for host in resource.hosts if node in host.names]
        floating = [host for host in resource.hosts if host.kind == "floating"]
        named += [host for host in floating if node in (host.address.host, host.address.endpoint)]
        candidates = named or [host for host in floating if self._is_local(host.address)]
        if len(candidates) > 1:
            raise ConfigError(
                f"resource {resource.name} ({resource.where}): more than one of its floating "
                f"addresses belongs to this host",
                hint=f"choose with --node, e.g. --node {candidates[0].address.endpoint}",
            )
        return candidates[0] if candidates else None

    def _view(
        self, resource: ResourceConfig, own: HostConfig, peer: HostConfig, node: str
    ) -> NodeView:
        def layers(section: str) -> list[Settings]:
            sections = (self._common, resource.sections, own.sections)
            return [one.get(section, {}) for one in sections]

        handlers: Settings = {}
        for layer in layers("handlers"):
            handlers.update(layer)
        return NodeView(
            resource=resource.name,
            node=node,
            peer=peer.machines[0],
            peer_hosts=peer.machines,
            address=own.address,
            peer_address=peer.address,
            volumes=[self._volume_view(resource, volume) for volume in own.volumes],
            net=check.net_options(resource, self._common),
            options=typed(ResourceOptions, "options", *layers("options")),
            startup=typed(StartupOptions, "startup", *layers("startup")),
            handlers={name: one.text for name, one in handlers.items() if one.text},
            replicator=typed(ReplicatorOptions, "replicator", *layers("replicator")),
            where=resource.where,
            config_file=self.path,
        )

    def _volume_view(self, resource: ResourceConfig, volume: VolumeConfig) -> VolumeView:
        options: DiskOptions = check.disk_options(resource, self._common, volume)
        return VolumeView(
            number=volume.number,
            minor=volume.device.minor,
            device=volume.device.path,
            disk=volume.disk,
            meta_disk=volume.meta_disk or MetaDisk("internal"),
            options=options,
            implicit=volume.implicit,
        )


def _raise_for(problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:MAX_PROBLEMS_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    raise ConfigError("\n".join(shown))
