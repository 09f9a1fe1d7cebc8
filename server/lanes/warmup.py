"""Warm-up: runs a freshly opened backend on made-up inputs, to take the first run's cost, to time it by rows, and to prove its rows.

A file that claims rows (first axis variable everywhere) may still mix them: batch statistics, a softmax over the wrong axis, an answer
about all rows. Unless a manifest vouches for it, f([x; y]) must equal [f(x); f(y)] here, else the model is served unbatched.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.backends.base import Backend
from server.errors import ModelDefect
from server.lanes.base import RunResult
from server.lanes.run import timed_run
from server.tensors import Tensor, TensorSpec

FREE_AXES = (8, 16, 32, 64, 224, 1)
"""Lengths tried for axes that vary, besides rows: short texts first, then images, then whatever takes only one."""
BUDGET = 1.5  # seconds a model, beyond the runs that must be
RUNS = 5
MAX_INPUT_BYTES = 256 << 20
PROOF = (2, 3)  # rows of the two parts: unlike, so that an answer of fixed rows can't pass


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What warm-up found. `latency` is the median seconds of a run by rows; `why` says why a model is served unbatched; `free_axis`
    is the length of axes that vary in the inputs that it took."""

    latency: Mapping[int, float]
    batched: bool
    why: str = ""
    free_axis: int = FREE_AXES[0]


class _Refused(Exception):
    """The backend didn't take a made-up input."""


@dataclass(slots=True)
class _Trial:
    """One backend under warm-up: makes its inputs, runs it."""

    backend: Backend
    random: np.random.Generator
    free_axis: int = FREE_AXES[0]
    spent: float = field(default=0.0)

    def inputs(self, rows: int) -> dict[str, Tensor]:
        return {spec.name: _sample(spec, rows, self.free_axis, self.random) for spec in self.backend.inputs}

    def found(self, latency: Mapping[int, float], why: str = "") -> WarmUp:
        """The result; `why` it's unbatched, "" where it isn't."""
        return WarmUp(latency, batched=not why, why=why, free_axis=self.free_axis)

    def run(self, inputs: Mapping[str, Tensor], rows: int) -> RunResult:
        result = timed_run(self.backend, inputs, rows)
        self.spent += result.finished - result.started
        if result.error is not None:
            raise _Refused(f"{_shapes(inputs)}: {result.error}") from result.error
        missing = [spec.name for spec in self.backend.outputs if spec.name not in result.outputs]
        if missing:
            raise ModelDefect(f"warm-up gave no output {missing[0]!r}, which the backend declares")
        return result

    def time(self, rows: int) -> float:
        """Median seconds of up to RUNS runs after one that isn't counted; a slow model gets fewer."""
        inputs = self.inputs(rows)
        self.run(inputs, rows)
        seconds: list[float] = []
        while len(seconds) < RUNS and (not seconds or self.spent + seconds[-1] < BUDGET):
            result = self.run(inputs, rows)
            seconds.append(result.finished - result.started)
        return statistics.median(seconds)


def warm_up(backend: Backend, rows: Sequence[int], seed: int = 0, *, trust_batch_axis: bool = False, free_axis: int = 0) -> WarmUp:
    """Run `backend` with each of `rows` rows, in 1 to 2 seconds unless single runs take longer.

    `trust_batch_axis`: a manifest or model.yaml says what the rows are, so they aren't put to the proof. `free_axis` is the length
    of the other axes that vary, 0 to try FREE_AXES. Without any `rows` nothing is run: the rows are as the specs say. Raises ModelDefect
    where the model fails on an input that it must take.
    """
    trial = _Trial(backend, np.random.default_rng(seed), free_axis or FREE_AXES[0])
    claim = _claim(backend, trust_batch_axis)
    if not rows:
        return WarmUp({}, batched=not claim, why=claim)
    try:
        _first_run(trial, (free_axis,) if free_axis else FREE_AXES)
    except _Refused as error:
        if not _has_free_axes(backend):
            raise ModelDefect(f"warm-up failed: {error}") from error
        why = f"warm-up input couldn't be made: {error}"
        return WarmUp({}, batched=trust_batch_axis and not claim, why="" if trust_batch_axis and not claim else why)
    if claim:
        return trial.found({1: trial.time(1)}, claim)
    fault = "" if trust_batch_axis else _mixes_rows(trial)
    if fault:
        return trial.found({1: trial.time(1)}, fault)
    latency: dict[int, float] = {}
    for count in _affordable(trial, sorted(set(rows)), latency):
        try:
            latency[count] = trial.time(count)
        except _Refused as error:
            if trust_batch_axis:
                raise ModelDefect(f"warm-up with {count} rows failed: {error}") from error
            return trial.found(_single(trial, latency), f"a run of {count} rows failed: {error}")
    return trial.found(latency)


def made_up(inputs: Sequence[TensorSpec], rows: int, free_axis: int, seed: int = 0) -> dict[str, Tensor]:
    """One run's inputs as warm-up makes them."""
    random = np.random.default_rng(seed)
    return {spec.name: _sample(spec, rows, free_axis, random) for spec in inputs}


def input_bytes(inputs: Sequence[TensorSpec], rows: int, free_axis: int) -> int:
    """At most how many bytes such inputs have."""
    return sum(math.prod(_shape(spec, rows, free_axis)) * max(spec.dtype.size, 8) for spec in inputs)


