"""Process lanes behind the real server: a killed lane costs no request, a poison request only itself, and the operator can see it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np

from server.app import App
from server.lanes.process.lane import ProcessLane
from tests.server.engine.test_supervisor import until
from tests.server.lanes.scripted import DIES
from tests.server.models import identity_model, linear_model, linear_weights, place
from tests.server.running import Answer, http, infer_binary, infer_json, running, wire

PROCESS = "lanes: {kind: process, count: 1, threads: 1}\n"


def pids(app: App, model: str) -> list[int]:
    entry = app.table.default(model)
    assert entry is not None
    assert entry.engine is not None
    return [lane.pid for lane in entry.engine.lanes if isinstance(lane, ProcessLane)]


async def ask(app: App, data: bytes) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(data)


async def scraped(app: App, line: str) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.metrics.port)
    writer.write(http("/metrics", method="GET", headers={"connection": "close"}))
    text = (await reader.read()).decode()
    writer.close()
    return line in text


async def test_answers_through_a_process(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear_model, yaml=PROCESS)
    weight, bias = linear_weights()
    x = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    async with running(tmp_path) as app:
        entry = app.table.default("linear")
        assert entry is not None
        assert entry.lanes == "1 x process with 1 threads: as model.yaml says"
        answer = await ask(app, infer_binary("linear", x))
        np.testing.assert_allclose(answer.tensor().reshape(3, 4), x @ weight + bias, rtol=1e-4, atol=1e-5)
        answer = await ask(app, infer_json("linear", x))
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], (x @ weight + bias).ravel(), rtol=1e-4, atol=1e-5)


async def test_large_answers_through_a_process_one_after_the_other(tmp_path: Path) -> None:
    place(tmp_path, "wide", lambda path: identity_model(path, width=50_000), yaml=PROCESS)
    async with running(tmp_path) as app, wire(app) as connection:
        rows = [np.full((1, 50_000), number, np.float32) for number in range(20)]
        for row in rows:
            connection.send(infer_binary("wide", row))
        for row in rows:
            np.testing.assert_array_equal((await connection.answer()).tensor(), row[0])


async def test_a_killed_lane_costs_no_request_and_is_counted(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear_model, yaml=PROCESS)
    async with running(tmp_path) as app:
        before = pids(app, "linear")
        os.kill(before[0], signal.SIGKILL)
        answers = await asyncio.gather(*(ask(app, infer_binary("linear", np.zeros((1, 8), np.float32))) for _ in range(16)))
        assert [answer.status for answer in answers] == [200] * 16
        assert pids(app, "linear") != before
        series = 'tidegate_lane_restarts_total{model="linear",precision="fp32",reason="%s",version="1"} %.1f'
        assert await scraped(app, series % ("died", 1))
        assert await scraped(app, series % ("hung", 0))


async def test_a_poison_request_fails_alone(tmp_path: Path, scripted: str) -> None:
    place(tmp_path, "m", lambda path: identity_model(path, width=2), yaml=f"backend: {scripted}\n{PROCESS}")
    async with running(tmp_path) as app:
        good = [infer_json("m", np.array([[number, 0]], np.float32)) for number in range(24)]
        poison = infer_json("m", np.array([[DIES, 0]], np.float32))
        answers = await asyncio.gather(*(ask(app, data) for data in [*good[:12], poison, *good[12:]]))
        assert answers[12].status == 500
        assert "the model's process was killed by this input: its process ended with status 7" in answers[12].json()["error"]
        assert [answer.status for answer in answers[:12] + answers[13:]] == [200] * 24
        again = await ask(app, poison)
        assert again.status == 500
        assert "this very input killed the model's process; it's refused for" in again.json()["error"]


async def test_a_model_without_lanes_is_unavailable_until_one_is_back(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear_model, yaml=PROCESS)
    file = tmp_path / "linear" / "1" / "model.onnx"
    async with running(tmp_path) as app:
        file.rename(tmp_path / "away")
        os.kill(pids(app, "linear")[0], signal.SIGKILL)
        await until(lambda: not app.ready())
        row = app.control.index()[0]
        assert row.state == "UNAVAILABLE"
        assert row.reason.startswith("lane restarting: ")
        answer = await ask(app, infer_binary("linear", np.zeros((1, 8), np.float32)))
        assert answer.status == 503
        assert "lane restarting" in answer.json()["error"]
        (tmp_path / "away").rename(file)
        await until(app.ready)
        assert app.control.index()[0].reason == ""
        assert (await ask(app, infer_binary("linear", np.zeros((1, 8), np.float32)))).status == 200


async def test_children_end_with_the_server(tmp_path: Path) -> None:
    place(tmp_path, "linear", linear_model, yaml="lanes: {kind: process, count: 2, threads: 1}\n")
    async with running(tmp_path) as app:
        started = pids(app, "linear")
        assert len(started) == 2
    assert not any(str(pid) in os.listdir("/proc") for pid in started)


async def test_two_models_share_the_cores(tmp_path: Path) -> None:
    for name in ("one", "two"):
        place(tmp_path, name, linear_model, yaml=f"lanes: {{kind: thread, count: 2, threads: {os.cpu_count()}}}\n")
    async with running(tmp_path) as app:
        data = [infer_binary(name, np.zeros((1, 8), np.float32)) for name in ("one", "two")] * 20
        answers = await asyncio.gather(*(ask(app, item) for item in data))
        assert [answer.status for answer in answers] == [200] * 40
