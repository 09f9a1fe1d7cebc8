"""Which priorities a model takes just now: shown, set for a while, and cleared. Each change is an event."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from server.controlplane import ControlPlane
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest
from server.gate import Gate, Operation

PATH = "/admin/models/{model}/admission"


def add_admission(app: FastAPI, gate: Gate, control: ControlPlane) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow, admissions = allowing(gate), control.admissions

    @app.get(PATH, tags=["admin"], summary="Which priorities a model takes")
    async def admission(model: str, request: Request) -> Response:
        allow(request, Operation.ADMISSION)
        return JSONResponse(admissions.read(model))

    @app.put(PATH, tags=["admin"], summary='Shed lower priorities for a while: `{"min_priority": 1, "ttl_s": 60}`')
    async def shed(model: str, request: Request) -> Response:
        who = allow(request, Operation.ADMISSION).name
        await admissions.set(model, *_wished(await json_object(request)), who)
        return JSONResponse(admissions.read(model))

    @app.delete(PATH, tags=["admin"], summary="Take all priorities again")
    async def clear(model: str, request: Request) -> Response:
        who = allow(request, Operation.ADMISSION).name
        admissions.read(model)
        await admissions.clear(model, who)
        return JSONResponse(admissions.read(model))


def _wished(said: dict[str, Any]) -> tuple[int, float]:
    priority, ttl = said.get("min_priority"), said.get("ttl_s")
    if said.keys() != {"min_priority", "ttl_s"} or type(priority) is not int or type(ttl) not in (int, float):
        raise InvalidRequest(f'expected {{"min_priority": PRIORITY, "ttl_s": SECONDS}}, got {str(said)[:100]}')
    return priority, float(ttl or 0)
