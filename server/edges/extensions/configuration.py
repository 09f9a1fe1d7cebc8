"""The model configuration extension: GET …/config."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.edges.extensions.route import JSONResponse, allowing
from server.gate import Gate, Operation
from server.protocol.proto.plain import message_values
from server.router.router import Router
from server.triton import triton_config


def add_configuration(app: FastAPI, gate: Gate, router: Router) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get("/v2/models/{model}/versions/{version}/config", tags=["models"], summary="The configuration of this version, as Triton has it")
    @app.get("/v2/models/{model}/config", tags=["models"], summary="The configuration of this model, as Triton has it")
    async def config(request: Request, model: str, version: str = "") -> Response:
        allow(request, Operation.MODEL_CONFIG)
        return JSONResponse(message_values(triton_config(router.entry(model, version))))
