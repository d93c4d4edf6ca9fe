#!/usr/bin/env python3
"""Rewrites the option tables in docs/configuration.md from the option table of replicator.config.

Usage: scripts/configuration_reference.py [--check]. With --check nothing is written; exit status 1
says that the document is out of date. Text outside the markers is left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# What follows is found only by that path, hence not at the top (E402).
from replicator.config.option_table import SECTIONS  # noqa: E402
from replicator.config.options import Effect, Kind, Option  # noqa: E402

DOCUMENT = ROOT / "docs" / "configuration.md"
_EFFECT = {Effect.YES: "yes", Effect.NO: "**no**", Effect.MOOT: "nothing to do"}


def render(text: str) -> str:
    """`text` with each generated table put between its markers. Raises KeyError, ValueError."""
    marker = re.compile(r"(<!-- options:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    seen = {match[2] for match in marker.finditer(text)}
    if seen != set(SECTIONS):
        raise ValueError(f"sections without a table: {sorted(set(SECTIONS) - seen)}")
    return marker.sub(lambda match: match[1] + _table(match[2]) + match[3], text)


def _table(section: str) -> str:
    rows = ["| option | meaning | values | unit | default | effect |", "|---|---|---|---|---|---|"]
    rows += [_row(option) for option in SECTIONS[section].values()]
    return "\n".join(rows) + "\n"


def _row(option: Option) -> str:
    values = option.range_text.replace("|", "\\|")
    others = [f"`{word}`" for word in option.aliases]
    others += [f"`no-{option.name}`"] if option.negatable else []
    name = f"`{option.name}`" + (f" (also {', '.join(others)})" if others else "")
    cells = (name, option.meaning, values, option.unit.name, _default(option))
    return "| " + " | ".join((*cells, _EFFECT[option.effect])) + " |"


def _default(option: Option) -> str:
    if option.kind in (Kind.BOOLEAN, Kind.FLAG):
        return "yes" if option.default else "no"
    if option.default in ("", ()):
        return "unset"
    return str(option.default)


def main(arguments: list[str]) -> int:
    old = DOCUMENT.read_text()
    new = render(old)
    if arguments == ["--check"]:
        if new != old:
            print(f"{DOCUMENT}: out of date; run scripts/configuration_reference.py")
        return int(new != old)
    if arguments:
        print(__doc__)
        return 2
    DOCUMENT.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
