"""Status for people: the words and indentation of `drbdadm status`, plus why anything waits.

Rules: each line that DRBD's tools print keeps its place and leading words, so that scripts that
search for them go on working; what we add (amount out of sync, progress, reasons) comes at the
ends of lines or on lines of its own. No I/O and no terminal control here.
"""

from __future__ import annotations

from collections.abc import Iterable

from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.status.progress import RUNNING_STATES, done_percent, progress_lines

LINE_WIDTH = 80
CONNECTION_WORDS = {"WFConnection": "Connecting"}
"""Names of drbdadm status that differ from the 8.4 connection state."""
CONNECTED_STATES = frozenset(
    {
        "Connected", "StartingSyncS", "StartingSyncT", "WFBitMapS", "WFBitMapT", "WFSyncUUID",
        "SyncSource", "SyncTarget", "VerifyS", "VerifyT", "PausedSyncS", "PausedSyncT",
        "Ahead", "Behind",
    }
)  # fmt: skip


KNOWN_WITHOUT_CONNECTION = frozenset({"Inconsistent", "Outdated"})
"""What is known of the peer's disk without asking: it cannot take over with it."""


def status_text(resources: Iterable[ResourceSnapshot]) -> str:
    """One block per resource, each followed by an empty line."""
    return "".join(resource_text(resource) + "\n" for resource in resources)


def resource_text(resource: ResourceSnapshot) -> str:
    lines = [_head(resource)]
    named = len(resource.volumes) > 1
    for volume in resource.volumes:
        lines += _own_volume(volume, resource, named)
    lines += _peer(resource, named)
    lines += [f"  running handler: {one}" for one in resource.handlers]
    if resource.waiting_for:
        lines.append(f"  waiting for: {resource.waiting_for}")
    if resource.last_error:
        lines.append(f"  last error: {resource.last_error}")
    if resource.cstate == "StandAlone":
        # A changed configuration is read at the next start only.
        lines.append(
            f"  StandAlone: does not look for the peer; to connect: replicator connect {resource.name}"
            + (" (after a change of the configuration: down, up)" if resource.last_error else "")
        )
    return "\n".join(lines) + "\n"


def unconfigured_text(name: str, reason: str) -> str:
    """For a resource without a daemon; reason says what is known and what to do."""
    return f"{name} role:Unconfigured\n  {reason}\n"


def _head(resource: ResourceSnapshot) -> str:
    volumes = resource.volumes
    role = volumes[0].role if volumes else "Secondary"
    words = [f"role:{role}"]
    reasons = [
        word
        for word, wanted in (
            ("no-data", any(volume.susp_nod for volume in volumes)),
            ("fencing", any(volume.susp_fen for volume in volumes)),
            ("user", any(volume.susp for volume in volumes)),
        )
        if wanted
    ]
    if reasons:
        words.append(f"suspended:{','.join(reasons)}")
    return " ".join((resource.name, *words))


def _own_volume(volume: VolumeSnapshot, resource: ResourceSnapshot, named: bool) -> list[str]:
    words = [f"volume:{volume.volume}"] if named else []
    words.append(f"disk:{volume.disk}")
    if volume.oos and volume.cs not in CONNECTED_STATES:
        words.append(f"out-of-sync:{volume.oos}")
    if volume.open_count:
        words.append(f"open:{volume.open_count}")
    lines = _wrapped(2, words)
    if volume.waiting_for and not resource.waiting_for.startswith(volume.waiting_for):
        lines.append(f"    waiting for: {volume.waiting_for}")
    if volume.disk_error:
        lines.append(f"    disk error: {volume.disk_error}")
    if volume.disk == "Diskless":
        lines.append(
            f"    Diskless: to use the disk again: replicator attach {resource.name}/{volume.volume}"
        )
    return lines


def _peer(resource: ResourceSnapshot, named: bool) -> list[str]:
    """Nothing while StandAlone: there is no connection to speak of then."""
    if resource.cstate == "StandAlone":
        return []
    connected = resource.cstate in CONNECTED_STATES
    words = ["peer"]
    if not connected:
        words.append(f"connection:{CONNECTION_WORDS.get(resource.cstate, resource.cstate)}")
    peer_role = resource.volumes[0].peer_role if resource.volumes else "Unknown"
    if connected or peer_role != "Unknown":
        words.append(f"role:{peer_role}")
    words.append(f"node:{resource.peer}")
    if resource.unsent:
        words.append(f"unsent:{-(-resource.unsent // 1024)}")
    if not connected and not named and resource.volumes:
        peer_disk = resource.volumes[0].peer_disk
        words += [f"peer-disk:{peer_disk}"] if peer_disk in KNOWN_WITHOUT_CONNECTION else []
    lines = _wrapped(2, words)
    if connected:
        for volume in resource.volumes:
            lines += _peer_volume(volume, named)
    return lines


def _peer_volume(volume: VolumeSnapshot, named: bool) -> list[str]:
    words = [f"volume:{volume.volume}"] if named else []
    replication = "Established" if volume.cs == "Connected" else volume.cs
    words += [f"replication:{replication}", f"peer-disk:{volume.peer_disk}"]
    if volume.progress is not None:
        words.append(f"done:{done_percent(volume.progress):.2f}")
    paused = [
        word
        for word, wanted in (
            ("user", volume.user_isp),
            ("peer", volume.peer_isp),
            ("dependency", volume.aftr_isp),
        )
        if wanted
    ]
    if paused:
        words.append(f"resync-suspended:{','.join(paused)}")
    if volume.oos:
        words.append(f"out-of-sync:{volume.oos}")
    lines = _wrapped(4, words)
    if volume.progress is not None and volume.cs in RUNNING_STATES:
        lines += [f"      {line}" for line in progress_lines(volume.cs, volume.progress)]
    return lines


def _wrapped(indent: int, words: list[str]) -> list[str]:
    """The words on one line if they fit, else continued four columns deeper."""
    lines = [" " * indent + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) > LINE_WIDTH:
            lines.append(" " * (indent + 4) + word)
        else:
            lines[-1] += " " + word
    return lines
