"""What every transport must do: each case takes a transport and fails like a test. They run in the client's process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm

from server.config import VERSION
from server.tensors import DTYPES, Tensor
from tests.conformance.transports import Ask, Http, Refused, Transport
from tests.server.models import linear_weights
from tests.server.protocol.wire import FLOATS, assert_same

Case: TypeAlias = Callable[[Any], None]

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = A + 100
X = np.ones((1, 8), np.float32)
PAIR = {"a": A, "b": B}


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


def good(transport: Transport) -> None:
    """The request that must succeed after whatever went wrong."""
    answer = transport.infer(Ask("pair", PAIR))
    np.testing.assert_array_equal(answer.outputs["total"], A + B)


# Health, metadata, index


def health(transport: Transport) -> None:
    assert transport.ask("is_server_live")
    assert transport.ask("is_server_ready")
    for model, version, ready in (
        ("pair", "", True),
        ("pair", "1", True),
        ("linear", "3", True),
        ("linear", "2", False),
        ("corrupt", "", False),
        ("nobody", "", False),
    ):
        assert transport.ask("is_model_ready", model, version) is ready, (model, version)


def server_metadata(transport: Transport) -> None:
    found = transport.ask("get_server_metadata")
    assert (found["name"], found["version"]) == ("tidegate", VERSION)
    assert {"binary_tensor_data", "parameters"} <= set(found["extensions"])


def model_metadata(transport: Transport) -> None:
    expected = {
        "name": "linear",
        "versions": ["1", "3"],
        "platform": "onnxruntime",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    for version in ("", "1"):
        assert transport.ask("get_model_metadata", "linear", version) == expected
    with pytest.raises(Refused, match="Request for unknown model: 'nobody' is not found") as caught:
        transport.ask("get_model_metadata", "nobody")
    assert caught.value.code == "NOT_FOUND"


def model_configuration(transport: Transport) -> None:
    for version in ("", "1"):
        found = transport.ask("get_model_config", "linear", version)
        config = found.get("config", found)
        assert (config["name"], int(config["max_batch_size"])) == ("linear", 8)
        assert [(tensor["name"], [int(axis) for axis in tensor["dims"]]) for tensor in config["input"]] == [("x", [8])]
    with pytest.raises(Refused, match="Request for unknown model: 'nobody' is not found"):
        transport.ask("get_model_config", "nobody")


def statistics(transport: Transport) -> None:
    def rows(*names: str) -> dict[tuple[str, str], int]:
        found = transport.ask("get_inference_statistics", *names)["model_stats"]
        assert all(len(each["inference_stats"]) == 8 for each in found)
        return {(each["name"], each["version"]): int(each["inference_count"]) for each in found}

    before = rows("pair")
    good(transport)
    assert rows("pair", "1") == rows("pair") == {("pair", "1"): before["pair", "1"] + 2}
    index = transport.ask("get_model_repository_index")
    ready = [row for row in (index["models"] if isinstance(index, dict) else index) if row["state"] == "READY"]
    assert rows().keys() == {(row["name"], row["version"]) for row in ready}
    with pytest.raises(Refused, match="Request for unknown model: 'nobody' is not found"):
        transport.ask("get_inference_statistics", "nobody")


def settings(transport: Transport) -> None:
    def chosen(answer: Any) -> dict[str, Any]:
        """A gRPC answer's settings as HTTP's twin has them."""
        return {name: one.get("value", one) for name, one in answer["settings"].items()} if "settings" in answer else answer

    before = chosen(transport.ask("get_trace_settings"))
    assert {"trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file"} <= before.keys()
    changed = chosen(transport.ask("update_trace_settings", "pair", {"trace_rate": "7"}))
    assert changed["trace_rate"] in ("7", ["7"])
    assert chosen(transport.ask("get_trace_settings", "pair")) == changed != before
    assert chosen(transport.ask("update_trace_settings", "pair", {"trace_rate": None})) == before
    assert chosen(transport.ask("update_trace_settings", "", {"trace_count": None})) == before
    with pytest.raises(Refused, match="trace_rate: expected a number"):
        transport.ask("update_trace_settings", "pair", {"trace_rate": "often"})
    logs = chosen(transport.ask("get_log_settings"))
    assert {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"} <= logs.keys()
    assert chosen(transport.ask("update_log_settings", {"log_warning": False})) != logs
    assert chosen(transport.ask("update_log_settings", {"log_warning": True})) == logs


def repository_index(transport: Transport) -> None:
    found = transport.ask("get_model_repository_index")
    rows = {(row["name"], row["version"]): row for row in (found["models"] if isinstance(found, dict) else found)}
    assert rows["linear", "1"] == {"name": "linear", "version": "1", "state": "READY", "reason": ""}
    assert rows["corrupt", "1"]["state"] == "UNAVAILABLE"
    assert "model.onnx" in rows["corrupt", "1"]["reason"]
    assert len(rows) == len(DTYPES) + 6


def most_rows(transport: Transport, model: str) -> int:
    found = transport.ask("get_model_config", model)
    return int(found.get("config", found)["max_batch_size"])


def repository_control(transport: Transport) -> None:
    transport.ask("unload_model", "spare")
    assert not transport.ask("is_model_ready", "spare")
    with pytest.raises(Refused, match="not at ready state"):
        transport.infer(Ask("spare", PAIR))
    transport.ask("load_model", "spare", config='{"max_batch_size": "16"}')
    assert most_rows(transport, "spare") == 16
    transport.ask("unload_model", "spare", unload_dependents=True)
    transport.ask("load_model", "spare")
    assert transport.ask("is_model_ready", "spare")
    assert most_rows(transport, "spare") == 64
    transport.infer(Ask("spare", PAIR))
    for act, model, code, text in (
        ("load_model", "nobody", "NOT_FOUND", "failed to load 'nobody'"),
        ("load_model", "corrupt", "INVALID_ARGUMENT", "failed to load 'corrupt', version 1 is at UNAVAILABLE state: "),
        ("unload_model", "nobody", "NOT_FOUND", "failed to unload 'nobody'"),
    ):
        with pytest.raises(Refused) as caught:
            transport.ask(act, model)
        assert (caught.value.code, text in caught.value.text) == (code, True), caught.value


# Answers


def datatype(name: str, transport: Transport) -> None:
    array = sample(name)
    answer = transport.infer(Ask(f"echo_{name}", {"x": array}, outputs=["y"]))
    assert_same(answer.outputs["y"], array)


def everything_without_outputs(transport: Transport) -> None:
    answer = transport.infer(Ask("pair", PAIR))
    assert (answer.model, answer.version, answer.id) == ("pair", "1", "")
    assert list(answer.outputs) == ["total", "product"]
    np.testing.assert_array_equal(answer.outputs["total"], A + B)
    np.testing.assert_array_equal(answer.outputs["product"], A * B)


def requested_outputs(transport: Transport) -> None:
    for wanted in (["product"], ["total"], ["product", "total"]):
        answer = transport.infer(Ask("pair", {"b": B, "a": A}, outputs=wanted))
        assert list(answer.outputs) == wanted
        for name in wanted:
            np.testing.assert_array_equal(answer.outputs[name], {"product": A * B, "total": A + B}[name])


def rows(transport: Transport) -> None:
    weight, bias = linear_weights(seed=3)
    random = np.random.default_rng(0)
    for count in range(1, 9):
        batch = random.standard_normal((count, 8), np.float32)
        answer = transport.infer(Ask("linear", {"x": batch}, outputs=["y"]))
        np.testing.assert_allclose(answer.outputs["y"], batch @ weight + bias, rtol=1e-4, atol=1e-5)


def strings(transport: Transport) -> None:
    """BYTES of many lengths, several rows: none leaks into its neighbour."""
    array = np.empty((8, 5), object)
    for place in np.ndindex(array.shape):
        array[place] = ("é" * ((place[0] * 5 + place[1]) * 7 % 40)).encode()
    answer = transport.infer(Ask("echo_BYTES", {"x": array}, outputs=["y"]))
    assert_same(answer.outputs["y"], array)


def not_a_number(transport: Transport) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    np.testing.assert_array_equal(transport.infer(Ask("echo_FP32", {"x": array}, outputs=["y"])).outputs["y"], array)


def ids(transport: Transport) -> None:
    for text in ("281474976710656", 'a "quoted" ü', "x" * 1024):
        assert transport.infer(Ask("pair", PAIR, id=text)).id == text


def versions(transport: Transport) -> None:
    for version, answers in (("", "3"), ("1", "1"), ("3", "3")):
        answer = transport.infer(Ask("linear", {"x": X}, version=version))
        assert answer.version == answers
        weight, bias = linear_weights(seed=int(answers))
        np.testing.assert_allclose(answer.outputs["y"], X @ weight + bias, rtol=1e-4, atol=1e-5)


def parameters(transport: Transport) -> None:
    """Custom ones are taken whatever their kind; those with a meaning act."""
    answer = transport.infer(Ask("pair", PAIR, parameters={"note": "x", "share": 0.5, "seven": 7, "yes": True}))
    np.testing.assert_array_equal(answer.outputs["total"], A + B)
    answer = transport.infer(Ask("pair", PAIR, options={"priority": 1, "timeout": 10_000_000}))
    np.testing.assert_array_equal(answer.outputs["total"], A + B)
    explained = transport.infer(Ask("pair", PAIR, parameters={"explain": True})).parameters
    assert explained["rows"] == 2
    assert explained["batch_rows"] >= 2


def shared_memory(transport: Transport) -> None:
    """A region is registered, listed and forgotten, by itself and with all others; CUDA's are none."""
    handle = shm.create_shared_memory_region("region", f"/tidegate_conformance_{os.getpid()}", 64)
    try:
        for forget in ((), ("region",)):
            transport.ask("register_system_shared_memory", "region", f"/tidegate_conformance_{os.getpid()}", 32, offset=32)
            for which in ((), ("region",)):
                found = str(transport.ask("get_system_shared_memory_status", *which))
                assert ("region" in found, "32" in found) == (True, True)
            transport.ask("unregister_system_shared_memory", *forget)
            assert "region" not in str(transport.ask("get_system_shared_memory_status")).replace("regions", "")
        with pytest.raises(Refused, match="CUDA shared memory is unsupported here"):
            transport.ask("register_cuda_shared_memory", "region", b"", 0, 64)
        for which in ((), ("region",)):
            transport.ask("get_cuda_shared_memory_status", *which)
            transport.ask("unregister_cuda_shared_memory", *which)
    finally:
        shm.destroy_shared_memory_region(handle)
    good(transport)


