"""From the words of the command line to one command, its options and its targets.

Rules: options may stand before or after the command word, and behind a `--` before it, as drbdadm
takes them (`-- --overwrite-data-of-peer primary r0`). Wrong words end in UsageError with the nearest
right one. Nothing is read and nothing is done here.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from replicator.cli.command_table import COMMANDS, GLOBAL_OPTIONS, GROUPS, Command, Option, Takes
from replicator.config.words import nearest
from replicator.errors import UsageError

PROGRAM = "replicator"
INSTEAD = {
    "adjust": "A changed configuration takes effect after: replicator down R; replicator up R",
    "syncer": "A changed configuration takes effect after: replicator down R; replicator up R",
    "resize": "See 'Moving and growing disks' in the operator guide",
    "check-resize": "See 'Moving and growing disks' in the operator guide",
    "state": "Its name is: replicator role",
    "hidden-commands": "All commands: replicator --help",
}
"""What to do without the commands of drbdadm 8.4 that are not here."""
HELP_WORDS = frozenset({"-h", "--help"})
VERSION_WORDS = frozenset({"-V", "--version"})


@dataclass(slots=True)
class Invocation:
    """One parsed command line. help: the text to print instead of doing anything, "" if none."""

    command: Command | None = None
    names: list[str] = field(default_factory=list)
    extra: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    help: str = ""
    version: bool = False


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.split()[-1]}: {message}", hint=f"Try: {self.prog} --help")


def parse(argv: Sequence[str]) -> Invocation:
    """Raises UsageError. `--help` and `--version` win over everything else on the line."""
    options, words = _split(argv)
    if words and words[0] == "help":
        return Invocation(help=_help(words[1] if len(words) > 1 else ""))
    if any(option in VERSION_WORDS for option in options):
        return Invocation(version=True)
    if any(option in HELP_WORDS for option in options):
        return Invocation(help=_help(words[0] if words else ""))
    if not words:
        raise UsageError("no command given", hint=f"Try: {PROGRAM} --help")
    command = find_command(words[0])
    values = vars(_command_parser(command).parse_args(words[1:] + options))
    names = values.pop("names", [])
    extra = ""
    if command.extra and len(names) > 1:
        extra = names.pop()
    _check_count(command, names)
    return Invocation(command, names, extra, values)


def find_command(name: str) -> Command:
    """Raises UsageError that suggests the nearest command."""
    if name in COMMANDS:
        return COMMANDS[name]
    if name in INSTEAD:
        raise UsageError(f"{PROGRAM} has no command '{name}'", hint=INSTEAD[name])
    near = nearest(name, COMMANDS)
    hint = f"Did you mean '{near}'?" if near else f"Try: {PROGRAM} --help"
    raise UsageError(f"Unknown command '{name}'", hint=hint)


def _check_count(command: Command, names: list[str]) -> None:
    if command.takes in (Takes.RESOURCES, Takes.VOLUMES) and not names:
        raise UsageError(
            f"{command.name}: No resource names specified",
            hint=f"Usage: {PROGRAM} {command.name} {_targets_word(command)}",
        )
    if command.takes is Takes.NOTHING and names:
        raise UsageError(f"{command.name} takes no resource, found '{names[0]}'")
    if command.extra and len(names) != 1:
        raise UsageError(f"{command.name} takes one volume and a {command.extra}")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and all other words, wherever they stand."""
    with_value = options_with_value()
    options: list[str] = []
    words: list[str] = []
    rest = iter([token for token in argv if token != "--"])
    for token in rest:
        if not token.startswith("-") or token == "-":
            words.append(token)
            continue
        options.append(token)
        if token in with_value:
            options += [value for value in [next(rest, None)] if value is not None]
    return options, words


def options_with_value() -> frozenset[str]:
    """Every option name, of whatever command, whose value is the next word."""
    everywhere = [*GLOBAL_OPTIONS]
    for command in COMMANDS.values():
        everywhere += command.options
    return frozenset(name for option in everywhere if option.metavar for name in option.names)


def _command_parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f"{PROGRAM} {command.name}",
        usage=f"{PROGRAM} [options] {command.name} {_targets_word(command)}".rstrip(),
        description=_description(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    for title, options in (("options", command.options), ("general options", GLOBAL_OPTIONS)):
        if options:
            group = parser.add_argument_group(title)
            for option in options:
                _add_option(group, option)
    return parser


def _description(command: Command) -> str:
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    return f"{summary}\n\n{textwrap.fill(command.details, 78)}".strip()


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    if option.metavar:
        group.add_argument(
            *option.names,
            dest=option.dest,
            metavar=option.metavar,
            type=option.kind,
            help=option.help,
        )
    else:
        group.add_argument(*option.names, dest=option.dest, action="store_true", help=option.help)


def _targets_word(command: Command) -> str:
    word = {
        Takes.NOTHING: "",
        Takes.OPTIONAL: "[RESOURCE... | all]",
        Takes.RESOURCES: "RESOURCE... | all",
        Takes.VOLUMES: "RESOURCE[/VOLUME]... | all",
    }[command.takes]
    return f"RESOURCE/VOLUME [{command.extra}]" if command.extra else word


def _help(name: str) -> str:
    return _command_parser(find_command(name)).format_help() if name else overview()


def overview() -> str:
    """What `replicator --help` prints."""
    lines = [f"Usage: {PROGRAM} [options] COMMAND RESOURCE[/VOLUME]... | all", ""]
    for group in GROUPS:
        lines.append(f"{group.title}:")
        lines += [f"  {command.name:<18} {command.summary}" for command in group.commands]
        lines.append("")
    lines.append("Options, before or after the command:")
    for option in GLOBAL_OPTIONS:
        names = ", ".join(option.names) + (f" {option.metavar}" if option.metavar else "")
        lines.append(f"  {names:<24} {option.help}")
    lines += [
        f"  {'-V, --version':<24} print the version",
        f"  {'-h, --help':<24} this text, or behind a command its options",
        "",
        "Configuration: -c, else $REPLICATOR_CONF, else /etc/replicator.conf, else /etc/drbd.conf.",
        "Node name: --node, else $REPLICATOR_NODE, else that of `uname -n`.",
    ]
    return "\n".join(lines) + "\n"
