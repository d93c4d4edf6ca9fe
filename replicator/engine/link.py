"""The connection to the peer once both sockets are up: features, authentication, framing,
keep-alive, and in which ways it can end.

Rules:
1. Whatever arrives is bounded and decoded by `protocol` before anything else sees it; anything
   unexpected ends the connection with its reason, never the process.
2. One wake-up handles everything that arrived; sends are queued and leave together.
3. Keep-alives do not depend on disks: they are answered right here.
What this file must not know: volumes, requests, what the packets mean to a resource.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from protocol import auth, features
from protocol.errors import AuthError, WireError
from protocol.framing import Block, FrameReader
from protocol.packets import Command, Empty, Features, Raw, decode, encode, encode_h80
from protocol.states import Conn
from replicator.engine.establish import Sockets
from replicator.engine.ports import Buffer, Channel, Clock, Entropy, Log, Timer
from replicator.engine.settings import NetSettings

EXTENSION_VERSION = 1
HANDSHAKE_PINGS = 4
"""Features and authentication may take this many ping-timeouts for each answer."""
CHALLENGE_LENGTH = 64
OTHER_SOCKET_GRACE = 0.2
"""Seconds in which the second socket is still read after the first has ended."""

PING = encode(0, Command.PING, Empty())
PING_ACK = encode(0, Command.PING_ACK, Empty())


class Phase(IntEnum):
    """What the connection expects next on the data socket."""

    FEATURES = 0
    CHALLENGE = 1
    RESPONSE = 2
    UP = 3
    CLOSED = 4


class LinkOwner(Protocol):
    def link_up(self, link: Link) -> None:
        """Features and authentication are done: exchange parameters now."""

    def block(self, link: Link, block: Block) -> None:
        """As packet, for those that FrameReader.next_block() has decoded already."""

    def packet(self, link: Link, command: int, volume: int, payload: bytes) -> None:
        """A packet of an established connection. May raise WireError."""

    def link_sent(self, link: Link, position: int) -> None:
        """The system has taken the first `position` bytes of the data socket."""

    def link_lost(self, link: Link, state: Conn, reason: str, stand_alone: bool) -> None:
        """The connection ended; nothing more comes from it. stand_alone: do not try again."""


class _Socket:
    """One of the two sockets: its frames go to the link."""

    def __init__(self, link: Link, channel: Channel, letter: str) -> None:
        self.link = link
        self.channel = channel
        self.reader = FrameReader(letter)
        self.last_received = link.clock.now()
        self.ended = False
        channel.events = self

    def received(self, data: bytes) -> None:
        self.last_received = self.link.clock.now()
        self.reader.feed(data)
        self.link.frames(self)

    def space(self) -> memoryview | None:
        return self.reader.space()

    def filled(self, count: int) -> None:
        self.last_received = self.link.clock.now()
        self.reader.filled(count)
        self.link.frames(self)

    def sent(self, position: int) -> None:
        if self is self.link.data:
            self.link.owner.link_sent(self.link, position)

    def closed(self, reason: str) -> None:
        self.ended = True
        self.link.socket_closed(f"{self.channel.name}: {reason}")


class Link:
    """An established pair of sockets; start() begins the features handshake."""

    def __init__(
        self,
        owner: LinkOwner,
        sockets: Sockets,
        settings: NetSettings,
        clock: Clock,
        entropy: Entropy,
        log: Log,
    ) -> None:
        self.owner = owner
        self.settings = settings
        self.clock = clock
        self.log = log
        self._entropy = entropy
        self.arbiter = sockets.arbiter
        self._sockets = sockets
        self.data = _Socket(self, sockets.data, "d")
        self.meta = _Socket(self, sockets.meta, "m")
        self.phase = Phase.FEATURES
        self.closed = False
        self.direct = False
        """The owner takes blocks: parameters are agreed, and no digests come with the data."""
        self.peer_integrity = ""
        """Algorithm of the digests that come with the peer's data."""
        self.features = 0
        self.version = 0
        self.peer_extension = 0
        """Extension version of the peer; 0: it is not a replicator."""
        self._own_features = self._features_to_offer()
        self._challenge = b""
        self._pings: deque[Callable[[], None] | None] = deque()
        self._ping_timer: Timer | None = None
        self._idle_timer: Timer | None = None
        self._phase_timer: Timer | None = None
        self._data_paused = 0
        """How many have asked for a pause."""
        self._full = False
        self._hold_data = False
        self._held_data: deque[Buffer] = deque()
        self._turns: deque[Callable[[], None]] = deque()

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Send our features and look at what has already arrived."""
        self.data.channel.resume_reading()
        self.meta.channel.resume_reading()
        self.data.channel.send(encode_h80(Command.CONNECTION_FEATURES, self._own_features))
        self._expect_answer("features")
        self.data.reader.feed(self._sockets.early_data)
        self.meta.reader.feed(self._sockets.early_meta)
        self.frames(self.data)

    def fail(
        self, state: Conn, reason: str, *, stand_alone: bool = False, linger: float = 0.0
    ) -> None:
        """End the connection. What is queued is still sent as far as it goes at once. The sockets
        stay open for `linger` seconds more, so that the peer can read all of it first."""
        if self.phase is Phase.CLOSED:
            return
        self.close(linger)
        self.owner.link_lost(self, state, reason, stand_alone)

    def socket_closed(self, reason: str) -> None:
        """One socket has ended; what the peer said last on the other is still worth hearing."""
        if self.data.ended and self.meta.ended:
            self.fail(Conn.BrokenPipe, reason)
        elif self.phase is not Phase.CLOSED:
            self.clock.call_later(OTHER_SOCKET_GRACE, lambda: self.fail(Conn.BrokenPipe, reason))

    def close(self, linger: float = 0.0) -> None:
        """Close both sockets (see fail) without telling the owner."""
        self.phase = Phase.CLOSED
        self.closed = True
        for timer in (self._ping_timer, self._idle_timer, self._phase_timer):
            if timer is not None:
                timer.cancel()
        self._pings.clear()
        self._turns.clear()
        for queued in self._held_data:
            self.data.channel.send(queued)
        self._held_data.clear()
        if not linger:
            self._close_sockets()
            return
        self.data.channel.pause_reading()
        self.meta.channel.pause_reading()
        self.clock.call_later(linger, self._close_sockets)

    def _close_sockets(self) -> None:
        self.data.channel.close()
        self.meta.channel.close()

    @property
    def with_wsame(self) -> bool:
        return bool(self.features & features.WSAME)

    @property
    def with_zeroes(self) -> bool:
        return bool(self.features & features.WZEROES)

    @property
    def with_thin_resync(self) -> bool:
        return bool(self.features & features.THIN_RESYNC)

    # --- sending ------------------------------------------------------------------------------

    def send_data(self, packet: Buffer) -> None:
        if self._hold_data:
            self._held_data.append(packet)
        elif not self.closed:
            self.data.channel.send(packet)

    def send_meta(self, packet: Buffer) -> None:
        if not self.closed:
            self.meta.channel.send(packet)

    def send_uninterrupted(self, packet: bytes) -> None:
        """Data socket, ahead of what is held (see hold_data)."""
        if self.phase is not Phase.CLOSED:
            self.data.channel.send(packet)

    @property
    def holding(self) -> bool:
        """What is given to send_data() now is not even queued on the socket yet."""
        return self._hold_data

    def when_uninterrupted(self, start: Callable[[], None]) -> None:
        """Run `start` with the data socket held, one such user after the other. It ends its turn by
        hold_data(False)."""
        if self._hold_data:
            self._turns.append(start)
        else:
            self._hold_data = True
            start()

    def hold_data(self, hold: bool) -> None:
        """While a bitmap is being sent nothing may come between its packets: the rest waits."""
        self._hold_data = hold
        if not hold and self._turns:
            self._hold_data = True
            self._turns.popleft()()
            return
        while self._held_data and not self._hold_data:
            self.send_data(self._held_data.popleft())

    def expect_digests(self, algorithm: str) -> None:
        """From the next packet on the peer's data comes with these digests ("": none)."""
        self.peer_integrity = algorithm
        self.direct = not algorithm

    # --- receiving ----------------------------------------------------------------------------

    def pause_data(self) -> None:
        """Handle nothing more of the data socket until as many resume_data(); it stays in order."""
        self._data_paused += 1
        self._read_or_not()

    def buffers_full(self, full: bool) -> None:
        """Full: what the peer has sent fills the memory it may have here, read no more for now."""
        self._full = full
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self.phase is Phase.CLOSED:
            return
        if self._data_paused or self._full:
            self.data.channel.pause_reading()
        else:
            self.data.channel.resume_reading()

    def resume_data(self) -> None:
        self._data_paused -= 1
        self._read_or_not()
        if self.phase is not Phase.CLOSED:
            self.clock.call_soon(lambda: self.frames(self.data))

    def frames(self, socket: _Socket) -> None:
        """Handle every complete frame that `socket` has."""
        if self.phase < Phase.UP and socket is self.meta:
            return
        reader, owner = socket.reader, self.owner
        try:
            while not self.closed:
                if self._data_paused and socket is self.data:
                    return
                if self.direct and (block := reader.next_block()) is not None:
                    owner.block(self, block)
                    continue
                frame = reader.next_frame()
                if frame is None:
                    return
                self._frame(socket, frame.command, frame.volume, frame.payload)
        except WireError as error:
            self.fail(Conn.ProtocolError, f"{socket.channel.name}: {error}")

    def _frame(self, socket: _Socket, command: int, volume: int, payload: bytes) -> None:
        if self.phase is Phase.UP:
            if command == Command.PING:
                self.send_meta(PING_ACK)
            elif command == Command.PING_ACK:
                self._pong()
            else:
                self.owner.packet(self, command, volume, payload)
        elif self.phase is Phase.FEATURES:
            self._got_features(command, payload)
        elif self.phase is Phase.CHALLENGE:
            self._got_challenge(command, payload)
        else:
            self._got_response(command, payload)

    # --- features and authentication ----------------------------------------------------------

    def _features_to_offer(self) -> Features:
        """ZEROES not together with data digests (kernels disagree there), the others always."""
        flags = features.TRIM | features.THIN_RESYNC | features.WSAME
        if not self.settings.data_integrity_alg:
            flags |= features.WZEROES
        return features.own_features(flags, EXTENSION_VERSION)

    def _expect_answer(self, what: str) -> None:
        if self._phase_timer is not None:
            self._phase_timer.cancel()
        wait = HANDSHAKE_PINGS * self.settings.ping_timeout
        self._phase_timer = self.clock.call_later(
            wait,
            lambda: self.fail(Conn.BrokenPipe, f"the peer sent no {what} within {wait:g} s"),
        )

    def _refuse(self, reason: str) -> None:
        self.fail(Conn.Disconnecting, reason, stand_alone=True)

    def _got_features(self, command: int, payload: bytes) -> None:
        if command != Command.CONNECTION_FEATURES:
            self._refuse(f"expected the peer's features, got packet {command:#06x}")
            return
        peer = decode(command, payload)
        assert isinstance(peer, Features)
        try:
            agreed = features.agree(self._own_features, peer)
        except features.Incompatible as error:
            self._refuse(str(error))
            return
        self.version, self.features = agreed.version, agreed.features
        self.peer_extension = peer.replicator
        self.data.reader.switch_to_h100(extensions=bool(peer.replicator))
        self.meta.reader.switch_to_h100(extensions=bool(peer.replicator))
        if not self.settings.cram_hmac_alg:
            self._up()
            return
        self.phase = Phase.CHALLENGE
        self._challenge = self._entropy.random_bytes(CHALLENGE_LENGTH)
        self.data.channel.send(encode(0, Command.AUTH_CHALLENGE, Raw(self._challenge)))
        self._expect_answer("authentication challenge")

    def _got_challenge(self, command: int, payload: bytes) -> None:
        if command != Command.AUTH_CHALLENGE:
            self._refuse(
                f"expected an authentication challenge (cram-hmac-alg "
                f"{self.settings.cram_hmac_alg} is configured here), got packet {command:#06x}: "
                "is cram-hmac-alg missing in the peer's configuration?"
            )
            return
        try:
            auth.check_challenge(self._challenge, payload)
            answer = auth.response(
                self.settings.cram_hmac_alg, self.settings.shared_secret, payload
            )
        except WireError as error:
            self._refuse(str(error))
            return
        self.data.channel.send(encode(0, Command.AUTH_RESPONSE, Raw(answer)))
        self.phase = Phase.RESPONSE
        self._expect_answer("authentication response")

    def _got_response(self, command: int, payload: bytes) -> None:
        if command != Command.AUTH_RESPONSE:
            self.fail(Conn.ProtocolError, f"expected an authentication response, got {command:#x}")
            return
        algorithm = self.settings.cram_hmac_alg
        try:
            auth.verify(algorithm, self.settings.shared_secret, self._challenge, payload)
        except AuthError as error:
            self._refuse(str(error))
            return
        except WireError as misfit:
            self._refuse(
                f"{misfit}: cram-hmac-alg is {algorithm} here, it must be the same on the peer"
            )
            return
        self._up()

    def _up(self) -> None:
        if self._phase_timer is not None:
            self._phase_timer.cancel()
        self.phase = Phase.UP
        self._idle_timer = self.clock.call_later(self.settings.ping_interval, self._idle)
        self.owner.link_up(self)
        self.frames(self.meta)

    # --- keep-alive ---------------------------------------------------------------------------

    def ping(self, then: Callable[[], None] | None = None) -> None:
        """Send a ping; `then` is called when its answer comes (never, if the connection ends).
        Everything the peer sent on the meta socket before that has been handled by then."""
        self._pings.append(then)
        self.send_meta(PING)
        if self._ping_timer is None:
            self._await_pong(self.clock.now())

    def _await_pong(self, since: float) -> None:
        timeout = self.settings.ping_timeout

        def late() -> None:
            self._ping_timer = None
            heard = max(self.data.last_received, self.meta.last_received)
            if heard > since:
                self._await_pong(heard)
            else:
                self.fail(Conn.NetworkFailure, f"no answer to a ping within {timeout:g} s")

        self._ping_timer = self.clock.call_later(timeout, late)

    def _pong(self) -> None:
        if not self._pings:
            raise WireError("PING_ACK: expected none, no ping is outstanding")
        then = self._pings.popleft()
        if not self._pings and self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None
        if then is not None:
            then()

    def _idle(self) -> None:
        """After ping-int without a word from the peer: ask."""
        heard = max(self.data.last_received, self.meta.last_received)
        quiet = self.clock.now() - heard
        rest = self.settings.ping_interval - quiet
        if rest <= 0:
            if not self._pings:
                self.ping()
            rest = self.settings.ping_interval
        self._idle_timer = self.clock.call_later(max(rest, 0.1), self._idle)
