"""Whether a precision still answers as FP32 does: rows that differ go in, verdicts with figures come out. Pure: no lane, no loop, no clock.

Three rules. A Bernoulli CUSUM (Page, 1954) watches what serves: each sampled row that differs raises it by log(p1/p0), each other one
lowers it, never below 0, and at the threshold it's an alarm. Wald's sequential test (1945) admits a variant that has no proof on this
device, from shadowed traffic. An answer with NaN or Inf needs neither: where FP32 is finite it's evidence at once, else it's the input's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from server.numerics import distance, looks_like_scores
from server.tensors import Tensor

THRESHOLD = 14.0
"""Of the CUSUM. At p0 = 1 % and p1 = 6 % a false alarm comes once in 5·10⁷ samples; 13 would give 1.9·10⁷, which is 0.947 for no alarm
in 10⁶."""
LEAST_THRESHOLD = 13.0
STEP = 0.05  # the least distance of p1 from p0: less can't be told apart in a few hundred samples
LEAST_HEALTHY = 1e-3  # p0 of a proof without a single disagreement, however many rows it had
ASSUMED_HEALTHY = 0.01  # p0 of a variant without a proof
MOST_TRIALS = 20_000  # rows after which an admission that is still undecided is refused
Z95 = 1.959964


class Verdict(StrEnum):
    """What the evidence says so far."""

    HEALTHY = "healthy"
    DRIFTED = "drifted"
    UNDECIDED = "undecided"
    ADMITTED = "admitted"
    REFUSED = "refused"


class Finite(StrEnum):
    """What is done with an answer, as to NaN and Inf."""

    CLEAN = "clean"
    RECOMPUTE = "recompute"  # in FP32, before anybody is blamed
    VARIANT = "variant"  # FP32 is finite there: send its answer, fall back at once
    INPUT = "input"  # the input's doing: sent as it is, and counted


@dataclass(frozen=True, slots=True)
class Rates:
    """`p0` is how often a healthy variant differs from FP32, `p1` how often one differs that must not serve. Raises ValueError for
    rates that no test can tell apart."""

    p0: float
    p1: float

    def __post_init__(self) -> None:
        if not 0 < self.p0 < self.p1 < 1:
            raise ValueError(f"expected 0 < p0 < p1 < 1, got p0 {self.p0} and p1 {self.p1}")

    @property
    def up(self) -> float:
        """What a differing row adds to the log-likelihood ratio."""
        return math.log(self.p1 / self.p0)

    @property
    def down(self) -> float:
        """What one that doesn't differ takes from it."""
        return math.log((1 - self.p0) / (1 - self.p1))


def rates(proven: float | None, tolerate: float) -> Rates:
    """From the upper 95 % bound of the disagreement in the manifest (None: no proof) and what the operator tolerates.

    Raises ValueError where the proof itself is worse than anything that could be told from bad.
    """
    p0 = ASSUMED_HEALTHY if proven is None else max(proven, LEAST_HEALTHY)
    return Rates(p0, max(tolerate, p0 + STEP))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the figures behind it: `low` and `high` are the 95 % interval (Wilson) of the rate of differing rows."""

    verdict: Verdict
    statistic: float
    threshold: float
    samples: int
    differing: int
    low: float
    high: float


class Cusum:
    """The drift detector of one variant that serves. Each row of a sampled answer is one sample.

    Raises ValueError for a threshold under 13: its false alarms would come by themselves.
    """

    def __init__(self, rates: Rates, threshold: float = THRESHOLD) -> None:
        if threshold < LEAST_THRESHOLD:
            raise ValueError(f"expected a threshold of {LEAST_THRESHOLD:g} or more, got {threshold:g}")
        self.rates = rates
        self.threshold = threshold
        self.statistic = 0.0
        self.samples = 0
        self.differing = 0
        self._up, self._down = rates.up, rates.down

    @property
    def alarmed(self) -> bool:
        return self.statistic >= self.threshold

    def add(self, differs: bool) -> bool:
        """Count one row; True from the alarm on. An alarm stays: what follows it is counted and takes nothing back."""
        self.samples += 1
        self.differing += differs
        if not self.alarmed:
            self.statistic = max(0.0, self.statistic + (self._up if differs else -self._down))
        return self.alarmed

    def judge(self) -> Judgement:
        """The verdict so far."""
        verdict = Verdict.DRIFTED if self.alarmed else Verdict.HEALTHY
        return Judgement(verdict, self.statistic, self.threshold, self.samples, self.differing, *interval(self.differing, self.samples))


class Admission:
    """The test that a variant without a proof takes on shadowed traffic. One as bad as p1 is admitted with a chance of `admit_bad`, one as
    good as p0 refused with `refuse_good`; one between them that stays undecided for MOST_TRIALS rows is refused."""

    def __init__(self, rates: Rates, admit_bad: float = 0.001, refuse_good: float = 0.05) -> None:
        if not (0 < admit_bad < 0.5 and 0 < refuse_good < 0.5):
            raise ValueError(f"expected chances between 0 and 0.5, got admit_bad {admit_bad} and refuse_good {refuse_good}")
        self.rates = rates
        self.accept_at = math.log(admit_bad / (1 - refuse_good))
        self.refuse_at = math.log((1 - admit_bad) / refuse_good)
        self.verdict = Verdict.UNDECIDED
        self.statistic = 0.0
        self.samples = 0
        self.differing = 0

    def add(self, differs: bool) -> Verdict:
        """Count one row. A verdict stays; what follows it isn't counted."""
        if self.verdict is not Verdict.UNDECIDED:
            return self.verdict
        self.samples += 1
        self.differing += differs
        self.statistic += self.rates.up if differs else -self.rates.down
        if self.statistic <= self.accept_at:
            self.verdict = Verdict.ADMITTED
        elif self.statistic >= self.refuse_at or self.samples >= MOST_TRIALS:
            self.verdict = Verdict.REFUSED
        return self.verdict

    def judge(self) -> Judgement:
        """The verdict so far; the threshold is that of a refusal."""
        return Judgement(
            self.verdict, self.statistic, self.refuse_at, self.samples, self.differing, *interval(self.differing, self.samples)
        )


