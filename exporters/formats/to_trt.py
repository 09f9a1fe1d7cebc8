"""What TensorRT needs of an ONNX file, checked without TensorRT: precision lies in the graph, and every axis that varies has bounds.

Its rules are those of TensorRT 10 with strongly typed networks, which 11 keeps: no precision flags, INT8 as explicit Q/DQ with symmetric
scales. Nothing here has run on a GPU; a file that passes is one that isn't known to be refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.plan import ExportError
from server.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

NEWEST_OPSET = 20
RUNTIME_SCALES = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"})
"""INT8 in forms that TensorRT's parser doesn't take: scales found at run time, or operators that hide them."""
PORTABLE = frozenset({"", "ai.onnx"})


@dataclass(frozen=True, slots=True)
class Profile:
    """An input's shapes in an engine: the least that it takes, the one that it's tuned for, the greatest."""

    least: tuple[int, ...]
    likely: tuple[int, ...]
    greatest: tuple[int, ...]


def profiles(inputs: Sequence[TensorSpec], likely_rows: int, most_rows: int, least_rows: int = 1) -> dict[str, Profile]:
    """An optimization profile: rows from `least_rows` to `most_rows`, other varying axes from 1 to their greatest length, tuned for half
    of it.

    Raises ExportError for rows that make no sense and for an axis without a greatest length, which TensorRT can't do without.
    """
    if not 1 <= least_rows <= likely_rows <= most_rows:
        raise ExportError(f"expected 1 <= least <= likely <= greatest rows, got {least_rows}, {likely_rows} and {most_rows}")
    if faults := list(unbounded(inputs)):
        raise ExportError("; ".join(faults))
    return {spec.name: _profile(spec, (least_rows, likely_rows, most_rows)) for spec in inputs}


def faults(file: Path, inputs: Sequence[TensorSpec]) -> list[str]:
    """What TensorRT would refuse, each with the node and what to do; empty where nothing is known to stand in the way."""
    import onnx

    model = onnx.load(str(file))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    opset = next((entry.version for entry in model.opset_import if entry.domain in PORTABLE), 0)
    newer = [f"opset {opset} is newer than {NEWEST_OPSET}, the newest that TensorRT 10 reads"] if opset > NEWEST_OPSET else []
    nodes = (fault for node in model.graph.node for fault in _node_faults(node, weights))
    return list(dict.fromkeys([*newer, *_wide(weights), *nodes, *unbounded(inputs)]))


def unbounded(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    """The axes that vary and have no greatest length; rows get theirs from the server's settings."""
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if size == -1 and axis != spec.batch_axis and _greatest(spec, axis) is None:
                yield f"axis {axis} of {spec.name!r} varies without a greatest length: --dynamic {spec.name}:{axis}=MAX"


def _profile(spec: TensorSpec, rows: tuple[int, int, int]) -> Profile:
    bounds = [_bounds(spec, axis, rows) for axis in range(len(spec.shape))]
    least, likely, greatest = (tuple(bound[place] for bound in bounds) for place in range(3))
    return Profile(least, likely, greatest)


def _bounds(spec: TensorSpec, axis: int, rows: tuple[int, int, int]) -> tuple[int, int, int]:
    size = spec.shape[axis]
    if size != -1:
        return size, size, size
    if axis == spec.batch_axis:
        return rows
    most = _greatest(spec, axis) or 1
    return 1, (most + 1) // 2, most


def _greatest(spec: TensorSpec, axis: int) -> int | None:
    bound = spec.max_shape[axis] if spec.max_shape else -1
    return bound if bound > 0 else None


def _wide(weights: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    wide = [name for name, values in weights.items() if values.dtype == "float64"]
    if wide:
        yield f"{len(wide)} weights are FP64, which TensorRT doesn't have: {wide[0]}"


def _node_faults(node: onnx.NodeProto, weights: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    where = f"{node.name or node.output[0]} ({node.op_type})"
    if node.domain not in PORTABLE:
        yield f"{where} is an operator of {node.domain}, which only onnxruntime knows: --optimization-level 2 has none"
    elif node.op_type in RUNTIME_SCALES:
        yield f"{where} isn't INT8 as TensorRT takes it: --target tensorrt makes it static"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _scale_faults(where, node, weights)


def _scale_faults(where: str, node: onnx.NodeProto, weights: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    zero: NDArray[np.generic] | None = weights.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and zero.dtype != "int8":
        yield f"{where} holds {zero.dtype}; TensorRT takes int8 only: --target tensorrt makes it so"
    elif zero is not None and zero.any():
        yield f"{where} has a zero point other than 0; TensorRT takes symmetric scales only: --target tensorrt makes them so"
    scale = weights.get(node.input[1])
    if scale is None or not (scale > 0).all():
        yield f"{where} has a scale that isn't a constant above 0"
