"""Loading and unloading by request: what serves meanwhile, what the index says, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.app import App
from server.errors import ConfigError
from server.metrics.catalogue import CATALOGUE, TRITON
from tests.server.models import identity_model, linear_model, linear_weights, place, slow_model
from tests.server.running import Wire, http, infer_json, running, wire

X = np.ones((1, 8), np.float32)


def answer_of(seed: int) -> list[float]:
    """What linear_model gives for X."""
    weight, bias = linear_weights(seed=seed)
    values: list[float] = (X @ weight + bias)[0].tolist()
    return values


def write_anew(file: Path, seed: int) -> None:
    """Put another model in a file's place, as one should: beside it, then renamed."""
    linear_model(file.with_name(".new"), seed=seed).rename(file)


@asynccontextmanager
async def explicit(repository: Path, *load: str, **settings: Any) -> AsyncIterator[tuple[App, Wire]]:
    async with running(repository, model_control="explicit", load_model=list(load), **settings) as app, wire(app) as connection:
        yield app, connection


async def act(connection: Wire, action: str, model: str, body: bytes = b"") -> tuple[int, str]:
    """Status and error of a load or unload."""
    answer = await connection.ask(http(f"/v2/repository/models/{model}/{action}", body))
    return answer.status, answer.json()["error"] if answer.body else ""


async def index(connection: Wire, **wish: bool) -> dict[tuple[str, str], tuple[str, str]]:
    rows = (await connection.ask(http("/v2/repository/index", json.dumps(wish).encode()))).json()
    return {(row["name"], row["version"]): (row["state"], row["reason"]) for row in rows}


async def asked(connection: Wire, model: str = "m", version: str = "") -> tuple[int, Any]:
    """Status and values, or status and error, of a request."""
    path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
    body = {"inputs": [{"name": "x", "shape": [1, 8], "datatype": "FP32", "data": X.tolist()}]}
    answer = await connection.ask(http(path, json.dumps(body).encode()))
    found = answer.json()
    return answer.status, found["outputs"][0]["data"] if answer.status == 200 else found["error"]


async def test_only_what_is_asked_for_is_loaded(tmp_path: Path) -> None:
    for name in ("m", "other"):
        place(tmp_path, name)
    async with explicit(tmp_path, "other") as (app, connection):
        assert app.control.ready()
        assert await index(connection) == {("m", "1"): ("UNAVAILABLE", "not loaded"), ("other", "1"): ("READY", "")}
        assert await index(connection, ready=True) == {("other", "1"): ("READY", "")}
        status, error = await asked(connection)
        assert (status, error) == (503, "Request for unknown model: 'm' version 1 is not at ready state: UNAVAILABLE (not loaded)")
        assert await act(connection, "load", "m") == (200, "")
        assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        assert await act(connection, "unload", "m") == (200, "")
        assert (await index(connection))["m", "1"] == ("UNAVAILABLE", "unloaded")
        assert (await asked(connection))[0] == 503
        assert await act(connection, "unload", "m") == (200, "")
        assert await act(connection, "load", "m") == (200, "")
        assert (await asked(connection))[0] == 200
        assert (await asked(connection, "other"))[0] == 200


@pytest.mark.parametrize(("load", "expected"), [([], set()), (["*"], {"a", "b"}), (["a"], {"a"}), (["a", "*"], {"a", "b"})])
async def test_what_is_loaded_at_the_start(tmp_path: Path, load: list[str], expected: set[str]) -> None:
    for name in ("a", "b"):
        place(tmp_path, name)
    async with explicit(tmp_path, *load) as (app, connection):
        assert {name for name, _ in await index(connection, ready=True)} == expected
        assert app.control.ready()


async def test_a_model_that_is_to_be_loaded_and_is_not_there(tmp_path: Path) -> None:
    async with explicit(tmp_path, "nobody") as (app, connection):
        state, reason = (await index(connection))["nobody", ""]
        assert state == "UNAVAILABLE"
        assert "no such model" in reason
        assert not app.control.ready()
        place(tmp_path, "nobody")
        assert await act(connection, "load", "nobody") == (200, "")
        assert (await index(connection)).keys() == {("nobody", "1")}
        assert app.control.ready()


@pytest.mark.parametrize("control", ["none", "poll"])
async def test_clients_load_only_where_they_may(tmp_path: Path, control: str) -> None:
    place(tmp_path, "m")
    async with running(tmp_path, model_control=control) as app, wire(app) as connection:
        for action in ("load", "unload"):
            status, error = await act(connection, action, "m")
            assert status == 503
            assert "explicit model load / unload is not allowed" in error
        assert (await asked(connection))[0] == 200


