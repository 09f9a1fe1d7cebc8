"""What the stock client does against a server, in a process of its own: `python -m tests.server.edges.grpc.cases`.

It reads lines of JSON, [case, arguments], and answers each with a line: null, or the traceback of the case that failed.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as stock
import tritonclient.grpc.aio as stock_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.tensors import DTYPES, Tensor
from tests.server.protocol.wire import FLOATS, assert_same

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = A + 100


def given(name: str, array: Tensor, datatype: str = "FP32", client: Any = stock) -> Any:
    tensor = client.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def pair(client: Any = stock) -> list[Any]:
    return [given("a", A, client=client), given("b", B, client=client)]


def sample(datatype: str) -> Tensor:
    """Two rows that reach the datatype's ends."""
    kind = DTYPES[datatype].numpy
    if datatype == "BYTES":
        return np.array([[b"text", "ünï".encode(), b""], [b"\x00", b"x" * 300, b"\n"]], object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype in FLOATS:
        return np.array([[0.1, -2.5, 0.0], [1e-3, 65504.0, -0.0]]).astype(kind)
    info = np.iinfo(kind)
    return np.array([[info.min, info.max, 0], [1, 2, 3]], kind)


def refused(act: Callable[[], Any], code: str, text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        act()
    assert caught.value.status() == f"StatusCode.{code}", (caught.value.status(), caught.value.message())
    assert text in caught.value.message(), caught.value.message()


def metadata(address: str) -> None:
    client = stock.InferenceServerClient(address)
    assert client.is_server_live()
    assert not client.is_server_ready()  # one model is corrupt, and by default all must be ready
    assert client.is_model_ready("pair")
    assert client.is_model_ready("linear", "3")
    assert not client.is_model_ready("linear", "2")
    assert not client.is_model_ready("corrupt")
    assert not client.is_model_ready("nobody")
    found = client.get_server_metadata(as_json=True)
    assert found["name"] == "tidegate"
    assert "binary_tensor_data" in found["extensions"]
    assert client.get_model_metadata("linear", as_json=True) == {
        "name": "linear",
        "versions": ["1", "3"],
        "platform": "onnxruntime",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "8"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "4"]}],
    }
    rows = {(row["name"], row["version"]): row for row in client.get_model_repository_index(as_json=True)["models"]}
    assert rows["linear", "1"] == {"name": "linear", "version": "1", "state": "READY"}
    assert rows["corrupt", "1"]["state"] == "UNAVAILABLE"
    refused(lambda: client.get_model_metadata("nobody"), "NOT_FOUND", "Request for unknown model: 'nobody' is not found")


def raw(address: str) -> None:
    client = stock.InferenceServerClient(address)
    for datatype in DTYPES:
        array = sample(datatype)
        result = client.infer(f"echo_{datatype}", [given("x", array, datatype)], request_id=f"id {datatype}")
        assert result.get_response().id == f"id {datatype}"
        assert_same(result.as_numpy("y"), array)


def typed(address: str) -> None:
    """Typed contents, which the stock client has messages for and doesn't send by itself."""
    from tests.server.protocol.test_proto_codec import LISTS, message

    stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
    for datatype in LISTS:
        array = sample(datatype)
        answer = stub.ModelInfer(message({"x": array}, typed=True, model_name=f"echo_{datatype}"))
        assert_same(stock.InferResult(answer).as_numpy("y"), array)


def outputs_and_versions(address: str) -> None:
    client = stock.InferenceServerClient(address)
    result = client.infer("pair", pair())
    np.testing.assert_array_equal(result.as_numpy("total"), A + B)
    np.testing.assert_array_equal(result.as_numpy("product"), A * B)
    only = client.infer("pair", pair(), outputs=[stock.InferRequestedOutput("product")])
    assert [output.name for output in only.get_response().outputs] == ["product"]
    rows = np.ones((2, 8), np.float32)
    for version, answers in (("", "3"), ("1", "1"), ("3", "3")):
        assert client.infer("linear", [given("x", rows)], model_version=version).get_response().model_version == answers
    parameters = {"note": "x", "share": 0.5, "seven": 7, "yes": True}
    client.infer("pair", pair(), priority=1, timeout=10_000_000, parameters=parameters)


