"""Getting the two TCP connections to the peer: dialling, accepting, and settling crossings.

Both nodes dial and accept; whoever dials says with the first 8 bytes which of the two sockets it
means. A kernel peer always keeps the socket it accepted when two of a kind cross. Two replicators
agree beforehand: the node with `dials_first` dials at once and keeps what it dialled, the other
gives it a moment and keeps what it accepted.

Rules: every attempt has an end and every pause a random part; no handshake starts here.
What this file must not know: anything that is said after the first packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.packets import Command, Empty, encode_h80
from replicator.engine.ports import Channel, Clock, Entropy, Log, Network, Timer
from replicator.engine.settings import NetSettings

FIRST_PACKET_LENGTH = 8
GIVE_WAY = 0.5
"""Seconds that the node without `dials_first` leaves to the other before it dials itself."""
SECOND_SOCKET_GRACE = 0.15
"""Seconds in which the peer's second dial is awaited before we dial the second socket ourselves."""
RETRY_BROKEN = 0.5
"""Pause after a connection that was made and lost again before the handshake."""
EARLY_BYTES_MAX = 65536

INITIAL_DATA = encode_h80(Command.INITIAL_DATA, Empty())
INITIAL_META = encode_h80(Command.INITIAL_META, Empty())


@dataclass(slots=True)
class Sockets:
    """An established pair. `early`: what arrived on each socket before the handshake began."""

    data: Channel
    meta: Channel
    arbiter: bool
    """This node accepted the meta socket: it breaks symmetric ties."""
    early_data: bytes
    early_meta: bytes


class _Candidate:
    """One connection on its way to become the data or the meta socket: collects what arrives."""

    def __init__(self, owner: Establisher, channel: Channel, dialled: bool) -> None:
        self.owner = owner
        self.channel = channel
        self.dialled = dialled
        self.kind = ""
        self.bytes = bytearray()
        self.timer: Timer | None = None
        channel.events = self

    def received(self, data: bytes) -> None:
        self.bytes += data
        if len(self.bytes) > EARLY_BYTES_MAX:
            self.channel.pause_reading()
        if not self.kind and len(self.bytes) >= FIRST_PACKET_LENGTH:
            first = bytes(self.bytes[:FIRST_PACKET_LENGTH])
            del self.bytes[:FIRST_PACKET_LENGTH]
            self.owner.first_packet(self, first)

    def space(self) -> None:
        """Nothing large comes before the handshake."""

    def filled(self, count: int) -> None: ...

    def sent(self, position: int) -> None:
        """Nothing of interest is sent before the handshake."""

    def closed(self, reason: str) -> None:
        self.owner.lost(self, reason)

    def drop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.channel.close()