def differing(reference: Mapping[str, Tensor], answer: Mapping[str, Tensor], tolerance: float, *, classes: bool = True) -> tuple[bool, ...]:
    """For each row of an answer, whether it differs from the reference's.

    Of outputs that are class scores the top-1 decides; without `classes` none are, whatever they look like. Only where there are none, the
    largest distance relative to the reference's largest value in that row does: over `tolerance` it differs. BYTES aren't compared. Raises
    ValueError where outputs, shapes or rows are unlike.
    """
    if reference.keys() != answer.keys():
        raise ValueError(f"outputs differ: reference {sorted(reference)}, answer {sorted(answer)}")
    numbers = {name: array for name, array in reference.items() if array.dtype != object}
    scored = {name for name, array in numbers.items() if classes and looks_like_scores(array)}
    compared = scored or set(numbers)
    rows = {len(numbers[name]) if numbers[name].ndim else 1 for name in compared}
    if len(rows) > 1:
        raise ValueError(f"outputs of unlike rows can't be judged by row, got {sorted(rows)}")
    return tuple(
        any(_row_differs(_row(reference[name], row), _row(answer[name], row), tolerance, bool(scored)) for name in sorted(compared))
        for row in range(max(rows, default=0))
    )


def _row(array: Tensor, row: int) -> Tensor:
    return array[row : row + 1] if array.ndim else array


def _row_differs(reference: Tensor, answer: Tensor, tolerance: float, scored: bool) -> bool:
    found = distance(reference, answer)
    return found.disagreements > 0 if scored and found.classified else found.max_relative > tolerance


def finite(answer: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None, inputs: Mapping[str, Tensor]) -> Finite:
    """What to do about NaN and Inf in an answer; `reference` is FP32's for the same inputs, None while it wasn't asked.

    Inputs that have NaN or Inf themselves are the client's doing, whatever comes out of them: else a client could take a variant away.
    """
    if all(_finite(array).all() for array in answer.values()):
        return Finite.CLEAN
    if not all(_finite(array).all() for array in inputs.values()):
        return Finite.INPUT
    if reference is None:
        return Finite.RECOMPUTE
    theirs = any(bool((~_finite(array) & _finite(reference[name])).any()) for name, array in answer.items())
    return Finite.VARIANT if theirs else Finite.INPUT


def _finite(array: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where an array is finite; BYTES, integers and booleans always are."""
    if array.dtype == object or not np.issubdtype(array.dtype, np.inexact):
        return np.ones(array.shape, dtype=np.bool_)
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = np.isfinite(array)
    return found


def interval(events: int, trials: int) -> tuple[float, float]:
    """The 95 % interval (Wilson) of a rate; all of it where nothing was tried."""
    if not trials:
        return 0.0, 1.0
    rate, weight = events / trials, Z95**2 / trials
    middle = (rate + weight / 2) / (1 + weight)
    half = Z95 / (1 + weight) * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
