"""How far apart two answers are: absolute and relative distance, cosine per row, top-1 disagreement and its upper bound.

Pure and numpy only. A Distance is made of mergeable sums, so that batches, replicas or days can be added in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from server.tensors import Tensor

SCALE_FLOOR = 1e-2
"""The least scale that a distance is divided by: below it an answer counts as zero, and rounding there isn't an error."""
CONFIDENT = 0.5
"""The share that a row must give its best class for its top-1 to be a clear one."""
SUM_SLACK = 1e-3
"""How far from 1 the sum of a row may be that is read as a distribution."""
TINIEST = 1e-12
"""The share that a class has at least in a divergence, so that rounding to 0 isn't infinitely far."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far answers are from their reference, summed over batches.

    `scale` is the largest absolute value of the reference; `max_abs` is inf where one side is finite and the other isn't.
    `classified` counts the rows that have a top-1 (see looks_like_scores), `disagreements` those of them whose top-1 differs;
    `confident` and `confident_disagreements` count only rows whose reference gives its best class more than half.
    """

    elements: int = 0
    rows: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    scale: float = 0.0
    cosine_min: float = 1.0
    cosine_sum: float = 0.0
    classified: int = 0
    disagreements: int = 0
    confident: int = 0
    confident_disagreements: int = 0

    @property
    def mean_abs(self) -> float:
        return self.sum_abs / self.elements if self.elements else 0.0

    @property
    def max_relative(self) -> float:
        """`max_abs` over the reference's scale."""
        return self.max_abs / max(self.scale, SCALE_FLOOR)

    @property
    def cosine_mean(self) -> float:
        return self.cosine_sum / self.rows if self.rows else 1.0

    @property
    def top1_disagreement(self) -> float | None:
        """The share of rows whose top-1 differs, None where the answers aren't class scores."""
        return self.disagreements / self.classified if self.classified else None

    @property
    def top1_upper95(self) -> float | None:
        """The upper 95 % bound of the disagreement, None where the answers aren't class scores."""
        return upper_bound(self.disagreements, self.classified) if self.classified else None

    @property
    def confident_disagreement(self) -> float | None:
        """The share of rows that the reference is sure of and whose top-1 differs, None where it's sure of none."""
        return self.confident_disagreements / self.confident if self.confident else None


def distance(reference: Tensor, answer: Tensor) -> Distance:
    """How far `answer` is from `reference`: two arrays of one shape, rows on axis 0 (a scalar is one row).

    Numbers and booleans are compared as float64. Raises ValueError where shapes differ or elements aren't numbers.
    """
    if reference.shape != answer.shape:
        raise ValueError(f"shapes differ: reference {list(reference.shape)}, answer {list(answer.shape)}")
    if reference.dtype == object or answer.dtype == object:
        raise ValueError("only numbers can be compared, not BYTES")
    if reference.size == 0:
        return Distance()
    wanted, got = _by_row(reference), _by_row(answer)
    gaps = _gaps(wanted, got)
    cosines = cosine_per_row(wanted, got)
    scored = looks_like_scores(reference)
    differ = (wanted.argmax(axis=1) != got.argmax(axis=1)) & scored
    sure = (confidence(wanted) > CONFIDENT) & scored
    return Distance(
        elements=reference.size,
        rows=len(wanted),
        max_abs=float(gaps.max()),
        sum_abs=float(gaps.sum()),
        scale=float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)),
        cosine_min=float(cosines.min()),
        cosine_sum=float(cosines.sum()),
        classified=len(wanted) if scored else 0,
        disagreements=int(differ.sum()),
        confident=int(sure.sum()),
        confident_disagreements=int((differ & sure).sum()),
    )


def merged(*parts: Distance) -> Distance:
    """The distance over all batches of `parts` together."""
    return reduce(_merge, parts, Distance())


def _merge(a: Distance, b: Distance) -> Distance:
    return Distance(
        elements=a.elements + b.elements,
        rows=a.rows + b.rows,
        max_abs=max(a.max_abs, b.max_abs),
        sum_abs=a.sum_abs + b.sum_abs,
        scale=max(a.scale, b.scale),
        cosine_min=min(a.cosine_min, b.cosine_min),
        cosine_sum=a.cosine_sum + b.cosine_sum,
        classified=a.classified + b.classified,
        disagreements=a.disagreements + b.disagreements,
        confident=a.confident + b.confident,
        confident_disagreements=a.confident_disagreements + b.confident_disagreements,
    )


