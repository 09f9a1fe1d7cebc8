"""What TensorRT would refuse is found before anything is built, and shapes are planned from the tensors' bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.formats.to_trt import NEWEST_OPSET, Profile, faults, profiles
from exporters.plan import ExportError
from server.tensors import Tensor, TensorSpec
from tests.server.models import linear_model, value, write_model

ROWS = (TensorSpec("x", "FP32", (-1, 4), 0),)
TOKENS = (TensorSpec("ids", "INT64", (-1, -1), 0, (-1, 511)), TensorSpec("x", "FP32", (-1, 3), 0))


def quantized(path: Path, zero: Tensor, scale: float = 0.1) -> Path:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="restore"),
    ]
    weights: dict[str, Tensor] = {"scale": np.array(scale, np.float32), "zero": zero}
    return write_model(path, nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], weights)


def test_plain_and_symmetric_graphs_pass(tmp_path: Path) -> None:
    assert faults(linear_model(tmp_path / "m.onnx"), (TensorSpec("x", "FP32", (-1, 8), 0),)) == []
    assert faults(quantized(tmp_path / "q.onnx", np.array(0, np.int8)), ROWS) == []


@pytest.mark.parametrize(
    ("zero", "scale", "said"),
    [
        (np.array(0, np.uint8), 0.1, "quantize (QuantizeLinear) holds uint8; TensorRT takes int8 only"),
        (np.array(3, np.int8), 0.1, "quantize (QuantizeLinear) has a zero point other than 0"),
        (np.array(0, np.int8), 0.0, "quantize (QuantizeLinear) has a scale that isn't a constant above 0"),
    ],
)
def test_scales_that_tensorrt_does_not_take(tmp_path: Path, zero: Tensor, scale: float, said: str) -> None:
    found = faults(quantized(tmp_path / "q.onnx", zero, scale), ROWS)
    assert len(found) == 2
    assert found[0].startswith(said)


def test_operators_of_one_runtime_and_scales_at_run_time(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="restore"),
        helper.make_node("FastGelu", ["d"], ["y"], name="gelu", domain="com.microsoft"),
    ]
    path = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 4])], [value("y", ["N", 4])])
    found = faults(path, ROWS)
    assert [fault.split(" (")[0] for fault in found] == ["dynamic", "restore", "gelu"]
    assert "--target tensorrt makes it static" in found[0]
    assert "--optimization-level 2 has none" in found[2]


def test_opsets_and_types_that_are_too_new_or_too_wide(tmp_path: Path) -> None:
    model = onnx.load(linear_model(tmp_path / "m.onnx"))
    model.opset_import[0].version = NEWEST_OPSET + 1
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2), "wide"))
    onnx.save(model, tmp_path / "m.onnx")
    found = faults(tmp_path / "m.onnx", ROWS)
    assert found == [
        "opset 21 is newer than 20, the newest that TensorRT 10 reads",
        "1 weights are FP64, which TensorRT doesn't have: wide",
    ]


def test_an_axis_that_varies_needs_a_greatest_length(tmp_path: Path) -> None:
    free = (TensorSpec("x", "FP32", (-1, -1), 0),)
    said = "axis 1 of 'x' varies without a greatest length: --dynamic x:1=MAX"
    assert faults(linear_model(tmp_path / "m.onnx"), free) == [said]
    with pytest.raises(ExportError, match="varies without a greatest length"):
        profiles(free, 1, 8)


def test_profiles_follow_the_bounds() -> None:
    assert profiles(TOKENS, likely_rows=8, most_rows=64) == {
        "ids": Profile((1, 1), (8, 256), (64, 511)),
        "x": Profile((1, 3), (8, 3), (64, 3)),
    }
    whole = (TensorSpec("x", "FP32", (3, 4), None),)
    assert profiles(whole, 1, 1) == {"x": Profile((3, 4), (3, 4), (3, 4))}


@pytest.mark.parametrize("rows", [(0, 8), (9, 8)])
def test_rows_that_make_no_sense(rows: Any) -> None:
    with pytest.raises(ExportError, match="expected 1 <= least <= likely <= greatest rows"):
        profiles(TOKENS, *rows)
