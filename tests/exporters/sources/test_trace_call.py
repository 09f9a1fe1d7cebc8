"""How a model is called: names of inputs and outputs, whatever its signature and answer."""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.sources.trace_call import bind, flat
from exporters.sources.trace_state import RefusedError

X = np.ones((2, 3), np.float32)


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
        return left - right if scale is None else (left - right) * scale


class Open(nn.Module):
    def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
        return sum((*tensors, *named.values()), torch.zeros(2, 3))


def test_names_of_the_signature() -> None:
    call = bind(Two(), {"right": X, "left": 3 * X})
    np.testing.assert_array_equal(call.answer(call.example)[0], 2 * X)
    assert list(bind(Two(), {"left": X, "right": X, "scale": X}).example) == ["left", "right", "scale"]


def test_one_input_may_be_called_otherwise() -> None:
    call = bind(nn.Sequential(nn.Identity()), {"image": X})
    assert list(call.example) == ["image"]
    np.testing.assert_array_equal(call.answer({"image": X})[0], X)


def test_nameless_arrays_go_by_position_and_take_the_names_of_the_signature() -> None:
    call = bind(Two(), {"arr_0": 3 * X, "arr_1": X})
    assert list(call.example) == ["left", "right"]
    np.testing.assert_array_equal(call.answer(call.example)[0], 2 * X)


def test_open_signatures_take_any_name() -> None:
    assert list(bind(Open(), {"a": X, "b": X}).example) == ["a", "b"]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (["left"], "forward takes (left, right, scale)"),
        (["left", "wrong"], "the example's names don't fit: it has left, wrong; forward takes (left, right, scale)"),
        (["left", "scale"], "the example lacks right: it has left, scale"),
        (["arr_0"], "forward takes (left, right, scale)"),
        (["arr_0", "arr_1", "arr_2", "arr_3"], "forward takes (left, right, scale)"),
    ],
)
def test_names_that_do_not_fit(example: list[str], said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        bind(Two(), dict.fromkeys(example, X))


def test_a_run_leaves_its_inputs_alone() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1)

    given = X.copy()
    bind(InPlace(), {"x": given}).answer({"x": given})
    np.testing.assert_array_equal(given, X)


Pair = namedtuple("Pair", "first second")


@dataclass
class Scores:
    logits: Tensor
    hidden: list[Tensor] | None = None


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (torch.ones(1), ["output_0"]),
        ((torch.ones(1), torch.ones(1)), ["output_0", "output_1"]),
        ((torch.ones(1), (torch.ones(1), None, torch.ones(1))), ["output_0", "output_1_0", "output_1_2"]),
        ({"logits": torch.ones(1), 3: torch.ones(1), "no": None}, ["logits", "3"]),
        ({"hidden": [torch.ones(1), torch.ones(1)]}, ["hidden_0", "hidden_1"]),
        (Pair(torch.ones(1), {"deep": torch.ones(1)}), ["first", "second_deep"]),
        (Scores(torch.ones(1)), ["logits"]),
        (Scores(torch.ones(1), [torch.ones(1)]), ["logits", "hidden_0"]),
        (None, []),
    ],
)
def test_names_of_answers(answer: Any, names: list[str]) -> None:
    assert [name for name, _ in flat(answer)] == names


def test_answers_that_hold_no_tensors() -> None:
    with pytest.raises(RefusedError, match="forward gives a float in loss; only tensors"):
        list(flat({"logits": torch.ones(1), "loss": 0.5}))
