"""The compiled twin: the modules of the data path as machine code, made from the same Python by mypyc.

A process calls `use()` before it imports any of MODULES; without that call, and whenever the twin
does not fit, it gets the Python modules. `scripts/compile_engine.py` makes the twin. Campaigns of the
simulator have another one, of more modules: tests/simulation/twin.py.

Rules:
1. The twin of one state of the sources has a directory of its own, named by a digest of them and of
   this Python's ABI. So a twin of other sources is never found, a new one never overwrites one that
   is in use, and nothing lies beside the sources that could hide an edit.
2. All or none: the modules are loaded together, and all of them come from the twin or none does.
3. A twin that cannot be used is never an error: `Twin.why` tells, `replicator --version` shows it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PURE = "REPLICATOR_PURE"
"""Set and not empty in the environment: Python modules only."""

_PROTOCOL = (
    "bitmaps commands digests errors extensions features framing layouts messages packets quick"
    " states"
)
_ENGINE = (
    "activity_log application block_answers congestion counters disk_writes dispatch intervals"
    " link pacing peer_reads peer_writes ports replication requests resource resync resync_digest"
    " resync_source settings store transfer_log volume watched_disk zeroes"
)
_METADATA = "activity_log bitmap layout"
_RUNTIME = "calls clock disk disk_ops inner net syscalls"
_NBD = "connection inbox quick transmission wire"
MODULES = (
    *(f"protocol.{name}" for name in _PROTOCOL.split()),
    *(f"replicator.engine.{name}" for name in _ENGINE.split()),
    *(f"replicator.metadata.{name}" for name in _METADATA.split()),
    *(f"replicator.runtime.{name}" for name in _RUNTIME.split()),
    *(f"nbd_plugin.native.{name}" for name in _NBD.split()),
)
"""What every write, read and resync block passes through. Commands, decisions and everything else
that happens now and then stay Python: nothing would be gained."""

SOURCES = (
    "protocol",
    "replicator/engine",
    "replicator/metadata",
    "replicator/runtime",
    "nbd_plugin/native",
)
"""Folders of MODULES and of all they import, but for the files in SINGLE_SOURCES. The compiler takes
constants and types over from one module into another, so each file counts, compiled or not."""
SINGLE_SOURCES = (
    "replicator/__init__.py",
    "replicator/compiled.py",
    "replicator/config/model.py",
    "replicator/errors.py",
)


class Selection(NamedTuple):
    """What is compiled together, and looked for together.

    name: of the folder in build/ and of the library. made_by: the command for people. modules: what is
    compiled. folders, files: all that these import of this project, as far as it may change them.
    """

    name: str
    made_by: str
    modules: tuple[str, ...]
    folders: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def library(self) -> str:
        """mypyc puts the code of all modules into this one; theirs only name it."""
        return f"replicator_{self.name}__mypyc"


DATA_PATH = Selection("compiled", "make setup", MODULES, SOURCES, SINGLE_SOURCES)


def by_hand(name: str) -> Path | None:
    """The C file beside a module whose twin is written by hand; None: it is made by mypyc."""
    file = ROOT / (name.replace(".", "/") + ".c")
    return file if file.is_file() else None


class Twin(NamedTuple):
    """directory: where the compiled modules are, or None, and then why there is nothing to use."""

    directory: Path | None
    why: str = ""

    def __str__(self) -> str:
        return "compiled" if self.directory else f"pure Python ({self.why})"


_used = Twin(None, "not asked for")


def in_use() -> Twin:
    """What the modules of this process are."""
    return _used


def use(selection: Selection = DATA_PATH) -> Twin:
    """Take its modules from the twin from now on, if there is one that fits; returns what is used."""
    global _used
    _used = find(selection=selection)
    if _used.directory is not None:
        _used = _load(_used.directory, selection)
    return _used


def find(root: Path = ROOT, selection: Selection = DATA_PATH) -> Twin:
    """The twin that a process started now would use."""
    if os.environ.get(PURE):
        return Twin(None, f"{PURE} is set")
    directory = place(root, selection)
    if not directory.parent.is_dir():
        return Twin(None, f"not compiled: {selection.made_by}")
    if not directory.is_dir():
        other = "compiled from other sources or for another Python"
        return Twin(None, f"{other}: {selection.made_by}")
    return Twin(directory)


def place(root: Path = ROOT, selection: Selection = DATA_PATH) -> Path:
    """The directory that belongs to the sources as they are now, and to this Python."""
    digest = hashlib.sha256(EXTENSION_SUFFIXES[0].encode())
    files = [root / name for name in selection.files]
    for folder in selection.folders:
        files += sorted((root / folder).glob("*.py")) + sorted((root / folder).glob("*.c"))
    for file in files:
        text = file.read_bytes()
        digest.update(f"\n{file.relative_to(root)} {len(text)}\n".encode() + text)
    return root / "build" / selection.name / digest.hexdigest()[:32]


class _Finder:
    """For the import system: where the modules of one twin are."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._directory = directory
        self._names = frozenset(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return None
        file = self._directory / (name.replace(".", "/") + EXTENSION_SUFFIXES[0])
        return spec_from_file_location(name, file)


def _load(directory: Path, selection: Selection) -> Twin:
    early = [name for name in selection.modules if name in sys.modules]
    if early:
        return Twin(None, f"{early[0]} was imported before")
    names = (selection.library, *selection.modules)
    finder = _Finder(directory, names)
    sys.meta_path.insert(0, finder)
    try:
        for name in names:
            import_module(name)
    except ImportError as error:
        sys.meta_path.remove(finder)
        # Not only MODULES: what was imported on the way has their classes in it.
        for name in list(sys.modules):
            if name.startswith(("protocol.", "replicator.", "nbd_plugin.")) and name != __name__:
                del sys.modules[name]
        return Twin(None, f"cannot be loaded: {error}")
    return Twin(directory)
