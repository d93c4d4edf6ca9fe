"""Commands on the metadata of volumes: create-md, wipe-md, dump-md, restore-md, apply-al, get-gi, show-gi.

Rules: the disks themselves are asked, with or without a daemon; what changes them is refused by their
lock while a daemon has them. Only get-gi and show-gi prefer the daemon's answer for an attached disk,
because it is the newest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replicator.cli.commands_config import metadata_path
from replicator.cli.context import ALL, Context, Target
from replicator.cli.daemon_link import look
from replicator.errors import UsageError
from replicator.metadata import gi
from replicator.metadata.layout import DEFAULT_AL_STRIPE_SIZE_4K, DEFAULT_AL_STRIPES, Placement
from replicator.runtime import metadata_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from replicator.config import VolumeView

    OnVolume = Callable[[Target, VolumeView], None]

KIB_PER_BLOCK = 4


def placement_of(volume: VolumeView) -> Placement:
    meta = volume.meta_disk
    return Placement(meta.kind, meta.index if meta.kind == "indexed" else 0)


def where(volume: VolumeView) -> tuple[str, Placement, str | None]:
    """The arguments that name a volume's metadata: data disk, placement, metadata disk."""
    return volume.disk, placement_of(volume), metadata_path(volume)


def _for_volumes(context: Context, action: OnVolume) -> int:
    return context.for_each(
        context.volume_targets(), lambda target: action(target, target.volumes[0])
    )


def create_md(context: Context) -> int:
    options, terminal = context.options, context.terminal
    stripe_blocks = _stripe_blocks(context)
    context.show_warnings()

    def create(target: Target, volume: VolumeView) -> None:
        metadata_files.create_md(
            *where(volume),
            force=options["force"],
            al_stripes=options["al_stripes"] or DEFAULT_AL_STRIPES,
            al_stripe_size_4k=stripe_blocks,
            peer_max_bio_size=options["peer_max_bio_size"] or 0,
            ignore_sanity_checks=options["ignore_sanity_checks"],
            ask=terminal.ask,
            say=terminal.say,
        )

    return _for_volumes(context, create)


def wipe_md(context: Context) -> int:
    force, terminal = bool(context.options["force"]), context.terminal

    def wipe(target: Target, volume: VolumeView) -> None:
        metadata_files.wipe_md(*where(volume), force=force, ask=terminal.ask, say=terminal.say)

    return _for_volumes(context, wipe)


def dump_md(context: Context) -> int:
    force = bool(context.options["force"])

    def dump(target: Target, volume: VolumeView) -> None:
        context.terminal.answer(metadata_files.dump_md(*where(volume), force=force))

    return _for_volumes(context, dump)


def restore_md(context: Context) -> int:
    """The only command that reads standard input; questions need --force then."""
    options, terminal = context.options, context.terminal
    _one_volume(context)
    text = _dump_text(context)

    def restore(target: Target, volume: VolumeView) -> None:
        metadata_files.restore_md(
            *where(volume),
            text=text,
            force=options["force"],
            ignore_sanity_checks=options["ignore_sanity_checks"],
            ask=terminal.ask,
            say=terminal.say,
        )

    return _for_volumes(context, restore)


def _one_volume(context: Context) -> None:
    """Raises UsageError unless exactly one volume was named."""
    for target in context.targets():
        if context.names == [ALL] or len(target.numbers) != 1:
            raise UsageError(
                f"restore-md works on one volume that is named; {target.resource} has "
                f"{', '.join(map(str, target.numbers))}",
                hint=f"Name it, e.g.: restore-md {target.label(target.numbers[0])} FILE",
            )


def _dump_text(context: Context) -> str:
    path = context.extra or "-"
    try:
        return context.world.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no text"
        raise UsageError(
            f"cannot read the dump {path}: {reason}", hint="Give the text that dump-md printed."
        ) from None


def apply_al(context: Context) -> int:
    def apply(target: Target, volume: VolumeView) -> None:
        metadata_files.apply_al(*where(volume), say=context.terminal.say)

    return _for_volumes(context, apply)


def get_gi(context: Context) -> int:
    def show(target: Target, volume: VolumeView) -> None:
        line = live_identifiers(context, target, volume.number)
        context.terminal.answer(line or metadata_files.get_gi(*where(volume)))

    return _for_volumes(context, show)


def show_gi(context: Context) -> int:
    def show(target: Target, volume: VolumeView) -> None:
        line = live_identifiers(context, target, volume.number)
        if not line:
            context.terminal.answer(metadata_files.show_gi(*where(volume)))
            return
        stored = metadata_files.read_metadata(*where(volume)).superblock
        context.terminal.answer(gi.show_gi(gi.set_gi(stored, line)))

    return _for_volumes(context, show)


def live_identifiers(context: Context, target: Target, number: int) -> str:
    """The get-gi line of an attached disk from its daemon, "" without one."""
    state = look(context, target.resource)
    if state.snapshot is None or state.stale:
        return ""
    for volume in state.snapshot.volumes:
        if volume.volume == number and volume.uuids and volume.gi_flags:
            return ":".join((*volume.uuids, volume.gi_flags))
    return ""


def _stripe_blocks(context: Context) -> int:
    """Raises UsageError for a stripe that is not whole blocks of 4 KiB."""
    kib = context.options["al_stripe_size_kB"]
    if kib is None:
        return DEFAULT_AL_STRIPE_SIZE_4K
    if kib % KIB_PER_BLOCK:
        raise UsageError(
            f"create-md: al-stripe-size-kB: expected a multiple of {KIB_PER_BLOCK}, found {kib}"
        )
    return int(kib) // KIB_PER_BLOCK
