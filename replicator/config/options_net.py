"""The options of section `net`.

Rules: data only. The order is that of docs/configuration.md, which is generated from here.
"""

from __future__ import annotations

from replicator.config.option_rows import (
    BYTES,
    CRAM_ALGORITHMS,
    PAGES,
    SECONDS,
    SECTORS,
    TENTHS,
    boolean,
    choice,
    digest,
    number,
)
from replicator.config.options import Effect, Kind, Option

_AFTER_SB_1PRI = "disconnect consensus discard-secondary call-pri-lost-after-sb violently-as0p"

NET = (
    choice(
        "net",
        "protocol",
        "A B C",
        "C",
        "when a write completes: A sent, B received by the peer, C on the peer's disk",
        any_case=True,
    ),
    number(
        "net", "timeout", 1, 600, 60, "the peer must answer a request within this time", unit=TENTHS
    ),
    number("net", "connect-int", 1, 120, 10, "time between two attempts to connect", unit=SECONDS),
    number(
        "net", "ping-int", 1, 120, 10, "idle time after which a keep-alive is sent", unit=SECONDS
    ),
    number(
        "net", "ping-timeout", 1, 300, 5, "time the peer has to answer a keep-alive", unit=TENTHS
    ),
    number(
        "net",
        "ko-count",
        0,
        200,
        7,
        "give the connection up when one write stays unanswered this many timeouts; 0 never",
    ),
    number(
        "net",
        "socket-check-timeout",
        0,
        300,
        0,
        "time a new connection has to prove itself; 0 means ping-timeout",
        unit=TENTHS,
    ),
    number(
        "net",
        "max-buffers",
        32,
        131072,
        2048,
        "peer data held in memory on the receiving side before reading pauses",
        unit=PAGES,
    ),
    number("net", "max-epoch-size", 1, 20000, 2048, "most writes between two barriers"),
    number(
        "net",
        "unplug-watermark",
        1,
        131072,
        128,
        "hint to old kernels when to start queued disk I/O",
        Effect.NO,
    ),
    number(
        "net",
        "sndbuf-size",
        0,
        10 << 20,
        0,
        "TCP send buffer; 0 lets the kernel choose",
        unit=BYTES,
    ),
    number(
        "net",
        "rcvbuf-size",
        0,
        10 << 20,
        0,
        "TCP receive buffer; 0 lets the kernel choose",
        unit=BYTES,
    ),
    boolean("net", "tcp-cork", True, "use the TCP_CORK hint of Linux", Effect.NO, negatable=True),
    boolean(
        "net",
        "allow-two-primaries",
        False,
        "both nodes may be Primary at once (cluster file systems only; needs protocol C)",
        effect=Effect.NO,
    ),
    choice(
        "net",
        "cram-hmac-alg",
        " ".join(CRAM_ALGORITHMS),
        "",
        "authenticate the peer by challenge and response with this hash; unset: no authentication",
    ),
    Option(
        "net",
        "shared-secret",
        Kind.TEXT,
        "",
        "secret that both nodes prove to know; only with cram-hmac-alg",
        max_length=64,
    ),
    choice(
        "net",
        "after-sb-0pri",
        "disconnect discard-younger-primary discard-older-primary discard-zero-changes "
        "discard-least-changes discard-local discard-remote",
        "disconnect",
        "split brain found while no node is Primary: whose changes are dropped",
        prefixes=("discard-node-",),
    ),
    choice(
        "net",
        "after-sb-1pri",
        _AFTER_SB_1PRI,
        "disconnect",
        "split brain found while one node is Primary",
    ),
    choice(
        "net",
        "after-sb-2pri",
        "disconnect call-pri-lost-after-sb violently-as0p",
        "disconnect",
        "split brain found while both nodes are Primary",
    ),
    boolean(
        "net",
        "always-asbp",
        False,
        "apply the after-sb policies also when the generations hint at a third node",
    ),
    choice(
        "net",
        "rr-conflict",
        "disconnect call-pri-lost violently",
        "disconnect",
        "the resync decision would overwrite the data of a Primary",
    ),
    digest("net", "data-integrity-alg", "checksum every replicated write on its way to the peer"),
    digest(
        "net",
        "verify-alg",
        "digest for online verify; verify is refused without",
        syncer="verify-alg",
    ),
    digest(
        "net",
        "csums-alg",
        "resync compares digests first and sends only blocks that differ",
        syncer="csums-alg",
    ),
    boolean(
        "net",
        "csums-after-crash-only",
        False,
        "use csums-alg only for the resync after a Primary's crash",
        Effect.NO,
    ),
    boolean(
        "net", "use-rle", True, "compress the bitmap exchange by run lengths", syncer="use-rle"
    ),
    choice(
        "net",
        "on-congestion",
        "block pull-ahead disconnect",
        "block",
        "the peer cannot keep up: wait, stop replicating for a while, or disconnect (only protocol A)",
    ),
    number(
        "net",
        "congestion-fill",
        0,
        20971520,
        0,
        "data in flight that counts as congestion; 0 switches the check off",
        unit=SECTORS,
    ),
    number(
        "net",
        "congestion-extents",
        67,
        65534,
        1237,
        "active extents that count as congestion",
    ),
)
