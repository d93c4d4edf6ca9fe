"""What must hold of two nodes at rest, whatever was done to them: metadata, and what daemons hold.

Bounds of a daemon, against what it held when it was first seen at rest: EXTRA_FILES descriptors and
EXTRA_MEMORY bytes of resident memory; a leak of one descriptor or of 64 KiB per round shows in a long
run. Must not know: how the nodes were treated.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from replicator.metadata.layout import Placement
from tests.integration import drbdmeta_tool
from tests.integration.pair import Node
from tests.tools.check_metadata_v08 import check_image
from tests.tools.metadata_v08_areas import Image

INTERNAL = Placement("internal")
EXTRA_FILES = 12
EXTRA_MEMORY = 128 << 20


@dataclass(slots=True)
class Held:
    """What a process holds: open descriptors, threads, bytes resident."""

    files: int
    threads: int
    memory: int

    @staticmethod
    def by(pid: int) -> Held:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return Held(
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            int(status["VmRSS"].split()[0]) << 10,
        )


class Bounds:
    """Looks at daemons whenever they are at rest; knows each by its pid."""

    def __init__(self) -> None:
        self._first: dict[int, Held] = {}
        self.most_files = 0
        self.most_memory = 0
        """Growth of any daemon, in descriptors and bytes."""

    def problems(self, node: Node) -> list[str]:
        """What this node's daemon has grown beyond its bounds, in words."""
        pid = node.pid()
        now = Held.by(pid)
        first = self._first.setdefault(pid, now)
        files, memory = now.files - first.files, now.memory - first.memory
        self.most_files = max(self.most_files, files)
        self.most_memory = max(self.most_memory, memory)
        found = []
        if files > EXTRA_FILES:
            found.append(f"{node.name}: {now.files} open files, {first.files} at first")
        if memory > EXTRA_MEMORY:
            found.append(f"{node.name}: {now.memory >> 20} MiB, {first.memory >> 20} at first")
        return found


def metadata_problems(node: Node, *, closed: bool) -> list[str]:
    """What is wrong with the internal metadata of the node's disk; `closed`: the node is down and in
    sync, so that no block may be marked, and drbdmeta is made to close and print it too."""
    path = str(node.backing())
    options = argparse.Namespace(
        layout="internal", full=False, max_ranges=4, scan_area=False, require_clean=False
    )
    image = Image(path)
    try:
        report = check_image(image, options).as_dict()
    finally:
        os.close(image.fd)
    found = [f"{node.name}: {error}" for error in report["errors"]]
    if closed and not found:
        bits = report["bitmap"]["bits_set"]
        if bits:
            found.append(f"{node.name}: down and in sync, but {bits} bits are set")
        for command in ("apply-al", "dump-md"):
            code, text = drbdmeta_tool.run(node.backing(), INTERNAL, command)
            if code != 0:
                found.append(f"{node.name}: drbdmeta {command} ended with {code}: {text}")
    return found
