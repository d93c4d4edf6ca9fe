"""`pip install .` brings everything that runs, nothing that only tests, and the command itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "replicator", "nbd_plugin")
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build"
)
BOUND = {"timeout": 100, "capture_output": True, "text": True, "stdin": subprocess.DEVNULL}


def pip(*args: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *args], **BOUND)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the working tree."""
    source = tmp_path_factory.mktemp("source") / "replicator"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source))
    return next(target.glob("replicator-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


def run_installed(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python away from the checkout, with the installed packages before all others."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *words], cwd="/", env=environment, **BOUND)


def test_the_wheel_holds_every_file_of_the_packages_and_no_other_package(wheel: Path) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert licences, archive.namelist()
        assert b"Apache License" in archive.read(licences[0])


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_imported_from_where_it_was_installed(
    installed: Path, package: str
) -> None:
    done = run_installed(installed, "-c", f"import {package}; print({package}.__file__)")
    assert done.stdout.strip() == str(installed / package / "__init__.py"), done.stderr


def test_the_installed_command_says_its_version(installed: Path) -> None:
    version = run_installed(installed, "-c", "import replicator; print(replicator.__version__)")
    done = run_installed(installed, str(installed / "bin" / "replicator"), "--version")
    assert done.returncode == 0, done.stderr
    assert version.stdout.strip() in done.stdout
