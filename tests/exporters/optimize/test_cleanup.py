"""Level 1's clean-up keeps the answers and drops what isn't needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.formats.to_onnx import check
from exporters.optimize.cleanup import clean, share_constants
from exporters.plan import ExportError
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from tests.server.models import value, write_model


def test_constants_are_folded_and_dead_nodes_dropped(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Mul", ["x", "three"], ["y"]),
        helper.make_node("Neg", ["x"], ["dead"]),
    ]
    weights = {"one": np.ones(4, np.float32), "two": np.full(4, 2, np.float32)}
    raw = write_model(tmp_path / "raw.onnx", nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    clean(raw, tmp_path / "clean.onnx")
    graph = check(tmp_path / "clean.onnx")
    assert graph.operators == {"Mul": 1}
    assert graph.inputs == {"x": (-1, 4)}
    backend = backend_named("onnxruntime").open(VariantSpec("m", "1", "fp32", "onnxruntime", tmp_path / "clean.onnx", threads=1))
    np.testing.assert_array_equal(backend.run({"x": np.ones((2, 4), np.float32)}, 2)["y"], np.full((2, 4), 3))


def test_a_graph_that_can_not_be_cleaned(tmp_path: Path) -> None:
    (tmp_path / "raw.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"onnxslim can't clean the graph .*--optimization-level 0 does without"):
        clean(tmp_path / "raw.onnx", tmp_path / "clean.onnx")
    assert not (tmp_path / "clean.onnx").exists()


def test_equal_weights_become_one(tmp_path: Path) -> None:
    """Tied weights that the exporter wrote twice, one of them used in a branch too, and one that only looks alike."""
    same = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    branch = helper.make_graph([helper.make_node("MatMul", ["a", "two"], ["z"])], "branch", [], [value("z", ["N", 4])])
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["a"]),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["b", "other"], ["y"]),
    ]
    weights = {"one": same, "two": same.copy(), "other": same + 1, "yes": np.array(True)}
    raw = write_model(tmp_path / "raw.onnx", nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    model = onnx.load(str(raw))
    assert share_constants(model) == same.nbytes
    assert [tensor.name for tensor in model.graph.initializer] == ["one", "other", "yes"]
    onnx.save(model, str(tmp_path / "shared.onnx"))
    onnx.checker.check_model(str(tmp_path / "shared.onnx"))
    x = {"x": np.ones((2, 4), np.float32)}
    answers = []
    for path in (raw, tmp_path / "shared.onnx"):
        backend = backend_named("onnxruntime").open(VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1))
        answers.append(backend.run(x, 2)["y"].copy())
    np.testing.assert_array_equal(answers[0], answers[1])
    assert share_constants(model) == 0
