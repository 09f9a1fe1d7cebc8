"""An ONNX file as if it were a traced model: what it answers as it is, unoptimised, is the reference; a part of trace_child's process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from .samples import Arrays
from .trace_state import RefusedError

ROWS, LENGTH = 4, 16
KINDS: dict[str, type[np.generic]] = {
    **{"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_},
    **{f"tensor({kind}{bits})": np.dtype(f"{kind}{bits}").type for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""The numpy types of onnxruntime's."""


@dataclass(frozen=True)
class OnnxCall:
    """What trace_call.Call is for a module: inputs by name as the example has them, and one run of the file."""

    session: Any
    example: Arrays
    traceable: SimpleNamespace

    def answer(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once. onnxruntime's errors share no class: they're RuntimeErrors here, as a module's are."""
        try:
            found: list[NDArray[Any]] = self.session.run(None, {name: arrays[name] for name in self.example})
        except Exception as error:
            raise RuntimeError(" ".join(str(error).split())[:300]) from error
        return found


def open_call(path: Path, given: Arrays | None) -> OnnxCall:
    """Open the file, with an example as given or made from its inputs' shapes. Raises RefusedError."""
    _check_float32(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RefusedError(f"{path.name} can't be opened: {' '.join(str(error).split())[:300]}") from error
    inputs = {node.name: node for node in session.get_inputs()}
    example = _made(path, inputs) if given is None else given
    if set(example) != set(inputs):
        raise RefusedError(f"the example's names don't fit: it has {', '.join(example)}; {path.name} takes {', '.join(inputs)}")
    for name, array in example.items():
        if array.dtype != KINDS.get(inputs[name].type):
            raise RefusedError(f"example input {name!r} is {array.dtype}; {path.name} takes {inputs[name].type}")
    names = tuple(node.name for node in session.get_outputs())
    return OnnxCall(session, {name: example[name] for name in inputs}, SimpleNamespace(names=names))


def axes(call: OnnxCall) -> dict[str, dict[int, int | None]]:
    """The axes that the file leaves open, but for the first, which counts rows."""
    return {
        node.name: {axis: None for axis, size in enumerate(node.shape) if axis and not isinstance(size, int)}
        for node in call.session.get_inputs()
    }


def copy(path: Path, target: Path) -> None:
    """The file itself is what a trace would have made; weights that lie outside of it are fetched by whoever asked for the trace."""
    shutil.copyfile(path, target)


def _check_float32(path: Path) -> None:
    """Refuse a file that isn't whole, or that was cast or quantised already: FP32 is what all else is made from and proved by."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise RefusedError(f"{path.name} isn't an ONNX file: {type(error).__name__}") from error
    weights, newest = model.graph.initializer, onnx.defs.onnx_opset_version()
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > newest:
        raise RefusedError(
            f"{path.name} is of opset {opset}; onnx {onnx.__version__} knows up to {newest}: save it with an older one (opset_version=17)"
        )
    odd = {
        onnx.TensorProto.DataType.Name(t.data_type) for t in weights if t.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    }
    quantized = {node.op_type for node in model.graph.node if "Quantize" in node.op_type or node.op_type.endswith("Integer")}
    if odd or quantized:
        raise RefusedError(f"{path.name} holds {', '.join(sorted(odd | quantized))}: expected the FP32 file that it was made from")


def _made(path: Path, inputs: Mapping[str, Any]) -> Arrays:
    """Normal numbers for floats, 0 and 1 for the others, which are places in a table more often than amounts."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for name, node in inputs.items():
        kind = KINDS.get(node.type)
        if kind is None:
            raise RefusedError(f"input {name!r} of {path.name} is {node.type}, for which no example can be made: give --example FILE.npz")
        shape = [size if isinstance(size, int) else LENGTH if axis else ROWS for axis, size in enumerate(node.shape)]
        made[name] = (rng.normal(size=shape) if issubclass(kind, np.floating) else rng.integers(0, 2, shape)).astype(kind)
    return made
