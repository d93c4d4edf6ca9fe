"""What a resource tells about itself, as plain values: the source of all status output.

Rules: no behaviour, only numbers and words that survive msgpack and JSON; names of states are
DRBD's. `replicator.status` renders them; nothing here knows how.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Progress:
    """A running resync or online verify. All amounts in bits (4 KiB blocks)."""

    verify: bool
    total: int
    left: int
    elapsed: float
    """Seconds since the start, without paused time."""
    mark_age: float
    """Seconds since the mark that the short-term speed is computed from (18 to 24 s when running long)."""
    mark_left: int
    """Bits that were left at that mark."""
    want: int | None
    """Controller rate in KiB/s; only on the side that requests (sync target, verify initiator)."""
    reason: str = ""
    """Why it is not faster, as far as this node knows, for people."""


@dataclass(slots=True)
class VolumeSnapshot:
    volume: int
    minor: int
    device: str
    disk_path: str
    size_sectors: int
    cs: str
    role: str
    peer_role: str
    disk: str
    peer_disk: str
    susp: bool = False
    susp_nod: bool = False
    susp_fen: bool = False
    aftr_isp: bool = False
    peer_isp: bool = False
    user_isp: bool = False
    al_suspended: bool = False
    congested: str = "-"
    ns: int = 0
    nr: int = 0
    dw: int = 0
    dr: int = 0
    al: int = 0
    bm: int = 0
    lo: int = 0
    pe: int = 0
    ua: int = 0
    ap: int = 0
    ep: int = 1
    wo: str = "f"
    oos: int = 0
    """KiB out of sync: 4 per set bit."""
    uuids: list[str] = field(default_factory=list)
    """current, bitmap, history 0, history 1: 16 upper-case hex digits each; empty without a disk."""
    gi_flags: str = ""
    """The seven 0/1 digits of get-gi, colon-separated; "" without a disk."""
    progress: Progress | None = None
    open_count: int = 0
    waiting_for: str = ""
    """Why something waits right now, for people; "" when nothing does."""
    disk_error: str = ""
    """The error of the disk since it was attached, and what was done about it; "" if there was none."""


@dataclass(slots=True)
class ResourceSnapshot:
    name: str
    node: str
    peer: str
    cstate: str
    protocol: str
    """A, B or C; "" while there is no network configuration (StandAlone)."""
    volumes: list[VolumeSnapshot] = field(default_factory=list)
    peer_software: str = ""
    agreed_version: int = 0
    """Wire protocol version in force, 0 when not connected."""
    since: float = 0.0
    """Seconds in the present connection state."""
    waiting_for: str = ""
    unsent: int = 0
    """Bytes queued for the peer that the operating system has not taken yet."""
    unstable: int = 0
    """Writes that the peer has not said to be on stable storage."""
    unwritten: int = 0
    """Bytes received from the peer and not written yet; bounded by max-buffers."""
    last_error: str = ""
    """The reason of the last lost or refused connection, for people."""
    nbd_uris: list[str] = field(default_factory=list)
    frontend: str = "nbdkit"
    engine: str = ""
    """What the daemon's data path is: compiled, or pure Python and why."""
    pid: int = 0
    handlers: list[str] = field(default_factory=list)
    """Handlers that are running, with how long already, for people."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ResourceSnapshot:
        volumes = []
        for one in raw.get("volumes", []):
            progress = one.get("progress")
            volumes.append(
                VolumeSnapshot(**{**one, "progress": Progress(**progress) if progress else None})
            )
        return cls(**{**raw, "volumes": volumes})
