"""The syntax tree: what was written, where, before any inheritance.

Rules: data only. Option values are already typed; statements that inherit are None when absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from replicator.config.model import Address, MetaDisk, Where
from replicator.config.options import Option, Value


@dataclass(frozen=True, slots=True)
class Setting:
    """One option as set in one place."""

    option: Option
    value: Value
    text: str
    """As written, without quotes; for a boolean "yes" or "no"."""
    where: Where


Settings = dict[str, Setting]
"""Option name -> setting; of several in one section the last counts."""

Sections = dict[str, Settings]
"""Section name -> settings."""


class Device(NamedTuple):
    """The `device` statement. name is "" when only a minor was given."""

    name: str
    minor: int

    @property
    def path(self) -> str:
        return self.name or f"/dev/drbd{self.minor}"

    def __str__(self) -> str:
        return f"{self.name} minor {self.minor}" if self.name else f"minor {self.minor}"


@dataclass(slots=True)
class VolumePart:
    """A `volume` section, or (number 0, implicit) its statements written directly in a host."""

    number: int
    where: Where
    implicit: bool = False
    device: Device | None = None
    disk: str | None = None
    meta_disk: MetaDisk | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(slots=True)
class HostPart:
    """An `on`, `floating` or `stacked-on-top-of` section."""

    kind: str
    names: tuple[str, ...]
    """Host names; of a stacked section the lower resource; none if floating."""
    where: Where
    address: Address | None = None
    volumes: dict[int, VolumePart] = field(default_factory=dict)
    implicit: VolumePart | None = None
    sections: Sections = field(default_factory=dict)
    proxy: Where | None = None

    @property
    def title(self) -> str:
        """For people: "on alice", "floating ipv4 10.1.1.31:7802"."""
        if self.kind == "floating":
            return f"floating {self.address}"
        return f"{self.kind} {' '.join(self.names)}"


@dataclass(slots=True)
class ResourcePart:
    """A `resource` section, or `common` (name "")."""

    name: str
    where: Where
    sections: Sections = field(default_factory=dict)
    hosts: list[HostPart] = field(default_factory=list)
    volumes: dict[int, VolumePart] = field(default_factory=dict)
    implicit: VolumePart | None = None

    @property
    def title(self) -> str:
        return f"resource {self.name}" if self.name else "common"


@dataclass(slots=True)
class Tree:
    """A whole configuration, all included files together."""

    file: str
    global_settings: Settings = field(default_factory=dict)
    global_where: Where | None = None
    common: ResourcePart | None = None
    resources: dict[str, ResourcePart] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
