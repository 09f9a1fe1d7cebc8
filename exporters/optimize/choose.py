"""Which of several graphs of one model to keep, by their measured times. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MARGIN = 1.05
"""How many times faster a graph must be than a plainer one: on a machine that does other things, less says nothing."""


def speed_up(reference: Mapping[int, float], seconds: Mapping[int, float]) -> float:
    """How many times the reference's speed: the geometric mean over the batch sizes that both were timed at, 1 without any."""
    ratios = [reference[rows] / taken for rows, taken in seconds.items() if rows in reference]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def fastest(timed: Sequence[Mapping[int, float]], margin: float = MARGIN) -> int:
    """The index of the one to keep, of median seconds by rows; the plainest comes first and wins unless one is `margin` faster."""
    best = 0
    for index in range(1, len(timed)):
        if speed_up(timed[best], timed[index]) >= margin:
            best = index
    return best
