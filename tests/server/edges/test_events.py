"""GET /admin/events: who switched what and when, as JSON and as a stream, for those who may, over restarts and up to the drain."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from time import time
from typing import Any

import httpx
import pytest

from server.app import App
from server.config import load_settings
from server.errors import ConfigError
from server.state.base import Event
from tests.server.running import running
from tests.server.test_precision_switch import place_net, switch

STREAM = {"accept": "text/event-stream"}


async def logged(app: App, query: str = "", **headers: str) -> list[dict[str, Any]]:
    """Without the loads and unloads that switches bring about."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{app.http.port}/admin/events{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    events: list[dict[str, Any]] = answer.json()["events"]
    return [event for event in events if not event["what"].startswith("variant_")]


async def streamed(response: httpx.Response) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    number = 0
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: "):
            yield number, json.loads(line[6:])


async def next_switch(events: AsyncIterator[tuple[int, dict[str, Any]]]) -> tuple[int, dict[str, Any]]:
    while (found := await anext(events))[1]["what"] != "precision":
        pass
    return found


async def test_a_switch_is_logged_with_who_and_what(tmp_path: Path) -> None:
    place_net(tmp_path / "models")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{hashlib.sha256(b'secret').hexdigest()}:control,debug\nbob:{hashlib.sha256(b'other').hexdigest()}:control\n")
    tokens.chmod(0o600)
    async with running(tmp_path / "models", host="0.0.0.0", admin={"token_file": tokens}) as app, httpx.AsyncClient() as client:
        begun, url, ann = time(), f"http://127.0.0.1:{app.http.port}/admin/", {"authorization": "Bearer secret"}
        for method, said in (("PUT", b'{"active": "int8"}'), ("PUT", b'{"active": "int4"}'), ("DELETE", b"")):
            await client.request(method, url + "models/net/precision", content=said, headers=ann)
        to_int8, back = await logged(app, **ann)
        refused = [(await client.get(url + "events", headers=headers)).status_code for headers in ({}, {"authorization": "Bearer other"})]
    why = "asked for through the admin API"
    named = {"who": "ann", "what": "precision", "model": "net", "why": why}
    assert begun <= to_int8.pop("at") <= back.pop("at") <= time()
    assert to_int8 == {"number": 1, **named, "was": "fp32", "now": "int8"}
    assert back == {"number": back["number"], **named, "was": "int8", "now": "fp32"}
    assert refused == [401, 403]


async def test_it_is_read_on_from_a_number(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app, httpx.AsyncClient() as client:
        for number in range(4):
            await app.events.append(Event(float(number), "test", "made"))
        assert [event["number"] for event in await logged(app, "?after=1&most=2")] == [2, 3]
        wrong = [
            (await client.get(f"http://{app.addresses.http}/admin/events?{query}")).status_code
            for query in ("after=-1", "most=0", "after=x")
        ]
    assert all(400 <= status < 500 for status in wrong)


async def test_a_stream_has_what_was_and_what_comes(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app, httpx.AsyncClient() as client:
        await switch(app, "int8")
        async with asyncio.timeout(20), client.stream("GET", f"http://{app.addresses.http}/admin/events", headers=STREAM) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = streamed(response)
            first = await next_switch(events)
            await switch(app, "fp16")
            second = await next_switch(events)
        assert [event["now"] for _, event in (first, second)] == ["int8", "fp16"]
        on = {**STREAM, "last-event-id": "1"}
        async with asyncio.timeout(20), client.stream("GET", f"http://{app.addresses.http}/admin/events", headers=on) as response:
            assert (await anext(streamed(response)))[0] == 2


async def test_a_drain_ends_streams_and_a_client_that_left_is_forgotten(tmp_path: Path) -> None:
    place_net(tmp_path)
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        async with running(tmp_path, drain_timeout=60.0) as app:
            url = f"http://{app.addresses.http}/admin/events"
            await app.events.append(Event(0.0, "test", "made"))
            async with client.stream("GET", url, headers=STREAM) as response:
                await anext(streamed(response))
            while app.events._listeners:
                await asyncio.sleep(0.001)
            stream = client.stream("GET", url, headers=STREAM)
            lines = streamed(await stream.__aenter__())
            await anext(lines)
        assert [event async for event in lines] == []  # the server has stopped, long before its drain_timeout
        await stream.__aexit__(None, None, None)


async def test_the_log_outlives_a_restart(tmp_path: Path) -> None:
    place_net(tmp_path / "models")
    state = tmp_path / "state.db"
    for number in (1, 2):
        async with running(tmp_path / "models", state=state) as app:
            await switch(app, "int8")
            assert [event["now"] for event in await logged(app)] == ["int8"] * number


async def test_a_log_that_cannot_be_written_stops_no_switch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place_net(tmp_path)
    async with running(tmp_path) as app, httpx.AsyncClient() as client:
        app.events._store.close()
        assert (await switch(app, "int8")).json()["versions"][0]["active"] == "int8"
        for headers in ({}, STREAM):
            assert (await client.get(f"http://{app.addresses.http}/admin/events", headers=headers)).status_code == 503
    assert "event_not_kept" in capfd.readouterr().err


async def test_a_state_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"something else" * 100)
    with pytest.raises(ConfigError, match=r"state\.db: it's damaged"):
        App(load_settings(None, {"repository": tmp_path, "state": tmp_path / "state.db"}))
