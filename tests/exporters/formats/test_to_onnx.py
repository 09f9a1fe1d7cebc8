"""The ONNX file's own proof."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.formats.to_onnx import check, check_shapes, kept_inputs
from exporters.plan import ExportError
from server.tensors import TensorSpec
from tests.server.models import linear_model, two_inputs_model, value, write_model


def test_what_a_graph_holds(tmp_path: Path) -> None:
    graph = check(two_inputs_model(tmp_path / "m.onnx"))
    assert (graph.nodes, graph.operators, graph.opset) == (2, {"Add": 1, "Mul": 1}, 17)
    assert graph.inputs == {"a": (-1, 4), "b": (-1, 4)}
    assert graph.outputs == {"total": (-1, 4), "product": (-1, 4)}


def test_nested_graphs_are_counted(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [value("z", ["N", 4])])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    path = write_model(tmp_path / "m.onnx", [node], [value("x", ["N", 4])], [value("y", ["N", 4])], {"yes": np.array(True)})
    assert check(path).operators == {"Identity": 2, "If": 1}


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="the ONNX file isn't valid"):
        check(tmp_path / "m.onnx")
    model = onnx.load(linear_model(tmp_path / "m.onnx"))
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"the ONNX file isn't valid: .*nothing"):
        check(tmp_path / "m.onnx")


def test_operators_of_one_runtime_are_refused(tmp_path: Path) -> None:
    model = onnx.load(linear_model(tmp_path / "m.onnx"))
    model.graph.node.append(helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="isn't portable: it has operators of com"):
        check(tmp_path / "m.onnx")


def test_shapes_must_vary_where_pytorchs_do(tmp_path: Path) -> None:
    graph = check(two_inputs_model(tmp_path / "m.onnx"))
    given = (TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 4)), TensorSpec("unused", "FP32", (-1,)))
    assert kept_inputs(graph, given) == given[:2]
    outputs = (TensorSpec("total", "FP32", (-1, 4)),)
    check_shapes(graph, given[:2], outputs)
    with pytest.raises(ExportError, match="took axis 1 of 'total' for the constant 4"):
        check_shapes(graph, (), (TensorSpec("total", "FP32", (-1, -1)),))
    with pytest.raises(ExportError, match="has no 'sum'; it has a, b, total, product"):
        check_shapes(graph, (), (TensorSpec("sum", "FP32", (-1, 4)),))
