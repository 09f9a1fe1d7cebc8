"""Why an answer came as it did, and how a model is batched: what clients and operators are told when they ask. It decides nothing.

`explained` puts the facts of one run beside its answer; `report` is the whole picture of a version (docs/schemas/batcher.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from server.errors import ModelUnavailable, NotFound
from server.messages import InferRequest, InferResponse, OnResponse, Scalar
from server.metrics.figures import Counts
from server.padding import PadAxis
from server.router.table import ServedVersion


def explained(request: InferRequest, route_reason: str, on_response: OnResponse) -> OnResponse:
    """`on_response`, given the facts about how each answer was made."""

    def respond(response: InferResponse, final: bool) -> None:
        response.parameters = {**response.parameters, **facts(request, response, route_reason)}
        on_response(response, final)

    return respond


def facts(request: InferRequest, response: InferResponse, route_reason: str) -> Mapping[str, Scalar]:
    """How a request was routed, batched and run, its phases in whole microseconds; gather includes the hand-over to the lane."""
    batch = response.batch
    if batch is None:
        return {"rows": request.rows, "route_reason": route_reason}
    padded = {"length": request.length, "batch_length": batch.length, "padding": round(batch.padding, 4)} if batch.length > 1 else {}
    return {
        "rows": request.rows,
        "batch_rows": batch.rows,
        "batch_requests": batch.requests,
        **padded,
        "close_reason": str(batch.reason),
        "queue_us": _us(batch.cut - request.queued),
        "gather_us": _us(batch.started - batch.cut),
        "compute_us": _us(batch.finished - batch.started),
        "scatter_us": _us(monotonic() - batch.finished),
        "precision": batch.precision,
        "lane": batch.lane,
        "route_reason": route_reason,
    }


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fit(_Part):
    """T(rows, length) = a + c1·x + c2·x·length seconds, where x = rows·length."""

    a: float
    c1: float
    c2: float


class Cost(_Part):
    """What runs take."""

    points: dict[int, float] = Field(description="Rows to seconds, as warm-up measured them.")
    now: dict[int, float] = Field(default={}, description="The same rows as they are expected now.")
    length: int = Field(description="Cells a row at those points; 1 where nothing is padded.")
    fit: Fit | None = Field(description="The learned curve; null where only warm-up is known.")
    margin: float | None = Field(description="Share added to the mean so that nearly all runs end within it; null where it isn't known.")
    runs: int = Field(description="Runs learned from.")
    changes: int = Field(description="Lasting changes of speed that were noticed.")


class CapacityPart(_Part):
    """What the model can serve and what it's asked for."""

    objective: float | None = Field(description="batching.latency_objective in seconds; null: none, so the size that is worth it counts.")
    feasible: bool = Field(description="Whether one row alone keeps the objective.")
    rows: int = Field(description="b*: rows a run with which the objective is kept.")
    rows_per_s: float = Field(description="μ* times the lanes: rows a second that all lanes can serve so.")
    run_seconds: float = Field(description="Seconds that a run of those rows is expected to take.")
    lanes: int
    offered_rows: int = Field(description="Rows asked for since the model was loaded, refused ones too.")


class BatchesPart(_Part):
    """What was run."""

    batches: int
    rows: int
    mean_rows: float
    reasons: dict[str, float] = Field(description="Why batches were closed, as shares of all.")


class PaddingPart(_Part):
    """What may be padded and what it costs."""

    inputs: dict[str, dict[int, str]] = Field(description="Input to its padded axes and what they are called.")
    outputs: dict[str, dict[int, str]] = Field(description="Output to the axes that are cut back.")
    waste: float = Field(description="Mean share of a batch's cells that was padding.")
    mean_length: float = Field(description="Mean length that batches were padded to.")
    off: str = Field(description="Why the model isn't padded although model.yaml asks for it; empty where it is, or where it needn't be.")


class QueuePart(_Part):
    """What waits, and what may."""

    rows: int
    bytes: int
    max_rows: int
    max_bytes: int | None
    timeout: float | None = Field(description="Seconds until the deadline of a request that brings none; null: it has none.")
    priorities: int
    tenants: dict[str, float] = Field(description="Tenants and their weights.")


