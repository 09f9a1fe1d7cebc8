"""Loads that bring a configuration, or a whole model; and Triton's own repositories."""

from __future__ import annotations

import asyncio
import json
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as stock_grpc
import tritonclient.http as stock_http
from onnx import helper
from tritonclient.utils import InferenceServerException

from server.control.uploads import PREFIX
from tests.server.models import Build, linear_model, place, sum_rows_model, two_inputs_model, value, write_model
from tests.server.running import Wire, http, in_thread, infer_json
from tests.server.test_control import act, answer_of, asked, explicit, index, write_anew


def load(config: Any = None, **files: bytes) -> bytes:
    """A load's body; a file's name has __ for its slash."""
    parameters: dict[str, Any] = {f"file:{name.replace('__', '/')}": b64encode(content).decode() for name, content in files.items()}
    if config is not None:
        parameters["config"] = config if isinstance(config, str) else json.dumps(config)
    return json.dumps({"parameters": parameters}).encode()


async def config_of(connection: Wire, model: str = "m") -> Any:
    return (await connection.ask(http(f"/v2/models/{model}/config", method="GET"))).json()


def model_bytes(folder: Path, seed: int) -> bytes:
    return linear_model(folder / ".bytes" / f"{seed}.onnx", seed=seed).read_bytes()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other test writes to."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def uploads() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_an_override_holds_until_the_model_is_unloaded(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", yaml="batching: {max_rows: 8}\nqueue: {priorities: 2}")
    async with explicit(tmp_path, "m") as (app, connection):
        assert (await config_of(connection))["max_batch_size"] == 8
        assert await act(connection, "load", "m", load({"max_batch_size": "16"})) == (200, "")
        found = await config_of(connection)
        assert (found["max_batch_size"], found["dynamic_batching"]["priority_levels"]) == (16, 2)
        before = app.table.version("m", "1")
        assert await act(connection, "load", "m") == (200, "")
        assert app.table.version("m", "1") is before, "nothing changed"
        write_anew(entry / "1" / "model.onnx", 2)
        assert await act(connection, "load", "m") == (200, "")
        assert (await config_of(connection))["max_batch_size"] == 16
        assert await asked(connection) == (200, pytest.approx(answer_of(2), rel=1e-4))
        assert await act(connection, "load", "m", load({})) == (200, "")
        assert (await config_of(connection))["max_batch_size"] == 8
        assert await act(connection, "load", "m", load({"max_batch_size": 4})) == (200, "")
        assert await act(connection, "unload", "m") == (200, "")
        assert await act(connection, "load", "m") == (200, "")
        assert (await config_of(connection))["max_batch_size"] == 8


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (load({"max_batch_size": -1}), 400, "config: max_batch_size: input should be"),
        (load("{"), 400, "config: not JSON"),
        (load({"nonsense": 1}), 400, "config: not a ModelConfig"),
        (load({"name": "other"}), 400, "name: is 'other'"),
        (load({"input": [{"name": "nobody", "dims": [1]}]}), 400, "inputs.nobody: the model has none of this name"),
        (load({"backend": "no_such"}), 400, "unknown backend 'no_such'"),
        (b'{"parameters": {"config": 5}}', 400, "parameters.config: expected a ModelConfig as JSON in a string, got int"),
        (b'{"parameters": []}', 400, "parameters: expected a JSON object, got list"),
        (b'{"parameters": {"other": "x"}}', 400, "parameters: expected config and file:PATH, got 'other'"),
        (b'{"parameters": {"file:1/model.onnx": "!"}}', 400, "expected the file in base64"),
        (b'{"parameters": {"file:1/model.onnx": 3}}', 400, "expected the file in base64"),
        (load({}, **{"1__model.onnx": b"x"}), 403, "--allow upload"),
        (b"[]", 400, "expected a JSON object"),
    ],
)
async def test_a_load_that_is_refused_changes_nothing(tmp_path: Path, body: bytes, status: int, text: str) -> None:
    place(tmp_path, "m", yaml="batching: {max_rows: 8}")
    async with explicit(tmp_path, "m") as (app, connection):
        before = app.table.version("m", "1")
        found, error = await act(connection, "load", "m", body)
        assert found == status
        assert text in error
        assert app.table.version("m", "1") is before
        assert (await asked(connection))[0] == 200
        assert await act(connection, "load", "m") == (200, ""), "a plain load keeps what serves"
        assert (await config_of(connection))["max_batch_size"] == 8


