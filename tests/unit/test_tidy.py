"""The repository checks itself: style, types, layering, and that its texts match its code.

Each test names every offender, so that one run shows all there is to repair.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("protocol", "replicator", "nbd_plugin")
PURE = ("protocol", "replicator/engine", "replicator/metadata")
IMPURE_MODULES = {
    *("asyncio", "uvloop", "socket", "selectors", "select", "ssl", "os", "time", "random"),
    *("secrets", "threading", "multiprocessing", "subprocess", "logging", "concurrent", "signal"),
}
MAX_FILE_LINES = 600
IGNORED_DIRS = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}
# What an installed distribution is called where that differs from the module it brings.
DISTRIBUTION_OF = {"google_crc32c": "google-crc32c"}
GIVEN_MODULES = {"nbdkit"}  # by the program that hosts the plugin

# Written so that no pattern matches itself.
FORBIDDEN = {
    r"(?<![\w.])/wor[k]/": "a path of one developer's machine",
    r"/hom[e]/[a-z]": "a path of one developer's machine",
    r"/tm[p]/brie[f]": "a path of one developer's machine",
    r"\b(?:TOD[O]|FIXM[E]|XX[X])\b": "work left open: do it, or write down what is missing in docs",
    r"(?i)\bco-authored[-]by\b": "authorship belongs to the history, not to files",
    r"(?i)\bgenerated (?:by|with) (?:an? )?(?:ai|llm|assistan[t])\b": "authorship in a file",
    r"^(?:<{7}|>{7}) ": "an unresolved merge",
}


def repository_files(*suffixes: str) -> Iterator[Path]:
    """All files of the working tree with one of these suffixes; all text files without any."""
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if any(
            part in IGNORED_DIRS or part.endswith(("_cache", ".egg-info"))
            for part in relative.parts
        ):
            continue
        if relative.parts[0] == ".hypothesis" or not path.is_file() or path.is_symlink():
            continue
        if path.suffix in suffixes or (not suffixes and b"\0" not in path.read_bytes()[:4096]):
            yield path


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")


def python_files(*folders: str) -> list[Path]:
    inside = tuple(f"{folder}/" for folder in folders)
    return [path for path in repository_files(".py") if not inside or name(path).startswith(inside)]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every absolute import in the file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def run_tool(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def report(offenders: list[str]) -> None:
    if offenders:
        pytest.fail("\n".join(offenders), pytrace=False)


def test_ruff_finds_nothing_to_complain_about() -> None:
    run_tool("ruff", "check", ".")


def test_all_code_is_in_the_common_format() -> None:
    run_tool("ruff", "format", "--check", ".")


@pytest.mark.timeout(320)
def test_types_of_the_product_pass_mypy_strict() -> None:
    run_tool("mypy", "--strict", *PRODUCT)


def test_types_of_the_simulator_pass_mypy_strict_as_it_is_to_be_compiled() -> None:
    run_tool("mypy", "--strict", "tests/simulation/explore.py")


def test_protocol_metadata_and_engine_touch_nothing_of_the_outside_world() -> None:
    files = python_files(*PURE)
    assert len(files) > 20, "the pure packages have moved: correct PURE"
    report(
        [
            f"{name(path)}:{line}: imports {module}; it has to be given as a port"
            for path in files
            for line, module in imports(path)
            if module.split(".")[0] in IMPURE_MODULES
            or module.startswith(("replicator.runtime", "replicator.cli", "nbd_plugin"))
        ]
    )


def test_protocol_knows_nothing_of_the_product_above_it() -> None:
    report(
        [
            f"{name(path)}:{line}: imports {module}"
            for path in python_files("protocol")
            for line, module in imports(path)
            if module.split(".")[0] in ("replicator", "nbd_plugin")
        ]
    )


def test_the_product_never_imports_from_its_tests() -> None:
    report(
        [
            f"{name(path)}:{line}: imports {module}"
            for path in python_files(*PRODUCT)
            for line, module in imports(path)
            if module.split(".")[0] in ("tests", "benchmarks", "pytest", "hypothesis")
        ]
    )


def test_every_library_the_product_imports_is_declared_and_every_declared_one_is_used() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    declared = {re.split(r"[<>=!~\[]", one)[0].lower() for one in required}
    own = {*PRODUCT, *GIVEN_MODULES, *sys.stdlib_module_names}
    used: dict[str, str] = {}
    for path in python_files(*PRODUCT):
        for line, module in imports(path):
            top = module.split(".")[0]
            if top not in own:
                used[DISTRIBUTION_OF.get(top, top)] = f"{name(path)}:{line}"
    report(
        [f"{used[one]}: {one} is not in install_requires" for one in sorted(set(used) - declared)]
        + [f"setup.cfg: {one} is required but never imported" for one in declared - set(used)]
    )


def test_every_folder_of_the_product_is_a_package_so_that_it_is_installed() -> None:
    folders = {path.parent for path in python_files(*PRODUCT)}
    report(
        [
            f"{name(one)}: no __init__.py"
            for one in sorted(folders)
            if not (one / "__init__.py").exists()
        ]
    )


def test_every_python_file_opens_by_saying_what_it_is_for() -> None:
    report(
        [
            f"{name(path)}: no docstring at the top"
            for path in python_files()
            if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        ]
    )


def test_every_script_opens_by_saying_what_it_is_for() -> None:
    scripts = [path for path in repository_files() if text_lines(path)[0].startswith("#!")]
    assert scripts, "no scripts found: has scripts/ moved?"
    report(
        [
            f"{name(path)}: line 2 is neither a comment nor a docstring"
            for path in scripts
            if not text_lines(path)[1].startswith(("#", '"""'))
        ]
    )


