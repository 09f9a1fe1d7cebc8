"""What PyTorch itself answers decides how a model is exported; part of trace_child's process.

A model is batched where every output has a row for each row of the inputs at several batch sizes, and a row's answer doesn't
depend on its neighbours. An output's axis varies where its length was seen to. The runs made here are the parity samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .samples import Arrays, Axes, Lengths, RowStream, shaken
from .trace_call import USER_ERRORS, Call, brief
from .trace_state import RefusedError

BATCH_SIZES = (1, 2, 5, 8)
LARGE_BATCH = 32
MOST_ROWS = 256
MOST_BYTES = 64 * 2**20
MOST_SECONDS = 8.0
PATIENT_SECONDS = 120.0
PATIENT_BYTES = 256 * 2**20
"""As long as a classifier that is sure of some rows is sure of fewer than SURE_ROWS: they're what other precisions are judged by."""
SURE_ROWS = 64
WHOLE_RUNS = 6
HOLD_FROM = 24
"""An example of as many rows can spare half of them: what precisions are calibrated on isn't what they're proved by."""
TRIAL_ROWS = (1, 2, 5)
TRACED_ROWS = 2
HEAD_ROWS = 64
TOLERANCE = 1e-4
CONFIDENT = 0.5
SUM_SLACK = 1e-3


class Run(NamedTuple):
    """One batch and what PyTorch answered, outputs in order; `rows` is 1 for a model that isn't batched."""

    inputs: Arrays
    outputs: list[NDArray[Any]]
    rows: int


@dataclass
class Study:
    """What was learned of the model: its runs (inputs, outputs, rows), and how its axes behave.

    `holds` says that every second row of the example is held back from the runs, to calibrate on. `key`
    is what the whole is kept by, for another export to use again.
    """

    call: Call
    outputs: tuple[str, ...]
    lengths: Lengths
    unbatched: str | None
    holds: bool = False
    runs: list[Run] = field(default_factory=list)
    key: str = ""
    pruned: dict[str, Any] | None = None

    def proof_rows(self) -> Arrays:
        """The example's rows that the runs may have."""
        return {name: array[::2] if self.holds else array for name, array in self.call.example.items()}

    def held_rows(self) -> Arrays | None:
        """The other ones, None where none are held back."""
        return {name: array[1::2] for name, array in self.call.example.items()} if self.holds else None

    def save(self, path: Path) -> None:
        """An npz of `RUN.in.INPUT` and `RUN.out.OUTPUT`, all by index."""
        arrays: Arrays = {}
        for run, (inputs, outputs, _) in enumerate(self.runs):
            arrays.update({f"{run}.in.{index}": array for index, array in enumerate(inputs.values())})
            arrays.update({f"{run}.out.{index}": array for index, array in enumerate(outputs)})
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def symbols(self) -> dict[str, dict[int, str]]:
        """The varying axes of every input and output, with the name of their length."""
        found = {name: dict(axes) for name, axes in self.lengths.by_input().items()}
        if self.unbatched is None:
            for name in self.call.example:
                found.setdefault(name, {})[0] = "batch"
        for index, name in enumerate(self.outputs):
            found[name] = self._output_symbols(index)
        return {name: axes for name, axes in found.items() if axes}

    def _output_symbols(self, index: int) -> dict[int, str]:
        shapes = [outputs[index].shape for _, outputs, _ in self.runs]
        if len({len(shape) for shape in shapes}) > 1:
            raise RefusedError(f"output {self.outputs[index]!r} changes its number of axes: {list(shapes[0])} and {list(shapes[1])}")
        found: dict[int, str] = {}
        for axis in range(len(shapes[0])):
            seen = [shape[axis] for shape in shapes]
            if axis == 0 and self.unbatched is None:
                found[axis] = "batch"
            elif len(set(seen)) > 1:
                known = self.lengths.symbol_of(seen, [inputs for inputs, _, _ in self.runs])
                found[axis] = known or f"{self.outputs[index]}_dim{axis}"
        return found

    def result(self) -> dict[str, Any]:
        """Names, dtypes and shapes (-1 where an axis varies) of inputs and outputs, and the rows of each run."""
        symbols = self.symbols()
        first_inputs, first_outputs, _ = self.runs[0]
        arrays = {**first_inputs, **dict(zip(self.outputs, first_outputs, strict=True))}
        specs = [
            {
                "name": name,
                "dtype": str(array.dtype),
                "shape": [-1 if axis in symbols.get(name, {}) else size for axis, size in enumerate(array.shape)],
                "batch_axis": 0 if self.unbatched is None else None,
                "max_shape": self.lengths.max_shape(name, array.ndim),
            }
            for name, array in arrays.items()
        ]
        split = len(first_inputs)
        return {
            "inputs": specs[:split],
            "outputs": specs[split:],
            "rows": [rows for *_, rows in self.runs],
            "unbatched": self.unbatched,
            "pruned": self.pruned,
        }


