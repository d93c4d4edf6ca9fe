"""Fixtures for all tests: short run directories, free ports, and programs that must be there.

Rules: a test never skips because something is missing on the machine; it fails and names the
Debian package. Nothing here knows what replicator does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from replicator import compiled
from tests.tools.ports import FreePorts

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_LIST = ROOT / "scripts" / "debian-packages.txt"
ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# Other work shares the machine: an example that takes long is no finding. In CI the same examples
# are tried in every run, so that a red run is the fault of the change it tests.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def package_of(program: str) -> str:
    """The Debian package that brings `program`, by scripts/debian-packages.txt; "" if not listed."""
    for line in PACKAGE_LIST.read_text().splitlines():
        package, *programs = line.split()
        if not line.startswith("#") and program in programs:
            return package
    return ""


def find_program(program: str) -> str:
    """Path of `program`; fails the test, naming the package to install, when there is none."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{ADMIN_PATH}")
    if path is None:
        package = package_of(program) or "unknown package"
        pytest.fail(f"needs {program} (Debian: {package}), not found: run `make setup`", False)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Compiled modules cannot be patched: leave out the tests that do that."""
    if compiled.in_use().directory is not None:
        patching = [item for item in items if item.get_closest_marker("python_engine")]
        config.hook.pytest_deselected(items=patching)
        items[:] = [item for item in items if item not in patching]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            find_program(program)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test would be taken for a passed one: make it fail, with its reason."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which no test here may be: {call.excinfo and call.excinfo.value}"
    return report


@pytest.fixture
def program() -> Callable[[str], str]:
    """program("nbdkit") -> its path; the test fails with the package's name when it is missing."""
    return find_program


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """An empty directory with a short name: paths of Unix sockets end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rep-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """free_port() -> a TCP port of 127.0.0.1 that nothing listens on, another one at each call."""
    with FreePorts() as ports:
        yield ports.take
