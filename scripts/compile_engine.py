"""Makes the compiled twin of the data path (replicator/compiled.py says what that is), or that of the
simulator (tests/simulation/twin.py).

    .venv/bin/python scripts/compile_engine.py [simulator]

With a twin of these sources there is nothing to do. Twins of other sources are removed: a process
that uses one has loaded it whole. Ends with 0 if the twin is there, else with 1 and the reason;
then everything still runs, in Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from replicator import compiled
from tests.simulation import twin

SELECTIONS = {"": compiled.DATA_PATH, "simulator": twin.SELECTION}
# Beyond -O1 the compiler takes three times as long, for code that is not faster.
OPTIMISATION = "1"


def compile_all(here: Path, selection: compiled.Selection) -> None:
    """Put the compiled modules into `here`/out."""
    from mypyc.build import mypycify
    from setuptools import Extension, setup

    by_hand = {name: file for name in selection.modules if (file := compiled.by_hand(name))}
    files = [name.replace(".", "/") + ".py" for name in selection.modules if name not in by_hand]
    extensions: list[Extension] = mypycify(
        ["--strict", "--config-file", "setup.cfg", *files],
        opt_level=OPTIMISATION,
        debug_level="0",
        multi_file=True,
        target_dir=str(here / "c"),
        group_name=selection.library.removesuffix("__mypyc"),
    )
    extensions += [
        Extension(name, [f"{file.relative_to(compiled.ROOT)}"], extra_compile_args=["-O2", "-Wall"])
        for name, file in by_hand.items()
    ]
    setup(
        name="replicator-compiled",
        packages=[],
        ext_modules=extensions,
        cmdclass={"build_ext": _parallel_build()},
        script_args=["build_ext", f"--build-lib={here}/out", f"--build-temp={here}/o"],
    )


def _parallel_build() -> Any:
    """setuptools' build_ext, with the files of one extension compiled on all processors."""
    from setuptools.command.build_ext import build_ext

    class ParallelBuild(build_ext):
        def build_extensions(self) -> None:
            one_by_one = self.compiler.compile

            def compile_files(sources: list[str], **options: Any) -> list[str]:
                with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                    found = threads.map(lambda source: one_by_one([source], **options), sources)
                    return [file for files in found for file in files]

            self.compiler.compile = compile_files
            super().build_extensions()

    return ParallelBuild


def build(place: Path, which: str) -> None:
    """Compile into `place`, which appears complete or not at all. Raises CalledProcessError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=place.parent) as name:
        here = Path(name)
        log = here / "log"
        with log.open("wb") as out:
            command = [sys.executable, __file__, which, str(here)]
            done = subprocess.run(command, cwd=compiled.ROOT, stdout=out, stderr=out)
        if done.returncode:
            print("\n".join(log.read_text().splitlines()[-10:]), file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, command)
        # Somebody else may have made it meanwhile, of the same sources.
        with contextlib.suppress(FileExistsError):
            os.rename(here / "out", place)
    for other in place.parent.iterdir():
        if other != place and not other.name.startswith("making-"):
            shutil.rmtree(other)


def main() -> int:
    which = sys.argv[1] if len(sys.argv) > 1 else ""
    place = compiled.place(selection=SELECTIONS[which])
    if place.is_dir():
        return 0
    what = which or "data path"
    print(f"setup: compiling the {what}", flush=True)
    started = time.monotonic()
    try:
        build(place, which)
    except subprocess.CalledProcessError:
        print(
            f"setup: the {what} could not be compiled (see above) and stays in Python, which is"
            " slower; needed: apt-get install gcc python3-dev",
            file=sys.stderr,
        )
        return 1
    print(f"setup: compiled in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        compile_all(Path(sys.argv[2]), SELECTIONS[sys.argv[1]])
    else:
        sys.exit(main())
