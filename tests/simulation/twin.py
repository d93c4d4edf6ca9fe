"""The compiled twin of the whole engine and of the simulator, in which campaigns play.

    make twin        # once for each state of the sources; `make sim` takes it if it is there

It only finds: what it has found is played again, made short and told by the Python modules. A
campaign begins with histories that both play, to the same digests (campaign.agree).
What this file must not know: what is compiled how (replicator/compiled.py).
"""

from __future__ import annotations

from replicator import compiled

PATCHED = ("generations", "handshake", "split_brain", "states")
"""Modules of the engine whose functions the checkers wrap (reached.py, observe.py)."""
TAKEN_FOR_NUMBERS = ("words",)
"""It prints the states in a tuple; the compiler makes plain numbers of them."""

SIMULATOR = (
    *("disk_histories", "harsh_histories", "histories", "late_histories", "media_histories"),
    *("medium", "pair", "strikes", "trace", "world"),
)
CHECKERS = (
    "counters",
    "coverage_of_differences",
    "guard",
    "lineage",
    "observe",
    "on_disk",
    "promises",
    "waits",
)


def _names(folder: str) -> tuple[str, ...]:
    files = sorted((compiled.ROOT / folder).glob("[!_]*.py"))
    left_out = (*PATCHED, *TAKEN_FOR_NUMBERS) if folder == "replicator/engine" else ()
    package = folder.replace("/", ".")
    return tuple(f"{package}.{file.stem}" for file in files if file.stem not in left_out)


ENGINE = ("protocol", "replicator/engine", "replicator/metadata")
SELECTION = compiled.Selection(
    "simulator",
    made_by="make twin",
    modules=(
        *(name for folder in ENGINE for name in _names(folder)),
        *(f"tests.simulation.{name}" for name in SIMULATOR),
        *(f"tests.simulation.checkers.{name}" for name in CHECKERS),
    ),
    folders=(*compiled.SOURCES, "tests/simulation/checkers"),
    files=(
        *compiled.SINGLE_SOURCES,
        *(f"tests/simulation/{name}.py" for name in (*SIMULATOR, "twin", "__init__")),
        "tests/tools/metadata_v08_areas.py",
    ),
)
