"""The cost model learns what a run of one variant on its device takes: T(rows, length), with a margin for the runs that take longer.

T(rows, length) = a + c1·x + c2·x·length, where x = rows·length counts cells; length is 1 where nothing is padded. Pure: it sees no clock.
Rules: it starts from what warm-up measured and never forgets that curve's shape, so that runs of one size leave it determined; every run
counts by its relative error, and older ones fade; where a device isn't straight, each doubling of cells has a correction of its own; a
change that lasts (throttling, its end) rescales everything within tens of runs, while a lone spike moves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias

from server.engine.decide.least_squares import Sums

FORGET = 0.995  # weight that a run keeps at the next: about the last 200 count
WARMUP_WEIGHT = 0.2  # of a warm-up point, in runs: medians of few runs on a device that was just woken
GUESS_WEIGHT = 0.02  # of what is assumed of larger runs where one size was measured alone: enough for them to be tried
QUANTILE = 0.99  # share of the runs that end within `estimate`
KEPT = 256  # deviations that a quantile is taken from
FIRST_MARGIN = 0.05  # assumed while few runs were seen
ENOUGH = 64  # runs after which the margin is what was seen and nothing else
LEAST_MARGIN = 0.01
REFIT_EVERY = 16, 64  # runs, before and after the curve has settled; more often at first
SETTLED = 256  # runs
SHORT, ONE_IN = 1e-3, 4  # of settled runs shorter than this many seconds, one in so many counts: they're many, and cheap to be wrong about
FAMILIAR = 4  # runs of one size after which the curve is known there
OWN = 8  # runs of one size after which its own correction has half its weight
LEAST_DRIFT = 0.02  # relative: smaller changes are left to the fit
CLIP, ALARM = 4.0, 12.0  # in drifts: the most that one run adds, and the sum at which a change is believed
SUSPECT = 2.0  # in drifts: from here a change is possible, and runs are held back from the fit
MOST_HELD = 64
FARTHEST = 10.0  # a relative deviation beyond this is taken as this
KEPT_ON_CHANGE = 0.1  # of the weight of the runs before it

_Curve: TypeAlias = list[float]
"""Seconds at 1, 2, 4, 8, … cells, rising; straight between."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rows` a run with which the objective is kept without a miss (b*), and the rows/s that one lane serves then (μ*)."""

    rows: int
    rate: float


@dataclass(slots=True)
class _Size:
    """Runs of about one size (a doubling of cells): by how much they miss the fit, and by how much the curve."""

    runs: int = 0
    bias: float = 0.0
    deviations: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    margin: float = FIRST_MARGIN
    stale: bool = False

    def correction(self) -> float:
        """Relative, drawn towards none while runs are few."""
        return self.bias * self.runs / (self.runs + OWN)

    def note(self, missed_fit: float) -> None:
        if self.runs < 50:
            self.runs += 1
        self.bias += (missed_fit - self.bias) / self.runs


@dataclass(slots=True)
class _Run:
    """One run: `error` is its relative deviation from what the curve had it take."""

    cells: int
    length: int
    seconds: float
    error: float