def looks_like_scores(answer: Tensor) -> bool:
    """Whether rows of `answer` can be read as scores of classes: floats [rows, classes], two classes or more."""
    return answer.ndim == 2 and answer.shape[1] >= 2 and not np.issubdtype(answer.dtype, np.integer) and answer.dtype != np.bool_


def confidence(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share that each row of [rows, classes] gives its best class: as it is where the row is a distribution, else by softmax."""
    finite = np.where(np.isfinite(scores), scores, 0.0)
    best = finite.max(axis=1)
    softmax = 1.0 / np.exp(finite - best[:, None]).sum(axis=1)
    distributed = (finite >= 0.0).all(axis=1) & (np.abs(finite.sum(axis=1) - 1.0) < SUM_SLACK)
    shares: NDArray[np.float64] = np.where(distributed, best, softmax)
    return shares


def divergence(reference: Tensor, answer: Tensor) -> NDArray[np.float64]:
    """KL(reference ‖ answer) in nats, row by row, of two [rows, classes] arrays that are read as `confidence` reads them: inf where one
    side is finite and the other isn't, 0 where neither is."""
    wanted, got = _by_row(reference), _by_row(answer)
    finite = np.isfinite(wanted).all(axis=1), np.isfinite(got).all(axis=1)
    ours, theirs = _log_shares(wanted), _log_shares(got)
    found: NDArray[np.float64] = np.maximum(0.0, (np.exp(ours) * (ours - theirs)).sum(axis=1))
    return np.where(finite[0] & finite[1], found, np.where(finite[0] == finite[1], 0.0, np.inf))


def _log_shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the share that each row gives each class, at least TINIEST."""
    finite = np.where(np.isfinite(scores), scores, 0.0)
    distributed = (finite >= 0.0).all(axis=1) & (np.abs(finite.sum(axis=1) - 1.0) < SUM_SLACK)
    best = finite.max(axis=1, keepdims=True)
    softmax = np.exp(finite - best)
    shares = np.where(distributed[:, None], finite, softmax / softmax.sum(axis=1, keepdims=True))
    logs: NDArray[np.float64] = np.log(np.maximum(shares, TINIEST))
    return logs


def cosine_per_row(reference: NDArray[np.float64], answer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the angle between rows of two [rows, n] arrays: 1 where both are zero, 0 where one is zero or not finite."""
    finite = np.isfinite(reference).all(axis=1, keepdims=True) & np.isfinite(answer).all(axis=1, keepdims=True)
    wanted, got = np.where(finite, reference, 0.0), np.where(finite, answer, 0.0)
    lengths = np.linalg.norm(wanted, axis=1), np.linalg.norm(got, axis=1)
    product = lengths[0] * lengths[1]
    cosines = np.divide((wanted * got).sum(axis=1), product, out=np.zeros(len(wanted)), where=product > 0)
    same = (reference == answer) | (np.isnan(reference) & np.isnan(answer))
    return np.where(same.all(axis=1), 1.0, np.clip(cosines, -1.0, 1.0))


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson upper bound of a rate seen `events` times in `trials`: with none seen, about 3/trials at 95 %.

    Raises ValueError unless 0 <= events <= trials and trials > 0.
    """
    if not 0 <= events <= trials or trials == 0:
        raise ValueError(f"expected 0 <= events <= trials and trials > 0, got {events} of {trials}")
    if events == trials:
        return 1.0
    low, high = events / trials, 1.0
    log_factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, trials + 1)))))
    seen = np.arange(events + 1)
    choose = log_factorials[trials] - log_factorials[seen] - log_factorials[trials - seen]
    for _ in range(60):
        rate = (low + high) / 2
        at_most = np.exp(choose + seen * math.log(rate) + (trials - seen) * math.log1p(-rate)).sum()
        low, high = (rate, high) if at_most > 1 - confidence else (low, rate)
    return high


def _by_row(array: Tensor) -> NDArray[np.float64]:
    numbers = np.asarray(array, dtype=np.float64)
    return numbers.reshape(numbers.shape[0] if numbers.ndim else 1, -1)


def _gaps(reference: NDArray[np.float64], answer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute differences; 0 where both are the same infinity or both NaN, inf where only one is finite."""
    same = (reference == answer) | (np.isnan(reference) & np.isnan(answer))
    finite = np.isfinite(reference) & np.isfinite(answer)
    gaps = np.full(reference.shape, np.inf)
    np.subtract(reference, answer, out=gaps, where=finite)
    return np.where(same, 0.0, np.abs(gaps))