def classification(transport: Transport) -> None:
    """The classes of the largest values, the largest first, ties by their number; 0 is off, and more than there are is all."""
    scores = np.array([[0.5, 2.0, -1.0, 2.0], [9.0, 8.0, 7.0, 6.0]], np.float32)
    for count, labels in ((1, [[b"2:1"], [b"9:0"]]), (9, [[b"2:1", b"2:3", b"0.5:0", b"-1:2"], [b"9:0", b"8:1", b"7:2", b"6:3"]])):
        found = transport.infer(Ask("echo_FP32", {"x": scores}, outputs=["y"], class_count=count)).outputs["y"]
        assert [[split(value) for value in row] for row in found.tolist()] == [[split(label) for label in row] for row in labels]
    whole = transport.infer(Ask("echo_FP32", {"x": scores}, outputs=["y"])).outputs["y"]
    np.testing.assert_array_equal(whole, scores)


def split(label: bytes) -> tuple[float, int]:
    """A value and the number of its class."""
    value, number = label.split(b":")
    return float(value), int(number)


# Errors


ERRORS: Mapping[str, tuple[Ask, str, str]] = {
    "unknown model": (Ask("nobody", PAIR), "NOT_FOUND", "Request for unknown model: 'nobody' is not found"),
    "unknown version": (Ask("pair", PAIR, version="9"), "NOT_FOUND", "Request for unknown model: 'pair' version 9 is not found"),
    "not ready": (Ask("corrupt", PAIR), "UNAVAILABLE", "is not at ready state"),
    "shape": (
        Ask("linear", {"x": X[:, :7]}),
        "INVALID_ARGUMENT",
        "unexpected shape for input 'x' for model 'linear'. Expected [-1,8], got [1,7]",
    ),
    "rank": (Ask("linear", {"x": X[0]}), "INVALID_ARGUMENT", "unexpected shape for input 'x' for model 'linear'. Expected [-1,8], got [8]"),
    "datatype": (
        Ask("linear", {"x": X.astype(np.int32)}),
        "INVALID_ARGUMENT",
        "inference input 'x' data-type is 'INT32', but model 'linear' expects 'FP32'",
    ),
    "missing input": (
        Ask("pair", {"a": A}),
        "INVALID_ARGUMENT",
        "expected 2 inputs but got 1 inputs for model 'pair'. Got input(s) ['a'], but missing required input(s) ['b']. "
        "Please provide all required input(s).",
    ),
    "unknown input": (Ask("linear", {"z": X}), "INVALID_ARGUMENT", "unexpected inference input 'z' for model 'linear'"),
    "unknown output": (Ask("linear", {"x": X}, outputs=["z"]), "INVALID_ARGUMENT", "unexpected inference output 'z' for model 'linear'"),
    "output twice": (Ask("linear", {"x": X}, outputs=["y", "y"]), "INVALID_ARGUMENT", "output 'y' already exists in request"),
    "size": (Ask("linear", {"x": X}, shape=[2, 8]), "INVALID_ARGUMENT", "'x'"),
    "no rows": (Ask("linear", {"x": X[:0]}), "INVALID_ARGUMENT", "at least one row"),
    "too many rows": (
        Ask("linear", {"x": np.ones((9, 8), np.float32)}),
        "INVALID_ARGUMENT",
        "inference request batch-size must be <= 8 for 'linear', got 9",
    ),
    "rows that differ": (Ask("pair", {"a": A, "b": B[:1]}), "INVALID_ARGUMENT", "'b'"),
    "late": (Ask("pair", PAIR, options={"timeout": 1}), "UNAVAILABLE", "Request timeout expired"),
    "priority": (Ask("pair", PAIR, options={"priority": 9}), "INVALID_ARGUMENT", "priority"),
}


