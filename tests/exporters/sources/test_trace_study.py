"""What PyTorch's answers say of a model: batched or not, which axes vary, what can't be exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.sources.samples import Arrays, Axes
from exporters.sources.trace_call import bind
from exporters.sources.trace_state import RefusedError
from exporters.sources.trace_study import MOST_ROWS, Study, checked_axes, study, traced_inputs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6)).astype(np.float32)


class Does(nn.Module):
    """A model that is one function of x."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def studied(function: Callable[[Tensor], Any], x: Any = X, axes: Axes | None = None, names: list[str] | None = None) -> Study:
    return study(bind(Does(function), {"x": x}), axes or {}, names or [], seed=0)


def test_a_model_with_a_row_for_each_row_is_batched() -> None:
    found = studied(lambda x: (x * 2, x.sum(1)), names=["double", "total"])
    assert found.unbatched is None
    result = found.result()
    assert [(spec["name"], spec["shape"], spec["batch_axis"]) for spec in result["outputs"]] == [("double", [-1, 6], 0), ("total", [-1], 0)]
    assert result["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 6], "batch_axis": 0, "max_shape": None}]
    assert result["rows"][:4] == [1, 2, 5, 8]
    assert sum(result["rows"]) == MOST_ROWS
    assert found.symbols() == {"x": {0: "batch"}, "double": {0: "batch"}, "total": {0: "batch"}}
    assert len(traced_inputs(found)["x"]) == 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.mean(), "output 'output_0' isn't per row: its shape is [] with 1 row"),
        (lambda x: x.sum(0), "isn't per row: its shape is [6] with 1 row"),
        (lambda x: (x, x.unsqueeze(0)), "output 'output_1' isn't per row: its shape is [1, 2, 6] with 2 rows"),
        (lambda x: x - x.mean(0, keepdim=True), "output 'output_0' of a row changes with the other rows of its batch"),
        (lambda x: x.softmax(0), "changes with the other rows"),
        (lambda x: x.reshape(4, 6) * 2, "forward fails with 1 row in place of 4: RuntimeError: shape '[4, 6]' is invalid"),
    ],
)
def test_why_a_model_is_not_batched(function: Callable[[Tensor], Any], reason: str) -> None:
    found = studied(function)
    assert reason in (found.unbatched or "")
    result = found.result()
    assert {spec["batch_axis"] for spec in (*result["inputs"], *result["outputs"])} == {None}
    assert result["inputs"][0]["shape"] == [4, 6]
    assert set(result["rows"]) == {1}


def test_inputs_that_do_not_agree_on_their_rows() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return x * scale

    for scale, said in ((np.ones(1, np.float32), "x has 4, scale has 1"), (np.float32(3) + np.zeros((), np.float32), "scale is a scalar")):
        found = study(bind(Scaled(), {"x": X, "scale": scale}), {}, [], seed=0)
        assert said in (found.unbatched or "")


def test_a_scalar_answer_has_a_shape() -> None:
    assert studied(lambda x: x.mean()).result()["outputs"][0]["shape"] == []


def test_lengths_that_vary() -> None:
    found = studied(lambda x: (x * 2, x[:, ::2], x.mean(1)), axes={"x": {0: None, 1: 9}})
    assert found.symbols() == {
        "x": {0: "batch", 1: "x_dim1"},
        "output_0": {0: "batch", 1: "x_dim1"},
        "output_1": {0: "batch", 1: "output_1_dim1"},
        "output_2": {0: "batch"},
    }
    assert found.result()["inputs"][0]["max_shape"] == [-1, 9]
    assert {inputs["x"].shape[1] for inputs, _, _ in found.runs} == {6, 3, 9}


def test_a_length_that_the_model_refuses() -> None:
    table = torch.zeros(8)
    with pytest.raises(RefusedError, match=re.escape("forward fails at another length of a dynamic axis (x_dim1 = 9)")):
        studied(lambda x: x + table[torch.arange(x.shape[1])], axes={"x": {1: 9}})


def test_a_fixed_first_axis_may_vary_by_declaration() -> None:
    found = studied(lambda x: x.sum(0), axes={"x": {0: None}})
    assert found.result()["inputs"][0]["shape"] == [-1, 6]
    assert found.result()["outputs"][0]["shape"] == [6]


@pytest.mark.parametrize(
    ("function", "names", "said"),
    [
        (lambda x: x + torch.rand(6), [], "output 'output_0' differs between two runs on the same input"),
        (lambda x: x * float("nan"), [], "output 'output_0' is NaN throughout"),
        (lambda x: None, [], "forward gives no tensor at all"),
        (lambda x: x, ["a", "b"], "--output-names has 2 (a, b); forward gives 1 (output_0)"),
        (lambda x: x, ["x"], "names must differ: inputs x; outputs x"),
        (lambda x: (x, x), ["a", "a"], "names must differ"),
        (lambda x: "text", [], "forward gives a str"),
    ],
)
def test_what_can_not_be_exported(function: Callable[[Tensor], Any], names: list[str], said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        studied(function, names=names)


def test_an_output_is_never_called_like_an_input() -> None:
    assert studied(lambda x: {"x": x * 2}).outputs == ("x_out",)


def test_a_float64_example_of_a_float32_model_gets_advice() -> None:
    with pytest.raises(RefusedError, match="example input 'x' is float64: save it as float32"):
        studied(nn.Linear(6, 2), x=X.astype(np.float64))


def test_rows_that_the_model_can_not_take_are_not_made_up() -> None:
    def picky(x: Tensor) -> Tensor:
        if not bool((x == x.round()).all()):
            raise ValueError("whole numbers only")
        return x * 2

    found = studied(picky, x=np.arange(8, dtype=np.float32).reshape(2, 4))
    assert found.unbatched is None
    assert all((inputs["x"] == inputs["x"].round()).all() for inputs, _, _ in found.runs)


def test_many_rows_are_all_used() -> None:
    x = RNG.normal(size=(MOST_ROWS + 50, 2)).astype(np.float32)
    found = studied(lambda x: x * 2, x=x)
    np.testing.assert_array_equal(np.concatenate([inputs["x"] for inputs, _, _ in found.runs]), x)


def test_samples_are_saved_by_index(tmp_path: Path) -> None:
    found = studied(lambda x: (x, x + 1))
    found.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["2.out.1"], arrays["2.in.0"] + 1)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ([1], "dynamic axes came as a list"),
        ({"y": [1]}, "dynamic axes name the input 'y'; the example has x"),
        ({"x": [2]}, "input 'x' has no axis 2: its shape in the example is [4, 6]"),
        ({"x": {1: 5}}, "axis 1 of 'x' is 6 long in the example, above its maximum 5"),
    ],
)
def test_axes_that_are_refused(declared: Any, said: str) -> None:
    example: Arrays = {"x": X}
    with pytest.raises(RefusedError, match=re.escape(said)):
        checked_axes(declared, example)


def test_axes_as_declared_in_code_or_json() -> None:
    for declared in ({"x": (0, 1)}, {"x": {0: None, 1: None}}, {"x": {"0": None, "1": None}}):
        assert checked_axes(declared, {"x": X}) == {"x": {0: None, 1: None}}
