"""A real server that steps by itself: down when it's asked for more than its precision can serve in time, and back up."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.app import App
from server.control.precision.precisions import ASKED
from server.repository.manifest import processor
from tests.server.models import linear_model, variant, write_manifest
from tests.server.running import Answer, http, infer_json, running, wire

PATH = "/admin/models/net/precision"
TABLE = """device: {name: Pocket 9}
models:
  net:
    fp32: {fit: {alpha: 20, beta: 10}}
    fp16: {fit: {alpha: 21, beta: 10}}
    int8: {fit: {alpha: 2, beta: 1}}
"""
YAML = """backend: emulated
emulate: {table: mine.yaml, model: net, precisions: [fp32, fp16, int8]}
batching: {latency_objective: 150ms, max_rows: 16}
warmup: {rows: [1, 8]}
precision: {policy: ladder, ladder: [fp32, fp16, int8], down_cool: 0s, up_cool: 2s, calm: 1s}
inputs: {x: {dtype: FP32, shape: [-1, 8]}}
outputs: {y: {dtype: FP32, shape: [-1, 4]}}
"""
ROWS = np.ones((6, 8), np.float32)
PERIOD = 0.05


def place_emulated(root: Path, yaml: str = YAML) -> Path:
    (root / "net" / "1").mkdir(parents=True)
    (root / "net" / "mine.yaml").write_text(TABLE)
    (root / "net" / "model.yaml").write_text(yaml)
    return root


async def ask_admin(app: App, method: str = "GET", path: str = PATH, said: object = None) -> Answer:
    async with wire(app) as connection:
        return await connection.ask(http(path, b"" if said is None else json.dumps(said).encode(), method))


async def told(app: App) -> dict[str, Any]:
    answer: dict[str, Any] = (await ask_admin(app)).json()
    return answer


async def active(app: App) -> str:
    return str((await told(app))["versions"][0]["active"])


async def becomes(app: App, precision: str) -> None:
    async with asyncio.timeout(20):
        while await active(app) != precision:
            await asyncio.sleep(0.05)


async def load(app: App, seen: list[str], done: asyncio.Event) -> None:
    """120 rows/s whatever the answers, more than FP32 serves in time; which precision answered, in order."""
    async with wire(app) as connection:
        sent = 0
        while not done.is_set():
            connection.send(infer_json("net", ROWS, parameters={"explain": True}))
            sent += 1
            await asyncio.sleep(PERIOD)
        for _ in range(sent):
            answer = await connection.answer()
            assert answer.status == 200, answer.body
            assert answer.json()["outputs"][0]["data"][:4] == [8, 9, 10, 11]
            seen.append(answer.json()["parameters"]["precision"])


async def test_load_makes_it_step_down_and_its_end_up_again(tmp_path: Path) -> None:
    seen: list[str] = []
    done = asyncio.Event()
    async with running(place_emulated(tmp_path)) as app:
        assert await active(app) == "fp32"
        asking = asyncio.create_task(load(app, seen, done))
        await becomes(app, "int8")
        async with asyncio.timeout(20):
            while not (state := (await told(app))["stepping"])["steps"]:  # the old one has answered all that it took
                await asyncio.sleep(0.05)
        assert (state["policy"], state["steps"]) == ("ladder", [{"precision": "int8", "reason": "objective_threatened", "count": 1}])
        rungs = {rung["precision"]: rung for rung in state["rungs"]}
        assert rungs["fp16"]["left_out"] == "not_faster"
        assert [rung["cost"] for rung in state["rungs"]] == ["learned", "published", "learned"]
        assert rungs["fp32"]["utilization"] > 0.85 > rungs["int8"]["utilization"]
        scraped = (await _metrics(app))["tidegate_active_precision"]
        assert {labels: value for labels, value in scraped.items() if value} == {'model="net",precision="int8",version="1"': 1.0}
        done.set()
        await asking
        await becomes(app, "fp32")
        events = [event for event in await app.events.since() if event.what == "precision"]
    assert seen == sorted(seen)  # fp32 until it's int8, and never back while the load lasts
    assert set(seen) == {"fp32", "int8"}
    assert [(event.who, event.was, event.now) for event in events] == [("ladder", "fp32", "int8"), ("ladder", "int8", "fp32")]
    assert "left out fp16 (not_faster)" in events[0].why
    assert events[1].why.startswith("room_again; ")


async def _metrics(app: App) -> dict[str, dict[str, float]]:
    """Samples by name and labels, the labels in order of their names."""
    host, _, port = app.addresses.metrics.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    found: dict[str, dict[str, float]] = {}
    for line in page.splitlines():
        if "{" in line and not line.startswith("#"):
            name, _, rest = line.partition("{")
            labels, _, value = rest.partition("} ")
            found.setdefault(name, {})[",".join(sorted(labels.split(",")))] = float(value.split(" ")[0])
    return found


async def test_stepping_down_does_not_say_that_there_is_room(tmp_path: Path) -> None:
    """Utilization is that of the preferred precision, whatever answers."""
    seen: list[str] = []
    done = asyncio.Event()
    async with running(place_emulated(tmp_path)) as app:
        asking = asyncio.create_task(load(app, seen, done))
        await becomes(app, "int8")
        async with asyncio.timeout(20):
            while True:
                used = (await _metrics(app))["tidegate_capacity_utilization"].get('model="net",precision="int8",version="1"', 0.0)
                if used > 1:
                    break
                await asyncio.sleep(0.1)
        done.set()
        await asking


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        ({"direction": "down"}, 200, ""),
        ({}, 200, ""),
        ({"reason": "alert X", "by": "monitor", "fingerprint": "abc"}, 200, ""),
        ({"direction": "up"}, 400, "model 'net' has no precision above fp32 to step to"),
        ({"direction": "sideways"}, 400, 'expected {"direction": "down" or "up"'),
        ({"to": "int8"}, 400, 'expected {"direction": "down" or "up"'),
        ({"reason": 3}, 400, "reason and by: expected text"),
    ],
    ids=str,
)
async def test_a_step_that_is_asked_for(tmp_path: Path, said: object, status: int, text: str) -> None:
    async with running(place_emulated(tmp_path)) as app:
        answer = await ask_admin(app, "POST", f"{PATH}/step", said)
        assert answer.status == status
        assert text in answer.json().get("error", "")
        assert await active(app) == ("int8" if status == 200 else "fp32")  # FP16 is left out: it isn't faster
        assert (await told(app))["chosen"] is None
        events = [event.why for event in await app.events.since()]
    if status == 200:
        assert events[0] == ("alert X (by monitor)" if "reason" in dict(said) else ASKED)  # type: ignore[call-overload]


async def test_a_step_of_a_model_that_does_not_serve(tmp_path: Path) -> None:
    async with running(place_emulated(tmp_path)) as app:
        answer = await ask_admin(app, "POST", "/admin/models/other/precision/step", {})
        assert answer.status == 404


async def test_an_operators_choice_holds_over_the_ladder_until_it_is_cleared(tmp_path: Path) -> None:
    async with running(place_emulated(tmp_path)) as app:
        assert (await ask_admin(app, "PUT", PATH, {"active": "int8"})).status == 200
        await asyncio.sleep(0.2)
        app.control.stepping.look()
        said = await told(app)
        assert (said["chosen"], said["versions"][0]["active"]) == ("int8", "int8")
        assert (await ask_admin(app, "DELETE")).json()["versions"][0]["active"] == "fp32"


def place_net(root: Path, parity: bool) -> Path:
    """Real files, with figures as if they had been proven and timed on this processor, or on another."""
    folder, device = root / "net" / "1", processor() if parity else "cpu (Other 9000)"
    variants = []
    for name, seconds in (("fp32", 0.004), ("int8", 0.001)):
        file = linear_model(folder / f"model.{name}.onnx")
        proof = {"samples": 8, "batch_sizes": [1, 4], "max_abs": 0.0, "mean_abs": 0.0, "cosine_min": 1.0, "tolerance": 1e-5}
        timed = {"device": device, "runtime": "r", "threads": 1, "seconds": {1: seconds, 8: 4 * seconds}}
        variants.append(variant(file, name, target="cpu", parity={**proof, "device": device}, latency=timed))
    write_manifest(folder, "net", variants)
    said = "batching: {latency_objective: 50ms}\nprecision: {policy: ladder, ladder: [fp32, int8]}\n"
    (root / "net" / "model.yaml").write_text(said)
    return root


@pytest.mark.parametrize(("here", "cost", "left_out"), [(True, "measured_elsewhere", None), (False, "unmeasured", "unproven")])
async def test_what_is_proven_elsewhere_is_not_stepped_to(tmp_path: Path, here: bool, cost: str, left_out: str | None) -> None:
    async with running(place_net(tmp_path, here)) as app:
        fp32, int8 = (await told(app))["stepping"]["rungs"]
        assert (fp32["cost"], fp32["left_out"]) == ("learned", None)
        assert (int8["cost"], int8["left_out"]) == (cost, left_out)
        if here:
            assert int8["rows_per_s"] > 0
        status = (await ask_admin(app, "POST", f"{PATH}/step", {})).status
        assert (status, await active(app)) == ((200, "int8") if here else (400, "fp32"))


async def test_the_command(tmp_path: Path) -> None:
    async with running(place_emulated(tmp_path)) as app:
        for arguments, text in ((("step", "net", "down"), "int8"), (("show", "net"), "ladder")):
            command = (sys.executable, "-m", "tidegate", "precision", *arguments, "--url", f"http://{app.addresses.http}")
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
            out, err = await process.communicate()
            assert (process.returncode, err) == (0, b"")
            assert text in out.decode()