def error(name: str, transport: Transport) -> None:
    ask, code, text = ERRORS[name]
    with pytest.raises(Refused) as caught:
        transport.infer(ask)
    assert caught.value.code in (code, ""), caught.value
    assert text in caught.value.text
    good(transport)


# What the stock clients don't know


def own_pages(transport: Http) -> None:
    """Routes of ours, asked by plain HTTP, with and without a version."""
    for model, page in (("pair", "batcher"), ("exported", "manifest")):
        for path in (f"/v2/models/{model}/{page}", f"/v2/models/{model}/versions/1/{page}"):
            with urlopen(f"http://{transport.address}{path}") as answer:
                assert answer.status == 200
            transport.calls.add(("GET", path))


def generate(transport: Http) -> None:
    """Plain JSON in and out; no stock client knows it."""
    for path in ("/v2/models/pair/generate", "/v2/models/pair/versions/1/generate"):
        for suffix, before in (("", b"{"), ("_stream", b"data: {")):
            with urlopen(f"http://{transport.address}{path}{suffix}", json.dumps({"a": A.tolist(), "b": B.tolist()}).encode()) as answer:
                said = answer.read()
            assert said.startswith(before)
            assert json.loads(said.removeprefix(b"data: "))["total"] == (A + B).reshape(-1).tolist()
            transport.calls.add(("POST", path + suffix))


CASES: Mapping[str, Case] = {
    "health": health,
    "server metadata": server_metadata,
    "model metadata": model_metadata,
    "model configuration": model_configuration,
    "statistics": statistics,
    "settings": settings,
    "repository index": repository_index,
    "repository control": repository_control,
    **{f"datatype {name}": partial(datatype, name) for name in DTYPES},
    "everything without outputs": everything_without_outputs,
    "requested outputs": requested_outputs,
    "rows": rows,
    "strings": strings,
    "not a number": not_a_number,
    "ids": ids,
    "versions": versions,
    "parameters": parameters,
    "classification": classification,
    "shared memory": shared_memory,
    **{f"error {name}": partial(error, name) for name in ERRORS},
}
HTTP_CASES: Mapping[str, Case] = {"own pages": own_pages, "generate": generate}
"""For one transport only: "http binary"."""
