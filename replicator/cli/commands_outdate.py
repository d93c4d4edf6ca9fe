"""The command outdate: through the daemon if it has the disk, else in the metadata.

Rules: exit codes are drbdadm's, because fencing programs (drbd-peer-outdater, outdate-peer.sh) act on
them: 5 for data that cannot be Outdated, 17 on a Primary.
"""

from __future__ import annotations

from replicator.cli.commands_metadata import where
from replicator.cli.context import Context, Target
from replicator.cli.daemon_link import CHANGE_TIMEOUT, ask, is_up, snapshot
from replicator.errors import WorseThanOutdated
from replicator.runtime import metadata_files


def outdate(context: Context) -> int:
    return context.for_each(context.volume_targets(), lambda target: _outdate(context, target))


def _outdate(context: Context, target: Target) -> None:
    if _has_disk(context, target):
        ask(context, target.resource, "outdate", CHANGE_TIMEOUT, volume=target.volume)
    elif not metadata_files.outdate(*where(target.volumes[0])):
        label = target.label(target.volumes[0].number)
        raise WorseThanOutdated(f"{label}: the data are Inconsistent, they cannot be Outdated")


def _has_disk(context: Context, target: Target) -> bool:
    if not is_up(context, target.view):
        return False
    found = snapshot(context, target.resource)
    return any(v.disk != "Diskless" for v in found.volumes if v.volume == target.volume)
