"""The first node that differs is named, and where most is added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.precision.layers import Layer, layers, told


def chain(path: Path, scales: tuple[float, float, float]) -> Path:
    """x times three numbers, one node each: a, b, y."""
    values = dict(zip("klm", scales, strict=True))
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()]
    steps = (("x", "k", "a"), ("a", "l", "b"), ("b", "m", "y"))
    nodes = [helper.make_node("Mul", [one, other], [to], name=f"node_{to}") for one, other, to in steps]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", tensors[:1], tensors[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_the_first_that_differs_and_the_worst(tmp_path: Path) -> None:
    x = {"x": np.array([[1.0, 2.0]], np.float32)}
    base = chain(tmp_path / "a.onnx", (1, 1, 1))
    found = layers(base, chain(tmp_path / "b.onnx", (1, 1.1, 2)), x, 1)
    assert [(layer.name, round(layer.relative, 3)) for layer in found] == [("node_a", 0.0), ("node_b", 0.1), ("node_y", 1.2)]
    assert (
        told(found, 0.05)
        == "it first differs at node_b (Mul, by 0.1 of its largest value), most at node_y (Mul, by 1.2 of its largest value)"
    )
    assert told(found, 0.5) == "it first differs at node_y (Mul, by 1.2 of its largest value)"
    assert told(layers(base, base, x, 1), 0.0) == ""


def test_what_is_not_a_number_differs(tmp_path: Path) -> None:
    x = {"x": np.array([[1.0, 2.0]], np.float32)}
    found = layers(chain(tmp_path / "a.onnx", (1, 1, 1)), chain(tmp_path / "b.onnx", (1, float("inf"), 1)), x, 1)
    assert [layer.relative for layer in found] == [0.0, float("inf"), float("inf")]
    assert told([Layer("n", "Mul", float("nan"))], 0.1).startswith("it first differs at n ")
