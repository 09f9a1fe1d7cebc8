"""Raw binary requests: a body that is the values of the only input, and nothing else."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from onnx import helper

from server.app import App
from tests.server.models import embedding_model, identity_model, linear_model, linear_weights, place, two_inputs_model, value, write_model
from tests.server.running import INFER, Answer, Wire, http, running, wire

RAW = {"inference-header-content-length": "0"}


def two_axes(path: Path) -> Path:
    return write_model(path, [helper.make_node("Identity", ["x"], ["y"])], [value("x", ["N", "H", "W"])], [value("y", ["N", "H", "W"])])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("headless")
    place(root, "linear", linear_model)
    place(root, "linear", lambda path: linear_model(path, seed=2), version="2")
    place(root, "wide", lambda path: identity_model(path, "INT64", "W"))
    place(root, "words", embedding_model)
    place(root, "text", lambda path: identity_model(path, "BYTES", 1))
    place(root, "texts", lambda path: identity_model(path, "BYTES", 2))
    place(root, "flags", lambda path: identity_model(path, "BOOL", 4))
    place(root, "sums", two_inputs_model)
    place(root, "image", two_axes)
    (root / "linear" / "model.yaml").write_text("versions: {policy: all}\n")
    return root


@pytest_asyncio.fixture
async def app(repository: Path) -> AsyncIterator[App]:
    async with running(repository) as served:
        yield served


async def ask(connection: Wire, model: str, body: bytes) -> Answer:
    return await connection.ask(http(INFER.format(model), body, headers=RAW))


async def test_one_row_of_a_known_length(connection: Wire) -> None:
    x = np.arange(8, dtype=np.float32)
    weight, bias = linear_weights(seed=2)
    for _ in range(3):  # the second and third know the head
        answer = await ask(connection, "linear", x.tobytes())
        np.testing.assert_allclose(answer.tensor(), x @ weight + bias, rtol=1e-5)
        assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]


async def test_the_version_of_the_url_answers(connection: Wire) -> None:
    answer = await ask(connection, "linear/versions/1", np.zeros(8, np.float32).tobytes())
    assert answer.json()["model_version"] == "1"
    np.testing.assert_allclose(answer.tensor(), linear_weights()[1])


async def test_an_axis_that_varies_is_as_long_as_the_bytes_make_it(connection: Wire) -> None:
    for length in (1, 5, 100_000):
        answer = await ask(connection, "wide", np.arange(length).tobytes())
        assert answer.json()["outputs"][0]["shape"] == [1, length]
        assert answer.tensor("<i8").tolist() == list(range(length))
    assert (await ask(connection, "words", np.array([3, 5]).tobytes())).tensor().tolist() == [4, 4, 4, 4]


async def test_text_comes_without_its_length(connection: Wire) -> None:
    answer = await ask(connection, "text", b"any \x00 bytes")
    assert answer.body.endswith(b"\x0b\x00\x00\x00any \x00 bytes")


async def test_flags(connection: Wire) -> None:
    assert (await ask(connection, "flags", b"\x00\x01\x00\x07")).tensor("u1").tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("model", "body", "status", "text"),
    [
        ("sums", bytes(16), 400, "Raw request must only have 1 input to be deduced but got 2 inputs in model 'sums'"),
        ("image", bytes(16), 400, "'x' of model 'image' can not be deduced because there are more than one variable-sized dimension"),
        ("texts", b"a", 400, "For BYTES datatype raw input 'x', the model 'texts' must have input shape [1]"),
        ("linear", bytes(31), 400, "input byte size mismatch for input 'x' for model 'linear'. Expected 32, got 31"),
        ("linear", bytes(64), 400, "Expected 32, got 64"),
        ("linear", b"", 400, "Expected 32, got 0"),
        ("wide", bytes(9), 400, "Expected 8, got 9"),
        ("nobody", bytes(8), 404, "Request for unknown model: 'nobody' is not found"),
    ],
)
async def test_what_cannot_be_deduced_is_refused(connection: Wire, model: str, body: bytes, status: int, text: str) -> None:
    answer = await ask(connection, model, body)
    assert (answer.status, text in answer.json()["error"]) == (status, True), answer.json()
    assert (await ask(connection, "linear", bytes(32))).status == 200


async def test_compressed(app: App) -> None:
    async with wire(app) as connection:
        headers = {**RAW, "content-encoding": "deflate"}
        answer = await connection.ask(http(INFER.format("linear"), zlib.compress(bytes(32)), headers=headers))
        assert answer.status == 200
