"""Which modules a process gets: the compiled twin only if it was made from exactly these sources, for
exactly this Python, and nobody has said otherwise; and all of it or nothing."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from replicator import compiled
from tests.simulation import twin

TELL = """
import sys
from replicator import compiled
print(compiled.use())
import replicator.engine.application, replicator.engine.link, protocol.framing
for name in ("replicator.engine.application", "protocol.framing", "replicator.engine.link"):
    print(sys.modules[name].__file__.rpartition(".")[2])
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources with a directory in which their twin should be; it holds nothing usable."""
    monkeypatch.delenv(compiled.PURE, raising=False)
    for folder in ("protocol", "replicator", "nbd_plugin"):
        shutil.copytree(
            compiled.ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    compiled.place(tmp_path).mkdir(parents=True)
    return tmp_path


def told(tree: Path) -> list[str]:
    """What a process of this tree says: the engine, and the kinds of files its modules are from."""
    done = subprocess.run(
        [sys.executable, "-c", TELL], cwd=tree, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_twin_of_these_sources_is_found(tree: Path) -> None:
    assert compiled.find(tree).directory == compiled.place(tree)


@pytest.mark.parametrize(
    "name",
    [
        "protocol/framing.py",
        "protocol/quick.c",  # a twin by hand
        "replicator/engine/application.py",
        "replicator/engine/roles.py",  # not compiled itself
        "replicator/errors.py",
        "replicator/compiled.py",
    ],
)
def test_after_an_edit_the_twin_of_before_is_not_found(tree: Path, name: str) -> None:
    with (tree / name).open("a") as file:
        file.write("# edited\n")
    twin = compiled.find(tree)
    assert twin.directory is None
    assert (
        str(twin) == "pure Python (compiled from other sources or for another Python: make setup)"
    )


def test_a_new_file_and_one_that_is_gone_are_edits_too(tree: Path) -> None:
    (tree / "protocol" / "new.py").write_text("")
    assert compiled.find(tree).directory is None
    (tree / "protocol" / "new.py").unlink()
    (tree / "replicator/engine/words.py").unlink()
    assert compiled.find(tree).directory is None


def test_a_twin_for_another_python_is_not_found(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "EXTENSION_SUFFIXES", [".cpython-399-x86_64-linux-gnu.so"])
    assert compiled.find(tree).directory is None


def test_the_environment_can_ask_for_python(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATOR_PURE", "1")
    assert str(compiled.find(tree)) == "pure Python (REPLICATOR_PURE is set)"


def test_nothing_compiled_is_no_error(tree: Path) -> None:
    shutil.rmtree(tree / "build")
    assert told(tree) == ["pure Python (not compiled: make setup)", "py", "py", "py"]


def test_a_twin_that_cannot_be_loaded_leaves_python_and_says_why(tree: Path) -> None:
    """Its library is missing, or was made for a newer C library: any error of the import."""
    first, *kinds = told(tree)
    assert first.startswith("pure Python (cannot be loaded: ")
    assert kinds == ["py", "py", "py"]


def test_it_is_too_late_once_a_module_has_been_imported(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import protocol.framing\n" + TELL],
        cwd=tree,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *kinds = done.stdout.splitlines()
    assert first.startswith("pure Python (protocol.") and first.endswith(" was imported before)")
    assert kinds == ["py", "py", "py"]


@pytest.mark.parametrize("selection", [compiled.DATA_PATH, twin.SELECTION])
def test_the_digest_covers_all_that_compiled_modules_import(selection: compiled.Selection) -> None:
    """Else an edit could go unnoticed: the compiler takes constants and types over from there."""
    covered = set(selection.files)
    for folder in selection.folders:
        covered |= {f"{folder}/{file.name}" for file in (compiled.ROOT / folder).glob("*.py")}
    waiting = [name.replace(".", "/") + ".py" for name in selection.modules]
    seen = set(waiting)
    while waiting:
        for name in imports(compiled.ROOT / waiting.pop()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    assert seen - covered == set()


def imports(file: Path) -> set[str]:
    """Files of ours that this one imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = {name.replace(".", "/") for name in names}
    candidates = {f"{path}.py" for path in paths} | {f"{path}/__init__.py" for path in paths}
    return {name for name in candidates if (compiled.ROOT / name).is_file()}


@pytest.mark.parametrize("selection", [compiled.DATA_PATH, twin.SELECTION])
def test_no_lambda_has_arguments_that_the_compiler_cannot_pass(
    selection: compiled.Selection,
) -> None:
    """From one that takes *args it makes C that does not compile, and the twin would not be made."""
    files = [compiled.ROOT / f"{name.replace('.', '/')}.py" for name in selection.modules]
    found = [
        f"{file.name}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Lambda) and (node.args.vararg or node.args.kwarg)
    ]
    assert found == []
