"""The precision of a model: shown, switched, and given back to the model's own configuration."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from server.control.precision.precisions import ASKED
from server.controlplane import ControlPlane
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest
from server.gate import Gate, Operation

PATH = "/admin/models/{model}/precision"
PINS = PATH + "/pins/{precision}"


def add_precision(app: FastAPI, gate: Gate, control: ControlPlane) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get(PATH, tags=["admin"], summary="What a model runs in, and what it could")
    async def precision(model: str, request: Request) -> Response:
        allow(request, Operation.PRECISION)
        return JSONResponse(control.precisions.read(model))

    @app.put(PATH, tags=["admin"], summary='Switch a model\'s precision: `{"active": "int8"}`')
    async def switch(model: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        await control.switch(model, _wished(await json_object(request)), who)
        return JSONResponse(control.precisions.read(model))

    @app.delete(PATH, tags=["admin"], summary="Go back to the precision of the model's own configuration")
    async def clear(model: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        await control.switch(model, None, who)
        return JSONResponse(control.precisions.read(model))

    @app.put(PINS, tags=["admin"], summary='Have a precision not answer for a while: `{}` or `{"why": …}`')
    async def pin(model: str, precision: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        await control.pin_out(model, precision, who, _why(await json_object(request)))
        return JSONResponse(control.precisions.read(model))

    @app.delete(PINS, tags=["admin"], summary="Let a precision answer again")
    async def unpin(model: str, precision: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        await control.unpin(model, precision, who)
        return JSONResponse(control.precisions.read(model))

    @app.post(f"{PATH}/step", tags=["admin"], summary='Step a model\'s precision now: `{"direction": "down"}`')
    async def step(model: str, request: Request) -> Response:
        who = allow(request, Operation.PRECISION).name
        down, why = _stepped(await json_object(request))
        await control.stepping.step(model, who, why, down=down)
        return JSONResponse(control.precisions.read(model))


def _stepped(said: dict[str, Any]) -> tuple[bool, str]:
    """Down unless it says up, and why: an alert's action sends the alert's name, its own and the alert's fingerprint."""
    direction = said.get("direction", "down")
    if not said.keys() <= {"direction", "reason", "by", "fingerprint"} or direction not in ("down", "up"):
        raise InvalidRequest(f'expected {{"direction": "down" or "up", "reason": TEXT}}, got {str(said)[:100]}')
    why, by = said.get("reason", ""), said.get("by", "")
    if not (isinstance(why, str) and isinstance(by, str)):
        raise InvalidRequest(f"reason and by: expected text, got {str([why, by])[:100]}")
    return direction == "down", (why or ASKED) + (f" (by {by})" if by else "")


def _wished(said: dict[str, Any]) -> str:
    if said.keys() != {"active"} or not isinstance(said["active"], str):
        raise InvalidRequest(f'expected {{"active": PRECISION}}, got {str(said)[:100]}')
    return said["active"]


def _why(said: dict[str, Any]) -> str:
    if said.keys() - {"why"} or not isinstance(said.get("why", ""), str):
        raise InvalidRequest(f'expected {{}} or {{"why": TEXT}}, got {str(said)[:100]}')
    return said.get("why") or ASKED
