"""The state rules of one volume: what follows by itself, what cannot be, what is refused and why.

Rules:
1. Tables and pure functions over `State`, which is the state word of the wire taken apart.
2. `adjust` is applied to every wanted state; `possible` to every change, even one imposed by
   facts; `valid` and `permitted` only to what an administrator or the peer requests.
3. A code is 0 if nothing speaks against it, else one of the negative numbers in REFUSALS, which
   are those that existing tools report. The first row that applies decides.
4. Nothing here performs a change or knows what one entails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from protocol.states import Conn, Disk, Role, StateWord
from replicator.engine.mirror import apply_request as apply_request
from replicator.engine.mirror import mirror as mirror
from replicator.engine.mirror import mirror_request as mirror_request

State = StateWord

REFUSALS: dict[int, str] = {
    -1: "Multiple primaries not allowed by config",
    -2: "Need access to UpToDate data",
    -4: "Can not resync without local disk",
    -5: "Can not resync without remote disk",
    -6: "Refusing to be Outdated while Connected",
    -7: "Refusing to be Primary while peer is not outdated",
    -8: "Can not start resync or verify, one is already running",
    -9: "Can not disconnect a StandAlone device",
    -10: "State change was refused by peer node",
    -11: "Device is diskless, the requested operation requires a disk",
    -12: "Device is held open by someone",
    -13: "Have no net/connection configuration",
    -14: "Need a verify algorithm to start online verify",
    -15: "Need a connection to the peer for this",
    -16: "Disk state is lower than outdated",
    -17: "Peer does not support protocol",
    -18: "In transient state, retry after next state change",
    -19: "Concurrent state changes detected and aborted",
    -20: "Other vol primary on peer not allowed by config",
    -21: "Need a connection for a graceful disconnect/outdate peer",
}
"""Refusal code to the text shown as "State change failed: (code) text"."""

FENCING = ("dont-care", "resource-only", "resource-and-stonith")

LOW, INC, OUT, UNK, CON, UTD = (
    Disk.Diskless,
    Disk.Inconsistent,
    Disk.Outdated,
    Disk.DUnknown,
    Disk.Consistent,
    Disk.UpToDate,
)

Limits = tuple[Disk, Disk, Disk, Disk]
"""Own disk least and most, peer disk least and most."""

_TARGET_TO_BE: Limits = (INC, OUT, UTD, UTD)
_SOURCE_TO_BE: Limits = (UTD, UTD, INC, CON)
_BOTH_GOOD: Limits = (UTD, UTD, UTD, UTD)

CLAMP: dict[Conn, Limits] = {
    Conn.Connected: (LOW, UTD, LOW, UTD),
    Conn.WFBitMapT: _TARGET_TO_BE,
    Conn.PausedSyncT: _TARGET_TO_BE,
    Conn.StartingSyncT: _TARGET_TO_BE,
    Conn.WFSyncUUID: _TARGET_TO_BE,
    Conn.Behind: _TARGET_TO_BE,
    Conn.SyncTarget: (INC, INC, UTD, UTD),
    Conn.WFBitMapS: _SOURCE_TO_BE,
    Conn.PausedSyncS: _SOURCE_TO_BE,
    Conn.StartingSyncS: _SOURCE_TO_BE,
    Conn.Ahead: _SOURCE_TO_BE,
    Conn.SyncSource: (UTD, UTD, INC, INC),
    Conn.VerifyS: _BOTH_GOOD,
    Conn.VerifyT: _BOTH_GOOD,
}
"""The disk states that a connection state implies."""

CLAMP_UNCONNECTED: Limits = (LOW, UTD, INC, UNK)

_PAUSED = {Conn.SyncSource: Conn.PausedSyncS, Conn.SyncTarget: Conn.PausedSyncT}
_RESUMED = {paused: running for running, paused in _PAUSED.items()}

_VERIFYING = (Conn.VerifyS, Conn.VerifyT)
_STARTING = (Conn.StartingSyncS, Conn.StartingSyncT)


def adjust(
    wanted: State,
    *,
    fencing: str = "dont-care",
    on_no_data: str = "io-error",
    old: State | None = None,
    prepared: State | None = None,
) -> State:
    """What a wanted state becomes by the rules that need nobody's consent.

    old: the state before, None at the start. prepared: while the own disk is Negotiating, the
    state its metadata stands for, if its current UUID is that of the data last exposed; None
    otherwise, and a disk whose negotiation broke off is then dropped.
    """
    new = _without_connection(wanted, prepared)
    if new.conn is Conn.StandAlone and new.disk is Disk.Diskless and new.role is Role.Secondary:
        new = new._replace(aftr_isp=False)
    if new.conn > Conn.Connected and min(new.disk, new.pdsk) <= Disk.Failed:
        new = new._replace(conn=Conn.Connected)
    if new.conn in _VERIFYING and min(new.disk, new.pdsk) < UTD:
        new = new._replace(conn=Conn.Connected)
    if old is None or old.conn < Conn.Connected:
        new = _connected_means_current(new)
    paused = new.aftr_isp or new.peer_isp or new.user_isp
    new = new._replace(conn=(_PAUSED if paused else _RESUMED).get(new.conn, new.conn))
    return _suspended(_clamped(new), fencing, on_no_data, old)


def _without_connection(state: State, prepared: State | None) -> State:
    if state.conn >= Conn.Connected:
        return state
    pdsk = state.pdsk if INC <= state.pdsk <= UNK else UNK
    state = state._replace(peer=Role.Unknown, peer_isp=False, pdsk=pdsk)
    if state.disk is not Disk.Negotiating:
        return state
    if prepared is None:
        return state._replace(disk=Disk.Diskless, pdsk=UNK)
    return state._replace(disk=prepared.disk, pdsk=prepared.pdsk)


def _connected_means_current(state: State) -> State:
    """On becoming Connected the handshake has settled what Consistent and Outdated left open. It
    was none for an Outdated disk that met a node without one.

    Not so later on: a resync target that has not begun to copy is Outdated, and stays so if the
    source loses its disk. (DRBD makes it UpToDate then, without what it should have been told.)
    """
    if not Conn.Connected <= state.conn < Conn.Ahead:
        return state
    both = min(state.disk, state.pdsk) > Disk.Failed
    open_question = (CON, OUT) if both else (CON,)
    return state._replace(
        disk=UTD if state.disk in open_question else state.disk,
        pdsk=UTD if state.pdsk in open_question else state.pdsk,
    )


def _clamped(state: State) -> State:
    least, most, peer_least, peer_most = CLAMP.get(state.conn, CLAMP_UNCONNECTED)
    return state._replace(
        disk=max(least, min(state.disk, most)),
        pdsk=max(peer_least, min(state.pdsk, peer_most)),
    )


def _alone(state: State) -> bool:
    """A disconnected Primary whose peer may still be writing."""
    return state.role is Role.Primary and state.conn < Conn.Connected and state.pdsk > OUT


def without_data(state: State) -> bool:
    """A Primary that reaches no good data, neither here nor at the peer."""
    return state.role is Role.Primary and max(state.disk, state.pdsk) < UTD


_PEER_IS_BACK = (Conn.Connected, *_VERIFYING, Conn.SyncTarget, Conn.PausedSyncT)


def _suspended(new: State, fencing: str, on_no_data: str, old: State | None) -> State:
    """Freeze I/O on entering (not while being in) a situation that the policies name, and thaw it
    when the reason has gone: the peer is back, good data are, or nobody uses the device.

    A peer that first has to be synchronised is not back yet: until its disk says that it is
    Inconsistent it could take over (see ResyncSource.got_request).
    """
    if new.conn in _PEER_IS_BACK or new.role is Role.Secondary:
        new = new._replace(susp_fen=False)
    if not without_data(new):
        new = new._replace(susp_nod=False)
    if fencing == "resource-and-stonith" and _alone(new) and not (old is not None and _alone(old)):
        new = new._replace(susp_fen=True)
    if (
        on_no_data == "suspend-io"
        and without_data(new)
        and not (old is not None and without_data(old))
    ):
        new = new._replace(susp_nod=True)
    return new


class Change(NamedTuple):
    """A change and its circumstances, as the tables below see them."""

    old: State
    new: State
    two_primaries: bool = False
    fencing: str = "dont-care"
    open_count: int = 0
    has_verify_alg: bool = True
    version: int = 101
    other_volume_primary_on_peer: bool = False
    exchanging_parameters: bool = False

    @property
    def becomes_primary(self) -> bool:
        return self.old.role is not Role.Primary and self.new.role is Role.Primary

    @property
    def primary_alone(self) -> bool:
        return self.new.role is Role.Primary and self.new.conn < Conn.Connected

    @property
    def resyncing(self) -> bool:
        return self.new.conn > Conn.Connected

    def moves_to(self, *conns: Conn) -> bool:
        return self.new.conn in conns and self.old.conn not in conns


Row = tuple[int, Callable[[Change], bool]]
"""A refusal code and when it applies."""

NEVER: tuple[Row, ...] = (
    (-9, lambda c: c.old.conn is Conn.StandAlone and c.new.conn is Conn.Disconnecting),
    (-15, lambda c: c.old.conn is Conn.StandAlone and c.new.conn is not Conn.Unconnected),
    (-15, lambda c: c.old.conn < Conn.WFReportParams and c.new.conn >= Conn.Connected),
    (
        -18,
        lambda c: (
            Conn.Timeout <= c.old.conn <= Conn.TearDown
            and c.new.conn not in (Conn.Unconnected, Conn.Disconnecting)
        ),
    ),
    (-18, lambda c: c.old.conn is Conn.Disconnecting and c.new.conn is not Conn.StandAlone),
)
"""Connection changes that cannot happen, whoever wants them."""


def possible(old: State, new: State) -> int:
    """0, or the code for a transition that even facts from outside cannot impose."""
    if old.conn is not new.conn:
        code = _first(NEVER, Change(old, new))
        if code:
            return code
    if old.disk is Disk.Diskless and new.disk is Disk.Failed:
        return -11
    return 0


STATES: tuple[Row, ...] = (
    (
        -1,
        lambda c: not c.two_primaries and c.new.role is Role.Primary and c.new.peer is Role.Primary,
    ),
    (
        -20,
        lambda c: (
            not c.two_primaries and c.new.role is Role.Primary and c.other_volume_primary_on_peer
        ),
    ),
    (-12, lambda c: c.new.role is Role.Secondary and c.open_count > 0),
    (-2, lambda c: c.primary_alone and c.new.disk < UTD),
    (-7, lambda c: c.fencing in FENCING[1:] and c.primary_alone and c.new.pdsk >= UNK),
    (-2, lambda c: c.new.role is Role.Primary and max(c.new.disk, c.new.pdsk) <= INC),
    (-4, lambda c: c.resyncing and c.new.disk < INC),
    (-5, lambda c: c.resyncing and c.new.pdsk < INC),
    (-2, lambda c: c.resyncing and max(c.new.disk, c.new.pdsk) < UTD),
    (
        -6,
        lambda c: (
            c.new.disk is OUT
            and c.new.conn in (Conn.Connected, Conn.WFBitMapS, Conn.SyncSource, Conn.PausedSyncS)
        ),
    ),
    (-14, lambda c: c.new.conn in _VERIFYING and not c.has_verify_alg),
    (-17, lambda c: c.new.conn in _VERIFYING and c.version < 88),
    (-2, lambda c: c.new.role is Role.Primary and max(c.new.disk, c.new.pdsk) < UTD),
    (-15, lambda c: c.new.conn in _STARTING and c.new.pdsk is UNK),
    (-6, lambda c: c.new.conn >= Conn.Connected and c.new.pdsk is UNK),
)
"""States that are refused, whatever they come from."""


def valid(
    new: State,
    *,
    two_primaries: bool = False,
    fencing: str = "dont-care",
    open_count: int = 0,
    has_verify_alg: bool = True,
    old: State | None = None,
    version: int = 101,
    other_volume_primary_on_peer: bool = False,
) -> int:
    """0, or the code that speaks against a requested state.

    If `old` is given and was invalid for the same reason, the change makes nothing worse, unless
    there is another reason that was none before.
    open_count: how many hold the device open. version: the agreed wire protocol.
    """

    def circumstances(state: State) -> Change:
        return Change(
            old=state,
            new=state,
            two_primaries=two_primaries,
            fencing=fencing,
            open_count=open_count,
            has_verify_alg=has_verify_alg,
            version=version,
            other_volume_primary_on_peer=other_volume_primary_on_peer,
        )

    wanted = circumstances(new)
    code = _first(STATES, wanted)
    if not code or old is None:
        return code
    present = circumstances(old)
    if _first(STATES, present) != code:
        return code
    others = (c for c, applies in STATES if c != code and applies(wanted) and not applies(present))
    return next(others, 0)


def _connection_step(change: Change) -> bool:
    """The only changes allowed between sending the own state and the handshake's verdict."""
    old, new = change.old.conn, change.new.conn
    if old is Conn.WFConnection:
        return new is Conn.WFReportParams
    return old is Conn.WFReportParams and new >= Conn.Connected


