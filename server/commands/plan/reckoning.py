"""What each precision of a model can serve within an objective, what it holds and how exact it is: from its manifest, or a device's table.

Nothing is run or opened. A figure comes from who measured or published it, and says so; what nobody did is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from server.backends.latency_table import Curve
from server.engine.cost_model import CostModel
from server.precision.ladder import Cost, Ladder, Policy, Rung, Settings, Sight, Skip, largest_within
from server.precision.variants import most_exact_first
from server.repository.manifest import Manifest, Parity, Variant


@dataclass(frozen=True, slots=True)
class Published:
    """A table's curve as a cost. It has no margin: the table's is what runs take in the mean."""

    curve: Curve

    def mean(self, rows: int) -> float:
        return self.curve.seconds(rows)

    def estimate(self, rows: int) -> float:
        return self.curve.seconds(rows)


@dataclass(frozen=True, slots=True)
class Line:
    """One precision. `rows` a run keep the objective (0: not even one does), `rows_per_s` are served so, `run_s` is what that run takes.
    `memory` is in bytes, `peak` where a process was measured, else the file's size. `left_out` is why a ladder wouldn't step to it."""

    precision: str
    rows: int | None
    rows_per_s: float | None
    run_s: float | None
    memory: int | None
    peak: bool
    disagreement: float | None
    disagreement_upper95: float | None
    cosine_min: float | None
    task: tuple[str, float, float] | None
    left_out: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What is planned for: seconds within which answers should come (None: no objective) and the most rows in a run."""

    objective: float | None
    max_rows: int


def costs_of(manifest: Manifest, device: str) -> dict[str, Cost | None]:
    """By precision, what the exporter measured on `device` (as manifests name it)."""
    return {
        variant.precision: CostModel(variant.latency.seconds)
        if variant.latency is not None and variant.latency.device == device and variant.latency.seconds
        else None
        for variant in plain(manifest)
    }


def plain(manifest: Manifest) -> Sequence[Variant]:
    """Its variants that aren't built for one device."""
    return [variant for variant in manifest.variants if variant.engine is None]


def plan(costs: Mapping[str, Cost | None], manifest: Manifest | None, question: Question) -> list[Line]:
    """A line for each precision, the most exact first."""
    order = most_exact_first(costs)
    left_out = _left_out([(name, costs[name]) for name in order], question)
    return [_line(name, costs[name], manifest, question, left_out.get(name)) for name in order]


def ladder_of(lines: Sequence[Line]) -> list[str]:
    """The precisions that a ladder would step through."""
    return [line.precision for line in lines if line.left_out is None]


def _left_out(costs: Sequence[tuple[str, Cost | None]], question: Question) -> dict[str, Skip]:
    """As the ladder itself would leave them out, at the largest run that keeps the objective."""
    names = tuple(name for name, _ in costs)
    settings = Settings(Policy.LADDER, names, names[0], objective=question.objective or inf, max_rows=question.max_rows)
    rungs = [Rung(name, cost) for name, cost in costs]
    first = next((cost for _, cost in costs if cost is not None), None)
    rows = max(1, largest_within(first, question.objective, question.max_rows)) if first is not None else 1
    return dict(Ladder(settings, names[0]).decide(rungs, Sight(0.0, 0.0, rows=(rows,))).skipped)


def _line(name: str, cost: Cost | None, manifest: Manifest | None, question: Question, left_out: Skip | None) -> Line:
    rows = None if cost is None else largest_within(cost, question.objective, question.max_rows)
    seconds = cost.mean(rows) if cost is not None and rows else None
    found = manifest.variant(name) if manifest is not None else None
    parity: Parity | None = found.parity if found is not None else None
    held = found.memory if found is not None else None
    task = parity.task if parity is not None else None
    return Line(
        precision=name,
        rows=rows,
        rows_per_s=rows / seconds if rows and seconds else (None if rows is None else 0.0),
        run_s=seconds,
        memory=held.peak - held.bare if held is not None else (found.size if found is not None else None),
        peak=held is not None,
        disagreement=parity.top1_disagreement if parity is not None else None,
        disagreement_upper95=parity.top1_upper95 if parity is not None else None,
        cosine_min=parity.cosine_min if parity is not None else None,
        task=(task.metric, task.value, task.reference) if task is not None else None,
        left_out=str(left_out) if left_out is not None else None,
    )
