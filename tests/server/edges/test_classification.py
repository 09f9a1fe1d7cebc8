"""The classification extension by stock clients, over HTTP and gRPC: labels of model.yaml, batches, and models without rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from server.app import App
from tests.server.models import identity_model, place, two_inputs_model
from tests.server.running import in_thread

ROWS = np.array([[0.25, 4, -1, 4], [1, 2, 3, 0]], np.float32)
CLASSES = [[b"4.000000:1:dog", b"4.000000:3:fox", b"0.250000:0:cat"], [b"3.000000:2:eel", b"2.000000:1:dog", b"1.000000:0:cat"]]


def four_wide(path: Path) -> Path:
    return identity_model(path, width=4)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    root = tmp_path_factory.mktemp("classes")
    entry = place(root, "animals", four_wide, yaml="outputs: {y: {labels: animals.txt}}\n")
    (entry / "animals.txt").write_text("cat\ndog\neel\nfox\n")
    place(root, "single", lambda path: identity_model(path, width=4, rows=1))
    place(root, "sums", two_inputs_model)
    with in_thread(root, grpc_port=0) as app:
        yield app


def by_http(app: App, model: str, rows: Any, count: int, binary: bool = True) -> Any:
    with http.InferenceServerClient(app.addresses.http) as client:
        given = http.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows)
        return client.infer(model, [given], outputs=[http.InferRequestedOutput("y", binary, class_count=count)]).as_numpy("y")


def by_grpc(app: App, model: str, rows: Any, count: int) -> Any:
    with grpc.InferenceServerClient(app.addresses.grpc) as client:
        given = grpc.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows)
        return client.infer(model, [given], outputs=[grpc.InferRequestedOutput("y", class_count=count)]).as_numpy("y")


def test_labels_and_rows(served: App) -> None:
    assert by_http(served, "animals", ROWS, 3).tolist() == CLASSES
    assert by_grpc(served, "animals", ROWS, 3).tolist() == CLASSES
    in_json = by_http(served, "animals", ROWS, 3, binary=False).tolist()
    assert in_json == [[text.decode() for text in row] for row in CLASSES]


def test_more_than_there_are_is_all(served: App) -> None:
    assert by_http(served, "animals", ROWS, 99).shape == by_grpc(served, "animals", ROWS, 99).shape == (2, 4)


def test_none_is_the_output_itself(served: App) -> None:
    np.testing.assert_array_equal(by_http(served, "animals", ROWS, 0), ROWS)
    np.testing.assert_array_equal(by_grpc(served, "animals", ROWS, 0), ROWS)


def test_a_model_without_rows_has_one_list(served: App) -> None:
    assert by_http(served, "single", ROWS[:1], 2).tolist() == [b"4.000000:1", b"4.000000:3"]
    assert by_grpc(served, "single", ROWS[:1], 2).tolist() == [b"4.000000:1", b"4.000000:3"]


def test_beside_an_output_that_comes_whole(served: App) -> None:
    given = [http.InferInput(name, [2, 4], "FP32").set_data_from_numpy(ROWS) for name in "ab"]
    wanted = [http.InferRequestedOutput("product"), http.InferRequestedOutput("total", class_count=1)]
    with http.InferenceServerClient(served.addresses.http) as client:
        result = client.infer("sums", given, outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("product"), ROWS * ROWS)
    assert result.as_numpy("total").tolist() == [[b"8.000000:1"], [b"6.000000:2"]]


def test_an_output_that_is_none_of_the_models(served: App) -> None:
    given = http.InferInput("x", [2, 4], "FP32").set_data_from_numpy(ROWS)
    with (
        http.InferenceServerClient(served.addresses.http) as client,
        pytest.raises(InferenceServerException, match="unexpected inference output 'z'"),
    ):
        client.infer("animals", [given], outputs=[http.InferRequestedOutput("z", class_count=2)])
