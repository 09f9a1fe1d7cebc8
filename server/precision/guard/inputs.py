"""How far what clients send is from what a precision was calibrated on: each input's values beside the calibration set's. Pure.

It's a warning and never a reason to change precision: other inputs aren't wrong answers, they are answers that the proof says less about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server.repository.manifest import InputStatistics, Manifest
from server.tensors import Tensor

REMEMBERED = 1000.0  # rows: what came before weighs less and less
ENOUGH = 30.0  # rows before which nothing is told
LEAST_DEVIATION = 1e-9


@dataclass(slots=True, eq=False)
class Input:
    """Sums over the values of one input's rows, the older ones weighing less. `expected` are the calibration set's."""

    expected: InputStatistics
    rows: float = 0.0
    count: float = 0.0
    finite: float = 0.0
    zeros: float = 0.0
    outside: float = 0.0
    sum: float = 0.0
    squares: float = 0.0
    least: float = np.inf
    greatest: float = -np.inf

    def add(self, row: Tensor) -> None:
        """Count one row's values."""
        values = np.asarray(row, np.float64).ravel()
        good = values[np.isfinite(values)]
        keep = 1.0 - 1.0 / REMEMBERED
        expected = self.expected
        self.rows = self.rows * keep + 1
        self.count = self.count * keep + values.size
        self.finite = self.finite * keep + good.size
        self.zeros = self.zeros * keep + float((good == 0).sum())
        self.outside = self.outside * keep + float(((good < expected.least) | (good > expected.greatest)).sum())
        self.sum = self.sum * keep + float(good.sum())
        self.squares = self.squares * keep + float(((good - expected.mean) ** 2).sum())
        if good.size:
            self.least = min(self.least, float(good.min()))
            self.greatest = max(self.greatest, float(good.max()))

    @property
    def mean(self) -> float:
        return self.sum / self.finite if self.finite else 0.0

    @property
    def deviation(self) -> float:
        """Around its own mean."""
        if not self.finite:
            return 0.0
        apart = self.mean - self.expected.mean
        return float(np.sqrt(max(0.0, self.squares / self.finite - apart**2)))

    @property
    def shift(self) -> float:
        """How far its mean is from the calibration set's, in that one's deviations; 0 before there's enough."""
        if self.rows < ENOUGH or not self.finite:
            return 0.0
        return abs(self.mean - self.expected.mean) / max(self.expected.deviation, LEAST_DEVIATION)

    @property
    def strange(self) -> float:
        """The share of its values that no calibration row had the like of: out of its range, NaN or Inf; 0 before there's enough."""
        if self.rows < ENOUGH or not self.count:
            return 0.0
        return (self.outside + self.count - self.finite) / self.count

    def told(self) -> dict[str, float]:
        """For people and programs."""
        if not self.finite:
            return {"rows": round(self.rows, 1)}
        return {
            "rows": round(self.rows, 1),
            "mean": self.mean,
            "deviation": self.deviation,
            "least": self.least,
            "greatest": self.greatest,
            "zeros": self.zeros / self.count,
            "not_finite": 1.0 - self.finite / self.count,
            "shift": self.shift,
            "strange": self.strange,
            "expected_mean": self.expected.mean,
            "expected_deviation": self.expected.deviation,
            "expected_least": self.expected.least,
            "expected_greatest": self.expected.greatest,
        }


def inputs_of(manifest: Manifest | None) -> dict[str, Input]:
    """What the manifest tells of the rows that a variant was calibrated on, by input; nothing where none was."""
    found = (variant.calibration for variant in (manifest.variants if manifest is not None else ()))
    calibration = next((each for each in found if each is not None), None)
    return {name: Input(expected) for name, expected in calibration.inputs.items()} if calibration is not None else {}


def count(inputs: Mapping[str, Input], sample: Mapping[str, Tensor]) -> None:
    """Count one sample's row of each input that is known and made of numbers."""
    for name, known in inputs.items():
        array = sample.get(name)
        if array is not None and array.dtype != object:
            known.add(array)
