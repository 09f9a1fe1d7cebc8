"""What an alert does to a real server."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from monitor.actions import Actions
from monitor.alerts import Alert, Level, State
from monitor.rules.settings import Action
from monitor.store import Store
from tests.monitor.pages_served import reply, serving
from tests.server.models import place
from tests.server.running import infer_json, running, wire
from tests.server.test_ladder_serving import place_emulated

ALERT = Alert("InferenceLatency", (("model", "linear"),), Level.CRITICAL, State.FIRING, 0.3, 1.0, 1.0)


async def test_an_incident_is_captured_and_the_oldest_file_goes(tmp_path: Path) -> None:
    place(tmp_path / "models", "linear")
    folder = tmp_path / "kept" / "incidents"
    async with running(tmp_path / "models") as app:
        async with wire(app) as client:
            assert (await client.ask(infer_json("linear", np.zeros((1, 8), np.float32)))).status == 200
        action = Action(do="capture", url=f"http://{app.addresses.http}", folder=folder, keep=2, at_most=5)
        actions = Actions({"capture": action}, Store(tmp_path / "state.db"), "m")
        outcomes = [(await actions.take("capture", ALERT, float(number))).text for number in range(3)]
    files = sorted(folder.iterdir())
    assert [f"done: {path}" for path in files] == outcomes[1:]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    events = [json.loads(line) for line in files[-1].read_text().splitlines()]
    assert events[0]["event"] == "incident"
    assert [event["model"] for event in events if event["event"] == "arrival"] == ["linear"]


async def test_a_priority_is_shed(tmp_path: Path) -> None:
    place(tmp_path / "models", "linear", yaml="queue: {priorities: 2}")
    async with running(tmp_path / "models") as app, wire(app) as client:
        action = Action(do="shed", url=f"http://{app.addresses.http}", below_priority=1, ttl=60.0)
        actions = Actions({"shed": action}, Store(tmp_path / "state.db"), "m")
        assert (await actions.take("shed", ALERT, 0.0)).text == "done"
        statuses = [
            (await client.ask(infer_json("linear", np.zeros((1, 8), np.float32), parameters={"priority": number}))).status
            for number in (1, 2)
        ]
    assert statuses == [200, 503]


async def test_a_precision_is_stepped(tmp_path: Path) -> None:
    place_emulated(tmp_path / "models")
    alert = replace(ALERT, labels=(("model", "net"),))
    async with running(tmp_path / "models") as app:
        action = Action(do="step_precision", url=f"http://{app.addresses.http}", at_most=5)
        actions = Actions({"step": action}, Store(tmp_path / "state.db"), "m")
        outcomes = [(await actions.take("step", alert, float(number))).text for number in range(2)]
        (event, *_) = await app.events.since()
    assert outcomes == ["done", "failed: the server answered 400"]  # there's nothing below INT8
    assert (event.who, event.was, event.now) == ("anonymous", "fp32", "int8")
    assert event.why == "alert InferenceLatency (by m)"


def test_shedding_needs_to_know_whom() -> None:
    with pytest.raises(ValidationError, match="`do: shed` needs `below_priority`"):
        Action(do="shed")


async def test_what_can_not_be_captured_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serving(reply(b"{}", "403 Forbidden")) as refusing, serving(reply(b"{}\n")) as server:
        tried = {
            "refused": Action(do="capture", url=refusing.url, folder=tmp_path / "a"),
            "nowhere": Action(do="capture", url=server.url, folder=tmp_path / "file"),
        }
        actions = Actions(tried, Store(tmp_path / "state.db"), "m")
        outcomes = {name: (await actions.take(name, ALERT, 0.0)).text for name in tried}
    assert outcomes["refused"] == "failed: the server answered 403"
    assert outcomes["nowhere"].startswith(f"failed: {tmp_path / 'file'}: ")
    assert not (tmp_path / "a").exists()
