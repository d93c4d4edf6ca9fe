"""The short answers about one range of a volume: written, equal, unreadable and the like.

They travel on the socket of the acknowledgements and are numbered together with the volume's mirrored
writes. (The acknowledgements of those themselves are in `peer_writes`.)
What this file must not know: what an answer means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.packets import block_ack

if TYPE_CHECKING:
    from replicator.engine.link import Link
    from replicator.engine.volume import Volume


def send_answer(
    volume: Volume, link: Link, command: int, sector: int, block_id: int, size: int
) -> None:
    """size: bytes. block_id: of the request, SYNCER_ID, or the verdict of a comparison."""
    volume.sequence = (volume.sequence + 1) & 0xFFFFFFFF
    link.send_meta(block_ack(volume.number, command, sector, block_id, size, volume.sequence))
