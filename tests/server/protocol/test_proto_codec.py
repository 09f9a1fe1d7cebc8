"""ModelInferRequest read and ModelInferResponse written, held against the stock client's own messages in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as stock
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from server.errors import BackendFailure, BodyTooLarge, InvalidRequest, TidegateError
from server.messages import InferRequest, InferResponse, RegionSlice, RequestedOutput, Shared, SharedInput
from server.protocol.head import Layouts
from server.protocol.proto.messages import methods_of
from server.protocol.proto_codec import ProtoDecoder
from server.protocol.proto_encode import ProtoEncoder, streamed_error
from server.tensors import DTYPES, Tensor, dtype_of
from tests.server.protocol.wire import assert_same, raw, tensors

LISTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def message(inputs: Mapping[str, Tensor], typed: bool = False, **fields: Any) -> Any:
    """A request in the stock client's class."""
    request = service_pb2.ModelInferRequest(**{"model_name": "m", **fields})
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=dtype_of(array).name, shape=array.shape)
        if typed:
            getattr(tensor.contents, LISTS[tensor.datatype]).extend(array.reshape(-1).tolist())
        else:
            request.raw_input_contents.append(raw(array))
    return request


def decode(body: bytes, max_typed: int = 1 << 20) -> InferRequest:
    """Decoded twice by one decoder: what the second finds kept must say the same."""
    decoder = ProtoDecoder(max_typed, Layouts())
    first, second = decoder.decode(body), decoder.decode(body)
    assert first.layout is second.layout
    for name, array in first.inputs.items():
        assert_same(second.inputs[name], array)
    plain = [(one.model, one.version, one.id, one.outputs, dict(one.parameters), one.shared) for one in (first, second)]
    assert plain[0] == plain[1]
    return second


# Requests


@given(arrays=st.lists(tensors(), max_size=3), request_id=st.text(max_size=8), version=st.sampled_from(["", "12"]))
def test_raw(arrays: list[Tensor], request_id: str, version: str) -> None:
    inputs = {f"input{index}": array for index, array in enumerate(arrays)}
    body = message(inputs, id=request_id, model_version=version).SerializeToString()
    request = decode(body)
    assert (request.model, request.version, request.id, request.outputs) == ("m", version, request_id, ())
    assert request.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        assert_same(request.inputs[name], array)
        if array.nbytes and dtype_of(array).name not in ("BOOL", "BYTES"):
            assert np.shares_memory(request.inputs[name], np.frombuffer(body, np.uint8))


@given(array=tensors().filter(lambda array: dtype_of(array).name in LISTS))
def test_typed(array: Tensor) -> None:
    (read,) = decode(message({"x": array}, typed=True).SerializeToString()).inputs.values()
    assert_same(read, array)


@given(array=tensors(), cut=st.integers(0, 200))
def test_a_message_that_ends_early_is_refused_or_another_one(array: Tensor, cut: int) -> None:
    whole = message({"x": array}, id="7").SerializeToString()
    decoder = ProtoDecoder(1 << 20)
    decoder.decode(whole)
    try:
        decoder.decode(whole[: min(cut, len(whole) - 1)])
    except InvalidRequest:
        return
    service_pb2.ModelInferRequest.FromString(whole[: min(cut, len(whole) - 1)])  # protobuf takes it too


@given(noise=st.binary(max_size=60))
def test_noise_is_refused_or_a_message(noise: bytes) -> None:
    try:
        ProtoDecoder(1 << 20).decode(noise)
    except TidegateError:
        return
    service_pb2.ModelInferRequest.FromString(noise)


def test_raw_contents_are_those_of_the_inputs_that_are_in_no_region() -> None:
    request = message({"a": X, "b": X + 1})
    put = request.inputs.add(name="c", datatype="FP32", shape=[2])
    request.inputs[1].CopyFrom(put)
    request.inputs[2].CopyFrom(service_pb2.ModelInferRequest.InferInputTensor(name="b", datatype="FP32", shape=X.shape))
    for name, value in (("shared_memory_offset", 4), ("shared_memory_byte_size", 8)):
        request.inputs[1].parameters[name].int64_param = value
        request.outputs.add(name=f"y {value}").parameters[name].int64_param = value
    request.inputs[1].parameters["shared_memory_region"].string_param = "r"
    request.outputs[1].parameters["shared_memory_region"].string_param = "o"
    decoded = decode(request.SerializeToString())
    assert_same(decoded.inputs["a"], X)
    assert_same(decoded.inputs["b"], X + 1)
    assert list(decoded.inputs) == ["a", "b"]
    assert [name for name, _, _ in decoded.layout.tensors] == ["a", "c", "b"]
    assert decoded.shared == Shared((SharedInput("c", "FP32", (2,), RegionSlice("r", 4, 8)),), {"y 8": RegionSlice("o", 0, 8)})


