"""Typed contents of many bytes are decoded in the helper process: right answers, right errors, and nobody waits for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferResult

from server.app import App
from tests.server.edges.grpc.wire import SERVICE, Client, connected, tensors
from tests.server.models import identity_model, two_inputs_model
from tests.server.protocol.test_proto_codec import message
from tests.server.running import in_thread

WIDTH = 200_000
FLOATS = np.random.default_rng(0).standard_normal((1, WIDTH), np.float32)
INTEGERS = np.arange(-WIDTH, WIDTH, 2, dtype=np.int64).reshape(1, WIDTH) << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root: Path = tmp_path_factory.mktemp("typed")
    for name, datatype in (("floats", "FP32"), ("integers", "INT64"), ("words", "BYTES")):
        identity_model(root / name / "1" / "model.onnx", datatype, "W")
    two_inputs_model(root / "sums" / "1" / "model.onnx", WIDTH)
    with in_thread(root, grpc_port=0) as app:
        yield app


@pytest.fixture
def client(served: App) -> Iterator[Client]:
    with connected(served.addresses.grpc) as one:
        yield one


def typed(inputs: Any, **fields: Any) -> bytes:
    written: bytes = message(inputs, typed=True, **fields).SerializeToString()
    return written


def test_numbers(client: Client) -> None:
    for model, array in (("floats", FLOATS), ("integers", INTEGERS)):
        for number in range(2):
            answer = client.infer(typed({"x": array}, model_name=model, model_version="1", id=f"{number} ü"))
            np.testing.assert_array_equal(InferResult(answer).as_numpy("y"), array)
            assert (answer.model_name, answer.model_version, answer.id) == (model, "1", f"{number} ü")


def test_strings(client: Client) -> None:
    words = np.array([[b"word %d" % number for number in range(40_000)]], object)
    answer = client.infer(typed({"x": words}, model_name="words"))
    np.testing.assert_array_equal(InferResult(answer).as_numpy("y"), words)


def test_outputs_and_parameters_come_along(client: Client) -> None:
    request = message({"a": FLOATS, "b": FLOATS}, typed=True, model_name="sums")
    request.outputs.add(name="product")
    request.parameters["explain"].bool_param = True
    request.parameters["note"].string_param = "x"
    answer = client.infer(request.SerializeToString())
    assert list(tensors(answer)) == ["product"]
    assert answer.parameters["rows"].int64_param == 1
    (streamed,) = client.stream([request.SerializeToString()])
    np.testing.assert_array_equal(tensors(streamed.infer_response)["product"], FLOATS * FLOATS)


def test_errors(client: Client) -> None:
    request = message({"x": FLOATS}, typed=True, model_name="floats")
    request.inputs[0].shape[1] += 1
    code, text = client.refused("ModelInfer", request.SerializeToString())
    assert (code, "'contents' hold 200000 values, but shape [1, 200001] takes 200001" in text) == ("INVALID_ARGUMENT", True)
    assert client.refused("ModelInfer", typed({"x": FLOATS}, model_name="nobody"))[0] == "NOT_FOUND"
    truncated = typed({"x": FLOATS}, model_name="floats")[:-1]
    assert client.refused("ModelInfer", truncated)[0] == "INVALID_ARGUMENT"
    large = np.zeros((1, 5 << 20), np.float32)
    code, text = client.refused("ModelInfer", typed({"x": large}, model_name="floats"))
    assert (code, "limits.max_json_body" in text) == ("RESOURCE_EXHAUSTED", True)


def test_others_are_answered_while_the_helper_works(served: App, client: Client) -> None:
    """The helper is stopped: the large request can't go on, all others can, and one that is given up leaves nothing behind."""
    body, small = typed({"x": FLOATS}, model_name="floats"), np.ones((1, 4), np.float32)
    assert served.edge.json_worker.pid is not None
    waiting: list[Any] = []
    call = client.channel.unary_unary(f"{SERVICE}ModelInfer")
    os.kill(served.edge.json_worker.pid, signal.SIGSTOP)
    try:
        begun = [call.future(body, timeout=60) for _ in range(3)]
        for number in range(50):
            answer = client.infer(typed({"x": small + number}, model_name="floats"))
            np.testing.assert_array_equal(tensors(answer)["y"], small + number)
        assert not any(one.done() for one in begun)
        begun[1].cancel()
    finally:
        os.kill(served.edge.json_worker.pid, signal.SIGCONT)
    waiting = [begun[0].result(), begun[2].result()]
    assert all(len(answer) > FLOATS.nbytes for answer in waiting)
    with pytest.raises(grpc.FutureCancelledError):
        begun[1].result()
    assert emptied(served)


def test_a_helper_that_dies_costs_its_request_only(served: App, client: Client) -> None:
    call = client.channel.unary_unary(f"{SERVICE}ModelInfer")
    pid = served.edge.json_worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    begun = call.future(typed({"x": FLOATS}, model_name="floats"), timeout=60)
    client.infer(typed({"x": FLOATS[:, :4]}, model_name="floats"))
    while served.edge.json_worker._running is None:
        threading.Event().wait(0.005)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        begun.result()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    np.testing.assert_array_equal(tensors(client.infer(typed({"x": FLOATS}, model_name="floats")))["y"], FLOATS)
    assert emptied(served)


def emptied(app: App) -> bool:
    """Whether no bytes stay in flight, once the calls have ended on the server's side too."""
    for _ in range(2000):
        if not app.edge.inflight.used:
            return True
        threading.Event().wait(0.005)
    return False
