"""A version's precisions as its ladder sees them: what each costs, as learned here or foreseen, and whether it may answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from server.backends.registry import EMULATED
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.explain import capacity_of
from server.precision.costs import OnLanes, foreseen
from server.precision.ladder import Cost, Policy, Rung, Settings, capacity
from server.repository.declare.precision import REFERENCE
from server.repository.model_config import ModelConfig
from server.router.table import ServedVersion


class Known(StrEnum):
    """Where a cost comes from."""

    LEARNED = "learned"  # from runs here
    MEASURED = "measured_elsewhere"  # by the exporter on such a device, held to what runs here
    PUBLISHED = "published"  # an emulated device's table
    UNKNOWN = "unmeasured"


@dataclass(frozen=True, slots=True)
class Costed:
    """A rung and where its cost comes from."""

    rung: Rung
    known: Known


def settings_of(config: ModelConfig) -> Settings:
    """What model.yaml says, as the ladder takes it."""
    said = config.precision
    return Settings(
        policy=Policy(said.policy),
        ladder=said.ladder,
        active=said.first or REFERENCE,
        schedule=tuple((turn.start, turn.precision) for turn in said.schedule),
        objective=config.batching.latency_objective,
        max_rows=config.batching.max_rows,
        down_at=said.down_at,
        up_at=said.up_at,
        down_cool=said.down_cool,
        up_cool=said.up_cool,
        calm=said.calm,
    )


def rungs_of(served: ServedVersion) -> list[Costed]:
    """All precisions of a ready version, the ladder's first and in its order."""
    names = dict.fromkeys((*served.config.precision.ladder, *served.variants))
    return [_costed(served, name) for name in names if name in served.variants]


def _costed(served: ServedVersion, precision: str) -> Costed:
    cost, known = cost_of(served, precision)
    return Costed(replace(served.variants[precision].rung, cost=cost), known)


def cost_of(served: ServedVersion, precision: str) -> tuple[Cost | None, Known]:
    """What runs of a precision cost on the version's lanes, None where nobody measured that on such a device."""
    engine = served.engine
    assert engine is not None
    active = on_lanes(engine, engine.batcher.costs)
    if precision == engine.key.precision:
        return (active, Known.LEARNED) if active is not None else (None, Known.UNKNOWN)
    variant = served.variants.get(precision)
    if variant is not None and isinstance(variant.cost, CostModel):  # also of one that isn't loaded any more
        return on_lanes(engine, variant.cost), Known.LEARNED
    expected = served.expected
    of, wanted = expected.get(engine.key.precision, {}), expected.get(precision, {})
    cost = foreseen(active, of, wanted) if active is not None else None
    if cost is None:
        return None, Known.UNKNOWN
    return cost, Known.PUBLISHED if served.platform == EMULATED else Known.MEASURED


def preferred_rows_per_s(served: ServedVersion) -> float:
    """What a ready version could serve at its preferred precision: a ladder's first, whatever it stepped down to. Replicas are scaled by
    it, so that stepping down doesn't take any away."""
    said = served.config.precision
    cost = None
    if said.policy == "ladder" and served.engine is not None and served.engine.key.precision != said.ladder[0]:
        cost, _ = cost_of(served, said.ladder[0])
    if cost is None:
        return capacity_of(served).rows_per_s
    return capacity(cost, served.config.batching.latency_objective, max(1, served.engine.max_rows if served.engine else 1))


def on_lanes(engine: Engine, costs: CostModel) -> OnLanes | None:
    """What was learned, on the lanes and at the length of the batches that an engine has now; None where nothing is known yet."""
    *counts, total = engine.figures.length
    batches = sum(counts)
    length = round(total / batches) if batches else costs.length
    return OnLanes(costs, length, len(engine.lanes)) if costs.known else None
