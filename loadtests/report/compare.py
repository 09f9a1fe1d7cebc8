"""Two runs of a scenario: what got slower or worse beyond what a run scatters by itself.

Seconds of a run are resampled (the moving-block bootstrap: Künsch 1989), so that the scatter of bursts and pauses counts; a change is
called one only where the 99 % interval of the ratio leaves 1 out and the change is more than a tolerance. Pure, but for the seed's draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from loadtests.report.document import GROWTH, Block, Counts, Report, bucket_end
from loadtests.samples import Floats
from server.errors import ConfigError

ROUNDS = 1000
INTERVAL = (0.005, 0.995)  # seven figures are looked at each time, and one in thirty comparisons may cry wolf
BLOCK = 3  # seconds that are resampled together
TOLERANCE = 0.03  # of a figure: less isn't called a change
LEAST_BLOCKS = 6


class Change(StrEnum):
    """What became of a figure."""

    SAME = "same"
    BETTER = "better"
    WORSE = "worse"
    UNSURE = "unsure"  # the interval is wider than the change


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both runs: the second over the first with its 99 % interval; shares are differences instead."""

    name: str
    before: float
    after: float
    low: float
    high: float
    change: Change
    share: bool = False


@dataclass(frozen=True, slots=True)
class _Measure:
    """How a figure is made from seconds: `of` takes the sums of blocks. `grows` says that more of it is worse."""

    name: str
    of: Callable[[Counts, Floats, Counts], float]
    grows: bool
    share: bool = False


def _quantile(q: float) -> Callable[[Counts, Floats, Counts], float]:
    def at(histogram: Counts, ends: Floats, totals: Counts) -> float:
        passed = np.cumsum(histogram)
        if not len(passed) or not passed[-1]:
            return float("nan")
        place = int(np.searchsorted(passed, q * passed[-1]))
        into = 1 - (passed[place] - q * passed[-1]) / histogram[place]  # as if answers were spread evenly over their bucket
        return float(ends[place] * GROWTH ** (into - 1))

    return at


def _per_second(histogram: Counts, ends: Floats, totals: Counts) -> float:
    return float(totals[1] / max(1, totals[5]))


def _failed(histogram: Counts, ends: Floats, totals: Counts) -> float:
    return float(totals[3] / max(1, totals[0]))


def _refused(histogram: Counts, ends: Floats, totals: Counts) -> float:
    return float(totals[2] / max(1, totals[0]))


def _good(histogram: Counts, ends: Floats, totals: Counts) -> float:
    return float(totals[4] / max(1, totals[0]))


MEASURES: Sequence[_Measure] = (
    _Measure("p50", _quantile(0.5), grows=True),
    _Measure("p90", _quantile(0.9), grows=True),
    _Measure("p99", _quantile(0.99), grows=True),
    _Measure("answers a second", _per_second, grows=False),
    _Measure("failed", _failed, grows=True, share=True),
    _Measure("refused", _refused, grows=True, share=True),
    _Measure("good", _good, grows=False, share=True),
)


def compare(before: Report, after: Report, tolerance: float = TOLERANCE, seed: int = 1) -> list[Compared]:
    """Each figure of both. Raises ConfigError where a run is too short for its scatter to be seen."""
    for report in (before, after):
        if len(report.blocks) < LEAST_BLOCKS:
            raise ConfigError(f"a run of {len(report.blocks)} s can't be compared: its scatter isn't seen in less than {LEAST_BLOCKS} s")
    highest = max(max(block.buckets, default=0) for report in (before, after) for block in report.blocks)
    ends = bucket_end(np.arange(highest + 1))
    runs = [_Run(report.blocks, highest) for report in (before, after)]
    random = np.random.default_rng(seed)
    drawn = [[run.resampled(random) for _ in range(ROUNDS)] for run in runs]
    return [_compared(measure, runs, drawn, ends, tolerance) for measure in MEASURES]


class _Run:
    """A run's seconds as arrays: histograms, and totals (due, answered, refused, failed, good, 1)."""

    def __init__(self, blocks: Sequence[Block], highest: int) -> None:
        self.histograms = np.zeros((len(blocks), highest + 1), np.int64)
        for place, block in enumerate(blocks):
            for number, answers in block.buckets.items():
                self.histograms[place, number] = answers
        self.totals = np.asarray([(each.due, each.answered, each.refused, each.failed, each.good, 1) for each in blocks], np.int64)

    def whole(self) -> tuple[Counts, Counts]:
        return self.histograms.sum(axis=0), self.totals.sum(axis=0)

    def resampled(self, random: np.random.Generator) -> tuple[Counts, Counts]:
        """The sums of as many seconds, drawn in stretches."""
        count = len(self.totals)
        starts = random.integers(0, count, -(-count // BLOCK))
        chosen = ((starts[:, None] + np.arange(BLOCK)) % count).ravel()[:count]
        return self.histograms[chosen].sum(axis=0), self.totals[chosen].sum(axis=0)


def _compared(
    measure: _Measure, runs: Sequence[_Run], drawn: Sequence[Sequence[tuple[Counts, Counts]]], ends: Floats, tolerance: float
) -> Compared:
    first, second = (measure.of(histogram, ends, totals) for histogram, totals in (run.whole() for run in runs))
    samples = [np.asarray([measure.of(histogram, ends, totals) for histogram, totals in each]) for each in drawn]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = samples[1] - samples[0] if measure.share else samples[1] / samples[0]
    known = spread[np.isfinite(spread)]
    low, high = np.quantile(known, INTERVAL) if len(known) else (float("nan"), float("nan"))
    moved = second - first if measure.share else (second / first if first else float("nan"))
    change = _change(measure, moved, (float(low), float(high)), tolerance)
    return Compared(measure.name, first, second, float(low), float(high), change, measure.share)


def _change(measure: _Measure, moved: float, interval: tuple[float, float], tolerance: float) -> Change:
    """What a figure did: a change beyond both noise and tolerance, none, or what can't be told."""
    neutral = 0.0 if measure.share else 1.0
    low, high = interval
    if abs(moved - neutral) <= tolerance:
        return Change.SAME
    if not np.isfinite(moved) or low <= neutral <= high:
        return Change.UNSURE
    return Change.WORSE if (moved > neutral) == measure.grows else Change.BETTER