def test_all_inputs_in_regions_and_none() -> None:
    request = message({})
    request.inputs.add(name="c", datatype="FP32", shape=[2]).parameters["shared_memory_byte_size"].int64_param = 8
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert decode(request.SerializeToString()).shared == Shared((SharedInput("c", "FP32", (2,), RegionSlice("r", 0, 8)),), {})
    assert decode(message({"x": X}).SerializeToString()).shared is None


def test_everything_else_that_a_request_says() -> None:
    request = message({"x": X}, id="ü")
    for name, value in (
        ("bool_param", True),
        ("int64_param", -5),
        ("string_param", "s"),
        ("double_param", 0.5),
        ("uint64_param", 2**64 - 1),
    ):
        setattr(request.parameters[name], name, value)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.outputs.add(name="b")
    request.outputs.add(name="a").parameters["classification"].int64_param = 3
    decoded = decode(request.SerializeToString())
    assert decoded.outputs == (RequestedOutput("b"), RequestedOutput("a", 3))
    assert dict(decoded.parameters) == {
        "bool_param": True,
        "int64_param": -5,
        "string_param": "s",
        "double_param": 0.5,
        "uint64_param": 2**64 - 1,
        "triton_enable_empty_final_response": True,
    }


def test_requests_that_differ_in_their_id_share_what_is_known() -> None:
    decoder = ProtoDecoder(1 << 20)
    requests = [decoder.decode(message({"x": X}, id=text).SerializeToString()) for text in ("", "1", "ü", "a longer one" * 20)]
    assert len({id(request.layout) for request in requests}) == 1
    assert [request.id for request in requests] == ["", "1", "ü", "a longer one" * 20]


def test_fields_in_another_order_and_unknown_ones_mean_the_same() -> None:
    whole = message({"x": X}, id="7", model_version="3")
    tail = service_pb2.ModelInferRequest(id="7", model_version="3").SerializeToString()
    whole.ClearField("id")
    whole.ClearField("model_version")
    for body in (whole.SerializeToString() + tail, whole.SerializeToString() + b"\x98\x06\x05" + tail, tail + whole.SerializeToString()):
        request = decode(body)
        assert (request.model, request.version, request.id) == ("m", "3", "7")
        assert_same(request.inputs["x"], X)


def changed(change: Callable[[Any], Any], typed: bool = False) -> bytes:
    request = message({"x": X}, typed)
    change(request)
    written: bytes = request.SerializeToString()
    return written


def region(request: Any) -> None:
    request.ClearField("raw_input_contents")
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"


def classify(request: Any) -> None:
    request.outputs.add(name="y").parameters["classification"].int64_param = -1


def shaped(*shape: int, datatype: str = "FP32") -> Callable[[Any], Any]:
    def change(request: Any) -> None:
        request.inputs[0].shape[:] = shape
        request.inputs[0].datatype = datatype

    return change


def typed_list(datatype: str, field: str, values: list[Any]) -> Callable[[Any], Any]:
    def change(request: Any) -> None:
        request.inputs[0].datatype = datatype
        request.inputs[0].shape[:] = [len(values)]
        request.inputs[0].ClearField("contents")
        getattr(request.inputs[0].contents, field).extend(values)

    return change


