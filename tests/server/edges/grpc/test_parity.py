"""HTTP and gRPC give the same answers and the same errors to the same request: one table, run through both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from server.app import App
from tests.server.edges.grpc.wire import Client, connected, tensors
from tests.server.models import embedding_model, linear_model, two_inputs_model
from tests.server.protocol.wire import raw
from tests.server.running import in_thread

CODES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 500: "INTERNAL", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE"}
A = np.arange(8, dtype=np.float32).reshape(2, 4)
X = np.ones((3, 8), np.float32)


@dataclass(frozen=True)
class Asked:
    """One request, whichever way it goes. `status` is what HTTP answers; `shapes` override those of the arrays."""

    model: str
    inputs: Mapping[str, Any]
    status: int = 200
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, list[int]] = field(default_factory=dict)
    datatypes: Mapping[str, str] = field(default_factory=dict)
    id: str = "the id"


CASES = {
    "two inputs": Asked("pair", {"a": A, "b": A + 1}),
    "one output": Asked("pair", {"a": A, "b": A + 1}, outputs=("product",)),
    "outputs in another order": Asked("pair", {"b": A, "a": A + 1}, outputs=("product", "total")),
    "a version": Asked("linear", {"x": X}, version="1"),
    "parameters": Asked("linear", {"x": X}, parameters={"timeout": 10_000_000, "note": "x", "share": 0.5, "yes": True}),
    "no id": Asked("linear", {"x": X}, id=""),
    "the parameter that may be": Asked("linear", {"x": X}, parameters={"triton_enable_empty_final_response": True}),
    "unknown model": Asked("nobody", {"x": X}, 404),
    "unknown version": Asked("linear", {"x": X}, 404, version="9"),
    "a version that's no number": Asked("linear", {"x": X}, 404, version="latest"),
    "not ready": Asked("corrupt", {"x": X}, 503),
    "a missing input": Asked("pair", {"a": A}, 400),
    "an unknown input": Asked("linear", {"z": X}, 400),
    "too many inputs": Asked("linear", {"x": X, "y": X}, 400),
    "no inputs": Asked("linear", {}, 400),
    "an unknown output": Asked("linear", {"x": X}, 400, outputs=("z",)),
    "an output twice": Asked("linear", {"x": X}, 400, outputs=("y", "y")),
    "a shape": Asked("linear", {"x": X[:, :7]}, 400),
    "too many axes": Asked("linear", {"x": X}, 400, shapes={"x": [1] * 40}),
    "rows that differ": Asked("pair", {"a": A, "b": A[:1]}, 400),
    "no rows": Asked("linear", {"x": X[:0]}, 400),
    "too many rows": Asked("linear", {"x": np.ones((65, 8), np.float32)}, 400),
    "a datatype": Asked("linear", {"x": X.astype(np.float64)}, 400),
    "an unknown datatype": Asked("linear", {"x": X}, 400, datatypes={"x": "FP12"}),
    "a size": Asked("linear", {"x": X}, 400, shapes={"x": [4, 8]}),
    "a negative axis": Asked("linear", {"x": X}, 400, shapes={"x": [-1, 8]}),
    "a product that overflows": Asked("linear", {"x": X}, 400, shapes={"x": [2**32, 2**32]}),
    "an empty shape": Asked("linear", {"x": X}, 400, shapes={"x": [0, 2**60]}),
    "an input without name": Asked("linear", {"": X}, 400),
    "a long name": Asked("linear", {"x" * 300: X}, 400),
    "a long id": Asked("linear", {"x": X}, 400, id="i" * 2000),
    "a reserved parameter": Asked("linear", {"x": X}, 400, parameters={"triton_other": 1}),
    "a time-out that's none": Asked("linear", {"x": X}, 400, parameters={"timeout": "soon"}),
    "a time-out below zero": Asked("linear", {"x": X}, 400, parameters={"timeout": -1}),
    "a time-out that has passed": Asked("linear", {"x": X}, 503, parameters={"timeout": 1}),
    "values that the model can't take": Asked("words", {"tokens": np.array([[99]])}, 400),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("parity")
    two_inputs_model(root / "pair" / "1" / "model.onnx")
    embedding_model(root / "words" / "1" / "model.onnx")
    for version in ("1", "2"):
        linear_model(root / "linear" / version / "model.onnx", seed=int(version))
    (root / "linear" / "model.yaml").write_text("versions: {policy: all}\nbatching: {max_rows: 64}\n")
    (root / "corrupt" / "1").mkdir(parents=True)
    (root / "corrupt" / "1" / "model.onnx").write_bytes(b"not a model")
    with in_thread(root, grpc_port=0) as app:
        yield app


@pytest.fixture(scope="module")
def client(served: App) -> Iterator[Client]:
    with connected(served.addresses.grpc) as one:
        yield one


def described(asked: Asked) -> list[dict[str, Any]]:
    datatypes = {np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64", np.dtype(np.int64): "INT64"}
    return [
        {
            "name": name,
            "datatype": asked.datatypes.get(name, datatypes[array.dtype]),
            "shape": asked.shapes.get(name, list(array.shape)),
        }
        for name, array in asked.inputs.items()
    ]


def over_http(address: str, asked: Asked) -> tuple[int, Any]:
    """Status, and the answer's facts and tensors, or the error's text."""
    inputs = [{**tensor, "parameters": {"binary_data_size": asked.inputs[tensor["name"]].nbytes}} for tensor in described(asked)]
    head: dict[str, Any] = {"id": asked.id, "parameters": {**asked.parameters, "binary_data_output": True}, "inputs": inputs}
    if asked.outputs:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in asked.outputs]
    text = json.dumps(head).encode()
    version = f"/versions/{asked.version}" if asked.version else ""
    answer = httpx.post(
        f"http://{address}/v2/models/{asked.model}{version}/infer",
        content=text + b"".join(map(raw, asked.inputs.values())),
        headers={"inference-header-content-length": str(len(text))},
    )
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]
    at = int(answer.headers["inference-header-content-length"])
    document = json.loads(answer.content[:at])
    found = {}
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(answer.content[at : at + size], np.float32).reshape(output["shape"]).tolist()
        at += size
    return 200, (document["model_name"], document["model_version"], document.get("id", ""), list(found), found)


def message(asked: Asked) -> bytes:
    built = service_pb2.ModelInferRequest(model_name=asked.model, model_version=asked.version, id=asked.id)
    for tensor in described(asked):
        built.inputs.add(**tensor)
        built.raw_input_contents.append(raw(asked.inputs[tensor["name"]]))
    for name in asked.outputs:
        built.outputs.add(name=name)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in asked.parameters.items():
        setattr(built.parameters[name], kinds[type(value)], value)
    written: bytes = built.SerializeToString()
    return written


def facts(answer: Any) -> Any:
    found = {name: array.tolist() for name, array in tensors(answer).items()}
    return answer.model_name, answer.model_version, answer.id, list(found), found


@pytest.mark.parametrize("case", CASES)
def test_same(served: App, client: Client, case: str) -> None:
    asked = CASES[case]
    status, said = over_http(served.addresses.http, asked)
    assert status == asked.status, said
    if status == 200:
        assert facts(client.infer(message(asked))) == said
        (streamed,) = client.stream([message(asked)])
        assert facts(streamed.infer_response) == said
    else:
        assert client.refused("ModelInfer", message(asked)) == (CODES[status], said)
        (streamed,) = client.stream([message(asked)])
        assert streamed.error_message == said