class Establisher:
    """Works from start() until stop(); hands over a pair of sockets each time there is one.

    knocked(): the peer dialled while we were connected: it may have restarted without our noticing.
    """

    def __init__(
        self,
        network: Network,
        clock: Clock,
        entropy: Entropy,
        log: Log,
        settings: NetSettings,
        dials_first: bool,
        established: Callable[[Sockets], None],
        knocked: Callable[[], None],
    ) -> None:
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._settings = settings
        self._dials_first = dials_first
        self._established = established
        self._knocked = knocked
        self._data: _Candidate | None = None
        self._meta: _Candidate | None = None
        self._nameless: set[_Candidate] = set()
        self._dialling: Timer | None = None
        self._next_dial: Timer | None = None
        self._settling: Timer | None = None
        self._crossed = False
        self._searching = False
        self._listening = False
        self.last_error = ""
        self.listen_error = ""
        """Why the peer cannot reach us; looked at again before each dial."""

    def start(self, pause: float = 0.0) -> None:
        """Begin (again) to look for the peer, dialling after `pause` seconds."""
        self._searching = True
        self._crossed = False
        self._listen()
        self._dial_after(pause if self._dials_first else pause + GIVE_WAY)

    def _listen(self) -> None:
        """Also again after a failure: whoever has our port may have let go of it."""
        if not self._listening:
            self._listening = True
            self._network.listen(self._accepted, self._no_listener)

    def stop(self) -> None:
        """Give up looking and listening."""
        self._end_search()
        self.listen_error = ""
        if self._listening:
            self._listening = False
            self._network.stop_listening()

    def _end_search(self) -> None:
        self._searching = False
        for timer in (self._dialling, self._next_dial, self._settling):
            if timer is not None:
                timer.cancel()
        self._dialling = self._next_dial = self._settling = None
        for candidate in [self._data, self._meta, *self._nameless]:
            if candidate is not None:
                candidate.drop()
        self._data = self._meta = None
        self._nameless.clear()

    # --- dialling -----------------------------------------------------------------------------

    def _dial_after(self, seconds: float) -> None:
        if self._next_dial is not None:
            self._next_dial.cancel()
        self._next_dial = self._clock.call_later(seconds, self._dial)

    def _retry_pause(self) -> float:
        """connect-int, give or take a seventh, so that two nodes do not keep step."""
        spread = self._entropy.random_bytes(1)[0] / 255 * 2 - 1
        return self._settings.connect_interval * (1 + spread / 7)

    def _dial(self) -> None:
        self._next_dial = None
        if self._searching:
            self._listen()
        if self._searching and self._dialling is None and not (self._data and self._meta):
            self._dialling = self._network.dial(self._settings.connect_interval, self._dialled)

    def _dialled(self, channel: Channel | None, reason: str) -> None:
        self._dialling = None
        if self._listening and self.listen_error:
            self._log.log("info", "listening for the peer now")
            self.listen_error = ""
        if channel is None:
            if reason != self.last_error:
                self._log.log("info", f"cannot reach the peer: {reason}")
            self.last_error = reason
            self._dial_after(1.0 if self._data or self._meta else self._retry_pause())
            return
        candidate = _Candidate(self, channel, dialled=True)
        if self._data is None:
            candidate.kind = "data"
            self._data = candidate
            channel.send(INITIAL_DATA)
            self._dial()
        elif self._meta is None:
            candidate.kind = "meta"
            self._meta = candidate
            channel.send(INITIAL_META)
        else:
            candidate.drop()
        self._check()

    # --- accepting ----------------------------------------------------------------------------

    def _no_listener(self, reason: str) -> None:
        self._listening = False
        if reason != self.listen_error:
            self._log.log("error", f"cannot listen for the peer: {reason}")
        self.listen_error = reason

    def _accepted(self, channel: Channel) -> None:
        candidate = _Candidate(self, channel, dialled=False)
        if not self._searching:
            candidate.drop()
            self._knocked()
            return
        self._nameless.add(candidate)
        wait = 4 * self._settings.ping_timeout
        candidate.timer = self._clock.call_later(wait, lambda: self._silent(candidate))

    def _silent(self, candidate: _Candidate) -> None:
        self._nameless.discard(candidate)
        self._log.log("warning", f"{candidate.channel.name}: no first packet came, closed")
        candidate.drop()

    def first_packet(self, candidate: _Candidate, first: bytes) -> None:
        """The dialler of an accepted connection has said which socket it means."""
        self._nameless.discard(candidate)
        if candidate.timer is not None:
            candidate.timer.cancel()
        if first == INITIAL_DATA:
            candidate.kind = "data"
            self._data = self._settle(self._data, candidate)
            if self._meta is None:
                self._dial_after(SECOND_SOCKET_GRACE)
        elif first == INITIAL_META:
            candidate.kind = "meta"
            self._meta = self._settle(self._meta, candidate)
        else:
            self._log.log(
                "warning",
                f"{candidate.channel.name}: not a DRBD peer: expected {INITIAL_DATA.hex()} or "
                f"{INITIAL_META.hex()}, found {first.hex()}; closed",
            )
            candidate.drop()
            return
        self._check()

    def _settle(self, old: _Candidate | None, new: _Candidate) -> _Candidate:
        """Two sockets of one kind: which to keep (see the top of this file)."""
        if old is None:
            return new
        self._crossed = True
        keep_old = old.dialled and self._dials_first
        kept, dropped = (old, new) if keep_old else (new, old)
        dropped.drop()
        return kept

    # --- the pair -----------------------------------------------------------------------------

    def lost(self, candidate: _Candidate, reason: str) -> None:
        """A candidate was closed before the pair was handed over."""
        self._nameless.discard(candidate)
        if candidate.timer is not None:
            candidate.timer.cancel()
        if candidate is self._data:
            self._data = None
        elif candidate is self._meta:
            self._meta = None
        else:
            return
        self.last_error = reason
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self._searching and self._dialling is None and self._next_dial is None:
            spread = self._entropy.random_bytes(1)[0] / 255
            self._dial_after(RETRY_BROKEN * (1 + spread))

    def _check(self) -> None:
        data, meta = self._data, self._meta
        if data is None or meta is None or self._settling is not None:
            return
        # Where each has dialled one, both may have dialled the second: then another is on its way,
        # and the two would disagree about who is the arbiter.
        if self._crossed or data.dialled != meta.dialled:
            settings = self._settings
            pause = settings.socket_check_timeout or settings.ping_timeout
            self._settling = self._clock.call_later(pause, self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._settling = None
        data, meta = self._data, self._meta
        if data is None or meta is None:
            return
        self._data = self._meta = None
        self._end_search()
        self.last_error = ""
        self._established(
            Sockets(
                data.channel,
                meta.channel,
                arbiter=not meta.dialled,
                early_data=bytes(data.bytes),
                early_meta=bytes(meta.bytes),
            )
        )
