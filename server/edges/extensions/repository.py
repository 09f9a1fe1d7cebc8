"""The model repository extension: index, load and unload."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response

from server.controlplane import ControlPlane
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest, Unsupported
from server.gate import Gate, Operation

FILE = "file:"
PIECE = 1 << 18  # characters; a multiple of 4
ONE_REPOSITORY = "'repository_name' isn't supported: this server has one repository; leave it out"


def add_repository(app: FastAPI, gate: Gate, control: ControlPlane) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.post("/v2/repository/index", tags=["repository"], summary="What the repository holds, and how each version is")
    async def index(request: Request) -> Response:
        allow(request, Operation.REPOSITORY_INDEX)
        wish = await json_object(request)
        if not isinstance(wish.get("ready", False), bool):
            raise InvalidRequest('expected {} or {"ready": true}')
        await control.look()
        return JSONResponse([asdict(row) for row in control.index(wish.get("ready", False))])

    @app.post("/v2/repository/models/{model}/load", tags=["repository"], summary="Load a model, or load it again")
    async def load(request: Request, model: str) -> Response:
        allow(request, Operation.MODEL_LOAD)
        body = await json_object(request)
        await control.load(model, *await asyncio.to_thread(_brought, body))  # a model in base64 would hold the loop for long
        return Response()

    @app.post("/v2/repository/models/{model}/unload", tags=["repository"], summary="Unload a model")
    async def unload(request: Request, model: str) -> Response:
        allow(request, Operation.MODEL_UNLOAD)
        await control.unload(model, _dependents(await json_object(request)))
        return Response()

    @app.post("/v2/repository/{repository}/index", include_in_schema=False)
    @app.post("/v2/repository/{repository}/models/{model}/load", include_in_schema=False)
    @app.post("/v2/repository/{repository}/models/{model}/unload", include_in_schema=False)
    async def elsewhere(request: Request, repository: str) -> Response:
        allow(request, Operation.REPOSITORY_INDEX)
        raise Unsupported(ONE_REPOSITORY)


def _brought(body: dict[str, Any]) -> tuple[str | None, dict[str, bytes]]:
    """The configuration and the files of a load. Raises InvalidRequest."""
    parameters = _parameters(body)
    config = parameters.pop("config", None)
    if not isinstance(config, str | None):
        raise InvalidRequest(f"parameters.config: expected a ModelConfig as JSON in a string, got {type(config).__name__}")
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if not name.startswith(FILE):
            raise InvalidRequest(f"parameters: expected config and {FILE}PATH, got {name[:80]!r}")
        try:
            files[name.removeprefix(FILE)] = _decoded(value)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"parameters.{name[:80]}: expected the file in base64: {error}") from error
    return config, files


def _decoded(text: str) -> bytes:
    """The bytes of base64, piece by piece, so that other threads get their turn. Raises ValueError, TypeError."""
    last = max(0, len(text) - 1) // PIECE * PIECE
    return b"".join(b64decode(text[start : start + PIECE], validate=True) for start in range(0, last + 1, PIECE))


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    parameters = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"parameters: expected a JSON object, got {type(parameters).__name__}")
    return parameters


def _dependents(body: dict[str, Any]) -> bool:
    """Whether an unload is meant for an ensemble's parts too. Raises InvalidRequest."""
    said = _parameters(body).get("unload_dependents", False)
    if not isinstance(said, bool):
        raise InvalidRequest(f"parameters.unload_dependents: expected true or false, got {type(said).__name__}")
    return said
