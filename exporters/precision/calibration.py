"""Rows that a precision is calibrated on, and what a graph's tensors hold while it runs on them in FP32.

The rows are the user's (`--calibration FILE.npz`, or `calibration()` beside the factory), else made from the example. They aren't
meant to be those of the proof: what is judged on its own calibration looks better than it is. That they differ is the user's to see to.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.plan import ExportError
from exporters.sources.pytorch import Traced
from server.repository.manifest import Calibration, InputStatistics
from server.tensors import TensorSpec

BATCH_ROWS = 8
MOST_ROWS = 512

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Batches of inputs by name; `origin` says in words where they came from, `rows` how many they are together."""

    origin: str
    batches: tuple[Arrays, ...]
    rows: int

    def largest_group(self) -> CalibrationSet:
        """Only the batches of the shape that most have, for calibrators that can't mix shapes."""
        shapes = [tuple(array.shape[1:] for array in batch.values()) for batch in self.batches]
        common = Counter(shapes).most_common(1)[0][0]
        kept = tuple(batch for batch, shape in zip(self.batches, shapes, strict=True) if shape == common)
        whole = [batch for batch in kept if _rows(batch) == _rows(kept[0])]
        return CalibrationSet(self.origin, tuple(whole), sum(_rows(batch) for batch in whole))

    def record(self) -> Calibration:
        """What the manifest keeps of it."""
        digest = hashlib.sha256()
        for batch in self.batches:
            for name, array in batch.items():
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        names = self.batches[0]
        inputs = {name: _statistics([batch[name] for batch in self.batches]) for name in names}
        return Calibration(origin=self.origin, rows=self.rows, sha256=digest.hexdigest(), inputs=inputs)


def calibration_set(file: Path | None, traced: Traced, inputs: Sequence[TensorSpec]) -> CalibrationSet:
    """The rows of `file` if there is one, else those that the child left. Only `inputs`, which the graph takes, are kept.

    Raises ExportError: which input, what was expected, what the file has.
    """
    names = [spec.name for spec in inputs]
    if file is None:
        batches = tuple({name: batch[name] for name in names} for batch in traced.calibration())
        origin = "calibration() beside the factory" if traced.calibration_declared else "made from the example"
        return CalibrationSet(origin, batches, sum(_rows(batch) for batch in batches))
    arrays = _read(file)
    batched = traced.unbatched is None
    for spec in inputs:
        _check(file, spec, arrays, batched)
    given = {name: arrays[name] for name in names}
    if not batched:
        return CalibrationSet("--calibration", (given,), 1)
    rows = {name: len(array) for name, array in given.items()}
    if len(set(rows.values())) > 1:
        raise ExportError(f"--calibration {file.name}: the inputs differ in their number of rows: {_said(rows)}")
    most = min(MOST_ROWS, next(iter(rows.values())))
    cuts = range(0, most, BATCH_ROWS)
    batches = tuple({name: array[start : min(start + BATCH_ROWS, most)] for name, array in given.items()} for start in cuts)
    return CalibrationSet("--calibration", batches, most)


def _read(file: Path) -> Arrays:
    try:
        with file.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ExportError(f"--calibration {file.name} is one array without a name; expected an .npz with an array for each input")
            return dict(found)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"--calibration {file.name} can't be read as plain arrays: {error}") from error


def _check(file: Path, spec: TensorSpec, arrays: Mapping[str, NDArray[Any]], batched: bool) -> None:
    """One input's array must be there, of its dtype and shape, with at least a row, and free of NaN and infinities."""
    where = f"--calibration {file.name}"
    if spec.name not in arrays:
        raise ExportError(f"{where} has no {spec.name!r}; it has {', '.join(arrays) or 'nothing'}")
    array = arrays[spec.name]
    if array.dtype != spec.dtype.numpy:
        raise ExportError(f"{where}: {spec.name!r} is {array.dtype}; expected {spec.dtype.numpy}")
    fits = array.ndim == len(spec.shape) and all(wanted in (-1, found) for wanted, found in zip(spec.shape, array.shape, strict=True))
    if not fits or not array.size:
        expected = [*(["rows"] if batched else spec.shape[:1]), *spec.shape[1:]]
        raise ExportError(f"{where}: {spec.name!r} has the shape {list(array.shape)}; expected [{', '.join(map(str, expected))}]")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
        raise ExportError(f"{where}: {spec.name!r} has NaN or infinities, first in row {row}; a range can't be taken from them")


def _statistics(parts: Iterable[NDArray[Any]]) -> InputStatistics:
    values = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts])
    return InputStatistics(
        least=float(values.min()), greatest=float(values.max()), mean=float(values.mean()), deviation=float(values.std())
    )


def _rows(batch: Mapping[str, NDArray[Any]]) -> int:
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in counts.items())
