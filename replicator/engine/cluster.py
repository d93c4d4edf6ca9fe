"""Changes that both nodes must agree to: asking the peer, and answering when it asks.

Rules:
1. One request of ours is outstanding at a time; the rest wait in line. An answer may only fail to
   come with the connection, and then the asker is told None.
2. When both ask at once, the arbiter refuses the other's request (-19); the other yields.
3. The answerer makes the change first and replies afterwards.
What this file must not know: what an administrator typed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.errors import WireError
from protocol.packets import Command, StateReply, StateRequest, encode
from protocol.states import (
    CONN_MASK,
    CONN_SHIFT,
    DISK_MASK,
    DISK_SHIFT,
    ROLE_MASK,
    Conn,
    Disk,
    Role,
)
from replicator.engine.fencing import needs_outdated_peer, outdate_to_part
from replicator.engine.refusals import (
    CANNOT_BE_OUTDATED,
    NO_LOCAL_DISK,
    NO_REMOTE_DISK,
    PEER_NOT_OUTDATED,
)
from replicator.engine.states import (
    REFUSALS,
    adjust,
    apply_request,
    mirror_request,
    refusal_code,
)
from replicator.engine.verify import objection

if TYPE_CHECKING:
    from replicator.engine.link import Link
    from replicator.engine.resource import Resource
    from replicator.engine.volume import Volume

SUCCESS = 1
CONCURRENT = -19
UNSUPPORTED = -17

NOT_THE_PEERS = ROLE_MASK | DISK_MASK << DISK_SHIFT
"""Own role and own disk: no node asks to change the other's, save with a disconnect."""
REQUESTABLE = (Conn.StartingSyncS, Conn.StartingSyncT, Conn.VerifyT, Conn.WFReportParams)
"""What the connection of a volume may become at the peer's request, seen from here. WFReportParams:
the peer takes the volume away."""

Answer = Callable[[int | None], None]
"""The peer's code (1 or more is yes), or None if the connection ended first."""


class _Asked:
    __slots__ = ("answer", "command", "request", "since", "volume")

    def __init__(self, command: Command, volume: int, request: StateRequest, answer: Answer):
        self.command = command
        self.volume = volume
        self.request = request
        self.answer = answer
        self.since = 0.0
        """When it was sent."""


