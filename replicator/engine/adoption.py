"""What a peer's administrator changes while the nodes are connected, and this node takes over, as a
kernel's DRBD does: the protocol, split-brain policies, and the names of digests.

Rules:
1. It holds until this daemon ends; each time the log says which line of the configuration it
   contradicts, or the next start would find the nodes at odds.
2. The digest of mirrored data is the sender's business: what is adopted is what the peer's packets
   carry from here on in the stream. A reconnection wants the same on both nodes.
What this file must not know: how options are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol import compat, digests

if TYPE_CHECKING:
    from protocol.packets import ProtocolParams, SyncParam
    from replicator.engine.resource import Resource


def adopt_protocol(resource: Resource, packet: ProtocolParams) -> None:
    """PROTOCOL_UPDATE."""
    net, link = resource.settings.net, resource.replication.link
    assert link is not None and resource.peer_writes is not None
    protocol = compat.PROTOCOL_NAMES[packet.protocol]
    policies = [
        compat.AFTER_SB_NAMES[compat.mirrored_policy(code)]
        for code in (packet.after_sb_0p, packet.after_sb_1p, packet.after_sb_2p)
    ]
    algorithm = packet.integrity_alg
    if algorithm and not digests.known(algorithm):
        resource.refuse_peer(
            f"the peer has set data-integrity-alg to {algorithm}, which is not known here; "
            f"known: {', '.join(digests.ALGORITHMS)}"
        )
        return
    names = ("protocol", "after_sb_0pri", "after_sb_1pri", "after_sb_2pri")
    for name, value in zip(names, (protocol, *policies), strict=True):
        _adopt(resource, name, value)
    resource.replication.use_protocol(protocol)
    resource.peer_writes.use_protocol(protocol)
    if algorithm != link.peer_integrity:
        _log(resource, f"data of the peer comes with data-integrity-alg {algorithm or 'none'}")
    if algorithm != net.data_integrity_alg:
        _log(resource, "data-integrity-alg differs now: these nodes will not connect again")
    if packet.two_primaries and not net.allow_two_primaries:
        _log(resource, "the peer has set allow-two-primaries, which has no effect here")
    link.expect_digests(algorithm)


def adopt_sync_param(resource: Resource, packet: SyncParam) -> None:
    """A later SYNC_PARAM89: the rates are the peer's own, the digests are for both."""
    for name, algorithm in (("verify_alg", packet.verify_alg), ("csums_alg", packet.csums_alg)):
        if algorithm and not digests.known(algorithm):
            _log(resource, f"the peer has set {_option(name)} to {algorithm}, not known here")
            algorithm = ""
        _adopt(resource, name, algorithm)


def _adopt(resource: Resource, name: str, value: str) -> None:
    net = resource.settings.net
    old = getattr(net, name)
    if old != value:
        setattr(net, name, value)
        _log(
            resource,
            f"the peer has changed {_option(name)} from {old or 'none'} to {value or 'none'}, also "
            "for this node, until it is started again: change its configuration, too",
        )


def _option(name: str) -> str:
    return name.replace("_", "-")


def _log(resource: Resource, message: str) -> None:
    resource.log.log("warning", message)
