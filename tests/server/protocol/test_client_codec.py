"""The client's half: requests written here decode to what they were, and answers that break the protocol are refused."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.messages import InferRequest, Layout, RequestedOutput
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.client_codec import ALIGNMENT, decode_response, encode_request
from server.protocol.reply import Reply
from server.tensors import Tensor
from tests.server.protocol.wire import assert_same, tensors


@given(st.lists(tensors(), max_size=3), st.text(max_size=5), st.booleans(), st.lists(st.booleans(), max_size=3))
def test_requests_come_out_as_they_went_in(arrays: list[Tensor], request_id: str, default: bool, flags: list[bool]) -> None:
    inputs = {f"INPUT{index}": array for index, array in enumerate(arrays)}
    binary = {f"OUTPUT{index}": flag for index, flag in enumerate(flags)}
    outputs = tuple(RequestedOutput(name, len(name) % 3) for name in binary)
    request = InferRequest("m", inputs, Layout(()), "1", request_id, outputs, {"priority": 1})
    encoded = encode_request(request, Reply(request_id, default, binary))
    body = b"".join((encoded.head, *encoded.blobs))
    assert len(body) == encoded.size
    assert len(encoded.head) % ALIGNMENT == 0
    read, reply = BinaryDecoder().decode(body, len(encoded.head), "m", "1")
    for name, array in inputs.items():
        assert_same(read.inputs[name], array)
    assert (read.id, read.outputs, dict(read.parameters)) == (request_id, outputs, {"priority": 1})
    assert (reply.id, reply.binary_default, dict(reply.binary)) == (request_id, default, binary)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"error": "no"},
        {"model_name": "m", "outputs": []},
        {"model_name": "m", "model_version": "1", "outputs": [{}]},
        {"model_name": "m", "model_version": "1", "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]},
        {"model_name": "m", "model_version": "1", "outputs": [{"name": "y", "datatype": "X", "shape": [0], "data": []}]},
        {"model_name": "m", "model_version": "1", "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1], "data": []}]},
        {
            "model_name": "m",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        },
    ],
)
def test_answers_that_break_the_protocol(document: object) -> None:
    with pytest.raises(InvalidRequest):
        decode_response(orjson.dumps(document))


def test_binary_outputs_are_views() -> None:
    head = (
        b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"INT8","shape":[3],"parameters":{"binary_data_size":3}}]}'
    )
    body = head + b"\x01\x02\xff"
    response = decode_response(memoryview(body), len(head))
    assert response.outputs["y"].tolist() == [1, 2, -1]
    assert np.shares_memory(response.outputs["y"], np.frombuffer(body, np.uint8))