class LanesPart(_Part):
    """Where batches run."""

    names: list[str]
    kind: str
    why: str = Field(description="Why these lanes: what was measured.")


class BatcherReport(_Part):
    """The body of GET /v2/models/NAME/batcher."""

    model: str
    version: str
    precision: str
    max_rows: int = Field(description="Most rows in a run; 0 where the model is served unbatched.")
    notes: str = Field(description="What the repository index says of it: why it's unbatched, what can't be met.")
    cost: Cost
    capacity: CapacityPart
    batches: BatchesPart
    padding: PaddingPart
    failures: dict[str, int] = Field(description="Requests that weren't answered, by reason, as in tidegate_requests_total.")
    drops: dict[str, int] = Field(description="Those of them that no run could or should answer in time, by why.")
    queue: QueuePart
    lanes: LanesPart


def report(entry: ServedVersion) -> BatcherReport:
    """How a version is batched and why. Raises ModelUnavailable where it doesn't serve, NotFound for an ensemble."""
    engine = entry.engine
    if engine is None and entry.front is not None:
        raise NotFound(f"model '{entry.model}' is an ensemble, which has no batcher: ask for those of its parts")
    if engine is None:
        raise ModelUnavailable(f"model '{entry.model}' version {entry.version} isn't ready: {entry.state}")
    terms, figures, config = engine.terms, engine.figures, entry.config
    rows, batches = figures.rows[-1], sum(figures.rows[:-1])
    return BatcherReport(
        model=engine.key.name,
        version=engine.key.version,
        precision=engine.key.precision,
        max_rows=engine.max_rows,
        notes=entry.reason,
        cost=Cost(**engine.batcher.costs.snapshot()),
        capacity=capacity_of(entry),
        batches=BatchesPart(
            batches=int(batches),
            rows=int(rows),
            mean_rows=_mean(figures.rows),
            reasons={str(reason): count / batches for reason, count in figures.batches.items()},
        ),
        padding=PaddingPart(
            inputs=_axes(engine.padding.inputs),
            outputs=_axes(engine.padding.outputs),
            waste=_mean(figures.padding),
            mean_length=_mean(figures.length),
            off=entry.unpadded,
        ),
        failures={reason: count for reason, count in figures.failures.items() if count},
        drops={str(why): count for why, count in figures.drops.items()},
        queue=QueuePart(
            rows=engine.queue_rows,
            bytes=engine.queue_bytes,
            max_rows=terms.limits.rows,
            max_bytes=terms.limits.bytes,
            timeout=terms.timeout,
            priorities=terms.priorities,
            tenants={name: tenant.weight for name, tenant in config.queue.tenants.items()},
        ),
        lanes=LanesPart(names=[lane.name for lane in engine.lanes], kind=engine.lanes[0].kind, why=entry.lanes),
    )


def capacity_of(entry: ServedVersion) -> CapacityPart:
    """What a ready version can serve within its objective, at the length that its batches have in the mean."""
    engine, objective = entry.engine, entry.config.batching.latency_objective
    assert engine is not None
    costs = engine.batcher.costs
    length = round(_mean(engine.figures.length)) or costs.length
    found = costs.capacity(objective, max(1, engine.max_rows), length)
    return CapacityPart(
        objective=objective,
        feasible=objective is None or costs.mean(1, length) <= objective,
        rows=found.rows,
        rows_per_s=found.rate * len(engine.lanes),
        run_seconds=costs.mean(found.rows, length),
        lanes=len(engine.lanes),
        offered_rows=engine.offered_rows,
    )


def _mean(counts: Counts) -> float:
    number = sum(counts[:-1])
    return counts[-1] / number if number else 0.0


def _axes(axes: Mapping[str, tuple[PadAxis, ...]]) -> dict[str, dict[int, str]]:
    return {name: dict(found) for name, found in axes.items()}


def batcher_schema() -> dict[str, Any]:
    """JSON Schema of the report."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **BatcherReport.model_json_schema()}
