#!/usr/bin/env python3
"""Writes docs/commands.md from the command table and the error classes, so that it cannot differ.

`scripts/command_reference.py` writes the file; a test compares the file with `reference()`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# What follows is found only by that path, hence not at the top (E402).
from replicator import errors  # noqa: E402
from replicator.cli.command_table import (  # noqa: E402
    GLOBAL_OPTIONS,
    GROUPS,
    Command,
    Option,
    Takes,
)

TARGET = ROOT / "docs" / "commands.md"
TARGET_WORDS = {
    Takes.NOTHING: "",
    Takes.OPTIONAL: "[RESOURCE... | all]",
    Takes.RESOURCES: "RESOURCE... | all",
    Takes.VOLUMES: "RESOURCE[/VOLUME]... | all",
}
INTRODUCTION = """\
# Commands

Written by `scripts/command_reference.py` from the program itself: change the program, not this file.

    replicator [options] COMMAND RESOURCE[/VOLUME]... | all

Options may stand before or after the command; a `--` before them, as drbdadm of DRBD 8.3 wanted it
(`replicator -- --overwrite-data-of-peer primary r0`), is accepted. The answer goes to standard output,
everything else to standard error. Every command is safe to repeat, and ends within a bounded time.
"""


def reference() -> str:
    """The whole document."""
    lines = [INTRODUCTION, "## General options", "", *option_table(GLOBAL_OPTIONS)]
    for group in GROUPS:
        lines += [f"## {group.title}", ""]
        for command in group.commands:
            lines += command_section(command)
    return "\n".join([*lines, *exit_codes()])


def command_section(command: Command) -> list[str]:
    target = f"RESOURCE/VOLUME [{command.extra}]" if command.extra else TARGET_WORDS[command.takes]
    usage = " ".join(word for word in ("replicator", command.name, target) if word)
    lines = [f"### {command.name}", "", f"    {usage}", ""]
    lines += [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    if command.details:
        lines += [command.details, ""]
    return lines + (option_table(command.options) if command.options else [])


def option_table(options: Iterable[Option]) -> list[str]:
    lines = ["| option | meaning |", "|---|---|"]
    for option in options:
        names = ", ".join(f"`{name}`" for name in option.names)
        value = f" {option.metavar}" if option.metavar else ""
        lines.append(f"| {names}{value} | {option.help} |")
    return [*lines, ""]


def exit_codes() -> Iterator[str]:
    """0, 130, 141 and the codes of the error classes, with what each class stands for."""
    yield "## Exit codes"
    yield ""
    yield "With several resources, that of the first one that failed."
    yield ""
    yield "| code | meaning |"
    yield "|---|---|"
    yield "| 0 | done, or it was so already |"
    meanings: dict[int, list[str]] = {}
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.ReplicatorError) and kind is not errors.ReplicatorError:
            text = " ".join((kind.__doc__ or "").split()).split("`code`")[0].strip()
            meanings.setdefault(kind.exit_code, []).append(text.rstrip("."))
    for code in sorted(meanings):
        yield f"| {code} | {'; or: '.join(meanings[code])} |"
    yield "| 130 | interrupted from the keyboard |"
    yield "| 141 | the reader of the output went away |"
    yield ""


def main() -> int:
    TARGET.write_text(reference())
    print(f"wrote {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