async def test_models_that_are_not_there(tmp_path: Path) -> None:
    async with explicit(tmp_path) as (_, connection):
        assert await index(connection) == {}
        status, error = await act(connection, "load", "nobody")
        assert status == 404
        assert error.startswith("failed to load 'nobody', failed to poll from model repository")
        status, error = await act(connection, "unload", "nobody")
        assert status == 404
        assert error.startswith("failed to unload 'nobody'")
        for name in ("..", "%2e%2e", "a%2fb", ".hidden", "x" * 300):
            assert (await act(connection, "load", name))[0] == 404
        assert await index(connection) == {}


async def test_new_models_show_in_the_index_and_gone_ones_do_not(tmp_path: Path) -> None:
    async with explicit(tmp_path) as (_, connection):
        entry = place(tmp_path, "m")
        assert await index(connection) == {("m", "1"): ("UNAVAILABLE", "not loaded")}
        entry.rename(tmp_path / ".away")
        assert await index(connection) == {}


async def test_an_index_without_its_repository_says_what_it_knew(tmp_path: Path) -> None:
    root = tmp_path / "models"
    place(root, "m")
    async with explicit(root, "m") as (_, connection):
        root.rename(tmp_path / "away")
        assert await index(connection) == {("m", "1"): ("READY", "")}
        status, error = await act(connection, "load", "m")
        assert (status, error) == (503, "failed to load 'm': the model repository can't be read now")
        assert (await asked(connection))[0] == 200


async def test_a_repository_by_name_is_not_supported(tmp_path: Path) -> None:
    async with explicit(tmp_path) as (_, connection):
        for path in ("index", "models/m/load", "models/m/unload"):
            answer = await connection.ask(http(f"/v2/repository/elsewhere/{path}"))
            assert answer.status == 501
            assert "repository_name" in answer.json()["error"]


async def test_a_reload_under_load_fails_no_request(tmp_path: Path) -> None:
    """Twelve clients ask while the file changes three times: each answer is an old model's or a new one's, and none is an error."""
    file = place(tmp_path, "m") / "1" / "model.onnx"
    async with explicit(tmp_path, "*") as (app, connection):
        done = asyncio.Event()
        known = {0}
        seen: list[int] = []

        async def client() -> None:
            async with wire(app) as own:
                while not done.is_set():
                    status, values = await asked(own)
                    assert status == 200, values
                    seen.append(next(seed for seed in known if values == pytest.approx(answer_of(seed), rel=1e-4)))

        clients = [asyncio.ensure_future(client()) for _ in range(12)]
        for seed in (1, 2, 3):
            known.add(seed)
            write_anew(file, seed)
            assert await act(connection, "load", "m") == (200, "")
            assert await asked(connection) == (200, pytest.approx(answer_of(seed), rel=1e-4))
        done.set()
        await asyncio.gather(*clients)
        assert seen[0] == 0
        assert seen[-1] == 3
        assert app.edge.inflight.used == 0


async def test_what_waits_is_answered_by_the_version_that_took_it(tmp_path: Path) -> None:
    """Requests queue in an old engine while the new one takes its place: they come out of the old one."""
    entry = place(tmp_path, "m", slow_model, yaml="batching: {max_rows: 1}\nlanes: {kind: thread, count: 1}")
    array = np.ones((1, 256), np.float32)
    async with explicit(tmp_path, "m") as (app, connection), wire(app) as other:
        for _ in range(30):
            other.send(infer_json("m", array))
        old = app.table.default("m")
        assert old is not None
        assert old.engine is not None
        while not old.engine.queue_rows:
            await asyncio.sleep(0.001)
        slow_model(entry / "1" / ".new", layers=2).rename(entry / "1" / "model.onnx")
        loading = asyncio.ensure_future(act(connection, "load", "m"))
        assert [(await other.answer()).status for _ in range(30)] == [200] * 30
        assert await loading == (200, "")
        assert app.table.default("m") is not old