def test_no_python_file_is_too_long_to_be_read_at_once() -> None:
    sizes = [(path, len(text_lines(path))) for path in python_files()]
    report(
        [
            f"{name(path)}: {n} lines, at most {MAX_FILE_LINES}"
            for path, n in sizes
            if n > MAX_FILE_LINES
        ]
    )


def test_no_line_ends_with_blanks_and_every_file_with_a_newline() -> None:
    offenders = []
    for path in repository_files():
        if name(path).startswith("tests/vectors/"):
            continue  # recorded output of other programs, kept as it was
        lines = text_lines(path)
        if lines[-1] != "":
            offenders.append(f"{name(path)}: no newline at the end")
        offenders += [
            f"{name(path)}:{number}: blanks at the end of the line"
            for number, line in enumerate(lines, 1)
            if line != line.rstrip()
        ]
    report(offenders)


def test_no_file_says_what_must_not_be_in_the_repository() -> None:
    patterns = [(re.compile(pattern, re.MULTILINE), why) for pattern, why in FORBIDDEN.items()]
    report(
        [
            f"{name(path)}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()!r}: {why}"
            for path in repository_files()
            for text in [path.read_text(encoding="utf-8", errors="replace")]
            for pattern, why in patterns
            for found in pattern.finditer(text)
        ]
    )


def test_the_changelog_has_a_section_for_this_version_or_for_what_is_unreleased() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "replicator/__init__.py").read_text())
    assert version, "replicator/__init__.py has no __version__"
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings and headings[0] in ("Unreleased", version.group(1)), headings


def slug(heading: str) -> str:
    """The anchor that a Markdown renderer gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)}


def test_every_link_in_the_documents_leads_somewhere() -> None:
    offenders = []
    for path in repository_files(".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue  # another site
            file, _, anchor = target.partition("#")
            goal = (path.parent / file).resolve() if file else path
            if not goal.exists() or not goal.is_relative_to(ROOT):
                offenders.append(f"{name(path)}: {target}: no such file")
            elif anchor and goal.suffix == ".md" and anchor not in anchors(goal):
                offenders.append(f"{name(path)}: {target}: no such heading")
    report(offenders)


def test_every_document_can_be_reached_from_the_readme() -> None:
    reached, queue = set(), [ROOT / "README.md"]
    while queue:
        path = queue.pop()
        if path in reached or not path.exists():
            continue
        reached.add(path)
        for target in re.findall(r"\]\(([^)\s#]+\.md)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                queue.append((path.parent / target).resolve())
    report(
        [
            f"{name(p)}: no way to it from README.md"
            for p in repository_files(".md")
            if name(p).startswith("docs/") and p not in reached
        ]
    )
