"""The emulated backend: a device that isn't there. It answers known values after the time that a published table gives for so many rows.

It computes nothing worth having and burns no CPU: it sleeps in its lane. What it says about time is the table's, never a measurement of
hardware; metadata, logs, metrics and the repository index all say `emulated`. docs/emulated.md has the formats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from server.backends.base import VariantSpec
from server.backends.latency_table import BUILT_IN, Curve, read_table
from server.errors import InvalidRequest, ModelDefect
from server.tensors import Tensor, TensorSpec

ANSWERS = ("FP32", "FP16", "BF16", "FP64", "INT64", "INT32")
"""Datatypes that an output may have: each holds a row's sum."""

MAX_DEBT = 2e-3  # seconds of oversleep that the next run makes up for; what is longer was the host's doing and stays visible


class EmulatedBackend:
    """See server.backends.base.Backend. `options`: table (a name or a path), model, precision, seed, noise.

    Element k of an output's row is the sum of that row's numbers over all inputs, plus k, so that an answer to another row is seen.
    """

    version: ClassVar[str] = "emulated 1"

    def __init__(
        self,
        spec: VariantSpec,
        curve: Curve,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self.curve = curve
        self._label = f"model {spec.model!r} version {spec.version} (emulated {curve.device})"
        self._noisy = bool(spec.options.get("noise", True))
        self._random = np.random.default_rng(int(spec.options.get("seed", 0)))
        self._clock = clock
        self._sleep = sleep
        self._debt = 0.0

    @classmethod
    def open(cls, spec: VariantSpec) -> EmulatedBackend:
        """Look the figures up. Raises ModelDefect: a table that can't be read, a name it hasn't, tensors that can't be emulated."""
        for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
            if not tensors:
                raise ModelDefect(f"model {spec.model!r}: an emulated model needs at least one {kind}, declared with dtype and shape")
        for tensor in spec.outputs:
            if tensor.datatype not in ANSWERS:
                raise ModelDefect(
                    f"model {spec.model!r}: output {tensor.name!r} is {tensor.datatype}; an emulated one is {', '.join(ANSWERS)}"
                )
        table = str(spec.options.get("table", "t4"))
        curve = read_table(BUILT_IN.get(table, Path(table)), ModelDefect).curve(
            str(spec.options.get("model", spec.model)), str(spec.options.get("precision", spec.precision))
        )
        return cls(spec, curve)

    def run(self, inputs: Mapping[str, Tensor], rows: int, out: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See Backend.run. Returns when the device would: the oversleep of one run is taken off the next, so that their mean is exact."""
        begun = self._clock()
        answers = {spec.name: self._answer(spec, inputs, rows) for spec in self.outputs}
        for name, array in (out or {}).items():
            np.copyto(array, answers[name])
            answers[name] = array
        target = begun + max(0.0, self.service_seconds(rows) - self._debt)
        while (left := target - self._clock()) > 0:
            self._sleep(left)
        self._debt = min(self._clock() - target, MAX_DEBT)
        return answers

    def service_seconds(self, rows: int) -> float:
        """How long the device takes for the next run: the table's time, with noise where it's asked for."""
        return self.curve.noisy_seconds(rows, self._random) if self._noisy else self.curve.seconds(rows)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, spec: TensorSpec, inputs: Mapping[str, Tensor], rows: int) -> Tensor:
        shape = self._shape(spec, inputs, rows)
        if spec.batch_axis is None:
            return np.zeros(shape, spec.dtype.numpy)
        steps = np.arange(int(np.prod(shape[1:], dtype=np.int64)), dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and what is out of range become whatever the datatype has for them
            return (self._sums(inputs, rows)[:, None] + steps).astype(spec.dtype.numpy).reshape(shape)

    def _sums(self, inputs: Mapping[str, Tensor], rows: int) -> Tensor:
        """One number a row. Raises InvalidRequest where an input is missing or has other rows."""
        total = np.zeros(rows, np.float64)
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None or (spec.batch_axis == 0 and array.shape[:1] != (rows,)):
                got = "none" if array is None else str(list(array.shape))
                raise InvalidRequest(f"{self._label}: expected input {spec.name!r} with {rows} rows; got {got}")
            if spec.batch_axis == 0:
                total += _row_sums(array, rows)
        return total

    def _shape(self, spec: TensorSpec, inputs: Mapping[str, Tensor], rows: int) -> tuple[int, ...]:
        """A whole shape: an axis that varies, other than rows, is as long as the same axis of the first input in which it varies too."""
        shape = list(spec.shape)
        for axis, length in enumerate(shape):
            if axis == spec.batch_axis:
                shape[axis] = rows
            elif length == -1:
                alike = (inputs[i.name] for i in self.inputs if len(i.shape) > axis and i.shape[axis] == -1 and i.name in inputs)
                shape[axis] = next((int(array.shape[axis]) for array in alike), 1)
        return tuple(shape)


def _row_sums(array: Tensor, rows: int) -> Tensor:
    """Each row's sum; a text counts its bytes. NaN and infinity go through."""
    numbers = np.asarray([len(text) for text in array.flat] if array.dtype == object else array, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        found: Tensor = numbers.reshape(rows, -1).sum(axis=1)  # of whole doubles: the same to the bit alone and in a batch
    return found
