"""Coverage-guided fuzzing of one target with atheris, or of all of them one after the other.

    make fuzz TARGET=configuration SECONDS=600

Needs the extra `fuzz` (pip install -e '.[fuzz]'), which `make fuzz` installs; nothing else does. What
is found to be new is kept in build/fuzz/TARGET between runs; `--save` puts the smallest of it into
tests/fuzz/corpus, which every test run plays again.

Limits of an input: SECONDS_EACH, MEMORY. An input that breaks one, or that ends in an error which the
parser does not declare, ends the run with exit code 77 and is left in build/fuzz/TARGET-crash-...
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import msgpack

SECONDS_EACH = 5
MEMORY_MIB = 1024
"""Of the whole process, the fuzzer's own corpus included."""
SAVED_BYTES = 12 << 10
"""Most of what is committed for one target, before compression."""
WORK = Path("build/fuzz")
ARGUMENTS = "REPLICATOR_FUZZ_ARGUMENTS"
"""Variable with those of the fuzzer, in the process that fuzzes: it loads our code in its own way."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="coverage-guided fuzzing of what reads bytes")
    parser.add_argument("target", nargs="?", default="", help="one target; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--save", action="store_true", help="put the best inputs into the corpus")
    parser.add_argument("--list", action="store_true", help="print the targets")
    options = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: atheris is not installed: .venv/bin/pip install -e '.[fuzz]'", file=sys.stderr)
        return 1
    if ARGUMENTS in os.environ:
        return _fuzz(options.target)
    from tests.fuzz.targets import TARGETS

    if options.list or options.target not in ("", *TARGETS):
        print("\n".join(TARGETS))
        return 0 if options.list else 1
    failed = [
        name
        for name in ([options.target] if options.target else TARGETS)
        if not _run(name, options.seconds, save=options.save)
    ]
    print(f"fuzz: defects found by: {', '.join(failed)}" if failed else "fuzz: no defect found")
    return 77 if failed else 0


def _run(name: str, seconds: int, *, save: bool) -> bool:
    """Fuzz one target in a process of its own; whether it held."""
    from tests.fuzz.targets import LARGEST, TARGETS, saved

    kept = WORK / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*TARGETS[name].seeds(), *saved(name))):
        (kept / f"seed-{number}").write_bytes(seed[:LARGEST])
    limits = [
        f"-max_len={LARGEST}",
        f"-timeout={SECONDS_EACH}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={WORK}/{name}-",
    ]
    ended = _child(name, [str(kept), *limits, f"-max_total_time={seconds}", "-print_final_stats=1"])
    if save and not ended:
        _save(name, kept)
    return not ended


def _child(name: str, arguments: list[str]) -> int:
    environment = {**os.environ, ARGUMENTS: "\n".join(arguments)}
    words = [sys.executable, "-m", "tests.fuzz.fuzz", name]
    print(f"fuzz: {name}", flush=True)
    return subprocess.run(words, env=environment).returncode


def _fuzz(name: str) -> int:
    """In the child: everything of ours that is imported from here on counts for coverage."""
    import atheris

    with atheris.instrument_imports(include=["protocol", "replicator", "nbd_plugin", "msgpack"]):
        from tests.fuzz.targets import TARGETS
    chosen = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            chosen.run(data)
        except chosen.refusals:
            return

    arguments = os.environ[ARGUMENTS].split("\n")
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()
    return 0


def _save(name: str, kept: Path) -> None:
    """The smallest of the inputs that reached something new, as many as there is room for."""
    from tests.fuzz.targets import CORPUS

    inputs, room = [], SAVED_BYTES
    for data in sorted((path.read_bytes() for path in kept.iterdir()), key=lambda d: (len(d), d)):
        room -= len(data)
        if room < 0:
            break
        inputs.append(data)
    CORPUS.mkdir(exist_ok=True)
    packed = gzip.compress(msgpack.packb(inputs), mtime=0)
    (CORPUS / f"{name}.msgpack.gz").write_bytes(packed)
    print(f"fuzz: {name}: {len(inputs)} inputs saved, {len(packed)} bytes", flush=True)


if __name__ == "__main__":
    sys.exit(main())
