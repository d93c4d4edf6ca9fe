"""The text of /proc/drbd as DRBD 8.4 writes it, from snapshots.

Rules: byte for byte the kernel's format, because init scripts, monitoring checks and people parse
it by column. Two things are ours: the lowest protocol version in the first line, and the second
line, which names this software where the kernel names its build. No I/O here.
"""

from __future__ import annotations

from collections.abc import Iterable

import replicator
from protocol.features import PROTOCOL_MAX, PROTOCOL_MIN
from replicator.engine.snapshot import ResourceSnapshot, VolumeSnapshot
from replicator.status.progress import RUNNING_STATES, progress_lines

COMPATIBLE_RELEASE = "8.4.11"
API_VERSION = 1


def header_lines() -> list[str]:
    return [
        f"version: {COMPATIBLE_RELEASE} (api:{API_VERSION}/proto:{PROTOCOL_MIN}-{PROTOCOL_MAX})",
        f"replicator {replicator.__version__} (user space)",
    ]


def proc_text(resources: Iterable[ResourceSnapshot]) -> str:
    """The whole file: header, then every minor of all resources in order of minor numbers.

    A blank line stands wherever minor numbers are not consecutive, also before a first other than 0.
    """
    volumes = [(volume, resource) for resource in resources for volume in resource.volumes]
    volumes.sort(key=lambda pair: (pair[0].minor, pair[1].name))
    lines = header_lines()
    previous = -1
    for volume, resource in volumes:
        if volume.minor > previous + 1:
            lines.append("")
        lines += volume_lines(volume, resource.protocol)
        previous = volume.minor
    return "\n".join(lines) + "\n"


def volume_lines(volume: VolumeSnapshot, protocol: str) -> list[str]:
    """The one to four lines of one minor; protocol: A, B, C or "" without network configuration."""
    if is_unconfigured(volume):
        return [f"{volume.minor:2d}: cs:Unconfigured"]
    states = (
        f"cs:{volume.cs} ro:{volume.role}/{volume.peer_role} ds:{volume.disk}/{volume.peer_disk}"
    )
    lines = [
        f"{volume.minor:2d}: {states} {protocol or ' '} {flag_columns(volume)}",
        f"    {counters(volume)}",
    ]
    if volume.progress is not None and volume.cs in RUNNING_STATES:
        lines += [f"\t{line}" for line in progress_lines(volume.cs, volume.progress)]
    return lines


def is_unconfigured(volume: VolumeSnapshot) -> bool:
    """Neither disk nor network nor role: DRBD calls that Unconfigured."""
    return volume.cs == "StandAlone" and volume.disk == "Diskless" and volume.role == "Secondary"


def flag_columns(volume: VolumeSnapshot) -> str:
    """The six columns: I/O, resync paused by dependency, peer, user; congestion; activity log."""
    return "".join(
        (
            "s" if volume.susp or volume.susp_nod or volume.susp_fen else "r",
            "a" if volume.aftr_isp else "-",
            "p" if volume.peer_isp else "-",
            "u" if volume.user_isp else "-",
            volume.congested or "-",
            "s" if volume.al_suspended else "-",
        )
    )


def counters(volume: VolumeSnapshot) -> str:
    return (
        f"ns:{volume.ns} nr:{volume.nr} dw:{volume.dw} dr:{volume.dr} al:{volume.al} "
        f"bm:{volume.bm} lo:{volume.lo} pe:{volume.pe} ua:{volume.ua} ap:{volume.ap} "
        f"ep:{volume.ep} wo:{volume.wo} oos:{volume.oos}"
    )