async def test_an_uploaded_model_takes_the_place_of_the_repositorys(tmp_path: Path) -> None:
    place(tmp_path, "m")
    before = uploads()
    async with explicit(tmp_path, "m", allow="upload") as (_, connection):
        body = load({"max_batch_size": 4}, **{"3__model.onnx": model_bytes(tmp_path, 3), "labels.txt": b"a\n"})
        assert await act(connection, "load", "m", body) == (200, "")
        assert await index(connection) == {("m", "3"): ("READY", "")}
        assert await asked(connection) == (200, pytest.approx(answer_of(3), rel=1e-4))
        assert (await config_of(connection))["max_batch_size"] == 4
        assert await act(connection, "load", "m") == (200, "")
        assert await asked(connection) == (200, pytest.approx(answer_of(3), rel=1e-4))
        assert await act(connection, "load", "m", load({}, **{"1__model.onnx": model_bytes(tmp_path, 4)})) == (200, "")
        assert await asked(connection) == (200, pytest.approx(answer_of(4), rel=1e-4))
        (folder,) = uploads() - before
        assert len(list(folder.iterdir())) == 1, "the first upload is gone"
        assert await act(connection, "load", "fresh", load({}, **{"1__model.onnx": model_bytes(tmp_path, 5)})) == (200, "")
        assert await asked(connection, "fresh") == (200, pytest.approx(answer_of(5), rel=1e-4))
        for model in ("m", "fresh"):
            assert await act(connection, "unload", model) == (200, "")
        assert list(folder.iterdir()) == []
        assert await act(connection, "load", "m") == (200, "")
        assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        assert (await act(connection, "load", "fresh"))[0] == 404
    assert uploads() == before
    assert names_in(tmp_path) == [".bytes", "m"], "nothing was written to the repository"


async def test_an_uploaded_model_that_cannot_be_served_leaves_the_old_one_and_no_file(tmp_path: Path) -> None:
    place(tmp_path, "m")
    before = uploads()
    async with explicit(tmp_path, "m", allow="upload") as (_, connection):
        status, error = await act(connection, "load", "m", load({}, **{"1__model.onnx": b"not a model"}))
        assert status == 400
        assert "version 1 is at UNAVAILABLE state: m/1/model.onnx: not an ONNX file" in error
        assert PREFIX not in error + (await index(connection))["m", "1"][1]
        assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        (folder,) = uploads() - before
        assert list(folder.iterdir()) == []


ELSEWHERE = (
    *("../m/1/model.onnx", "/etc/passwd", "1/../../x", "", "1/", "1//model.onnx", ".hidden", "1/.x"),
    *("1\\model.onnx", "a/" * 9 + "b", "x\0", "ü"),
)


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    before = uploads()
    async with explicit(tmp_path, allow="upload") as (_, connection):
        status, error = await act(connection, "load", "m", load({}, **{name.replace("/", "__"): b"x"}))
        assert (status, "expected a relative path" in error) == (400, True)
    assert uploads() == before


@pytest.mark.parametrize("model", ["..", "a%2fb", "%2e%2e%2fx", ".m", "x" * 300])
async def test_models_whose_names_lead_elsewhere(tmp_path: Path, model: str) -> None:
    async with explicit(tmp_path, allow="upload") as (_, connection):
        status, _ = await act(connection, "load", model, load({}, **{"1__model.onnx": b"x"}))
        assert status in (400, 404)
    assert names_in(tmp_path) == []
    assert uploads() == set()


async def test_files_that_are_in_each_others_way(tmp_path: Path) -> None:
    async with explicit(tmp_path, allow="upload") as (_, connection):
        for names in (("1", "1__model.onnx"), ("1__model.onnx", "1")):
            status, error = await act(connection, "load", "m", load({}, **dict.fromkeys(names, b"x")))
            assert (status, "a folder" in error) == (400, True), error


@pytest.mark.parametrize("length", [0, 1, 2, 3, (3 << 16) - 1, 3 << 16, (3 << 16) + 1, 500_000])
async def test_files_come_whole_whatever_their_length(tmp_path: Path, length: int) -> None:
    content = bytes(number % 251 for number in range(length))
    async with explicit(tmp_path, allow="upload") as (_, connection):
        body = load({}, **{"1__model.onnx": model_bytes(tmp_path, 1), "1__data.bin": content})
        assert await act(connection, "load", "m", body) == (200, "")
        (file,) = await asyncio.to_thread(lambda: list(next(iter(uploads())).glob("*/m/1/data.bin")))
        assert await asyncio.to_thread(file.read_bytes) == content


