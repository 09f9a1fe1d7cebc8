"""Tensors of every datatype to send through the codecs, and requests spelled out by hand, without the project's own encoders."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from hypothesis import strategies as st

from server.tensors import DTYPES, Tensor, dtype_of

NUMBERS = [name for name, kind in DTYPES.items() if kind.size]
FLOATS = ["FP16", "BF16", "FP32", "FP64"]
INTEGERS = [name for name in NUMBERS if "INT" in name]

_SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, text: bool = False) -> Tensor:
    """An array of any datatype and a small shape, of any bits; BYTES are UTF-8 if `text`."""
    kind = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(_SHAPES)
    count = int(np.prod(shape))
    if not kind.size:
        strings = st.text(max_size=6).map(str.encode) if text else st.binary(max_size=6)
        array = np.empty(count, object)
        array[:] = draw(st.lists(strings, min_size=count, max_size=count))
        return array.reshape(shape)
    if kind.name == "BOOL":
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool).reshape(shape)
    return np.frombuffer(draw(st.binary(min_size=count * kind.size, max_size=count * kind.size)), kind.numpy).reshape(shape)


def raw(array: Tensor) -> bytes:
    """The values as the binary tensor extension has them."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(value)) + value for value in array.reshape(-1).tolist())
    return array.tobytes()


def plain(array: Tensor) -> list[Any]:
    """The values as JSON has them, nested as the shape is; only finite ones can be written by orjson."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = array.astype(np.float64) if dtype_of(array).name in FLOATS else array
    nested = values.tolist()
    return nested if isinstance(nested, list) else [nested]


def binary_request(inputs: Mapping[str, Tensor], **members: Any) -> tuple[bytes, int]:
    """A body with all inputs binary, and the length of its head."""
    head = orjson.dumps(
        {
            **members,
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": dtype_of(array).name,
                    "parameters": {"binary_data_size": len(raw(array))},
                }
                for name, array in inputs.items()
            ],
        }
    )
    return b"".join((head, *map(raw, inputs.values()))), len(head)


def json_request(datatype: str, shape: list[int], data: Any, **members: Any) -> bytes:
    """A body that is all JSON, with the one input `x`."""
    return orjson.dumps({**members, "inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]})


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Equal in datatype, shape and every bit; a NaN equals any NaN."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if got.dtype.kind == "O":
        assert got.tolist() == expected.tolist()
        return
    got, expected = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    if dtype_of(got).name in FLOATS:
        with np.errstate(invalid="ignore"):  # a signalling NaN
            nans = np.isnan(expected.astype(np.float64))
            assert (np.isnan(got.astype(np.float64)) == nans).all()
        got, expected = got[~nans], expected[~nans]
    assert got.tobytes() == expected.tobytes()
