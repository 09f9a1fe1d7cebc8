"""JSON values: what comes in is what the model gets, bit for bit, or it's refused with the input's name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest, TidegateError
from server.protocol.head import Layouts
from server.protocol.json_codec import MAX_STRINGS, decode
from server.tensors import DTYPES, Tensor, dtype_of
from tests.server.protocol.wire import FLOATS, INTEGERS, assert_same, json_request, plain, tensors


def decoded(body: bytes) -> Tensor:
    return decode(body, "m", "")[0].inputs["x"]


@given(tensors(text=True), st.booleans())
def test_every_datatype_comes_out_as_it_went_in(array: Tensor, flat: bool) -> None:
    values = plain(array.reshape(-1)) if flat else plain(array)
    if array.dtype == object:
        values = [value.decode() for value in array.reshape(-1).tolist()]
    text = json.dumps({"inputs": [{"name": "x", "datatype": dtype_of(array).name, "shape": array.shape, "data": values}]})
    assert_same(decoded(text.encode()), array)


def test_equal_requests_share_a_layout() -> None:
    layouts = Layouts()
    first, _ = decode(json_request("INT8", [2], [1, 2]), "m", "", layouts)
    second, _ = decode(json_request("INT8", [2], [3, 4], id="7"), "m", "", layouts)
    assert first.layout is second.layout
    assert second.id == "7"


def test_layouts_are_bounded() -> None:
    layouts = Layouts()
    for size in range(3000):
        decode(json_request("INT8", [1, 0, size], []), "m", "", layouts)
    assert 0 < len(layouts._known) <= 1024


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_take_their_whole_range_and_nothing_beyond(datatype: str) -> None:
    info = np.iinfo(DTYPES[datatype].numpy)
    assert decoded(json_request(datatype, [2], [int(info.min), int(info.max)])).tolist() == [info.min, info.max]
    for value in (int(info.min) - 1, int(info.max) + 1):
        body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": [0, value]}]})
        with pytest.raises(InvalidRequest, match=r"input 'x'.*at index 1"):
            decoded(body.encode())


@pytest.mark.parametrize("datatype", FLOATS)
def test_floats_take_integers_and_refuse_what_overflows(datatype: str) -> None:
    assert decoded(json_request(datatype, [3], [1, 2.0, -3])).astype(float).tolist() == [1.0, 2.0, -3.0]
    too_large = {"FP16": 65520.0, "BF16": 3.399e38, "FP32": 3.5e38, "FP64": 10**400}[datatype]
    body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": [0, too_large]}]})
    with pytest.raises(InvalidRequest, match=r"out of range for|isn't valid JSON: number is infinity"):
        decoded(body.encode())


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_the_infinities_are_read(datatype: str) -> None:
    body = json_request(datatype, [2, 2], "VALUES").replace(b'"VALUES"', b"[[NaN, Infinity],[-Infinity, 1.5]]")
    values = decoded(body).astype(float)
    assert np.isnan(values[0, 0])
    assert values[0, 1] == np.inf
    assert values[1].tolist() == [-np.inf, 1.5]


def test_an_integer_too_long_for_a_float_beside_nan() -> None:
    body = json_request("FP64", [2], "VALUES").replace(b'"VALUES"', b"[NaN, 1" + b"0" * 400 + b"]")
    with pytest.raises(InvalidRequest, match="out of range for FP64"):
        decoded(body)


@pytest.mark.parametrize(
    ("datatype", "value", "text"),
    [
        ("INT32", 2.5, "INT32 takes integers, got 2.5 at index 1"),
        ("INT32", 2.0, "INT32 takes integers, got 2.0 at index 1"),
        ("INT32", True, "INT32 takes integers, got True"),
        ("INT32", "2", "INT32 takes integers, got '2'"),
        ("INT32", None, "INT32 takes integers, got None"),
        ("INT32", {"a": 1}, "INT32 takes integers, got {'a': 1}"),
        ("FP32", "2", "FP32 takes numbers, got '2'"),
        ("FP32", True, "FP32 takes numbers, got True"),
        ("FP32", None, "FP32 takes numbers, got None"),
        ("BF16", False, "BF16 takes numbers, got False"),
        ("BOOL", 2, "BOOL takes true and false, got 2"),
        ("BYTES", 2, "BYTES takes strings, got 2"),
        ("BYTES", None, "BYTES takes strings, got None"),
        ("INT8", 300, "300 at index 1 is out of range for INT8"),
        ("UINT8", -1, "-1 at index 1 is out of range for UINT8"),
        ("UINT64", -1, "-1 at index 1 is out of range for UINT64"),
        ("FP32", [1], "'data' mixes lists and values at nesting level 1"),
    ],
)
def test_values_of_the_wrong_kind(datatype: str, value: Any, text: str) -> None:
    good = {"BOOL": True, "BYTES": "a"}.get(datatype, 1)
    with pytest.raises(InvalidRequest) as caught:
        decoded(json_request(datatype, [2], [good, value]))
    assert str(caught.value).startswith("input 'x': ")
    assert text in str(caught.value)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "INT32", "UINT8"])
@pytest.mark.parametrize("wrong", [True, False, None, "1", [1], {}], ids=repr)
@pytest.mark.parametrize("others", [0, 1, 2], ids="others are {}".format)
def test_one_wrong_value_among_many(datatype: str, wrong: Any, others: int) -> None:
    values = [*[others] * 3000, wrong, *[others] * 1000]
    with pytest.raises(InvalidRequest) as caught:
        decoded(json_request(datatype, [4001], values))
    mixed = "'data' mixes lists and values at nesting level 1"
    assert str(caught.value).endswith(mixed if isinstance(wrong, list) else f"got {wrong!r} at index 3000")


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8", "BOOL"])
@pytest.mark.parametrize("shape", [(5000,), (50, 100), (1, 2, 2500)], ids=str)
def test_many_values_nested_and_flat(datatype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).integers(0, 2 if datatype == "BOOL" else 100, shape).astype(DTYPES[datatype].numpy)
    assert_same(decoded(json_request(datatype, list(shape), values.tolist())), values)


def test_nan_for_an_integer_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="INT32 takes integers, got nan at index 0"):
        decoded(json_request("INT32", [1], "V").replace(b'"V"', b"[NaN]"))


@pytest.mark.parametrize(
    ("shape", "data", "text"),
    [
        ([2, 2], [1, 2, 3], "'data' holds 3 values, but shape [2, 2] takes 4"),
        ([2], [[1, 2], [3, 4]], "'data' holds 4 values, but shape [2] takes 2"),
        ([0], [1], "'data' holds 1 values, but shape [0] takes 0"),
        ([1], [], "'data' holds 0 values, but shape [1] takes 1"),
        ([2**32, 2**32], [1], "takes 18446744073709551616"),
        ([1, 2**40], [1], "takes 1099511627776"),
        ([1], 1, "'data' must be a list, got 1"),
        ([1], None, "'data' must be a list, got None"),
        ([1], "a", "'data' must be a list, got 'a'"),
    ],
)
def test_counts_that_do_not_match(shape: list[int], data: Any, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decoded(json_request("INT32", shape, data))
    assert text in str(caught.value)


def test_nesting() -> None:
    def nested(levels: int) -> bytes:
        return json_request("INT32", [1], "V").replace(b'"V"', b"[" * levels + b"1" + b"]" * levels)

    assert decoded(nested(100)).tolist() == [1]
    with pytest.raises(InvalidRequest, match="nested deeper than 100"):
        decoded(nested(101))
    for levels in (5000, 500_000):
        with pytest.raises(InvalidRequest, match="isn't valid JSON"):
            decoded(nested(levels))
        with pytest.raises(InvalidRequest, match="nested too deep"):
            decoded(nested(levels).replace(b"1]", b"NaN]"))


def test_strings() -> None:
    values = ["", "a\0b", "ünïcode 🎉", "x" * 70_000]
    assert decoded(json_request("BYTES", [2, 2], values)).tolist() == [[b"", b"a\0b"], [values[2].encode(), values[3].encode()]]
    with pytest.raises(InvalidRequest, match="at most 262144 elements"):
        decoded(json_request("BYTES", [MAX_STRINGS + 1], [""] * (MAX_STRINGS + 1)))


def test_half_a_surrogate_pair_is_refused_beside_nan_too() -> None:
    for extra in (b"", b',"parameters":{"t":NaN}'):
        body = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"data":["\\ud800"]}]%b}' % extra
        with pytest.raises(InvalidRequest, match="isn't valid JSON"):
            decoded(body)


def test_binary_data_without_a_head_length() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    with pytest.raises(InvalidRequest, match=r"expecting 4 additional bytes for model 'm'.*Inference-Header-Content-Length missing"):
        decode(orjson.dumps({"inputs": [tensor]}), "m", "")
    tensor["parameters"] = {"binary_data_size": 0}
    with pytest.raises(InvalidRequest, match="Expected 4, got 0"):
        decode(orjson.dumps({"inputs": [tensor]}), "m", "")
    tensor["shape"] = [0, 3]
    assert decode(orjson.dumps({"inputs": [tensor]}), "m", "")[0].inputs["x"].shape == (0, 3)


@given(st.binary(max_size=40), st.data())
def test_cut_and_changed_bodies_raise_nothing_but_our_errors(noise: bytes, data: st.DataObject) -> None:
    body = json_request("FP32", [1, 3], [[1, 2.5, 3]], id="7", parameters={"priority": 1}, outputs=[{"name": "y"}])
    at = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(at, len(body)))
    with contextlib.suppress(TidegateError):
        decode(body[:at] + noise + body[end:], "m", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "classification", "binary_data", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["id", "inputs", "outputs", "parameters"]), JSON | st.lists(JSON, max_size=2)))
def test_documents_of_any_make_raise_nothing_but_our_errors(document: dict[str, Any]) -> None:
    with contextlib.suppress(TidegateError):
        decode(json.dumps(document).encode(), "m", "")
