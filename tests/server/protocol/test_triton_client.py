"""The stock client's own request bodies are decoded rightly, and it reads our answers: JSON and binary, every datatype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.http as http

from server.messages import InferRequest, InferResponse, RequestedOutput
from server.protocol import json_codec
from server.protocol.binary_codec import BinaryDecoder
from server.protocol.encode import Encoder
from server.protocol.reply import Reply
from server.tensors import DTYPES, Tensor
from tests.server.protocol.wire import FLOATS, assert_same


def sample(datatype: str) -> Tensor:
    kind = DTYPES[datatype]
    if not kind.size:
        return np.array([[b"text", "ünï".encode()], [b"", b"x" * 300]], object)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype in FLOATS:
        return np.array([[0.1, -2.5], [1e-3, 65504.0]]).astype(kind.numpy)
    info = np.iinfo(kind.numpy)
    return np.array([[info.min, info.max], [0, 1]], kind.numpy)


def stock_input(name: str, datatype: str, array: Tensor, binary: bool) -> Any:
    tensor = http.InferInput(name, list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def decode(body: bytes, head_length: int | None) -> tuple[InferRequest, Reply]:
    if head_length is None:
        return json_codec.decode(body, "m", "")
    return BinaryDecoder().decode(body, head_length, "m", "")


SENT = [(datatype, binary) for datatype in DTYPES for binary in (True, False) if binary or datatype != "BF16"]
"""The stock client sends BF16 in binary only."""


@pytest.mark.parametrize(("datatype", "binary"), SENT)
def test_requests_of_every_datatype(datatype: str, binary: bool) -> None:
    array = sample(datatype)
    for value in (array, array[:0]):
        body, head_length = http.InferenceServerClient.generate_request_body([stock_input("x", datatype, value, binary)])
        request, reply = decode(body, head_length)
        assert_same(request.inputs["x"], value)
        assert reply == Reply(binary_default=True)


def test_a_request_with_everything() -> None:
    first, second = np.arange(6, dtype=np.int64).reshape(2, 3), np.array([b"\xff", b""], object)
    body, head_length = http.InferenceServerClient.generate_request_body(
        [
            stock_input("a", "INT64", first, True),
            stock_input("b", "FP32", np.ones((1, 2), np.float32), False),
            stock_input("c", "BYTES", second, True),
        ],
        outputs=[
            http.InferRequestedOutput("y", binary_data=True),
            http.InferRequestedOutput("z", binary_data=False),
            http.InferRequestedOutput("top", binary_data=True, class_count=3),
        ],
        request_id='id "7"',
        sequence_id="seven",
        sequence_start=True,
        priority=2,
        timeout=1000,
        parameters={"explain": True, "note": "x"},
    )
    request, reply = decode(body, head_length)
    assert_same(request.inputs["a"], first)
    assert_same(request.inputs["b"], np.ones((1, 2), np.float32))
    assert_same(request.inputs["c"], second)
    assert request.outputs == (RequestedOutput("y"), RequestedOutput("z"), RequestedOutput("top", 3))
    assert dict(reply.binary) == {"y": True, "z": False, "top": True}
    assert request.id == reply.id == 'id "7"'
    assert dict(request.parameters) == {
        "sequence_id": "seven",
        "sequence_start": True,
        "sequence_end": False,
        "priority": 2,
        "timeout": 1000,
        "explain": True,
        "note": "x",
    }


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_answers_of_every_datatype(datatype: str, binary: bool) -> None:
    array = sample(datatype)
    outputs = {"y": array, "empty": array[:0], "last": array[1]}
    encoded = Encoder().encode(InferResponse("m", "1", "7", outputs), Reply("7", binary))
    result = http.InferResult.from_response_body(
        b"".join((encoded.head, *encoded.blobs)), header_length=len(encoded.head) if encoded.binary else None
    )
    document = result.get_response()
    assert (document["id"], document["model_name"], document["model_version"]) == ("7", "m", "1")
    for name, expected in outputs.items():
        read = result.as_numpy(name)
        if datatype == "BYTES" and not binary:  # the client leaves JSON strings as str
            assert read.tolist() == [
                [value.decode() for value in row] if isinstance(row, list) else row.decode() for row in expected.tolist()
            ]
        else:
            assert_same(read, expected)


def test_the_client_reads_nan_and_the_infinities() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    encoded = Encoder().encode(InferResponse("m", "1", "", {"y": values}), Reply())
    assert_same(http.InferResult.from_response_body(bytes(encoded.head)).as_numpy("y"), values)


def test_the_client_sends_nan() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.5], np.float32)
    body, head_length = http.InferenceServerClient.generate_request_body([stock_input("x", "FP32", values, False)])
    assert b"NaN" in body
    assert_same(decode(body, head_length)[0].inputs["x"], values)
