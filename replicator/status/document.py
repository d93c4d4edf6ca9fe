"""Status for programs: the JSON document of `replicator status --json`.

Rules: the schema is documented in docs/status.md and only ever grows; `schema` changes if a field
changes its meaning. Plain values only. No I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import replicator
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.status.progress import RUNNING_STATES, done_percent, per_mille, speeds

SCHEMA_VERSION = 1


class ResourceState(NamedTuple):
    """One resource as the command line knows it.

    snapshot: what the daemon says; None without one. stale: the daemon lives but does not answer,
    `snapshot` is the last that it wrote. reason: why there is no fresh snapshot, "" if there is.
    """

    name: str
    snapshot: ResourceSnapshot | None
    stale: bool = False
    reason: str = ""


def status_document(node: str, resources: Iterable[ResourceState]) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "software": f"replicator {replicator.__version__}",
        "node": node,
        "resources": [_resource(state) for state in resources],
    }


def _resource(state: ResourceState) -> dict[str, Any]:
    snapshot = state.snapshot
    document: dict[str, Any] = {
        "name": state.name,
        "running": snapshot is not None and not state.stale,
        "stale": state.stale,
        "reason": state.reason,
    }
    if snapshot is None:
        return {**document, "role": "Unconfigured", "cstate": "Unconfigured", "volumes": []}
    raw = snapshot.to_dict()
    raw["volumes"] = [_volume(volume) for volume in snapshot.volumes]
    roles = [volume.role for volume in snapshot.volumes]
    return {**raw, **document, "role": roles[0] if roles else "Unconfigured"}


def _volume(volume: VolumeSnapshot) -> dict[str, Any]:
    fields: dict[str, Any] = asdict(volume)
    progress = volume.progress
    if progress is not None:
        rate = speeds(progress)
        fields["progress"] |= {
            "running": volume.cs in RUNNING_STATES,
            "percent": per_mille(progress.total, progress.left) / 10,
            "percent_exact": done_percent(progress),
            "speed": rate.recent,
            "average_speed": rate.average,
            "seconds_left": rate.seconds_left,
            "stalled": rate.stalled,
        }
    return fields
