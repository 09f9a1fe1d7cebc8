"""What is asked for is checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.plan import GATES, ModelRef, Plan, PlanError, parse_dynamic, parse_gates, parse_prune, parse_target

MODEL = ModelRef("nets.py:Net", "Net", (Path(),), file=Path("nets.py"))


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {"model": MODEL, "name": "net", "repository": Path("models")}
    return Plan(**(given | changes))


def test_a_plan_has_defaults() -> None:
    made = plan()
    assert (made.level, made.precisions, made.format, made.target) == (2, ("fp32",), "onnx", "cpu")
    assert not made.calibrates
    assert plan(precisions=("fp32", "fp16")).calibrates


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"level": 5}, "--optimization-level 5: not built yet; built are 0, 1, 2, 3, 4"),
        ({"precisions": ("fp32", "int4")}, "--precisions int4: not built yet; built are fp32, fp16, int8"),
        ({"precisions": ()}, "--precisions names none"),
        ({"precisions": ("int8wo",), "target": "tensorrt"}, "--precisions int8wo: TensorRT takes INT8 weights with INT8 activations only"),
        ({"precisions": ("fp16", "fp16")}, "names one twice"),
        ({"precisions": ("fp32", "bf16")}, "--precisions bf16: onnxruntime has no bf16 on CPUs, and a T4 none at all; ask for fp16"),
        ({"precisions": ("fp32", "fp16"), "output": Path("o.onnx")}, "--output takes one precision, not fp32, fp16"),
        ({"calibration": Path("no.npz")}, "--calibration no.npz: no such file"),
        ({"format": "tensorrt"}, "--format tensorrt: not built yet"),
        ({"name": "../up"}, "can't be a model's name"),
        ({"name": ".hidden"}, "can't be a model's name"),
        ({"name": "n" * 256}, "can't be a model's name"),
        ({"name": ""}, "can't be a model's name"),
        ({"repository": None}, "nowhere to write"),
        ({"output": Path("my model.onnx")}, "a manifest can't name that file"),
        ({"version": 0}, "from 1 on"),
        ({"timeout": 0}, "seconds above 0"),
        ({"weights": Path("no.pt")}, "--weights no.pt: no such file"),
        ({"example": Path("no.npz")}, "--example no.npz: no such file"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said.replace("(", r"\(")):
        plan(**changes)


def test_dynamic_axes_are_parsed() -> None:
    assert parse_dynamic(()) is None
    assert parse_dynamic(("ids:0,1=512", "x:2")) == {"ids": {0: None, 1: 512}, "x": {2: None}}
    assert parse_dynamic(("a:b:1",)) == {"a:b": {1: None}}


@pytest.mark.parametrize("text", ["ids", ":1", "ids:", "ids:one", "ids:-1", "ids:1=", "ids:1,,2"])
def test_bad_dynamic_axes(text: str) -> None:
    with pytest.raises(PlanError, match=r"expected NAME:AXIS\[=MAX\]"):
        parse_dynamic((text,))


def test_targets() -> None:
    assert parse_target("tensorrt") == "tensorrt"
    with pytest.raises(PlanError, match="--target gpu: expected cpu, cuda, tensorrt"):
        parse_target("gpu")


def test_gates_are_changed_by_precision() -> None:
    assert parse_gates(()) == GATES
    found = parse_gates(("int8:cosine=0.9,metric=.05", "fp16:relative=1e-3"))
    assert (found["int8"].cosine, found["int8"].metric, found["int8"].relative) == (0.9, 0.05, GATES["int8"].relative)
    assert found["fp16"].relative == 1e-3
    assert (parse_gates(("int8:rows=12",))["int8"].rows, found["int8"].rows) == (12, 59)
    assert found["fp32"] == GATES["fp32"]
    assert GATES["int8"].tightened().cosine == pytest.approx(0.984)


@pytest.mark.parametrize(
    "text", ["int8", "int4:cosine=1", "int8:cosine", "int8:cosine=2", "int8:speed=0.5", "int8:cosine=nan", "int8:rows=0.5"]
)
def test_bad_gates(text: str) -> None:
    with pytest.raises(PlanError, match="--tolerate"):
        parse_gates((text,))


def test_a_share_to_prune() -> None:
    assert (parse_prune(None), parse_prune("0.25"), parse_prune(".5")) == (None, 0.25, 0.5)
    with pytest.raises(PlanError, match=r"--prune 2:4: .*a T4 has 7\.5, and would compute the zeros; give a share"):
        parse_prune("2:4")
    for text in ("0", "1", "-0.1", "half", "1:4"):
        with pytest.raises(PlanError, match=r"expected the share of channels to take away, above 0 and below 1"):
            parse_prune(text)
    with pytest.raises(PlanError, match="is a graph already"):
        plan(model=ModelRef("m.onnx", "make", (), onnx=Path("m.onnx")), prune=0.5)
