"""The small ONNX models that benchmarks serve, and the repositories that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES = 16
WIDE = 2_380_000
"""Values in a row of the wide model: as JSON with four decimals each it stays just under 16 MiB."""

IMAGE = (3, 224, 224)
"""An image as vision models take it: 602,112 bytes of FP32."""

OPSET, IR_VERSION = 17, 8


def write_identity(path: Path) -> None:
    """X FP32 [N, 16] → Y = X + 0: an Add, so that the runtime really runs a kernel."""
    zero = numpy_helper.from_array(np.zeros(FEATURES, np.float32), "zero")
    _write(path, "identity", [helper.make_node("Add", ["X", "zero"], ["Y"])], ("N", FEATURES), ("N", FEATURES), [zero])


def write_mean(path: Path) -> None:
    """X FP32 [N, 2380000] → Y [N, 1], the mean of each row: a large request with a small answer."""
    _write(path, "mean", [helper.make_node("ReduceMean", ["X"], ["Y"], axes=[1], keepdims=1)], ("N", WIDE), ("N", 1), [])


def write_image_mean(path: Path) -> None:
    """X FP32 [N, 3, 224, 224] → Y [N, 1], the mean over an image's pixels."""
    nodes = [
        helper.make_node("ReduceMean", ["X"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["Y"]),
    ]
    _write(path, "image", nodes, ("N", *IMAGE), ("N", 1), [numpy_helper.from_array(np.array([1]), "last")])


def edges_repository(folder: Path) -> Path:
    """identity and image as bare ONNX files; image takes no more rows a run than the load has connections, twice."""
    for name, write in (("identity", write_identity), ("image", write_image_mean)):
        path = folder / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    (folder / "image" / "model.yaml").write_text("batching: {max_rows: 8}\n")
    return folder


def front_repository(folder: Path) -> Path:
    """identity and mean as bare ONNX files; mean takes one row a run, as its warm-up would else take gigabytes."""
    for name, write in (("identity", write_identity), ("mean", write_mean)):
        path = folder / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    (folder / "mean" / "model.yaml").write_text("batching: {max_rows: 1}\n")
    return folder


def _write(
    path: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    taken: tuple[str | int, ...],
    given: tuple[str | int, ...],
    constants: list[onnx.TensorProto],
) -> None:
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, list(taken))]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, list(given))]
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
