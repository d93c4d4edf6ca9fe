"""The peer's view: a state word, or a state-change request, as it looks from this side of the link.

Rules: pure translation; whether the result is allowed is the business of `states`.
"""

from __future__ import annotations

from protocol.states import (
    AFTR_ISP,
    CONN_MASK,
    CONN_SHIFT,
    DISK_MASK,
    DISK_SHIFT,
    PDSK_SHIFT,
    PEER_ISP,
    PEER_SHIFT,
    ROLE_MASK,
    USER_ISP,
    Conn,
    Disk,
    StateWord,
)

_PAIRS = (
    (Conn.StartingSyncS, Conn.StartingSyncT),
    (Conn.WFBitMapS, Conn.WFBitMapT),
    (Conn.SyncSource, Conn.SyncTarget),
    (Conn.VerifyS, Conn.VerifyT),
    (Conn.PausedSyncS, Conn.PausedSyncT),
    (Conn.Ahead, Conn.Behind),
)

_MIRRORED = {
    **dict(_PAIRS),
    **{other: one for one, other in _PAIRS},
    Conn.WFSyncUUID: Conn.WFBitMapS,
}

REQUESTED = {
    Conn.WFReportParams: Conn.WFReportParams,
    Conn.Connected: Conn.Connected,
    Conn.StartingSyncS: Conn.StartingSyncT,
    Conn.StartingSyncT: Conn.StartingSyncS,
    Conn.Disconnecting: Conn.TearDown,
    Conn.VerifyS: Conn.VerifyT,
}
"""Connection states a peer may request, and what each means here."""


def mirror(word: StateWord) -> StateWord:
    """What the other node should report while this one reports `word`.

    Pauses of the one side, for whatever cause, are the other's peer_isp; suspensions stay private.
    """
    return StateWord(
        role=word.peer,
        peer=word.role,
        conn=_MIRRORED.get(word.conn, word.conn),
        disk=word.pdsk,
        pdsk=word.disk,
        peer_isp=word.aftr_isp or word.user_isp,
    )


def mirror_request(mask: int, val: int, *, peer_is_v9: bool = False) -> tuple[int, int]:
    """Translate the mask and value of a peer's state-change request into this node's terms.

    peer_is_v9: a 9.x kernel, which sends its own disk numbers here (one more, from Failed on).
    Raises ValueError for a connection state that nobody may request.
    """
    own_mask = _swapped(mask) | _conn(mask)
    own_val = _swapped(val, peer_is_v9)
    if _conn(mask):
        own_val |= _mirrored_conn(val)
    return own_mask, own_val & own_mask


def _conn(word: int) -> int:
    return word & CONN_MASK << CONN_SHIFT


def _mirrored_conn(val: int) -> int:
    code = val >> CONN_SHIFT & CONN_MASK
    for requested, here in REQUESTED.items():
        if code == requested:
            return here << CONN_SHIFT
    raise ValueError(f"no node may request connection state {code} of its peer")


def _swapped(word: int, peer_is_v9: bool = False) -> int:
    """Roles and disks exchanged, pauses folded; nothing else survives."""
    role, peer = word & ROLE_MASK, word >> PEER_SHIFT & ROLE_MASK
    disk, pdsk = word >> DISK_SHIFT & DISK_MASK, word >> PDSK_SHIFT & DISK_MASK
    if peer_is_v9:
        disk, pdsk = _v8_disk(disk), _v8_disk(pdsk)
    paused = PEER_ISP if word & (AFTR_ISP | USER_ISP) else 0
    return peer | role << PEER_SHIFT | pdsk << DISK_SHIFT | disk << PDSK_SHIFT | paused


def _v8_disk(code: int) -> int:
    """9.x inserted a state 2 (detaching), which here is Failed, too."""
    return code - 1 if Disk.Failed < code <= Disk.UpToDate + 1 else code


def apply_request(old: StateWord, mask: int, val: int) -> StateWord:
    """The state that a translated request asks for. Raises ValueError for codes nobody knows."""
    return StateWord.unpack(old.pack() & ~mask | val & mask)
