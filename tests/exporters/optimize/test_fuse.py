"""Level 3 fuses what a transformer has and says what it found; it leaves other graphs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.formats.to_onnx import check
from exporters.optimize.fuse import DOMAIN, attention_shape, fuse
from exporters.plan import ExportError
from server.backends.base import VariantSpec
from server.backends.registry import backend_named
from server.tensors import Tensor
from tests.server.models import linear_model, value, write_model

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 3, 8)).astype(np.float32)


def block(path: Path) -> Path:
    """x + GELU(x @ w + b) @ v, normalised: a transformer's feed-forward half."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["b", "h"], ["t"]),
        helper.make_node("Div", ["t", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["f"]),
        helper.make_node("Mul", ["t", "f"], ["g"]),
        helper.make_node("Mul", ["g", "half"], ["u"]),
        helper.make_node("MatMul", ["u", "v"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["n"]),
        helper.make_node("Add", ["n", "x"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "scale", "shift"], ["y"], axis=-1),
    ]
    weights: dict[str, Tensor] = {
        **{name: RNG.normal(size=shape).astype(np.float32) for name, shape in (("w", (8, 16)), ("b", (16,)), ("v", (16, 8)), ("c", (8,)))},
        **{name: np.array(number, np.float32) for name, number in {"root": 2**0.5, "one": 1.0, "half": 0.5}.items()},
        **{"scale": np.ones(8, np.float32), "shift": np.zeros(8, np.float32)},
    }
    return write_model(path, nodes, [value("x", ["N", "T", 8])], [value("y", ["N", "T", 8])], weights)


def answer(path: Path) -> Tensor:
    return backend_named("onnxruntime").open(VariantSpec("m", "1", "fp32", "onnxruntime", path, threads=1)).run({"x": ROWS}, 5)["y"]


@pytest.mark.parametrize(("approximate", "gelu", "gap"), [(False, "BiasGelu", 1e-5), (True, "FastGelu", 1e-2)])
def test_a_feed_forward_block(tmp_path: Path, approximate: bool, gelu: str, gap: float) -> None:
    path, made = block(tmp_path / "m.onnx"), tmp_path / "fused.onnx"
    counts = fuse(path, made, approximate)
    assert counts[gelu] == 1
    assert counts["SkipLayerNormalization"] == 1
    graph = check(made, domains=(DOMAIN,))
    assert graph.inputs == {"x": (-1, -1, 8)}
    assert graph.nodes < check(path).nodes
    with pytest.raises(ExportError, match=r"isn't portable: it has operators of com\.microsoft"):
        check(made)
    np.testing.assert_allclose(answer(made), answer(path), atol=gap)


def test_nothing_to_fuse(tmp_path: Path) -> None:
    assert fuse(linear_model(tmp_path / "m.onnx"), tmp_path / "fused.onnx") == {}
    assert not (tmp_path / "fused.onnx").exists()


def test_a_graph_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"onnxruntime can't fuse the graph .*--optimization-level 2 does without"):
        fuse(tmp_path / "m.onnx", tmp_path / "fused.onnx")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((0, 0, 4, 2), (4, 8)),
        ((0, 0, -1, 2), (4, 8)),
        ((0, 0, 8), (0, 0)),
        ((0, 0, 1, 8), (0, 0)),
        ((0, 0, 5, 2), (0, 0)),
        ((0, 0, -1, 3), (0, 0)),
    ],
)
def test_heads_are_read_off_the_graph(tmp_path: Path, parts: Sequence[int], expected: tuple[int, int]) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"], axis=-1),
        helper.make_node("Constant", [], ["last"], value=onnx.numpy_helper.from_array(np.array(parts[-1:]))),
        helper.make_node("Concat", ["first", "last"], ["shape"], axis=0),
        helper.make_node("Reshape", ["n", "shape"], ["y"]),
    ]
    weights: dict[str, Tensor] = {"scale": np.ones(8, np.float32), "shift": np.zeros(8, np.float32), "first": np.array(parts[:-1])}
    path = write_model(tmp_path / "m.onnx", nodes, [value("x", ["N", "T", 8])], [value("y", None)], weights)
    assert attention_shape(path) == expected