def checked_axes(declared: Any, example: Arrays) -> Axes:
    """The varying axes as declared ({input: axes} or {input: {axis: greatest length or None}}), checked against the example."""
    if not isinstance(declared, Mapping):
        raise RefusedError(f"dynamic axes came as a {type(declared).__name__}; expected {{input: [axis, …]}} or {{input: {{axis: max}}}}")
    found: Axes = {}
    for name, axes in declared.items():
        if name not in example:
            raise RefusedError(f"dynamic axes name the input {name!r}; the example has {', '.join(example)}")
        pairs = axes.items() if isinstance(axes, Mapping) else ((axis, None) for axis in axes)
        shape = example[name].shape
        for axis, most in pairs:
            if not 0 <= int(axis) < len(shape):
                raise RefusedError(f"input {name!r} has no axis {axis}: its shape in the example is {list(shape)}")
            if isinstance(most, int) and most < shape[int(axis)]:
                raise RefusedError(f"axis {axis} of {name!r} is {shape[int(axis)]} long in the example, above its maximum {most}")
            found.setdefault(name, {})[int(axis)] = most if isinstance(most, int) else None
    return found


def study(call: Call, axes: Axes, output_names: list[str], seed: int, hold: bool = False) -> Study:
    """Run the model on its example and on batches made from it. Raises RefusedError where it can't be exported.

    `hold`: every second row of a long enough example stays out of the runs.
    """
    head = _head(call.example)
    first = _first_answer(call, head)
    outputs = _named(call, output_names)
    for name, one, two in zip(outputs, first, call.answer(head), strict=True):
        if one.dtype.kind == "f" and np.isnan(one).all():
            raise RefusedError(f"output {name!r} is NaN throughout: give an example that the model makes sense of")
        if not _close(one, two):
            raise RefusedError(
                f"output {name!r} differs between two runs on the same input: a model that draws random numbers can't be proved"
            )
    unbatched = why_unbatched(call, outputs)
    holds = hold and unbatched is None and len(next(iter(call.example.values()))) >= HOLD_FROM
    found = Study(call, outputs, Lengths(call.example, axes, batched=unbatched is None), unbatched, holds)
    _check_lengths(found)
    try:
        found.runs = list(_runs(found, seed, perturb=True))
    except USER_ERRORS:
        # Made-up rows can break what a model asks of its input (sorted lengths, say): the example's own rows are good.
        found.runs = list(_runs(found, seed, perturb=False))
    return found


def _head(example: Arrays) -> Arrays:
    """The example, or its first rows where it has many."""
    rows = {array.shape[0] if array.ndim else 0 for array in example.values()}
    return {name: array[:HEAD_ROWS] for name, array in example.items()} if len(rows) == 1 and max(rows) > HEAD_ROWS else example


def _first_answer(call: Call, head: Arrays) -> list[NDArray[Any]]:
    try:
        return call.answer(head)
    except USER_ERRORS as error:
        doubles = [name for name, array in head.items() if array.dtype == np.float64]
        if doubles:
            raise RefusedError(f"forward fails: {brief(error)}; example input {doubles[0]!r} is float64: save it as float32") from error
        raise


def _named(call: Call, output_names: list[str]) -> tuple[str, ...]:
    """The outputs' names: the ones asked for, else the answer's own; never an input's."""
    names = call.traceable.names
    if not names:
        raise RefusedError("forward gives no tensor at all")
    if output_names and len(output_names) != len(names):
        raise RefusedError(
            f"--output-names has {len(output_names)} ({', '.join(output_names)}); forward gives {len(names)} ({', '.join(names)})"
        )
    taken = call.example
    named = tuple(output_names) or tuple(f"{name}_out" if name in taken else name for name in names)
    if len(set(named) | set(taken)) < len(named) + len(taken):
        raise RefusedError(f"names must differ: inputs {', '.join(taken)}; outputs {', '.join(named)}")
    return named


def why_unbatched(call: Call, outputs: tuple[str, ...]) -> str | None:
    """Why rows can't share a run, None where they can."""
    heads = {name: array.shape[0] if array.ndim else None for name, array in call.example.items()}
    if len(set(heads.values())) > 1 or None in heads.values():
        said = ", ".join(f"{name} {'is a scalar' if rows is None else f'has {rows}'}" for name, rows in heads.items())
        return f"the inputs don't agree in their first axis: {said}"
    for rows in TRIAL_ROWS:
        said = f"{rows} row{'s' if rows > 1 else ''}"
        try:
            answer = call.answer(RowStream(call.example, 0, perturb=False).take(rows))
        except USER_ERRORS as error:
            return f"forward fails with {said} in place of {next(iter(heads.values()))}: {brief(error)}"
        for name, array in zip(outputs, answer, strict=True):
            if not array.ndim or array.shape[0] != rows:
                return f"output {name!r} isn't per row: its shape is {list(array.shape)} with {said}"
    return _mixing(call, outputs)


