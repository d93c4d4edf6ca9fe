"""All commands of the command line as data: name, arguments, options, help, and where the handler is.

Rules: no code runs here and nothing heavy is imported; handlers are named and imported only for the
command that is called, because a cluster manager starts this program several times per check.
An option of a name takes a value in all commands or in none: the parser relies on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def seconds(text: str) -> float:
    """A time span of zero or more. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A whole number of one or more. Raises ValueError."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def sectors(text: str) -> int:
    """A position or size: sectors of 512 bytes, or bytes with a unit (4K, 10G). Raises ValueError."""
    unit = UNITS.get(text[-1:].upper())
    value = int(text[:-1]) * unit // 512 if unit else int(text.removesuffix("s"))
    if value < 0:
        raise ValueError(text)
    return value


class Takes(Enum):
    """What a command takes after its name."""

    NOTHING = "nothing"
    OPTIONAL = "resources, all if none is named"
    RESOURCES = "resources"
    VOLUMES = "resources or volumes"


@dataclass(frozen=True, slots=True)
class Option:
    """A flag if metavar is empty, else an option whose value `kind` makes (ValueError if it cannot)."""

    names: tuple[str, ...]
    help: str
    metavar: str = ""
    kind: Callable[[str], object] = str

    @property
    def dest(self) -> str:
        longest = max(self.names, key=len)
        return longest.lstrip("-").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Command:
    """handler: "module:function" below replicator.cli; extra: metavar of one more argument."""

    name: str
    takes: Takes
    handler: str
    summary: str
    details: str = ""
    options: tuple[Option, ...] = ()
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    commands: tuple[Command, ...]


GLOBAL_OPTIONS = (
    Option(("-c", "--config-file"), "configuration file", "FILE"),
    Option(("--node",), "act as this node of the configuration", "NAME"),
    Option(("--run-dir",), "directory of sockets, locks and status files", "DIR"),
    Option(("--debug",), "show internal details of unexpected errors"),
)

FORCE = "-f", "--force"
YES = Option(FORCE, "answer all questions with yes")
DISCARD = Option(("--discard-my-data",), "after a split brain: give up this node's changes")
TIMEOUTS = (
    Option(("-t", "--wfc-timeout"), "seconds to wait, 0 without end", "SECONDS", seconds),
    Option(("--degr-wfc-timeout",), "the same if the cluster was degraded", "SECONDS", seconds),
    Option(("--outdated-wfc-timeout",), "the same if the peer was outdated", "SECONDS", seconds),
    Option(("--timeout",), "seconds to wait in any case, 0 without end", "SECONDS", seconds),
    Option(("--wait-after-sb",), "go on waiting although the resource is StandAlone"),
)
STRIPES = (
    Option(("--al-stripes",), "stripes of the activity log", "COUNT", count),
    Option(("--al-stripe-size-kB",), "size of a stripe in KiB", "KIB", count),
)

NO_SANITY = Option(("--ignore-sanity-checks",), "also over signatures of something of unknown size")

PRIMARY_DETAILS = """\
Refused with exit code 17 unless this node has access to UpToDate data, with 11 while the peer is
Primary. --force makes Inconsistent or Outdated data of this node UpToDate by decree: right for
the first start of a new pair, dangerous at any other time. If an Inconsistent copy was declared good,
whatever other copy turns up later is a split brain, which a person has to solve."""

BENCH_DETAILS = """\
Safe while applications run; they are slowed a little. Reads the backing disk, flushes the metadata's
and pings the peer, one step after the other. --write also writes 4 KiB blocks of the first 4 MiB with
the content they have, locked meanwhile, so that no data change: on this disk alone, on both, and on
both with a flush."""

