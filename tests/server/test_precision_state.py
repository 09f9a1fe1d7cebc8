"""What operators set comes back after a restart, wins over model.yaml until it's cleared, and is written down; the commands that do it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest

from server.app import App
from server.errors import ConfigError, InvalidRequest
from server.state.base import Event
from server.state.sqlite import SqliteState
from tests.server.running import infer_json, running, wire
from tests.server.test_precision_switch import ROWS, place_net, told

PINS = "/admin/models/net/precision/pins/int8"


async def answering(app: App) -> str:
    async with wire(app) as connection:
        return told(await connection.ask(infer_json("net", ROWS)))


def read(app: App) -> dict[str, Any]:
    return app.control.precisions.read("net")


def variant(app: App, name: str) -> dict[str, Any]:
    return next(each for each in read(app)["versions"][0]["variants"] if each["precision"] == name)


async def events(app: App, what: str) -> list[Event]:
    return [event for event in await app.events.since() if event.what == what]


async def test_a_choice_outlives_a_restart_until_it_is_cleared(tmp_path: Path) -> None:
    place_net(tmp_path / "models", "precision: {active: fp16}")
    state = tmp_path / "state.db"
    async with running(tmp_path / "models", state=state) as app:
        await app.control.switch("net", "int8", "ann")
    async with running(tmp_path / "models", state=state) as app:
        assert await answering(app) == "int8"
        said = read(app)
        assert (said["chosen"], said["differs"], said["versions"][0]["configured"]) == ("int8", True, "fp16")
        await app.control.switch("net", None, "ann")
        assert (await answering(app), read(app)["differs"]) == ("fp16", False)
    async with running(tmp_path / "models", state=state) as app:
        assert (await answering(app), read(app)["chosen"]) == ("fp16", None)
        await app.control.step("net", "fp32", "ladder", "to see")
        assert (await answering(app), read(app)["stepped"]) == ("fp32", "fp32")
    async with running(tmp_path / "models", state=state) as app:  # what the server did by itself isn't remembered
        assert (await answering(app), read(app)["stepped"]) == ("fp16", None)


async def test_a_choice_that_cannot_be_served_any_more(tmp_path: Path) -> None:
    place_net(tmp_path / "models")
    state = tmp_path / "state.db"
    async with running(tmp_path / "models", state=state) as app:
        await app.control.switch("net", "int8")
    (tmp_path / "models" / "net" / "1" / "model.int8.onnx").write_bytes(b"damaged")
    async with running(tmp_path / "models", state=state) as app:
        assert (await answering(app), read(app)["chosen"]) == ("fp32", "int8")
        assert "not served in int8 as was chosen" in app.control.index()[0].reason


async def test_what_is_pinned_out_does_not_answer_until_it_may(tmp_path: Path) -> None:
    place_net(tmp_path / "models", "precision: {active: int8}")
    state = tmp_path / "state.db"
    async with running(tmp_path / "models", state=state) as app:
        await app.control.pin_out("net", "int8", "guard", "it drifted")
        assert await answering(app) == "fp32"
        with pytest.raises(InvalidRequest, match=r"int8 is pinned out \(it drifted\); `tidegate precision unpin net int8`"):
            await app.control.switch("net", "int8")
    async with running(tmp_path / "models", state=state) as app:
        assert await answering(app) == "fp32"
        said = variant(app, "int8")
        assert (said["state"], said["why"], said["pins"], 250 < said["pinned_for_s"] <= 300) == ("pinned_out", "it drifted", 1, True)
        await app.control.pin_out("net", "int8", "guard", "again")
        assert 550 < variant(app, "int8")["pinned_for_s"] <= 600  # twice as long, also over a restart
        await app.control.pin_out("net", "fp16", "guard", "too")
        with pytest.raises(InvalidRequest, match="fp32 is the only precision that can answer"):
            await app.control.pin_out("net", "fp32", "guard", "all")
        await app.control.unpin("net", "int8", "ann")
        assert await answering(app) == "int8"  # as model.yaml says
        with pytest.raises(InvalidRequest, match="isn't pinned out"):
            await app.control.unpin("net", "int8", "ann")
        assert [(event.who, event.now) for event in await events(app, "pin")][-1] == ("ann", "may answer")


async def test_a_pin_ends_by_itself(tmp_path: Path) -> None:
    place_net(tmp_path / "models", "precision: {active: int8}")
    store = SqliteState(tmp_path / "state.db")
    pin = {"version": "1", "precision": "int8", "until": time() + 1.0, "number": 3, "why": "it drifted"}
    store.write("precision", "net", {"active": None, "pinned": [pin]}, Event(0.0, "test", "made"))
    store.close()
    async with running(tmp_path / "models", state=tmp_path / "state.db") as app, asyncio.timeout(20):
        while not [event for event in await events(app, "pin") if event.why == "its time is over"]:
            await asyncio.sleep(0.01)
        while await answering(app) != "int8":
            await asyncio.sleep(0.01)
        assert app.events is not None
    async with running(tmp_path / "models", state=tmp_path / "state.db") as app:
        assert await answering(app) == "int8"


async def test_what_is_shed_is_shed_after_a_restart(tmp_path: Path) -> None:
    place_net(tmp_path / "models", "queue: {priorities: 2}")
    state = tmp_path / "state.db"
    async with running(tmp_path / "models", state=state) as app:
        await app.control.admissions.set("net", 1, 60.0, "ann")
    async with running(tmp_path / "models", state=state) as app, wire(app) as connection:
        assert (await connection.ask(infer_json("net", ROWS))).status == 503
        await app.control.switch("net", "int8")
        assert (await connection.ask(infer_json("net", ROWS))).status == 503  # the new one as well
        await app.control.admissions.clear("net", "ann")
        assert (await connection.ask(infer_json("net", ROWS))).status == 200
    async with running(tmp_path / "models", state=state) as app:
        assert app.control.admissions.read("net")["min_priority"] is None


async def test_a_document_that_makes_no_sense_is_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place_net(tmp_path / "models")
    store = SqliteState(tmp_path / "state.db")
    store.write("precision", "net", {"active": "int8", "pinned": [{"version": "1"}]}, Event(0.0, "test", "made"))
    store.write("admission", "net", {"min_priority": "x"}, Event(0.0, "test", "made"))
    store.close()
    async with running(tmp_path / "models", state=tmp_path / "state.db") as app:
        assert await answering(app) == "int8"
    assert capfd.readouterr().err.count("state_not_understood") == 2


async def test_a_state_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app:
        app.events._store.close()
        with pytest.raises(ConfigError, match="what operators set can't be read"):
            await app.control.precisions.restore()


async def test_loads_unloads_and_failures_are_events(tmp_path: Path) -> None:
    async with running(place_net(tmp_path)) as app:
        await app.control.switch("net", "int8", "ann")
        async with asyncio.timeout(20):
            while not await events(app, "variant_unloaded"):
                await asyncio.sleep(0.001)
        (tmp_path / "net" / "1" / "model.fp16.onnx").write_bytes(b"damaged")
        with pytest.raises(Exception, match="still serves in int8"):
            await app.control.switch("net", "fp16", "ann")
        async with asyncio.timeout(20):
            while not await events(app, "variant_not_loaded"):
                await asyncio.sleep(0.001)
        assert [event.now for event in await events(app, "variant_loaded")] == ["1 int8 warm"]
        assert (await events(app, "variant_unloaded"))[0].now == "1 fp32 evicted"
        assert (await events(app, "precision_failed"))[0].who == "ann"


async def test_pins_are_for_those_who_may_control(tmp_path: Path) -> None:
    place_net(tmp_path / "models")
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{name}\n" for name in ("debug", "control")))
    tokens.chmod(0o600)
    async with running(tmp_path / "models", host="0.0.0.0", admin={"token_file": tokens}) as app, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{app.http.port}{PINS}"
        for method in ("PUT", "DELETE"):
            assert (await client.request(method, url)).status_code == 401
            assert (await client.request(method, url, headers={"authorization": "Bearer debug"})).status_code == 403
            assert (await client.request(method, url, headers={"authorization": "Bearer control"})).status_code == 200
        wrong = await client.put(url, json={"reason": "x"}, headers={"authorization": "Bearer control"})
        assert (wrong.status_code, wrong.json()["error"][:33]) == (400, 'expected {} or {"why": TEXT}, got')


async def tidegate(app: App, *arguments: str) -> str:
    command = (sys.executable, "-m", "tidegate", *arguments, "--url", f"http://{app.addresses.http}")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode()


async def test_the_commands(tmp_path: Path) -> None:
    async with running(place_net(tmp_path, "queue: {priorities: 2}")) as app:
        assert "pinned_out for" in await tidegate(app, "precision", "pin", "net", "int8", "--why", "to see")
        assert "pinned_out" not in await tidegate(app, "precision", "unpin", "net", "int8")
        shed = await tidegate(app, "admission", "set", "net", "1", "--ttl", "60")  # what is left of it when the answer is made
        assert re.fullmatch(r"priorities 1 to 1 are taken for (60|59\.\d+) s more\n", shed)
        assert json.loads(await tidegate(app, "admission", "show", "net", "--json"))["min_priority"] == 1
        assert await tidegate(app, "admission", "clear", "net") == "all priorities are taken\n"
        lines = (await tidegate(app, "events", "--model", "net")).splitlines()
        assert [line.split("  ", 3)[3] for line in lines if "pin" in line] == [
            "pin  net  int8 → pinned out for 300 s  to see",
            "pin  net  int8 → may answer  asked for through the admin API",
        ]
        assert [json.loads(line)["what"] for line in (await tidegate(app, "events", "--json")).splitlines()][-1] == "admission"


async def test_events_are_followed(tmp_path: Path) -> None:
    async with running(place_net(tmp_path)) as app, asyncio.timeout(30):
        command = (sys.executable, "-m", "tidegate", "events", "--follow", "--json", "--url", f"http://{app.addresses.http}")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        for name in ("one", "two"):
            await app.events.append(Event(0.0, "test", name))
            assert json.loads(await process.stdout.readline())["what"] == name
        app.events.end()
        assert await process.wait() == 0
