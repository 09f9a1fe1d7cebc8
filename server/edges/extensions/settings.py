"""The trace and logging extensions: what holds, and what clients change."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.control.dials import Dials
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.gate import Gate, Operation


def add_settings(app: FastAPI, gate: Gate, dials: Dials) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get("/v2/models/{model}/trace/setting", tags=["settings"], summary="Which of this model's requests are traced")
    @app.get("/v2/trace/setting", tags=["settings"], summary="Which requests are traced")
    async def tracing(request: Request, model: str = "") -> Response:
        allow(request, Operation.SETTINGS)
        return JSONResponse(dials.tracing(model))

    @app.post("/v2/models/{model}/trace/setting", tags=["settings"], summary="Change which of this model's requests are traced")
    @app.post("/v2/trace/setting", tags=["settings"], summary="Change which requests are traced")
    async def set_tracing(request: Request, model: str = "") -> Response:
        allow(request, Operation.SETTINGS)
        return JSONResponse(dials.set_tracing(await json_object(request), model))

    @app.get("/v2/logging", tags=["settings"], summary="What is logged")
    async def logging(request: Request) -> Response:
        allow(request, Operation.SETTINGS)
        return JSONResponse(dials.logging())

    @app.post("/v2/logging", tags=["settings"], summary="Change what is logged")
    async def set_logging(request: Request) -> Response:
        allow(request, Operation.SETTINGS)
        return JSONResponse(dials.set_logging(await json_object(request)))
