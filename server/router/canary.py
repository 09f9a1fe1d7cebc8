"""Judges a canary: promote, hold or roll back, with the reason and the figures. Pure: `now` is an argument, the owner acts.

Roll-back needs evidence that the canary is worse at all (p_c > p_b; alpha is split over the guards and holds for the whole roll-out,
however often one looks), or that it fails outright. A step is left when it had its samples and seconds and no harm was seen; the last one
only with evidence that each metric is worse by less than its margin (p_c < p_b + margin; all guards must show it, so alpha isn't split).
The tests and their sources are in martingales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from server.errors import ConfigError
from server.router.evidence import BLOCK, Arm, Evidence, Sums
from server.router.experiment import EXPOSURES, LEAST_BLOCKS, Estimate, Guard, estimate, mismatch

OUTRIGHT = 10
"""Canary requests that all failed, after which it has failed outright."""
HEALTHY = 0.5
"""Share of errors from which on the baseline is down too: then all errors aren't the canary's doing."""
STEPS = (1.0, 5.0, 25.0, 50.0, 100.0)


class Action(StrEnum):
    """What the owner does."""

    PROMOTE = "promote"
    HOLD = "hold"
    ROLL_BACK = "roll_back"


class Reason(StrEnum):
    """Why."""

    CRASHED = "crashed"  # the canary's process died
    NOT_FINITE = "not_finite"  # NaN or Inf where the baseline has none
    ALL_ERRORS = "all_errors"
    HARM = "harm"
    SAMPLE_RATIO = "sample_ratio"  # exposures don't fit the share: nothing else can be believed
    FEW_SAMPLES = "few_samples"
    TOO_SOON = "too_soon"
    UNPROVEN = "unproven"
    NO_HARM = "no_harm"  # the next step
    PROVEN = "proven"  # to all traffic
    DONE = "done"  # it has all traffic: nothing is left to compare it with


@dataclass(frozen=True, slots=True)
class Plan:
    """A canary's schedule and guards, checked. Steps are shares in percent, the last 100."""

    model: str
    guards: tuple[Guard, ...]
    steps: tuple[float, ...] = STEPS
    min_samples: int = 100
    min_seconds: float = 60.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        where = f"canary of model {self.model[:80]!r}"
        rising = all(low < high for low, high in pairwise(self.steps))
        if len(self.steps) < 2 or not rising or not self.steps[0] > 0 or self.steps[-1] != 100:
            raise ConfigError(f"{where}: steps: expected at least two rising percentages that end with 100, got {list(self.steps)[:20]}")
        if not self.guards or len({guard.metric for guard in self.guards}) != len(self.guards):
            raise ConfigError(f"{where}: guards: expected one or more, each metric once, got {[guard.metric for guard in self.guards]}")
        if not 0 < self.alpha <= 0.5:
            raise ConfigError(f"{where}: alpha: expected more than 0 and at most 0.5, got {self.alpha}")
        if self.min_samples < 1 or not 0 <= self.min_seconds < math.inf:
            raise ConfigError(
                f"{where}: expected min_samples of 1 or more and min_seconds of 0 or more, got {self.min_samples} and {self.min_seconds}"
            )


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a roll-out is: the index of its step, since when (seconds, the clock of the evidence), and outright failures so far."""

    step: int
    since: float
    crashes: int = 0
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do and why. `share` is the canary's in percent from now on; `guard` the metric that decided, empty where none did."""

    action: Action
    reason: Reason
    share: float
    estimates: tuple[Estimate, ...] = ()
    guard: str = ""


def judge(plan: Plan, standing: Standing, evidence: Evidence, now: float) -> Verdict:
    """What follows from the evidence. Only chance-chosen requests may be in it (rules.RANDOMISED)."""
    outright = _outright(standing, evidence, now)
    if outright is not None:
        return Verdict(Action.ROLL_BACK, outright, 0.0)
    if standing.step >= len(plan.steps) - 1:
        return Verdict(Action.HOLD, Reason.DONE, 100.0)
    alpha = plan.alpha / len(plan.guards)
    figures = tuple(estimate(guard, evidence, alpha) for guard in plan.guards)
    harmed = next((one for one in figures if one.harm >= -math.log(alpha)), None)
    if harmed is not None:
        return Verdict(Action.ROLL_BACK, Reason.HARM, 0.0, figures, harmed.metric)
    share = plan.steps[standing.step]
    holds = _holds(plan, standing, evidence, now)
    if holds is not None:
        return Verdict(Action.HOLD, holds, share, figures)
    after = plan.steps[standing.step + 1]
    if after < 100:
        return Verdict(Action.PROMOTE, Reason.NO_HARM, after, figures)
    unproven = next((one for one in figures if one.proof < -math.log(plan.alpha)), None)
    if unproven is not None:
        return Verdict(Action.HOLD, Reason.UNPROVEN, share, figures, unproven.metric)
    return Verdict(Action.PROMOTE, Reason.PROVEN, 100.0, figures)


def _outright(standing: Standing, evidence: Evidence, now: float) -> Reason | None:
    if standing.crashes:
        return Reason.CRASHED
    if standing.not_finite:
        return Reason.NOT_FINITE
    recent = now - BLOCK * evidence.width
    for since in (None, recent):
        canary, baseline = (evidence.total(EXPOSURES, arm, since) for arm in (Arm.CANARY, Arm.BASELINE))
        if canary.n >= OUTRIGHT and _all_failed(canary) and baseline.mean < HEALTHY:
            return Reason.ALL_ERRORS
    return None


def _all_failed(sums: Sums) -> bool:
    return sums.mean == 1.0


def _holds(plan: Plan, standing: Standing, evidence: Evidence, now: float) -> Reason | None:
    """Why the step isn't over. A clock that went back only makes it longer."""
    if mismatch(evidence) is not None:
        return Reason.SAMPLE_RATIO
    stratum = evidence.strata(EXPOSURES).get(plan.steps[standing.step])
    if stratum is None or stratum.canary.n < plan.min_samples:
        return Reason.FEW_SAMPLES
    if now - standing.since < max(plan.min_seconds, LEAST_BLOCKS * BLOCK):
        return Reason.TOO_SOON
    return None
