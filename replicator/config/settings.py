"""The configuration as the engine wants it: SI units and plain values.

Rules: unit conversion only. Options without effect (the loader has warned of them) are left at
what the engine does. drbd.conf counts some times in 0.1 s, rates in KiB/s and some sizes in
sectors of 512 bytes; the engine knows seconds and bytes.
"""

from __future__ import annotations

from replicator.config.check import SMALLEST_AL
from replicator.config.model import DiskOptions, NetOptions, NodeView, VolumeView
from replicator.engine.settings import (
    DiskSettings,
    NetSettings,
    ResourceSettings,
    VolumeSettings,
)

_KIB = 1024
_SECTOR = 512


def to_settings(view: NodeView) -> ResourceSettings:
    """What the engine of `view.node` is told about this resource."""
    return ResourceSettings(
        name=view.resource,
        node=view.node,
        peer=view.peer,
        volumes=[_volume(volume) for volume in view.volumes],
        net=_net(view.net, view),
        on_no_data_accessible=view.options.on_no_data_accessible,
        epoch_per_completion=view.replicator.epoch_per_completion,
        frontend=view.replicator.frontend,
    )


def _volume(volume: VolumeView) -> VolumeSettings:
    return VolumeSettings(
        number=volume.number,
        minor=volume.minor,
        device=volume.device,
        disk_path=volume.disk,
        disk=_disk(volume.options),
    )


def _net(net: NetOptions, view: NodeView) -> NetSettings:
    return NetSettings(
        protocol=net.protocol,
        connect_interval=float(net.connect_int),
        ping_interval=float(net.ping_int),
        ping_timeout=net.ping_timeout / 10,
        timeout=net.timeout / 10,
        ko_count=net.ko_count,
        socket_check_timeout=net.socket_check_timeout / 10,
        sndbuf_size=net.sndbuf_size,
        rcvbuf_size=net.rcvbuf_size,
        max_buffers=net.max_buffers,
        max_epoch_size=net.max_epoch_size,
        cram_hmac_alg=net.cram_hmac_alg,
        shared_secret=net.shared_secret,
        data_integrity_alg=net.data_integrity_alg,
        verify_alg=net.verify_alg,
        csums_alg=net.csums_alg,
        on_congestion=net.on_congestion,
        congestion_fill=net.congestion_fill * _SECTOR,
        congestion_extents=net.congestion_extents,
        use_rle=net.use_rle,
        always_asbp=net.always_asbp,
        after_sb_0pri=_named_victim(net.after_sb_0pri, view),
        after_sb_1pri=net.after_sb_1pri,
        after_sb_2pri=net.after_sb_2pri,
        rr_conflict=net.rr_conflict,
    )


def _named_victim(policy: str, view: NodeView) -> str:
    """discard-node-NAME says the same on both nodes; the engine must know which side that is."""
    name = policy.removeprefix("discard-node-")
    if name == policy:
        return policy
    return "discard-remote" if name in view.peer_hosts else "discard-local"


def _disk(disk: DiskOptions) -> DiskSettings:
    return DiskSettings(
        size=disk.size * _SECTOR,
        on_io_error=disk.on_io_error,
        fencing=disk.fencing,
        disk_timeout=disk.disk_timeout / 10,
        al_extents=max(disk.al_extents, SMALLEST_AL),
        al_updates=disk.al_updates,
        disk_flushes=disk.disk_flushes,
        disk_drain=disk.disk_drain,
        disk_barrier=disk.disk_barrier,
        md_flushes=disk.md_flushes,
        resync_rate=disk.resync_rate * _KIB,
        c_plan_ahead=disk.c_plan_ahead / 10,
        c_delay_target=disk.c_delay_target / 10,
        c_fill_target=disk.c_fill_target * _SECTOR,
        c_max_rate=disk.c_max_rate * _KIB,
        c_min_rate=disk.c_min_rate * _KIB,
        discard_zeroes_if_aligned=disk.discard_zeroes_if_aligned,
        rs_discard_granularity=disk.rs_discard_granularity,
    )
