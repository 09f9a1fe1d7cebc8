"""A canary on a real server: a bad one is rolled back and no client of the baseline sees it, a good one gets everything, and nothing that
happens to the server in between is taken for evidence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import helper

from server.app import App
from server.control.routing.running import Clock
from server.control.routing.trial import Kind
from server.metrics.catalogue import CATALOGUE
from server.state.base import Event
from tests.server.models import place_versions, value, write_model
from tests.server.routing.rollout import Clients, asking, labels_model, place_pair, until
from tests.server.running import infer_binary, infer_json, running, wire

PATH = "/admin/models/m/canary"
QUICK = {"version": "2", "steps": [50, 100], "min_samples": 20, "min_seconds": 0, "guards": ["errors"]}
FAST = 10  # times as fast as the world: evidence is counted in blocks of a second, of which a conclusion needs eight


class FastClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self._start = monotonic()

    def __call__(self) -> float:
        return super().__call__() + (FAST - 1) * (monotonic() - self._start)


@asynccontextmanager
async def served(root: Path, **settings: Any) -> AsyncIterator[tuple[App, httpx.AsyncClient]]:
    async with running(root, **settings) as app, httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:
        app.trials.now = FastClock()
        yield app, client


def over(said: dict[str, Any]) -> bool:
    return said["state"] not in ("running", "paused")


def failed_at_baseline(clients: Clients, canary: int) -> int:
    """Failed requests beyond those that the canary answered: answers to failed ones name no version."""
    return sum(count for (_, status), count in clients.statuses.items() if status != 200) - canary


def series(app: App) -> set[str]:
    """Names of the gauges and counters that have a value for the model."""
    return {name for name, labels, _ in app.recorder.read(CATALOGUE) if "m" in labels}


async def events(client: httpx.AsyncClient, what: str) -> list[tuple[str, str]]:
    found = (await client.get("/admin/events")).json()["events"]
    return [(event.get("was", ""), event["now"]) for event in found if event["what"] == what]


async def test_a_canary_with_more_errors_is_rolled_back_and_the_baseline_sees_none(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", partial(labels_model, known=80))
    async with served(tmp_path) as (app, client):
        begun = (await client.post(PATH, json=QUICK)).json()
        assert (begun["state"], begun["share"], begun["baseline"]) == ("running", 50, "1")
        assert app.control.frozen == {"m"}
        async with asking(app, "m") as clients:
            assert series(app) >= {"tidegate_canary_step", "tidegate_canary_share_ratio", "tidegate_guard_worse", "tidegate_guard_high"}
            said = await until(client, PATH, over)
            assert not series(app) & {"tidegate_guard_worse", "tidegate_canary_share_ratio"}
            async with wire(app) as line:
                assert (await line.ask(infer_json("m", np.array([[99]], np.int64)))).status == 200
        assert (said["state"], said["verdict"]) == ("rolled_back", {"action": "roll_back", "reason": "harm", "guard": "errors"})
        errors = said["metrics"]["errors"]
        assert errors["baseline"]["mean"] == 0
        assert errors["evidence_of_harm"] >= errors["harm_at"]
        assert failed_at_baseline(clients, round(errors["canary"]["mean"] * errors["canary"]["n"])) <= 4  # those that were on their way
        assert await events(client, "canary") == [("", "50 % to version 2"), ("50 % to version 2", "rolled_back")]
        assert (await client.get("/admin/models/m/weights")).json()["weights"] == {"1": 100}
        assert app.control.frozen == set()


async def test_a_canary_that_fails_every_request_is_gone_at_once(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", partial(labels_model, known=2))
    async with served(tmp_path) as (app, client):
        await client.post(PATH, json={**QUICK, "steps": [30, 100]})
        async with asking(app, "m", number=lambda n: 2 + n % 98) as clients:
            said = await until(client, PATH, over)
        assert (said["state"], said["verdict"]["reason"]) == ("rolled_back", "all_errors")
        assert said["seconds"] / FAST < 2
        assert sum(count for (_, status), count in clients.statuses.items() if status != 200) < 200


async def test_a_canary_that_is_no_worse_gets_everything_step_by_step(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client):
        guards = [{"metric": "errors", "margin": 0.2}]
        await client.post(PATH, json={**QUICK, "steps": [20, 60, 100], "guards": guards})
        async with asking(app, "m") as clients:
            said = await until(client, PATH, over)
            async with wire(app) as line:
                assert (await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] == "2"
        assert (said["state"], said["verdict"]["reason"]) == ("promoted", "proven")
        assert {status for _, status in clients.statuses} == {200}
        assert [now for _, now in await events(client, "canary")] == ["20 % to version 2", "60 % to version 2", "promoted"]
        assert (await client.get("/admin/models/m/weights")).json()["weights"] == {"2": 100}


async def test_outcomes_that_are_reported_roll_back_a_canary_with_worse_answers(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", partial(labels_model, label=8))
    async with served(tmp_path) as (app, client):
        begun = (await client.post(PATH, json={**QUICK, "guards": ["outcome"]})).json()
        outcomes = f"/admin/experiments/{begun['id']}/outcomes"
        async with asking(app, "m") as clients:
            async with asyncio.timeout(60):
                while not over((await client.get(PATH)).json()):
                    told, clients.told = clients.told, []
                    right = [{"id": id_, "outcome": answer.json()["outputs"][0]["data"] == [7]} for id_, _, answer in told]
                    rows = [*right, {"id": "nobody", "outcome": True}]
                    said = (await client.post(outcomes, json={"outcomes": rows})).json()
                    assert said.get("unknown", 1) == 1  # none at all once it's over
                    await asyncio.sleep(0.05)
        said = (await client.get(PATH)).json()
        assert (said["state"], said["verdict"]["guard"]) == ("rolled_back", "outcome")
        assert said["metrics"]["outcome"]["canary"]["mean"] == 0
        assert (await client.post(outcomes, json={"outcomes": []})).status_code == 409


async def test_an_outcome_counts_once_and_by_key_too(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client), wire(app) as line:
        begun = (await client.post(PATH, json={**QUICK, "guards": ["outcome", "rating"], "sticky": "header:x-user"})).json()
        outcomes = f"/admin/experiments/{begun['id']}/outcomes"
        assert (await line.ask(infer_json("m", np.array([[1]], np.int64), headers={"x-user": "ann"}, id="r1"))).status == 200
        rows = [
            {"id": "r1", "outcome": True},
            {"id": "r1", "outcome": False},
            {"key": "ann", "rating": 0.5},
            {"key": "bob", "outcome": True},
        ]
        said = (await client.post(outcomes, json={"outcomes": rows})).json()
        assert said == {"counted": 2, "unknown": 1, "repeated": 1, "examples_unknown": ["bob"]}
        for bad in (
            {},
            {"outcomes": [{"id": "r1"}]},
            {"outcomes": [{"id": "r1", "rating": 2}]},
            {"outcomes": [{"id": 1, "outcome": True}]},
        ):
            assert (await client.post(outcomes, json=bad)).status_code == 400
        assert (await client.post("/admin/experiments/none/outcomes", json={"outcomes": []})).status_code == 404


def nan_model(path: Path, factor: float) -> Path:
    """y = x · factor, FP32 [N, 1]."""
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    return write_model(path, [node], [value("x", ["N", 1])], [value("y", ["N", 1])], {"factor": np.array([factor], np.float32)})


async def test_answers_that_are_not_finite_roll_back_unless_the_input_was_not(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", partial(nan_model, factor=float("inf")), partial(nan_model, factor=2.0))
    async with served(tmp_path) as (app, client), wire(app) as line:
        await client.post(PATH, json=QUICK)
        for _ in range(20):  # the client's own doing
            assert (await line.ask(infer_binary("m", np.array([[np.inf]], np.float32)))).status == 200
        running_ = app.trials.find("m", Kind.CANARY)[1]
        assert running_ is not None
        assert running_.not_finite == 0
        async with asyncio.timeout(20):
            while not over(said := (await client.get(PATH)).json()):
                assert (await line.ask(infer_binary("m", np.ones((1, 1), np.float32)))).status == 200
        assert (said["state"], said["verdict"]["reason"]) == ("rolled_back", "not_finite")


async def test_an_operator_holds_steps_and_aborts_it(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (_, client):
        assert (await client.get(PATH)).status_code == 404
        begun = (await client.post(PATH, json={**QUICK, "steps": [5, 25, 100]})).json()
        again = (await client.post(PATH, json={**QUICK, "steps": [5, 25, 100]})).json()
        assert again["id"] == begun["id"]  # the same again is the same
        assert (await client.post(PATH, json=QUICK)).status_code == 409
        assert (await client.post("/admin/models/m/experiment", json={"version": "2"})).status_code == 409
        assert (await client.put("/admin/models/m/weights", json={"weights": {"2": 100}})).status_code == 409
        assert (await client.post(f"{PATH}/pause")).json()["state"] == "paused"
        assert (await client.post(f"{PATH}/promote", json={})).json()["share"] == 25
        assert (await client.post(f"{PATH}/pause")).json()["state"] == "paused"
        assert (await client.post(f"{PATH}/resume")).json()["state"] == "running"
        assert (await client.post(f"{PATH}/rollback", json={"reason": "alert slow", "by": "monitor"})).json()["state"] == "aborted"
        assert (await client.post(f"{PATH}/pause")).status_code == 409
        assert (await client.delete(PATH)).json()["why"] == "alert slow"  # as it ended
        assert (await client.post(PATH, json=QUICK)).json()["state"] == "running"
        assert (await client.post(f"{PATH}/promote", json={"full": True})).json()["state"] == "promoted"
        log = (await client.get("/admin/events")).json()["events"]
    assert [event["who"] for event in log if event["now"] == "aborted"] == ["anonymous (monitor)"]
    assert [event["now"] for event in log if event["what"] == "weights"] == ["2: 100 %"]  # the baseline was pinned by model.yaml


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ({}, 400, "version"),
        ({"version": "9"}, 400, "version 9 can't be sent requests"),
        ({"version": "1"}, 400, "no baseline"),
        ({"version": "2", "baseline": "2"}, 400, "compared with itself"),
        ({"version": "2", "step": [1]}, 400, "did you mean 'steps'"),
        ({"version": "2", "steps": [50, 20, 100]}, 400, "rising percentages"),
        ({"version": "2", "steps": [5, 50]}, 400, "end with 100"),
        ({"version": "2", "steps": "all"}, 400, "percentages such as"),
        ({"version": "2", "guards": [{"metric": "erors"}]}, 400, "did you mean 'errors'"),
        ({"version": "2", "guards": [{"metric": "errors", "margin": 7}]}, 400, "margin"),
        ({"version": "2", "guards": []}, 400, "guards"),
        ({"version": "2", "alpha": 0.9}, 400, "alpha"),
        ({"version": "2", "objective": "fast"}, 400, "objective"),
        ({"version": "2", "sticky": "cookie"}, 400, "header:NAME"),
        ({"version": "2", "min_samples": 1.5}, 400, "whole number"),
    ],
)
async def test_what_makes_no_sense_begins_nothing(tmp_path: Path, said: object, status: int, told: str) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client):
        answer = await client.post(PATH, json=said)
        assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
        assert app.control.frozen == set()
        assert [row.version for row in app.control.index()] == ["1", "2"]
        assert (await client.get("/admin/events")).json()["events"] == []
        assert (await client.post("/admin/models/other/canary", json=QUICK)).status_code == 404


async def test_without_weights_the_highest_version_has_no_baseline_until_one_is_named(tmp_path: Path) -> None:
    place_versions(tmp_path, "m", [1, 2])
    async with served(tmp_path) as (_, client):
        refused = await client.post(PATH, json={**QUICK, "guards": ["errors", "latency"]})
        assert (refused.status_code, "batching.latency_objective" in refused.text) == (400, True)
        refused = await client.post(PATH, json=QUICK)
        assert (refused.status_code, "tidegate weights set m VERSION=100" in refused.text) == (400, True)
        assert (await client.post(PATH, json={**QUICK, "baseline": "1"})).json()["baseline"] == "1"
        await client.delete(PATH)
        weights = (await client.get("/admin/models/m/weights")).json()
        assert (weights["weights"], weights["chosen"]) == ({"1": 100}, {"1": 100})  # else the canary would have everything


async def test_a_version_that_goes_away_or_changes_ends_it_at_the_baseline(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path, model_control="explicit", load_model="m") as (app, client), wire(app) as line:
        await client.post(PATH, json=QUICK)
        await until(client, PATH, lambda said: "verdict" in said)
        labels_model(tmp_path / "m" / "2" / "model.onnx", label=9)
        assert (await client.post("/v2/repository/models/m/load", json={})).status_code == 200
        said = await until(client, PATH, over)
        assert (said["state"], "version 2, was loaded anew" in said["why"]) == ("aborted", True)
        await client.post(PATH, json=QUICK)
        app.table.remove("m", "2")
        said = await until(client, PATH, over)
        assert (said["state"], "version 2, doesn't serve any more" in said["why"]) == ("aborted", True)
        assert (await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] == "1"


async def test_a_restart_in_the_middle_of_a_step_goes_on_with_its_evidence(tmp_path: Path) -> None:
    root, state = tmp_path / "models", {"state": tmp_path / "state.db"}
    place_pair(root, "m", labels_model)
    async with served(root, **state) as (_, client):
        begun = (await client.post(PATH, json={**QUICK, "min_samples": 10**6})).json()
        async with asking(_, "m"):
            before = await until(client, PATH, lambda said: said.get("exposures", {}).get("canary", 0) > 50)
    async with served(root, **state) as (app, client):
        said = await until(client, PATH, lambda said: "verdict" in said)
        assert (said["id"], said["state"], said["began"]) == (begun["id"], "running", begun["began"])
        assert said["exposures"]["canary"] >= before["exposures"]["canary"]
        assert app.control.frozen == {"m"}
        assert (await client.get("/admin/models/m/weights")).json()["by"] == "an experiment"
        await app.events.end_tally(begun["id"])  # somebody emptied the store
        said = await until(client, PATH, over)
        assert (said["state"], "is lost" in said["why"]) == ("aborted", True)


async def test_a_document_that_makes_no_sense_leaves_the_baseline(tmp_path: Path) -> None:
    root, state = tmp_path / "models", {"state": tmp_path / "state.db"}
    place_pair(root, "m", labels_model, yaml="versions: {policy: all}\n")
    async with served(root, **state) as (app, client):
        await client.post(PATH, json={**QUICK, "baseline": "1"})
        document = (await app.events.read("trials"))["m"]
        event = Event(0.0, "somebody", "canary", "m")
        await app.events.write("trials", "m", {**document, "step": 7}, event)
        await app.events.write("trials", "other", {"what": "ever"}, event)
    async with served(root, **state) as (app, client), wire(app) as line:
        assert (await client.get(PATH)).status_code == 404
        assert {(await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] for _ in range(20)} == {"1"}


async def test_a_store_that_cannot_be_written_begins_nothing_and_a_roll_back_waits_for_nobody(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client), wire(app) as line:
        await client.post(PATH, json=QUICK)
        app.events._store.close()
        assert (await client.delete(PATH)).json()["state"] == "aborted"
        assert {(await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] for _ in range(20)} == {"1"}
        assert (await client.post(PATH, json=QUICK)).status_code == 503
        assert (await client.put("/admin/models/m/weights", json={"weights": {"2": 100}})).status_code == 503
        assert (await client.get("/admin/models/m/weights")).json()["weights"] == {"1": 100}


async def test_a_server_that_is_cut_off_from_the_state_serves_the_baseline_until_it_is_back(tmp_path: Path) -> None:
    place_pair(tmp_path, "m", labels_model)
    async with served(tmp_path) as (app, client), wire(app) as line:
        await client.post(PATH, json={**QUICK, "min_samples": 10**6})
        store = app.events._store
        store._closed = True  # type: ignore[attr-defined]
        await until(client, PATH, lambda said: said.get("cut_off", False))
        assert {(await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] for _ in range(20)} == {"1"}
        store._closed = False  # type: ignore[attr-defined]
        await until(client, PATH, lambda said: not said.get("cut_off", True))
        assert {(await line.ask(infer_json("m", np.array([[1]], np.int64)))).json()["model_version"] for _ in range(40)} == {"1", "2"}
