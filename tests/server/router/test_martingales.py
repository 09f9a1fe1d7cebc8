"""Mixture martingales: their expectation is at most one where the hypothesis holds, by enumeration and with a look after each request."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.router.martingales import FEWER, MORE, Prior, half_width, normal_mixture, risk_ratio, share_mixture

PRIORS = [pytest.param(MORE, id="more"), pytest.param(FEWER, id="fewer")]
SEED = 20261124


def binomial(n: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_equal_risks_leave_the_risk_ratios_mixture_at_one(prior: Prior, share: float, n: int) -> None:
    events = np.arange(n + 1.0)
    expected = binomial(n, share) @ np.exp(risk_ratio([(events, n - events, share)], prior))
    assert expected == pytest.approx(1.0)


@given(st.floats(0.02, 0.9), st.floats(0.0, 1.0), st.integers(1, 40), st.booleans())
def test_a_ratio_on_the_other_side_lowers_it(share: float, away: float, n: int, more: bool) -> None:
    theta = away if more else 1 / max(away, 0.05)
    events = np.arange(n + 1.0)
    arm = share * theta / (share * theta + 1 - share)
    expected = binomial(n, arm) @ np.exp(risk_ratio([(events, n - events, share)], MORE if more else FEWER))
    assert expected <= 1 + 1e-9


def test_strata_multiply_and_an_empty_one_says_nothing() -> None:
    one = {2.0: 1.0}
    both = risk_ratio([(5, 3, 0.5), (1, 40, 0.01)], one)
    assert both == pytest.approx(risk_ratio([(5, 3, 0.5)], one) + risk_ratio([(1, 40, 0.01)], one))
    assert risk_ratio([(0, 0, 0.5)], MORE) == pytest.approx(0.0)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_the_right_share_leaves_the_share_mixture_at_one_and_a_wrong_one_lifts_it(share: float) -> None:
    n = 60
    expected = binomial(n, share) @ np.array([math.exp(share_mixture(k, n - k, share)) for k in range(n + 1)])
    assert expected == pytest.approx(1.0)
    assert share_mixture(round(40_000 * share * 1.3), round(40_000 * (1 - share * 1.3)), share) > math.log(1000)


@given(st.floats(1e-6, 10), st.floats(1e-3, 10))
def test_the_normal_mixtures_expectation_is_at_most_one(variance: float, scale: float) -> None:
    z = np.linspace(-12, 12, 20_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    expected = density @ np.exp(np.minimum(normal_mixture(z * math.sqrt(variance), variance, scale), 700))
    assert expected <= 1 + 1e-6


@given(st.floats(1e-6, 10), st.floats(1e-3, 10), st.floats(0.001, 0.4))
def test_the_confidence_sequence_inverts_the_test(variance: float, scale: float, alpha: float) -> None:
    width = half_width(variance, scale, alpha)
    assert normal_mixture(width, variance, scale) == pytest.approx(-math.log(alpha))


def test_looking_after_every_request_rejects_no_more_than_alpha() -> None:
    """2 % errors in both arms, latencies with a heavy tail: seeded, 1,000 runs of 3,000 requests, within two standard errors of 5 %."""
    random, runs, requests, alpha = np.random.default_rng(SEED), 1000, 3000, 0.05
    arm = random.random((runs, requests)) < 0.5
    events = random.random((runs, requests)) < 0.02
    lifted = risk_ratio([((events & arm).cumsum(1), (events & ~arm).cumsum(1), 0.5)], MORE).max(1)
    values = random.lognormal(0, 0.47, (runs, requests))
    means, variances = zip(*(_moments(values, chosen) for chosen in (arm, ~arm)), strict=True)
    logs = normal_mixture(means[0] - means[1], variances[0] + variances[1], 0.1)[:, 100:].max(1)
    limit = alpha + 2 * math.sqrt(alpha * (1 - alpha) / runs)
    assert (lifted >= -math.log(alpha)).mean() <= limit
    assert (logs >= -math.log(alpha)).mean() <= limit


def _moments(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = np.maximum(chosen.cumsum(1), 2)
    mean = (values * chosen).cumsum(1) / n
    return mean, np.maximum((values**2 * chosen).cumsum(1) / n - mean**2, 1e-9) / (n - 1)
