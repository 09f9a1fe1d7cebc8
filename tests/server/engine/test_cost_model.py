"""The cost model: it starts from warm-up, learns from runs, stays determined, notices what lasts and ignores what doesn't."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.cost_model import CostModel
from server.engine.decide.least_squares import Sums

WARMUP_ROWS = (1, 8, 64)


def affine(rows: int, length: int = 1) -> float:
    return 0.002 + 0.0005 * rows * length


def ragged(rows: int, length: int) -> float:
    return 0.001 + 1e-4 * rows * length + 2e-7 * rows * length * length


def noise(random: Random, sigma: float = 0.02) -> float:
    return 1 + abs(random.gauss(0, sigma))


def warmed(cost: Callable[[int], float] = affine) -> CostModel:
    return CostModel({rows: cost(rows) for rows in WARMUP_ROWS})


def feed(model: CostModel, runs: int, factor: float = 1.0, rows: tuple[int, int] = (10, 40), seed: int = 1) -> CostModel:
    random = Random(seed)
    for _ in range(runs):
        count = random.randint(*rows)
        model.observe(count, factor * affine(count) * noise(random))
    return model


def test_starts_from_warm_up() -> None:
    model = warmed()
    assert model.mean(30) == pytest.approx(affine(30))
    assert model.estimate(30) == pytest.approx(1.05 * affine(30))
    assert model.estimates(2) == [0.0, model.estimate(1), model.estimate(2)]


def test_nothing_measured_is_unknown_not_slow() -> None:
    model = CostModel({})
    assert (model.known, model.estimate(64), model.capacity(0.05, 64).rows, model.preferred(64)) == (False, 0.0, 64, 64)


def test_learns_away_from_a_wrong_warm_up() -> None:
    model = feed(warmed(lambda rows: affine(rows) * (1.3 if rows == 8 else 0.8)), 400)
    for rows in (10, 20, 40):
        assert model.mean(rows) == pytest.approx(affine(rows) * 1.016, rel=0.01)  # half-normal noise of 2 % is 1.6 % in the mean


def test_the_estimate_covers_what_it_says() -> None:
    random, model = Random(5), feed(warmed(), 400)
    rows = [random.randint(10, 40) for _ in range(5000)]
    over = sum(affine(count) * noise(random) > model.estimate(count) for count in rows)
    assert 0.001 < over / len(rows) < 0.02
    assert model.margin < 0.05


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.1, 1.5, 3.0])
def test_a_change_that_lasts_is_noticed_within_tens_of_runs(factor: float) -> None:
    model = feed(warmed(), 500)
    feed(model, 20, factor, seed=2)
    for rows in (1, 20, 64):  # the sizes that didn't run too
        assert model.mean(rows) == pytest.approx(factor * affine(rows), rel=0.06)
    feed(model, 20, 1.0, seed=3)
    assert model.mean(20) == pytest.approx(affine(20), rel=0.04)
    assert model.changes == 2


def test_a_spike_moves_nothing() -> None:
    model = feed(warmed(), 300)
    for seed in range(10):
        model.observe(20, 20 * affine(20))
        feed(model, 200, seed=seed)
        assert model.mean(20) == pytest.approx(1.016 * affine(20), rel=0.015)
    assert (model.changes, model.margin < 0.05) == (0, True)


def test_runs_of_one_size_leave_the_curve_determined() -> None:
    model = feed(warmed(), 2000, factor=1.4, rows=(16, 16))
    for rows in (1, 8, 64):
        assert model.mean(rows) == pytest.approx(1.4 * affine(rows), rel=0.08)


@pytest.mark.parametrize("warmup", [{}, {1: affine(1)}])
def test_one_size_alone_lets_larger_runs_be_tried(warmup: dict[int, float]) -> None:
    model = CostModel(warmup)
    for _ in range(50):
        model.observe(1, affine(1))
    assert model.preferred(64) > 8
    for _ in range(50):
        model.observe(20, affine(20))
    assert model.mean(10) == pytest.approx(affine(10), rel=0.05)


def test_learns_rows_and_length_from_a_warm_up_of_one_length() -> None:
    random, model = Random(3), CostModel({rows: ragged(rows, 16) for rows in (1, 4, 16)}, length=16)
    for _ in range(600):
        rows, length = random.randint(1, 8), random.randint(8, 128)
        model.observe(rows, ragged(rows, length) * noise(random), length)
    for rows in (1, 4, 8):
        for length in (8, 28, 128):
            assert model.mean(rows, length) == pytest.approx(ragged(rows, length) * 1.016, rel=0.02)


def test_a_device_that_is_not_straight_is_followed() -> None:
    def stepped(rows: int) -> float:
        return 0.002 + 0.001 * (rows + (16 if rows > 16 else 0))

    random, model = Random(3), warmed(stepped)
    for _ in range(2000):
        rows = random.choice([2, 4, 8, 16, 32, 64])
        model.observe(rows, stepped(rows))
    for rows in (8, 32, 64):
        assert model.mean(rows) == pytest.approx(stepped(rows), rel=0.06)


def test_capacity_is_the_largest_run_that_keeps_the_objective() -> None:
    model = warmed()
    capacity = model.capacity(0.030, 64)
    assert model.estimate(capacity.rows) * (2 - 1 / capacity.rows) <= 0.030
    assert model.estimate(capacity.rows + 1) * (2 - 1 / (capacity.rows + 1)) > 0.030
    assert capacity.rate == pytest.approx(capacity.rows / model.mean(capacity.rows))
    assert model.capacity(0.001, 64).rows == 1  # can't be kept


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        ({1: 0.010, 8: 0.080, 64: 0.640}, 1),  # a CPU with one thread: nothing gained
        ({rows: affine(rows) for rows in WARMUP_ROWS}, 34),
    ],
)
def test_preferred_is_where_rows_per_second_gain_nothing(latency: dict[int, float], expected: int) -> None:
    assert CostModel(latency).preferred(64) == expected


def test_the_snapshot_is_plain_and_says_what_was_measured() -> None:
    model = feed(warmed(), 10)
    shown = model.snapshot()
    assert shown["points"] == {rows: affine(rows) for rows in WARMUP_ROWS}
    assert set(shown["fit"]) == {"a", "c1", "c2"}
    assert (shown["runs"], shown["changes"]) == (10, 0)
    assert set(shown["now"]) == set(WARMUP_ROWS)


runs = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 128), st.floats(1e-5, 10.0)), max_size=40)


@given(st.dictionaries(st.integers(1, 64), st.floats(1e-5, 1.0), max_size=4), runs, st.integers(1, 200))
def test_more_rows_or_cells_never_take_less(warmup: dict[int, float], runs: list[tuple[int, int, float]], length: int) -> None:
    model = CostModel(warmup)
    for rows, cells, seconds in runs:
        model.observe(rows, seconds, cells)
    for curve in (model.mean, model.estimate):
        times = [curve(rows, length) for rows in range(1, 80)]
        assert times == sorted(times)
        lengths = [curve(3, cells) for cells in range(1, 200, 7)]
        assert lengths == sorted(lengths)
    assert all(model.estimate(rows, length) >= model.mean(rows, length) >= 0 for rows in (1, 7, 64, 1000))


@given(st.floats(0, 1), st.floats(1e-6, 1), st.floats(0, 1e-3))
def test_the_fit_finds_what_made_the_runs(a: float, c1: float, c2: float) -> None:
    sums = Sums()
    for cells, length in ((1, 1), (8, 1), (40, 8), (64, 64), (400, 100)):
        sums.add(cells, length, a + c1 * cells + c2 * cells * length, 1.0)
    found = sums.solve()
    for cells, length in ((5, 1), (100, 20)):
        made = a + c1 * cells + c2 * cells * length
        assert found[0] + found[1] * cells + found[2] * cells * length == pytest.approx(made, rel=1e-3)
