"""One run of the program: which configuration, node and run directory, and which targets are meant.

Rules: everything is found out when it is first asked for, so that `--help` needs no configuration and
a configuration answer needs no run directory. What exists outside (files, daemons, devices, time)
is reached through `world` only; tests give another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from replicator.cli.command_table import Takes
from replicator.cli.parser import Invocation
from replicator.cli.terminal import Terminal
from replicator.errors import ConfigError, ReplicatorError, UsageError

if TYPE_CHECKING:
    from replicator.cli.world import World
    from replicator.config import Config, NodeView, VolumeView

CONFIG_VARIABLE = "REPLICATOR_CONF"
NODE_VARIABLE = "REPLICATOR_NODE"
DEFAULT_CONFIGS = ("/etc/replicator.conf", "/etc/drbd.conf")
ALL = "all"


@dataclass(frozen=True, slots=True)
class Target:
    """A resource of this node; volume: the one that is meant, None for all."""

    view: NodeView
    volume: int | None = None

    @property
    def resource(self) -> str:
        return self.view.resource

    @property
    def volumes(self) -> list[VolumeView]:
        return [one for one in self.view.volumes if self.volume in (None, one.number)]

    @property
    def numbers(self) -> list[int]:
        return [volume.number for volume in self.volumes]

    def label(self, volume: int) -> str:
        return f"{self.resource}/{volume}"


class Context:
    """environment: the variables of the process; world: everything outside of it."""

    def __init__(
        self,
        invocation: Invocation,
        world: World,
        terminal: Terminal,
        environment: Mapping[str, str],
    ) -> None:
        self.world = world
        self.terminal = terminal
        self.options: dict[str, Any] = invocation.options
        self.names = invocation.names
        self.extra = invocation.extra
        self._invocation = invocation
        self._environment = environment

    @cached_property
    def config_path(self) -> str:
        """Raises ConfigError if no configuration was named and there is none at the usual places."""
        named = self.options.get("config_file") or self._environment.get(CONFIG_VARIABLE)
        if named:
            return str(named)
        for path in DEFAULT_CONFIGS:
            if self.world.file_exists(path):
                return path
        raise ConfigError(
            f"no configuration file: neither {' nor '.join(DEFAULT_CONFIGS)} exists",
            hint=f"Name one with -c FILE or ${CONFIG_VARIABLE}.",
        )

    @cached_property
    def config(self) -> Config:
        return self.world.load_config(self.config_path)

    @cached_property
    def node(self) -> str:
        named = self.options.get("node") or self._environment.get(NODE_VARIABLE)
        return str(named) if named else self.world.node_name()

    @cached_property
    def run_dir(self) -> str:
        return self.world.run_dir(self.options.get("run_dir"))

    def targets(self) -> list[Target]:
        """Those of the command line, in its order; `all` or none in the file's order.

        Raises UsageError for an unknown resource or volume before anything has been done.
        """
        names = self.names
        if not names or names == [ALL]:
            return [Target(view) for view in self.config.views(self.node)]
        return [self._target(name) for name in names]

    def volume_targets(self) -> list[Target]:
        """The same, one for each volume, so that one volume's failure is not the next one's."""
        return [
            Target(target.view, number) for target in self.targets() for number in target.numbers
        ]

    def _target(self, name: str) -> Target:
        resource, slash, number = name.partition("/")
        if resource == ALL:
            raise UsageError(f"'{name}' is not possible", hint="'all' stands alone.")
        view = self.config.view(resource, self.node)
        if not slash:
            return Target(view)
        numbers = [volume.number for volume in view.volumes]
        if not number.isdecimal() or int(number) not in numbers:
            raise UsageError(
                f"'{name}' not defined in your config (for this host).",
                hint=f"Volumes of {resource}: {', '.join(map(str, numbers))}.",
            )
        self._check_volume_allowed(resource, numbers)
        return Target(view, int(number))

    def _check_volume_allowed(self, resource: str, numbers: list[int]) -> None:
        """A command for whole resources accepts a volume only if that is the whole resource."""
        command = self._invocation.command
        assert command is not None, "targets are asked for by a command"
        if command.takes is Takes.VOLUMES or len(numbers) == 1:
            return
        raise UsageError(
            f"{command.name} works on whole resources, {resource} has volumes "
            f"{', '.join(map(str, numbers))}",
            hint=f"Name the resource: {command.name} {resource}",
        )

    def for_each(self, targets: list[Target], action: Callable[[Target], None]) -> int:
        """Do it for all, also after a failure; returns the exit code of the first failure or 0."""
        code = 0
        for target in targets:
            try:
                action(target)
            except ReplicatorError as error:
                numbers = target.numbers
                error.name_target(target.resource, numbers[0] if len(numbers) == 1 else None)
                self.terminal.error(error, target.resource)
                code = code or error.exit_code
        return code

    def show_warnings(self) -> None:
        """Warnings of the configuration; for the commands that put it into effect or check it."""
        for warning in self.config.warnings:
            self.terminal.say(f"warning: {warning}")

    def refuse_unusable(self) -> int:
        """For `all`: say which resources of this node cannot run; the exit code for that, or 0."""
        code = 0
        if self.names == [ALL]:
            for name, reason in self.config.unusable(self.node).items():
                error = ConfigError(f"resource {name} cannot be used: {reason}")
                self.terminal.error(error)
                code = error.exit_code
        return code
