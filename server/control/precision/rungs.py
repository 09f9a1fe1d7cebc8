"""A version's precisions as its ladder sees them: what each costs, as learned here or foreseen, and whether it may answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.backends.registry import EMULATED
from server.engine.engine import Engine
from server.explain import capacity_of
from server.precision.costs import OnLanes, foreseen
from server.precision.ladder import Cost, Policy, Rung, Settings, Skip, capacity
from server.repository.declare.precision import REFERENCE
from server.repository.manifest import processor
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
    names = dict.fromkeys((*served.config.precision.ladder, *served.expected))
    return [_costed(served, name) for name in names if name in served.expected]


def _costed(served: ServedVersion, precision: str) -> Costed:
    cost, known = cost_of(served, precision)
    return Costed(Rung(precision, cost, None if proven(served, precision) else Skip.UNPROVEN), known)


def cost_of(served: ServedVersion, precision: str) -> tuple[Cost | None, Known]:
    """What runs of a precision cost on the version's lanes, None where nobody measured that on such a device."""
    engine = served.engine
    assert engine is not None
    active = on_lanes(engine)
    if precision == engine.key.precision:
        return (active, Known.LEARNED) if active is not None else (None, Known.UNKNOWN)
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


def on_lanes(engine: Engine) -> OnLanes | None:
    """What an engine learned, at the length that its batches have in the mean; None where it knows nothing yet."""
    costs, (*counts, total) = engine.batcher.costs, engine.figures.length
    batches = sum(counts)
    length = round(total / batches) if batches else costs.length
    return OnLanes(costs, length, len(engine.lanes)) if costs.known else None


def proven(served: ServedVersion, precision: str) -> bool:
    """Whether a precision has figures that it answers as FP32 does on such a device; FP32 needs none, and an emulated one computes
    nothing."""
    if precision == REFERENCE or served.platform == EMULATED:
        return True
    found = served.manifest.variant(precision) if served.manifest is not None else None
    if found is None:
        return served.manifest is None  # a bare file is all there is
    return found.parity.device == (processor() if served.device == "cpu" else served.device)
