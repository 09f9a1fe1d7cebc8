"""Rates and trends: exact at a constant rate, foreseen on a ramp, and not fooled by how arrivals scatter."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.precision.load import LONGEST, Load


def loaded(counts: list[float], start: float = 1000.0) -> Load:
    """One reading a second; `counts` are what came in each."""
    load, rows = Load(), 0.0
    load.note(start, rows)
    for second, count in enumerate(counts, 1):
        rows += count
        load.note(start + second, rows)
    return load


def test_nothing_was_read() -> None:
    assert Load().rate == 0.0
    assert Load().ahead(5.0) == 0.0
    assert loaded([]).rate == 0.0


@given(st.floats(0, 1e5), st.integers(2, 60), st.floats(0, 30))
def test_a_constant_rate_is_itself_and_foreseen_so(rate: float, seconds: int, ahead: float) -> None:
    load = loaded([rate] * seconds)
    assert load.rate == pytest.approx(rate)
    assert load.ahead(ahead) == pytest.approx(rate, rel=1e-6)


def test_a_busy_rate_is_seconds_old_and_a_quiet_one_is_not_noise() -> None:
    assert loaded([100.0] * 20 + [200.0] * 3).rate == pytest.approx(200)
    assert loaded([0.0] * 25 + [6.0]).rate == pytest.approx(6 / 26)


def test_what_is_long_ago_is_forgotten() -> None:
    assert loaded([1.0] * 50 + [0.0] * (int(LONGEST) + 1)).rate == 0.0


def test_a_ramp_is_foreseen() -> None:
    load = loaded([100.0 + 20 * second for second in range(12)])
    assert load.rate == pytest.approx(300, rel=0.01)  # of the last three seconds
    assert load.ahead(5.0) == pytest.approx(320 + 20 * 5.5, rel=0.01)


def test_no_more_than_twice_the_rate_is_foreseen() -> None:
    assert loaded([float(100 * second) for second in range(12)]).ahead(1000.0) == pytest.approx(2 * 1000, rel=0.01)


def test_a_fall_is_not_foreseen_before_it_is_there() -> None:
    load = loaded([1000.0 - 50 * second for second in range(12)])
    assert load.ahead(5.0) == load.rate


@given(st.integers(0, 2**32), st.sampled_from([50, 100, 500]))
def test_poisson_arrivals_are_seldom_taken_for_a_ramp(seed: int, rate: int) -> None:
    random = Random(seed)
    counts = [float(sum(random.random() < 0.1 for _ in range(10 * rate))) for _ in range(12)]
    load = loaded(counts)
    assert load.ahead(3.0) < 1.6 * rate  # even a trend that chance made doesn't lead far


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=80), st.floats(0, 60))
def test_it_is_never_below_the_rate_nor_far_above(counts: list[float], ahead: float) -> None:
    load = loaded(counts)
    assert 0 <= load.rate <= max(counts) + 1e-6
    assert load.rate <= load.ahead(ahead) <= 2 * load.rate + 1e-6
