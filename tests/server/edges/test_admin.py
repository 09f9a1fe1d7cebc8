import hashlib
import json
from pathlib import Path

import httpx
import numpy as np

from tests.server.models import identity_model, place
from tests.server.running import infer_json, running, wire

ROWS = np.ones((2, 16), np.float32)


async def test_an_incident_is_the_last_events_as_lines(tmp_path: Path) -> None:
    place(tmp_path, "echo", identity_model)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    async with running(tmp_path) as app, wire(app) as client, httpx.AsyncClient() as plain:
        await client.ask(infer_json("echo", ROWS))
        answer = await plain.post(f"http://{app.addresses.http}/admin/incident")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    head, *events = (json.loads(line) for line in answer.text.splitlines())
    assert (head["event"], head["events"]) == ("incident", len(events))
    routing = {event["model"]: event["what"] for event in events if event["event"] == "routing"}
    assert routing["echo"] == "ready"
    assert routing["broken"].startswith("unavailable: ")
    (arrival,) = (event for event in events if event["event"] == "arrival")
    (batch,) = (event for event in events if event["event"] == "batch")
    assert (arrival["model"], arrival["rows"], arrival["deadline"]) == ("echo", 2, None)
    assert (batch["rows"], batch["requests"], batch["reason"], batch["precision"]) == (2, 1, "idle", "fp32")
    assert arrival["t"] <= batch["t"]


async def test_a_request_that_fits_no_model_is_no_arrival(tmp_path: Path) -> None:
    place(tmp_path, "echo", identity_model)
    async with running(tmp_path) as app, wire(app) as client, httpx.AsyncClient() as plain:
        assert (await client.ask(infer_json("echo", ROWS[:, :3]))).status == 400
        assert (await client.ask(infer_json("other", ROWS))).status == 404
        text = (await plain.post(f"http://{app.addresses.http}/admin/incident")).text
    assert '"arrival"' not in text


async def test_it_is_for_those_who_may_debug(tmp_path: Path) -> None:
    place(tmp_path / "models", "echo", identity_model)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}:debug\n")
    tokens.chmod(0o600)
    async with running(tmp_path / "models", host="0.0.0.0", admin={"token_file": tokens}) as app, httpx.AsyncClient() as plain:
        url = f"http://127.0.0.1:{app.http.port}/admin/incident"
        assert (await plain.post(url)).status_code == 401
        assert (await plain.post(url, headers={"authorization": "Bearer secret"})).status_code == 200
