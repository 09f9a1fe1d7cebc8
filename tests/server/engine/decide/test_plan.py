"""The plan is pure: deadlines and costs in, rows of the next run out. On small cases it's compared with every schedule there is."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.decide.plan import Outlook, fitting, plan, rate_of

COSTS = [0.0, *(0.002 + 0.001 * rows for rows in range(1, 65))]


def outlook(costs: list[float] = COSTS, rate: float = 0.0, target: int = 16, **more: object) -> Outlook:
    return Outlook(0.0, costs, target, rate, 0.05, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("deadlines", "rows"),
    [
        ([], 0),
        ([0.001], 0),  # no run is that short
        ([0.003], 1),
        ([0.010, 0.011, 0.012], 3),  # nothing to give up
        ([0.0031, *[0.0225] * 20], 20),  # with the one only seventeen more
        ([0.0041, 0.0041, *[0.0125] * 6], 2),  # two by 4 ms, and the six after them by 12
    ],
)
def test_the_run_that_serves_most(deadlines: list[float], rows: int) -> None:
    assert plan(deadlines, outlook(rate=100.0)) == rows


def test_idle_time_is_worth_what_would_come() -> None:
    """Two urgent rows and ten that aren't: alone they're served first; where others press, one run for ten is better."""
    deadlines = [0.0041, 0.0041, *[0.0122] * 10]
    assert plan(deadlines, outlook(rate=1.0)) == 10
    assert plan([0.0041, 0.0041, *[0.017] * 10], outlook(rate=1.0)) == 2


def test_a_burst_in_the_past_changes_the_plan() -> None:
    """Rows that come evenly leave time for the two; a burst right behind them doesn't."""
    deadlines = [0.0041] * 2 + [0.0165] * 10
    calm = plan(deadlines, outlook(rate=10.0, history=[-10.0]))
    bursts = sorted(-0.0625 * span + 0.001 + number * 1e-5 for span in range(1, 13) for number in range(40))
    pressed = plan(deadlines, outlook(rate=640.0, history=[-10.0, *bursts]))
    assert (calm, pressed) == (2, 10)


def test_with_another_lane_free_both_are_served() -> None:
    deadlines = [0.0041] * 2 + [0.0125] * 10
    assert plan(deadlines, outlook(rate=1.0)) == 10
    assert plan(deadlines, outlook(rate=1.0, busy=(0.0,))) == 2


@given(st.lists(st.floats(0.001, 0.08), max_size=120), st.floats(0, 5000), st.integers(1, 64))
def test_the_run_ends_in_time_for_all_its_rows(deadlines: list[float], rate: float, target: int) -> None:
    deadlines.sort()
    rows = plan(deadlines, outlook(rate=rate, target=target, history=[-0.001 * n for n in range(200, 0, -1)]))
    in_time = [due for due in deadlines if due >= COSTS[rows]]
    assert rows <= len(in_time)
    assert (rows > 0) == any(due >= COSTS[1] for due in deadlines)


def test_few_rows_are_served_nearly_as_well_as_can_be() -> None:
    """The plan looks one run ahead and guesses the rest, so it isn't exact: [4, 4, 8, 8, 12, 12] ms costs it two rows of six. Over
    many cases it must be close to the best schedule there is, and far from it in none."""
    random = Random(1)
    shares = [_share([random.randint(3, 14) * 1e-3 for _ in range(random.randint(1, 7))]) for _ in range(600)]
    assert mean(shares) >= 0.98
    assert min(shares) >= 0.5


def _share(deadlines: list[float]) -> float:
    """Rows that one plan after the other serves, over the most that any schedule does."""
    deadlines.sort()
    served, now, left = 0, 0.0, deadlines
    while left:
        rows = plan([due - now for due in left], outlook(rate=1e-6, target=8))
        if not rows:
            break
        now += COSTS[rows]
        taken = [due for due in left if due >= now - 1e-12][:rows]
        served += len(taken)
        left = _without(left, taken, now)
    return served / _most(tuple(deadlines), 0.0)


def _without(left: list[float], taken: list[float], now: float) -> list[float]:
    rest = list(left)
    for due in taken:
        rest.remove(due)
    return [due for due in rest if due >= now]


def _most(deadlines: tuple[float, ...], now: float) -> int:
    """The most that any schedule serves: every run of neighbours is tried."""
    best = 0
    for first in range(len(deadlines)):
        for rows in range(1, len(deadlines) - first + 1):
            end = now + COSTS[rows]
            if end > deadlines[first] + 1e-12:
                break
            best = max(best, rows + _most(deadlines[first + rows :], end))
    return best


def test_fitting() -> None:
    assert [fitting(COSTS, seconds) for seconds in (0.0, 0.0029, 0.003, 1.0)] == [0, 0, 1, 64]
    assert fitting(COSTS, -1.0) == -1


def test_rate_of() -> None:
    assert rate_of([], 5.0, 10) == 0.0
    assert rate_of([1.0, 2.0, 3.0, 4.0], 5.0, 2) == pytest.approx(1.0)
    assert rate_of([5.0], 5.0, 10) == pytest.approx(50.0)  # not told from less than 20 ms