GROUPS = (
    Group(
        "Bringing resources up and down",
        (
            Command(
                "up", Takes.RESOURCES, "commands_state:up",
                "start the resource: attach its disks, connect to the peer",
                "Exit code 0 also if it is up already; disks that were detached and a connection "
                "that was given up are then tried again.",
            ),
            Command(
                "down", Takes.RESOURCES, "commands_state:down",
                "stop the resource: demote, disconnect, detach",
                "Exit code 0 also if it is not up, 11 while a device is mounted or open. Cleans "
                "up what a killed daemon left behind.",
                (Option(FORCE, "stop the daemon even if it does not answer"),),
            ),
            Command("attach", Takes.VOLUMES, "commands_state:attach", "attach the local disk"),
            Command(
                "detach", Takes.VOLUMES, "commands_state:detach", "detach the local disk",
                options=(Option(FORCE, "do not wait for requests on the disk"),),
            ),
            Command(
                "connect", Takes.RESOURCES, "commands_state:connect", "connect to the peer",
                options=(DISCARD,),
            ),
            Command(
                "disconnect", Takes.RESOURCES, "commands_state:disconnect",
                "give up the connection and stay StandAlone",
                options=(Option(FORCE, "disconnect even if the peer does not agree"),),
            ),
        ),
    ),
    Group(
        "Roles",
        (
            Command(
                "primary", Takes.RESOURCES, "commands_state:primary",
                "make this node Primary and attach the block device",
                PRIMARY_DETAILS,
                (
                    Option(FORCE, "declare the data of this node UpToDate"),
                    Option(("-o", "--overwrite-data-of-peer"), "the same, as DRBD 8.3 spells it"),
                ),
            ),
            Command(
                "secondary", Takes.RESOURCES, "commands_state:secondary",
                "detach the block device and make this node Secondary",
                "Refused with exit code 11 while the device is mounted, or still open after 2 seconds.",
            ),
            Command(
                "suspend-io", Takes.RESOURCES, "commands_state:suspend_io",
                "freeze the applications' I/O: requests wait until resume-io",
            ),
            Command(
                "resume-io", Takes.RESOURCES, "commands_state:resume_io",
                "let I/O go on, whatever it is suspended for",
                "Also after a fence-peer handler that failed (be sure that the peer is down), and "
                "where no good data is left (requests then fail).",
            ),
        ),
    ),
    Group(
        "Synchronisation",
        (
            Command(
                "invalidate", Takes.VOLUMES, "commands_state:invalidate",
                "declare the local data bad: all of it is copied from the peer",
            ),
            Command(
                "invalidate-remote", Takes.VOLUMES, "commands_state:invalidate_remote",
                "declare the peer's data bad: all of it is copied to the peer",
            ),
            Command(
                "new-current-uuid", Takes.VOLUMES, "commands_state:new_current_uuid",
                "begin a new data generation",
                "With --clear-bitmap, on one node, while both disks are fresh from create-md and "
                "Connected: they are declared equal and the first synchronisation is skipped. Right "
                "if both hold the same, or if nothing on them is read before it is written. Else it "
                "needs a resource that is StandAlone.",
                (Option(("--clear-bitmap",), "count the peer's copy as equal to this one"),),
            ),
            Command(
                "verify", Takes.VOLUMES, "commands_state:verify",
                "compare both copies while they are in use",
                "Both nodes need the same verify-alg, and UpToDate disks. What differs is logged, "
                "marked on both nodes, and copied after the next disconnect and connect. The "
                "command returns when the comparison has begun; replicator status shows how far it "
                "is. Without --start it goes on where the last one was cut off. A unit may follow "
                "the numbers: s (sectors, the default), K, M, G or T (bytes).",
                (
                    Option(("-s", "--start"), "first sector", "SECTOR", sectors),
                    Option(("-S", "--stop"), "sector before which it ends", "SECTOR", sectors),
                ),
            ),
            Command(
                "outdate", Takes.VOLUMES, "commands_outdate:outdate",
                "mark the local data as old, so that this node cannot take over",
                "What the fence-peer handler of the other node wants to be called. Exit code 0 also "
                "if they are Outdated already, 5 if they are Inconsistent or there is no disk, 17 if "
                "this node is Primary, 11 while it is connected. Works without a daemon, too.",
            ),
            Command("pause-sync", Takes.VOLUMES, "commands_state:pause_sync", "pause the resync"),
            Command(
                "resume-sync", Takes.VOLUMES, "commands_state:resume_sync",
                "resume the resync that this node paused",
            ),
            Command(
                "wait-connect", Takes.RESOURCES, "commands_wait:wait_connect",
                "wait until the peer is connected",
                "Exit code 5 when the time is over. Times not given are those of the section "
                "`startup` of the configuration.",
                TIMEOUTS,
            ),
            Command(
                "wait-sync", Takes.RESOURCES, "commands_wait:wait_sync",
                "wait until no resync is running or needed",
                "Shows a bar on a terminal. Exit code 5 when the time is over.",
                TIMEOUTS,
            ),
        ),
    ),
    Group(
        "Looking",
        (
            Command(
                "status", Takes.OPTIONAL, "commands_query:status", "show all there is to know",
                options=(
                    Option(("--json",), "as JSON (docs/status.md describes it)"),
                    Option(("-w", "--watch"), "again every second until interrupted"),
                    Option(("--proc",), "as the text of /proc/drbd"),
                ),
            ),
            Command("role", Takes.VOLUMES, "commands_query:role", "own role/peer's role"),
            Command("cstate", Takes.VOLUMES, "commands_query:cstate", "connection state"),
            Command("dstate", Takes.VOLUMES, "commands_query:dstate", "own disk/peer's disk"),
            Command("nbd-uri", Takes.VOLUMES, "commands_query:nbd_uri", "NBD URI of each volume"),
            Command(
                "bench", Takes.VOLUMES, "commands_bench:bench",
                "measure disk, link and mirrored writes of a pair in use",
                BENCH_DETAILS,
                (
                    Option(("--write",), "also measure writes, on a Primary"),
                    Option(("--seconds",), "of each measurement, at most 20; 1", "SECONDS", seconds),
                    Option(("--json",), "as JSON (docs/status.md describes it)"),
                ),
            ),
            Command(
                "dump", Takes.OPTIONAL, "commands_config:dump",
                "print the configuration as it was understood",
            ),
        ),
    ),
    Group(
        "Metadata",
        (
            Command(
                "create-md", Takes.VOLUMES, "commands_metadata:create_md",
                "write fresh metadata",
                "Exit code 40 if that would destroy data that was found, 1 if a question was "
                "answered with no.",
                (
                    YES,
                    *STRIPES,
                    Option(("--peer-max-bio-size",), "largest request the peer takes", "BYTES", count),
                    NO_SANITY,
                ),
            ),
            Command(
                "wipe-md", Takes.VOLUMES, "commands_metadata:wipe_md", "remove the metadata",
                options=(YES,),
            ),
            Command(
                "dump-md", Takes.VOLUMES, "commands_metadata:dump_md", "print the metadata as text",
                options=(Option(FORCE, "dump it even if it needs apply-al"),),
            ),
            Command(
                "restore-md", Takes.VOLUMES, "commands_metadata:restore_md",
                "write the metadata that dump-md printed",
                "FILE is the text of dump-md; standard input if none is named.",
                (YES, NO_SANITY),
                extra="FILE",
            ),
            Command(
                "apply-al", Takes.VOLUMES, "commands_metadata:apply_al",
                "mark what the activity log names as out of sync",
            ),
            Command(
                "get-gi", Takes.VOLUMES, "commands_metadata:get_gi",
                "generation identifiers on one line",
            ),
            Command(
                "show-gi", Takes.VOLUMES, "commands_metadata:show_gi",
                "generation identifiers with a legend",
            ),
        ),
    ),
    Group(
        "For scripts (answers from the configuration alone)",
        (
            Command("sh-nop", Takes.NOTHING, "commands_config:sh_nop", "check the configuration"),
            Command(
                "sh-resources", Takes.NOTHING, "commands_config:sh_resources",
                "names of all resources of this node",
            ),
            Command("sh-dev", Takes.VOLUMES, "commands_config:sh_dev", "device node"),
            Command("sh-minor", Takes.VOLUMES, "commands_config:sh_minor", "minor number"),
            Command("sh-ll-dev", Takes.VOLUMES, "commands_config:sh_ll_dev", "backing disk"),
            Command("sh-md-dev", Takes.VOLUMES, "commands_config:sh_md_dev", "metadata disk"),
            Command(
                "sh-md-idx", Takes.VOLUMES, "commands_config:sh_md_idx",
                "internal, flexible or the metadata index",
            ),
            Command("sh-ip", Takes.VOLUMES, "commands_config:sh_ip", "own address"),
        ),
    ),
)  # fmt: skip

COMMANDS = {command.name: command for group in GROUPS for command in group.commands}
