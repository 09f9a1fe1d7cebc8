"""When calls wait for each other: on a loop that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from server.edges.grpc import gathering
from server.edges.grpc.gathering import KEENNESS, LONGEST, MOST, MOST_PATIENCE, PATIENCE, PROBE, Gathering


class Loop:
    """The loop's call_soon, and a turn at a time."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        due, self.soon = self.soon, []
        for call in due:
            call()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that stands still until it's set."""
    now = [100.0]
    monkeypatch.setattr(gathering, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


class Calls:
    """Calls to a gathering, and which of them have begun."""

    def __init__(self) -> None:
        self.loop = Loop()
        stand_in: Any = self.loop
        self.gathering = Gathering(stand_in)
        self.begun = 0

    def add(self) -> None:
        self.gathering.add(self._begin)

    def _begin(self) -> None:
        self.begun += 1

    def settle(self) -> None:
        while self.loop.soon:
            self.loop.turn()


def closely(calls: Calls, count: int) -> None:
    """So many calls, each a turn after the one before."""
    for _ in range(count):
        calls.add()
        calls.loop.turn()
    calls.settle()


def teach(calls: Calls, worth: float, count: int) -> None:
    """Groups of so many calls, until waiting is worth so much."""
    for _ in range(50 * PROBE):
        closely(calls, count)
        if calls.gathering.worth >= worth:
            return
    raise AssertionError(f"worth {calls.gathering.worth}")


def turns_until_begun(calls: Calls) -> int:
    """How many turns without another call end the wait."""
    turns = 0
    while not calls.begun:
        calls.loop.turn()
        turns += 1
    return turns


def test_one_call_after_the_other_does_not_wait(clock: Callable[[float], None]) -> None:
    calls = Calls()
    for number in range(1, 20 * PROBE):
        calls.add()
        assert calls.begun == number or number % PROBE == 0
        calls.settle()
        assert calls.begun == number
    assert calls.gathering.worth == 0


def test_calls_that_come_closely_begin_together(clock: Callable[[float], None]) -> None:
    calls = Calls()
    teach(calls, 1, 4)
    calls.begun = 0
    for number in range(4):
        calls.add()
        calls.loop.turn()
        assert calls.begun == 0, number
    assert turns_until_begun(calls) == PATIENCE + KEENNESS - 1
    assert calls.begun == 4


def test_the_more_it_paid_the_longer_they_wait(clock: Callable[[float], None]) -> None:
    patience = []
    for count in (4, 8, 32):
        calls = Calls()
        teach(calls, 0.9 * (count - 1), count)
        calls.begun = 0
        calls.add()
        patience.append(turns_until_begun(calls))
    assert PATIENCE < patience[0] < patience[1] < patience[2] == MOST_PATIENCE


def test_waiting_ends_where_it_stops_to_pay(clock: Callable[[float], None]) -> None:
    calls = Calls()
    teach(calls, 3, 8)
    waited = 0
    for _ in range(100):
        before = calls.begun
        calls.add()
        waited += calls.begun == before
        calls.settle()
    assert waited < 40


def test_none_waits_longer_than_a_bound(clock: Callable[[float], None]) -> None:
    calls = Calls()
    teach(calls, 1, 4)
    calls.begun = 0
    for _ in range(9):
        calls.add()
        clock(0.13 * LONGEST)
        calls.loop.turn()
    assert calls.begun >= 8


def test_no_more_are_held_than_a_bound(clock: Callable[[float], None]) -> None:
    calls = Calls()
    teach(calls, 1, 4)
    calls.begun = 0
    for _ in range(MOST):
        calls.add()
    calls.loop.turn()
    assert calls.begun == MOST
