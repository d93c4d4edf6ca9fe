"""The field's state names and numbers, and the 32-bit state word that carries them between nodes.

Rules: numbers are those of DRBD 8.4 and never change; names are what every tool prints. What the
states mean and which may follow which is the engine's business (`replicator.engine.states`).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypedDict


class Role(IntEnum):
    Unknown = 0
    Primary = 1
    Secondary = 2


class Disk(IntEnum):
    Diskless = 0
    Attaching = 1
    Failed = 2
    Negotiating = 3
    Inconsistent = 4
    Outdated = 5
    DUnknown = 6
    Consistent = 7
    UpToDate = 8


class Conn(IntEnum):
    StandAlone = 0
    Disconnecting = 1
    Unconnected = 2
    Timeout = 3
    BrokenPipe = 4
    NetworkFailure = 5
    ProtocolError = 6
    TearDown = 7
    WFConnection = 8
    WFReportParams = 9
    Connected = 10
    StartingSyncS = 11
    StartingSyncT = 12
    WFBitMapS = 13
    WFBitMapT = 14
    WFSyncUUID = 15
    SyncSource = 16
    SyncTarget = 17
    VerifyS = 18
    VerifyT = 19
    PausedSyncS = 20
    PausedSyncT = 21
    Ahead = 22
    Behind = 23


ROLE_MASK = 0x3
PEER_SHIFT = 2
CONN_SHIFT, CONN_MASK = 4, 0x1F
DISK_SHIFT, DISK_MASK = 9, 0xF
PDSK_SHIFT = 13
SUSP = 1 << 17
AFTR_ISP = 1 << 18
PEER_ISP = 1 << 19
USER_ISP = 1 << 20
SUSP_NOD = 1 << 21
SUSP_FEN = 1 << 22
KNOWN_BITS = (1 << 23) - 1


class StateFields(TypedDict, total=False):
    """Fields of a StateWord by name, as many as are meant."""

    role: Role
    peer: Role
    conn: Conn
    disk: Disk
    pdsk: Disk
    susp: bool
    aftr_isp: bool
    peer_isp: bool
    user_isp: bool
    susp_nod: bool
    susp_fen: bool


class StateWord(NamedTuple):
    """The state word taken apart: all from the sender's point of view."""

    role: Role = Role.Secondary
    peer: Role = Role.Unknown
    conn: Conn = Conn.StandAlone
    disk: Disk = Disk.Diskless
    pdsk: Disk = Disk.DUnknown
    susp: bool = False
    aftr_isp: bool = False
    peer_isp: bool = False
    user_isp: bool = False
    susp_nod: bool = False
    susp_fen: bool = False

    @property
    def suspended(self) -> bool:
        """I/O is frozen: by an administrator, for want of data, or until the peer is fenced."""
        return self.susp or self.susp_nod or self.susp_fen

    def pack(self) -> int:
        return (
            self.role
            | self.peer << PEER_SHIFT
            | self.conn << CONN_SHIFT
            | self.disk << DISK_SHIFT
            | self.pdsk << PDSK_SHIFT
            | (SUSP if self.susp else 0)
            | (AFTR_ISP if self.aftr_isp else 0)
            | (PEER_ISP if self.peer_isp else 0)
            | (USER_ISP if self.user_isp else 0)
            | (SUSP_NOD if self.susp_nod else 0)
            | (SUSP_FEN if self.susp_fen else 0)
        )

    @classmethod
    def unpack(cls, word: int) -> StateWord:
        """Raises ValueError for a code that no 8.4 node may report (bits from 23 up are ignored)."""
        return cls(
            Role(word & ROLE_MASK),
            Role(word >> PEER_SHIFT & ROLE_MASK),
            Conn(word >> CONN_SHIFT & CONN_MASK),
            Disk(word >> DISK_SHIFT & DISK_MASK),
            Disk(word >> PDSK_SHIFT & DISK_MASK),
            bool(word & SUSP),
            bool(word & AFTR_ISP),
            bool(word & PEER_ISP),
            bool(word & USER_ISP),
            bool(word & SUSP_NOD),
            bool(word & SUSP_FEN),
        )
