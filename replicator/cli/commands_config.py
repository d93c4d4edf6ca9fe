"""Commands that only the configuration answers: dump and the sh- family.

Rules: formats are drbdadm's, one line per volume; scripts of cluster managers read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from replicator.cli.context import ALL, Context

if TYPE_CHECKING:
    from replicator.config import NodeView, VolumeView


def dump(context: Context) -> int:
    names = context.names
    if not names or names == [ALL]:
        context.terminal.answer(context.config.dump())
    else:
        for target in context.targets():
            context.terminal.answer(context.config.dump(target.resource))
    context.show_warnings()
    return 0


def sh_nop(context: Context) -> int:
    """Nothing but a check that the configuration parses."""
    _ = context.config
    context.show_warnings()
    return 0


def sh_resources(context: Context) -> int:
    views = context.config.views(context.node)
    context.terminal.answer(" ".join(view.resource for view in views) + "\n")
    return 0


def _per_volume(context: Context, word: Callable[[NodeView, VolumeView], object]) -> int:
    for target in context.targets():
        for volume in target.volumes:
            context.terminal.answer(str(word(target.view, volume)))
    return 0


def sh_dev(context: Context) -> int:
    return _per_volume(context, lambda view, volume: volume.device)


def sh_minor(context: Context) -> int:
    return _per_volume(context, lambda view, volume: volume.minor)


def sh_ll_dev(context: Context) -> int:
    return _per_volume(context, lambda view, volume: volume.disk)


def sh_md_dev(context: Context) -> int:
    return _per_volume(context, lambda view, volume: metadata_path(volume) or volume.disk)


def sh_md_idx(context: Context) -> int:
    return _per_volume(context, lambda view, volume: metadata_index(volume))


def sh_ip(context: Context) -> int:
    return _per_volume(context, lambda view, volume: view.address.host)


def metadata_path(volume: VolumeView) -> str | None:
    """Where external metadata is; None for internal metadata."""
    return None if volume.meta_disk.kind == "internal" else volume.meta_disk.path


def metadata_index(volume: VolumeView) -> str:
    """internal, flexible, or the number of the slot."""
    meta = volume.meta_disk
    return str(meta.index) if meta.kind == "indexed" else meta.kind