def errors(address: str) -> None:
    client = stock.InferenceServerClient(address)
    x = np.ones((1, 8), np.float32)
    for act, code, text in (
        (lambda: client.infer("nobody", pair()), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
        (lambda: client.infer("pair", pair(), model_version="9"), "NOT_FOUND", "'pair' version 9 is not found"),
        (lambda: client.infer("corrupt", pair()), "UNAVAILABLE", "is not at ready state"),
        (lambda: client.infer("linear", [given("x", x[:, :7])]), "INVALID_ARGUMENT", "Expected [-1,8], got [1,7]"),
        (lambda: client.infer("pair", [given("a", A)]), "INVALID_ARGUMENT", "missing required input(s) ['b']"),
        (lambda: client.infer("pair", pair(), timeout=1), "UNAVAILABLE", "Request timeout expired"),
        (
            lambda: client.infer("echo_BYTES", [given("x", sample("BYTES"), "BYTES")], outputs=[stock.InferRequestedOutput("y", 2)]),
            "INVALID_ARGUMENT",
            "class result not available for output 'y' due to unsupported type 'BYTES'",
        ),
    ):
        refused(act, code, text)
        np.testing.assert_array_equal(client.infer("pair", pair()).as_numpy("total"), A + B)


def compression(address: str) -> None:
    client = stock.InferenceServerClient(address)
    rows = np.zeros((8, 30_000), np.float32)
    for algorithm in ("gzip", "deflate", None):
        result = client.infer("echo_FP32", [given("x", rows)], compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("y"), rows)


def concurrently(address: str) -> None:
    client = stock.InferenceServerClient(address)
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(200):
        array = np.array([[number, -number]])
        client.async_infer(
            "echo_INT64", [given("x", array, "INT64")], lambda result, error: answers.put((result, error)), request_id=str(number)
        )
    for _ in range(200):
        result, error = answers.get(timeout=30)
        assert error is None
        number = int(result.get_response().id)
        assert result.as_numpy("y").tolist() == [[number, -number]]


def aio(address: str) -> None:
    async def ask() -> None:
        async with stock_aio.InferenceServerClient(address) as client:
            results = await asyncio.gather(*(client.infer("pair", pair(stock_aio), request_id=str(n)) for n in range(20)))
            assert [result.get_response().id for result in results] == [str(n) for n in range(20)]

            async def requests() -> Any:
                for number in range(5):
                    yield {"model_name": "pair", "inputs": pair(stock_aio), "request_id": str(number)}

            ids = [result.get_response().id async for result, _ in client.stream_infer(requests())]
            assert ids == [str(n) for n in range(5)]

    asyncio.run(ask())


def stream(address: str) -> None:
    """Answers come in the requests' order; one that fails is an answer, and the stream goes on."""
    client = stock.InferenceServerClient(address)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(100):
        client.async_stream_infer(
            "nobody" if number == 50 else "pair", pair(), request_id=str(number), enable_empty_final_response=number % 2 == 0
        )
    for number in range(100):
        result, error = answers.get(timeout=30)
        if number == 50:
            assert "Request for unknown model: 'nobody' is not found" in error.message()
            continue
        assert error is None, error
        response = result.get_response()
        assert (response.id, response.parameters["triton_final_response"].bool_param) == (str(number), True)
        np.testing.assert_array_equal(result.as_numpy("total"), A + B)
    client.stop_stream()
    assert answers.empty()


def cancelled_stream(address: str) -> None:
    client = stock.InferenceServerClient(address)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    rows = np.ones((1, 256), np.float32)
    for number in range(40):
        client.async_stream_infer("slow", [given("x", rows)], request_id=str(number))
    answers.get(timeout=30)
    client.stop_stream(cancel_requests=True)
    client.infer("pair", pair())


def cancelled(address: str) -> None:
    """40 that wait behind each other, and all but the first cancelled: they end at once, not when their turn would have come."""
    client = stock.InferenceServerClient(address)
    rows = np.ones((64, 256), np.float32)
    answers: queue.Queue[Any] = queue.Queue()
    calls = [client.async_infer("slow", [given("x", rows)], lambda result, error: answers.put(error)) for _ in range(40)]
    for call in calls[1:]:
        call.cancel()
    found = [answers.get(timeout=60) for _ in calls]
    assert sum(error is not None and error.status() == "StatusCode.CANCELLED" for error in found) >= 30
    client.infer("pair", pair())


def deadline(address: str) -> None:
    client = stock.InferenceServerClient(address)
    rows = np.ones((64, 256), np.float32)
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(60):
        client.async_infer("slow", [given("x", rows)], lambda result, error: answers.put(error), client_timeout=0.02)
    found = [answers.get(timeout=60) for _ in range(60)]
    codes = {error.status() for error in found if error is not None}  # UNAVAILABLE: the engine saw that it would be late
    assert codes <= {"StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE"}
    assert codes
    client.infer("pair", pair())


def pings(address: str) -> None:
    """A client that pings without calls, as often as the server allows, keeps its connection."""
    states: list[grpc.ChannelConnectivity] = []
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    channel: Any = grpc.insecure_channel(address, options=options)
    channel.subscribe(states.append, try_to_connect=True)
    call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    call(b"")
    time.sleep(1.5)
    call(b"")
    assert states.count(grpc.ChannelConnectivity.READY) == 1, states
    channel.close()


def too_large(address: str, limit: int) -> None:
    client = stock.InferenceServerClient(address)
    rows = np.zeros((1, limit // 4), np.float32)
    for algorithm in (None, "gzip"):
        infer = lambda: client.infer("echo_FP32", [given("x", rows)], compression_algorithm=algorithm)  # noqa: B023, E731
        refused(infer, "RESOURCE_EXHAUSTED", "larger than max")
    result = client.infer("echo_FP32", [given("x", rows[:, 100:])])
    assert result.as_numpy("y").shape == (1, limit // 4 - 100)


def tls(address: str, ca: str, certificate: str = "", key: str = "") -> None:
    more = {"private_key": key, "certificate_chain": certificate} if key else {}
    client = stock.InferenceServerClient(address, ssl=True, root_certificates=ca, **more)
    np.testing.assert_array_equal(client.infer("pair", pair()).as_numpy("total"), A + B)


def no_tls(address: str, ca: str) -> None:
    """Without a certificate a server that wants one isn't reached."""
    client = stock.InferenceServerClient(address, ssl=True, root_certificates=ca)
    refused(lambda: client.is_server_live(client_timeout=5), "UNAVAILABLE", "")


def health_and_reflection(address: str) -> None:
    channel: Any = grpc.insecure_channel(address)
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x02"  # NOT_SERVING
    reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    (answer,) = reflect(iter([b"\x3a\x01*"]))
    assert b"inference.GRPCInferenceService" in answer


def threads(address: str) -> None:
    """Several clients at once, each with a connection of its own."""
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            client = stock.InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(25):
                np.testing.assert_array_equal(client.infer("pair", pair()).as_numpy("total"), A + B)
        except (InferenceServerException, AssertionError) as error:
            failed.append(error)

    running = [threading.Thread(target=ask) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failed, failed


def main() -> None:
    """Answer cases until stdin ends."""
    for line in sys.stdin:
        case, arguments = json.loads(line)
        try:
            globals()[case](**arguments)
            said = None
        except BaseException:  # noqa: BLE001 - whatever it was, the test that asked for the case tells it
            said = traceback.format_exc()
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    assert service_pb2.DESCRIPTOR is not None
    main()
