"""An ONNX file is a source like a module: its own answers are the reference, and what can't be one is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters.pipeline import export
from exporters.plan import ModelRef, PlanError
from exporters.sources.names import find_model
from exporters.sources.trace_onnx import axes, open_call
from exporters.sources.trace_state import RefusedError
from exporters.sources.trace_study import study
from server.repository.manifest import file_sha256
from tests.exporters.conftest import Remembers, plan, served
from tests.server.models import embedding_model, identity_model, linear_model, two_inputs_model, value, write_model


def test_a_file_becomes_an_entry(user: Path, reporter: Remembers) -> None:
    path = linear_model(user / "net.onnx")
    asked = replace(plan(user, "Mlp", None), model=ModelRef("net.onnx", "make", (), onnx=path), precisions=("fp32", "int8"))
    exported = export(asked, reporter)
    assert (exported.manifest.source.kind, exported.manifest.source.weights_sha256) == ("onnx", file_sha256(path))
    assert exported.manifest.unbatched is None
    assert [variant.parity.reference for variant in exported.manifest.variants] == ["onnx-as-given"] * 2
    assert (reporter.steps[0], reporter.steps[3]) == ("read net.onnx", "prove it against the file as it is")
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    fp32, int8 = (served(exported, {"x": x}, precision)["y"] for precision in ("fp32", "int8"))
    assert 0 < np.abs(fp32 - int8).max() < 0.1 * np.abs(fp32).max()


def test_an_example_is_made_from_the_signature(tmp_path: Path) -> None:
    call = open_call(two_inputs_model(tmp_path / "m.onnx"), None)
    assert {name: array.shape for name, array in call.example.items()} == {"a": (4, 4), "b": (4, 4)}
    assert call.traceable.names == ("total", "product")
    assert study(call, {}, [], 0).unbatched is None  # type: ignore[arg-type]
    tokens = open_call(embedding_model(tmp_path / "e.onnx", vocabulary=4), None)
    assert set(np.unique(tokens.example["tokens"])) <= {0, 1}
    assert axes(tokens) == {"tokens": {1: None}}


def test_names_and_types_of_an_example_must_fit(tmp_path: Path) -> None:
    path = linear_model(tmp_path / "m.onnx")
    with pytest.raises(RefusedError, match=r"names don't fit: it has z; m\.onnx takes x"):
        open_call(path, {"z": np.zeros((2, 8), np.float32)})
    with pytest.raises(RefusedError, match=r"example input 'x' is float64; m\.onnx takes tensor\(float\)"):
        open_call(path, {"x": np.zeros((2, 8))})
    with pytest.raises(RuntimeError, match=r"Got invalid dimensions|INVALID_ARGUMENT"):
        open_call(path, None).answer({"x": np.zeros((2, 5), np.float32)})


def broken(path: Path) -> Path:
    path.write_bytes(b"not a model")
    return path


def halved(path: Path) -> Path:
    weights = {"c": np.ones(4, np.float16)}
    node = helper.make_node("Add", ["x", "c"], ["y"])
    return write_model(path, [node], [value("x", ["N", 4], "FP16")], [value("y", ["N", 4], "FP16")], weights)


def quantized(path: Path) -> Path:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    return write_model(path, [node], [value("x", ["N", 4])], [value("y", ["N", 4], "UINT8")])


def from_the_future(path: Path) -> Path:
    model = onnx.load(linear_model(path))
    model.opset_import[0].version = 99
    onnx.save(model, path)
    return path


def texts(path: Path) -> Path:
    return identity_model(path, "BYTES")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (broken, "m.onnx isn't an ONNX file"),
        (halved, "m.onnx holds FLOAT16: expected the FP32 file"),
        (quantized, "m.onnx holds DynamicQuantizeLinear: expected the FP32 file"),
        (from_the_future, "m.onnx is of opset 99; onnx"),
        (texts, "is tensor(string), for which no example can be made"),
    ],
)
def test_what_is_refused(tmp_path: Path, build: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        open_call(build(tmp_path / "m.onnx"), None)


@pytest.mark.parametrize(
    ("changes", "said"), [({"output_names": ("a",)}, "the outputs of m.onnx have names"), ({"weights": Path("w.pt")}, "brings its own")]
)
def test_what_makes_no_sense_of_a_file(user: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        replace(plan(user, "Mlp", None), model=ModelRef("m.onnx", "make", (), onnx=user / "m.onnx"), **changes)


def test_it_is_found_by_its_name(tmp_path: Path) -> None:
    path = linear_model(tmp_path / "m.onnx")
    found = find_model("m.onnx", tmp_path)
    assert (found.label, found.onnx) == ("m.onnx", path)
    with pytest.raises(PlanError, match=r"--model none\.onnx: no file"):
        find_model("none.onnx", tmp_path)
