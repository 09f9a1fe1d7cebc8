"""Rows that a precision is made by: some to calibrate on, others to choose by. None of them is one of the proof's.

The rows are the user's (`--calibration FILE.npz`, or `calibration()` beside the factory), else the example's or made from it. What is
judged on its own calibration, or on the rows that chose it, looks better than it is: so they are three sets without a common row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.plan import ExportError
from exporters.rows.arrays import Arrays, batches, checked, count, digest, read_arrays, row_keys
from exporters.sources.pytorch import Traced
from server.repository.manifest import Calibration, InputStatistics
from server.tensors import TensorSpec

MOST_ROWS = 512


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Batches of inputs by name; `origin` says in words where they came from.

    `batched` False: each batch is a whole call of a model that isn't batched, and counts as a row.
    """

    origin: str
    batches: tuple[Arrays, ...]
    batched: bool = True

    @property
    def rows(self) -> int:
        return sum(count(batch) for batch in self.batches) if self.batched else len(self.batches)

    def largest_group(self) -> CalibrationSet:
        """Only the batches of the shape that most have, for calibrators that can't mix shapes."""
        shapes = [tuple(array.shape[1:] for array in batch.values()) for batch in self.batches]
        common = Counter(shapes).most_common(1)[0][0]
        kept = tuple(batch for batch, shape in zip(self.batches, shapes, strict=True) if shape == common)
        return replace(self, batches=tuple(batch for batch in kept if count(batch) == count(kept[0])))

    def without(self, keys: Collection[bytes]) -> CalibrationSet:
        """Only the rows whose key isn't among `keys`."""
        fresh = [np.array([key not in keys for key in row_keys(batch, self.batched)]) for batch in self.batches]
        pairs = zip(self.batches, fresh, strict=True)
        kept = (batch if new.all() else {name: array[new] for name, array in batch.items()} for batch, new in pairs if new.any())
        return replace(self, batches=tuple(kept))

    def halves(self) -> tuple[CalibrationSet, CalibrationSet]:
        """Every second row to calibrate on, the others to choose by; a single row does both."""
        if self.batched and max(map(count, self.batches)) > 1:
            split = [[{name: array[start::2] for name, array in batch.items()} for batch in self.batches] for start in (0, 1)]
            parts = [tuple(batch for batch in part if count(batch)) for part in split]
        else:
            parts = [self.batches[::2], self.batches[1::2] or self.batches]
        return replace(self, batches=parts[0]), replace(self, batches=parts[1])

    def record(self, chosen_by: int = 0) -> Calibration:
        """What the manifest keeps of it; `chosen_by` is how many other rows chose between what was made."""
        names = self.batches[0]
        inputs = {name: _statistics([batch[name] for batch in self.batches]) for name in names}
        return Calibration(origin=self.origin, rows=self.rows, sha256=digest(self.batches), inputs=inputs, chosen_by=chosen_by)


def calibration_set(file: Path | None, traced: Traced, inputs: Sequence[TensorSpec]) -> CalibrationSet:
    """The rows of `file` if there is one, else those that the child left. Only `inputs`, which the graph takes, are kept.

    Raises ExportError: which input, what was expected, what the file has.
    """
    batched = traced.unbatched is None
    if file is None or file.is_dir():
        names = [spec.name for spec in inputs]
        left = tuple({name: batch[name] for name in names} for batch in traced.calibration())
        return CalibrationSet(traced.calibration_origin, left, batched)
    given = checked(read_arrays(file, "--calibration"), inputs, batched, f"--calibration {file.name}")
    return CalibrationSet("--calibration", tuple(batches(given, MOST_ROWS)) if batched else (given,), batched)


def held_out(found: CalibrationSet, traced: Traced, others: Collection[bytes] = ()) -> CalibrationSet:
    """`found` without the rows that prove the model, nor `others`. Raises ExportError where none is left."""
    names = list(found.batches[0])
    proof = {key for sample in traced.samples() for key in row_keys({name: sample.inputs[name] for name in names}, found.batched)}
    kept = found.without(proof | set(others))
    if not kept.batches:
        raise ExportError(
            f"the rows to calibrate on ({found.origin}) are those of the proof, and what is proved by its own rows isn't proved: "
            "give other ones, --calibration FILE.npz"
        )
    return kept


def _statistics(parts: Iterable[NDArray[Any]]) -> InputStatistics:
    values = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
    return InputStatistics(
        least=float(values.min()), greatest=float(values.max()), mean=float(values.mean()), deviation=float(values.std())
    )
