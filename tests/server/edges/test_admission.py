"""PUT /admin/models/M/admission: lower priorities are shed for a while, over a reload too, and it's written down who did it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.server.models import identity_model, place
from tests.server.running import infer_json, running, wire

ROWS = np.ones((1, 16), np.float32)
YAML = "queue: {priorities: 3}\n"
PATH = "/admin/models/echo/admission"


def placed(root: Path) -> Path:
    place(root, "echo", identity_model)
    (root / "echo" / "model.yaml").write_text(YAML)
    return root


async def test_lower_priorities_are_shed_until_it_is_over(tmp_path: Path) -> None:
    async with running(placed(tmp_path)) as app, wire(app) as line, httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:

        async def taken() -> list[int]:
            return [(await line.ask(infer_json("echo", ROWS, parameters={"priority": level}))).status for level in (1, 2, 3)]

        assert (await client.get(PATH)).json() == {"min_priority": None, "ttl_s": None}
        assert await taken() == [200, 200, 200]
        said = (await client.put(PATH, json={"min_priority": 2, "ttl_s": 60})).json()
        assert (said["min_priority"], 50 < said["ttl_s"] <= 60) == (2, True)
        assert await taken() == [200, 200, 503]
        await client.put(PATH, json={"min_priority": 1, "ttl_s": 60})
        assert await taken() == [200, 503, 503]
        assert (await client.delete(PATH)).json() == {"min_priority": None, "ttl_s": None}
        assert await taken() == [200, 200, 200]
        await client.put(PATH, json={"min_priority": 1, "ttl_s": 0.05})
        async with asyncio.timeout(10):
            while (await client.get(PATH)).json()["min_priority"] is not None:
                await asyncio.sleep(0.005)
        assert await taken() == [200, 200, 200]
        async with asyncio.timeout(10):
            while len(events := (await client.get("/admin/events")).json()["events"]) < 5:
                await asyncio.sleep(0.005)
    assert [(event["was"], event["now"]) for event in events] == [
        ("all priorities", "priorities 1 to 2 for 60 s"),
        ("priorities 1 to 2", "priorities 1 to 1 for 60 s"),
        ("priorities 1 to 1", "all priorities"),
        ("all priorities", "priorities 1 to 1 for 0.05 s"),
        ("priorities 1 to 1", "all priorities"),
    ]
    assert [event.get("who") for event in events] == [*["anonymous"] * 4, None]


async def test_a_reload_takes_nothing_back(tmp_path: Path) -> None:
    explicit = {"model_control": "explicit", "load_model": "echo"}
    async with running(placed(tmp_path), **explicit) as app, wire(app) as line, httpx.AsyncClient() as client:
        url = f"http://{app.addresses.http}"
        await client.put(url + PATH, json={"min_priority": 1, "ttl_s": 60})
        (tmp_path / "echo" / "model.yaml").write_text(YAML + "batching: {max_rows: 8}\n")
        assert (await client.post(url + "/v2/repository/models/echo/load", json={})).status_code == 200
        assert app.router.entry("echo", "").config.batching.max_rows == 8
        assert (await line.ask(infer_json("echo", ROWS, parameters={"priority": 3}))).status == 503


@pytest.mark.parametrize(
    ("path", "said", "status"),
    [
        (PATH, {"min_priority": 0, "ttl_s": 1}, 400),
        (PATH, {"min_priority": 4, "ttl_s": 1}, 400),
        (PATH, {"min_priority": True, "ttl_s": 1}, 400),
        (PATH, {"min_priority": 1, "ttl_s": 0}, 400),
        (PATH, {"min_priority": 1, "ttl_s": 1e9}, 400),
        (PATH, {"min_priority": 1}, 400),
        (PATH, {"min_priority": 1, "ttl_s": 1, "more": 1}, 400),
        ("/admin/models/other/admission", {"min_priority": 1, "ttl_s": 1}, 404),
    ],
)
async def test_bad_wishes_change_nothing(tmp_path: Path, path: str, said: object, status: int) -> None:
    async with running(placed(tmp_path)) as app, httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:
        assert (await client.put(path, json=said)).status_code == status
        assert (await client.get(PATH)).json()["min_priority"] is None
        assert (await client.get("/admin/events")).json()["events"] == []
