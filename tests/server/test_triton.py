"""The configuration of a served version, as Triton's stock clients read it over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http

from server.app import App
from tests.server.models import centred_model, linear_model, place, scaled_model
from tests.server.running import in_thread

BATCHED = """
batching: {max_rows: 16, max_wait: 5ms, preferred_rows: [4, 8]}
queue: {max_rows: 100, timeout: 2s, priorities: 3}
versions: {policy: all}
warmup: {rows: [2]}
outputs: {y: {labels: names.txt}}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("triton")
    entry = place(root, "batched", yaml=BATCHED)
    linear_model(entry / "3" / "model.onnx")
    (entry / "names.txt").write_text("a\nb\nc\nd\n")
    place(root, "plain", scaled_model, yaml="versions: {policy: [1]}")
    place(root, "alone", centred_model)
    with in_thread(root, grpc_port=0) as app:
        yield app


def config(app: App, model: str, version: str = "") -> dict[str, Any]:
    """By HTTP; gRPC must say the same."""
    with stock_http.InferenceServerClient(app.addresses.http) as http, stock_grpc.InferenceServerClient(app.addresses.grpc) as grpc:
        found: dict[str, Any] = http.get_model_config(model, version)
        message = grpc.get_model_config(model, version).config
        assert (message.name, message.max_batch_size) == (found["name"], found["max_batch_size"])
        assert [list(tensor.dims) for tensor in message.input] == [tensor["dims"] for tensor in found["input"]]
        assert message.HasField("dynamic_batching") == ("dynamic_batching" in found)
        return found


def test_a_batched_model(served: App) -> None:
    found = config(served, "batched")
    assert found["max_batch_size"] == 16
    assert (found["backend"], found["platform"], found["default_model_filename"]) == ("onnxruntime", "onnxruntime", "model.onnx")
    assert [(tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in found["input"]] == [("x", "TYPE_FP32", [8])]
    assert [(tensor["name"], tensor["dims"], tensor["label_filename"]) for tensor in found["output"]] == [("y", [4], "names.txt")]
    assert found["version_policy"] == {"all": {}}
    assert found["dynamic_batching"] == {
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": 5000,
        "preserve_ordering": False,
        "priority_levels": 3,
        "default_priority_level": 3,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": 2_000_000,
            "allow_timeout_override": True,
            "max_queue_size": 100,
        },
        "priority_queue_policy": {},
    }
    assert [(group["kind"], group["gpus"]) for group in found["instance_group"]] == [("KIND_CPU", [])]
    assert found["instance_group"][0]["count"] >= 1
    assert [warm["batch_size"] for warm in found["model_warmup"]] == [2]
    assert found["parameters"] == {"precision": {"string_value": "fp32"}}
    assert config(served, "batched", "1")["name"] == "batched"


def test_an_unbatched_model_says_its_whole_shapes(served: App) -> None:
    found = config(served, "alone")
    assert found["max_batch_size"] == 0
    assert [tensor["dims"] for tensor in found["input"]] == [[-1, 4]]
    assert "dynamic_batching" not in found


def test_a_list_of_versions(served: App) -> None:
    assert config(served, "plain")["version_policy"] == {"specific": {"versions": [1]}}


@pytest.mark.parametrize(("model", "version"), [("nobody", ""), ("batched", "2")])
def test_what_is_not_there(served: App, model: str, version: str) -> None:
    with pytest.raises(Exception, match="Request for unknown model") as caught:
        config(served, model, version)
    assert caught.value.status() == "404"  # type: ignore[attr-defined]
