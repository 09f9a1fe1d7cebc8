"""The nodes that 8 bits hurt most come first, and as few as it takes are kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from exporters.precision.ranges import Range, observe
from exporters.precision.sensitivity import fewest, noise_over_signal, weigh
from tests.server.models import value, write_model


@given(st.integers(1, 200), st.integers(1, 220))
def test_the_least_number_is_found(count: int, needed: int) -> None:
    asked: list[int] = []

    def holds(kept: int) -> bool:
        asked.append(kept)
        return kept >= needed

    assert fewest(count, holds) == (needed if needed <= count else None)
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(min(count, needed) + 1)) + 1
    assert all(1 <= kept <= count for kept in asked)


def test_noise_is_that_of_rounding_to_256_steps() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 200_000)
    scale = 4 / 255
    rounded = np.round(values / scale) * scale
    found = noise_over_signal(Range(-1.0, 3.0, float(np.sqrt((values**2).mean()))))
    assert found == pytest.approx(((rounded - values) ** 2).mean() / (values**2).mean(), rel=0.02)
    assert noise_over_signal(Range(0.0, 0.0, 0.0)) == 0.0
    assert noise_over_signal(Range(0.0, math.inf, math.inf)) == math.inf


def test_outliers_make_a_node_sensitive(tmp_path: Path) -> None:
    """Three equal layers; before the second, one column is a thousand times the others; the third's weights have one row like that,
    which is a channel's own and costs nothing, for each channel has its scale."""
    rng = np.random.default_rng(0)
    square = rng.normal(size=(8, 8)).astype(np.float32) / 8**0.5
    outlier = np.where(np.arange(8) == 3, 1000, 1).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h1"], name="first"),
        helper.make_node("Mul", ["h1", "outlier"], ["h2"], name="widen"),
        helper.make_node("MatMul", ["h2", "b"], ["h3"], name="second"),
        helper.make_node("Tanh", ["h3"], ["h4"], name="narrow"),
        helper.make_node("MatMul", ["h4", "c"], ["y"], name="third"),
    ]
    weights = {"a": square, "b": square, "c": square * outlier, "outlier": outlier}
    path = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", 8])], [value("y", ["N", 8])], weights)
    ranges = observe(path, [{"x": rng.normal(size=(64, 8)).astype(np.float32)}], threads=1)
    ranked = weigh(path, ranges, ("MatMul",))
    assert ranked[0].name == "second"
    assert {weighed.name for weighed in ranked} == {"first", "second", "third"}
    assert ranked[0].noise > 3 * ranked[1].noise
