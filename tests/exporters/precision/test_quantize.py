"""Each scheme makes a graph that runs, is INT8 where it should be, and gives nearly the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.plan import ExportError, Target
from exporters.precision.calibration import CalibrationSet
from exporters.precision.quantize import COMPUTES, Scheme, histogram, minmax, prepare, quantize, quantized_operators, schemes
from exporters.precision.ranges import observe
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.tensors import Tensor
from tests.server.models import value, write_model

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)
TEXTS = RNG.normal(size=(32, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The quantisers write temporary files, and some of them into the working folder."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    yield
    assert list(working.iterdir()) == []


def cnn(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "c"], ["y"], name="head"),
    ]
    weights: dict[str, Tensor] = {
        "w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b": RNG.normal(size=4).astype(np.float32),
        "g": RNG.normal(size=(256, 5)).astype(np.float32) / 16,
        "c": RNG.normal(size=5).astype(np.float32),
    }
    return write_model(path, nodes, [value("x", ["N", 3, 8, 8])], [value("y", ["N", 5])], weights)


def mlp(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    weights = {"a": RNG.normal(size=(16, 64)).astype(np.float32), "b": RNG.normal(size=(64, 5)).astype(np.float32)}
    return write_model(path, nodes, [value("x", ["N", 16])], [value("y", ["N", 5])], weights)


def scales_of(scheme: Scheme, prepared: Path, rows: Tensor) -> Any:
    batches = tuple({"x": rows[start : start + 8]} for start in range(0, len(rows), 8))
    if scheme.calibrator is None:
        return None
    if scheme.calibrator == "minmax":
        return minmax(observe(prepared, batches, threads=1))
    return histogram(prepared, scheme.calibrator, CalibrationSet("said", batches), scheme.operators)


def made(folder: Path, source: Path, scheme: Scheme, rows: Tensor, kept: tuple[str, ...] = ()) -> onnx.ModelProto:
    """The quantised graph, after it has passed the checker and shown that its answers are near."""
    prepared, target = folder / "prepared.onnx", folder / "int8.onnx"
    prepare(source, prepared)
    quantize(prepared, target, scheme, scales_of(scheme, prepared, rows), kept)
    model = onnx.load(target)
    onnx.checker.check_model(model)
    wanted, found = (answer(path, rows) for path in (source, target))
    gaps = np.abs(found - wanted)
    assert 0 < float(gaps.mean()) < 0.05 * float(np.abs(wanted).mean())
    return model


def answer(path: Path, rows: Tensor) -> Tensor:
    spec = VariantSpec("m", "1", "int8", "onnxruntime", path, threads=1)
    return backend_named("onnxruntime").open(spec).run({"x": rows}, len(rows))["y"]


@pytest.mark.parametrize(
    ("target", "operators", "level", "expected"),
    [
        ("cpu", {"Conv": 3, "Gemm": 1}, 2, ["U8", "U8"]),
        ("cpu", {"Conv": 3}, 4, ["U8", "U8", "U8"]),
        ("cpu", {"MatMul": 3}, 2, ["dynamic"]),
        ("cpu", {"MatMul": 3}, 4, ["dynamic", "U8"]),
        ("tensorrt", {"Conv": 3}, 2, ["S8 symmetric", "S8 symmetric"]),
        ("cuda", {"MatMul": 3}, 2, ["S8 symmetric"]),
    ],
)
def test_schemes_suit_graph_and_target(target: Target, operators: Counter[str], level: int, expected: list[str]) -> None:
    found = schemes(target, operators, level)
    assert len(found) == len(set(found)) == len(expected)
    assert all(words in scheme.method for words, scheme in zip(expected, found, strict=True))


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_static_schemes_of_a_cnn(tmp_path: Path, calibrator: Any, symmetric: bool) -> None:
    model = made(tmp_path, cnn(tmp_path / "m.onnx"), Scheme(calibrator, symmetric=symmetric), IMAGES)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["QuantizeLinear"] >= 3
    points = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "zero_point" in tensor.name}
    assert points
    if symmetric:
        assert not any(point.any() for point in points.values())
        assert {point.dtype for point in points.values()} == {np.dtype(np.int8)}
        assert {"b", "c"} <= {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    else:
        assert any(point.any() for point in points.values())
    weights = [points[name] for name in points if name.startswith(("w_", "g_"))]
    assert {point.size for point in weights} == {4, 5}


def test_dynamic_int8_takes_no_calibration(tmp_path: Path) -> None:
    model = made(tmp_path, mlp(tmp_path / "m.onnx"), Scheme(None), TEXTS)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["MatMulInteger"] == 2
    assert "MatMul" not in operators


@pytest.mark.parametrize("scheme", [Scheme(None), Scheme("minmax", symmetric=True, operators=("MatMul", "Gemm"))])
def test_nodes_that_are_kept_stay_fp32(tmp_path: Path, scheme: Scheme) -> None:
    model = made(tmp_path, mlp(tmp_path / "m.onnx"), scheme, TEXTS, kept=("second",))
    floats = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert "b" in floats
    assert "a" not in floats


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_above_all_that_was_seen_is_not_cut(tmp_path: Path, symmetric: bool) -> None:
    source = cnn(tmp_path / "m.onnx")
    model = made(tmp_path, source, Scheme("minmax", symmetric=symmetric), IMAGES / 4)
    assert {node.op_type for node in model.graph.node if "y" in node.output} == {"Gemm"}
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read, "onnxruntime warns of what nothing reads"
    wanted, found = (answer(path, IMAGES / 2) for path in (source, tmp_path / "int8.onnx"))
    seen = answer(source, IMAGES / 4).max(axis=1)
    assert (wanted.max(axis=1) > seen).any()
    best = np.sort(found, axis=1)[:, -2:]
    assert (best[:, 0] < best[:, 1]).all(), "two classes are cut to one value"


def test_an_output_that_the_graph_reads_too_is_rounded_there_only(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    weights = {"a": RNG.normal(size=(16, 8)).astype(np.float32), "b": RNG.normal(size=(8, 5)).astype(np.float32)}
    outputs = [value("y", ["N", 5]), value("h", ["N", 8])]
    model = made(tmp_path, write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 16])], outputs, weights), Scheme("minmax"), TEXTS)
    makers = {output: node for node in model.graph.node for output in node.output}
    assert (makers["h"].op_type, makers["y"].op_type) == ("MatMul", "MatMul")
    assert makers[makers["y"].input[0]].op_type == "DequantizeLinear"


def test_operators_that_nodes_can_be_kept_from() -> None:
    assert quantized_operators(Scheme("minmax", operators=("MatMul", "Gemm"))) == ("Gemm", "MatMul")
    assert {"Conv", "Add", "MatMul"} <= set(quantized_operators(Scheme("minmax"))) <= set(COMPUTES)
    assert {"MatMul", "Gemm", "Gather"} <= set(quantized_operators(Scheme(None)))


def test_graphs_that_can_not_be_quantised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="the graph can't be prepared for quantisation"):
        prepare(tmp_path / "m.onnx", tmp_path / "p.onnx")
    prepare(cnn(tmp_path / "m.onnx"), tmp_path / "p.onnx")
    with pytest.raises(ExportError, match="the graph can't be quantised"):
        quantize(tmp_path / "p.onnx", tmp_path / "q.onnx", Scheme("minmax"), minmax({}), ())
    assert capsys.readouterr() == ("", "")
