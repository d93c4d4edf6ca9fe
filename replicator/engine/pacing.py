"""How fast a resync may go: rate limits, the amount under way, and yielding to the application.

Three parts, each of which may hold a resync back; it says why (`Reason`):
- RateLimit: an upper bound in bytes per second (c-max-rate, or resync-rate with c-plan-ahead 0).
- Window: how much a target may have asked for and not yet written: c-fill-target, or as much as the
  link takes while answers come within c-delay-target.
- Courtesy: while applications use the resource on this node, only as much resync as they hardly
  notice, but never less than c-min-rate.

Rules: pure arithmetic on times (seconds) and amounts (bytes) that are passed in; nothing of it
allocates with the amount of data. A rate of 0 means no limit.
What this file must not know: packets, disks, blocks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from typing import Any

from replicator.engine.ports import Clock, Timer
from replicator.engine.settings import DiskSettings

TICK = 0.1

BURST = 0.02
"""Seconds' worth of a rate that may pass at once, so that wake-ups need not be exact."""

WAIT_MIN = 0.001
"""Seconds: shorter waits are not worth a timer, and may be lost in rounding."""

WINDOW_START = 2 << 20
WINDOW_MIN = 128 << 10
WINDOW_MAX = 16 << 20
REQUESTS_IN_WINDOW = 4
"""A window is filled by several requests, so that reading, sending and writing overlap."""

REQUEST_POLITE = 128 << 10

PROBATION = 0.05
"""Seconds at the start of a resync in which applications are looked for, at the lowest rate."""
QUIET = 1.0
"""Seconds without application I/O after which nobody is yielded to."""
SETTLE = 0.3
"""Seconds at the lowest rate before its effect is measured."""
MEASURE_MIN = 0.3
PATIENCE = 2.0
"""Seconds after which a measurement makes do with the samples it has."""
ADAPT_PATIENCE = 0.5
ENOUGH = 50
SAMPLES_MAX = 1000
QUANTILE = 0.97
SLOWED = 2.0
"""Application requests that take this many times as long as undisturbed: the resync slows down."""
UNDISTURBED = 1.5
"""Below this many times as long it goes faster."""
SLACK = 0.0002
"""Seconds more than that are forgiven, whatever they are relative to."""
GROWTH = 4.0
"""How many times as fast the resync may get within c-plan-ahead."""
MEASURE_EVERY = 5.0
"""Times c-plan-ahead: what is undisturbed is measured anew that often, for it changes."""


class Reason(Enum):
    """Why a resync is not faster than it is, as status says it."""

    NONE = ""
    MAX_RATE = "limited by c-max-rate"
    RESYNC_RATE = "limited by resync-rate"
    FILL_TARGET = "limited by c-fill-target"
    YIELDING = "yielding to application I/O"
    OWN_DISK = "limited by this node's disk"
    LINK = "limited by the link"
    PEER = "limited by the peer"


class RateLimit:
    """Lets amounts pass at a rate that may change at any time."""

    def __init__(self) -> None:
        self._free_at = 0.0
        """When what has passed so far would have, at the exact rate."""

    def wait(self, now: float) -> float:
        """Seconds until something may pass, at least WAIT_MIN; 0 if it may now."""
        wait = self._free_at - now - BURST
        return max(wait, WAIT_MIN) if wait > 0 else 0.0

    def take(self, now: float, size: int, rate: float) -> None:
        self._free_at = max(self._free_at, now) + size / rate if rate else 0.0

    def give_back(self, size: int, rate: float) -> None:
        """So much of it did not have to be transferred after all."""
        if rate:
            self._free_at -= size / rate


