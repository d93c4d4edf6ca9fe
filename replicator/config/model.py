"""The configuration as typed values: what the rest of the program reads.

Rules: plain data. Nothing here parses, reads files or knows defaults; the option classes are filled
from `option_table`, one field per option, in the option's own unit (see there, or
docs/configuration.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Where(NamedTuple):
    """A place in a configuration file; line and column count from 1."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Address(NamedTuple):
    """family: "ipv4", "ipv6", or "ssocks"/"sdp" (known, not usable); host: without brackets."""

    family: str
    host: str
    port: int

    @property
    def endpoint(self) -> str:
        """HOST:PORT, an IPv6 host in brackets."""
        host = f"[{self.host}]" if self.family == "ipv6" else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """As in drbd.conf: "ipv4 10.0.0.2:7789"."""
        return f"{self.family} {self.endpoint}"


@dataclass(frozen=True, slots=True)
class MetaDisk:
    """Where the metadata lives.

    kind: "internal" (at the end of the data disk; path ""), "flexible" (all of `path`) or "indexed"
    (slot `index`, 128 MiB each, of `path`). index is -1 unless indexed.
    """

    kind: str
    path: str = ""
    index: int = -1

    def __str__(self) -> str:
        if self.kind == "internal":
            return "internal"
        return f"{self.path} [{self.index}]" if self.kind == "indexed" else self.path


@dataclass(frozen=True, slots=True)
class NetOptions:
    """Section `net`. Times in 0.1 s, but connect_int and ping_int in s; buffer sizes in bytes."""

    protocol: str
    timeout: int
    connect_int: int
    ping_int: int
    ping_timeout: int
    ko_count: int
    socket_check_timeout: int
    max_buffers: int
    max_epoch_size: int
    unplug_watermark: int
    sndbuf_size: int
    rcvbuf_size: int
    tcp_cork: bool
    allow_two_primaries: bool
    cram_hmac_alg: str
    shared_secret: str
    after_sb_0pri: str
    after_sb_1pri: str
    after_sb_2pri: str
    always_asbp: bool
    rr_conflict: str
    data_integrity_alg: str
    verify_alg: str
    csums_alg: str
    csums_after_crash_only: bool
    use_rle: bool
    on_congestion: str
    congestion_fill: int
    congestion_extents: int


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Section `disk`. size and c_fill_target in sectors, rates in KiB/s, times in 0.1 s."""

    size: int
    on_io_error: str
    fencing: str
    disk_barrier: bool
    disk_flushes: bool
    disk_drain: bool
    md_flushes: bool
    al_extents: int
    al_updates: bool
    resync_rate: int
    resync_after: str
    c_plan_ahead: int
    c_delay_target: int
    c_fill_target: int
    c_max_rate: int
    c_min_rate: int
    disk_timeout: int
    discard_zeroes_if_aligned: bool
    rs_discard_granularity: int
    disable_write_same: bool
    read_balancing: str
    max_bio_bvecs: int
    use_bmbv: bool


@dataclass(frozen=True, slots=True)
class ResourceOptions:
    """Section `options`."""

    on_no_data_accessible: str
    cpu_mask: str


@dataclass(frozen=True, slots=True)
class StartupOptions:
    """Section `startup`. Times in seconds, 0 = without end."""

    wfc_timeout: int
    degr_wfc_timeout: int
    outdated_wfc_timeout: int
    wait_after_sb: bool
    stacked_timeouts: bool
    become_primary_on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReplicatorOptions:
    """Section `replicator`: what only this product has."""

    frontend: str
    attach: str
    listen: str
    tls_certificates: str
    """Directory of the NBD server's certificates; "" for no TLS."""
    tls_required: bool
    tls_verify_peer: bool
    disk_io: str
    threads: int
    epoch_per_completion: bool

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """(host, port) of the NBD server's TCP address; None when it listens on a unix socket."""
        if self.listen == "unix":
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """Section `global`."""

    usage_count: str
    minor_count: int
    dialog_refresh: int
    disable_ip_verification: bool
    udev_always_use_vnr: bool
    cmd_timeout_short: int
    cmd_timeout_medium: int
    cmd_timeout_long: int


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One volume as one node sees it."""

    number: int
    minor: int
    device: str
    """Path of the block device node, e.g. /dev/drbd0."""
    disk: str
    """Path of the backing block device or regular file."""
    meta_disk: MetaDisk
    options: DiskOptions
    implicit: bool
    """Written without a `volume` section."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One resource as one node sees it: own side, peer's side, every option with its value."""

    resource: str
    node: str
    peer: str
    """The peer's (first) host name; its address for a `floating` section."""
    peer_hosts: tuple[str, ...]
    address: Address
    peer_address: Address
    volumes: list[VolumeView]
    net: NetOptions
    options: ResourceOptions
    startup: StartupOptions
    handlers: dict[str, str]
    """Only those that are configured: name -> command."""
    replicator: ReplicatorOptions
    where: Where
    """Where the resource section begins."""
    config_file: str
