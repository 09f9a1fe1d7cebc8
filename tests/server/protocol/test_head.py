"""Requests that are wrong in the head: each is refused with a text that names the member. The same in JSON and before binary data."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from server.errors import InvalidRequest, TidegateError
from server.messages import RegionSlice, SharedInput
from server.protocol import json_codec
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.head import MAX_DIMS, parse_head
from server.tensors import DTYPES

GOOD: dict[str, Any] = {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]}


def refusal(body: bytes) -> TidegateError:
    """The error for this text, as a whole body and as a head; they must agree."""
    with pytest.raises(TidegateError) as whole:
        json_codec.decode(body, "m", "")
    with pytest.raises(TidegateError) as head:
        BinaryDecoder().decode(body, len(body), "m", "")
    assert (type(whole.value), str(whole.value)) == (type(head.value), str(head.value))
    return whole.value


def one(**changes: Any) -> dict[str, Any]:
    """A good request with members of its one input changed; None takes a member out."""
    tensor = {**GOOD, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b" ", "isn't valid JSON"),
        (b'{"inputs":[', "isn't valid JSON"),
        (b'{"inputs":[]} trailing', "isn't valid JSON"),
        (b'{"id":"\xff"}', "isn't valid JSON"),
        (b'{"id":"\xff","x":NaN}', "isn't valid JSON"),
        (b'\xef\xbb\xbf{"inputs":[]}', "isn't valid JSON"),
        ('{"inputs":[]}'.encode("utf-16"), "isn't valid JSON"),
        (b'{"inputs":[NaN', "isn't valid JSON"),
        (b"NaN", "must be a JSON object, got nan"),
        (b"[]", "must be a JSON object, got []"),
        (b"null", "must be a JSON object, got None"),
        (b'"inputs"', "must be a JSON object, got 'inputs'"),
        (b"{}", "the request has no 'inputs'"),
    ],
)
def test_texts(body: bytes, text: str) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidRequest)
    assert text in str(error)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"inputs": None}, "the request has no 'inputs'"),
        ({"inputs": {}}, "'inputs' must be a list, got {}"),
        ({"inputs": "x"}, "'inputs' must be a list, got 'x'"),
        ({"inputs": [1]}, "inputs[0] must be an object, got 1"),
        ({"inputs": [GOOD, None]}, "inputs[1] must be an object, got None"),
        ({"inputs": [GOOD, GOOD]}, "input 'x' already exists in request"),
        ({"inputs": [GOOD], "id": 5}, "'id' must be a string of at most 1024 characters, got 5"),
        ({"inputs": [GOOD], "id": None}, "'id' must be a string of at most 1024 characters, got None"),
        ({"inputs": [GOOD], "id": "x" * 1025}, "'id' must be a string of at most 1024 characters, got 'xxx"),
        (one(name=None), "inputs[0]: 'name' must be a string of 1 to 256 characters, got None"),
        (one(name=""), "inputs[0]: 'name' must be a string of 1 to 256 characters, got ''"),
        (one(name="x" * 257), "inputs[0]: 'name' must be a string of 1 to 256 characters, got 'xxx"),
        (one(name=["x"]), "inputs[0]: 'name' must be a string of 1 to 256 characters, got ['x']"),
        (one(datatype=None), "input 'x': 'datatype' must be one of BOOL, UINT8"),
        (one(datatype="FLOAT"), "got 'FLOAT'"),
        (one(datatype="fp32"), "got 'fp32'"),
        (one(datatype=["FP32"]), "got ['FP32']"),
        (one(shape=None), f"input 'x': 'shape' must be a list of at most {MAX_DIMS} integers, got None"),
        (one(shape=2), f"'shape' must be a list of at most {MAX_DIMS} integers, got 2"),
        (one(shape=[1] * (MAX_DIMS + 1)), f"'shape' must be a list of at most {MAX_DIMS} integers, got [1, 1, 1"),
        (one(shape=["2"]), "'shape' must hold integers from 0 to 2**63 - 1, got ['2']"),
        (one(shape=[2.0]), "'shape' must hold integers from 0 to 2**63 - 1, got [2.0]"),
        (one(shape=[True, 2]), "'shape' must hold integers from 0 to 2**63 - 1, got [True, 2]"),
        (one(shape=[-1]), "'shape' must hold integers from 0 to 2**63 - 1, got [-1]"),
        (one(shape=[2**63]), "'shape' must hold integers from 0 to 2**63 - 1, got [92233"),
        (one(shape=[0, 2**62, 2**62]), "is empty, and its other axes are too large"),
        (one(shape=[2**62] * MAX_DIMS), "'data' holds 2 values, but shape"),
        (one(parameters=[]), "input 'x': 'parameters' must be an object, got []"),
        (one(parameters="x"), "input 'x': 'parameters' must be an object, got 'x'"),
        (one(data=None), "must have exactly one of 'data', parameter 'binary_data_size' and parameter 'shared_memory_region'; got none"),
        (one(parameters={"binary_data_size": 8}), "got 'data' and 'binary_data_size'"),
        (one(parameters={"shared_memory_region": "r"}), "got 'data' and 'shared_memory_region'"),
        (one(data=None, parameters={"binary_data_size": 8, "shared_memory_region": "r"}), "got 'binary_data_size' and 'shared"),
        (one(data=None, parameters={"binary_data_size": -8}), "input 'x': 'binary_data_size' must be an integer >= 0, got -8"),
        (one(data=None, parameters={"binary_data_size": "8"}), "input 'x': 'binary_data_size' must be an integer >= 0, got '8'"),
        (one(data=None, parameters={"binary_data_size": 8.0}), "input 'x': 'binary_data_size' must be an integer >= 0, got 8.0"),
        (one(data=None, parameters={"binary_data_size": True}), "input 'x': 'binary_data_size' must be an integer >= 0, got True"),
        (one(data=None, parameters={"binary_data_size": None}), "input 'x': 'binary_data_size' must be an integer >= 0, got None"),
        ({"inputs": [GOOD], "outputs": {}}, "'outputs' must be a list, got {}"),
        ({"inputs": [GOOD], "outputs": None}, "'outputs' must be a list, got None"),
        ({"inputs": [GOOD], "outputs": ["y"]}, "outputs[0] must be an object, got 'y'"),
        ({"inputs": [GOOD], "outputs": [{}]}, "outputs[0]: 'name' must be a string of 1 to 256 characters, got None"),
        ({"inputs": [GOOD], "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]}, "output 'OUTPUT0' already exists in request"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": 1}]}, "output 'y': 'parameters' must be an object, got 1"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "'binary_data' must be true or false, got 1"),
        (
            {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
            "output 'y': 'classification' must be an integer >= 0, got -1",
        ),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": True}}]}, "an integer >= 0, got True"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": "3"}}]}, "an integer >= 0, got '3'"),
        ({"inputs": [GOOD], "parameters": []}, "'parameters' must be an object, got []"),
        ({"inputs": [GOOD], "parameters": None}, "'parameters' must be an object, got None"),
        ({"inputs": [GOOD], "parameters": {"p": None}}, "parameter 'p' must be a string, a finite number or a boolean, got None"),
        ({"inputs": [GOOD], "parameters": {"p": [1]}}, "parameter 'p' must be a string, a finite number or a boolean, got [1]"),
        ({"inputs": [GOOD], "parameters": {"p": {"q": 1}}}, "parameter 'p' must be a string, a finite number or a boolean"),
        ({"inputs": [GOOD], "parameters": {"p": float("nan")}}, "parameter 'p' must be a string, a finite number or a boolean, got nan"),
        ({"inputs": [GOOD], "parameters": {"p": float("-inf")}}, "a finite number or a boolean, got -inf"),
        ({"inputs": [GOOD], "parameters": {"triton_x": 1}}, "parameter 'triton_x' is reserved"),
        ({"inputs": [GOOD], "parameters": {"binary_data_output": 1}}, "'binary_data_output' must be true or false, got 1"),
    ],
)
def test_members(document: dict[str, Any], text: str) -> None:
    error = refusal(json.dumps(document).encode())
    assert isinstance(error, InvalidRequest)
    assert text in str(error)
    assert len(str(error)) < 600


def at(region: Any = "r", **more: Any) -> dict[str, Any]:
    return {"shared_memory_region": region, "shared_memory_byte_size": 8, **more}


def in_region(parameters: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": parameters}]}


def test_what_lies_in_shared_memory() -> None:
    outputs = [{"name": "y", "parameters": at("o")}, {"name": "z", "parameters": {"binary_data": True}}]
    head = parse_head(orjson.dumps({**in_region(at(shared_memory_offset=4)), "outputs": outputs}))
    assert head.shared is not None
    assert head.shared.inputs == (SharedInput("x", "FP32", (2,), RegionSlice("r", 4, 8)),)
    assert head.shared.outputs == {"y": RegionSlice("o", 0, 8)}
    assert not head.inline
    assert parse_head(orjson.dumps({"inputs": [GOOD]})).shared is None


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"shared_memory_region": "r"}, "'shared_memory_byte_size' must be an integer from 0 to 2**63 - 1, got None"),
        (at(shared_memory_byte_size=True), "'shared_memory_byte_size' must be an integer"),
        (at(shared_memory_byte_size=-1), "'shared_memory_byte_size' must be an integer"),
        (at(shared_memory_offset=2**63), "'shared_memory_offset' must be an integer"),
        (at(shared_memory_offset=None), "'shared_memory_offset' must be an integer"),
        (at(7), "'shared_memory_region' must be a string of 1 to 256 characters, got 7"),
        (at("r" * 300), "'shared_memory_region' must be a string of 1 to 256 characters"),
    ],
)
def test_what_is_wrong_with_a_region(parameters: Any, text: str) -> None:
    for document, what in (
        (in_region(parameters), "input 'x'"),
        ({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": parameters}]}, "output 'y'"),
    ):
        assert f"{what}: {text}" in str(refusal(json.dumps(document).encode()))


def test_long_values_are_cut_in_the_text() -> None:
    for document in (one(datatype="x" * 100_000), {"inputs": [GOOD], "parameters": {"p" * 100_000: None}}, [[1] * 1000] * 1000):
        assert len(str(refusal(orjson.dumps(document)))) < 600


@pytest.mark.parametrize(
    "members",
    [
        {"unknown": {"a": [1]}, "model_name": 3},
        {"parameters": {"triton_enable_empty_final_response": True}},
        {"parameters": {}},
        {"outputs": []},
        {"id": ""},
    ],
)
def test_what_is_let_pass(members: dict[str, Any]) -> None:
    request, _ = json_codec.decode(orjson.dumps({**members, **one(parameters={"unknown": [1]}, unknown=1)}), "m", "")
    assert request.inputs["x"].tolist() == [1, 2]


@pytest.mark.parametrize("datatype", DTYPES)
def test_shapes_without_elements_or_axes(datatype: str) -> None:
    value = {"BOOL": True, "BYTES": "1"}.get(datatype, 1)
    for shape, data in (([0, 3], []), ([2, 0], [[], []]), ([], [value]), ([1] * MAX_DIMS, [value])):
        request, _ = json_codec.decode(orjson.dumps(one(datatype=datatype, shape=shape, data=data)), "m", "")
        assert request.inputs["x"].shape == tuple(shape)
        assert request.layout.tensors == (("x", datatype, tuple(shape)),)


def test_no_inputs_at_all_are_the_models_business() -> None:
    assert json_codec.decode(b'{"inputs":[]}', "m", "")[0].inputs == {}
