"""How a model's requests are shared out among its versions: shown, set over its model.yaml, and cleared. Each change is an event."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response

from server.control.routing.splits import Splits
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest
from server.gate import Gate, Operation

PATH = "/admin/models/{model}/weights"


def add_weights(app: FastAPI, gate: Gate, splits: Splits) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    @app.get(PATH, tags=["admin"], summary="How a model's requests are shared out, and by whose word")
    async def weights(model: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        return JSONResponse(splits.read(model))

    @app.put(PATH, tags=["admin"], summary='Share a model\'s requests out: `{"weights": {"1": 95, "2": 5}}`')
    async def choose(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        await splits.choose(model, _wished(await json_object(request)), who)
        return JSONResponse(splits.read(model))

    @app.delete(PATH, tags=["admin"], summary="Go back to the weights of the model's own configuration")
    async def clear(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        await splits.clear(model, who)
        return JSONResponse(splits.read(model))


def _wished(said: dict[str, Any]) -> dict[str, float]:
    weights = said.get("weights")
    if said.keys() != {"weights"} or not isinstance(weights, dict):
        raise InvalidRequest(f'expected {{"weights": {{"VERSION": PERCENT, …}}}}, got {str(said)[:100]}')
    return weights