def _promotes_into_handshake(change: Change) -> bool:
    new = change.new
    return (
        change.becomes_primary
        and new.pdsk is UTD
        and new.disk not in (UTD, Disk.Diskless)
        and Conn.Connected <= new.conn <= Conn.WFSyncUUID
    )


TRANSITIONS: tuple[Row, ...] = (
    (-8, lambda c: c.new.conn in _STARTING and c.old.conn > Conn.Connected),
    (-8, lambda c: c.moves_to(*_VERIFYING) and c.old.conn > Conn.Connected),
    (-9, lambda c: c.new.conn is Conn.Disconnecting and c.old.conn is Conn.StandAlone),
    (-11, lambda c: c.new.disk > Disk.Attaching and c.old.disk is Disk.Diskless),
    (-13, lambda c: c.new.conn is Conn.WFConnection and c.old.conn < Conn.Unconnected),
    (
        -16,
        lambda c: c.new.disk is OUT and c.old.disk < OUT and c.old.disk is not Disk.Attaching,
    ),
    (-15, lambda c: c.new.conn in _STARTING + _VERIFYING and c.old.conn < Conn.Connected),
    (
        -15,
        lambda c: (
            c.new.conn in (Conn.SyncSource, Conn.SyncTarget) and c.old.conn < Conn.WFReportParams
        ),
    ),
    (
        -21,
        lambda c: (
            c.new.conn is Conn.Disconnecting
            and c.new.pdsk is OUT
            and c.old.pdsk > OUT
            and c.old.conn < Conn.Connected
        ),
    ),
    (-18, lambda c: c.exchanging_parameters and not _connection_step(c)),
    (-18, lambda c: c.new.conn is Conn.Disconnecting and c.old.conn is Conn.Unconnected),
    (-18, _promotes_into_handshake),
)
"""Requested changes that are refused for where they start."""


