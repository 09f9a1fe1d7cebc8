"""What two arms' sums say: estimates with confidence sequences, the effect, a sample-ratio alarm, a verdict. Pure.

An A/B test is judged by this alone, a canary by it and its schedule (canary). It counts strata apart and weighs their differences by their
precision, so that a share that changed when the load did doesn't pass for an effect. Requests that ran together fared together: the
scatter between blocks of time, over what independent requests would have, is the design effect (Kish 1965; Liang & Zeger 1986), and
evidence is divided by it, never multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from server.errors import ConfigError
from server.router import agreement
from server.router.evidence import NOTHING, UNIT, Arm, Evidence, Stratum, Sums, add_up
from server.router.martingales import FEWER, MORE, half_width, normal_mixture, risk_ratio, share_mixture
from server.validation import nearest

LEAST_BLOCKS = 8
"""Of time, before anything is concluded: how far blocks scatter isn't known earlier."""
LEAST_VALUES = 30
"""In each arm of a stratum, before its means count."""
RATIO_ALPHA = 1e-3
"""Of the sample-ratio alarm, over a whole experiment."""


@dataclass(frozen=True, slots=True)
class Metric:
    """`event`: values are 0 or 1. `relative`: its margin is a share of the baseline's mean. `lower`: less is worse. `alone`: only the
    canary has values, and what is tested is whether their share is more or less than the margin."""

    event: bool
    relative: bool = False
    lower: bool = False
    alone: bool = False


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "errors": Metric(event=True),  # of all exposures
        "latency": Metric(event=False, relative=True),  # as a share of 10 times the objective, where it's truncated
        "slow": Metric(event=True),  # longer than the objective
        "outcome": Metric(event=True, lower=True),  # a click, a right label
        "rating": Metric(event=False, relative=True, lower=True),
        "agreement": Metric(event=True, alone=True),  # shadow copies whose answers differ from the baseline's
    }
)
EXPOSURES = "errors"
"""The metric that every exposure is counted in."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A metric and by how much the canary may be worse before it isn't promoted: in the metric's unit, or relative."""

    metric: str
    margin: float

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"guard: unknown metric {self.metric[:80]!r}{nearest(self.metric, METRICS)}")
        if not 0 < self.margin <= 1:
            raise ConfigError(f"guard {self.metric!r}: margin: expected more than 0 and at most 1, got {self.margin}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A guard's figures. `worse` is by how much the canary is worse, within `low` … `high` at all times with confidence 1 − alpha (None
    while nothing can be said). `harm` and `proof` are log-evidence for being worse at all and for being worse by less than the margin."""

    metric: str
    baseline: Sums
    canary: Sums
    worse: float | None = None
    low: float | None = None
    high: float | None = None
    harm: float = 0.0
    proof: float = 0.0
    design_effect: float = 1.0


class Finding(StrEnum):
    """What an A/B test says of a metric."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Report:
    """All of an experiment. `mismatch` is the stratum whose exposures don't fit its share, None where all do."""

    exposures: Mapping[str, int]
    estimates: tuple[Estimate, ...]
    findings: Mapping[str, Finding]
    mismatch: float | None


@dataclass(frozen=True, slots=True)
class _Stratum:
    """Both arms at one share (0 … 1)."""

    share: float
    baseline: Sums
    canary: Sums


def analyse(guards: Sequence[Guard], evidence: Evidence, alpha: float) -> Report:
    """An A/B test's report; `alpha` is split over the guards."""
    estimates = tuple(estimate(guard, evidence, alpha / len(guards)) for guard in guards)
    exposures = {arm.value: evidence.total(EXPOSURES, arm).n for arm in Arm}
    return Report(exposures, estimates, {one.metric: _finding(one) for one in estimates}, mismatch(evidence))


def mismatch(evidence: Evidence) -> float | None:
    """The first stratum (in percent) whose exposures don't come in its share."""
    strata = [one for one in evidence.strata(EXPOSURES).items() if 0 < one[0] < 100]
    for percent, stratum in strata:
        if share_mixture(stratum.canary.n, stratum.baseline.n, percent / 100) >= math.log(len(strata) / RATIO_ALPHA):
            return percent
    return None