class CostModel:
    """`warmup` is seconds of a run by rows, each with `length` cells a row; empty where nothing could be measured."""

    def __init__(self, warmup: Mapping[int, float], length: int = 1, quantile: float = QUANTILE) -> None:
        self.warmup = {rows: seconds for rows, seconds in sorted(warmup.items()) if seconds > 0}
        self.length = length
        self.runs = 0
        self.changes = 0
        self.version = 0  # moves with every refit: what was computed from the curve is stale then
        self.margin = FIRST_MARGIN
        self._quantile = quantile
        self._prior, self._sums = Sums(), Sums()
        for rows, seconds in self.warmup.items():
            self._prior.add(rows * length, length, seconds, WARMUP_WEIGHT)
        if len(self.warmup) == 1:
            self._guess(*next((rows * length, length, seconds) for rows, seconds in self.warmup.items()))
        self._weight = 1.0  # of the next run; it grows, which is the same as if the older ones faded
        self._sizes: dict[int, _Size] = {}
        self._all = _Size()
        self._held: list[_Run] = []  # back from the fit while they may be the first of a change
        self._spread = LEAST_DRIFT / 2
        self._slower = self._faster = 0.0
        self._settled = 0  # runs since the start or the last change
        self._until_refit = 1
        self._fit = [0.0, 0.0, 0.0]
        self._curve: _Curve = []
        self._late: _Curve = []
        self._top = max((rows * length for rows in self.warmup), default=1)
        self._measured = self._top if len(self.warmup) > 1 else 0
        self._refit()

    @property
    def known(self) -> bool:
        """Whether anything was ever measured."""
        return self.runs > 0 or bool(self.warmup)

    def mean(self, rows: int, length: int = 1) -> float:
        """Seconds that a run takes in the mean."""
        cells = rows * length
        return _along(self._curve, cells) + self._fit[2] * cells * length

    def estimate(self, rows: int, length: int = 1) -> float:
        """Seconds within which a run ends, but for one in a hundred."""
        cells = rows * length
        return _along(self._late, cells) + self._fit[2] * (1 + self.margin) * cells * length

    def estimates(self, most: int, length: int = 1) -> list[float]:
        """`estimate` of 0 … `most` rows; a run of no rows takes no time."""
        return [0.0, *(self.estimate(rows, length) for rows in range(1, most + 1))]

    def observe(self, rows: int, seconds: float, length: int = 1) -> None:
        """A run of `rows` rows, padded to `length`, took `seconds` with the device to itself."""
        if seconds <= 0 or rows <= 0:
            return
        if not self.known:
            self._guess(rows * length, length, seconds)
        self.runs += 1
        if seconds < SHORT and self._settled >= SETTLED and self.runs % ONE_IN:
            return
        self._settled += 1
        expected = self.mean(rows, length)
        run = _Run(rows * length, length, seconds, min(seconds / expected - 1, FARTHEST) if expected > 0 else 0.0)
        self._top = max(self._top, run.cells)
        if not self._familiar(run.cells):
            self._learn(run, clip=FARTHEST)
            self._refit_within(2)
        elif self._suspect(run.error):
            self._held.append(run)
            if max(self._slower, self._faster) > ALARM * self._drift:
                self._rescale()
        else:
            if self._held:
                self._release()
            self._learn(run, CLIP * self._drift)
            self._refit_within(REFIT_EVERY[1])

    def _familiar(self, cells: int) -> bool:
        """Whether the curve is known at a size: then a deviation may be the device's doing, else it's the curve that's wrong."""
        size = self._sizes.get(cells.bit_length())
        return cells <= self._measured or (size is not None and size.runs >= FAMILIAR)

    def _refit_within(self, runs: int) -> None:
        self._until_refit = min(self._until_refit - 1, runs - 1)
        if self._until_refit <= 0:
            self._refit()

    def _guess(self, cells: int, length: int, seconds: float) -> None:
        """One size alone says nothing of others: half of its time is taken to be the run's and half the rows', until others are seen."""
        self._prior.add(cells, length, seconds, GUESS_WEIGHT)
        self._prior.add(8 * cells, length, 4.5 * seconds, GUESS_WEIGHT)

    @property
    def _drift(self) -> float:
        return max(LEAST_DRIFT, 1.5 * self._spread)

    def _suspect(self, error: float) -> bool:
        """Whether a change may be under way. Two cumulative sums: a deviation that lasts passes the alarm within a few runs, one run alone
        can't."""
        drift = self._drift
        most = CLIP * drift
        error = most if error > most else -most if error < -most else error
        self._spread += 0.02 * (min(abs(error), 2 * drift) - self._spread)
        slower, faster = self._slower + error - drift, self._faster - error - drift
        self._slower = slower if slower > 0 else 0.0
        self._faster = faster if faster > 0 else 0.0
        return max(self._slower, self._faster) > SUSPECT * drift and len(self._held) < MOST_HELD

    def _learn(self, run: _Run, clip: float) -> None:
        """Count a run in the margins, and in the fit and its size's correction too unless it's farther off than `clip`: a spike."""
        size = self._sizes.get(run.cells.bit_length())
        if size is None:
            size = self._sizes[run.cells.bit_length()] = _Size()
        self._all.deviations.append(run.error)
        size.deviations.append(run.error)
        size.stale = True
        if run.error > clip:
            return
        a, c1, c2 = self._fit
        fitted = a + c1 * run.cells + c2 * run.cells * run.length
        if fitted > 0:
            size.note(run.seconds / fitted - 1)
        self._sums.add(run.cells, run.length, run.seconds, self._weight)
        self._weight /= FORGET

    def _release(self) -> None:
        """It was no change: the runs that were held back count like all others."""
        for run in self._held:
            self._learn(run, CLIP * self._drift)
        self._held.clear()

    def _rescale(self) -> None:
        """The device runs at another speed, at every size: keep the curve's shape, forget its height."""
        factor = median(1 + run.error for run in self._held)
        self._sums.scale(KEPT_ON_CHANGE)
        for sums in (self._prior, self._sums):
            sums.rescale(factor)
        for size in (self._all, *self._sizes.values()):
            size.deviations.clear()
        self._slower = self._faster = 0.0
        self._fit = [value * factor for value in self._fit]
        for run in self._held:
            self._learn(_Run(run.cells, run.length, run.seconds, (1 + run.error) / factor - 1), CLIP * self._drift)
        self._held.clear()
        self.changes += 1
        self._settled = 0
        self._refit()

    def _refit(self) -> None:
        """The curve anew from the sums."""
        self._sums.scale(1 / self._weight)
        self._weight = 1.0
        self._fit = self._prior.plus(self._sums).solve()
        self.margin = self._margin_of(self._all, FIRST_MARGIN)
        cells = [1 << power for power in range(self._top.bit_length() + 2)]
        straight = [self._fit[0] + self._fit[1] * x for x in cells]
        sizes = [self._sizes.get(x.bit_length()) for x in cells]
        self._curve = _rising([v * (1 + s.correction()) if s else v for v, s in zip(straight, sizes, strict=True)])
        self._late = _rising([v * (1 + self._own_margin(s)) for v, s in zip(self._curve, sizes, strict=True)])
        self._until_refit = REFIT_EVERY[1] if self._settled >= SETTLED else min(REFIT_EVERY[0], max(1, self._settled // 2))
        self.version += 1

    def _own_margin(self, size: _Size | None) -> float:
        """A size's own margin once it has runs enough to tell, that of all before."""
        if size is None or len(size.deviations) < ENOUGH:
            return self.margin
        if size.stale:
            size.margin, size.stale = self._margin_of(size, self.margin), False
        return size.margin

    def _margin_of(self, size: _Size, assumed: float) -> float:
        """The quantile of what was seen; never less than what is assumed, in the share in which runs lack."""
        seen = len(size.deviations)
        if not seen:
            return assumed
        found = max(LEAST_MARGIN, sorted(size.deviations)[min(seen - 1, int(self._quantile * seen))])
        share = min(1.0, seen / ENOUGH)
        return share * found + (1 - share) * max(found, assumed)

    def capacity(self, objective: float | None, max_rows: int, length: int = 1) -> Capacity:
        """b* and μ*: the largest run with T(b)·(2 − 1/b) within `objective` seconds, which is the longest that a request can take when
        it just missed a full run. Without an objective the smallest run worth it; where no run keeps it, one row."""
        if not self.known:
            return Capacity(max_rows, 0.0)
        if objective is None:
            rows = self.preferred(max_rows, length)
        else:
            rows = max((b for b in range(1, max_rows + 1) if self.estimate(b, length) * (2 - 1 / b) <= objective), default=1)
        return Capacity(rows, rows / self.mean(rows, length))

    def preferred(self, max_rows: int, length: int = 1, worth_it: float = 0.95) -> int:
        """The smallest run that reaches 95 % of the best rows/s: the same rate, less waiting. `max_rows` where nothing is known."""
        if not self.known:
            return max_rows
        rates = [rows / self.mean(rows, length) for rows in range(1, max_rows + 1)]
        enough = worth_it * max(rates)
        return next(rows for rows, rate in enumerate(rates, 1) if rate >= enough)

    def snapshot(self) -> dict[str, Any]:
        """Plain data for people: what warm-up measured, the curve now at the same rows, the fit, the margin, how much was learned."""
        a, c1, c2 = self._fit
        return {
            "points": dict(self.warmup),
            "now": {rows: self.mean(rows, self.length) for rows in sorted({1, *self.warmup})} if self.known else {},
            "length": self.length,
            "fit": {"a": a, "c1": c1, "c2": c2},
            "margin": self.margin,
            "runs": self.runs,
            "changes": self.changes,
        }


def _along(curve: _Curve, cells: int) -> float:
    power = min(cells.bit_length() - 1, len(curve) - 2)
    low = curve[power]
    return low + (curve[power + 1] - low) * (cells - (1 << power)) / (1 << power)


def _rising(values: _Curve) -> _Curve:
    """None below the one before it: more rows never take less time."""
    least = 0.0
    for index, value in enumerate(values):
        least = values[index] = max(least, value)
    return values