class Window:
    """Bytes asked for and not yet written. fill_target: bytes, 0: follow the delay of the answers,
    up to delay_target seconds."""

    def __init__(self, fill_target: int, delay_target: float) -> None:
        self._fixed = fill_target > 0
        self._delay_target = delay_target
        self.size = fill_target or WINDOW_START
        self._delay = 0.0

    @property
    def rate(self) -> float:
        """Bytes per second that this comes to with answers that take as long as the last ones."""
        return self.size / max(self._delay, 0.001)

    def answered(self, size: int, delay: float) -> None:
        """A request of `size` bytes was answered after `delay` seconds."""
        self._delay += (delay - self._delay) / 8
        if self._fixed:
            return
        if delay <= self._delay_target:
            self.size = min(WINDOW_MAX, self.size + size)
        else:
            self.size = max(WINDOW_MIN, self.size - size // 2)

    def request_size(self, most: int) -> int:
        """The largest power of two up to `most` bytes (at least 4 KiB) of which several fit."""
        share = max(4096, min(most, self.size // REQUESTS_IN_WINDOW))
        return 1 << (share.bit_length() - 1)


class _Phase(Enum):
    ALONE = 0
    """No application I/O: no limit."""
    MEASURING = 1
    """At the lowest rate: how long do application requests take undisturbed?"""
    ADAPTING = 2
    """As fast as goes without slowing them down much."""


class Courtesy:
    """One per resource; watches the application's requests while a resync runs.

    `watching` is for the data path: while it is set every request's `done` goes through timed().
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._floors: dict[object, int] = {}
        self._plan_ahead = 2.0
        self._timer: Timer | None = None
        self._limit = RateLimit()
        self._phase = _Phase.ALONE
        self._since = 0.0
        """Of the phase, or in ADAPTING of the samples."""
        self._measure_at = 0.0
        self._remembered = 0.0
        self._base = 0.0
        self._last = 0.0
        self._open = 0
        self._samples: list[float] = []
        self._moved = 0
        self.watching = False
        self.rate = 0.0
        """Bytes per second that resync may use at present; 0: no limit."""

    # --- on the data path ---------------------------------------------------------------------

    def timed(self, done: Callable[..., None]) -> Callable[..., None]:
        """`done`, with a look at the clock when it is called."""
        since = self._last = self._clock.now()
        self._open += 1

        def answered(*result: Any) -> None:
            self._open -= 1
            self._last = self._clock.now()
            if len(self._samples) < SAMPLES_MAX:
                self._samples.append(self._last - since)
            done(*result)

        return answered

    # --- for resyncs --------------------------------------------------------------------------

    def begin(self, resync: object, min_rate: int, plan_ahead: float) -> None:
        """A resync starts. min_rate 0: that one never slows down."""
        self._floors[resync] = min_rate
        self._plan_ahead = plan_ahead or self._plan_ahead
        if self._timer is None and any(self._floors.values()):
            self.watching = True
            self._last = -QUIET
            self._samples.clear()
            self._measure(self._clock.now())
            self._timer = self._clock.call_later(PROBATION, self._probation_over)

    def end(self, resync: object) -> None:
        self._floors.pop(resync, None)
        if not any(self._floors.values()) and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.watching = False
            self._alone()

    def wait(self, resync: object, now: float) -> float:
        """Seconds until `resync` may go on; 0: now."""
        return self._limit.wait(now) if self.rate and self._floors.get(resync) else 0.0

    def take(self, now: float, size: int) -> None:
        self._moved += size
        self._limit.take(now, size, self.rate)

    # --- adapting -----------------------------------------------------------------------------

    @property
    def _floor(self) -> int:
        return max(self._floors.values(), default=0)

    def _probation_over(self) -> None:
        if not self._samples and not self._open:
            self._alone()
        self._timer = self._clock.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._timer = self._clock.call_later(TICK, self._tick)
        now = self._clock.now()
        if not self._open and now - self._last > QUIET:
            if self._phase is not _Phase.ALONE:
                self._alone()
        elif self._phase is _Phase.ALONE:
            self._measure(now)
        elif self._phase is _Phase.MEASURING:
            self._measured(now)
        elif now >= self._measure_at:
            self._measure(now)
        else:
            self._adapt(now)

    def _alone(self) -> None:
        self._phase = _Phase.ALONE
        self.rate = 0.0
        self._limit = RateLimit()

    def _measure(self, now: float) -> None:
        self._phase = _Phase.MEASURING
        self._since = now + SETTLE
        self._remembered = self.rate
        self.rate = float(self._floor)

    def _measured(self, now: float) -> None:
        """Undisturbed latency is known when there are enough samples, or enough time has passed."""
        if now < self._since:
            self._samples.clear()
            return
        passed = now - self._since
        enough = passed >= MEASURE_MIN and len(self._samples) >= ENOUGH
        if not enough and passed < PATIENCE:
            return
        self._base = self._quantile(now)
        self._phase = _Phase.ADAPTING
        self.rate = max(float(self._floor), self._remembered)
        self._measure_at = now + MEASURE_EVERY * self._plan_ahead
        self._start_samples(now)

    def _adapt(self, now: float) -> None:
        passed = now - self._since
        if len(self._samples) < ENOUGH and passed < ADAPT_PATIENCE:
            return
        latency, used = self._quantile(now), self._moved / passed
        if latency > SLOWED * self._base + SLACK:
            self.rate = max(float(self._floor), min(self.rate, used) / 2)
        elif latency < UNDISTURBED * self._base + SLACK and used > self.rate / 2:
            self.rate *= GROWTH ** (passed / self._plan_ahead)
        self._start_samples(now)

    def _start_samples(self, now: float) -> None:
        self._since = now
        self._moved = 0
        self._samples.clear()

    def _quantile(self, now: float) -> float:
        """The latency that QUANTILE of the requests keep; of none: how long some wait already."""
        if not self._samples:
            return now - self._last
        ordered = sorted(self._samples)
        return ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))]


class Pace:
    """The speed of one resync; a target's as far as it asks, a source's as far as it answers."""

    def __init__(self, disk: DiskSettings, courtesy: Courtesy) -> None:
        controlled = disk.c_plan_ahead > 0
        self.courtesy = courtesy
        self._limit = RateLimit()
        self._rate = disk.c_max_rate if controlled else disk.resync_rate
        self._bound = Reason.MAX_RATE if controlled else Reason.RESYNC_RATE
        fill = disk.c_fill_target if controlled else WINDOW_MAX
        self._full = Reason.FILL_TARGET if controlled and fill else Reason.PEER
        self.window = Window(fill, disk.c_delay_target)
        granularity = disk.rs_discard_granularity
        self._least = 1 << (granularity - 1).bit_length() if granularity else 0
        self.now: Reason = Reason.NONE
        """What held it back last."""
        self._recent: deque[Reason] = deque(maxlen=round(1 / TICK))
        self._polite_ticks = 0

    def wait(self, resync: object, now: float) -> float:
        """Seconds until a target may ask for more, as far as rates go; 0: now."""
        limited, yielding = self._limit.wait(now), self.courtesy.wait(resync, now)
        self.now = self._bound if limited >= yielding else Reason.YIELDING
        return max(limited, yielding)

    def not_limited(self, unanswered: int, unwritten: int) -> None:
        """No rate holds it back: so many bytes are asked for, so many have come and are not stable."""
        self.now = Reason.OWN_DISK if unwritten > unanswered else self._full

    def asked(self, now: float, size: int) -> None:
        self._limit.take(now, size, self._rate)
        self.courtesy.take(now, size)

    def not_transferred(self, size: int) -> None:
        """An answer was only the news that it is all zero."""
        self._limit.give_back(size, self._rate)

    def want(self) -> int:
        """KiB/s that a target aims at: the limit in force, else what its window comes to."""
        limits = [rate for rate in (self._rate, self.courtesy.rate) if rate]
        return max(1, round(min([*limits, self.window.rate]) / 1024))

    def request_size(self, most: int) -> int:
        """Bytes to ask for at once: a power of two, at most `most`. While applications write, small
        ones: what they send does not wait long behind one. Not smaller than what can be discarded."""
        polite = self._polite_ticks or self.courtesy.rate
        size = self.window.request_size(min(most, REQUEST_POLITE) if polite else most)
        return max(size, self._least)

    def tick(self, *, peer_writes: bool) -> None:
        """Once per TICK: keep what held it back, for `reason`. peer_writes: there were some."""
        self._recent.append(self.now)
        self._polite_ticks = round(QUIET / TICK) if peer_writes else max(0, self._polite_ticks - 1)

    @property
    def reason(self) -> Reason:
        """What held it back for most of the last second."""
        found = Counter(self._recent).most_common(1)
        return found[0][0] if found else Reason.NONE