def estimate(guard: Guard, evidence: Evidence, alpha: float) -> Estimate:
    """A guard's figures from all strata."""
    metric, found = METRICS[guard.metric], evidence.strata(guard.metric)
    if metric.alone:
        return _alone(guard, agreement.canary_blocks(found), alpha)
    arms = evidence.total(guard.metric, Arm.BASELINE), evidence.total(guard.metric, Arm.CANARY)
    strata = [_Stratum(percent / 100, one.baseline, one.canary) for percent, one in found.items() if 0 < percent < 100]
    strata = [one for one in strata if min(one.baseline.n, one.canary.n) >= LEAST_VALUES]
    if sum(map(len, found.values())) < LEAST_BLOCKS or not strata:
        return Estimate(guard.metric, *arms)
    effect = design_effect({percent: one for percent, one in found.items() if 0 < percent < 100})
    sign = -1 if metric.lower else 1
    worse, variance = _difference(strata, metric, sign, 0.0)
    margin = guard.margin * _mean(strata) if metric.relative else guard.margin
    margin = max(margin, 1 / UNIT)
    width = half_width(variance * effect, margin, alpha)
    excess, excess_variance = _difference(strata, metric, sign, guard.margin if metric.relative else 0.0)
    room = -excess if metric.relative else margin - excess
    proof = float(normal_mixture(room, excess_variance * effect, margin))
    harm = _harm(metric, strata) / effect if metric.event else float(normal_mixture(worse, variance * effect, margin))
    return Estimate(guard.metric, *arms, worse, worse - width, worse + width, harm, proof, effect)


def _alone(guard: Guard, blocks: Sequence[Sums], alpha: float) -> Estimate:
    """The figures of a metric that only the canary has."""
    whole = add_up(blocks)
    if len(blocks) < LEAST_BLOCKS or whole.n < LEAST_VALUES:
        return Estimate(guard.metric, NOTHING, whole)
    effect = agreement.scatter(blocks)
    harm, proof = (agreement.beyond(whole.sum, whole.n, guard.margin, prior) / effect for prior in (agreement.OFTENER, agreement.RARER))
    low, high = agreement.bounds(whole, effect, guard.margin, alpha)
    return Estimate(guard.metric, NOTHING, whole, whole.mean, low, high, harm, proof, effect)


def design_effect(strata: Mapping[float, Stratum]) -> float:
    """By how much blocks scatter more than independent requests would: at least 1."""
    scatter = independent = 0.0
    for percent, stratum in strata.items():
        share, baseline, canary, count = percent / 100, stratum.baseline, stratum.canary, len(stratum)
        if count < 2:
            continue
        their_n, their_sum, our_n, our_sum = stratum.columns()
        residues = (1 - share) * (our_sum - our_n * canary.mean) - share * (their_sum - their_n * baseline.mean)
        scatter += math.fsum((residues * residues).tolist()) * count / (count - 1)
        independent += (1 - share) ** 2 * canary.n * canary.variance + share**2 * baseline.n * baseline.variance
    return max(1.0, scatter / independent) if independent else 1.0


def _harm(metric: Metric, strata: Sequence[_Stratum]) -> float:
    counts = [(one.canary.sum, one.baseline.sum, one.share) for one in strata]
    return float(risk_ratio(counts, FEWER if metric.lower else MORE))


def _difference(strata: Sequence[_Stratum], metric: Metric, sign: int, allowed: float) -> tuple[float, float]:
    """How much worse the canary is than the baseline that is `allowed` (relative) worse, and the variance; strata by precision."""
    scale = 1 + sign * allowed
    variances = [_variance(one.canary, metric) + scale**2 * _variance(one.baseline, metric) for one in strata]
    variance = 1 / sum(1 / one for one in variances)
    gaps = [sign * (one.canary.mean - scale * one.baseline.mean) for one in strata]
    return variance * sum(gap / one for gap, one in zip(gaps, variances, strict=True)), variance


def _variance(sums: Sums, metric: Metric) -> float:
    """Of an arm's mean. Events have two made-up values more (Agresti & Coull 1998), so that none seen doesn't count as none possible."""
    if metric.event:
        risk = (sums.sum + 1) / (sums.n + 2)
        return risk * (1 - risk) / sums.n
    return max(sums.variance, 1 / UNIT**2) / (sums.n - 1)


def _mean(strata: Sequence[_Stratum]) -> float:
    return add_up(one.baseline for one in strata).mean


def _finding(one: Estimate) -> Finding:
    if one.low is None or one.high is None or one.low <= 0 <= one.high:
        return Finding.UNDECIDED
    return Finding.WORSE if one.low > 0 else Finding.BETTER
