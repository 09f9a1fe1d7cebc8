"""admin.port: /admin there and nowhere else, by a real server's two ports; no model is asked there; both drain."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import numpy as np
import pytest

from server.app import App
from server.config import load_settings
from server.edges.admin.apart import ON_ADMIN_PORT
from server.errors import ConfigError
from server.gate import Gate
from tests.server.models import identity_model, place
from tests.server.running import http, json_body, running

BODY = json_body(np.ones((1, 16), np.float32))


def clients(app: App) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    """Of the HTTP port and of the admin port."""
    return httpx.AsyncClient(base_url=f"http://{app.addresses.http}"), httpx.AsyncClient(base_url=f"http://{app.addresses.admin}")


def placed(root: Path) -> Path:
    place(root, "echo", identity_model)
    return root


async def test_admin_is_answered_there_and_nowhere_else(tmp_path: Path) -> None:
    async with running(placed(tmp_path), admin={"port": 0}) as app:
        assert f'"admin":"{app.addresses.admin}"' in app.ready_line()
        main, admin = clients(app)
        async with main, admin:
            paths = [path for path in (await main.get("/openapi.json")).json()["paths"] if path.startswith("/admin")]
            assert len(paths) >= 4, "the document lists them still"
            for path in [each.replace("{model}", "echo") for each in paths]:
                refused = await main.get(path)
                assert (refused.status_code, refused.json()["error"]) == (404, f"{path} is answered on the admin port only (admin.port)")
            for path in ("/admin/models/echo/admission", "/admin/models/echo/weights", "/admin/events"):
                assert (await admin.get(path)).status_code == 200
            changed = await admin.put("/admin/models/echo/admission", json={"min_priority": 1, "ttl_s": 60})
            assert changed.status_code == 200
            assert (await admin.get("/admin/events")).json()["events"][-1]["now"] == "priorities 1 to 1 for 60 s"


async def test_no_model_can_be_asked_there(tmp_path: Path) -> None:
    async with running(placed(tmp_path), admin={"port": 0}) as app:
        main, admin = clients(app)
        async with main, admin:
            path = "/v2/models/echo/infer"
            assert (await main.post(path, content=BODY)).status_code == 200
            for other in (
                path,
                "/v2/models/echo/versions/1/infer",
                "/v2/models/echo/generate",
                "/v2/models/echo",
                "/v2",
                "/docs",
                "/adminx",
            ):
                refused = await admin.post(other, content=BODY)
                assert (refused.status_code, other in refused.json()["error"]) == (404, True)
                assert all(prefix in refused.json()["error"] for prefix in ON_ADMIN_PORT)
            assert (await admin.get("/v2/health/ready")).json() == {"ready": True}
            assert [row["name"] for row in (await admin.post("/v2/repository/index")).json()] == ["echo"]
            assert (await main.post("/v2/repository/index")).status_code == 200, "stock clients look for it there"


async def test_one_port_answers_all_where_none_is_named(tmp_path: Path) -> None:
    async with running(placed(tmp_path)) as app:
        assert app.addresses.admin == ""
        assert "admin" not in app.ready_line()
        async with httpx.AsyncClient(base_url=f"http://{app.addresses.http}") as client:
            assert (await client.get("/admin/events")).status_code == 200


async def test_tokens_hold_on_both(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ops:{hashlib.sha256(b'secret').hexdigest()}:read,control,debug\n")
    tokens.chmod(0o600)
    other = {"host": "0.0.0.0", "admin": {"port": 0, "token_file": tokens}}
    async with running(placed(tmp_path / "models"), **other) as app, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{app.http.admin_port}/admin/events"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"authorization": "Bearer wrong"})).status_code == 401
        assert (await client.get(url, headers={"authorization": "Bearer secret"})).status_code == 200
        main = f"http://127.0.0.1:{app.http.port}/admin/events"
        assert (await client.get(main, headers={"authorization": "Bearer secret"})).status_code == 404


async def test_a_drain_ends_the_connections_of_both(tmp_path: Path) -> None:
    async with running(placed(tmp_path), admin={"port": 0}) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.http.admin_port)
        writer.write(http("/v2/health/live", method="GET"))
        assert (await reader.readline()).split()[1] == b"200"
        assert app.http.connections == 1
        port = app.http.admin_port
    assert b"live" in await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with running(placed(tmp_path / "one")) as app:
        with pytest.raises(ConfigError, match=r"can't listen on 127\.0\.0\.1:\d+: .* Choose another with --host and admin\.port"):
            async with running(placed(tmp_path / "two"), admin={"port": app.http.port}):
                pass


def test_a_port_that_nobody_could_use_is_refused(tmp_path: Path) -> None:
    flags = {"repository": tmp_path, "host": "0.0.0.0", "admin": {"port": 8003}}
    with pytest.raises(ConfigError, match=r"admin\.port is set .* give admin\.token_file"):
        Gate.from_settings(load_settings(None, flags))
    Gate.from_settings(load_settings(None, {**flags, "host": "127.0.0.1"}))
