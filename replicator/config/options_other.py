"""The options of the sections options, startup, handlers, replicator and global.

Rules: data only. The order is that of docs/configuration.md, which is generated from here.
"""

from __future__ import annotations

from replicator.config.option_rows import SECONDS, boolean, choice, number
from replicator.config.options import Effect, Kind, Option

OPTIONS = (
    choice(
        "options",
        "on-no-data-accessible",
        "io-error suspend-io",
        "io-error",
        "no disk with good data is reachable: fail I/O, or hold it until one is",
        syncer="on-no-data-accessible",
    ),
    Option(
        "options",
        "cpu-mask",
        Kind.TEXT,
        "",
        "processors for the kernel threads, in hexadecimal",
        Effect.NO,
        syncer="cpu-mask",
    ),
)

STARTUP = (
    number(
        "startup",
        "wfc-timeout",
        0,
        300000,
        0,
        "wait-connect gives up after this; 0 never",
        unit=SECONDS,
    ),
    number(
        "startup",
        "degr-wfc-timeout",
        0,
        300000,
        0,
        "the same, when this node was alone before the restart",
        unit=SECONDS,
    ),
    number(
        "startup",
        "outdated-wfc-timeout",
        0,
        300000,
        0,
        "the same, when the peer's disk was outdated",
        unit=SECONDS,
    ),
    boolean(
        "startup",
        "wait-after-sb",
        False,
        "wait-connect goes on waiting after a split brain",
    ),
    Option(
        "startup",
        "stacked-timeouts",
        Kind.FLAG,
        False,
        "use the wait times for stacked resources too",
        Effect.NO,
    ),
    Option(
        "startup",
        "become-primary-on",
        Kind.NAMES,
        (),
        "hosts (or both) that an init script makes Primary",
        Effect.NO,
    ),
)


def _handler(
    name: str, meaning: str, effect: Effect = Effect.YES, aliases: tuple[str, ...] = ()
) -> Option:
    return Option(
        "handlers", name, Kind.TEXT, "", meaning, effect, max_length=4096, aliases=aliases
    )


HANDLERS = (
    _handler(
        "fence-peer",
        "must fence the peer's disk; its exit status says how",
        aliases=("outdate-peer",),
    ),
    _handler("unfence-peer", "the peer is in sync again: lift the fence"),
    _handler("split-brain", "split brain that needs a person"),
    _handler("initial-split-brain", "any split brain, also one that a policy then solves"),
    _handler("pri-on-incon-degr", "Primary, alone, and the local data are inconsistent"),
    _handler("pri-lost-after-sb", "Primary whose data lost after a split brain"),
    _handler("pri-lost", "Primary that should become sync target"),
    _handler("local-io-error", "the local disk reported an error"),
    _handler("before-resync-target", "before a resync makes the local data inconsistent"),
    _handler("after-resync-target", "after the resync, the local data are consistent again"),
    _handler("before-resync-source", "before a resync in which this node is the source"),
    _handler("out-of-sync", "an online verify found differing blocks"),
)

REPLICATOR = (
    choice(
        "replicator", "frontend", "nbdkit native", "nbdkit", "which NBD server exports the volumes"
    ),
    choice(
        "replicator",
        "attach",
        "auto nbd-client nbdfuse none",
        "auto",
        "how a Primary gets its block device node",
    ),
    Option(
        "replicator",
        "listen",
        Kind.ENDPOINT,
        "unix",
        "where the NBD server listens: a unix socket in the run directory, or a TCP address",
    ),
    Option(
        "replicator",
        "tls-certificates",
        Kind.TEXT,
        "",
        "directory of ca-cert.pem, server-cert.pem, server-key.pem: NBD clients may use TLS",
    ),
    boolean("replicator", "tls-required", False, "serve TCP clients only by TLS"),
    boolean("replicator", "tls-verify-peer", False, "TLS clients have to show a certificate too"),
    choice(
        "replicator",
        "disk-io",
        "buffered direct",
        "buffered",
        "whether backing disks are used through the page cache or past it",
    ),
    number("replicator", "threads", 1, 256, 16, "requests that nbdkit handles at once"),
    boolean(
        "replicator",
        "epoch-per-completion",
        False,
        "close the epoch at every completed write, as the kernel's DRBD does",
    ),
)

GLOBAL = (
    choice(
        "global",
        "usage-count",
        "yes no ask",
        "ask",
        "take part in DRBD's usage count (replicator never reports anything)",
        Effect.MOOT,
    ),
    number(
        "global", "minor-count", 1, 1048575, 32, "sizing hint for the kernel module", Effect.MOOT
    ),
    number(
        "global",
        "dialog-refresh",
        0,
        600,
        1,
        "seconds between updates of the init script's countdown",
        Effect.MOOT,
    ),
    Option(
        "global",
        "disable-ip-verification",
        Kind.FLAG,
        False,
        "do not check that an address exists on this host (replicator never does beforehand)",
        Effect.MOOT,
    ),
    Option(
        "global",
        "udev-always-use-vnr",
        Kind.FLAG,
        False,
        "always put the volume number in udev's device links",
        Effect.MOOT,
    ),
    number(
        "global",
        "cmd-timeout-short",
        0,
        900,
        5,
        "time limit of short commands",
        Effect.NO,
        unit=SECONDS,
    ),
    number(
        "global", "cmd-timeout-medium", 0, 900, 121, "time limit of attach", Effect.NO, unit=SECONDS
    ),
    number(
        "global",
        "cmd-timeout-long",
        0,
        900,
        600,
        "time limit of long commands",
        Effect.NO,
        unit=SECONDS,
    ),
)
