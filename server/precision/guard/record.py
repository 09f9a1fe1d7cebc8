"""What is known of one variant's answers beside FP32's: how many rows differ and by how much, and what came of NaN and Inf. Pure.

Comparisons go in, judgements come out. A variant keeps its record while its version is loaded, whether it serves or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from server.numerics import distance, divergence, looks_like_scores
from server.precision.drift import Admission, Cusum, Judgement, Rates, Verdict, differing
from server.repository.manifest import Variant
from server.tensors import Tensor


class Blame(StrEnum):
    """Whose doing an answer with NaN or Inf was."""

    VARIANT = "variant"  # FP32 is finite there
    INPUT = "input"  # FP32's isn't either, or the input itself isn't
    NEIGHBOUR = "neighbour"  # FP32 is finite there, but it shared a run with one whose input was to blame
    UNKNOWN = "unknown"  # FP32 couldn't be asked


class Cause(StrEnum):
    """Why a variant must not serve."""

    DRIFT = "drift"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row beside FP32's: the worst over its outputs. `divergence` is KL(FP32 ‖ answer) in nats, None where nothing is class scores."""

    differs: bool
    cosine: float
    max_relative: float
    divergence: float | None


def compare(reference: Mapping[str, Tensor], answer: Mapping[str, Tensor], tolerance: float, *, classes: bool = True) -> Comparison | None:
    """One row's comparison, over the outputs that the answer has; None where none of them is made of numbers. `classes`: what looks like
    class scores is.

    Raises ValueError where outputs or shapes are unlike.
    """
    wanted = {name: array for name, array in reference.items() if name in answer}
    differs = differing(wanted, answer, tolerance, classes=classes)
    if not differs:
        return None
    pairs = [(array, answer[name]) for name, array in wanted.items() if array.dtype != object]
    found = [distance(array, other) for array, other in pairs]
    scores = [float(divergence(array, other).max()) for array, other in pairs if classes and looks_like_scores(array)]
    return Comparison(
        differs=any(differs),
        cosine=min(each.cosine_min for each in found),
        max_relative=max(each.max_relative for each in found),
        divergence=max(scores, default=None),
    )


@dataclass(frozen=True, slots=True)
class Alarm:
    """A variant must not serve any more: why, and the figures that say so."""

    precision: str
    cause: Cause
    judgement: Judgement
    figures: Mapping[str, float]

    def __str__(self) -> str:
        told = self.judgement
        if self.cause is Cause.NOT_FINITE:
            return f"{self.precision} gave NaN or Inf where FP32's answer is finite"
        return (
            f"{self.precision} differs from FP32 in {told.differing} of {told.samples} rows ({told.low:.2%} to {told.high:.2%}), "
            f"drift statistic {told.statistic:.3g} at a threshold of {told.threshold:g}"
        )


@dataclass(slots=True, eq=False)
class Record:
    """One variant's. `admission` is the test that it takes or took where it's unproven on this device, `broken` whether it gave NaN or Inf
    by its own doing, `last` the last alarm."""

    precision: str
    rates: Rates
    tolerance: float
    classes: bool = True
    cusum: Cusum = field(init=False)
    admission: Admission | None = None
    nonfinite: dict[Blame, int] = field(default_factory=lambda: dict.fromkeys(Blame, 0))
    alarms: Counter[Cause] = field(default_factory=Counter)
    broken: bool = False
    last: Alarm | None = None
    rows: int = 0
    cosine_min: float = 1.0
    cosine_sum: float = 0.0
    max_relative: float = 0.0
    divergence_max: float = 0.0
    divergence_sum: float = 0.0
    scored: int = 0

    def __post_init__(self) -> None:
        self.cusum = Cusum(self.rates)

    def add(self, found: Comparison) -> Alarm | None:
        """Count one row; the alarm, once, with the row that raises it."""
        self.rows += 1
        self.cosine_min = min(self.cosine_min, found.cosine)
        self.cosine_sum += found.cosine
        self.max_relative = max(self.max_relative, found.max_relative)
        if found.divergence is not None:
            self.scored += 1
            self.divergence_max = max(self.divergence_max, found.divergence)
            self.divergence_sum += found.divergence
        alarmed = self.cusum.alarmed
        return self.alarm(Cause.DRIFT) if self.cusum.add(found.differs) and not alarmed else None

    def blame(self, blame: Blame) -> Alarm | None:
        """Count an answer with NaN or Inf; the alarm, once, where that's the variant's own doing."""
        self.nonfinite[blame] += 1
        if blame is not Blame.VARIANT or self.broken:
            return None
        self.broken = True
        return self.alarm(Cause.NOT_FINITE)

    def alarm(self, cause: Cause) -> Alarm:
        """It must not serve, for this cause."""
        self.alarms[cause] += 1
        self.last = Alarm(self.precision, cause, self.cusum.judge(), self.figures())
        return self.last

    @property
    def clean(self) -> bool:
        """Whether nothing speaks against it now."""
        return not self.cusum.alarmed and not self.broken

    def anew(self) -> None:
        """It's given another chance: the evidence begins again, counts go on."""
        self.cusum = Cusum(self.rates)
        self.broken = False

    def figures(self) -> dict[str, float]:
        """How far it was from FP32 over all rows so far."""
        if not self.rows:
            return {}
        told = {"cosine_min": self.cosine_min, "cosine_mean": self.cosine_sum / self.rows, "max_relative": self.max_relative}
        if self.scored:
            told |= {"divergence_max": self.divergence_max, "divergence_mean": self.divergence_sum / self.scored}
        return {name: round(value, 6) for name, value in told.items()}

    def told(self) -> dict[str, Any]:
        """For people and programs."""
        judged = self.cusum.judge()
        told: dict[str, Any] = {
            "verdict": str(Verdict.HEALTHY if self.clean else Verdict.DRIFTED),
            "statistic": round(judged.statistic, 4),
            "threshold": judged.threshold,
            "samples": judged.samples,
            "differing": judged.differing,
            "disagreement": [round(judged.low, 6), round(judged.high, 6)],
            "healthy_rate": self.rates.p0,
            "drifted_rate": self.rates.p1,
            "nonfinite": {str(blame): count for blame, count in self.nonfinite.items() if count},
            **self.figures(),
        }
        if self.admission is not None:
            test = self.admission.judge()
            told["admission"] = {"verdict": str(test.verdict), "samples": test.samples, "differing": test.differing}
        return told


@dataclass(frozen=True, slots=True)
class Proof:
    """What a manifest proves: the upper 95 % bound of the disagreement (None: of none), the relative distance that was allowed, and whether
    the answers are class scores. They aren't where FP32 wasn't sure of any row: those are embeddings, whose largest value says nothing."""

    disagreement: float | None = None
    distance: float = 0.0
    classes: bool = True


def proof_of(variant: Variant | None) -> Proof:
    """What is proven of a variant; nothing without one."""
    if variant is None:
        return Proof()
    parity = variant.parity
    if parity.confident == 0:
        return Proof(None, parity.tolerance, classes=False)
    bounds = [parity.top1_upper95, parity.task.top1_upper95 if parity.task is not None else None]
    return Proof(max((bound for bound in bounds if bound is not None), default=None), parity.tolerance)


def is_finite(outputs: Mapping[str, Tensor]) -> bool:
    """Whether outputs hold neither NaN nor Inf. One pass, and no copy where the sum itself is finite, as it nearly always is."""
    return all(_array_finite(array) for array in outputs.values() if array.dtype.kind == "f")


def _array_finite(array: Tensor) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(array, axis=None, dtype=np.float32 if array.dtype.itemsize < 8 else np.float64)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())
