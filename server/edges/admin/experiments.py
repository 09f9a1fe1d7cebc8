"""A/B tests: begun, shown and stopped; what became of exposed requests, reported; and all evidence as a log to be analysed elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from server.control.routing.running import Running
from server.control.routing.trial import Kind
from server.control.routing.trials import Trials
from server.control.routing.views import log_of, shown
from server.control.routing.wishes import experiment_wish
from server.edges.admin.canary import objective_of
from server.edges.extensions.route import JSONResponse, allowing, json_object
from server.errors import Conflict, InvalidRequest
from server.gate import Gate, Operation
from server.router.live.exposures import Report
from server.router.router import Router

PATH = "/admin/models/{model}/experiment"
BY_ID = "/admin/experiments/{id}"
NDJSON = "application/x-ndjson"
MOST_OUTCOMES = 10_000
MOST_UNKNOWN = 20


def add_experiments(app: FastAPI, gate: Gate, trials: Trials, router: Router) -> None:
    """Add the routes to the app of build_rest, which turns errors into answers."""
    _add_tests(app, gate, trials, router)
    allow = allowing(gate)

    @app.get(BY_ID, tags=["admin"], summary="Arms, exposures, estimates with bounds that hold at all times, and the verdict")
    async def by_id(id: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        return JSONResponse(shown(*trials.by_id(id), trials.now()))

    @app.get(f"{BY_ID}/log", tags=["admin"], summary="All evidence of one that goes on, as JSON lines, to be analysed elsewhere")
    async def log(id: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        trial, running = trials.by_id(id)
        lines = log_of(trial, _going(id, running).evidence)
        return Response(b"".join(orjson.dumps(line) + b"\n" for line in lines), media_type=NDJSON)

    @app.post(f"{BY_ID}/outcomes", tags=["admin"], summary='What became of requests: `{"outcomes": [{"id": ID, "outcome": true}]}`')
    async def outcomes(id: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        _, running = trials.by_id(id)
        return JSONResponse(_reported(_going(id, running), await json_object(request)))


def _add_tests(app: FastAPI, gate: Gate, trials: Trials, router: Router) -> None:
    allow = allowing(gate)

    def answer(model: str) -> Response:
        return JSONResponse(shown(*trials.find(model, Kind.EXPERIMENT), trials.now()))

    @app.post(PATH, tags=["admin"], summary="Compare two versions on live requests (an A/B test); nothing is done about what is found")
    async def start(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        wish = experiment_wish(model, await json_object(request), objective_of(router, model))
        await trials.start(Kind.EXPERIMENT, wish, who)
        return answer(model)

    @app.get(PATH, tags=["admin"], summary="A model's last A/B test")
    async def show(model: str, request: Request) -> Response:
        allow(request, Operation.ROUTING)
        return answer(model)

    @app.delete(PATH, tags=["admin"], summary="Stop an A/B test: the baseline answers everything")
    async def stop(model: str, request: Request) -> Response:
        who = allow(request, Operation.ROUTING).name
        await trials.end(model, Kind.EXPERIMENT, who)
        return answer(model)


def _going(id_: str, running: Running | None) -> Running:
    if running is None:
        raise Conflict(f"experiment {id_} is over")
    return running


def _reported(running: Running, said: Mapping[str, Any]) -> dict[str, Any]:
    """Count outcomes; what isn't known is told and passed over. Nothing is counted where one of them makes no sense."""
    rows = said.get("outcomes")
    if said.keys() != {"outcomes"} or not isinstance(rows, list) or len(rows) > MOST_OUTCOMES:
        raise InvalidRequest(
            f'expected {{"outcomes": [{{"id": ID, "outcome": true}}, …]}} with at most {MOST_OUTCOMES}, got {str(said)[:100]}'
        )
    wishes = [_outcome(row) for row in rows]
    found: Counter[str] = Counter()
    unknown: list[str] = []
    for metric, value, whose in wishes:
        report = running.tell(metric, value, **whose)
        found[report.value] += 1
        if report is Report.UNKNOWN and len(unknown) < MOST_UNKNOWN:
            unknown += whose.values()
    return {**{report.value: found[report.value] for report in Report}, "examples_unknown": unknown}


def _outcome(row: object) -> tuple[str, float, dict[str, str]]:
    """(metric, value, whose) of one: a request's by `id` or a sticky `key`'s; `outcome` true or false, or `rating` 0 to 1."""
    if isinstance(row, dict) and len(row) == 2:
        id_, key, outcome, rating = (row.get(word) for word in ("id", "key", "outcome", "rating"))
        whose = {"request_id": id_} if isinstance(id_, str) else {"key": key} if isinstance(key, str) else {}
        if whose and isinstance(outcome, bool):
            return "outcome", float(outcome), whose
        if whose and isinstance(rating, int | float) and not isinstance(rating, bool) and 0 <= rating <= 1:
            return "rating", float(rating), whose
    raise InvalidRequest(
        f'outcomes: expected {{"id" or "key": TEXT, "outcome": true or false}} or "rating" from 0 to 1, got {str(row)[:100]}'
    )
