"""Configurations in memory for the tests of replicator.config: texts, and files that do not exist.

Rules: no expectations here, only material.
"""

from __future__ import annotations

import fnmatch

from replicator.config import Config, NodeView, load

ALICE = "device /dev/drbd0; disk /dev/sda7; meta-disk internal; address 10.0.0.2:7789;"
BOB = ALICE.replace("10.0.0.2", "10.0.0.3")


def resource(
    inner: str = "", *, name: str = "r0", alice: str = ALICE, bob: str = BOB, after: str = ""
) -> str:
    """A valid resource of two hosts with `inner` before them and `after` behind them."""
    return f"resource {name} {{\n{inner}\non alice {{ {alice} }}\non bob {{ {bob} }}\n{after}}}\n"


def second(inner: str = "", *, name: str = "r1") -> str:
    """Another valid resource that shares nothing with `resource()`."""
    alice = "device minor 1; disk /dev/sdb1; meta-disk internal; address 10.0.0.2:7790;"
    return resource(inner, name=name, alice=alice, bob=alice.replace(".2:", ".3:"))


class MemoryFiles:
    """Files by path; a value that is an OSError is raised."""

    def __init__(self, **texts: str | OSError) -> None:
        self.texts: dict[str, str | OSError] = dict(texts)

    def read(self, path: str) -> str:
        content = self.texts.get(path, FileNotFoundError(2, "No such file or directory"))
        if isinstance(content, OSError):
            raise content
        return content

    def expand(self, pattern: str) -> list[str]:
        return sorted(path for path in self.texts if fnmatch.fnmatch(path, pattern))


def load_text(text: str, *, local: tuple[str, ...] = ()) -> Config:
    """Load `text` as the file "drbd.conf"; `local` are the addresses of this host."""
    files = MemoryFiles()
    files.texts["drbd.conf"] = text
    return load("drbd.conf", files=files, is_local=lambda address: address.host in local)


def view_of(text: str, node: str = "alice", name: str = "r0") -> NodeView:
    return load_text(text).view(name, node)