def permitted(old: State, new: State, *, exchanging_parameters: bool = False) -> int:
    """0, or the code that speaks against a requested change.

    exchanging_parameters: the own state was sent on a new connection and the verdict of the
    handshake is not known yet.
    """
    return _first(TRANSITIONS, Change(old, new, exchanging_parameters=exchanging_parameters))


def refusal_code(
    old: State,
    new: State,
    *,
    two_primaries: bool = False,
    fencing: str = "dont-care",
    exchanging_parameters: bool = False,
) -> int:
    """0, or the first code of all three tables that speaks against a requested change."""
    return (
        possible(old, new)
        or valid(new, two_primaries=two_primaries, fencing=fencing, old=old)
        or permitted(old, new, exchanging_parameters=exchanging_parameters)
    )


def _first(rows: tuple[Row, ...], change: Change) -> int:
    return next((code for code, applies in rows if applies(change)), 0)


CLUSTER_WIDE: tuple[Callable[[Change], bool], ...] = (
    lambda c: c.becomes_primary,
    lambda c: c.moves_to(Conn.StartingSyncS),
    lambda c: c.moves_to(Conn.StartingSyncT),
    lambda c: c.old.disk is not Disk.Failed and c.new.disk is Disk.Failed,
    lambda c: c.moves_to(Conn.Disconnecting),
    lambda c: c.old.conn is Conn.Connected and c.new.conn is Conn.VerifyS,
    lambda c: c.old.conn is Conn.Connected and c.new.conn is Conn.WFReportParams,
)


