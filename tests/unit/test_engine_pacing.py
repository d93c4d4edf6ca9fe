"""How fast a resync may go: limits, windows, and courtesy towards applications."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.engine.pacing import (
    WINDOW_MAX,
    WINDOW_MIN,
    Courtesy,
    Pace,
    RateLimit,
    Reason,
    Window,
)
from replicator.engine.settings import DiskSettings
from tests.simulation import world

MIB = 1 << 20
KIB = 1 << 10

# --- rate limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4 * KIB, 128 * KIB, MIB])
def test_what_passes_in_ten_seconds_is_ten_times_the_rate(size: int) -> None:
    limit, now, passed = RateLimit(), 100.0, 0
    while now < 110:
        if wait := limit.wait(now):
            now += wait
        else:
            limit.take(now, size, 5 * MIB)
            passed += size
    assert passed == pytest.approx(50 * MIB, rel=0.03)


def test_an_idle_limit_saves_up_nothing() -> None:
    limit = RateLimit()
    limit.take(0.0, MIB, MIB)
    limit.take(1000.0, MIB, MIB)
    assert limit.wait(1000.0) > 0.9


def test_what_was_not_transferred_is_given_back() -> None:
    limit = RateLimit()
    limit.take(0.0, MIB, MIB)
    limit.give_back(MIB, MIB)
    assert limit.wait(0.0) == 0


# --- windows -------------------------------------------------------------------------------------


def test_quick_answers_open_the_window_and_slow_ones_close_it() -> None:
    window = Window(0, 0.1)
    for _ in range(100):
        window.answered(MIB, 0.02)
    assert window.size == WINDOW_MAX
    for _ in range(100):
        window.answered(MIB, 0.3)
    assert window.size == WINDOW_MIN


def test_a_fill_target_stays_what_it_is_and_is_filled_by_several_requests() -> None:
    window = Window(512 * KIB, 0.1)
    window.answered(MIB, 0.001)
    window.answered(MIB, 9.0)
    assert window.size == 512 * KIB
    assert window.request_size(MIB) == 128 * KIB
    assert Window(100 * 512, 0.1).request_size(MIB) == 8 * KIB
    assert Window(1, 0.1).request_size(MIB) == 4 * KIB


def test_requests_are_small_for_a_second_after_the_peer_has_written() -> None:
    pace = Pace(DiskSettings(), Courtesy(world.OwnedClock(world.Clock())))
    for _ in range(30):
        pace.window.answered(MIB, 0.01)
    assert pace.request_size(MIB) == MIB
    pace.tick(peer_writes=True)
    assert pace.request_size(MIB) == 128 * KIB
    for _ in range(10):
        pace.tick(peer_writes=False)
    assert pace.request_size(MIB) == MIB


def test_requests_are_never_smaller_than_what_can_be_discarded() -> None:
    disk = DiskSettings(rs_discard_granularity=300 * KIB)
    pace = Pace(disk, Courtesy(world.OwnedClock(world.Clock())))
    pace.tick(peer_writes=True)
    assert pace.request_size(MIB) == 512 * KIB


def test_the_reason_is_the_most_frequent_of_the_last_second() -> None:
    pace = Pace(DiskSettings(c_max_rate=MIB), Courtesy(world.OwnedClock(world.Clock())))
    assert pace.reason is Reason.NONE
    pace.asked(0.0, 4 * MIB)
    pace.wait(pace, 0.0)
    for _ in range(8):
        pace.tick(peer_writes=False)
    pace.not_limited(0, 100)
    pace.tick(peer_writes=False)
    assert pace.reason is Reason.MAX_RATE
    for _ in range(8):
        pace.tick(peer_writes=False)
    assert pace.reason is Reason.OWN_DISK


# --- courtesy ------------------------------------------------------------------------------------


class Busy:
    """A resync that takes all it may, and an application with one request at a time, which takes
    `latency(bytes per second of resync)` seconds."""

    def __init__(self, latency: Callable[[float], float], min_rate: int = 4 * MIB) -> None:
        self.clock = world.OwnedClock(world.Clock())
        self.world = self.clock._clock
        self.courtesy = Courtesy(self.clock)
        self.latency = latency
        self.applying = True
        self.used = 0
        self.latencies: list[float] = []
        self.courtesy.begin(self, min_rate, 2.0)
        self.resync()
        self.application()

    def resync(self) -> None:
        wait = self.courtesy.wait(self, self.clock.now())
        if not wait:
            self.courtesy.take(self.clock.now(), 128 * KIB)
            self.used += 128 * KIB
        self.clock.call_later(wait or 128 * KIB / (800 * MIB), self.resync)

    def application(self) -> None:
        rate = self.courtesy.rate or 800 * MIB
        since = self.clock.now()
        done = self.courtesy.timed(lambda _errno: None)

        def end() -> None:
            self.latencies.append(self.clock.now() - since)
            done(0)
            if self.applying:
                self.application()

        self.clock.call_later(self.latency(rate), end)

    def run(self, seconds: float) -> float:
        """Resync bytes per second meanwhile."""
        before = self.used
        self.world.run(seconds)
        return (self.used - before) / seconds


def test_without_applications_there_is_no_limit_after_a_moment() -> None:
    busy = Busy(lambda _rate: 0.001)
    busy.applying = False
    busy.run(2)
    assert busy.courtesy.rate == 0
    assert busy.run(1) > 700 * MIB


def test_a_resync_that_applications_do_not_feel_gets_fast() -> None:
    busy = Busy(lambda _rate: 0.001)
    busy.run(8)
    assert busy.run(1) > 200 * MIB


def test_a_resync_that_slows_applications_down_stays_where_they_take_twice_as_long() -> None:
    busy = Busy(lambda rate: 0.001 * (1 + rate / (50 * MIB)))
    busy.run(10)
    busy.latencies.clear()
    assert 10 * MIB < busy.run(20) < 80 * MIB
    busy.latencies.sort()
    assert busy.latencies[len(busy.latencies) * 99 // 100] < 3 * 0.0011


def test_the_lowest_rate_is_kept_however_slow_applications_are() -> None:
    busy = Busy(lambda rate: 0.001 if rate <= 4 * MIB else 1.0)
    busy.run(5)
    assert busy.run(20) > 3.5 * MIB


def test_a_request_that_never_ends_counts_as_slow() -> None:
    busy = Busy(lambda rate: 0.001 if rate < 20 * MIB else 1e9)
    busy.run(8)
    assert busy.run(5) < 10 * MIB


def test_the_full_speed_is_back_a_second_after_the_last_request() -> None:
    busy = Busy(lambda rate: 0.001 * (1 + rate / (50 * MIB)))
    busy.run(5)
    busy.applying = False
    busy.run(2)
    assert busy.run(1) > 700 * MIB


def test_with_a_min_rate_of_0_applications_are_not_even_watched() -> None:
    busy = Busy(lambda rate: rate / MIB, min_rate=0)
    assert not busy.courtesy.watching
    assert busy.run(1) > 700 * MIB


def test_when_the_last_resync_has_ended_nothing_is_watched_and_no_timer_runs() -> None:
    busy = Busy(lambda _rate: 0.001)
    busy.run(1)
    busy.courtesy.end(busy)
    assert not busy.courtesy.watching and busy.courtesy.rate == 0
