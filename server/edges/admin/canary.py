"""Canaries: begun, shown, paused, promoted and aborted. What decides is the trials' owner; each change is an event."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from server.control.routing.trial import Kind
from server.control.routing.trials import Trials
from server.control.routing.views import shown
from server.control.routing.wishes import canary_wish
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import InvalidRequest, NotFound
from server.gate import Gate, Operation
from server.router.router import Router

PATH = "/admin/models/{model}/canary"


def add_canary(app: FastAPI, gate: Gate, trials: Trials, router: Router) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    allow = allowing(gate)

    def answer(model: str) -> Response:
        return JSONResponse(shown(*trials.find(model, Kind.CANARY), trials.now()))

    @app.post(PATH, tags=["admin"], summary="Roll a version out step by step: requests go to it, and it's judged")
    async def start(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        wish = canary_wish(model, await json_object(request), objective_of(router, model))
        await trials.start(Kind.CANARY, wish, who)
        return answer(model)

    @app.get(PATH, tags=["admin"], summary="How far a canary is, and what is known of it")
    async def status(model: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        return answer(model)

    @app.delete(PATH, tags=["admin"], summary="Abort a canary: the baseline answers everything")
    @app.post(f"{PATH}/abort", tags=["admin"], summary="The same")
    async def abort(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        await trials.end(model, Kind.CANARY, who)
        return answer(model)

    @app.post(f"{PATH}/rollback", tags=["admin"], summary='The same, for an alert: `{"reason": …, "by": …}`')
    async def rollback(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        said = await json_object(request)
        why, by = (str(said.get(word, ""))[:200] for word in ("reason", "by"))
        await trials.end(model, Kind.CANARY, f"{who} ({by})" if by else who, why or "asked for through the admin API")
        return answer(model)

    @app.post(f"{PATH}/pause", tags=["admin"], summary="Hold a canary at its step; harm still rolls it back")
    async def pause(model: str, request: Request) -> Response:
        await trials.hold(model, allow(request, Operation.ROUTING).name, held=True)
        return answer(model)

    @app.post(f"{PATH}/resume", tags=["admin"], summary="Let a canary go on")
    async def resume(model: str, request: Request) -> Response:
        await trials.hold(model, allow(request, Operation.ROUTING).name, held=False)
        return answer(model)

    @app.post(f"{PATH}/promote", tags=["admin"], summary='To the next step, whatever the evidence; with `{"full": true}` to all traffic')
    async def promote(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        said = await json_object(request)
        full = said.get("full", False)
        if said.keys() - {"full"} or not isinstance(full, bool):
            raise InvalidRequest(f'expected {{"full": true}} or nothing, got {str(said)[:100]}')
        await trials.promote(model, who, full=full)
        return answer(model)


def objective_of(router: Router, model: str) -> float:
    """The model's own latency objective in seconds, 0 where it has none. Raises NotFound for a model that doesn't serve."""
    ready = [router.entry(model, version) for version in router.ready_versions(model)]
    if not ready:
        raise NotFound(f"no version of a model '{model[:255]}' serves")
    return ready[-1].config.batching.latency_objective or 0.0