async def test_an_unload_answers_what_waits_and_refuses_what_comes(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml="batching: {max_rows: 1}\nlanes: {kind: thread, count: 1}")
    array = np.ones((1, 256), np.float32)
    async with explicit(tmp_path, "m") as (app, connection), wire(app) as other, wire(app) as late:
        for _ in range(20):
            other.send(infer_json("m", array))
        served = app.table.version("m", "1")
        assert served is not None
        engine = served.engine
        assert engine is not None
        while not engine.queue_rows:
            await asyncio.sleep(0.001)
        unloading = asyncio.ensure_future(act(connection, "unload", "m"))
        while app.table.version("m", "1") is served:
            await asyncio.sleep(0.001)
        refused = await late.ask(infer_json("m", array))
        assert refused.status == 503
        assert "is not at ready state: UNLOADING" in refused.json()["error"]
        assert [(await other.answer()).status for _ in range(20)] == [200] * 20
        assert await unloading == (200, "")


async def test_a_bad_file_leaves_the_old_one_serving(tmp_path: Path) -> None:
    entry = place(tmp_path / "secret", "m")
    async with explicit(tmp_path / "secret", "m") as (_, connection):
        (entry / "1" / "model.onnx").write_bytes(b"not a model")
        status, error = await act(connection, "load", "m")
        assert status == 400
        assert error.startswith("failed to load 'm', version 1 is at UNAVAILABLE state: m/1/model.onnx: not an ONNX file")
        state, reason = (await index(connection))["m", "1"]
        assert state == "READY"
        assert "still serves" in reason
        assert "m/1/model.onnx: not an ONNX file" in reason
        assert "secret" not in reason + error
        assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        linear_model(entry / "1" / "model.onnx", seed=5)
        assert await act(connection, "load", "m") == (200, "")
        assert (await index(connection))["m", "1"] == ("READY", "")
        assert await asked(connection) == (200, pytest.approx(answer_of(5), rel=1e-4))


async def test_a_bad_new_version_leaves_the_old_one_serving(tmp_path: Path) -> None:
    entry = place(tmp_path, "m")
    async with explicit(tmp_path, "m") as (_, connection):
        (entry / "2").mkdir()
        (entry / "2" / "model.onnx").write_bytes(b"not a model")
        assert (await act(connection, "load", "m"))[0] == 400
        states = {version: state for (_, version), (state, _) in (await index(connection)).items()}
        assert states == {"1": "READY", "2": "UNAVAILABLE"}
        assert (await asked(connection))[0] == 200
        linear_model(entry / "2" / "model.onnx", seed=2)
        assert await act(connection, "load", "m") == (200, "")
        assert await index(connection) == {("m", "2"): ("READY", "")}
        assert await asked(connection) == (200, pytest.approx(answer_of(2), rel=1e-4))


