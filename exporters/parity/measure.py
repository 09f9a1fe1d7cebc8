"""Measures a variant as it will be served: opened by its backend, run on PyTorch's own samples, and timed by batch size."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from exporters.plan import ExportError
from exporters.sources.pytorch import Sample
from server.backends.base import Backend
from server.errors import BackendFailure, InvalidRequest
from server.numerics import Distance, distance, merged
from server.tensors import Tensor

TIMED_ROWS = (1, 8, 32)
MOST_RUNS = 20
LEAST_RUNS = 3
SECONDS_A_SIZE = 0.3


def distances(backend: Backend, samples: Iterable[Sample]) -> dict[str, Distance]:
    """For each output, how far the backend's answers are from PyTorch's over all samples.

    Raises ExportError where a batch can't be run, or its answer has another shape.
    """
    found: dict[str, list[Distance]] = {}
    inputs = {spec.name for spec in backend.inputs}
    for sample in samples:
        try:
            answer = backend.run({name: array for name, array in sample.inputs.items() if name in inputs}, sample.rows)
            for name, reference in sample.outputs.items():
                found.setdefault(name, []).append(distance(reference, answer[name]))
        except (BackendFailure, InvalidRequest, ValueError) as error:
            raise ExportError(f"a batch that PyTorch takes ({_shapes(sample.inputs)}) fails in {backend.version}: {error}") from error
    return {name: merged(*parts) for name, parts in found.items()}


def latency(backend: Backend, sample: Sample, batched: bool) -> dict[int, float]:
    """Median seconds of a run by rows, on the first row of `sample` repeated; one figure, under 1, for a model that isn't batched."""
    inputs = {spec.name: sample.inputs[spec.name] for spec in backend.inputs}
    if not batched:
        return {1: _median_seconds(backend, inputs, 1)}
    return {rows: _median_seconds(backend, {n: np.repeat(a[:1], rows, axis=0) for n, a in inputs.items()}, rows) for rows in TIMED_ROWS}


def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def device() -> str:
    """This machine's processor, for the manifest."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"cpu ({model})"


def _median_seconds(backend: Backend, inputs: Mapping[str, Tensor], rows: int) -> float:
    """After one run to warm up: some runs within a budget of time, so that a slow model isn't run twenty times."""
    backend.run(inputs, rows)
    taken: list[float] = []
    while len(taken) < LEAST_RUNS or (len(taken) < MOST_RUNS and sum(taken) < SECONDS_A_SIZE):
        started = time.perf_counter()
        backend.run(inputs, rows)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
