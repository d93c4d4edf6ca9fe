"""What can happen to a pair while its Primary is written to, and how each of it ends.

A fault is a generator: up to its `yield` it happens, after that it is over. So one can last for a
moment, and several can overlap. None of them takes the Primary's data away: what kills the Primary
or both needs a round of its own.

Groups: of one group at most one fault is active, because two would be in each other's way (a frozen
daemon answers no command).
Rules: a command that the daemon refuses for its state is no error, one that it does not answer is.
Must not know: what is written, or what must be found afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from replicator.errors import DaemonError, ReplicatorError
from replicator.runtime import control
from tests.integration import processes
from tests.integration.pair import RESOURCE, Node, PairError
from tests.integration.torture_disks import PlainDisk
from tests.tools.faulty_network import KINDS, FaultyNetwork

COMMAND_SECONDS = 60.0
UP_SECONDS = 40.0
PEER_LOST = "the connection was lost before the peer answered"


@dataclass(slots=True)
class Stage:
    """Where faults happen: the nodes by their role now, what is between them, their disks."""

    primary: Node
    peer: Node
    network: FaultyNetwork
    disks: dict[str, PlainDisk]
    rng: random.Random


Fault = Callable[[Stage], Iterator[None]]


def ask(node: Node, cmd: str, **args: object) -> bool:
    """Give a command; whether it was done: among faults it may be impossible now. Raises DaemonError
    if the daemon does not answer."""
    try:
        control.call(str(node.run_dir), RESOURCE, cmd, args, COMMAND_SECONDS)
    except DaemonError as error:
        if PEER_LOST not in error.message:
            raise
        return False
    except ReplicatorError:
        return False
    return True


def connect(node: Node, *, discard_my_data: bool = False) -> None:
    """Let the node look for its peer, unless it does so already."""
    found: dict[str, Any] = control.call(str(node.run_dir), RESOURCE, "status")
    if found["cstate"] == "StandAlone":
        ask(node, "connect", discard_my_data=discard_my_data)


def up(node: Node) -> None:
    """Start the node's daemon, as an administrator does."""
    node.cmd("up", RESOURCE, timeout=UP_SECONDS)


# ---- the peer's process


def peer_frozen(stage: Stage) -> Iterator[None]:
    stage.peer.freeze()
    yield
    stage.peer.thaw()


def peer_killed(stage: Stage) -> Iterator[None]:
    stage.peer.kill9()
    yield
    up(stage.peer)


def peer_down(stage: Stage) -> Iterator[None]:
    ask(stage.peer, "down", force=False)
    if not processes.wait_until(lambda: not stage.peer.running(), COMMAND_SECONDS):
        raise PairError(f"{stage.peer.name} does not end after `down`")
    yield
    up(stage.peer)


def peer_detached(stage: Stage) -> Iterator[None]:
    ask(stage.peer, "detach", volume=0, force=stage.rng.random() < 0.5)
    yield
    ask(stage.peer, "attach", volume=0)


def peer_invalidated(stage: Stage) -> Iterator[None]:
    ask(stage.peer, "invalidate", volume=0)
    yield


def peer_disk_fails(stage: Stage) -> Iterator[None]:
    yield from _disk_fails(stage, stage.peer)


# ---- the Primary


def primary_frozen(stage: Stage) -> Iterator[None]:
    stage.primary.freeze()
    yield
    stage.primary.thaw()


def primary_disconnected(stage: Stage) -> Iterator[None]:
    ask(stage.primary, "disconnect", force=stage.rng.random() < 0.3)
    yield
    connect(stage.primary)


def sync_paused(stage: Stage) -> Iterator[None]:
    ask(stage.primary, "pause-sync", volume=0)
    yield
    ask(stage.primary, "resume-sync", volume=0)


# ---- the Primary's disk, which needs a peer that stays


def primary_detached(stage: Stage) -> Iterator[None]:
    ask(stage.primary, "detach", volume=0, force=False)
    yield
    ask(stage.primary, "attach", volume=0)


def primary_disk_fails(stage: Stage) -> Iterator[None]:
    yield from _disk_fails(stage, stage.primary)


def _disk_fails(stage: Stage, node: Node) -> Iterator[None]:
    disk = stage.disks[node.name]
    disk.fail()
    yield
    # The disk is repaired when the daemon no longer has it: as with a real one, it is not told
    # that its disk works again while it believes that it always did.
    ask(node, "detach", volume=0, force=True)
    disk.repair()
    ask(node, "attach", volume=0)


# ---- the network


def network_cut(stage: Stage) -> Iterator[None]:
    kinds = stage.rng.choice([KINDS, KINDS[:1], KINDS[1:]])
    stage.network.cut(kinds, reset=stage.rng.random() < 0.5)
    yield


def network_cut_in_a_packet(stage: Stage) -> Iterator[None]:
    kind = stage.rng.choice(KINDS)
    most = 200_000 if kind == "data" else 2_000
    towards = stage.rng.choice((stage.primary, stage.peer)).name
    stage.network.cut_after(kind, towards, stage.rng.randrange(1, most))
    yield
    # Later faults may need a peer that stays.
    stage.network.cut_no_more()


def network_stalled(stage: Stage) -> Iterator[None]:
    which = stage.rng.choice(KINDS), stage.rng.choice((stage.primary, stage.peer)).name
    stage.network.stall(*which)
    yield
    stage.network.unstall(*which)


def network_silent(stage: Stage) -> Iterator[None]:
    stage.network.silence(True)
    yield
    stage.network.silence(False)


def network_slow(stage: Stage) -> Iterator[None]:
    stage.network.delay(stage.rng.uniform(0.001, 0.05))
    yield
    stage.network.delay(0)


GROUPS: dict[str, tuple[Fault, ...]] = {
    "peer": (peer_frozen, peer_killed, peer_down, peer_detached, peer_invalidated, peer_disk_fails),
    "primary": (primary_frozen, primary_disconnected, sync_paused),
    "network": (
        *(network_cut, network_cut_in_a_packet, network_stalled, network_silent, network_slow),
    ),
}
ALONE: tuple[Fault, ...] = (primary_detached, primary_disk_fails)
"""Not together with others: while the Primary has no disk of its own its data are the peer's."""
