"""Answers: the members in Triton's order, values that read back bit for bit, and heads that are kept but never mixed up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BackendFailure, InvalidRequest
from server.messages import InferResponse, Placed
from server.protocol.client_codec import decode_response
from server.protocol.encode import MAX_ENTRIES, Encoded, Encoder, json_bytes
from server.protocol.reply import Reply
from server.tensors import DTYPES, Tensor, dtype_of
from tests.server.protocol.wire import NUMBERS, assert_same, raw, tensors

X = np.arange(4, dtype=np.float32).reshape(1, 4)
BINARY = Reply(binary_default=True)


def body(encoded: Encoded) -> bytes:
    whole = b"".join((encoded.head, *encoded.blobs))
    assert len(whole) == encoded.size
    return whole


def answer(**outputs: Tensor) -> InferResponse:
    return InferResponse("m", "1", outputs=outputs)


def test_the_members_come_in_order() -> None:
    response = InferResponse("m", "1", "7", {"y": X, "z": X[:0]}, {"rows": 1, "precision": "fp32"})
    encoded = Encoder().encode(response, Reply("7", False, {"z": True}))
    assert encoded.head == (
        b'{"id":"7","model_name":"m","model_version":"1","parameters":{"rows":1,"precision":"fp32"},"outputs":['
        b'{"name":"y","datatype":"FP32","shape":[1,4],"data":[0.0,1.0,2.0,3.0]},'
        b'{"name":"z","datatype":"FP32","shape":[0,4],"parameters":{"binary_data_size":0}}]}'
    )
    assert (encoded.blobs, encoded.binary) == ([b""], True)


def test_without_id_and_parameters_they_are_left_out() -> None:
    encoded = Encoder().encode(answer(y=X), BINARY)
    assert encoded.head == (
        b'{"model_name":"m","model_version":"1","outputs":'
        b'[{"name":"y","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}'
    )
    assert body(encoded) == bytes(encoded.head) + X.tobytes()
    assert Encoder().encode(answer(), BINARY) == Encoded(b'{"model_name":"m","model_version":"1","outputs":[]}', [], False, 51)


@given(st.lists(tensors(text=True), max_size=3), st.booleans(), st.lists(st.booleans(), min_size=3, max_size=3), st.text(max_size=5))
def test_answers_read_back(arrays: list[Tensor], default: bool, flags: list[bool], request_id: str) -> None:
    outputs = {f"OUTPUT{index}": array for index, array in enumerate(arrays)}
    listed = dict(zip(outputs, flags[:2], strict=False))  # the third isn't listed
    encoder = Encoder()
    for _ in range(2):  # as new, then with the kept head
        encoded = encoder.encode(InferResponse("m", "1", request_id, outputs), Reply(request_id, default, listed))
        assert encoded.binary == any(listed.get(name, default) for name in outputs)
        read = decode_response(body(encoded), len(encoded.head) if encoded.binary else None)
        assert (read.model, read.version, read.id, list(read.outputs)) == ("m", "1", request_id, list(outputs))
        for name, array in outputs.items():
            assert_same(read.outputs[name], array)


def test_only_binary_outputs_have_parameters() -> None:
    document = json.loads(bytes(Encoder().encode(answer(y=X, z=X), Reply("", False, {"z": True})).head))
    assert "parameters" not in document["outputs"][0]
    assert document["outputs"][1]["parameters"] == {"binary_data_size": 16}


def test_floats_are_the_shortest_that_read_back() -> None:
    values = np.array([0.1, 1 / 3, 1e-45, 3.4028235e38, 16777216, -0.0], np.float32)
    text = bytes(Encoder().encode(answer(y=values), Reply()).head)
    assert b"[0.1,0.33333334,1e-45,3.4028235e+38,16777216.0,-0.0]" in text


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_nan_and_the_infinities_are_literals(datatype: str) -> None:
    values = np.array([np.nan, 1.5, np.inf, -np.inf, 0]).astype(DTYPES[datatype].numpy)
    encoded = Encoder().encode(answer(y=values, z=np.array([b"null NaN"], object)), Reply())
    assert b'"data":[NaN,1.5,Infinity,-Infinity,0.0]}' in encoded.head
    assert b'"data":["null NaN"]}' in encoded.head


def test_strings_that_are_not_text_must_be_asked_for_in_binary() -> None:
    response = answer(y=np.array([b"ok", b"\xff"], object))
    with pytest.raises(InvalidRequest, match="output 'y' holds bytes that aren't UTF-8 text; ask for it with 'binary_data': true"):
        Encoder().encode(response, Reply())
    encoded = Encoder().encode(response, BINARY)
    assert encoded.blobs == [b"\x02\0\0\0ok\x01\0\0\0\xff"]
    assert b'"binary_data_size":11' in encoded.head


def test_an_array_that_the_protocol_has_no_name_for() -> None:
    with pytest.raises(BackendFailure, match="output 'y' came as numpy complex64"):
        Encoder().encode(answer(y=np.zeros(1, np.complex64)), BINARY)
    with pytest.raises(BackendFailure, match="output 'y' came as numpy >f4"):
        Encoder().encode(answer(y=np.zeros(1, ">f4")), Reply())


@pytest.mark.parametrize("arrange", [lambda a: a.T, lambda a: a[::2], lambda a: np.asfortranarray(a), lambda a: a[1:]])
@pytest.mark.parametrize("rows", [4, 3000])
def test_any_memory_order(arrange: Any, rows: int) -> None:
    array = arrange(np.arange(rows * 10, dtype=np.float64).reshape(rows, 10))
    for reply in (BINARY, Reply()):
        encoded = Encoder().encode(answer(y=array), reply)
        assert_same(decode_response(body(encoded), len(encoded.head)).outputs["y"], array)


def test_large_outputs_are_views_and_small_ones_copies() -> None:
    small, large = np.zeros(10, np.float32), np.zeros(100_000, np.float32)
    blobs = Encoder().encode(answer(small=small, large=large), BINARY).blobs
    assert isinstance(blobs[0], bytes)
    assert np.shares_memory(np.frombuffer(blobs[1], np.uint8), large)


def test_kept_heads_are_never_mixed_up() -> None:
    encoder = Encoder()
    for response, reply in (
        (answer(y=X), BINARY),
        (answer(y=X), Reply()),
        (answer(z=X), BINARY),
        (answer(y=X[0]), BINARY),
        (answer(y=X.view(np.int32)), BINARY),
        (answer(y=X, z=X), BINARY),
        (answer(z=X, y=X), BINARY),
        (InferResponse("n", "1", outputs={"y": X}), BINARY),
        (InferResponse("m", "2", outputs={"y": X}), BINARY),
        (InferResponse("m", "1", outputs={"y": X}, parameters={"a": 1}), BINARY),
        (InferResponse("m", "1", outputs={"y": X}, parameters={"a": 2}), BINARY),
    ):
        for _ in range(2):
            assert encoder.encode(response, reply) == Encoder().encode(response, reply)


def test_kept_heads_are_bounded() -> None:
    encoder = Encoder()
    for size in range(2 * MAX_ENTRIES):
        encoder.encode(answer(y=np.zeros((0, size), np.int8)), BINARY)
    before = len(encoder._forms)
    assert 0 < before <= MAX_ENTRIES
    encoder.encode(answer(**{f"{index:0200}": X for index in range(30)}), BINARY)
    assert len(encoder._forms) == before


def test_names_are_escaped() -> None:
    response = InferResponse('m"', "1", 'i"', {'y"\\': X})
    document = orjson.loads(Encoder().encode(response, Reply('i"')).head)
    assert (document["id"], document["model_name"], document["outputs"][0]["name"]) == ('i"', 'm"', 'y"\\')


@pytest.mark.parametrize("datatype", [*NUMBERS, "BYTES"])
def test_the_estimate_of_the_text_is_not_far_off(datatype: str) -> None:
    kind = DTYPES[datatype]
    generator = np.random.default_rng(0)
    array = generator.normal(size=1000).astype(kind.numpy) if kind.size else np.array([b"x" * 20] * 1000, object)
    if "INT" in datatype:
        array = np.frombuffer(generator.bytes(1000 * kind.size), kind.numpy)
    response = answer(y=array)
    written = len(Encoder().encode(response, Reply()).head)
    assert 0.7 * written < json_bytes(response, Reply()) < 1.6 * written
    assert json_bytes(response, BINARY) == 0
    assert dtype_of(array).name == datatype
    assert len(raw(array)) > 0


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("binary", [True, False])
def test_outputs_in_shared_memory_are_described_after_the_others(others: int, binary: bool) -> None:
    outputs = {f"y{number}": X + number for number in range(others)}
    placed = (Placed("p", "FP16", (1, 2)), Placed('q"', "BYTES", ()))
    encoded = Encoder().encode(InferResponse("m", "1", "i", outputs, placed=placed), Reply("i", binary))
    plain = Encoder().encode(InferResponse("m", "1", "i", outputs), Reply("i", binary))
    assert (encoded.blobs, encoded.binary) == (plain.blobs, plain.binary)
    assert encoded.size == len(encoded.head) + sum(map(len, encoded.blobs))
    document, before = orjson.loads(encoded.head), orjson.loads(plain.head)
    described = [{"name": "p", "datatype": "FP16", "shape": [1, 2]}, {"name": 'q"', "datatype": "BYTES", "shape": []}]
    assert document == {**before, "outputs": before["outputs"] + described}
