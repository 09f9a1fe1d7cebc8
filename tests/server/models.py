"""Tiny ONNX models and repository entries for tests: each function writes one file and returns its path.

Rows are axis 0, called N. Values are chosen so that a right answer can be written down in the test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from server.repository.manifest import MANIFEST_NAME, file_sha256
from server.tensors import Tensor

ONNX_TYPES: Mapping[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}
Axes = Sequence[int | str | None]
Build = Callable[[Path], Path]


def value(name: str, shape: Axes | None, datatype: str = "FP32") -> onnx.ValueInfoProto:
    """An input or output; a string or None in `shape` is an axis that varies."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def write_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the graph to `path` (opset 17, IR 8, as the exporter's default)."""
    initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def identity_model(path: Path, datatype: str = "FP32", width: int | str = 16, rows: int | str = "N") -> Path:
    """y = x, [N, width] of any datatype."""
    return write_model(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", [rows, width], datatype)],
        [value("y", [rows, width], datatype)],
    )


def linear_weights(inputs: int = 8, outputs: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weight [inputs, outputs] and bias [outputs] of linear_model."""
    random = np.random.default_rng(seed)
    return random.standard_normal((inputs, outputs), np.float32), random.standard_normal(outputs, np.float32)


def linear_model(path: Path, inputs: int = 8, outputs: int = 4, seed: int = 0) -> Path:
    """y = x @ weight + bias, FP32 [N, inputs] → [N, outputs], with linear_weights."""
    weight, bias = linear_weights(inputs, outputs, seed)
    return write_model(
        path,
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])],
        [value("x", ["N", inputs])],
        [value("y", ["N", outputs])],
        {"weight": weight, "bias": bias},
    )


def two_inputs_model(path: Path, width: int = 4) -> Path:
    """total = a + b and product = a * b, all FP32 [N, width]."""
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    return write_model(
        path,
        nodes,
        [value("a", ["N", width]), value("b", ["N", width])],
        [value("total", ["N", width]), value("product", ["N", width])],
    )


def scaled_model(path: Path, width: int = 2) -> Path:
    """y = x * scale, FP32 [N, width] and [1] → [N, width]: the scale isn't per row."""
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    return write_model(path, [node], [value("x", ["N", width]), value("scale", [1])], [value("y", ["N", width])])


def sum_rows_model(path: Path, width: int = 4) -> Path:
    """y = sum of x over its rows, FP32 [N, width] → [1, width]: the output isn't per row, and the file says so."""
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    return write_model(path, [node], [value("x", ["N", width])], [value("y", [1, width])], {"axes": np.array([0])})


def centred_model(path: Path, width: int = 4) -> Path:
    """y = x - mean of x over its rows: [N, width] in and out, so that only running it shows that rows mix."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return write_model(path, nodes, [value("x", ["N", width])], [value("y", ["N", width])])


def embedding_model(path: Path, vocabulary: int = 32, width: int = 4) -> Path:
    """y = mean over the tokens' vectors: INT64 [N, L] → FP32 [N, width]; token k's vector is all k. Tokens ≥ vocabulary fail."""
    table = np.repeat(np.arange(vocabulary, dtype=np.float32)[:, None], width, axis=1)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["y"], axes=[1], keepdims=0),
    ]
    return write_model(path, nodes, [value("tokens", ["N", "L"], "INT64")], [value("y", ["N", width])], {"table": table})


def masked_model(path: Path, vocabulary: int = 32, width: int = 4) -> Path:
    """mean = mean of the vectors of the tokens whose mask is 1, each = every token's vector: INT64 [N, L] twice → FP32 [N, width] and
    [N, L, width]. Token k's vector is all k, so padding with mask 0 changes no mean."""
    table = np.repeat(np.arange(vocabulary, dtype=np.float32)[:, None], width, axis=1)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["each"]),
        helper.make_node("Cast", ["mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", ["each", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "along"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "along"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
    ]
    return write_model(
        path,
        nodes,
        [value("tokens", ["N", "L"], "INT64"), value("mask", ["N", "L"], "INT64")],
        [value("mean", ["N", width]), value("each", ["N", "L", width])],
        {"table": table, "last": np.array([2]), "along": np.array([1])},
    )


def slow_model(path: Path, width: int = 256, layers: int = 40) -> Path:
    """y = x through `layers` matrix products that each keep it as it is: FP32 [N, width], milliseconds of real work."""
    nodes = [
        helper.make_node("MatMul", [f"h{layer}" if layer else "x", "weight"], [f"h{layer + 1}" if layer + 1 < layers else "y"])
        for layer in range(layers)
    ]
    weights = {"weight": np.eye(width, dtype=np.float32)}
    return write_model(path, nodes, [value("x", ["N", width])], [value("y", ["N", width])], weights)


def times_model(path: Path, factor: float = 1.0) -> Path:
    """y = factor · x, FP32 [N, 16]: which version answered is seen in the answer."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    return write_model(path, [node], [value("x", ["N", 16])], [value("y", ["N", 16])], {"factor": np.array([factor], np.float32)})


def place_versions(repository: Path, name: str, versions: Sequence[int], yaml: str = "versions: {policy: all}\n") -> Path:
    """A model whose version V answers V · x. Returns repository/NAME."""
    for version in versions:
        place(repository, name, partial(times_model, factor=float(version)), str(version))
    (repository / name / "model.yaml").write_text(yaml)
    return repository / name


def external_model(path: Path, location: str) -> Path:
    """y = x @ weight, FP32 [N, 4], whose weight (the 4 x 4 identity) lies in the file named `location`, relative to `path`.

    The data file isn't written: `np.eye(4, dtype=np.float32).tofile(...)` makes it.
    """
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", ["N", 4])], [value("y", ["N", 4])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def place(repository: Path, name: str, build: Build = linear_model, version: str = "1", yaml: str | None = None) -> Path:
    """A bare entry: repository/NAME/VERSION/model.onnx, and model.yaml where `yaml` is given. Returns repository/NAME."""
    entry = repository / name
    build(entry / version / "model.onnx")
    if yaml is not None:
        (entry / "model.yaml").write_text(yaml)
    return entry


def tensor_entry(name: str, shape: Sequence[int], datatype: str = "FP32", batch_axis: int | None = 0) -> dict[str, Any]:
    """An input or output as manifest.json has it."""
    return {"name": name, "datatype": datatype, "shape": list(shape), "batch_axis": batch_axis}


def place_with_manifest(repository: Path, name: str, precisions: Sequence[str] = ("fp32",), version: str = "1") -> Path:
    """An exported entry: linear_model as model.PRECISION.onnx for each precision, and a manifest that fits.

    The files of all precisions are alike: only their names differ. Returns repository/NAME.
    """
    folder = repository / name / version
    for precision in precisions:
        linear_model(folder / f"model.{precision}.onnx")
    variants = [variant(folder / f"model.{precision}.onnx", precision) for precision in precisions]
    write_manifest(folder, name, variants)
    return repository / name


def variant(file: Path, precision: str = "fp32", **changes: Any) -> dict[str, Any]:
    """A manifest's variant for a linear_model at `file`, with `changes` on top."""
    parity = {"samples": 8, "batch_sizes": [1, 4], "max_abs": 0.0, "mean_abs": 0.0, "cosine_min": 1.0, "tolerance": 1e-5}
    return {
        "file": file.name,
        "sha256": file_sha256(file),
        "size": file.stat().st_size,
        "precision": precision,
        "backend": "onnxruntime",
        "opset": 17,
        "optimization_level": 2,
        "nodes": {"exported": 1},
        "operators": {"Gemm": 1},
        "inputs": [tensor_entry("x", (-1, 8))],
        "outputs": [tensor_entry("y", (-1, 4))],
        "parity": parity,
        **changes,
    }


def write_manifest(folder: Path, name: str, variants: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """Write `folder`/manifest.json with `variants`, and `changes` on top."""
    manifest = {
        "schema_version": 1,
        "model": name,
        "created": "2026-01-01T00:00:00Z",
        "source": {"kind": "pytorch", "factory": "nets.py:Net"},
        "tools": {"torch": "2.13.0"},
        "variants": list(variants),
        **changes,
    }
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(manifest))
    return path
