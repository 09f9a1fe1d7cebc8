"""Simulated roll-outs: how often a harmless canary is rolled back, how soon a bad one is, by the server's own martingales.

Many runs at once: a row a run, a column a look. Requests are independent, an arm each by chance; latencies are log-normal with CV 0.5, mean
1 and an objective of 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.router.experiment import LEAST_BLOCKS, LEAST_VALUES
from server.router.martingales import FEWER, MORE, normal_mixture, risk_ratio

Values: TypeAlias = "NDArray[np.float64]"

ALPHA = 0.05
CV, OBJECTIVE = 0.5, 2.5
SIGMA = math.sqrt(math.log1p(CV * CV))
CELLS = 2_000_000  # of one array
NEVER = math.inf
MINUTE = 60  # seconds that each step lasts at least


@dataclass(frozen=True, slots=True)
class Traffic:
    """`shares` of the canary (0 … 1) by look, `requests` between looks, and seconds between looks (0: looks are after requests)."""

    shares: Values
    requests: int = 1
    seconds: float = 0.0

    @classmethod
    def looked_at_each(cls, requests: int) -> Traffic:
        """Half of so many requests to the canary, a look after each."""
        return cls(np.full(requests, 0.5))

    @classmethod
    def rolled_out(cls, rate: int, seconds: int) -> Traffic:
        """Steps of 1, 5, 25 and 50 %, each for a minute and 100 requests of the canary at least; a look each second."""
        shares: list[float] = []
        for share in (0.01, 0.05, 0.25):
            shares += [share] * max(MINUTE, math.ceil(100 / (share * rate)))
        return cls(np.array((shares + [0.5] * seconds)[:seconds]), rate, 1.0)


@dataclass(frozen=True, slots=True)
class Arms:
    """What happened between looks: counts, sums and sums of squares of one metric, (baseline, canary)."""

    n: tuple[Values, Values]
    x: tuple[Values, Values]
    q: tuple[Values, Values]


@dataclass(frozen=True, slots=True)
class Event:
    """Requests fail, or click (`lower`: fewer is worse), with the arms' risks (baseline, canary). `margin` is what promotion tolerates."""

    risks: tuple[float, float]
    margin: float
    lower: bool = False

    def draw(self, traffic: Traffic, runs: int, random: np.random.Generator) -> Arms:
        """Runs of it."""
        n = _exposures(traffic, runs, random)
        x = tuple(random.binomial(arm, risk).astype(float) for arm, risk in zip(n, self.risks, strict=True))
        counts = (n[0].astype(float), n[1].astype(float))
        return Arms(counts, (x[0], x[1]), (x[0], x[1]))

    def harm(self, traffic: Traffic, arms: Arms) -> Values:
        """log-evidence at each look that the canary is worse."""
        counts = [(_so_far(arms.x[1], at), _so_far(arms.x[0], at), share) for share, at in _strata(traffic)]
        return risk_ratio(counts, FEWER if self.lower else MORE)

    def proof(self, traffic: Traffic, arms: Arms) -> Values:
        """log-evidence at each look that it's worse by less than the margin."""
        gap, variance, _ = _difference(traffic, arms, 1.0, event=True)
        return _mixture(self.margin + gap if self.lower else self.margin - gap, variance, self.margin)


@dataclass(frozen=True, slots=True)
class Latency:
    """The canary takes `slower` times as long in the mean."""

    slower: float
    margin: float

    def draw(self, traffic: Traffic, runs: int, random: np.random.Generator) -> Arms:
        """Runs of it, truncated at 10 times the objective."""
        shape = (runs, len(traffic.shares), traffic.requests)
        canary = random.random(shape) < traffic.shares[:, None]
        taken = np.exp(random.normal(-SIGMA * SIGMA / 2, SIGMA, shape))
        taken = np.minimum(np.where(canary, self.slower * taken, taken), 10 * OBJECTIVE)
        own = [np.where(arm, taken, 0.0) for arm in (~canary, canary)]
        n = [arm.sum(2).astype(float) for arm in (~canary, canary)]
        return Arms((n[0], n[1]), (own[0].sum(2), own[1].sum(2)), (np.square(own[0]).sum(2), np.square(own[1]).sum(2)))

    def harm(self, traffic: Traffic, arms: Arms) -> Values:
        """As Event's."""
        gap, variance, mean = _difference(traffic, arms, 1.0, event=False)
        return _mixture(gap, variance, self.margin * mean)

    def proof(self, traffic: Traffic, arms: Arms) -> Values:
        """As Event's."""
        gap, variance, mean = _difference(traffic, arms, 1 + self.margin, event=False)
        return _mixture(-gap, variance, self.margin * mean)


