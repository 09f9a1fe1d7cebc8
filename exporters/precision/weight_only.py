"""INT8 of the weights alone: large linear layers and embeddings keep theirs in 8 bits, and all is computed in FP32.

The graph stays portable. A linear layer reads its weights through a DequantizeLinear, by output channel; onnxruntime makes one operator
of the two at load, which keeps the 8 bits in memory. An embedding gathers rows of 8 bits and their scales, and multiplies those alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporters.disk.onnx_files import load, save
from exporters.plan import ExportError
from exporters.precision.cast import named

if TYPE_CHECKING:
    import onnx

LEAST_WEIGHTS = 1 << 16
"""Smaller matrices stay in FP32: there's nothing to save."""
LEAST_OPSET = 13
"""From here on a tensor may have a scale for each channel."""
STEPS = 127


def quantize_weights(source: Path, target: Path) -> str:
    """Write `source` with its large weights in 8 bits. Returns how that was done, in words. Raises ExportError where none is large."""
    model = named(load(source))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise ExportError(f"opset {opset} has no scales by channel: int8wo needs a file of opset {LEAST_OPSET} or newer")
    counts = _Rewrite(model).all()
    if not sum(counts.values()):
        raise ExportError(f"no linear layer or embedding has {LEAST_WEIGHTS:,} weights or more, so there is nothing to save by int8wo")
    save(model, target, source)
    told = (f"{count} {what}{'s' if count != 1 else ''}" for what, count in counts.items() if count)
    return f"weights in S8, per channel, of {' and '.join(told)}"


class _Rewrite:
    """Works on one model in place. A matrix that several nodes read is quantised once for each way of reading it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self._graph = model.graph
        self._make: Any = onnx.helper.make_node
        self._tensor: Any = onnx.numpy_helper.from_array
        self._matrices = {tensor.name: tensor for tensor in model.graph.initializer if _is_large(tensor)}
        self._made: set[str] = set()

    def all(self) -> dict[str, int]:
        """Rewrite all nodes; how many of each kind were."""
        counts = {"linear layer": 0, "embedding": 0}
        nodes: list[onnx.NodeProto] = []
        for node in list(self._graph.node):
            if node.op_type == "Gather" and node.input[0] in self._matrices and not _number(node, "axis", 0):
                counts["embedding"] += 1
                nodes += self._gathered(node)
            elif len(node.input) > 1 and node.input[1] in self._matrices and _is_linear(node):
                counts["linear layer"] += 1
                nodes += self._multiplied(node)
            else:
                nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._drop_unread()
        return counts

    def _gathered(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Rows of the table, and the scale of each."""
        table, places, out = node.input[0], node.input[1], node.output[0]
        numbers, scales = self._quantized(table, axis=1, name=f"{table}_by_row")
        yield self._make("Gather", [numbers, places], [f"{out}_numbers"], name=f"{node.name}_numbers", axis=0)
        yield self._make("Gather", [scales, places], [f"{out}_scales"], name=f"{node.name}_scales", axis=0)
        yield self._make("Cast", [f"{out}_numbers"], [f"{out}_floats"], name=f"{node.name}_floats", to=1)
        yield self._make("Mul", [f"{out}_floats", f"{out}_scales"], [out], name=node.name)

    def _multiplied(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A MatMul as it is; a Gemm becomes one, with its bias added, for that is what onnxruntime merges with its weights."""
        weights, out, turned = node.input[1], node.output[0], bool(_number(node, "transB", 0))
        bias = list(node.input[2:3])
        yield from self._dequantized(weights, turned)
        found = f"{weights}_turned_dequantized" if turned else f"{weights}_dequantized"
        yield self._make("MatMul", [node.input[0], found], [f"{out}_product" if bias else out], name=node.name)
        if bias:
            yield self._make("Add", [f"{out}_product", *bias], [out], name=f"{node.name}_bias")

    def _dequantized(self, weights: str, transposed: bool) -> Iterator[onnx.NodeProto]:
        """The node that gives a matrix back, [in, out], once."""
        name = f"{weights}_turned" if transposed else weights
        if f"{name}_dequantized" not in self._made:
            self._made.add(f"{name}_dequantized")
            numbers, scales = self._quantized(weights, axis=0, name=name, transposed=transposed)
            yield self._make("DequantizeLinear", [numbers, scales], [f"{name}_dequantized"], name=f"{name}_dequantize", axis=1)

    def _quantized(self, matrix: str, axis: int, name: str, transposed: bool = False) -> tuple[str, str]:
        """Names of a matrix's numbers in 8 bits and of its scales, the largest of `axis` being STEPS; made where they aren't there yet."""
        numbers, scales = f"{name}_numbers", f"{name}_scales"
        if numbers not in self._made:
            self._made.add(numbers)
            values = _values(self._matrices[matrix], transposed)
            scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / STEPS, np.finfo(np.float32).tiny)
            self._graph.initializer.append(self._tensor(np.rint(values / scale).astype(np.int8), numbers))
            self._graph.initializer.append(self._tensor((scale if axis else scale[0]).astype(np.float32), scales))
        return numbers, scales

    def _drop_unread(self) -> None:
        """Take away matrices that no node reads any more."""
        read = {name for node in self._graph.node for name in node.input} | {value.name for value in self._graph.output}
        for name in self._matrices.keys() - read:
            self._graph.initializer.remove(self._matrices[name])


def _is_large(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == 1 and len(tensor.dims) == 2 and tensor.dims[0] * tensor.dims[1] >= LEAST_WEIGHTS


def _is_linear(node: onnx.NodeProto) -> bool:
    """A product of matrices, or a Gemm that is no more than one and a bias."""
    ones = all(_number(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and ones and not _number(node, "transA", 0))


def _values(tensor: onnx.TensorProto, transposed: bool) -> NDArray[np.float32]:
    import onnx

    values: NDArray[np.float32] = onnx.numpy_helper.to_array(tensor)
    return np.ascontiguousarray(values.T) if transposed else values


def _number(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number among the node's attributes."""
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else found.f if found.type == 1 else found.i
