"""Reads configuration files: the only module here that touches the system.

Rules: follows includes, bounds their number and depth, and hands text to the parser. Tests give it
a Files of their own.
"""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Callable
from typing import Protocol

from replicator.config.config import Config, IsLocal
from replicator.config.lexer import Source
from replicator.config.model import Address
from replicator.config.parser import parse_file
from replicator.config.syntax import Tree
from replicator.errors import ConfigError, ConfigSyntaxError

MAX_FILE_BYTES = 4 << 20
MAX_FILES = 4096
MAX_DEPTH = 16


class Files(Protocol):
    def read(self, path: str) -> str:
        """The file's text. Raises OSError."""

    def expand(self, pattern: str) -> list[str]:
        """Existing files that match, sorted; a pattern without wildcard matches that file."""


class SystemFiles:
    """The file system."""

    def read(self, path: str) -> str:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise OSError(0, f"larger than {MAX_FILE_BYTES} bytes")
        return raw.decode("utf-8", "surrogateescape")

    def expand(self, pattern: str) -> list[str]:
        return sorted(path for path in glob.glob(pattern) if not os.path.isdir(path))


def load(path: str, *, files: Files | None = None, is_local: IsLocal | None = None) -> Config:
    """Read and check a configuration.

    files: where to read from (default: the file system); is_local: whether an address belongs to
    this host (default: ask the kernel; only `floating` sections need it).
    Raises ConfigSyntaxError for text that cannot be parsed, ConfigError for everything else.
    """
    tree = Tree(path)
    _Loader(files or SystemFiles(), tree).load(path)
    return Config(tree, is_local or is_local_address)


def is_local_address(address: Address) -> bool:
    """Whether a socket can be bound to the address here (any port)."""
    family = socket.AF_INET6 if address.family == "ipv6" else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            info = socket.getaddrinfo(address.host, 0, family, socket.SOCK_DGRAM)
            probe.bind(info[0][4])
    except OSError:
        return False
    return True


class _Loader:
    def __init__(self, files: Files, tree: Tree) -> None:
        self._files = files
        self._tree = tree
        self._open: list[str] = []
        self._count = 0

    def load(self, path: str) -> None:
        try:
            text = self._files.read(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"cannot read configuration file {path}: {reason}",
                hint="check the path (option --config-file) and its permissions",
            ) from None
        self._count += 1
        self._open.append(path)
        parse_file(Source(path, text), self._tree, self._include)
        self._open.pop()

    def _include(self, pattern: str, error: Callable[[str], ConfigSyntaxError]) -> None:
        directory = os.path.dirname(self._open[-1])
        full = os.path.normpath(os.path.join(directory, pattern))
        found = self._files.expand(full)
        if not found and not glob.has_magic(pattern):
            raise error(f"cannot include '{full}': there is no such file")
        for path in found:
            if path in self._open:
                raise error(f"'{path}' includes itself")
            if len(self._open) >= MAX_DEPTH or self._count >= MAX_FILES:
                raise error(f"too many files (at most {MAX_FILES}, {MAX_DEPTH} deep)")
            self.load(path)
