"""Requests that name no version are shared out as model.yaml says, as an operator says over it, and by key; a restart forgets nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.app import App
from server.errors import NotFound
from server.router.table import State
from tests.server.models import place, place_versions
from tests.server.running import Answer, Wire, http, infer_binary, infer_json, json_body, running, wire

ROWS = np.ones((1, 16), np.float32)
PATH = "/admin/models/m/weights"
ASKED = 200
SHARED = 'versions: {policy: latest}\nrouting:\n  weights: {"1": 75, 2: 25}\n'


def version_of(answer: Answer) -> str:
    """The version that an answer names, which must be the one that made it."""
    said = answer.json()
    assert answer.status == 200, said
    assert said["outputs"][0]["data"][0] == float(said["model_version"])
    return str(said["model_version"])


async def asked(line: Wire, count: int = ASKED, **more: Any) -> Counter[str]:
    return Counter([version_of(await line.ask(infer_json("m", ROWS, **more))) for _ in range(count)])


@asynccontextmanager
async def served(root: Path, **settings: Any) -> AsyncIterator[tuple[App, Wire, httpx.AsyncClient]]:
    async with running(root, **settings) as app, wire(app) as line, httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:
        yield app, line, client


async def test_the_weights_of_model_yaml_share_requests_out_and_load_what_they_name(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1, 2, 3], SHARED)
    async with served(tmp_path) as (app, line, client):
        assert sorted(app.table.ready("m")) == ["1", "2", "3"]
        found = await asked(line)
        assert set(found) == {"1", "2"}
        assert 0.55 * ASKED < found["1"] < 0.92 * ASKED  # P(outside) < 1e-8
        explained = await line.ask(infer_json("m", ROWS, parameters={"explain": True}))
        assert explained.json()["parameters"]["route_reason"] == "weights"
        named = await line.ask(http("/v2/models/m/versions/3/infer", json_body(ROWS, parameters={"explain": True})))
        assert (named.json()["model_version"], named.json()["parameters"]["route_reason"]) == ("3", "version")
        said = (await client.get(PATH)).json()
        assert (said["weights"], said["by"], said["chosen"]) == ({"1": 75, "2": 25}, "model.yaml", None)


async def test_a_header_keeps_a_client_with_its_version(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1, 2], 'routing: {weights: {"1": 50, "2": 50}, sticky: "header:X-User-Id"}\n')
    async with served(tmp_path, grpc_port=0) as (app, line, _):
        users: dict[str, str] = {}
        for user in [f"user-{number}" for number in range(24)] * 2:
            answer = await line.ask(infer_binary("m", ROWS, headers={"x-user-id": user}))
            assert users.setdefault(user, answer.json()["model_version"]) == answer.json()["model_version"]
        assert set(users.values()) == {"1", "2"}
        explained = await line.ask(infer_json("m", ROWS, headers={"X-USER-ID": "user-1"}, parameters={"explain": True}))
        assert explained.json()["parameters"]["route_reason"] == "sticky"
        async with httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:
            for user, version in users.items():
                body = {"x": [1.0] * 16}
                said = (await client.post("/v2/models/m/generate", json=body, headers={"x-user-id": user})).json()
                assert said["model_version"] == version
        assert await by_grpc(app, users) == users


async def by_grpc(app: App, users: dict[str, str]) -> dict[str, str]:
    """The same users over gRPC, whose metadata is the header."""
    import tritonclient.grpc.aio as triton

    found = {}
    async with triton.InferenceServerClient(app.addresses.grpc) as client:
        given = triton.InferInput("x", [1, 16], "FP32")
        given.set_data_from_numpy(ROWS)
        for user in users:
            found[user] = (await client.infer("m", [given], headers={"x-user-id": user})).get_response().model_version
    return found


async def test_a_header_that_is_wanted_later_is_seen_on_an_old_connection(tmp_path: Path) -> None:
    folder = place_versions(tmp_path, "m", [1, 2], 'routing: {weights: {"1": 50, "2": 50}}\n')
    async with served(tmp_path, model_control="explicit", load_model="m") as (app, line, client):
        request = infer_json("m", ROWS, headers={"x-user-id": "ann"})
        assert len({version_of(await line.ask(request)) for _ in range(60)}) == 2
        (folder / "model.yaml").write_text('routing: {weights: {"1": 50, "2": 50}, sticky: "header:x-user-id"}\n')
        assert (await client.post("/v2/repository/models/m/load", json={})).status_code == 200
        assert len({version_of(await line.ask(request)) for _ in range(20)}) == 1
        assert app.router.headers() == {"m": "x-user-id"}


@pytest.mark.parametrize(("sticky", "more"), [("parameter:user", {"parameters": {"user": 7}}), ("id", {"id": "r-7"})])
async def test_a_parameter_or_the_id_can_be_the_key(tmp_path: Path, sticky: str, more: dict[str, Any]) -> None:
    place_versions(tmp_path, "m", [1, 2], f'routing: {{weights: {{"1": 50, "2": 50}}, sticky: "{sticky}"}}\n')
    async with served(tmp_path) as (_, line, _):
        assert len(await asked(line, 20, **more)) == 1
        assert len(await asked(line, 60)) == 2  # without a key it's drawn


async def test_an_operators_weights_win_until_cleared_and_survive_a_restart(tmp_path: Path) -> None:
    root = tmp_path / "models"
    place_versions(root, "m", [1, 2], 'versions: {policy: latest}\nrouting: {weights: {"2": 100}}\n')
    state = {"state": tmp_path / "state.db"}
    async with served(root, **state) as (app, line, client):
        assert sorted(app.table.ready("m")) == ["2"]
        assert (await client.put(PATH, json={"weights": {"1": 100}})).json()["by"] == "the admin API"
        assert await asked(line, 20) == {"1": 20}
        await client.put(PATH, json={"weights": {"1": 100}})  # once more is no change
    async with served(root, **state) as (app, line, client):
        assert await asked(line, 20) == {"1": 20}
        said = (await client.get(PATH)).json()
        assert (said["chosen"], said["declared"], said["weights"]) == ({"1": 100}, {"2": 100}, {"1": 100})
        assert (await client.delete(PATH)).json()["by"] == "model.yaml"
        assert await asked(line, 20) == {"2": 20}
        events = (await client.get("/admin/events")).json()["events"]
    assert [(event["what"], event["was"], event["now"]) for event in events if event["what"] == "weights"] == [
        ("weights", "2: 100 %", "1: 100 %"),
        ("weights", "1: 100 %", "2: 100 %"),
    ]


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ({"weights": {"1": 60, "2": 60}}, 400, "add up to 100, got 60 + 60 = 120"),
        ({"weights": {"1": 50, "9": 50}}, 400, "version 9"),
        ({"weights": {"1": True, "2": 99}}, 400, "a percentage from 0 to 100"),
        ({"weights": {}}, 400, "1 to 16 versions"),
        ({"weights": {"one": 100}}, 400, "decimal numbers"),
        ({"weights": [1]}, 400, "expected"),
        ({"weights": {"1": 100}, "more": 1}, 400, "expected"),
    ],
)
async def test_bad_weights_change_nothing(tmp_path: Path, said: object, status: int, told: str) -> None:
    place_versions(tmp_path, "m", [1, 2])
    async with served(tmp_path) as (app, line, client):
        answer = await client.put(PATH, json=said)
        assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
        assert await asked(line, 10) == {"2": 10}
        assert (await client.get("/admin/events")).json()["events"] == []
        assert (await client.put("/admin/models/other/weights", json={"weights": {"1": 100}})).status_code == 404
        assert app.router.traffic == {}


@pytest.mark.parametrize(
    ("routing", "told"),
    [
        ('{weights: {"1": 95, "2": 4}}', "model.yaml:1: routing.weights: expected percentages that add up to 100, got 95 + 4 = 99"),
        ('{weights: {"0": 100}}', "without leading zeros"),
        ("{weights: 3}", "expected percentages by version"),
        ("{sticky: cookie:a}", "expected header:NAME, parameter:NAME or id"),
        ("{weight: {}}", "did you mean 'weights'"),
    ],
)
async def test_model_yaml_is_refused_with_line_and_word(tmp_path: Path, routing: str, told: str) -> None:
    place_versions(tmp_path, "m", [1], f"routing: {routing}\n")
    async with served(tmp_path) as (app, _, _):
        (entry,) = app.table.versions("m")
        assert (entry.state, told in entry.reason) == (State.UNAVAILABLE, True), entry.reason


async def test_a_version_that_is_not_ready_falls_to_the_others_and_says_so(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1], 'routing: {weights: {"1": 1, "7": 99}}\n')
    async with served(tmp_path) as (app, line, _):
        broken = app.table.version("m", "7")
        assert broken is not None
        assert "no such folder, but routing names it" in broken.reason
        answer = await line.ask(infer_json("m", ROWS, parameters={"explain": True}))
        assert (answer.json()["model_version"], answer.json()["parameters"]["route_reason"]) == ("1", "weights_not_ready")


async def test_where_nothing_with_weight_is_ready_the_version_policy_answers(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1], 'routing: {weights: {"7": 100}}\n')
    async with served(tmp_path) as (app, line, _):
        answer = await line.ask(infer_json("m", ROWS, parameters={"explain": True}))
        assert (answer.json()["model_version"], answer.json()["parameters"]["route_reason"]) == ("1", "none_ready")
        app.table.remove("m", "1")
        assert (await line.ask(infer_json("m", ROWS))).status == 503
        with pytest.raises(NotFound):
            app.router.route("other", "")


async def test_an_ensembles_step_is_shared_out_too(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1, 2], 'routing: {weights: {"1": 100}}\nversions: {policy: all}\n')
    steps = "{model: m, inputs: {x: raw}, outputs: {y: made}}"
    place(tmp_path, "whole", lambda path: path.parent.mkdir(parents=True) or path, yaml=f"ensemble: {{steps: [{steps}]}}\n")  # type: ignore[func-returns-value]
    async with served(tmp_path) as (_, line, _):
        async with asyncio.timeout(10):
            answer = await line.ask(infer_json("whole", ROWS, name="raw"))
        assert answer.json()["outputs"][0]["data"][0] == 1.0  # the highest would say 2


async def test_a_stateful_model_is_not_shared_out(tmp_path: Path) -> None:
    yaml = 'routing: {weights: {"1": 100}}\nsequence: {state: [{input: x, output: y}]}\n'
    place_versions(tmp_path, "m", [1], yaml)
    async with served(tmp_path) as (app, _, _):
        assert "keeps state between requests" in app.table.versions("m")[0].reason
