"""The payloads as values: one NamedTuple for each layout, and numbers with a special meaning.

Rules: fields are in wire order, save what only one form of a packet has, which comes last. No
behaviour here: `packets.py` reads and writes them.

Units: sectors are 512 bytes; `size` and `blksize` are bytes. `block_id` and `barrier` are the
sender's opaque handles: the 8 (4) bytes read as a big-endian number, which is a bijection, so that
echoing the number echoes the bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.commands import MAX_DATA

SYNCER_ID = (1 << 64) - 1
"""block_id of resync and verify traffic, as opposed to application requests."""
IN_SYNC = 0x1267
"""Verdict in the block_id of P_OV_RESULT: the blocks are equal."""
OUT_OF_SYNC_VERDICT = 0x1268


class Data(NamedTuple):
    """P_DATA, P_DATA_REPLY, P_RS_DATA_REPLY. `digest` is b"" without data-integrity-alg."""

    sector: int
    block_id: int
    seq_num: int
    dp_flags: int
    digest: bytes
    data: bytes


class Trim(NamedTuple):
    """P_TRIM, P_ZEROES."""

    sector: int
    block_id: int
    seq_num: int
    dp_flags: int
    size: int


class WriteSame(NamedTuple):
    """P_WSAME: one logical block to be repeated over `size` bytes."""

    sector: int
    block_id: int
    seq_num: int
    dp_flags: int
    size: int
    digest: bytes
    data: bytes


class BlockAck(NamedTuple):
    """Everything that answers on the meta socket about one range of blocks."""

    sector: int
    block_id: int
    blksize: int
    seq_num: int


class BlockRequest(NamedTuple):
    """Reads, resync and verify requests; `digest` only in P_OV_REPLY and P_CSUM_RS_REQUEST."""

    sector: int
    block_id: int
    blksize: int
    digest: bytes = b""


class Barrier(NamedTuple):
    barrier: int


class BarrierAck(NamedTuple):
    """`set_size` is the number of writes in the epoch, over all volumes."""

    barrier: int
    set_size: int


class ProtocolParams(NamedTuple):
    """P_PROTOCOL, P_PROTOCOL_UPDATE. `protocol` 1 to 3 is A to C; `compat` names after_sb codes."""

    protocol: int
    after_sb_0p: int = 0
    after_sb_1p: int = 0
    after_sb_2p: int = 0
    conn_flags: int = 0
    two_primaries: int = 0
    integrity_alg: str = ""


class SyncParam(NamedTuple):
    """P_SYNC_PARAM89. Rates in KiB/s, plan-ahead and delay in 0.1 s, fill in sectors."""

    resync_rate: int
    verify_alg: str = ""
    csums_alg: str = ""
    c_plan_ahead: int = 20
    c_delay_target: int = 10
    c_fill_target: int = 100
    c_max_rate: int = 102400


class Uuids(NamedTuple):
    """`flags`: 1 discard-my-data, 2 crashed primary, 4 disk really Inconsistent, 8 skip sync."""

    current: int
    bitmap: int
    history0: int
    history1: int
    dirty_bits: int = 0
    flags: int = 0


class Sizes(NamedTuple):
    """d_size, u_size, c_size in sectors (disk, asked for, exported; 0 = none), the rest in bytes.

    All from physical_block_size on is on the wire only if WSAME was agreed.
    `dds_flags`: 1 forced, 2 no resync of the grown part.
    """

    d_size: int
    u_size: int
    c_size: int
    max_bio_size: int = MAX_DATA
    queue_order_type: int = 0
    dds_flags: int = 0
    physical_block_size: int = 512
    logical_block_size: int = 512
    alignment_offset: int = 0
    io_min: int = 512
    io_opt: int = 0
    discard_enabled: int = 0
    discard_zeroes_data: int = 0
    write_same_capable: int = 0


class StateReport(NamedTuple):
    """P_STATE. `word` is taken apart by `states.StateWord`."""

    word: int


class StateRequest(NamedTuple):
    """P_STATE_CHG_REQ, P_CONN_ST_CHG_REQ, as the asking node sees it: new = old & ~mask | val."""

    mask: int
    val: int


class StateReply(NamedTuple):
    """Success is 1 or more; 0 and negative numbers are refusals."""

    retcode: int


class SyncUuid(NamedTuple):
    uuid: int


class BlockDesc(NamedTuple):
    """P_OUT_OF_SYNC, P_RS_DEALLOCATED."""

    sector: int
    size: int


class Features(NamedTuple):
    """P_CONNECTION_FEATURES. `replicator` is our extension version, 0 for a kernel peer."""

    protocol_min: int
    feature_flags: int
    protocol_max: int
    replicator: int = 0


class Raw(NamedTuple):
    """Bitmaps, authentication, our extensions: their own modules look inside."""

    payload: bytes


class Empty(NamedTuple):
    """No payload."""


Packet = (
    Data
    | Trim
    | WriteSame
    | BlockAck
    | BlockRequest
    | Barrier
    | BarrierAck
    | ProtocolParams
    | SyncParam
    | Uuids
    | Sizes
    | StateReport
    | StateRequest
    | StateReply
    | SyncUuid
    | BlockDesc
    | Features
    | Raw
    | Empty
)
