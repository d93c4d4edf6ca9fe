"""What the engine is told of the configuration: SI units, plain values, one class per subject.

Rules: no parsing and no defaults of drbd.conf here beyond what a test needs; `runtime` fills these
from the configuration model. Times are seconds, sizes bytes, rates bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class NetSettings:
    protocol: str = "C"
    connect_interval: float = 10.0
    ping_interval: float = 10.0
    ping_timeout: float = 0.5
    timeout: float = 6.0
    ko_count: int = 7
    socket_check_timeout: float = 0.0
    """0: as ping_timeout."""
    sndbuf_size: int = 0
    """0: the engine's own default bound."""
    rcvbuf_size: int = 0
    max_buffers: int = 2048
    """4 KiB pages of peer data in flight on the receiving side."""
    max_epoch_size: int = 2048
    cram_hmac_alg: str = ""
    shared_secret: str = ""
    data_integrity_alg: str = ""
    verify_alg: str = ""
    csums_alg: str = ""
    on_congestion: str = "block"
    congestion_fill: int = 0
    """Bytes; 0: no limit."""
    congestion_extents: int = 1237
    use_rle: bool = True
    allow_two_primaries: bool = False
    always_asbp: bool = False
    after_sb_0pri: str = "disconnect"
    after_sb_1pri: str = "disconnect"
    after_sb_2pri: str = "disconnect"
    rr_conflict: str = "disconnect"


@dataclass(slots=True)
class DiskSettings:
    size: int = 0
    """`disk { size }` in bytes, 0 = none."""
    on_io_error: str = "detach"
    disk_timeout: float = 0.0
    """0: none."""
    fencing: str = "dont-care"
    al_extents: int = 1237
    al_updates: bool = True
    disk_flushes: bool = True
    disk_drain: bool = True
    disk_barrier: bool = False
    md_flushes: bool = True
    resync_rate: int = 250 * 1024
    c_plan_ahead: float = 2.0
    c_delay_target: float = 0.1
    c_fill_target: int = 0
    c_max_rate: int = 4 << 30
    """0: no limit."""
    c_min_rate: int = 4 << 20
    discard_zeroes_if_aligned: bool = True
    rs_discard_granularity: int = 0


@dataclass(slots=True)
class VolumeSettings:
    number: int
    minor: int
    device: str
    disk_path: str
    disk: DiskSettings = field(default_factory=DiskSettings)


@dataclass(slots=True)
class ResourceSettings:
    name: str
    node: str
    peer: str
    volumes: list[VolumeSettings]
    net: NetSettings = field(default_factory=NetSettings)
    on_no_data_accessible: str = "io-error"
    epoch_per_completion: bool = False
    """`replicator { epoch-per-completion yes; }`: close the epoch at every completion, as DRBD does."""
    frontend: str = "nbdkit"
    dials_first: bool = True
    """One of two replicators dials at once, the other gives it a moment (see engine/establish)."""
