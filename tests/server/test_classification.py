"""The best classes of an output: order, ties, bounds, labels, and how they are written."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from server.classification import classified, top_classes, wants_classes
from server.errors import InvalidRequest
from server.messages import InferRequest, InferResponse, Layout, RequestedOutput
from server.tensors import Tensor, TensorSpec

LABELS = ("cat", "dog", "eel")


def texts(array: Tensor) -> Any:
    return np.vectorize(bytes.decode, otypes=[object])(array).tolist() if array.size else array.tolist()


def test_the_largest_come_first_with_their_labels() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [5, -1, 4]], np.float32)
    assert texts(top_classes(scores, 2, LABELS, per_row=True)) == [
        ["0.700000:1:dog", "0.200000:2:eel"],
        ["5.000000:0:cat", "4.000000:2:eel"],
    ]


def test_equals_come_in_their_order_and_nan_last() -> None:
    scores = np.array([[1, np.nan, 3, 1, 3, -np.inf]])
    assert texts(top_classes(scores, 9, (), per_row=True)) == [
        ["3.000000:2", "3.000000:4", "1.000000:0", "1.000000:3", "nan:1", "-inf:5"],
    ]


@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        (np.bool_, ["1:1", "0:0"]),
        (np.uint8, ["2:1", "0:0"]),
        (np.uint64, ["2:1", "0:0"]),
        (np.int64, ["2:1", "0:0"]),
        (np.float16, ["2.000000:1", "0.000000:0"]),
        (np.float64, ["2.000000:1", "0.000000:0"]),
        (ml_dtypes.bfloat16, ["2.000000:1", "0.000000:0"]),
    ],
)
def test_every_datatype_with_an_order(dtype: Any, written: list[str]) -> None:
    assert texts(top_classes(np.array([[0, 2]], dtype), 2, (), per_row=True)) == [written]


def test_integers_are_compared_as_such() -> None:
    scores = np.array([[2**63 - 2, 2**63 - 1, -(2**63)]])
    assert texts(top_classes(scores, 3, (), per_row=True)) == [[f"{2**63 - 1}:1", f"{2**63 - 2}:0", f"{-(2**63)}:2"]]


def test_shapes() -> None:
    scores = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    assert top_classes(scores, 4, (), per_row=True).shape == (2, 4)
    assert texts(top_classes(scores, 1, (), per_row=False)) == ["11:11"]
    assert texts(top_classes(np.arange(3), 2, (), per_row=True)) == [["0:0"], ["1:0"], ["2:0"]]
    assert top_classes(np.zeros((2, 0)), 4, (), per_row=True).shape == (2, 0)


def test_more_labels_than_classes_and_fewer() -> None:
    assert texts(top_classes(np.array([1, 2]), 2, LABELS, per_row=False)) == ["2:1:dog", "1:0:cat"]
    assert texts(top_classes(np.array([1, 2]), 2, ("one",), per_row=False)) == ["2:1", "1:0:one"]


VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, float("inf"), float("-inf")])


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=VALUES),
    st.integers(1, 25),
)
def test_it_is_a_stable_sort_of_each_row(scores: Tensor, count: int) -> None:
    for row, classes in zip(scores.tolist(), texts(top_classes(scores, count, (), per_row=True)), strict=True):
        found = [int(text.split(":")[1]) for text in classes]
        assert found == sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]


def asked(*outputs: RequestedOutput) -> InferRequest:
    return InferRequest("m", {}, Layout(()), outputs=outputs)


SPECS = (TensorSpec("y", "FP32", (-1, 3), labels=LABELS), TensorSpec("z", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (-1, 2)))


def test_only_the_outputs_that_ask_for_it_change() -> None:
    got: list[tuple[InferResponse, bool]] = []
    respond = classified(
        asked(RequestedOutput("z"), RequestedOutput("y", 1)), SPECS, lambda answer, final: got.append((answer, final)), batched=True
    )
    z, y = np.zeros((1, 2), np.float32), np.eye(3, dtype=np.float32)[:1]
    shared = {"z": z, "y": y}
    for final in (False, True):
        respond(InferResponse("m", "1", outputs=shared), final)
    respond(InferResponse("m", "1", error=InvalidRequest("no")), True)
    assert [final for _, final in got] == [False, True, True]
    assert list(got[0][0].outputs) == ["z", "y"]
    assert got[0][0].outputs["z"] is z
    assert texts(got[1][0].outputs["y"]) == [["1.000000:0:cat"]]
    assert got[2][0].outputs == {}
    assert shared["y"] is y


def test_nothing_is_put_in_between_where_nothing_is_asked() -> None:
    def respond(answer: InferResponse, final: bool) -> None: ...

    request = asked(RequestedOutput("y"))
    assert not wants_classes(request.outputs)
    assert classified(request, SPECS, respond, batched=True) is respond


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="class result not available for output 's' due to unsupported type 'BYTES'"):
        classified(asked(RequestedOutput("s", 1)), SPECS, lambda answer, final: None, batched=True)
