"""Which nodes 8 bits hurt most, found from what their tensors hold, and how few of them must stay FP32. Pure but for `weigh`.

A tensor whose largest value is far above the rest loses the rest: of what is rounded to 1/256 of the whole range, the noise is known
(scale² / 12), and so is the signal. A node is as sensitive as noise over signal of what goes into it, its weights by channel included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exporters.disk.onnx_files import load
from exporters.precision.ranges import Range

if TYPE_CHECKING:
    import onnx

STEPS = 255
OUTPUT_AXIS = {"Conv": 0, "Gemm": -1, "MatMul": -1}
"""The axis of the weights that counts output channels, each with a scale of its own; -1 is the last."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A node and its noise over signal at 8 bits."""

    name: str
    noise: float


def weigh(file: Path, ranges: Mapping[str, Range], operators: Sequence[str]) -> list[Weighed]:
    """The nodes of `operators` in the file, the most sensitive first; equal ones in the graph's order."""
    import onnx

    model = load(file)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = [Weighed(node.name, _noise(node, ranges, weights)) for node in model.graph.node if node.op_type in operators]
    return sorted(found, key=lambda weighed: -weighed.noise)


def fewest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The least number from 1 to `count` for which `holds` is true, taking it to stay true above; None where it's true for none.

    Doubles until it's true, then halves the gap: few calls for a small answer, and each is a graph to be made and proved.
    """
    low, high = 0, 1
    while not holds(min(high, count)):
        if high >= count:
            return None
        low, high = high, high * 2
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def noise_over_signal(found: Range) -> float:
    """Of a tensor that is rounded to 256 steps over its whole range, 0 included; infinite where it holds what isn't finite."""
    width = max(found.greatest, 0.0) - min(found.least, 0.0)
    if not np.isfinite(found.largest) or not np.isfinite(found.rms):
        return float("inf")
    return (width / STEPS) ** 2 / 12 / found.rms**2 if found.rms else 0.0


def _noise(node: onnx.NodeProto, ranges: Mapping[str, Range], weights: Mapping[str, NDArray[np.float32]]) -> float:
    activations = sum(noise_over_signal(ranges[name]) for name in node.input if name in ranges)
    constants = sum(_weight_noise(node.op_type, weights[name]) for name in node.input[1:2] if name in weights)
    return activations + constants


def _weight_noise(operator: str, values: NDArray[np.float32]) -> float:
    """By output channel, symmetric, as weights are quantised."""
    if values.ndim < 2 or operator not in OUTPUT_AXIS:
        return 0.0
    channels = np.moveaxis(values, OUTPUT_AXIS[operator], 0).reshape(values.shape[OUTPUT_AXIS[operator]], -1).astype(np.float64)
    noise = (2 * np.abs(channels).max(axis=1) / STEPS) ** 2 / 12
    signal = float((channels**2).mean())
    return float(noise.mean()) / signal if signal else 0.0
