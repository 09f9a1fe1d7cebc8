"""The task's own metric on a labelled set: what a variant's answers are worth, beside what FP32's are. Pure but for the reading.

Cosine alone may pass what the task doesn't, and the other way round: a variant is held to both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exporters.plan import ExportError
from exporters.rows.arrays import Arrays, batches, checked, digest, read_arrays, row_keys
from server.backends.base import Backend
from server.numerics import Distance, distance, looks_like_scores
from server.tensors import TensorSpec

LABELS = "labels"
MOST_ROWS = 4096

MetricName = Literal["accuracy", "centroid", "error"]
Floats = NDArray[np.floating[Any]]
Metric = Callable[[Floats, NDArray[Any], Floats], float]
"""Answers [rows, …], labels [rows, …] and FP32's answers → a figure."""


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Rows with labels. `metric` and `output` say what is judged, `better` 1 where more is better, else -1."""

    batches: tuple[Arrays, ...]
    labels: NDArray[Any]
    metric: MetricName
    output: str
    sha256: str

    @property
    def better(self) -> int:
        return -1 if self.metric == "error" else 1

    def keys(self) -> set[bytes]:
        """A key for each row: none may be calibrated on."""
        return {key for batch in self.batches for key in row_keys(batch, batched=True)}

    def answers(self, backend: Backend) -> NDArray[Any]:
        """What a backend says of the rows."""
        return np.concatenate([backend.run(batch, len(next(iter(batch.values()))))[self.output] for batch in self.batches])


@dataclass(frozen=True, slots=True)
class Judged:
    """A variant on a labelled set: its metric, FP32's, and how far its answers are from FP32's."""

    value: float
    reference: float
    distance: Distance

    def worse(self, better: int) -> float:
        """By how much, 0 or less where it isn't."""
        return (self.reference - self.value) * better


def labelled_set(file: Path, metric: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> LabelledSet:
    """Read and check an .npz with an array for each input, and `labels`. Raises ExportError."""
    where = f"--eval {file.name}"
    arrays = read_arrays(file, "--eval")
    if LABELS not in arrays:
        raise ExportError(f"{where} has no {LABELS!r}; it has {', '.join(arrays) or 'nothing'}")
    labels = arrays.pop(LABELS)[:MOST_ROWS]
    given = checked(arrays, inputs, True, where)
    rows = min(len(next(iter(given.values()))), MOST_ROWS)
    if labels.ndim == 0 or len(labels) != rows or labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
        raise ExportError(f"{where}: {LABELS!r} is {labels.dtype} {list(labels.shape)}; expected numbers, one for each of {rows} rows")
    name: MetricName = "accuracy" if labels.dtype.kind in "iu" else "error"
    name = next((built for built in METRICS if built == metric), name)
    output = _judged_output(where, name, labels, outputs)
    cut = tuple(batches(given, MOST_ROWS))
    return LabelledSet(cut, labels, name, output, digest([*cut, {LABELS: labels}]))


def judged(rows: LabelledSet, answers: NDArray[Any], reference: NDArray[Any]) -> Judged:
    """The metric of `answers` and of FP32's, and their distance."""
    measure = METRICS[rows.metric]
    return Judged(measure(answers, rows.labels, reference), measure(reference, rows.labels, reference), distance(reference, answers))


def accuracy(answers: Floats, labels: NDArray[Any], reference: Floats) -> float:
    """The share of rows whose best class is the label."""
    return float((answers.argmax(axis=1) == labels).mean())


def centroid(answers: Floats, labels: NDArray[Any], reference: Floats) -> float:
    """The share of odd rows that are nearest, by angle, to the mean of their label's even rows as FP32 embeds them."""
    classes = np.unique(labels[::2])
    means = np.stack([_unit(reference[::2][labels[::2] == one]).mean(axis=0) for one in classes])
    return float((classes[(_unit(answers[1::2]) @ _unit(means).T).argmax(axis=1)] == labels[1::2]).mean())


def error(answers: Floats, labels: NDArray[Any], reference: Floats) -> float:
    """The mean distance from the label, over the labels' deviation (over 1 where they're all alike)."""
    return float(np.abs(answers.reshape(labels.shape) - labels).mean() / (float(labels.std()) or 1.0))


METRICS: Mapping[MetricName, Metric] = MappingProxyType({"accuracy": accuracy, "centroid": centroid, "error": error})


def _unit(rows: Floats) -> Floats:
    flat = rows.reshape(len(rows), -1)
    found: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return found


def _judged_output(where: str, metric: MetricName, labels: NDArray[Any], outputs: Sequence[TensorSpec]) -> str:
    """The first output that the metric can read. Raises ExportError."""
    for spec in outputs:
        shape = tuple(len(labels) if axis == 0 else max(size, 2) for axis, size in enumerate(spec.shape))
        scores = looks_like_scores(np.empty((0, *shape[1:]), spec.dtype.numpy))
        if metric == "accuracy" and scores and (spec.shape[1] == -1 or labels.max() < spec.shape[1]) and labels.min() >= 0:
            return spec.name
        if metric == "centroid" and spec.dtype.numpy.kind == "f" and -1 not in spec.shape[1:]:
            return spec.name
        if metric == "error" and spec.dtype.numpy.kind == "f" and int(np.prod(spec.shape[1:])) == labels[0].size:
            return spec.name
    has = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in outputs)
    raise ExportError(f"{where}: no output suits {metric} of {labels.dtype} labels {list(labels.shape)}; outputs are {has}")
