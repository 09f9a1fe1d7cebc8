"""Every path of the HTTP edge asks the gate: a token that isn't known is refused everywhere, one that is isn't."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest_asyncio

from server.app import App
from tests.server.running import Answer, http, json_body, running, wire

TOKEN = "a-token-that-is-known"
BODY = json_body(np.ones((1, 16), np.float32))


@pytest_asyncio.fixture
async def guarded(repository: Path, tmp_path: Path) -> AsyncIterator[App]:
    file = tmp_path / "tokens"
    file.write_text(
        f"alice:{hashlib.sha256(TOKEN.encode()).hexdigest()}:infer,read,control,debug\nbob:{hashlib.sha256(b'bob').hexdigest()}:tenant\n"
    )
    file.chmod(0o600)
    async with running(repository, admin_token_file=file) as app:
        yield app


async def asked(app: App, method: str, path: str, token: str | None) -> Answer:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    body = BODY if path.endswith("/infer") else b""
    async with wire(app) as connection:
        return await connection.ask(http(path, body, method, headers))


async def paths(app: App) -> list[tuple[str, str]]:
    """All that the document lists, for a model that there is, and the document itself."""
    document = (await asked(app, "GET", "/openapi.json", None)).json()
    listed = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    filled = [(method, path.replace("{model}", "identity").replace("{version}", "1")) for method, path in listed]
    return [*filled, ("GET", "/openapi.json"), ("GET", "/docs")]


OTHERWISE = {
    "/manifest": 404,
    "/load": 503,
    "/unload": 503,
    "/generate": 400,
    "/generate_stream": 400,
    "/systemsharedmemory/region/{region}/status": 404,
    "/systemsharedmemory/region/{region}/register": 400,
    "/cudasharedmemory/region/{region}/register": 501,
    "PUT /admin/models/identity/precision": 400,
    "PUT /admin/models/identity/admission": 400,
    "POST /admin/experiments/{id}/outcomes": 404,
    "GET /admin/experiments/{id}/log": 404,
    "GET /admin/experiments/{id}": 404,
    "DELETE /admin/models/identity/experiment": 404,
    "GET /admin/models/identity/experiment": 404,
    "POST /admin/models/identity/experiment": 400,
    "POST /admin/models/identity/canary/promote": 404,
    "POST /admin/models/identity/canary/resume": 404,
    "POST /admin/models/identity/canary/pause": 404,
    "POST /admin/models/identity/canary/rollback": 404,
    "POST /admin/models/identity/canary/abort": 404,
    "DELETE /admin/models/identity/canary": 404,
    "GET /admin/models/identity/canary": 404,
    "POST /admin/models/identity/canary": 400,
    "PUT /admin/models/identity/weights": 400,
    "POST /admin/models/identity/precision/step": 400,
    "DELETE /admin/models/identity/precision/pins/{precision}": 400,
    "PUT /admin/models/identity/precision/pins/{precision}": 400,
}
"""What whoever may ask is told here: a bare model file has no manifest, model_control is none, no region is registered, CUDA's aren't
taken, and these bodies are empty."""


BOBS = ("/load", "/unload")
"""What needs the class that bob has."""


async def test_every_path(guarded: App) -> None:
    all_paths = await paths(guarded)
    assert len(all_paths) > 10
    for method, path in all_paths:
        refused = await asked(guarded, method, path, "another")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer"), path
        denied = await asked(guarded, method, path, "bob")
        assert denied.status in (401, 403) or path.endswith(BOBS), path
        expected = next((status for end, status in OTHERWISE.items() if f"{method} {path}".endswith(end)), 200)
        assert (await asked(guarded, method, path, TOKEN)).status == expected, path
        assert (await asked(guarded, method, path, None)).status == expected, path


async def test_the_page_shows_the_document(guarded: App) -> None:
    page = await asked(guarded, "GET", "/docs", None)
    assert page.headers["content-type"].startswith("text/html")
    assert b"url: '/openapi.json'" in page.body
