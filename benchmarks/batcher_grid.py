"""The grid that batchers are compared on: three models of a T4, four laws of arrival, four loads, two seeds; and its exact optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

REQUESTS = 2000
MAX_ROWS = 64
LOADS = (0.5, 0.8, 1.0, 1.3)
SEEDS = (1, 2)
WARMUP_ROWS = (1, 8, 64)
WARMUP_SIGMA = 0.05
SERVICE_SIGMA = 0.02
SPIKE_PROBABILITY, SPIKE_FACTOR = 0.001, 1.7
NOISE_SEED = 1000

Times: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EmulatedModel:
    """Service time in seconds is alpha + beta·rows, a fit to NVIDIA's published T4 latencies; a request must be answered within
    `objective`."""

    name: str
    alpha: float
    beta: float
    objective: float

    def seconds(self, rows: int) -> float:
        return self.alpha + self.beta * rows

    @property
    def target(self) -> int:
        """b*: the most rows a run with which no request is late as long as runs are full."""
        return max(b for b in range(1, MAX_ROWS + 1) if self.seconds(b) * (2 - 1 / b) <= self.objective)

    @property
    def capacity(self) -> float:
        """μ*, rows/s."""
        return self.target / self.seconds(self.target)


MODELS = (
    EmulatedModel("resnet50 fp16", 2.331e-3, 0.799e-3, 0.050),
    EmulatedModel("resnet50 int8", 0.647e-3, 0.170e-3, 0.015),
    EmulatedModel("bert_base_128 int8", 0.764e-3, 0.509e-3, 0.030),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One trace: `load` is the mean rate as a share of μ*."""

    model: EmulatedModel
    law: str
    load: float
    seed: int

    @property
    def cell(self) -> tuple[str, str, float]:
        """What the seeds are averaged over."""
        return self.model.name, self.law, self.load

    def arrivals(self) -> Times:
        """When each of the requests, of one row each, comes."""
        return LAWS[self.law](self.load * self.model.capacity, np.random.default_rng(self.seed))


def grid() -> Iterator[Case]:
    """All cases."""
    for model in MODELS:
        for law in LAWS:
            for load in LOADS:
                for seed in SEEDS:
                    yield Case(model, law, load, seed)


def _poisson(rate: float, random: np.random.Generator) -> Times:
    return np.cumsum(random.exponential(1 / rate, REQUESTS))


def _gamma(rate: float, random: np.random.Generator) -> Times:
    """Gaps whose standard deviation is four times their mean."""
    shape = 1 / 16
    return np.cumsum(random.gamma(shape, 1 / (rate * shape), REQUESTS))


def _mmpp(rate: float, random: np.random.Generator) -> Times:
    """Poisson at a third of the rate for 0.75 s in the mean, then at three times the rate for 0.25 s in the mean, and again."""
    times: list[float] = []
    now, high = 0.0, False
    while len(times) < REQUESTS:
        end = now + random.exponential(0.25 if high else 0.75)
        now += random.exponential(1 / (rate * (3 if high else 1 / 3)))
        while now <= end:
            times.append(now)
            now += random.exponential(1 / (rate * (3 if high else 1 / 3)))
        now, high = end, not high
    return np.array(times[:REQUESTS])


def _sine(rate: float, random: np.random.Generator) -> Times:
    """Poisson whose rate swings by 80 % twice within the trace, as it does by day and night."""
    swing, period = 0.8, REQUESTS / rate / 2
    times: list[float] = []
    now = 0.0
    while len(times) < REQUESTS:
        now += random.exponential(1 / (rate * (1 + swing)))
        if random.random() * (1 + swing) < 1 + swing * np.sin(2 * np.pi * now / period):
            times.append(now)
    return np.array(times)


LAWS: Mapping[str, Callable[[float, np.random.Generator], Times]] = MappingProxyType(
    {"poisson": _poisson, "gamma CV 4": _gamma, "MMPP": _mmpp, "diurnal": _sine}
)


class Device:
    """Service times with the noise of a T4: at least the fit, half-normal above it, a rare spike. The same for the n-th run of a trace
    whatever the policy."""

    def __init__(self, case: Case) -> None:
        self._model = case.model
        self._random = np.random.default_rng(NOISE_SEED + case.seed)

    def warmup(self) -> dict[int, float]:
        """What a cost model starts from."""
        return {rows: self._model.seconds(rows) * (1 + WARMUP_SIGMA * self._random.standard_normal()) for rows in WARMUP_ROWS}

    def run(self, rows: int) -> float:
        """Seconds of a run."""
        seconds = self._model.seconds(rows) * (1 + abs(self._random.normal(0, SERVICE_SIGMA)))
        return seconds * (SPIKE_FACTOR if self._random.random() < SPIKE_PROBABILITY else 1)


def optimum(arrivals: Times, model: EmulatedModel, dropped: int) -> int:
    """The most requests that any schedule answers in time, known all arrivals and no noise. `dropped` is how many some schedule drops,
    which bounds the search.

    F(k, q), the earliest that the first k are done with q of them dropped, is min of F(k−1, q−1) and, over b, of
    max(F(k−b, q), r_k) + T(b) where that is within the deadline of the run's first. Contiguous runs suffice: deadlines are equal.
    """
    count, most = len(arrivals), MAX_ROWS
    costs = np.array([model.seconds(rows) for rows in range(1, most + 1)])
    due = arrivals + model.objective
    finish = np.full((most + count + 1, dropped + 1), np.inf)  # row `most + k` is F(k, ·)
    finish[most, 0] = 0.0
    for k in range(1, count + 1):
        last = arrivals[k - 1]
        limits = due[max(0, k - most) : k][::-1]
        runs = int(np.count_nonzero(np.logical_and.accumulate(last + costs[: len(limits)] <= limits)))
        best = finish[most + k]
        best[1:] = finish[most + k - 1, :-1]
        if runs:
            done = np.maximum(finish[most + k - runs : most + k][::-1], last) + costs[:runs, None]
            done[done > limits[:runs, None]] = np.inf
            np.minimum(best, done.min(axis=0), out=best)
    return count - int(np.argmax(np.isfinite(finish[-1])))
