"""How many lanes: what may be tried, what is worth it, and that a real trial keeps what it chose and closes the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.lanes.sweep import BUDGET, MOST_LANES, TINY, Shape, affordable, best_of, candidates, sizes_that_matter, sweep
from server.lanes.warmup import WarmUp
from server.tensors import Tensor
from tests.server.lanes.scripted import Scripted, spec_of


@pytest.mark.parametrize(
    ("cores", "count", "threads", "shapes"),
    [
        (1, 0, 0, [(1, 1)]),
        (2, 0, 0, [(1, 2), (2, 1)]),
        (4, 0, 0, [(1, 4), (4, 1), (2, 2)]),
        (16, 0, 0, [(1, 16), (8, 2), (4, 4), (2, 8)]),
        (4, 2, 0, [(2, 2)]),
        (4, 2, 1, [(2, 1)]),
        (2, 3, 0, [(3, 1)]),
        (4, 0, 2, [(1, 2), (2, 2)]),
        (2, 0, 2, [(1, 2)]),
    ],
)
def test_what_may_be_tried(cores: int, count: int, threads: int, shapes: list[tuple[int, int]]) -> None:
    assert candidates(cores, count, threads) == [Shape(*shape) for shape in shapes]


@given(st.integers(1, 256), st.integers(0, 4), st.integers(0, 8))
def test_candidates_use_the_cores_they_have(cores: int, count: int, threads: int) -> None:
    shapes = candidates(cores, count, threads)
    assert len(set(shapes)) == len(shapes)
    if not count:
        assert all(shape.count <= MOST_LANES for shape in shapes)
        assert all(shape.count * shape.threads <= cores for shape in shapes if shape.count > 1)


ONE, TWO, FOUR = Shape(1, 4), Shape(2, 2), Shape(4, 1)


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({ONE: {1: 95.0, 8: 100.0}, TWO: {1: 191.0, 8: 200.0}}, TWO),
        ({ONE: {1: 100.0}, TWO: {1: 102.0}}, ONE),
        ({ONE: {1: 100.0, 8: 100.0}, TWO: {1: 150.0, 8: 80.0}, FOUR: {1: 300.0, 8: 30.0}}, TWO),
        ({ONE: {1: 1.0}}, ONE),
    ],
)
def test_what_is_best(rates: Mapping[Shape, Mapping[int, float]], best: Shape) -> None:
    assert best_of(rates) == best


def test_the_sizes_that_matter() -> None:
    assert sizes_that_matter({1: 0.01, 8: 0.04, 64: 0.9}) == (1, 8)
    assert sizes_that_matter({1: 0.01, 8: 0.08}) == (1,)
    assert sizes_that_matter({1: TINY / 2, 64: TINY}) == ()
    assert sizes_that_matter({1: 0.2, 8: 1.0}) == (1,)
    assert sizes_that_matter({1: 3.0}) == ()
    assert sizes_that_matter({}) == ()


@given(st.floats(0.0, 5.0), st.floats(0.001, 0.25))
def test_a_sweep_keeps_to_its_budget(open_seconds: float, run_seconds: float) -> None:
    shapes = [ONE, FOUR, TWO]
    chosen = affordable(shapes, (1,), {1: run_seconds}, open_seconds)
    assert chosen[0] == ONE
    assert sum(shape.count for shape in chosen[1:]) * open_seconds <= BUDGET
    if open_seconds > 1.0:
        assert chosen == [ONE]


class Paced(Scripted):
    """Sleeps as a model would compute: alone it has its threads' speed, beside others too."""

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        time.sleep(0.004 if self.threads == 2 else 0.005)
        return {"y": inputs["x"]}


def paced(threads: int) -> Paced:
    backend = Paced(spec_of())
    backend.threads = threads
    return backend


def test_a_trial_keeps_the_best_and_closes_the_rest() -> None:
    first = paced(2)
    opened: list[Paced] = []

    def another(threads: int) -> Paced:
        opened.append(paced(threads))
        return opened[-1]

    warmup = WarmUp({1: 0.004}, batched=True)
    choice = sweep(first, [Shape(1, 2), Shape(2, 1)], warmup, (0.0, 0), another)
    assert choice.shape == Shape(2, 1)
    assert list(choice.backends) == opened
    assert first.closed
    assert not any(backend.closed for backend in opened)
    assert choice.why.startswith("rows/s measured at warm-up: 1 x 2 threads: ")


def test_a_trial_that_fails_closes_what_it_opened() -> None:
    first = paced(2)
    opened: list[Paced] = []

    def another(threads: int) -> Paced:
        if opened:
            raise MemoryError
        opened.append(paced(threads))
        return opened[-1]

    with pytest.raises(MemoryError):
        sweep(first, [Shape(1, 2), Shape(2, 1)], WarmUp({1: 0.004}, batched=True), (0.0, 0), another)
    assert opened[0].closed
    assert not first.closed, "it's the caller's"


def test_a_model_that_is_slow_to_open_isnt_tried() -> None:
    first = paced(2)
    choice = sweep(first, [Shape(1, 2), Shape(2, 1)], WarmUp({1: 0.004}, batched=True), (3.0, 0), paced)
    assert choice.backends == (first,)
    assert choice.why == "more weren't tried: opening one took 3.0 s"


def test_a_model_larger_than_the_memory_isnt_tried() -> None:
    choice = sweep(paced(2), [Shape(1, 2), Shape(2, 1)], WarmUp({1: 0.004}, batched=True), (0.0, 1 << 60), paced)
    assert choice.shape == Shape(1, 2)
