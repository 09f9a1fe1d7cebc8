"""What a running server says about its batches: beside an answer, at …/batcher, and in its metrics."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from server.app import App
from server.engine.batcher import DropReason
from server.metrics.catalogue import DROPS
from tests.server.models import embedding_model, identity_model, masked_model, place
from tests.server.running import Answer, binary_body, http, infer_binary, infer_json, running, wire

DOCS = Path(__file__).parents[2] / "docs"
FACTS = {
    *("rows", "batch_rows", "batch_requests", "close_reason", "queue_us", "gather_us", "compute_us", "scatter_us"),
    *("precision", "lane", "route_reason"),
}
ROW = np.ones((1, 16), np.float32)


async def ask(app: App, data: bytes) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(data)


def asking(model: str, headers: dict[str, str] | None = None, **parameters: Any) -> bytes:
    return infer_json(model, ROW, headers, parameters=parameters)


async def metrics(app: App, name: str) -> dict[str, float]:
    """The samples of a family, by their labels as text."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{app.addresses.metrics}/metrics")).text
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
    return {labels.removeprefix(name): float(value) for labels, _, value in lines}


async def test_an_answer_is_explained_in_json_and_binary(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model)
    async with running(tmp_path) as app:
        plain, told = await ask(app, asking("m")), await ask(app, asking("m", explain=True))
        body, length = binary_body(ROW, parameters={"binary_data_output": True, "explain": True})
        raw = await ask(app, http("/v2/models/m/versions/1/infer", body, headers={"inference-header-content-length": str(length)}))
    assert "parameters" not in plain.json()
    for answer, route in ((told, "latest"), (raw, "version")):
        found = answer.json()["parameters"]
        assert found.keys() == FACTS
        assert (found["rows"], found["batch_rows"], found["batch_requests"]) == (1, 1, 1)
        assert (found["close_reason"], found["precision"], found["lane"], found["route_reason"]) == ("idle", "fp32", "m/1/fp32#0", route)
        assert all(type(value) in (str, int) for value in found.values())
    assert raw.tensor().tolist() == ROW.ravel().tolist()
    assert "parameters" not in told.json()["outputs"][0], "a stock client aborts on parameters of a JSON output"


async def test_a_large_answer_is_explained_too(tmp_path: Path) -> None:
    place(tmp_path, "m", lambda path: identity_model(path, width="W"))
    async with running(tmp_path) as app:
        answer = await ask(app, infer_json("m", np.full((1, 60_000), 0.1234567, np.float32), parameters={"explain": True}))
    assert answer.status == 200
    assert answer.json()["parameters"].keys() == FACTS


async def test_a_padded_batch_is_explained(tmp_path: Path) -> None:
    place(tmp_path, "m", masked_model, yaml="batching: {pad_axes: {tokens: [1], mask: [1]}}")
    async with running(tmp_path) as app:
        answers = await asyncio.gather(*(ask(app, tokens(length, explain=True)) for length in (3, 9, 6)))
        report = (await ask(app, http("/v2/models/m/batcher", method="GET"))).json()
        lengths, waste = await metrics(app, "tidegate_batch_length_sum"), await metrics(app, "tidegate_padding_ratio_sum")
    told = [answer.json()["parameters"] for answer in answers]
    assert [each["length"] for each in told] == [3, 9, 6]
    runs = {each["batch_requests"]: each for each in told}
    assert all(each["batch_length"] >= each["length"] for each in told)
    if 3 in runs:  # as it is whenever the three were read in one turn of the loop
        assert (runs[3]["batch_length"], runs[3]["padding"]) == (9, round(1 - 18 / 27, 4))
    assert report["padding"]["inputs"] == {"tokens": {"1": "L"}, "mask": {"1": "L"}}
    assert report["padding"]["outputs"] == {"each": {"1": "L"}}
    assert report["padding"]["mean_length"] == pytest.approx(sum(lengths.values()) / report["batches"]["batches"])
    assert report["padding"]["waste"] == pytest.approx(sum(waste.values()) / report["batches"]["batches"])


def tokens(length: int, model: str = "m", **parameters: Any) -> bytes:
    inputs = [{"name": name, "shape": [1, length], "datatype": "INT64", "data": [1] * length} for name in ("tokens", "mask")]
    return http(f"/v2/models/{model}/infer", json.dumps({"inputs": inputs, "parameters": parameters}).encode())