def _mixing(call: Call, outputs: tuple[str, ...]) -> str | None:
    """f([x;y]) = [f(x);f(y)], on three different rows."""
    batch = RowStream(call.example, 1).take(len(next(iter(call.example.values()))) + 3)
    batch = {name: array[-3:] for name, array in batch.items()}
    try:
        together = call.answer(batch)
        alone = [call.answer({name: array[row : row + 1] for name, array in batch.items()}) for row in range(3)]
    except USER_ERRORS:
        return None  # made-up rows that the model can't take: the trial on the example's own rows was good
    for index, name in enumerate(outputs):
        if not _close(np.concatenate([answer[index] for answer in alone]), together[index]):
            return f"output {name!r} of a row changes with the other rows of its batch"
    return None


def _check_lengths(found: Study) -> None:
    for lengths in found.lengths.trials():
        try:
            found.call.answer(found.lengths.apply(found.call.example, lengths))
        except USER_ERRORS as error:
            said = ", ".join(f"{symbol} = {length}" for symbol, length in lengths.items())
            raise RefusedError(f"forward fails at another length of a dynamic axis ({said}): {brief(error)}") from error


def _runs(found: Study, seed: int, perturb: bool) -> Iterator[Run]:
    lengths, call = found.lengths, found.call
    cycle = lengths.cycle()
    if found.unbatched is not None:
        for run in range(WHOLE_RUNS):
            inputs = lengths.apply(shaken(call.example, run if perturb else 0), next(cycle))
            yield Run(inputs, call.answer(inputs), 1)
        return
    example = found.proof_rows()
    stream = RowStream(example, seed, lengths.exchangeable(), perturb)
    budget = _Budget(max(MOST_ROWS, len(next(iter(example.values())))))
    while rows := budget.next_batch():
        inputs = lengths.apply(stream.take(rows), next(cycle))
        outputs = call.answer(inputs)
        budget.spend(rows, sum(array.nbytes for array in (*inputs.values(), *outputs)), sure(outputs))
        yield Run(inputs, outputs, rows)
    for other in lengths.trials():
        inputs = lengths.apply(stream.take(1), other)
        yield Run(inputs, call.answer(inputs), 1)


class _Budget:
    """How large the next batch is: the small sizes always, then large ones while rows, bytes and seconds last."""

    def __init__(self, rows: int) -> None:
        self._most = rows
        self._batches = 0
        self._rows = 0
        self._bytes = 0
        self._sure = 0
        self._started = time.monotonic()

    def next_batch(self) -> int:
        if self._batches < len(BATCH_SIZES):
            return BATCH_SIZES[self._batches]
        patient = 0 < self._sure < SURE_ROWS
        seconds, size = (PATIENT_SECONDS, PATIENT_BYTES) if patient else (MOST_SECONDS, MOST_BYTES)
        spent = max(self._bytes / size, (time.monotonic() - self._started) / seconds, 1e-9)
        rows = min(LARGE_BATCH, self._most - self._rows, int(self._rows / spent) - self._rows)
        return rows if rows >= min(BATCH_SIZES[-1], self._most - self._rows) else 0

    def spend(self, rows: int, size: int, sure: int) -> None:
        self._batches += 1
        self._rows += rows
        self._bytes += size
        self._sure += sure


def sure(outputs: Sequence[NDArray[Any]]) -> int:
    """How many rows give one class more than half, in the output that looks like scores of classes and does so least; 0 for none.

    An output in which no row does so isn't counted: it may be an embedding.
    """
    scored = [one for one in outputs if one.ndim == 2 and one.shape[1] > 1 and one.dtype.kind == "f"]
    counts = (int((_share(np.nan_to_num(one.astype(np.float64))) > CONFIDENT).sum()) for one in scored)
    return min(filter(None, counts), default=0)


def _share(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row gives its best class: as it is where the row is a distribution, else by softmax (as server.numerics has it)."""
    best = scores.max(axis=1)
    softmax = 1 / np.exp(scores - best[:, None]).sum(axis=1)
    distributed = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < SUM_SLACK)
    found: NDArray[np.float64] = np.where(distributed, best, softmax)
    return found


def traced_inputs(found: Study) -> Arrays:
    """What the trace runs on: a few rows of the example, never one alone (a length of 1 can be taken for a broadcast)."""
    example = found.call.example
    return example if found.unbatched is not None else RowStream(example, 0, perturb=False).take(TRACED_ROWS)


def _close(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Equal but for rounding, as a share of the largest value."""
    if one.shape != two.shape:
        return False
    a, b = one.astype(np.float64), two.astype(np.float64)
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=0.0, atol=TOLERANCE * max(scale, 1e-2), equal_nan=True))