REFUSED: Mapping[str, tuple[bytes, type[TidegateError], str]] = {
    "no message": (b"\x0a\x05m", InvalidRequest, "the request's 3 bytes aren't a valid inference.ModelInferRequest"),
    "a text that isn't UTF-8": (b"\x0a\x01\xff", InvalidRequest, "aren't a valid inference.ModelInferRequest"),
    "a group": (b"\x0b\x0c", InvalidRequest, "aren't a valid inference.ModelInferRequest"),
    "an endless varint": (b"\x98\x06" + b"\x80" * 20, InvalidRequest, "aren't a valid inference.ModelInferRequest"),
    "too many fields": (b"\x3a\x00" * 5000, InvalidRequest, "at most 4096 parameters, inputs, outputs and raw_input_contents"),
    "too many inputs": (b"\x2a\x00" * 1025, InvalidRequest, "at most 1024 inputs, got 1025"),
    "a model's name": (
        changed(lambda r: setattr(r, "model_name", "m" * 300)),
        InvalidRequest,
        "'model_name' must be a string of at most 256",
    ),
    "a version": (changed(lambda r: setattr(r, "model_version", "1" * 300)), InvalidRequest, "'model_version' must be a string"),
    "an id": (changed(lambda r: setattr(r, "id", "i" * 1025)), InvalidRequest, "'id' must be a string of at most 1024 characters"),
    "no name": (changed(lambda r: setattr(r.inputs[0], "name", "")), InvalidRequest, "inputs[0]: 'name' must be a string of 1 to 256"),
    "a datatype": (changed(shaped(2, 3, datatype="FP12")), InvalidRequest, "'datatype' must be one of BOOL, UINT8"),
    "a negative axis": (changed(shaped(-2, -3)), InvalidRequest, "'shape' must hold integers from 0 to 2**63 - 1, got [-2, -3]"),
    "a product that overflows": (changed(shaped(2**32, 2**32)), InvalidRequest, "Expected 73786976294838206464, got 24"),
    "33 axes": (changed(shaped(*[1] * 33)), InvalidRequest, "'shape' must be a list of at most 32 integers"),
    "an empty shape over the limit": (changed(shaped(0, 2**60)), InvalidRequest, "is empty, and its other axes are too large"),
    "a size": (
        changed(shaped(2, 4)),
        InvalidRequest,
        "input byte size mismatch for input 'x' for model 'm'. Expected 32, got 24",
    ),
    "strings that lie": (changed(shaped(1, datatype="BYTES")), InvalidRequest, "BYTES"),
    "twice": (
        changed(lambda r: (r.inputs.add().CopyFrom(r.inputs[0]), r.raw_input_contents.append(b""))),
        InvalidRequest,
        "input 'x' already",
    ),
    "output twice": (
        changed(lambda r: (r.outputs.add(name="y"), r.outputs.add(name="y"))),
        InvalidRequest,
        "output 'y' already exists in request",
    ),
    "too few raw": (
        changed(lambda r: r.inputs.add(name="z", datatype="FP32", shape=[1])),
        InvalidRequest,
        "expected 2 raw_input_contents for model 'm', one for each input, got 1",
    ),
    "too many raw": (changed(lambda r: r.raw_input_contents.append(b"")), InvalidRequest, "expected 1 raw_input_contents for model 'm'"),
    "raw and typed": (
        changed(lambda r: r.raw_input_contents.append(b""), typed=True),
        InvalidRequest,
        "contents field must not be specified when using raw_input_contents for 'x' for model 'm'",
    ),
    "no values": (changed(lambda r: r.ClearField("raw_input_contents")), InvalidRequest, "input 'x' for model 'm' has no values"),
    "shared memory": (changed(region), InvalidRequest, "input 'x': 'shared_memory_byte_size' must be an integer from 0"),
    "shared memory and typed": (
        changed(region, typed=True),
        InvalidRequest,
        "must have exactly one of 'data', parameter 'binary_data_size' and parameter 'shared_memory_region'",
    ),
    "classes below zero": (changed(classify), InvalidRequest, "output 'y': 'classification' must be an integer >= 0, got -1"),
    "a parameter without value": (changed(lambda r: r.parameters["p"]), InvalidRequest, "parameter 'p' has no value"),
    "a reserved parameter": (
        changed(lambda r: setattr(r.parameters["triton_x"], "bool_param", True)),
        InvalidRequest,
        "parameter 'triton_x' is reserved",
    ),
    "not a number": (changed(lambda r: setattr(r.parameters["p"], "double_param", float("nan"))), InvalidRequest, "finite number"),
    "typed FP16": (changed(typed_list("FP16", "fp32_contents", [1.0]), True), InvalidRequest, "FP16 has no typed contents"),
    "the wrong list": (
        changed(typed_list("FP32", "fp64_contents", [1.0]), True),
        InvalidRequest,
        "FP32 takes fp32_contents, got fp64_contents",
    ),
    "two lists": (
        changed(lambda r: r.inputs[0].contents.fp64_contents.append(1.0), True),
        InvalidRequest,
        "FP32 takes fp32_contents only",
    ),
    "two lists with BYTES": (
        changed(lambda r: (typed_list("BYTES", "bytes_contents", [b"a"])(r), r.inputs[0].contents.fp32_contents.append(1)), True),
        InvalidRequest,
        "BYTES takes bytes_contents, got fp32_contents",
    ),
    "a list too short": (
        changed(lambda r: r.inputs[0].contents.fp32_contents.pop(), True),
        InvalidRequest,
        "'contents' hold 5 values, but shape [2, 3] takes 6",
    ),
    "out of range": (
        changed(typed_list("INT8", "int_contents", [1, -129]), True),
        InvalidRequest,
        "-129 at index 1 is out of range for INT8",
    ),
    "out of range, unsigned": (
        changed(typed_list("UINT8", "uint_contents", [256]), True),
        InvalidRequest,
        "256 at index 0 is out of range",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    body, kind, text = REFUSED[case]
    decoder = ProtoDecoder(1 << 20)
    good = message({"x": X}).SerializeToString()
    decoder.decode(good)
    for _ in range(2):
        with pytest.raises(kind) as caught:
            decoder.decode(body)
        assert text in str(caught.value)
        assert_same(decoder.decode(good).inputs["x"], X)


def test_what_is_beside_the_raw_tensors_is_bounded() -> None:
    wide = np.zeros((1, 1000), np.float32)
    with pytest.raises(BodyTooLarge, match=r"limits.max_json_body\), got 40\d\d; send large tensors as raw_input_contents"):
        decode(message({"x": wide}, typed=True).SerializeToString(), max_typed=1000)
    assert decode(message({"x": wide}).SerializeToString(), max_typed=1000).inputs["x"].shape == (1, 1000)
    unordered = message({"x": wide}, typed=True).SerializeToString() + service_pb2.ModelInferRequest(id="7").SerializeToString()
    with pytest.raises(BodyTooLarge):
        decode(unordered, max_typed=1000)


# Answers


def read(written: bytes) -> Any:
    return service_pb2.ModelInferResponse.FromString(written)


@given(arrays=st.lists(tensors(), max_size=3), request_id=st.text(max_size=8))
def test_answers_are_read_by_the_stock_client(arrays: list[Tensor], request_id: str) -> None:
    outputs = {f"output{index}": array for index, array in enumerate(arrays)}
    encoder = ProtoEncoder()
    for _ in range(2):
        answer = read(encoder.encode(InferResponse("m", "3", request_id, outputs)))
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", request_id)
        result = stock.InferResult(answer)
        for name, array in outputs.items():
            if dtype_of(array).name == "BF16":
                assert answer.raw_output_contents[list(outputs).index(name)] == raw(array)
            elif array.size:
                assert_same(result.as_numpy(name), array)


def test_a_large_answer_and_a_transposed_one() -> None:
    large = np.arange(1 << 16, dtype=np.float32).reshape(256, 256)
    for array in (large, large.T, large[:, ::2]):
        result = stock.InferResult(read(ProtoEncoder().encode(InferResponse("m", "1", outputs={"y": array}))))
        np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_parameters_of_an_answer() -> None:
    answer = read(ProtoEncoder().encode(InferResponse("m", "1", parameters={"a": True, "b": 3, "c": "d", "e": 0.5})))
    assert (answer.parameters["a"].bool_param, answer.parameters["b"].int64_param) == (True, 3)
    assert (answer.parameters["c"].string_param, answer.parameters["e"].double_param) == ("d", 0.5)


def test_an_answer_of_a_stream() -> None:
    response = InferResponse("m", "1", "7", {"y": X})
    streamed = service_pb2.ModelStreamInferResponse.FromString(ProtoEncoder().encode_streamed(response, True))
    assert streamed.error_message == ""
    assert (streamed.infer_response.id, streamed.infer_response.parameters["triton_final_response"].bool_param) == ("7", True)
    np.testing.assert_array_equal(stock.InferResult(streamed.infer_response).as_numpy("y"), X)
    failed = service_pb2.ModelStreamInferResponse.FromString(streamed_error("7", "no ü"))
    assert (failed.error_message, failed.infer_response.id) == ("no ü", "7")


def test_an_array_without_a_datatype() -> None:
    with pytest.raises(BackendFailure, match="complex64"):
        ProtoEncoder().encode(InferResponse("m", "1", outputs={"y": np.zeros(2, np.complex64)}))


# Messages


def test_the_messages_are_those_of_the_stock_client() -> None:
    ours = methods_of("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert set(ours) == set(theirs)
    for name, method in ours.items():
        assert (method.streams_requests, method.streams_responses) == (theirs[name].client_streaming, theirs[name].server_streaming)
        assert _shape(method.request.DESCRIPTOR) == _shape(theirs[name].input_type)
        assert _shape(method.response.DESCRIPTOR) == _shape(theirs[name].output_type)


def _shape(descriptor: Any) -> Any:
    """A message's fields, and theirs; each message once, as some hold themselves."""
    seen: dict[str, Any] = {}
    rest = [descriptor]
    while rest:
        one = rest.pop()
        if one.full_name in seen:
            continue
        seen[one.full_name] = [(field.name, field.number, field.type, field.is_repeated) for field in one.fields]
        rest += [field.message_type for field in one.fields if field.message_type]
        enums = {field.enum_type for field in one.fields if field.enum_type}
        seen |= {enum.full_name: [(value.name, value.number) for value in enum.values] for enum in enums}
    return seen


def test_every_datatype_has_a_list_or_none_at_all() -> None:
    assert DTYPES.keys() - LISTS.keys() == {"FP16", "BF16"}
