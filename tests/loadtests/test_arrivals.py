"""Arrival processes: sorted, as many as asked for, and of the character that they say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.arrivals import due_times, rate_at
from loadtests.scenario import Arrivals, Shape

SECONDS = 400.0
SHAPES = (
    Shape(),
    Shape(kind="ramp", to=150),
    Shape(kind="steps", rates=(10, 90, 200)),
    Shape(kind="spike", to=400, at=0.5, lasts=0.1),
    Shape(kind="diurnal", to=120, periods=2),
)
PROCESSES = ("poisson", "uniform", "gamma", "mmpp")


@given(st.sampled_from(PROCESSES), st.sampled_from(SHAPES), st.integers(0, 2**32), st.floats(0.05, 20))
def test_times_rise_within_the_run_and_a_seed_repeats_them(process: str, shape: Shape, seed: int, seconds: float) -> None:
    arrivals = Arrivals.model_validate({"process": process, "rate": 50, "shape": shape})
    due = due_times(arrivals, seconds, np.random.default_rng(seed))
    assert np.all(np.diff(due) >= 0)
    assert not len(due) or (due[0] >= 0 and due[-1] < seconds)
    assert np.array_equal(due, due_times(arrivals, seconds, np.random.default_rng(seed)))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_as_many_come_as_the_rate_says_in_each_part(process: str, shape: Shape) -> None:
    arrivals = Arrivals.model_validate({"process": process, "rate": 60, "shape": shape, "burst_lasts": 0.2})
    due = due_times(arrivals, SECONDS, np.random.default_rng(7))
    edges = np.linspace(0, SECONDS, 5)
    for begin, end in pairwise(edges):
        grid = np.linspace(begin, end, 2001)[:-1]
        expected = float(rate_at(60, shape, grid, SECONDS).mean()) * (end - begin)
        found = int(((due >= begin) & (due < end)).sum())
        assert found == pytest.approx(expected, rel=0.15, abs=40), (begin, end)


GAPS = [("poisson", 2.0, 1.0), ("uniform", 2.0, 0.0), ("gamma", 3.0, 3.0), ("gamma", 0.5, 0.5)]


@pytest.mark.parametrize(("process", "cv", "expected"), GAPS)
def test_gaps_scatter_as_the_process_has_it(process: str, cv: float, expected: float) -> None:
    gaps = np.diff(due_times(Arrivals.model_validate({"process": process, "rate": 50, "cv": cv}), 600, np.random.default_rng(3)))
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.1, abs=1e-6)


def test_bursts_are_seen_as_bursts() -> None:
    arrivals = Arrivals(process="mmpp", rate=100, burst=5, burst_share=0.1, burst_lasts=2.0)
    due = due_times(arrivals, 1000, np.random.default_rng(5))
    counts = np.histogram(due, np.arange(0, 1001, 0.5))[0]
    assert np.mean(counts > 2 * counts.mean()) == pytest.approx(0.1, abs=0.05)  # where a half second has twice the mean
    assert counts.var() / counts.mean() > 20  # a Poisson process has 1
