"""Queries over a window. That PromQL is met is shown against Prometheus (test_agreement); here, what that can't show."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.alerts import labels_of
from monitor.metrics.query import Aggregate, Always, Arithmetic, Matcher, Over, Raw, Select
from monitor.series.vectors import NotComputable, Vectors, needed, quantile
from monitor.series.window import Reading, Window
from server.metrics.catalogue import REQUEST_SECONDS

A = labels_of({"instance": "i", "job": "j"})


@given(st.lists(st.floats(1e-5, 9.9), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_a_quantile_is_within_one_bucket_of_the_exact_one(seconds: list[float], q: float) -> None:
    bounds = (*REQUEST_SECONDS, math.inf)
    buckets = [(bound, float(sum(s <= bound for s in seconds))) for bound in bounds]
    exact = sorted(seconds)[math.ceil(q * len(seconds)) - 1]
    found = quantile(q, buckets)
    assert abs(bisect_left(bounds, found) - bisect_left(bounds, exact)) <= 1


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ([], math.nan),
        ([(1.0, 5.0)], math.nan),
        ([(1.0, 5.0), (2.0, 5.0)], math.nan),
        ([(1.0, 0.0), (math.inf, 0.0)], math.nan),
        ([(1.0, 0.0), (math.inf, 4.0)], 1.0),
        ([(math.nan, 9.0), (1.0, 2.0), (math.inf, 2.0)], 0.5),
        ([(1.0, 2.0), (2.0, 1.9), (math.inf, 2.0)], 0.5),
    ],
)
def test_histograms_that_are_hardly_any(buckets: list[tuple[float, float]], expected: float) -> None:
    assert quantile(0.5, buckets) == pytest.approx(expected, nan_ok=True)


def test_staleness_and_targets() -> None:
    window = Window({"x": 60.0, "up": 60.0})
    x, up = Select("x"), Select("up")
    window.ingest([Reading("j", "i", [("x", A, 1.0), ("unwanted", A, 1.0)])], 0.0)
    assert Vectors(window, 0.0).of(x) == {A: 1.0}
    window.ingest([Reading("j", "i", error="refused")], 5.0)
    assert Vectors(window, 5.0).of(x) == {}
    assert Vectors(window, 5.0).of(up) == {A: 0.0}
    window.ingest([Reading("j", "i", [("x", A, 2.0)])], 10.0)
    assert Vectors(window, 10.0).of(x) == {A: 2.0}
    window.ingest([], 15.0)
    assert Vectors(window, 15.0).of(up) == {}
    window.expire(1000.0)
    assert len(window) == 0


def test_only_what_is_looked_back_at_is_kept() -> None:
    window = Window({"x": 60.0})
    for second in range(3000):
        window.add("x", A, float(second), 1.0)
    (series,) = window.select(Select("x"))
    assert 300 <= len(series.times) < 300 + 2 * 64


def test_other_names_after_a_reload_keep_what_stays() -> None:
    window = Window({"x": 60.0, "y": 60.0})
    window.add("x", A, 0.0, 1.0)
    window.add("y", A, 0.0, 1.0)
    window.need({"x": 60.0, "z": 60.0})
    assert Vectors(window, 1.0).of(Select("x")) == {A: 1.0}
    assert Vectors(window, 1.0).of(Select("y")) == {}
    assert window.add("z", A, 1.0, 1.0)


def test_matchers() -> None:
    window = Window({"x": 60.0})
    for model in ("a", "ab", ""):
        window.add("x", labels_of({"model": model}), 0.0, 1.0)

    def found(op: str, value: str) -> set[str]:
        vector = Vectors(window, 0.0).of(Select("x", (Matcher("model", op, value),)))
        return {dict(labels).get("model", "") for labels in vector}

    assert found("=", "a") == {"a"}
    assert found("!=", "a") == {"ab", ""}
    assert found("=~", "a.?") == {"a", "ab"}
    assert found("!~", "a") == {"ab", ""}
    assert found("=", "") == {""}


def test_division_by_zero_is_as_in_promql() -> None:
    window = Window({"x": 60.0, "y": 60.0})
    window.add("x", A, 0.0, 1.0)
    window.add("y", A, 0.0, 0.0)
    vectors = Vectors(window, 0.0)
    assert vectors.of(Arithmetic("/", Select("x"), Select("y"))) == {A: math.inf}
    assert math.isnan(vectors.of(Arithmetic("/", Select("y"), Select("y")))[A])


def test_promql_needs_somebody_who_answers_it() -> None:
    with pytest.raises(NotComputable):
        Vectors(Window({}), 0.0).of(Raw("up"))
    assert Vectors(Window({}), 0.0).answer(Raw("up")) is None
    assert Vectors(Window({}), 0.0, {"up": {A: 1.0}}).of(Raw("up")) == {A: 1.0}
    assert Vectors(Window({}), 0.0).of(Always()) == {(): 1.0}


def test_what_queries_need() -> None:
    rate = Aggregate("sum", (), Over("rate", Select("c_total"), 3600.0))
    assert needed([rate, Arithmetic("/", rate, Select("g"))]) == {"c_total": 3600.0, "g": 300.0}
