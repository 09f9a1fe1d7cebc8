"""The statistics extension: counts and times of models, by Triton's rules."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.edges.extensions.route import Allow, JSONResponse
from server.gate import Operation
from server.statistics import Statistics


def add_statistics(app: FastAPI, allow: Allow, statistics: Statistics) -> None:
    """Add the routes. Before those of models: /v2/models/stats is no model."""

    @app.get("/v2/models/stats", tags=["models"], summary="Counts and times of all models")
    async def all_stats(request: Request) -> Response:
        return answer(request, "", "")

    @app.get("/v2/models/{model}/versions/{version}/stats", tags=["models"], summary="Counts and times of this version")
    @app.get("/v2/models/{model}/stats", tags=["models"], summary="Counts and times of this model's versions")
    async def stats(request: Request, model: str, version: str = "") -> Response:
        return answer(request, model, version)

    def answer(request: Request, model: str, version: str) -> Response:
        allow(request, Operation.MODEL_STATISTICS)
        return JSONResponse(statistics(model, version))