async def test_a_bad_model_yaml_leaves_all_versions_serving(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", yaml="versions: {policy: all}")
    linear_model(entry / "2" / "model.onnx", seed=2)
    async with explicit(tmp_path, "m") as (_, connection):
        (entry / "model.yaml").write_text("batching: {max_row: 1}")
        status, error = await act(connection, "load", "m")
        assert status == 400
        assert "m/model.yaml:1: batching.max_row: unknown key" in error
        assert [state for state, _ in (await index(connection)).values()] == ["READY", "READY"]
        for version in ("1", "2"):
            assert (await asked(connection, version=version))[0] == 200


@pytest.mark.parametrize(("policy", "expected"), [("latest", {"3"}), ("all", {"1", "2", "3"}), ("[1, 3]", {"1", "3"}), ("[2]", {"2"})])
async def test_a_changed_version_policy_is_followed(tmp_path: Path, policy: str, expected: set[str]) -> None:
    entry = place(tmp_path, "m", yaml="versions: {policy: [1, 2]}")
    for version in ("2", "3"):
        linear_model(entry / version / "model.onnx", seed=int(version))
    async with explicit(tmp_path, "m") as (_, connection):
        assert {version for _, version in await index(connection)} == {"1", "2"}
        (entry / "model.yaml").write_text(f"versions: {{policy: {policy}}}")
        assert await act(connection, "load", "m") == (200, "")
        assert await index(connection) == {("m", version): ("READY", "") for version in expected}


async def test_what_did_not_change_is_not_loaded_again(tmp_path: Path) -> None:
    entry = place(tmp_path, "m", yaml="versions: {policy: all}")
    linear_model(entry / "2" / "model.onnx", seed=2)
    async with explicit(tmp_path, "m") as (app, connection):
        before = {version: app.table.version("m", version) for version in ("1", "2")}
        assert await act(connection, "load", "m") == (200, "")
        assert app.table.version("m", "1") is before["1"]
        write_anew(entry / "2" / "model.onnx", 7)
        assert await act(connection, "load", "m") == (200, "")
        assert app.table.version("m", "1") is before["1"]
        assert app.table.version("m", "2") is not before["2"]


async def test_loads_and_unloads_at_once_end_as_the_last_one_says(tmp_path: Path) -> None:
    file = place(tmp_path, "m") / "1" / "model.onnx"
    async with explicit(tmp_path, "m") as (app, connection):
        for last, status in (("load", 200), ("unload", 503)):
            write_anew(file, 1)
            together = [app.control.load("m"), app.control.load("m"), app.control.unload("m"), app.control.load("m")]
            together += [getattr(app.control, last)("m")]
            await asyncio.gather(*together)
            assert (await asked(connection))[0] == status


async def test_a_load_goes_on_without_whoever_asked(tmp_path: Path) -> None:
    place(tmp_path, "m")
    async with explicit(tmp_path) as (app, connection):
        asking = asyncio.ensure_future(app.control.load("m"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(20):
            while (await asked(connection))[0] != 200:
                await asyncio.sleep(0.005)


async def test_a_server_that_stops_in_a_load_leaves_no_lane_open(tmp_path: Path) -> None:
    place(tmp_path, "m", slow_model, yaml="lanes: {kind: thread}")
    async with explicit(tmp_path) as (app, _):
        loading = asyncio.ensure_future(app.control.load("m"))
        while [row.state for row in app.control.index()] != ["LOADING"]:
            await asyncio.sleep(0)
    await asyncio.gather(loading, return_exceptions=True)
    async with asyncio.timeout(20):
        while any(thread.name.startswith("lane-m/1/") for thread in threading.enumerate()):
            await asyncio.sleep(0.005)


async def test_its_series_end_with_a_model(tmp_path: Path) -> None:
    place(tmp_path, "m")
    async with explicit(tmp_path, "m") as (app, connection):
        assert (await asked(connection))[0] == 200

        def series() -> bool:
            gauges = app.recorder.read({**CATALOGUE, **TRITON})
            return any(one.key.name == "m" for one in app.recorder.snapshot()[0]) or any("m" in labels for _, labels, _ in gauges)

        assert series()
        await app.control.unload("m")
        assert not series()


async def test_a_server_that_anyone_could_change_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_control is explicit"):
        async with explicit(tmp_path, host="0.0.0.0"):
            pass


# Polling


@asynccontextmanager
async def polled(repository: Path) -> AsyncIterator[tuple[App, Wire]]:
    async with running(repository, model_control="poll", model_control_poll=0.02) as app, wire(app) as connection:
        yield app, connection


async def until(connection: Wire, expected: dict[tuple[str, str], str]) -> dict[tuple[str, str], tuple[str, str]]:
    """The index, once its states are these."""
    async with asyncio.timeout(20):
        while True:
            rows = await index(connection)
            if {key: state for key, (state, _) in rows.items()} == expected:
                return rows
            await asyncio.sleep(0.005)


async def test_new_changed_and_deleted_models_are_followed(tmp_path: Path) -> None:
    place(tmp_path, "a")
    async with polled(tmp_path) as (app, connection):
        place(tmp_path, "m")
        await until(connection, {("a", "1"): "READY", ("m", "1"): "READY"})
        assert await asked(connection) == (200, pytest.approx(answer_of(0), rel=1e-4))
        write_anew(tmp_path / "m" / "1" / "model.onnx", 4)
        async with asyncio.timeout(20):
            while (await asked(connection)) != (200, pytest.approx(answer_of(4), rel=1e-4)):
                await asyncio.sleep(0.005)
        linear_model(tmp_path / "m" / "2" / "model.onnx", seed=6)
        await until(connection, {("a", "1"): "READY", ("m", "2"): "READY"})
        assert await asked(connection) == (200, pytest.approx(answer_of(6), rel=1e-4))
        (tmp_path / "m").rename(tmp_path / ".away")
        await until(connection, {("a", "1"): "READY"})
        assert (await asked(connection))[0] == 404
        assert app.control.ready()


async def test_a_bad_change_is_told_and_a_good_one_mends_it(tmp_path: Path) -> None:
    entry = place(tmp_path, "m")
    async with polled(tmp_path) as (_, connection):
        (entry / "model.yaml").write_text("batching: {max_row: 1}")
        async with asyncio.timeout(20):
            while "m/model.yaml:1" not in (await index(connection))["m", "1"][1]:
                await asyncio.sleep(0.005)
        assert (await asked(connection))[0] == 200
        (entry / "model.yaml").write_text("batching: {max_rows: 1}")
        async with asyncio.timeout(20):
            while "still serves" in (await index(connection))["m", "1"][1]:
                await asyncio.sleep(0.005)
        assert (await index(connection))["m", "1"][0] == "READY"


async def test_a_repository_that_is_away_for_a_while_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "models"
    place(root, "m")
    said = ""
    async with polled(root) as (_, connection):
        root.rename(tmp_path / "away")
        async with asyncio.timeout(20):
            while "repository_not_readable" not in said:
                await asyncio.sleep(0.005)
                said += capsys.readouterr().err
        assert (await asked(connection))[0] == 200
        (tmp_path / "away").rename(root)
        place(root, "n")
        await until(connection, {("m", "1"): "READY", ("n", "1"): "READY"})


# Ensembles


CHAIN = """
platform: "ensemble"
input { name: "in" data_type: TYPE_FP32 dims: [ -1, 8 ] }
output { name: "out" data_type: TYPE_FP32 dims: [ -1, 8 ] }
ensemble_scheduling {
  step [
    { model_name: "first" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "between" } },
    { model_name: "second" model_version: 1 input_map { key: "x" value: "between" } output_map { key: "y" value: "out" } }
  ]
}
"""


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """chain = second after first, as Triton would have it written."""
    for name in ("first", "second"):
        place(tmp_path, name, lambda path: identity_model(path, width=8))
    (tmp_path / "chain" / "1").mkdir(parents=True)
    (tmp_path / "chain" / "config.pbtxt").write_text(CHAIN)
    return tmp_path


async def chain(connection: Wire) -> int:
    return (await connection.ask(infer_json("chain", X, name="in"))).status


def ready(rows: dict[tuple[str, str], tuple[str, str]]) -> set[str]:
    return {name for (name, _), (state, _) in rows.items() if state == "READY"}


@pytest.mark.parametrize("at_start", [True, False])
async def test_an_ensemble_brings_its_parts(chained: Path, at_start: bool) -> None:
    place(chained, "stranger")
    async with explicit(chained, *(["chain"] if at_start else [])) as (app, connection):
        if not at_start:
            assert await act(connection, "load", "chain") == (200, "")
        assert ready(await index(connection)) == {"chain", "first", "second"}
        assert await chain(connection) == 200
        assert app.control.ready()
        assert await act(connection, "unload", "first") == (200, "")
        state, reason = (await index(connection))["chain", "1"]
        assert state == "UNAVAILABLE"
        assert "waits for its part, model 'first'" in reason
        assert await chain(connection) == 503
        assert await act(connection, "load", "first") == (200, "")
        assert await chain(connection) == 200
        await act(connection, "load", "stranger")
        assert await act(connection, "unload", "chain", b'{"parameters": {"unload_dependents": true}}') == (200, "")
        assert ready(await index(connection)) == {"stranger"}


async def test_an_ensemble_alone_is_unloaded_without_its_parts(chained: Path) -> None:
    async with explicit(chained, "*") as (_, connection):
        assert await act(connection, "unload", "chain", b'{"parameters": {"unload_dependents": 1}}') == (
            400,
            "parameters.unload_dependents: expected true or false, got int",
        )
        assert await act(connection, "unload", "chain") == (200, "")
        assert ready(await index(connection)) == {"first", "second"}
        assert await act(connection, "load", "chain") == (200, "")
        assert await chain(connection) == 200


async def test_an_ensemble_without_a_part_is_not_loaded(chained: Path) -> None:
    (chained / "second").rename(chained / ".second")
    async with explicit(chained) as (_, connection):
        status, error = await act(connection, "load", "chain")
        assert status == 400
        assert error.startswith("failed to load 'chain', version 1 is at UNAVAILABLE state: waits for its part, model 'second'")


async def test_a_part_is_reloaded_under_load(chained: Path) -> None:
    async with explicit(chained, "chain") as (app, connection):
        done = asyncio.Event()
        statuses: list[int] = []

        async def client() -> None:
            async with wire(app) as own:
                while not done.is_set():
                    statuses.append(await chain(own))

        clients = [asyncio.ensure_future(client()) for _ in range(6)]
        for _ in range(3):
            before = len(statuses)
            identity_model(chained / "first" / "1" / ".new", width=8).rename(chained / "first" / "1" / "model.onnx")
            assert await act(connection, "load", "first") == (200, "")
            while len(statuses) < before + 20:
                await asyncio.sleep(0.001)
        done.set()
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
