"""How often a canary's answers differ from the baseline's on the same requests, and whether that is more than may be. Pure.

Unlike other metrics it has one arm: shadow copies give both answers to one request, so what is compared with is the margin. The evidence
is a mixture of likelihood ratios against the margin, a martingale where requests differ just so often and a supermartingale where they
differ less (Ville 1939; mixtures: Robbins 1970), divided by the design effect of blocks of time, as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from server.router.evidence import Sums
from server.router.martingales import Prior, half_width

OFTENER: Prior = MappingProxyType({1.3: 0.25, 2.0: 0.5, 4.0: 0.25})
"""Weights of the odds ratios over the margin that harm is looked for at."""
RARER: Prior = MappingProxyType({0.7: 0.25, 0.4: 0.5, 0.1: 0.25})
"""The same of no harm."""


def beyond(events: float, n: int, risk: float, prior: Prior) -> float:
    """log M against events that happen with probability `risk`; on the side of the prior's odds ratios."""
    risk = min(max(risk, 1e-9), 1 - 1e-9)
    terms = []
    for ratio, weight in prior.items():
        odds = ratio * risk / (1 - risk)
        other = odds / (1 + odds)
        terms.append(math.log(weight) + events * math.log(other / risk) + (n - events) * math.log((1 - other) / (1 - risk)))
    return float(np.logaddexp.reduce(terms))


def bounds(sums: Sums, effect: float, margin: float, alpha: float) -> tuple[float, float]:
    """Of the share of requests that differ, at all times with probability 1 − alpha. Asymptotic."""
    share = (sums.sum + 1) / (sums.n + 2)
    width = half_width(share * (1 - share) / sums.n * effect, margin, alpha)
    return max(0.0, sums.mean - width), min(1.0, sums.mean + width)


def scatter(blocks: Sequence[Sums]) -> float:
    """By how much blocks scatter more than independent requests would: at least 1."""
    n, total = sum(block.n for block in blocks), math.fsum(block.sum for block in blocks)
    share = total / n if n else 0.0
    independent = n * share * (1 - share)
    if len(blocks) < 2 or not independent:
        return 1.0
    found = math.fsum((block.sum - block.n * share) ** 2 for block in blocks) * len(blocks) / (len(blocks) - 1)
    return max(1.0, found / independent)


def canary_blocks(strata: Mapping[float, Mapping[int, tuple[Sums, Sums]]]) -> list[Sums]:
    """All blocks of the only arm, whatever the share was."""
    return [canary for blocks in strata.values() for _, canary in blocks.values() if canary.n]
