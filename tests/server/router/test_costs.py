"""What warm-up measured, as capacity: straight between the points, and the largest run that keeps the objective."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.router.costs import Capacity, WarmUpCosts

COSTS = WarmUpCosts({1: 0.004, 8: 0.011, 64: 0.067})  # 3 ms and 1 ms a row


@pytest.mark.parametrize(("rows", "seconds"), [(1, 0.004), (4, 0.007), (8, 0.011), (36, 0.039), (64, 0.067), (128, 0.131)])
def test_straight_between_the_points(rows: int, seconds: float) -> None:
    assert COSTS.mean(rows) == pytest.approx(seconds)


def test_one_point_is_all_there_is() -> None:
    one = WarmUpCosts({4: 0.01})
    assert [one.mean(rows) for rows in (1, 4, 8)] == [0.01, 0.01, 0.02]
    assert WarmUpCosts({}).mean(3) == 0.0


@given(st.floats(0.001, 0.2), st.integers(1, 128))
def test_the_largest_run_that_keeps_the_objective(objective: float, max_rows: int) -> None:
    found = COSTS.capacity(objective, max_rows)
    assert 1 <= found.rows <= max_rows
    assert found.rate == pytest.approx(found.rows / COSTS.mean(found.rows))
    kept = [rows for rows in range(1, max_rows + 1) if COSTS.mean(rows) * (2 - 1 / rows) <= objective]
    assert found.rows == max(kept, default=1)


def test_without_an_objective_the_best_rate_counts() -> None:
    assert COSTS.capacity(None, 64).rows == 64
    assert COSTS.capacity(None, 16).rows == 8
    assert WarmUpCosts({}).capacity(0.1, 16) == Capacity(16, 0.0)
    assert COSTS.snapshot() == {"points": COSTS.points, "length": 1, "fit": None, "margin": None, "runs": 0, "changes": 0}