async def test_files_need_a_configuration(tmp_path: Path) -> None:
    async with explicit(tmp_path, allow="upload") as (_, connection):
        status, error = await act(connection, "load", "m", load(None, **{"1__model.onnx": b"x"}))
        assert (status, "`config` must come with them" in error) == (400, True)


def test_the_stock_clients(tmp_path: Path) -> None:
    place(tmp_path, "m")
    content = model_bytes(tmp_path, 6)
    with in_thread(tmp_path, grpc_port=0, model_control="explicit", allow=["upload"]) as app:
        for stock, address in ((stock_http, app.addresses.http), (stock_grpc, app.addresses.grpc)):
            with stock.InferenceServerClient(address) as client:
                client.load_model("m", config='{"max_batch_size": "16"}')
                found = client.get_model_config("m")
                assert (found["max_batch_size"] if isinstance(found, dict) else found.config.max_batch_size) == 16
                client.load_model("m", config="{}", files={"file:1/model.onnx": content})
                x = np.ones((1, 8), np.float32)
                given = stock.InferInput("x", [1, 8], "FP32").set_data_from_numpy(x)
                assert client.infer("m", [given]).as_numpy("y")[0].tolist() == pytest.approx(answer_of(6), rel=1e-4)
                client.unload_model("m")
                with pytest.raises(InferenceServerException, match="expected a relative path"):
                    client.load_model("m", config="{}", files={"file:../x": content})


# A repository as Triton has it


def pooled_model(path: Path, taken: list[int], given: list[int]) -> Path:
    """y = mean of x over its last two axes."""
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    return write_model(path, [node], [value("x", taken)], [value("y", given)])


TRITONS: dict[str, tuple[Build, str]] = {
    "simple": (
        two_inputs_model,
        """
        name: "simple"
        platform: "onnxruntime_onnx"
        max_batch_size: 8
        input [ { name: "a" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "b" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output [ { name: "total" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "product" data_type: TYPE_FP32 dims: [ 4 ] } ]
        dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }
        metric_tags { key: "team" value: "a" }
        """,
    ),
    "sums": (
        sum_rows_model,
        'backend: "onnxruntime" input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } output { name: "y" dims: [ 1, 4 ] }',
    ),
    "pictures": (
        lambda path: pooled_model(path, [1, 3, 2, 2], [1, 3, 1, 1]),
        """
        input [ { name: "x" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 2, 2 ] reshape { shape: [ 1, 3, 2, 2 ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 1, 3, 1, 1 ] } } ]
        """,
    ),
    "scalars": (
        lambda path: write_model(path, [helper.make_node("Neg", ["x"], ["y"])], [value("x", ["N"])], [value("y", ["N"])]),
        """
        max_batch_size: 4
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]
        """,
    ),
    "wrong": (linear_model, 'max_batch_size: 8 input { name: "x" data_type: TYPE_INT32 dims: [ 8 ] }'),
}


async def test_a_repository_of_config_pbtxt_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (build, text) in TRITONS.items():
        (place(tmp_path, name, build) / "config.pbtxt").write_text(text)
    async with explicit(tmp_path, "*") as (_, connection):
        rows = await index(connection)
        assert {name: state for (name, _), (state, _) in rows.items()} == {
            **dict.fromkeys(("pictures", "scalars", "simple", "sums"), "READY"),
            "wrong": "UNAVAILABLE",
        }
        assert "INT32" in rows["wrong", "1"][1]
        found = await config_of(connection, "simple")
        assert (found["max_batch_size"], found["dynamic_batching"]["preferred_batch_size"]) == (8, [4])
        found = await config_of(connection, "sums")
        assert (found["max_batch_size"], found["input"][0]["dims"]) == (0, [-1, 4])
        picture = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        (answer,) = (await connection.ask(infer_json("pictures", picture))).json()["outputs"]
        assert (answer["shape"], answer["data"]) == ([3], [1.5, 5.5, 9.5])
        (answer,) = (await connection.ask(infer_json("scalars", np.array([[1], [2]], np.float32)))).json()["outputs"]
        assert (answer["shape"], answer["data"]) == ([2, 1], [-1.0, -2.0])
        assert (await config_of(connection, "scalars"))["input"][0]["dims"] == [1]
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    warnings = [line["reason"] for line in logged if line["event"] == "configuration_passed_over"]
    assert warnings == [f"{tmp_path / 'simple' / 'config.pbtxt'}:8:9: metric_tags: nothing here acts on it"]