def found(metric: Event | Latency, traffic: Traffic, guards: int, runs: int, seed: int) -> tuple[Values, Values]:
    """(canary requests, seconds) until each run is rolled back where alpha is split over so many guards; infinite where it isn't."""
    needed: list[Values] = []
    times: list[Values] = []
    for size, random in _chunks(traffic, runs, seed):
        arms = metric.draw(traffic, size, random)
        hit = metric.harm(traffic, arms) >= math.log(guards / ALPHA)
        if traffic.seconds:
            hit[:, : LEAST_BLOCKS - 1] = False
        first = hit.argmax(1)
        caught = hit.any(1)
        seen = arms.n[1].cumsum(1)[np.arange(size), first]
        needed.append(np.where(caught, seen, NEVER))
        times.append(np.where(caught, (first + 1) * traffic.seconds, NEVER))
    return np.concatenate(needed), np.concatenate(times)


def harmless(metrics: Sequence[Event | Latency], traffic: Traffic, runs: int, seed: int) -> tuple[float, Values]:
    """Of canaries that equal the baseline: the share rolled back at any look, and looks until promotion (infinite where it isn't)."""
    bad = 0
    looks: list[Values] = []
    for size, random in _chunks(traffic, runs, seed):
        harmed = np.zeros(size, bool)
        last = (traffic.shares == 0.5).cumsum() > MINUTE * (traffic.seconds > 0)
        proven = np.broadcast_to(last, (size, len(traffic.shares))).copy()
        for metric in metrics:
            arms = metric.draw(traffic, size, random)
            harmed |= (metric.harm(traffic, arms) >= math.log(len(metrics) / ALPHA)).any(1)
            proven &= metric.proof(traffic, arms) >= -math.log(ALPHA)
        bad += int(harmed.sum())
        looks.append(np.where(proven.any(1), proven.argmax(1) + 1.0, NEVER))
    return bad / runs, np.concatenate(looks)


def fixed_size(base: float, canary: float) -> float:
    """Requests an arm that a one-sided test of two proportions at ALPHA and 80 % power needs."""
    z = 1.6449 + 0.8416
    return z * z * (base * (1 - base) + canary * (1 - canary)) / (base - canary) ** 2


OUTCOME = Event((0.10, 0.08), 0.02, lower=True)


def _chunks(traffic: Traffic, runs: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    random = np.random.default_rng(seed)
    size = max(1, CELLS // (len(traffic.shares) * traffic.requests))
    for start in range(0, runs, size):
        yield min(size, runs - start), random


def _exposures(traffic: Traffic, runs: int, random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    canary = random.binomial(traffic.requests, np.broadcast_to(traffic.shares, (runs, len(traffic.shares))))
    return traffic.requests - canary, canary


def _strata(traffic: Traffic) -> list[tuple[float, NDArray[np.bool_]]]:
    return [(float(share), traffic.shares == share) for share in np.unique(traffic.shares)]


def _so_far(values: Values, at: NDArray[np.bool_]) -> Values:
    total: Values = np.where(at, values, 0.0).cumsum(1)
    return total


def _mixture(gap: Values, variance: Values, scale: float | Values) -> Values:
    """normal_mixture where enough was seen, else nothing."""
    return np.where(np.isfinite(variance), normal_mixture(gap, variance, scale), 0.0)


def _difference(traffic: Traffic, arms: Arms, scale: float, *, event: bool) -> tuple[Values, Values, Values]:
    """As experiment's: canary − scale · baseline, its variance (infinite where too little was seen), the baseline's mean."""
    weights = pulled = 0.0 * arms.n[0]
    for _, at in _strata(traffic):
        means, variances, enough = [], [], np.ones(arms.n[0].shape, bool)
        for n, x, q in zip(arms.n, arms.x, arms.q, strict=True):
            count, total = _so_far(n, at), _so_far(x, at)
            safe = np.maximum(count, 2.0)
            mean = total / safe
            risk = (total + 1) / (safe + 2)
            spread = risk * (1 - risk) / safe if event else np.maximum(_so_far(q, at) / safe - mean**2, 1e-12) / (safe - 1)
            means.append(mean)
            variances.append(spread)
            enough &= count >= LEAST_VALUES
        weight = np.where(enough, 1 / (variances[1] + scale**2 * variances[0]), 0.0)
        weights = weights + weight
        pulled = pulled + weight * (means[1] - scale * means[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(weights > 0, pulled / weights, 0.0)
        variance = 1 / weights
    mean = arms.x[0].cumsum(1) / np.maximum(arms.n[0].cumsum(1), 1.0)
    return gap, variance, np.maximum(mean, 1e-9)