class Cluster:
    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._waiting: deque[_Asked] = deque()
        self._asked: _Asked | None = None

    # --- asking -------------------------------------------------------------------------------

    def ask(self, volume: Volume, mask: int, val: int, answer: Answer) -> None:
        """May this volume of ours change like that?"""
        self._enqueue(_Asked(Command.STATE_CHG_REQ, volume.number, StateRequest(mask, val), answer))

    def ask_to_disconnect(self, mask: int, val: int, answer: Answer) -> None:
        self._enqueue(_Asked(Command.CONN_ST_CHG_REQ, 0, StateRequest(mask, val), answer))

    def _enqueue(self, asked: _Asked) -> None:
        self._waiting.append(asked)
        self._next()

    def _next(self) -> None:
        if self._asked is not None or not self._waiting:
            return
        asked = self._waiting.popleft()
        link = self._resource.replication.link
        if link is None:
            self._resource.soon(lambda: asked.answer(None))
            self._next()
            return
        self._asked = asked
        asked.since = self._resource.clock.now()
        link.send_data(encode(asked.volume, asked.command, asked.request))

    def replied(self, command: int, reply: StateReply) -> None:
        """The peer's answer."""
        asked = self._asked
        expected = {
            Command.STATE_CHG_REQ: Command.STATE_CHG_REPLY,
            Command.CONN_ST_CHG_REQ: Command.CONN_ST_CHG_REPLY,
        }
        if asked is None or expected[asked.command] != command:
            raise WireError(f"{Command(command).name} {reply.retcode}: nothing was asked")
        self._asked = None
        asked.answer(reply.retcode)
        self._next()

    def asks_for(self, volume: Volume, conn: Conn) -> bool:
        """Whether the peer has just been asked to let this volume go to that connection state."""
        asked = self._asked
        if asked is None or asked.command is not Command.STATE_CHG_REQ:
            return False
        wanted = asked.request.val >> CONN_SHIFT & CONN_MASK
        return asked.volume == volume.number and wanted == conn

    def overdue(self, now: float, limit: float) -> str:
        """A question that the peer has not answered for longer than `limit` seconds, or ""."""
        if self._asked is None or now - self._asked.since <= limit:
            return ""
        return f"a request for a change of state is unanswered for {now - self._asked.since:.0f} s"

    def connection_lost(self) -> None:
        lost = [self._asked] if self._asked is not None else []
        lost += self._waiting
        self._asked = None
        self._waiting.clear()
        for asked in lost:
            asked.answer(None)

    def ping(self, link: Link, then: Callable[[], None]) -> None:
        """Is the peer alive? Goes on with the answer, or when it is long overdue."""
        resource = self._resource
        went_on = False

        def go_on() -> None:
            nonlocal went_on
            if not went_on:
                went_on = True
                timer.cancel()
                then()

        wait = 2 * resource.settings.net.ping_timeout + 0.1
        timer = resource.clock.call_later(wait, go_on)
        link.ping(go_on)

    # --- answering ----------------------------------------------------------------------------

    def requested(self, volume: Volume, request: StateRequest) -> None:
        """The peer wants to change its state."""
        code = self._judge(volume, request)
        link = self._resource.replication.link
        if code < SUCCESS:
            text = REFUSALS.get(code, "refused")
            volume.log("info", f"refused a state change of the peer: ({code}) {text}")
        if link is not None:
            link.send_meta(encode(volume.number, Command.STATE_CHG_REPLY, StateReply(code)))

    def _judge(self, volume: Volume, request: StateRequest) -> int:
        """Refuse, or carry out and say so."""
        link = self._resource.replication.link
        if self._asked is not None and link is not None and link.arbiter:
            return CONCURRENT
        try:
            mask, val = mirror_request(request.mask, request.val)
            wanted = apply_request(volume.state, mask, val)
        except ValueError:
            return UNSUPPORTED
        asks_conn = bool(mask & CONN_MASK << CONN_SHIFT)
        if mask & NOT_THE_PEERS or (asks_conn and wanted.conn not in REQUESTABLE):
            return UNSUPPORTED
        if asks_conn and wanted.conn is Conn.VerifyT and (code := objection(volume)):
            return code
        old, new = volume.state, adjust(wanted, old=volume.state)
        if asks_conn and new.conn is not wanted.conn:
            # A resync that cannot be: one of the disks is missing.
            return NO_LOCAL_DISK if old.disk < Disk.Inconsistent else NO_REMOTE_DISK
        net = self._resource.settings.net
        code = refusal_code(
            old,
            new,
            two_primaries=net.allow_two_primaries,
            fencing=volume.settings.disk.fencing,
            exchanging_parameters=old.conn is Conn.WFReportParams,
        )
        if code:
            return code
        if (
            new.peer is Role.Primary
            and new.pdsk is Disk.UpToDate
            and old.pdsk is not Disk.UpToDate
            and new.disk <= Disk.Inconsistent
        ):
            volume.exchange.consider_resync = True
        if new.conn in (Conn.StartingSyncS, Conn.StartingSyncT) and new.conn is not old.conn:
            volume.start_full_sync(new.conn)
        elif new.pdsk is Disk.Failed and old.pdsk is not Disk.Failed:
            # It is only asking: its disk is in use until it reports the change. Were a generation
            # begun here and the answer lost, both nodes would take it for a split brain.
            pass
        else:
            if new.conn is Conn.WFReportParams:
                volume.exchange.forget()
            volume.change(**new._asdict())
        return SUCCESS

    def disconnect_requested(self, request: StateRequest) -> None:
        """The peer's administrator disconnects; it may ask us to be Outdated afterwards."""
        resource = self._resource
        link = resource.replication.link
        assert link is not None

        def reply(code: int) -> None:
            if link.closed:
                return
            link.send_meta(encode(0, Command.CONN_ST_CHG_REPLY, StateReply(code)))
            if code >= SUCCESS:
                link.fail(Conn.TearDown, "the peer disconnected on its administrator's request")

        self._judge_disconnect(request, reply)

    def _judge_disconnect(self, request: StateRequest, reply: Callable[[int], None]) -> None:
        """Refuse, or first make Outdated what has to be, here or there."""
        if request.val >> CONN_SHIFT & CONN_MASK != Conn.Disconnecting:
            reply(UNSUPPORTED)
            return
        volumes = list(self._resource.volumes.values())
        try:
            mask, val = mirror_request(request.mask, request.val)
            wanted = [apply_request(volume.state, mask, val) for volume in volumes]
        except ValueError:
            reply(UNSUPPORTED)
            return
        both = list(zip(volumes, wanted, strict=True))
        if any(state.pdsk > Disk.Outdated and needs_outdated_peer(v) for v, state in both):
            reply(PEER_NOT_OUTDATED)
            return
        for volume, state in both:
            if state.pdsk is Disk.Outdated and volume.state.pdsk > Disk.Outdated:
                volume.change(pdsk=Disk.Outdated)
        outdated = [v for v, s in both if s.disk is Disk.Outdated and v.state.disk > Disk.Outdated]
        if outdated:
            outdate_to_part(outdated, lambda done: reply(SUCCESS if done else CANNOT_BE_OUTDATED))
        else:
            reply(SUCCESS)
