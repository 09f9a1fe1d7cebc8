"""The simulations of `make bench-routing` judge as the server does, and find what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.roll_outs import OUTCOME, Event, Latency, Traffic, fixed_size, found, harmless
from server.router.evidence import UNIT, Arm, Evidence, Sums
from server.router.experiment import Guard, estimate

STEPPED = Traffic(np.array([0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5]), 1000, 1.0)
"""One look, and so one block, a share: nothing by which blocks could be seen to scatter."""


@pytest.mark.parametrize(
    ("metric", "guard"),
    [
        (Event((0.05, 0.06), 0.02), Guard("errors", 0.02)),
        (OUTCOME, Guard("outcome", 0.02)),
        (Latency(1.05, 0.1), Guard("latency", 0.1)),
    ],
    ids=["errors", "outcome", "latency"],
)
def test_the_simulation_judges_as_the_server(metric: Event | Latency, guard: Guard) -> None:
    arms = metric.draw(STEPPED, 1, np.random.default_rng(5))
    evidence, whole = Evidence(), UNIT / 25 if isinstance(metric, Latency) else UNIT
    for index, arm in enumerate((Arm.BASELINE, Arm.CANARY)):
        for look, share in enumerate(STEPPED.shares):
            n, x, q = (float(values[index][0, look]) for values in (arms.n, arms.x, arms.q))
            evidence.count(guard.metric, float(share) * 100, arm, Sums(int(n), round(x * whole), round(q * whole**2)), look)
    figures = estimate(guard, evidence, 0.05)
    assert figures.design_effect == 1
    assert figures.harm == pytest.approx(float(metric.harm(STEPPED, arms)[0, -1]), rel=1e-3)
    assert figures.proof == pytest.approx(float(metric.proof(STEPPED, arms)[0, -1]), rel=1e-3)
    assert abs(figures.harm) + abs(figures.proof) > 1


def test_a_bad_canary_is_found_sooner_when_it_is_worse() -> None:
    half = Traffic.looked_at_each(2000)
    mild, grave = (np.median(found(Event((0.01, risk), 0.01), half, 1, 100, 7)[0]) for risk in (0.04, 0.1))
    assert grave < mild < 1000


def test_an_equal_canary_is_seldom_rolled_back_and_promoted() -> None:
    share, looks = harmless((Event((0.05, 0.05), 0.03),), Traffic.looked_at_each(4000), 200, 7)
    assert share <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    assert np.isfinite(looks).mean() > 0.95


def test_steps_last_a_minute_and_a_hundred_requests() -> None:
    slow, fast = Traffic.rolled_out(10, 2000).shares, Traffic.rolled_out(1000, 300).shares
    assert [(slow == share).sum() for share in (0.01, 0.05, 0.25, 0.5)] == [1000, 200, 60, 740]
    assert [(fast == share).sum() for share in (0.01, 0.05, 0.25, 0.5)] == [60, 60, 60, 120]


def test_the_fixed_size_is_the_textbooks() -> None:
    assert fixed_size(0.10, 0.08) == pytest.approx(2528.7, abs=1)
