"""Tests that stay valid however often one looks: evidence is a mixture martingale, and Ville's inequality bounds how high chance lifts it.

Each function answers log M, where M starts at 1 and is a non-negative supermartingale if the hypothesis holds: P(M ever ≥ 1/α) ≤ α (Ville
1939). Whoever rejects at log M ≥ log 1/α may look after every request and stop when they like. Arguments may be arrays. Pure.

- `risk_ratio`, events (errors, clicks): given that an event happened, chance alone chose its arm. Under equal risks the arm is the canary's
  with probability π, its share; under a risk ratio θ with odds θπ : 1−π. M mixes the likelihood ratios over a few θ on the side of
  interest (mixtures: Robbins 1970; conditional tests of counts: Lindon & Malek 2022, of which this is the form for a discrete prior in
  place of a beta, because the share changes from step to step). Exact for independent requests: it holds for every π, for risks that move
  with time if they move alike, and for all risk ratios on the other side, since each ratio's expectation rises with θ.
- `normal_mixture`, means: Robbins' normal mixture on the difference of means with its estimated variance, the mSPRT of Johari, Koomen,
  Pekelis & Walsh 2017 (arXiv 1512.04922); as a confidence sequence in Howard, Ramdas, McAuliffe & Sekhon 2021 (Ann. Statist. 49(2)).
  Asymptotic: it needs some tens of values in each arm (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024).
- `share_mixture`, exposures: the beta-binomial mixture martingale (Robbins 1970) for a known share, which tells a sample-ratio mismatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = "NDArray[np.float64]"
Prior: TypeAlias = Mapping[float, float]

MORE: Prior = MappingProxyType({1.3: 0.2, 3.0: 0.6, 8.0: 0.2})
"""Weights of risk ratios that failures are looked for at: most on about three times as many, which should be found soonest."""
FEWER: Prior = MappingProxyType({0.9: 0.4, 0.8: 0.4, 0.6: 0.2})
"""The same for outcomes that should happen and happen less."""
PRIOR_EXPOSURES = 1000.0
"""How far from its share an arm is looked for: as after this many exposures."""


def risk_ratio(counts: Sequence[tuple[float | Values, float | Values, float]], prior: Prior) -> Values:
    """log M for (events of the canary, events of the baseline, the canary's share in 0 … 1) of each stratum."""
    terms = []
    for theta, weight in prior.items():
        log_ratio = np.asarray(math.log(weight))
        for canary, baseline, share in counts:
            scale = math.log(share * theta + 1 - share)
            log_ratio = log_ratio + np.asarray(canary) * (math.log(theta) - scale) - np.asarray(baseline) * scale
        terms.append(log_ratio)
    whole: Values = np.logaddexp.reduce(np.stack(terms), axis=0)
    return whole


def normal_mixture(difference: float | Values, variance: float | Values, scale: float | Values) -> Values:
    """log M against a mean difference ≤ 0: `variance` is the difference's, `scale` the standard deviation of the effects mixed over."""
    information = 1.0 / np.asarray(variance)
    spread = np.square(scale) * information
    score = np.maximum(np.asarray(difference), 0.0) * information
    log_ratio: Values = np.square(score * scale) / (2 * (1 + spread)) - 0.5 * np.log1p(spread)
    return log_ratio


def half_width(variance: float, scale: float, alpha: float) -> float:
    """Of the confidence sequence that inverts `normal_mixture`: the truth is within at all times with probability 1 − alpha."""
    spread = scale * scale / variance
    return math.sqrt(variance * (1 + spread) / spread * (math.log1p(spread) - 2 * math.log(alpha)))


def share_mixture(canary: int, baseline: int, share: float) -> float:
    """log M against exposures that come with probability `share`, by a Beta prior around it."""
    a, b = PRIOR_EXPOSURES * share, PRIOR_EXPOSURES * (1 - share)
    mixed = _log_beta(a + canary, b + baseline) - _log_beta(a, b)
    return mixed - canary * math.log(share) - baseline * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