def _claim(backend: Backend, trusted: bool) -> str:
    """Why the specs don't make rows, "" where they do: in every tensor, unless somebody vouches for those in which they don't."""
    tensors = [("input", spec) for spec in backend.inputs] + [("output", spec) for spec in backend.outputs]
    if any(spec.batch_axis == 0 for spec in backend.inputs) and (trusted or all(spec.batch_axis == 0 for _, spec in tensors)):
        return ""
    fixed = [f"{what} {spec.name!r} is {list(spec.shape)}" for what, spec in tensors if spec.shape[:1] != (-1,)]
    return f"the first axis isn't variable in every input and output: {', '.join(fixed)}" if fixed else "no input is declared per row"


def _first_run(trial: _Trial, lengths: Sequence[int]) -> None:
    """Find a length for the free axes that the model takes, with one row. Raises _Refused with what the first length gave."""
    first: _Refused | None = None
    for length in lengths:
        trial.free_axis = length
        try:
            trial.run(trial.inputs(1), 1)
        except _Refused as error:
            first = first or error
        else:
            return
        if not _has_free_axes(trial.backend):
            break
    assert first is not None
    raise first


def _mixes_rows(trial: _Trial) -> str:
    """Why a batch isn't the sum of its parts, "" where it is."""
    parts = [trial.inputs(count) for count in PROOF]
    whole = {}
    for spec in trial.backend.inputs:
        if spec.batch_axis is None:  # one for all rows
            parts[1][spec.name] = whole[spec.name] = parts[0][spec.name]
        else:
            whole[spec.name] = np.concatenate([part[spec.name] for part in parts], axis=spec.batch_axis)
    total = sum(PROOF)
    try:
        alone = [trial.run(part, count).outputs for part, count in zip(parts, PROOF, strict=True)]
        together = trial.run(whole, total).outputs
    except _Refused as error:
        return f"a run of several rows failed: {error}"
    for spec in trial.backend.outputs:
        if spec.batch_axis is None:
            continue
        answers = [answer[spec.name] for answer in (*alone, together)]
        for answer, count in zip(answers, (*PROOF, total), strict=True):
            if answer.shape[:1] != (count,):
                return f"output {spec.name!r} isn't per row: {count} rows gave the shape {list(answer.shape)}"
        fault = _difference(answers[-1], answers[:-1])
        if fault:
            return f"output {spec.name!r} isn't per row: the same rows alone and in a batch {fault}"
    return ""


def _difference(together: Tensor, parts: Sequence[Tensor]) -> str:
    """How far answers in a batch are from the same answers alone, "" where they agree within what the datatype can hold."""
    if any(part.shape[1:] != together.shape[1:] for part in parts):
        return f"have the shapes {', '.join(str(list(array.shape)) for array in (*parts, together))}"
    alone = np.concatenate(list(parts))
    if together.dtype == object or together.dtype.kind in "biu":
        unlike = int(np.count_nonzero(alone != together))
        return f"differ in {unlike} of {together.size} values" if unlike else ""
    tolerance = 1e-3 if together.dtype.itemsize >= 4 else 2e-2
    one, other = alone.astype(np.float64), together.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return "differ in which values are finite"
    scale = float(np.abs(one[finite]).max(initial=0.0))
    furthest = float(np.abs(one[finite] - other[finite]).max(initial=0.0))
    return f"differ by up to {furthest:.3g} (values reach {scale:.3g})" if furthest > tolerance * scale else ""


def _affordable(trial: _Trial, rows: Sequence[int], latency: Mapping[int, float]) -> Iterator[int]:
    """The sizes to time: the smallest always, the others while time and memory last, judged by the size before."""
    for count in rows:
        if latency:
            last, seconds = max(latency.items())
            if (
                trial.spent + 2 * seconds * count / last > BUDGET
                or input_bytes(trial.backend.inputs, count, trial.free_axis) > MAX_INPUT_BYTES
            ):
                return
        yield count


def _single(trial: _Trial, latency: Mapping[int, float]) -> Mapping[int, float]:
    return {1: latency[1] if 1 in latency else trial.time(1)}


def _has_free_axes(backend: Backend) -> bool:
    return any(axis == -1 and index != spec.batch_axis for spec in backend.inputs for index, axis in enumerate(spec.shape))


def _shape(spec: TensorSpec, rows: int, free_axis: int) -> tuple[int, ...]:
    """A whole shape: `rows` on the batch axis, `free_axis` where axes vary (1 for a first axis that isn't rows), within max_shape."""
    limits = spec.max_shape or (-1,) * len(spec.shape)
    shape = []
    for index, (axis, limit) in enumerate(zip(spec.shape, limits, strict=True)):
        if index == spec.batch_axis:
            axis = rows
        elif axis == -1:
            free = 1 if index == 0 and len(spec.shape) > 1 else free_axis
            axis = min(free, limit) if limit > 0 else free
        shape.append(axis)
    return tuple(shape)


def _sample(spec: TensorSpec, rows: int, free_axis: int, random: np.random.Generator) -> Tensor:
    """Values that most models take: normal floats, whole numbers and truth values of 0 and 1 (ids, masks), the text "a"."""
    shape = _shape(spec, rows, free_axis)
    if spec.datatype == "BYTES":
        texts = np.empty(shape, object)
        texts.fill(b"a")
        return texts
    dtype = spec.dtype.numpy
    if dtype.kind in "biu":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape, np.float32).astype(dtype)


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name!r} {array.dtype} {list(array.shape)}" for name, array in inputs.items()) or "no input"
