"""Stock tritonclient.http against a real server: what its users call, and the texts that they look for in its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pytest
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from server.app import App
from server.config import VERSION
from server.tensors import DTYPES, Tensor
from tests.server.models import identity_model, linear_model, linear_weights, two_inputs_model
from tests.server.protocol.wire import FLOATS, assert_same
from tests.server.running import in_thread

Client: TypeAlias = http.InferenceServerClient
SENT = [(datatype, form) for datatype in DTYPES for form in ("binary", "JSON") if (datatype, form) != ("BF16", "JSON")]
"""The stock client sends BF16 in binary only."""

COMPRESSIONS = (None, "gzip", "deflate")
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = A + 100


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """echo_DATATYPE [N,W] for every datatype, pair (a + b and a * b), linear, and one that can't be served."""
    root = tmp_path_factory.mktemp("tritonclient")
    for datatype in DTYPES:
        identity_model(root / f"echo_{datatype}" / "1" / "model.onnx", datatype, "W")
    two_inputs_model(root / "pair" / "1" / "model.onnx")
    for version in ("1", "3"):
        linear_model(root / "linear" / version / "model.onnx", seed=int(version))
    (root / "linear" / "model.yaml").write_text("versions: {policy: all}\nbatching: {max_rows: 8}\n")
    (root / "corrupt" / "1").mkdir(parents=True)
    (root / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    with in_thread(root) as app:
        yield app


@pytest.fixture
def client(served: App) -> Iterator[Client]:
    with Client(served.addresses.http, concurrency=8) as stock:
        yield stock


def given(name: str, array: Tensor, datatype: str = "FP32", binary: bool = True) -> Any:
    return http.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def wanted(name: str, binary: bool = True) -> Any:
    return http.InferRequestedOutput(name, binary_data=binary)


def pair(binary: bool = True) -> list[Any]:
    return [given("a", A, binary=binary), given("b", B, binary=binary)]


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


# Health and metadata


def test_health(client: Client) -> None:
    assert client.is_server_live()
    assert not client.is_server_ready()  # one model is corrupt, and by default all must be ready
    assert client.is_model_ready("pair")
    assert client.is_model_ready("linear", "3")
    assert not client.is_model_ready("linear", "2")
    assert not client.is_model_ready("corrupt")
    assert not client.is_model_ready("nobody")


def test_a_server_of_good_models_is_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("good")
    linear_model(root / "linear" / "1" / "model.onnx")
    with in_thread(root) as app, Client(app.addresses.http) as stock:
        assert stock.is_server_ready()


def test_server_metadata(client: Client) -> None:
    found = client.get_server_metadata(query_params={"ignored": 1})
    assert (found["name"], found["version"]) == ("tidegate", VERSION)
    assert "binary_tensor_data" in found["extensions"]


def test_model_metadata(client: Client) -> None:
    assert client.get_model_metadata("linear") == {
        "name": "linear",
        "versions": ["1", "3"],
        "platform": "onnxruntime",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }


def test_repository_index(client: Client) -> None:
    rows = {(row["name"], row["version"]): row for row in client.get_model_repository_index()}
    assert len(rows) == len(DTYPES) + 4
    assert rows["linear", "1"] == {"name": "linear", "version": "1", "state": "READY", "reason": ""}
    assert rows["corrupt", "1"]["state"] == "UNAVAILABLE"
    assert "model.onnx" in rows["corrupt", "1"]["reason"]


# Answers


@pytest.mark.parametrize("asked", ["binary", "JSON"])
@pytest.mark.parametrize(("datatype", "sent"), SENT)
def test_every_datatype(client: Client, datatype: str, sent: str, asked: str) -> None:
    array = sample(datatype)
    outputs = [wanted("y", asked == "binary")]
    result = client.infer(f"echo_{datatype}", [given("x", array, datatype, sent == "binary")], outputs=outputs)
    read = result.as_numpy("y")
    if datatype == "BYTES" and asked == "JSON":  # the client leaves JSON strings as str
        assert read.tolist() == [[value.decode() for value in row] for row in array.tolist()]
    else:
        assert_same(read, array)


@pytest.mark.parametrize("binary", [True, False])
def test_without_requested_outputs_all_come(client: Client, binary: bool) -> None:
    result = client.infer("pair", pair(binary))
    np.testing.assert_array_equal(result.as_numpy("total"), A + B)
    np.testing.assert_array_equal(result.as_numpy("product"), A * B)
    assert result.get_response()["model_version"] == "1"


def test_requested_outputs_come_as_asked(client: Client) -> None:
    result = client.infer("pair", [given("b", B), given("a", A, binary=False)], outputs=[wanted("product", False), wanted("total")])
    document = result.get_response()
    assert [output["name"] for output in document["outputs"]] == ["product", "total"]
    assert ["data" in output for output in document["outputs"]] == [True, False]
    np.testing.assert_array_equal(result.as_numpy("product"), A * B)
    np.testing.assert_array_equal(result.as_numpy("total"), A + B)
    only = client.infer("pair", pair(), outputs=[wanted("total")])
    assert only.as_numpy("product") is None


def test_the_id_comes_back(client: Client) -> None:
    assert client.infer("pair", pair(), request_id='281474976710656 "ü"').get_response()["id"] == '281474976710656 "ü"'
    assert "id" not in client.infer("pair", pair()).get_response()


def test_the_version_that_is_asked_for_answers(client: Client) -> None:
    rows = np.ones((2, 8), np.float32)
    for version, answers in (("", "3"), ("1", "1"), ("3", "3")):
        result = client.infer("linear", [given("x", rows)], model_version=version)
        assert result.get_response()["model_version"] == answers
        weight, bias = linear_weights(seed=int(answers))
        np.testing.assert_allclose(result.as_numpy("y"), rows @ weight + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("request_compression", COMPRESSIONS)
@pytest.mark.parametrize("response_compression", COMPRESSIONS)
@pytest.mark.parametrize("binary", [True, False])
def test_compression(client: Client, request_compression: str | None, response_compression: str | None, binary: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 3, (8, 3000)).astype(np.float32)
    result = client.infer(
        "echo_FP32",
        [given("x", rows, binary=binary)],
        outputs=[wanted("y", binary)],
        request_compression_algorithm=request_compression,
        response_compression_algorithm=response_compression,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), rows)


def test_parameters_that_mean_nothing_here_are_taken(client: Client) -> None:
    result = client.infer("pair", pair(), priority=1, timeout=10_000_000, parameters={"note": "x", "share": 0.5, "seven": 7, "yes": True})
    np.testing.assert_array_equal(result.as_numpy("total"), A + B)


def test_async_infer(client: Client) -> None:
    waiting = [client.async_infer("echo_INT64", [given("x", np.array([[n, -n]]), "INT64")], request_id=str(n)) for n in range(40)]
    for number, one in enumerate(waiting):
        result = one.get_result(timeout=30)
        assert result.get_response()["id"] == str(number)
        assert result.as_numpy("y").tolist() == [[number, -number]]


@pytest.mark.parametrize("binary", [True, False])
def test_200_at_once_each_get_their_own(served: App, binary: bool) -> None:
    weight, bias = linear_weights(seed=3)
    random = np.random.default_rng(1)
    rows = [random.standard_normal((1 + number % 3, 8), np.float32) for number in range(200)]
    with Client(served.addresses.http, concurrency=200) as stock:
        waiting = [
            stock.async_infer("linear", [given("x", array, binary=binary)], outputs=[wanted("y", binary)], request_id=str(number))
            for number, array in enumerate(rows)
        ]
        for number, one in enumerate(waiting):
            result = one.get_result(timeout=60)
            assert result.get_response()["id"] == str(number)
            np.testing.assert_allclose(result.as_numpy("y"), rows[number] @ weight + bias, rtol=1e-4, atol=1e-5)


# Errors


def reshaped(array: Tensor, shape: list[int]) -> Any:
    """An input whose shape and size contradict each other, as a shape that is set after the values makes it."""
    return given("x", array).set_shape(shape)


X = np.ones((1, 8), np.float32)
ERRORS: Mapping[str, tuple[Callable[[Client], Any], str, str]] = {
    "unknown model": (lambda c: c.infer("nobody", pair()), "404", "Request for unknown model: 'nobody' is not found"),
    "unknown version": (
        lambda c: c.infer("pair", pair(), model_version="9"),
        "404",
        "Request for unknown model: 'pair' version 9 is not found",
    ),
    "metadata of an unknown model": (lambda c: c.get_model_metadata("nobody"), "404", "Request for unknown model: 'nobody' is not found"),
    "a model that isn't ready": (lambda c: c.infer("corrupt", pair()), "503", "is not at ready state"),
    "shape": (
        lambda c: c.infer("linear", [given("x", X[:, :7])]),
        "400",
        "unexpected shape for input 'x' for model 'linear'. Expected [-1,8], got [1,7]",
    ),
    "datatype": (
        lambda c: c.infer("linear", [given("x", X.astype(np.int32), "INT32")]),
        "400",
        "inference input 'x' data-type is 'INT32', but model 'linear' expects 'FP32'",
    ),
    "a missing input": (
        lambda c: c.infer("pair", [given("a", A)]),
        "400",
        "expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['a'], but missing required input(s) ['b']. "
        "Please provide all required input(s).",
    ),
    "an unknown input": (lambda c: c.infer("linear", [given("z", X)]), "400", "unexpected inference input 'z' for model 'linear'"),
    "an unknown output": (
        lambda c: c.infer("linear", [given("x", X)], outputs=[wanted("z")]),
        "400",
        "unexpected inference output 'z' for model 'linear'",
    ),
    "an output twice": (
        lambda c: c.infer("linear", [given("x", X)], outputs=[wanted("y"), wanted("y")]),
        "400",
        "output 'y' already exists in request",
    ),
    "size": (
        lambda c: c.infer("linear", [reshaped(X, [2, 8])]),
        "400",
        "input byte size mismatch for input 'x' for model 'linear'. Expected 64, got 32",
    ),
    "too many rows": (
        lambda c: c.infer("linear", [given("x", np.ones((9, 8), np.float32))]),
        "400",
        "inference request batch-size must be <= 8 for 'linear', got 9",
    ),
    "bytes that JSON can't carry": (
        lambda c: c.infer("echo_BYTES", [given("x", np.array([[b"\xff"]], object), "BYTES")], outputs=[wanted("y", False)]),
        "400",
        "UTF-8",
    ),
    "a deadline that has passed": (lambda c: c.infer("pair", pair(), timeout=1), "503", "Request timeout expired"),
    "the configuration of nobody": (lambda c: c.get_model_config("nobody"), "404", "Request for unknown model"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(client: Client, case: str) -> None:
    ask, status, text = ERRORS[case]
    with pytest.raises(InferenceServerException) as caught:
        ask(client)
    assert caught.value.status() == status
    assert text in caught.value.message()
    np.testing.assert_array_equal(client.infer("pair", pair()).as_numpy("total"), A + B)


@pytest.mark.parametrize("binary", [True, False])
def test_an_error_of_an_asynchronous_request_is_raised_where_its_answer_is_asked_for(client: Client, binary: bool) -> None:
    waiting = client.async_infer("linear", [given("x", X[:, :7], binary=binary)])
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'x'"):
        waiting.get_result(timeout=30)