async def test_the_report_is_as_its_schema_says(tmp_path: Path) -> None:
    schema = json.loads((DOCS / "schemas" / "batcher.json").read_text())
    place(tmp_path, "m", identity_model, yaml="batching: {latency_objective: 10s}\nqueue: {timeout: 5s, max_bytes: 1MiB, tenants: {a: 3}}")
    place(tmp_path, "one", identity_model, yaml="batching: {max_rows: 1}")
    async with running(tmp_path) as app:
        await asyncio.gather(*(ask(app, asking("m")) for _ in range(5)), ask(app, asking("m", priority=7)))
        found = {
            path: await ask(app, http(path, method="GET"))
            for path in ("/v2/models/m/batcher", "/v2/models/m/versions/1/batcher", "/v2/models/one/batcher", "/v2/models/x/batcher")
        }
    assert [answer.status for answer in found.values()] == [200, 200, 200, 404]
    reports = [answer.json() for answer in list(found.values())[:3]]
    for report in reports:
        Draft202012Validator(schema).validate(report)
    report = reports[0]
    assert report == reports[1]
    assert (report["model"], report["version"], report["precision"], report["max_rows"], report["notes"]) == ("m", "1", "fp32", 64, "")
    assert report["cost"]["points"].keys() >= {"1", "64"}
    assert report["capacity"]["objective"] == 10.0
    assert report["capacity"]["feasible"] is True
    assert report["capacity"]["rows"] == 64
    assert report["capacity"]["offered_rows"] == report["batches"]["rows"] == 5
    assert sum(report["batches"]["reasons"].values()) == pytest.approx(1.0)
    assert report["failures"] == {"invalid": 1}
    assert report["drops"] == dict.fromkeys(DropReason, 0) == dict.fromkeys(DROPS, 0)
    queue = report["queue"]
    assert (queue["rows"], queue["max_rows"], queue["max_bytes"], queue["timeout"]) == (0, 1024, 1 << 20, 5.0)
    assert (queue["priorities"], queue["tenants"]) == (1, {"a": 3.0})
    assert report["lanes"]["why"].startswith("1 x ")


async def test_an_objective_that_cannot_be_met_is_told(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model, yaml="batching: {latency_objective: 1ns}")
    async with running(tmp_path) as app:
        (row,) = app.control.index()
        report = (await ask(app, http("/v2/models/m/batcher", method="GET"))).json()
    assert row.state == "READY"
    assert row.reason.startswith("batching.latency_objective 1e-06 ms can't be met: a run of one row takes ")
    assert "here; the least feasible is " in row.reason
    assert report["capacity"]["feasible"] is False
    assert report["notes"] == row.reason


async def test_a_model_that_does_not_bear_padding_says_so(tmp_path: Path) -> None:
    place(tmp_path, "m", embedding_model, yaml="batching: {pad_axes: {tokens: [1]}}")
    async with running(tmp_path) as app:
        (row,) = app.control.index()
        report = (await ask(app, http("/v2/models/m/batcher", method="GET"))).json()
    assert row.state == "READY"
    assert row.reason == f"not padded, so only requests of one length share a run: {report['padding']['off']}"
    assert report["padding"]["off"].startswith("output 'y' of the same rows alone and padded differ by up to ")
    assert report["padding"]["inputs"] == {}


async def test_only_those_who_may_see_the_inside_are_told(tmp_path: Path) -> None:
    place(tmp_path / "models", "m", identity_model)
    file = tmp_path / "tokens"
    file.write_text(f"user:{hashlib.sha256(b'user-secret').hexdigest()}:infer,read\n")
    file.chmod(0o600)
    user = {"authorization": "Bearer user-secret"}
    async with running(tmp_path / "models", admin={"token_file": file}) as app:
        told, report = (
            await ask(app, asking("m", user, explain=True)),
            await ask(app, http("/v2/models/m/batcher", method="GET", headers=user)),
        )
        plain = await ask(app, asking("m", user, explain=False))
    assert (told.status, report.status, plain.status) == (403, 403, 200)
    assert told.json()["error"].startswith("how a request was batched, routed and run: needs the class 'debug'")
    assert report.json()["error"].startswith("what the batcher learned about a model: needs the class 'debug'")


async def test_what_was_asked_for_is_measured_against_what_can_be_served(tmp_path: Path) -> None:
    place(tmp_path, "m", identity_model, yaml="queue: {max_rows: 4}")
    async with running(tmp_path) as app:
        answers = [await ask(app, infer_binary("m", np.ones((rows, 16), np.float32))) for rows in (3, 5)]
        offered, capacity = await metrics(app, "tidegate_offered_rows_total"), await metrics(app, "tidegate_capacity_rows_per_second")
        utilization, seconds = await metrics(app, "tidegate_capacity_utilization"), await metrics(app, "tidegate_run_seconds")
        waiting = await metrics(app, "tidegate_queue_bytes")
    assert [answer.status for answer in answers] == [200, 503]
    assert list(offered.values()) == [8.0], "rows that were refused count too"
    assert min(*capacity.values(), *utilization.values(), *seconds.values()) > 0
    assert list(waiting.values()) == [0.0]
