"""Measures a variant as it will be served: opened by its backend, run on PyTorch's own samples, and timed by batch size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from exporters.plan import ExportError
from exporters.sources.pytorch import Sample
from server.backends.base import Backend
from server.errors import BackendFailure, InvalidRequest
from server.numerics import Distance, distance, merged
from server.repository.manifest import processor
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


def latencies(backends: Sequence[Backend], sample: Sample, batched: bool) -> list[dict[int, list[float]]]:
    """For each backend, seconds of some runs by rows, on the first row of `sample` repeated. The backends take turns, each first in
    its turn, so that runs of one index belong together. Under 1 alone for a model that isn't batched.
    """
    names = {spec.name for backend in backends for spec in backend.inputs}
    inputs = {name: array for name, array in sample.inputs.items() if name in names}
    found: list[dict[int, list[float]]] = [{} for _ in backends]
    for rows in TIMED_ROWS if batched else (1,):
        given = {name: np.repeat(array[:1], rows, axis=0) for name, array in inputs.items()} if batched else inputs
        for figures, seconds in zip(found, _rounds(backends, given, rows), strict=True):
            figures[rows] = seconds
    return found


def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def device() -> str:
    """This machine's processor, for the manifest."""
    return processor()


def _rounds(backends: Sequence[Backend], inputs: Mapping[str, Tensor], rows: int) -> list[list[float]]:
    """After one run each to warm up: some rounds within a budget of time, so that a slow model isn't run twenty times."""
    for backend in backends:
        backend.run(inputs, rows)
    taken: list[list[float]] = [[] for _ in backends]
    spent, turn = 0.0, 0
    while turn < LEAST_RUNS or (turn < MOST_RUNS and spent < SECONDS_A_SIZE * len(backends)):
        for place in range(len(backends)):
            index = (place + turn) % len(backends)
            started = time.perf_counter()
            backends[index].run(inputs, rows)
            taken[index].append(time.perf_counter() - started)
            spent += taken[index][-1]
        turn += 1
    return taken


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
