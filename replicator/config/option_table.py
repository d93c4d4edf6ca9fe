"""Every option of drbd.conf (8.4) and of the section `replicator`, by section and by spelling.

Rules: only puts the rows of `options_net`, `options_disk` and `options_other` together.
"""

from __future__ import annotations

from replicator.config.options import Option
from replicator.config.options_disk import DISK
from replicator.config.options_net import NET
from replicator.config.options_other import GLOBAL, HANDLERS, OPTIONS, REPLICATOR, STARTUP

SECTIONS: dict[str, dict[str, Option]] = {
    name: {option.name: option for option in rows}
    for name, rows in {
        "global": GLOBAL,
        "net": NET,
        "disk": DISK,
        "options": OPTIONS,
        "startup": STARTUP,
        "handlers": HANDLERS,
        "replicator": REPLICATOR,
    }.items()
}
"""Section -> option name -> option."""

ALL_OPTIONS = tuple(option for rows in SECTIONS.values() for option in rows.values())


def spellings(section: str) -> dict[str, tuple[Option, bool]]:
    """Every word allowed in `section` (also "syncer") -> (option, whether the word negates it)."""
    if section == "syncer":
        return {one.syncer: (one, False) for one in ALL_OPTIONS if one.syncer}
    words: dict[str, tuple[Option, bool]] = {}
    for option in SECTIONS[section].values():
        for word in (option.name, *option.aliases):
            words[word] = (option, False)
        if option.negatable:
            words[f"no-{option.name}"] = (option, True)
    return words
