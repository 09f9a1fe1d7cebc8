"""Which of several graphs of one model to keep, by their measured times. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

MARGIN = 1.05
"""How many times faster a graph must be than a plainer one: on a machine that does other things, less says nothing."""
SURE = 0.05
"""How likely it may be, at most, that a gain was noise."""

Runs = Mapping[int, Sequence[float]]
"""Seconds of runs by rows; runs of one index were made together with those of the other graphs."""


def speed_up(reference: Mapping[int, float], seconds: Mapping[int, float]) -> float:
    """How many times the reference's speed: the geometric mean over the batch sizes that both were timed at, 1 without any."""
    ratios = [reference[rows] / taken for rows, taken in seconds.items() if rows in reference]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def fastest(timed: Sequence[Runs], margin: float = MARGIN) -> int:
    """The index of the one to keep; the plainest comes first and wins unless one is surely faster, and by `margin`.

    By `margin` in the medians, and surely faster where its worst plausible median gain is one.
    """
    best = 0
    for index in range(1, len(timed)):
        gains = _gains(timed[best], timed[index])
        middle = _mean([statistics.median(found) for found in gains])
        if middle >= margin and _mean([_least_median(found) for found in gains]) > 1.0:
            best = index
    return best


def _gains(reference: Runs, runs: Runs) -> list[list[float]]:
    """For each batch size, the reference's time over the other's, run by run: what else the machine did fell on both."""
    return [[before / after for before, after in zip(reference[rows], taken, strict=False)] for rows, taken in runs.items()]


def _least_median(found: Sequence[float]) -> float:
    """The lower 95 % bound of the median, by the sign test; the least of all where there are too few to say."""
    ordered = sorted(found)
    tail, place = 0.0, 0
    for below in range(len(ordered)):
        tail += math.comb(len(ordered), below) / 2 ** len(ordered)
        if tail > SURE:
            break
        place = below
    return ordered[place]


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0
