"""Judges distances: the manifest's figures, and what to tell where a variant isn't the same model any more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from exporters.parity.task import Judged, LabelledSet
from exporters.plan import Gate
from server.numerics import SCALE_FLOOR, Distance, merged, upper_bound
from server.repository.manifest import Parity, Pruning, Task
from server.tensors import TensorSpec

ROUNDING = 1e-9
"""What a difference of two shares may be off by."""


def parity(found: Mapping[str, Distance], rows: Sequence[int], tolerance: float) -> Parity:
    """The figures over all outputs: each the worst of any output, top-1 that of the output which disagrees most."""
    every = found.values()
    scored = [part for part in every if part.classified]
    worst = max(scored, key=lambda part: part.top1_upper95 or 0.0, default=Distance())
    sure = max(scored, key=lambda part: part.confident_disagreement or 0.0, default=Distance())
    return Parity(
        samples=sum(rows),
        batch_sizes=tuple(sorted(set(rows))),
        max_abs=max(part.max_abs for part in every),
        mean_abs=merged(*every).mean_abs,
        max_relative=max(part.max_relative for part in every),
        cosine_min=min(part.cosine_min for part in every),
        cosine_mean=min(part.cosine_mean for part in every),
        tolerance=tolerance,
        top1_disagreement=worst.top1_disagreement,
        top1_upper95=worst.top1_upper95,
        confident=sure.confident if scored else None,
        confident_disagreement=sure.confident_disagreement,
    )


def failures(
    found: Mapping[str, Distance], outputs: Sequence[TensorSpec], gate: Gate, whose: str = "PyTorch", strict: bool = False
) -> list[str]:
    """For each output that isn't the reference's (`whose`): by how much. Floats must hold the gate, other kinds may not differ at all.

    Few rows are sure, so another best class counts against a model only where chance doesn't explain it (the lower 95 % bound of its
    share); `strict`, as between candidates, the share itself does.
    """
    told: list[str] = []
    for spec in outputs:
        part = found[spec.name]
        if spec.dtype.numpy.kind != "f":
            if part.max_abs > 0:
                told.append(f"output {spec.name!r} ({spec.datatype}) differs from {whose} by up to {part.max_abs:g}")
        elif not part.max_relative <= gate.relative:
            told.append(f"output {spec.name!r} {_differs(part, gate.relative, whose)}")
        elif part.cosine_mean < gate.cosine:
            told.append(f"output {spec.name!r} points elsewhere: its rows' mean cosine is {part.cosine_mean:.4f}, below {gate.cosine:g}")
        elif _confident(part, strict) > gate.confident:
            rows = f"{part.confident_disagreements} of {part.confident} rows that {whose} is sure of"
            told.append(f"output {spec.name!r} has another best class in {rows}; {gate.confident:.0%} are let through")
    return told


def task_failures(found: Judged, rows: LabelledSet, gate: Gate) -> list[str]:
    """What a labelled set has against a variant: a metric worse than FP32's, or answers that point elsewhere."""
    told: list[str] = []
    if found.worse(rows.better) > gate.metric + ROUNDING:
        told.append(
            f"{rows.metric} of {rows.output!r} on {found.distance.rows} labelled rows is {found.value:.4f}, {found.reference:.4f} in FP32: "
            f"{gate.metric:g} is let through"
        )
    if found.distance.cosine_mean < gate.cosine:
        cosine = f"{found.distance.cosine_mean:.4f}, below {gate.cosine:g}"
        told.append(f"output {rows.output!r} points elsewhere on the labelled rows: their mean cosine is {cosine}")
    return told


def task(found: Judged, rows: LabelledSet, tolerance: float) -> Task:
    """The manifest's figures."""
    return Task(
        metric=rows.metric,
        output=rows.output,
        rows=found.distance.rows,
        sha256=rows.sha256,
        value=found.value,
        reference=found.reference,
        tolerance=tolerance,
        cosine_mean=found.distance.cosine_mean,
        top1_disagreement=found.distance.top1_disagreement,
        top1_upper95=found.distance.top1_upper95,
    )


def pruning_line(found: Pruning) -> str:
    """What pruning took away, and what that cost."""
    cost = f"its answers' mean cosine to those before is {found.cosine_mean:.4f}"
    if found.accuracy_before is not None and found.accuracy_after is not None:
        cost += f", its accuracy {found.accuracy_after:.4f} after {found.accuracy_before:.4f}"
    return f"pruned: {found.channels} channels of {found.layers} layers are zeros ({found.share:.0%} of each); {cost}"


def doubt(found: Mapping[str, Distance], gate: Gate) -> str:
    """Where the rows were too few to show that a classifier's classes hold its gate, even without a fault: so in words; else ""."""
    fewest = min((part.confident for part in found.values() if part.confident), default=0)
    if not fewest or upper_bound(0, fewest) <= gate.confident:
        return ""
    shown = f"{upper_bound(0, fewest):.0%} could still get another class"
    return f"only {fewest} rows that PyTorch is sure of judged it ({shown}): give a longer example, or labelled rows (--eval)"


def missing(found: Mapping[str, Distance], labelled: LabelledSet | None, task: Judged | None, gate: Gate, whose: str = "PyTorch") -> str:
    """What the proof lacks to judge a classifier's classes by: rows that the reference is sure of, in words; else ""."""
    extra = {labelled.output: task.distance} if labelled and task else {}
    counted = {name: merged(part, extra.get(name, Distance())) for name, part in found.items()}
    name, fewest = min(counted.items(), key=lambda item: item[1].confident or math.inf)
    if not 0 < fewest.confident < gate.rows:
        return ""
    least = -(-gate.rows * fewest.classified // fewest.confident)
    return (
        f"{whose} is sure of {fewest.confident} of the {fewest.classified} rows that judge the classes of {name!r}; expected {gate.rows}, "
        f"which some {least} rows would bring: give a longer example or labelled rows (--eval), or settle for less (--tolerate "
        f"PRECISION:rows={fewest.confident})"
    )


def _confident(part: Distance, strict: bool) -> float:
    share = part.confident_disagreement or 0.0
    if strict or not share:
        return share
    return 1.0 - upper_bound(part.confident - part.confident_disagreements, part.confident)


def _differs(part: Distance, tolerance: float, whose: str) -> str:
    if math.isinf(part.max_abs):
        return f"has NaN or infinities where {whose} has numbers, or the other way round"
    allowed = tolerance * max(part.scale, SCALE_FLOOR)
    return f"differs from {whose} by up to {part.max_abs:.3g}; at values up to {part.scale:.3g}, {allowed:.3g} is let through"
