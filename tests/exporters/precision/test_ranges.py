"""What a graph's tensors hold is measured over all calibration rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from exporters.plan import ExportError
from exporters.precision.ranges import Range, observe
from tests.server.models import embedding_model, value, write_model


def test_ranges_cover_all_batches(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "two"], ["sum"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Neg", ["sum"], ["y"]),
    ]
    path = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 2])], [value("y", ["N", 2])], {"two": np.full(2, 2.0, np.float32)})
    rows = np.array([[1.0, -1.0]], np.float32)
    found = observe(path, [{"x": rows, "unused": rows}, {"x": np.concatenate([rows, 5 * rows])}], threads=1)
    assert set(found) == {"x", "sum", "y"}
    assert (found["sum"].least, found["sum"].greatest) == (-3.0, 7.0)
    assert found["sum"].rms == pytest.approx(math.sqrt((9 + 1 + 9 + 1 + 49 + 9) / 6))
    assert (found["y"].least, found["y"].greatest) == (-7.0, 3.0)
    assert (found["x"].least, found["x"].greatest) == (-5.0, 5.0)


def test_a_tensor_that_is_always_empty(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [value("x", ["N", 2])], [value("y", ["N", 2])])
    assert observe(path, [{"x": np.zeros((0, 2), np.float32)}], threads=1)["y"] == Range(0.0, 0.0, 0.0)


def test_the_largest_is_infinite_where_a_value_is() -> None:
    assert Range(-3.0, 2.0, 1.0).largest == 3.0
    assert Range(-3.0, math.nan, 1.0).largest == math.inf


def test_rows_that_the_graph_can_not_take(tmp_path: Path) -> None:
    path = embedding_model(tmp_path / "m.onnx", vocabulary=4)
    with pytest.raises(ExportError, match=r"the graph can't be run on the calibration rows: .*out of data bounds"):
        observe(path, [{"tokens": np.full((1, 2), 9)}], threads=1)
