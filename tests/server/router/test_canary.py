"""The canary's judge on made-up traffic: what each kind of canary gets, why, and how often a harmless one is rolled back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.errors import ConfigError
from server.router.canary import Action, Plan, Reason, Standing, Verdict, judge
from server.router.evidence import UNIT, Arm, Evidence, Sums
from server.router.experiment import EXPOSURES, Finding, Guard, analyse, design_effect, estimate, mismatch

SEED = 8
ERRORS, LATENCY, SLOW = Guard("errors", 0.01), Guard("latency", 0.1), Guard("slow", 0.02)
PLAN = Plan("m", (ERRORS, LATENCY, SLOW), (50, 100), min_samples=50, min_seconds=10)
START = Standing(0, 0.0)


class Traffic:
    """Requests at a rate, an arm each by chance. Latencies are log-normal with a mean of 0.04 and a CV of 0.5; the objective is 0.1.
    `burst`: so many requests of an arm fail or don't together."""

    def __init__(self, seed: int = SEED, rate: int = 100, share: float = 50, burst: int = 1) -> None:
        self.random = np.random.default_rng(seed)
        self.rate, self.share, self.burst = rate, share, burst
        self.evidence = Evidence()
        self.now = 0.0

    def second(self, errors: tuple[float, float], slower: float = 1.0) -> Traffic:
        """One second more, with the arms' error rates (baseline, canary) and the canary's latency over the baseline's."""
        canary = self.random.binomial(self.rate, self.share / 100)
        for arm, n, risk, factor in ((Arm.BASELINE, self.rate - canary, errors[0], 1.0), (Arm.CANARY, canary, errors[1], slower)):
            groups = self.random.binomial(max(n // self.burst, 0), risk)
            taken = self.random.lognormal(math.log(0.04) - 0.1116, 0.4724, n) * factor
            self._count(EXPOSURES, arm, np.arange(n) < groups * self.burst)
            self._count("latency", arm, taken.clip(0, 1))
            self._count("slow", arm, taken > 0.1)
        self.now += 1
        return self

    def _count(self, metric: str, arm: Arm, values: Any) -> None:
        units = np.round(np.asarray(values, float) * UNIT).astype(int)
        self.evidence.count(metric, self.share, arm, Sums(len(units), int(units.sum()), int((units * units).sum())), self.now)

    def until(self, plan: Plan, errors: tuple[float, float], slower: float = 1.0, seconds: int = 300) -> Verdict:
        """The first verdict that isn't to hold, else the last."""
        for _ in range(seconds):
            verdict = judge(plan, START, self.second(errors, slower).evidence, self.now)
            if verdict.action is not Action.HOLD:
                break
        return verdict


def test_an_equal_canary_is_promoted_with_its_figures() -> None:
    verdict = Traffic().until(PLAN, (0.01, 0.01))
    assert (verdict.action, verdict.reason, verdict.share) == (Action.PROMOTE, Reason.PROVEN, 100)
    assert [one.metric for one in verdict.estimates] == ["errors", "latency", "slow"]
    assert all(one.low is not None and one.high is not None and one.low < 0 < one.high for one in verdict.estimates)
    assert all(one.proof >= math.log(1 / PLAN.alpha) > one.harm for one in verdict.estimates)


@pytest.mark.parametrize(
    ("errors", "slower", "guard"), [((0.01, 0.1), 1.0, "errors"), ((0.01, 0.01), 1.3, "latency"), ((0.0, 0.0), 2.0, "latency")]
)
def test_a_worse_canary_is_rolled_back_by_the_guard_that_it_hurts(errors: tuple[float, float], slower: float, guard: str) -> None:
    verdict = Traffic().until(PLAN, errors, slower)
    assert (verdict.action, verdict.reason, verdict.share, verdict.guard) == (Action.ROLL_BACK, Reason.HARM, 0, guard)
    figures = next(one for one in verdict.estimates if one.metric == guard)
    assert figures.worse is not None
    assert figures.worse > 0
    assert figures.harm >= math.log(len(PLAN.guards) / PLAN.alpha)


def test_one_that_is_worse_by_less_than_margin_is_never_promoted_by_luck_of_the_look() -> None:
    verdict = Traffic().until(replace(PLAN, guards=(Guard("errors", 0.005),)), (0.02, 0.0249), seconds=60)
    assert verdict.action is not Action.PROMOTE


def test_a_better_canary_is_promoted() -> None:
    assert Traffic().until(PLAN, (0.05, 0.01), 0.7).reason is Reason.PROVEN


def test_failing_every_request_ends_it_within_ten_requests_and_two_seconds() -> None:
    traffic = Traffic(rate=20)
    assert traffic.until(PLAN, (0.01, 1.0)).reason is Reason.ALL_ERRORS
    assert traffic.now <= 2


def test_one_that_begins_to_fail_every_request_ends_at_once() -> None:
    traffic = Traffic()
    traffic.until(PLAN, (0.0, 0.0), seconds=3)
    assert judge(PLAN, START, traffic.second((0.0, 1.0)).evidence, traffic.now).reason is Reason.ALL_ERRORS


def test_all_errors_of_both_arms_are_not_the_canarys_doing() -> None:
    assert Traffic().until(PLAN, (1.0, 1.0), seconds=30).action is not Action.ROLL_BACK


@pytest.mark.parametrize(("standing", "reason"), [(replace(START, crashes=1), "crashed"), (replace(START, not_finite=1), "not_finite")])
def test_an_outright_failure_ends_it_without_statistics(standing: Standing, reason: str) -> None:
    verdict = judge(PLAN, standing, Evidence(), 0.0)
    assert (verdict.action, verdict.reason, verdict.share) == (Action.ROLL_BACK, reason, 0)


def test_steps_before_the_last_need_their_samples_and_seconds_and_no_harm() -> None:
    plan, traffic = replace(PLAN, steps=(5, 50, 100)), Traffic(share=5)
    seen = [judge(plan, START, traffic.second((0.01, 0.01)).evidence, traffic.now) for _ in range(40)]
    reasons = [verdict.reason for verdict in seen]
    assert list(dict.fromkeys(reasons)) in ([Reason.FEW_SAMPLES, Reason.NO_HARM], [Reason.FEW_SAMPLES, Reason.TOO_SOON, Reason.NO_HARM])
    assert seen[-1].share == 50
    assert judge(plan, replace(START, since=35.0), traffic.evidence, traffic.now).reason is Reason.TOO_SOON
    assert judge(plan, replace(START, since=1e9), traffic.evidence, traffic.now).reason is Reason.TOO_SOON  # the clock went back


def test_evidence_of_earlier_steps_counts_on() -> None:
    early = Traffic(share=5)
    for _ in range(30):
        early.second((0.01, 0.04))
    late = Traffic(seed=2, share=25)
    for _ in range(10):
        late.second((0.01, 0.04))
    alone, both = (estimate(ERRORS, one, 0.05).harm for one in (late.evidence, late.evidence.merged(early.evidence)))
    assert both > alone


def test_exposures_that_do_not_fit_the_share_stop_promotion() -> None:
    traffic = Traffic(share=40)
    for _ in range(60):
        traffic.second((0.01, 0.01))
    assert mismatch(traffic.evidence) is None
    tilted = Evidence({cell._replace(stratum=50.0): sums for cell, sums in traffic.evidence.cells.items()})
    assert mismatch(tilted) == 50.0
    assert judge(PLAN, START, tilted, traffic.now).reason is Reason.SAMPLE_RATIO


def test_with_all_traffic_it_is_done() -> None:
    assert judge(PLAN, replace(START, step=1), Evidence(), 0.0).reason is Reason.DONE


def test_requests_that_fare_together_count_as_one() -> None:
    alone, bursts = Traffic(), Traffic(burst=10)
    for _ in range(100):
        alone.second((0.1, 0.1))
        bursts.second((0.1, 0.1))
    single, together = (design_effect(one.evidence.strata("errors")) for one in (alone, bursts))
    assert 1 <= single < 1.5
    assert 7 < together < 13


@pytest.mark.parametrize("burst", [1, 10])
def test_a_harmless_canary_is_rolled_back_in_at_most_alpha_of_runs(burst: int) -> None:
    """Seeded, 120 runs, looked at after every second: within two standard errors of 5 %."""
    plan = replace(PLAN, min_seconds=1e6)  # never promoted: as many looks as there can be
    verdicts = [Traffic(seed, burst=burst).until(plan, (0.03, 0.03), seconds=25) for seed in range(120)]
    assert sum(verdict.action is Action.ROLL_BACK for verdict in verdicts) / 120 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 120)


def test_an_a_b_test_reports_arms_effect_and_finding() -> None:
    traffic = Traffic()
    for _ in range(100):
        traffic.second((0.05, 0.02), 1.3)
    report = analyse((ERRORS, LATENCY, SLOW), traffic.evidence, 0.05)
    assert sum(report.exposures.values()) == 100 * 100
    assert report.findings == {"errors": Finding.BETTER, "latency": Finding.WORSE, "slow": Finding.WORSE}
    assert report.mismatch is None
    assert report == analyse((ERRORS, LATENCY, SLOW), Evidence().merged(traffic.evidence), 0.05)


def test_nothing_is_said_of_little() -> None:
    report = analyse((ERRORS, Guard("outcome", 0.02)), Traffic(rate=10).second((0.5, 0.5)).evidence, 0.05)
    assert set(report.findings.values()) == {Finding.UNDECIDED}
    assert report.estimates[1].worse is None


@pytest.mark.parametrize(("metric", "wrong"), [("outcome", (1, 0)), ("rating", (1, 0))])
def test_where_less_is_worse_less_counts_as_harm(metric: str, wrong: tuple[int, int]) -> None:
    found = Evidence()
    for block in range(20):
        for arm, good in ((Arm.BASELINE, 25), (Arm.CANARY, 10)):
            for number in range(50):
                found.add(metric, 50.0, arm, float(number < good + block % 3), float(block))
    figures = estimate(Guard(metric, 0.1), found, 0.05)
    assert figures.worse is not None
    assert figures.worse > 0.2
    assert figures.harm > math.log(20) > figures.proof


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Guard("error", 0.1), "unknown metric 'error'; did you mean 'errors'?"),
        (lambda: Guard("errors", 0.0), "margin: expected more than 0 and at most 1, got 0.0"),
        (lambda: replace(PLAN, steps=(1, 50)), "steps: expected at least two rising percentages that end with 100, got [1, 50]"),
        (lambda: replace(PLAN, steps=(5, 5, 100)), "rising percentages that end with 100, got [5, 5, 100]"),
        (lambda: replace(PLAN, steps=(math.nan, 100)), "rising percentages"),
        (lambda: replace(PLAN, guards=()), "guards: expected one or more, each metric once, got []"),
        (lambda: replace(PLAN, guards=(ERRORS, ERRORS)), "each metric once, got ['errors', 'errors']"),
        (lambda: replace(PLAN, alpha=0.0), "canary of model 'm': alpha: expected more than 0 and at most 0.5, got 0.0"),
        (lambda: replace(PLAN, min_samples=0), "expected min_samples of 1 or more and min_seconds of 0 or more, got 0 and 10"),
        (lambda: replace(PLAN, min_seconds=math.nan), "got 50 and nan"),
    ],
)
def test_plans_that_cannot_be_followed(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert told in str(caught.value)