def cluster_wide(old: State, new: State) -> bool:
    """Whether the peer must be asked before the change; everything else is only told."""
    if old.conn < Conn.Connected:
        return False
    change = Change(old, new)
    return any(applies(change) for applies in CLUSTER_WIDE)


_HAD_DATA = (Disk.Inconsistent, Disk.Consistent, Disk.UpToDate)
_GONE = (Disk.Diskless, Disk.Attaching, Disk.Failed, Disk.Negotiating, Disk.Outdated, Disk.DUnknown)


def contact_lost(old: StateWord, new: StateWord) -> bool:
    """Whether a change of the peer's disk means that it will miss writes from now on.

    An Outdated peer that becomes unknown does not count: it missed them already. Nor does the target of
    a resync that begins, which says so by being Outdated (misses_writes cares for what it misses).
    """
    if new.pdsk is Disk.Outdated and new.conn is Conn.WFBitMapS:
        return False
    if old.pdsk in _HAD_DATA:
        return new.pdsk in _GONE
    return old.pdsk is UNK and new.pdsk in (Disk.Diskless, Disk.Failed, Disk.Outdated)


def came_alone(old: StateWord, new: StateWord) -> bool:
    """Whether a disk came into use of which the peer, should it get its own again, lacks the writes."""
    alone = new.conn < Conn.Connected or new.pdsk <= Disk.Failed
    return old.disk <= Disk.Negotiating < new.disk and alone


def misses_writes(state: StateWord) -> bool:
    """Whether this node, about to serve a resync that has no name yet, completes writes of its own
    that the peer does not get."""
    starting = state.conn in (Conn.StartingSyncS, Conn.WFBitMapS)
    return starting and state.role is Role.Primary and state.disk is Disk.UpToDate


Route = Literal["data", "out-of-sync", "local"]


def replicated(conn: Conn, peer_disk: Disk) -> Route:
    """What a write does: its data goes to the peer, only the news that the range is dirty does,
    or it stays here. In the latter two the own bitmap must get the range."""
    if peer_disk is UTD:
        return "data"
    if Conn.WFBitMapT <= conn <= Conn.PausedSyncT and peer_disk >= INC:
        return "data"
    return "out-of-sync" if conn in (Conn.WFBitMapS, Conn.Ahead) else "local"
