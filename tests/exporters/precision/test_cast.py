"""A graph in FP16 leaves in FP32 what FP16 can't hold, and gives the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporters.plan import ExportError
from exporters.precision.cast import cast, named, out_of_range
from exporters.precision.ranges import Range, observe
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.tensors import Tensor
from tests.server.models import linear_model, value, write_model

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def chain(path: Path, *numbers: float) -> Path:
    """x multiplied by each number in turn; the nodes have no names of their own."""
    names = ["x", *(f"t{index}" for index in range(len(numbers) - 1)), "y"]
    nodes = [helper.make_node("Mul", [names[index], f"c{index}"], [names[index + 1]]) for index in range(len(numbers))]
    weights = {f"c{index}": np.array(number, np.float32) for index, number in enumerate(numbers)}
    return write_model(path, nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)


def answer(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    return backend_named("onnxruntime").open(VariantSpec("m", "1", "fp16", "onnxruntime", path, threads=1)).run(inputs, 5)["y"]


def kept(path: Path, saturate: bool = True) -> tuple[str, ...]:
    return out_of_range(path, observe(path, [{"x": ROWS}], threads=1), saturate)


def test_what_fits_is_cast_and_what_goes_in_and_out_stays_fp32(tmp_path: Path) -> None:
    path, made = linear_model(tmp_path / "m.onnx"), tmp_path / "fp16.onnx"
    rows = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    assert out_of_range(path, observe(path, [{"x": rows}], threads=1), saturate=True) == ()
    cast(path, made, ())
    model = onnx.load(made)
    onnx.checker.check_model(model)
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    assert {port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    gap = np.abs(answer(made, {"x": rows}) - answer(path, {"x": rows})).max()
    assert 0 < gap < 1e-2


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((3.0, 2.0), ()),
        ((6e4, 1 / 6e4, 2.0), ("Mul_0", "Mul_1")),
        ((1e-9, 1e9), ("Mul_0", "Mul_1")),
        ((2e4, 1.0), ("Mul_0", "Mul_1")),
        ((7e4, 1e-4), ("Mul_0", "Mul_1")),
    ],
)
def test_what_leaves_the_range_stays(tmp_path: Path, numbers: tuple[float, ...], expected: tuple[str, ...]) -> None:
    path, made = chain(tmp_path / "m.onnx", *numbers), tmp_path / "fp16.onnx"
    assert kept(path) == expected
    cast(path, made, expected)
    onnx.checker.check_model(onnx.load(made))
    np.testing.assert_allclose(answer(made, {"x": ROWS}), answer(path, {"x": ROWS}), rtol=5e-3, atol=1e-3)


def test_a_stand_in_for_infinity_may_become_the_largest_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("Where", ["seen", "x", "never"], ["masked"]), helper.make_node("Softmax", ["masked"], ["y"], axis=1)]
    weights = {"seen": np.array([True, True, False, True]), "never": np.array(np.finfo(np.float32).min)}
    path = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)
    assert kept(path) == ()
    assert kept(path, saturate=False) == ("Where_0", "Softmax_1")
    cast(path, tmp_path / "fp16.onnx", ())
    np.testing.assert_allclose(answer(tmp_path / "fp16.onnx", {"x": ROWS}), answer(path, {"x": ROWS}), atol=1e-3)


def test_a_tensor_that_is_not_finite_stays(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx", 2.0, 2.0)
    assert out_of_range(path, {"t0": Range(0.0, float("nan"), 1.0)}, saturate=True) == ("Mul_0", "Mul_1")


def test_names_are_made_unique() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="n"),
        helper.make_node("Neg", ["a"], ["b"], name="n"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert [node.name for node in named(model).graph.node] == ["n", "Neg_1", "Neg_2"]


def test_a_graph_that_can_not_be_cast(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        {"c": np.ones(4, np.float32)},
    )
    model = onnx.load(path)
    model.graph.initializer.append(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="can't be cast to FP16"):
        cast(path, tmp_path / "fp16.onnx", ())
    assert not (tmp_path / "fp16.onnx").exists()
