"""The shared memory extensions: clients register regions of system memory by name. CUDA's are unsupported, and say so."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest, Unsupported
from server.gate import Gate, Operation
from server.regions import RegionRow, Regions

SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
TAG: Any = ["shared memory"]
NO_CUDA = "CUDA shared memory is unsupported here: register a system region, or send tensors in binary"


def add_shared_memory(app: FastAPI, gate: Gate, regions: Regions) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get(f"{SYSTEM}/region/{{region}}/status", tags=TAG, summary="One registered region")
    @app.get(f"{SYSTEM}/status", tags=TAG, summary="The registered regions")
    async def status(request: Request, region: str = "") -> Response:
        allow(request, Operation.SHARED_MEMORY)
        return JSONResponse([row._asdict() for row in regions.status(region)])

    @app.post(f"{SYSTEM}/region/{{region}}/register", tags=TAG, summary="Register a region: key, offset, byte_size")
    async def register(request: Request, region: str) -> Response:
        allow(request, Operation.SHARED_MEMORY)
        regions.register(_row(region, await json_object(request)))
        return Response()

    @app.post(f"{SYSTEM}/region/{{region}}/unregister", tags=TAG, summary="Forget a region")
    @app.post(f"{SYSTEM}/unregister", tags=TAG, summary="Forget all regions")
    async def unregister(request: Request, region: str = "") -> Response:
        allow(request, Operation.SHARED_MEMORY)
        regions.unregister(region)
        return Response()

    _add_cuda(app, gate)


def _add_cuda(app: FastAPI, gate: Gate) -> None:
    """There are never any regions: the list is empty, forgetting them succeeds, as clients do at their start, and registering doesn't."""
    allow = allowing(gate)

    @app.get(f"{CUDA}/region/{{region}}/status", tags=TAG, summary="Always empty")
    @app.get(f"{CUDA}/status", tags=TAG, summary="Always empty")
    async def status(request: Request, region: str = "") -> Response:
        allow(request, Operation.SHARED_MEMORY)
        return JSONResponse([])

    @app.post(f"{CUDA}/region/{{region}}/register", tags=TAG, summary="Unsupported")
    async def register(request: Request, region: str) -> Response:
        allow(request, Operation.SHARED_MEMORY)
        raise Unsupported(NO_CUDA)

    @app.post(f"{CUDA}/region/{{region}}/unregister", tags=TAG, summary="Nothing to forget")
    @app.post(f"{CUDA}/unregister", tags=TAG, summary="Nothing to forget")
    async def unregister(request: Request, region: str = "") -> Response:
        allow(request, Operation.SHARED_MEMORY)
        return Response()


def _row(name: str, wish: dict[str, Any]) -> RegionRow:
    key, offset, size = wish.get("key"), wish.get("offset", 0), wish.get("byte_size")
    if type(key) is not str or type(offset) is not int or type(size) is not int:
        raise InvalidRequest('expected {"key": "/name", "offset": 0, "byte_size": 64}: key a string, the others whole numbers')
    return RegionRow(name, key, offset, size)
