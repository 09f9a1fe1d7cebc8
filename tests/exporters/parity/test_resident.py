"""The memory of a process that serves a variant: real processes, real files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.parity.resident import resident
from exporters.sources.pytorch import Sample
from server.backends.base import VariantSpec

WIDE = 2048


def wide(folder: Path, layers: int) -> VariantSpec:
    """So many layers of 16 MiB each, x → x."""
    rng = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.normal(size=(WIDE, WIDE)).astype(np.float32), f"w{index}") for index in range(layers)]
    nodes = [onnx.helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]) for index in range(layers)]
    ends = [onnx.helper.make_tensor_value_info(f"x{index}", onnx.TensorProto.FLOAT, ["rows", WIDE]) for index in (0, layers)]
    graph = onnx.helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    path = folder / f"wide{layers}.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return VariantSpec("wide", "1", "fp32", "onnxruntime", path, threads=1)


@pytest.fixture
def sample() -> Sample:
    return Sample(2, {"x0": np.ones((2, WIDE), np.float32), "unread": np.ones((2, 1), np.float32)}, {})


def test_larger_weights_take_more_and_each_is_measured_for_itself(tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    large, small = resident([wide(tmp_path, 4), wide(tmp_path, 1)], sample, True, tmp_path / "work")
    assert large is not None
    assert small is not None
    assert (large.rows, small.rows) == (32, 32)
    layer = WIDE * WIDE * 4
    assert large.peak - large.bare > 4 * layer
    assert small.peak - small.bare > layer
    assert large.peak - small.peak > 2 * layer  # the second doesn't inherit what the first held
    assert abs(large.bare - small.bare) < layer


def test_what_is_not_batched_is_run_as_it_is(tmp_path: Path, sample: Sample) -> None:
    (found,) = resident([wide(tmp_path, 1)], sample, False, tmp_path / "work")
    assert found is not None
    assert found.rows == 1


def test_a_process_that_fails_measures_nothing_and_the_others_are_measured(tmp_path: Path, sample: Sample) -> None:
    missing = VariantSpec("wide", "1", "fp32", "onnxruntime", tmp_path / "missing.onnx", threads=1)
    first, second = resident([missing, wide(tmp_path, 1)], sample, True, tmp_path / "work")
    assert first is None
    assert second is not None
