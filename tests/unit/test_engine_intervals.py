"""Interval locks against a naive model: a range is granted when no earlier overlapping one is left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.engine.intervals import Hold, IntervalLocks


class Model:
    """Every range asked for and not given back, in the order of asking."""

    def __init__(self) -> None:
        self.locks = IntervalLocks()
        self.asked: list[tuple[int, int, Hold]] = []
        self.called: set[int] = set()
        self.number = 0

    def acquire(self, start: int, length: int) -> None:
        number, self.number = self.number, self.number + 1

        def go() -> None:
            assert number not in self.called, "go() was called twice"
            self.called.add(number)

        hold = self.locks.acquire(start, start + length, go)
        assert number not in self.called, "go() was called from inside acquire()"
        if hold.granted:
            self.called.add(number)
        self.asked.append((number, start, hold))

    def release(self, choice: int) -> None:
        granted = [one for one in self.asked if one[2].granted]
        one = granted[choice % len(granted)]
        self.asked.remove(one)
        self.locks.release(one[2])

    def check(self) -> None:
        for position, (number, _start, hold) in enumerate(self.asked):
            blocked = any(
                earlier.start < hold.end and hold.start < earlier.end
                for _number, _s, earlier in self.asked[:position]
            )
            assert hold.granted is not blocked
            assert (number in self.called) is not blocked, "a wake-up was lost, or came too early"
        assert self.locks.count == len(self.asked)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), st.integers(0, 1500), st.integers(1, 40)),
        st.tuples(st.just("acquire"), st.integers(0, 1500), st.integers(200, 1200)),
        st.tuples(st.just("release"), st.integers(0, 1000), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_overlapping_ranges_are_granted_first_come_first_served(
    steps: list[tuple[str, int, int]],
) -> None:
    model = Model()
    for word, number, length in steps:
        if word == "acquire":
            model.acquire(number, length)
        elif model.asked:
            model.release(number)
        model.check()
    while model.asked:
        model.release(0)
        model.check()
    assert model.locks.count == 0
    assert not model.locks._buckets, "memory is kept for ranges that nobody holds"


def test_ranges_that_only_touch_do_not_wait() -> None:
    locks = IntervalLocks()
    assert locks.acquire(0, 8, lambda: None).granted
    assert locks.acquire(8, 16, lambda: None).granted
    assert not locks.acquire(7, 9, lambda: None).granted


def test_who_is_woken_may_give_back_and_ask_again_at_once() -> None:
    """A write to a disk that is gone ends inside its own start."""
    locks = IntervalLocks()
    order: list[str] = []
    holds: dict[str, Hold] = {}

    def woken(name: str) -> None:
        order.append(name)
        holds["again " + name] = locks.acquire(0, 300, lambda: order.append("again " + name))
        locks.release(holds[name])

    holds["first"] = locks.acquire(0, 300, lambda: None)
    for name in ("second", "third"):
        holds[name] = locks.acquire(0, 300, lambda n=name: woken(n))
    locks.release(holds["first"])
    assert order == ["second", "third", "again second"]
    locks.release(holds["again second"])
    assert order[-1] == "again third"
