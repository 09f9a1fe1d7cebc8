"""Arrays of unlike length become one and come apart again, whatever their rank, axes and datatype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.padding import PadAxis, Padding, cut, filling, join, longest
from server.tensors import DTYPES, Tensor


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[Tensor], int, tuple[PadAxis, ...], Any]:
    """Arrays that differ on a batch axis and on the padded axes, and what pads them."""
    rank = draw(st.integers(2, 4))
    axis = draw(st.integers(0, rank - 1))
    others = [index for index in range(rank) if index != axis]
    padded = sorted(draw(st.sets(st.sampled_from(others), min_size=1)))
    fixed = [draw(st.integers(0, 3)) for _ in range(rank)]
    kind = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    arrays = []
    for number in range(draw(st.integers(1, 5))):
        shape = list(fixed)
        for index in (axis, *padded):
            shape[index] = draw(st.integers(1 if index == axis else 0, 4))
        values = np.arange(np.prod(shape)) + 1 + 10 * number
        texts = np.array([b"%d" % value for value in values] + [None], object)[:-1]
        arrays.append((texts if kind.name == "BYTES" else values.astype(kind.numpy)).reshape(shape))
    value = filling("" if kind.name == "BYTES" else False if kind.name == "BOOL" else 0, kind.numpy)
    return arrays, axis, tuple(PadAxis(index, f"d{index}") for index in padded), value


@given(ragged())
def test_what_is_joined_is_cut_back(given: tuple[list[Tensor], int, tuple[PadAxis, ...], Any]) -> None:
    arrays, axis, axes, value = given
    rows = sum(array.shape[axis] for array in arrays)
    shape = longest([array.shape for array in arrays], axis, rows, axes)
    out = np.full(shape, "left over" if arrays[0].dtype == object else 99).astype(arrays[0].dtype)
    join(arrays, axis, axes, value, out)
    start, filled = 0, 0
    for array in arrays:
        stop = start + array.shape[axis]
        own = {index: array.shape[index] for index, _ in axes}
        np.testing.assert_array_equal(cut(out, axis, (start, stop), own), array)
        filled += array.size
        start = stop
    outside = out.size - filled
    assert np.count_nonzero(out == value) >= outside, "what no request fills is the padding's value, not what was there before"


def test_only_what_lies_beyond_is_filled() -> None:
    arrays = [np.array([[1, 2, 3]]), np.array([[4], [5]])]
    out = np.full((3, 3), -1)
    join(arrays, 0, (PadAxis(1, "n"),), 0, out)
    assert out.tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]


TWO = Padding(
    {"ids": (PadAxis(1, "sequence"),), "mask": (PadAxis(1, "sequence"),), "image": (PadAxis(2, "h"), PadAxis(3, "w"))},
    named=frozenset({"sequence", "h", "w"}),
)


def test_cells_are_the_product_of_the_distinct_dims() -> None:
    assert TWO.cells({"ids": (2, 7), "mask": (2, 7)}) == 7
    assert TWO.cells({"ids": (2, 7), "image": (2, 3, 4, 5)}) == 7 * 4 * 5
    assert TWO.cells({"ids": (2, 0)}) == 1
    assert TWO.cells({}) == 1


def test_shapes_without_their_padded_axes() -> None:
    assert TWO.unpadded("image", (2, 3, 4, 5)) == (2, 3)
    assert TWO.unpadded("other", (2, 3)) == (2, 3)


def test_inputs_that_share_a_named_axis_must_agree() -> None:
    assert TWO.disagreement({"ids": (2, 7), "mask": (2, 7)}) is None
    assert TWO.disagreement({"ids": (2, 7), "mask": (2, 8)}) == ("sequence", "ids", 7, "mask", 8)
    unnamed = Padding({"a": (PadAxis(1, "axis 1"),), "b": (PadAxis(1, "axis 1"),)})
    assert unnamed.disagreement({"a": (1, 2), "b": (1, 3)}) is None
    assert unnamed.lengths({"a": (1, 2), "b": (1, 3)}) == {"axis 1": 3}


@pytest.mark.parametrize(
    ("value", "datatype", "message"),
    [
        (1, "BYTES", "expected text, got 1"),
        ("a", "BOOL", "expected true or false, got 'a'"),
        (2, "BOOL", "expected true or false, got 2"),
        (True, "INT8", "expected a number, got True"),
        (128, "INT8", "expected a whole number from -128 to 127, got 128"),
        (-1, "UINT16", "expected a whole number from 0 to 65535, got -1"),
        (float("inf"), "INT8", "expected a whole number from -128 to 127, got inf"),
        (1e39, "FP32", "1e+39 is beyond what float32 holds"),
        (1e39, "BF16", "1e+39 is beyond what bfloat16 holds"),
    ],
)
def test_values_that_are_no_elements(value: Any, datatype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        filling(value, DTYPES[datatype].numpy)
