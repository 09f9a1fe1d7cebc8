"""The worst samples that the drift guard kept of a model: removed when somebody says so."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.controlplane import ControlPlane
from server.edges.extensions.route import JSONResponse, allowing
from server.gate import Gate, Operation

PATH = "/admin/models/{model}/precision/worst"


def add_worst(app: FastAPI, gate: Gate, control: ControlPlane) -> None:
    """Add the route to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.delete(PATH, tags=["admin"], summary="Remove the samples that the drift guard kept")
    async def purge(model: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        return JSONResponse({"model": model, "removed": await control.guarding.purge(model, who)})
