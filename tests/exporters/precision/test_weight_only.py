"""Weights alone in 8 bits: small graphs, run by onnxruntime, and whole exports that are served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from exporters.pipeline import export
from exporters.plan import ExportError, ModelRef
from exporters.precision.weight_only import quantize_weights
from tests.exporters.conftest import Remembers, plan, served
from tests.server.models import value, write_model

WORDS, WIDE = 300, 256
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(WORDS, WIDE)).astype(np.float32)
SQUARE = RNG.normal(size=(WIDE, WIDE)).astype(np.float32)
X = RNG.normal(size=(3, WIDE)).astype(np.float32)

FLAT = [value("x", ["N", WIDE])]
NET = """
import torch
from torch import nn

class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.mix, self.head = nn.Embedding(1000, 256), nn.Linear(256, 256), nn.Linear(256, 4)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.mix(self.words(input_ids).mean(1))))
"""


def run(path: Path, **inputs: Any) -> np.ndarray:
    found: np.ndarray = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    return found


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def written(path: Path, node: onnx.NodeProto, weights: Mapping[str, np.ndarray], outputs: int = WIDE) -> Path:
    return write_model(path, [node], FLAT, [value("y", ["N", outputs])], dict(weights))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """To what 8 bits of each weight can do: half a step in each, as noise."""
    return bool(np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("attributes", "inputs", "said"),
    [
        (None, ["x", "w"], "of 1 linear layer"),
        ({}, ["x", "w", "b"], "of 1 linear layer"),
        ({"transB": 1}, ["x", "w", "b"], "of 1 linear layer"),
        ({"transB": 1}, ["x", "w"], "of 1 linear layer"),
    ],
)
def test_a_linear_layer_computes_what_it_did(tmp_path: Path, attributes: dict[str, Any] | None, inputs: list[str], said: str) -> None:
    node = helper.make_node("MatMul" if attributes is None else "Gemm", inputs, ["y"], name="layer", **(attributes or {}))
    bias = {"b": np.arange(WIDE, dtype=np.float32)} if "b" in inputs else {}
    source = written(tmp_path / "m.onnx", node, {"w": SQUARE, **bias})
    target = tmp_path / "q.onnx"
    assert quantize_weights(source, target) == f"weights in S8, per channel, {said}"
    onnx.checker.check_model(str(target), full_check=True)
    assert target.stat().st_size < 0.3 * source.stat().st_size
    assert close(run(target, x=X), run(source, x=X))
    assert operators(target) == ["DequantizeLinear", "MatMul", *(["Add"] if bias else [])]


def test_onnxruntime_keeps_the_8_bits_in_memory(tmp_path: Path) -> None:
    source = written(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["y"], name="layer"), {"w": SQUARE})
    quantize_weights(source, tmp_path / "q.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "loaded.onnx") == ["MatMulNBits"]


def test_each_row_of_an_embedding_has_its_scale(tmp_path: Path) -> None:
    table = TABLE * np.logspace(-3, 3, WORDS, dtype=np.float32)[:, None]
    node = helper.make_node("Gather", ["w", "ids"], ["y"], name="words")
    source = write_model(tmp_path / "m.onnx", [node], [value("ids", ["N", 5], "INT64")], [value("y", ["N", 5, WIDE])], {"w": table})
    assert quantize_weights(source, tmp_path / "q.onnx") == "weights in S8, per channel, of 1 embedding"
    ids = RNG.integers(0, WORDS, (2, 5))
    wanted, found = table[ids], run(tmp_path / "q.onnx", ids=ids)
    assert (np.abs(found - wanted).max(-1) <= np.abs(wanted).max(-1) / 254 * 1.001).all()


def test_a_matrix_that_is_read_in_two_ways(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["rows"], name="words"),
        helper.make_node("Gemm", ["rows", "w"], ["once"], name="tied", transB=1),
        helper.make_node("Gemm", ["rows", "w"], ["twice"], name="again", transB=1),
        helper.make_node("Add", ["once", "twice"], ["y"], name="both"),
    ]
    source = write_model(tmp_path / "m.onnx", nodes, [value("ids", ["N"], "INT64")], [value("y", ["N", WORDS])], {"w": TABLE})
    assert quantize_weights(source, tmp_path / "q.onnx").endswith("of 2 linear layers and 1 embedding")
    ids = np.arange(5)
    assert close(run(tmp_path / "q.onnx", ids=ids), run(source, ids=ids))
    kept = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert sorted(str(kind) for kind in kept.values()) == ["float32", "float32", "int8", "int8"]


def test_what_is_small_or_more_than_a_product_stays(tmp_path: Path) -> None:
    small = helper.make_node("MatMul", ["x", "w"], ["y"], name="small")
    scaled = helper.make_node("Gemm", ["x", "w"], ["y"], name="scaled", alpha=0.5)
    for node, weights in ((small, SQUARE[:, :8]), (scaled, SQUARE)):
        source = written(tmp_path / "m.onnx", node, {"w": np.ascontiguousarray(weights)}, weights.shape[1])
        with pytest.raises(ExportError, match="no linear layer or embedding has 65,536 weights or more"):
            quantize_weights(source, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_an_old_file_has_no_scales_by_channel(tmp_path: Path) -> None:
    source = written(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": SQUARE})
    model = onnx.load(source)
    model.opset_import[0].version = 12
    onnx.save(model, source)
    with pytest.raises(ExportError, match=re.escape("opset 12 has no scales by channel: int8wo needs a file of opset 13")):
        quantize_weights(source, tmp_path / "q.onnx")


@pytest.mark.parametrize("beside", [False, True])
def test_an_export_is_proved_and_served(user: Path, reporter: Remembers, beside: bool) -> None:
    (user / "lookup.py").write_text(NET)
    np.savez(user / "ids.npz", input_ids=RNG.integers(0, 1000, (64, 6)))
    model = ModelRef("lookup.py:Lookup", "Lookup", (user,), file=user / "lookup.py")
    limit = {"external_data": 1000} if beside else {}
    exported = export(plan(user, "", "ids.npz", model=model, precisions=("fp32", "int8wo"), **limit), reporter)
    whole, made = exported.manifest.variants
    assert (made.precision, made.method) == ("int8wo", "weights in S8, per channel, of 1 linear layer and 1 embedding")
    assert made.calibration is None
    assert (made.data is not None) == beside
    assert made.bytes < 0.3 * whole.bytes
    assert made.memory is not None
    assert 0 < made.parity.max_abs < 0.1
    ids = np.load(user / "ids.npz")["input_ids"]
    wanted = served(exported, {"input_ids": ids}, "fp32")["output_0"]
    assert close(served(exported, {"input_ids": ids}, "int8wo")["output_0"], wanted)
