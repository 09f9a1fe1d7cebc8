"""A rate over the last minute, whoever reads it and how often."""

from __future__ import annotations

import pytest

from server.metrics.rate import SPACING, WINDOW, Rate


class Clock:
    """A count and a time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.count = 0.0
        self.rate = Rate(lambda: self.count, lambda: self.now)

    def passed(self, seconds: float, counted: float) -> float:
        self.now += seconds
        self.count += counted
        return self.rate.read()


def test_a_steady_rate() -> None:
    clock = Clock()
    assert clock.rate.read() == 0.0
    assert [clock.passed(1.0, 50) for _ in range(200)] == [pytest.approx(50)] * 200


def test_readers_do_not_disturb_each_other() -> None:
    clock = Clock()
    clock.passed(10.0, 100)
    assert [clock.rate.read() for _ in range(5)] == [pytest.approx(10)] * 5


def test_what_is_long_past_is_forgotten() -> None:
    clock = Clock()
    for _ in range(20):
        clock.passed(SPACING, 1000)
    for _ in range(int(WINDOW / SPACING) + 1):
        last = clock.passed(SPACING, 0)
    assert last == 0.0


def test_a_reader_that_comes_seldom_sees_the_mean_since_it_came() -> None:
    clock = Clock()
    clock.passed(10 * WINDOW, 600)
    assert clock.passed(10 * WINDOW, 6000) == pytest.approx(10)
