"""Makes the variant of a precision from the FP32 graph: the first way that holds its gate, or no variant and an ExportError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from exporters.draft import Candidate, Draft
from exporters.formats import to_onnx
from exporters.optimize.fuse import DOMAIN
from exporters.parity import measure, report
from exporters.plan import ExportError
from exporters.precision import cast, layers, weight_only
from exporters.precision.calibration import calibration_set, held_out
from exporters.precision.ranges import observe
from exporters.proof import admit, answered, choose_by, prove
from exporters.variants import levels
from exporters.variants.eight_bits import EightBits


def learn_ranges(draft: Draft) -> None:
    """Read the calibration rows, keep the proof's out, and run the FP32 graph on them. Raises ExportError where they don't fit."""
    found = calibration_set(draft.plan.calibration, draft.traced, draft.inputs)
    apart = held_out(found, draft.traced, draft.labelled.keys() if draft.labelled else ())
    if apart.rows < found.rows:
        draft.reporter.note(f"{found.rows - apart.rows} of {found.rows} rows to calibrate on are the proof's: they're left out")
    draft.calibration, choosing = apart.halves()
    draft.choosing = answered(draft, choosing)
    draft.ranges = observe(draft.base.file, draft.calibration.batches, measure.threads())


def make(draft: Draft, precision: str) -> None:
    """Add the variant of `precision` to the draft. Raises ExportError: by how much every way of making it fails its gate,
    or which rows its proof lacks.
    """
    made = MAKERS[precision](draft)
    if lacks := report.missing(made.distances, draft.labelled, made.judged, draft.gate(made), draft.whose):
        raise ExportError(f"{draft.plan.model.label}: {precision} isn't proved: {lacks}; {_without(draft, precision)}")
    draft.variants[precision] = made
    if precision != "fp32" and not draft.labelled and (doubt := report.doubt(made.distances, draft.gate(made))):
        draft.reporter.note(f"{precision}: {doubt}")
    if made.kept:
        some = ", ".join(made.kept[:3]) + (", …" if len(made.kept) > 3 else "")
        draft.reporter.note(f"{precision}: {len(made.kept)} of {draft.base.graph.nodes} nodes stay FP32 ({some})")


def _fp32(draft: Draft) -> Candidate:
    return draft.base


def choose_graph(draft: Draft) -> None:
    """Level 3 and up: replace FP32's variant by the graph that was measured to be faster, if there is one."""
    chosen = levels.settle(draft, levels.candidates(draft))
    levels.note_fallback(draft, chosen)
    draft.fused = chosen if chosen.level > draft.base.level else None
    if "fp32" in draft.variants:
        draft.variants["fp32"] = chosen


def _fp16(draft: Draft) -> Candidate:
    """From the graph that FP32 kept; where that fails, from the portable one."""
    sources = [draft.base] if draft.fused is None else [draft.fused, draft.base]
    failures: list[str] = []
    for source in sources:
        made = _cast(draft, source)
        if not made.failures:
            return made
        failures = made.failures
    raise refusal(draft, made, failures)


def _cast(draft: Draft, source: Candidate) -> Candidate:
    """With stand-ins for infinity cut to FP16's largest number; where that breaks the model, with them in FP32."""
    rows = draft.calibration.batches if draft.calibration else ()
    ranges = draft.ranges if source is draft.base else observe(source.file, rows, measure.threads())
    ways = list(dict.fromkeys(cast.out_of_range(source.file, ranges, saturate) for saturate in (True, False)))
    for number, kept in enumerate(ways):
        file = draft.path(f"fp16-{source.level}-{number}")
        draft.finished.file(file, source.file, ("fp16", kept, *draft.tools), partial(cast.cast, source.file, file, kept))
        graph = to_onnx.check(file, domains=(DOMAIN,) if source.level > draft.base.level else ())
        method = f"cast to FP16, {source.method}" if source is draft.fused else "cast to FP16"
        made = Candidate("fp16", method, source.level, file, graph, source.nodes | {"cast": graph.nodes}, kept, calibrated=True)
        if choose_by(draft, made) and prove(draft, made):
            break
    return made


def _int8(draft: Draft) -> Candidate:
    """By the scheme that differs least; where none holds, by the one that comes nearest, with as few nodes in FP32 as it takes.

    All are judged by rows of their own; the one that's chosen must then hold on the proof's, which nothing was chosen by.
    """
    eight = EightBits(draft)
    tried = [eight.made(scheme) for scheme in eight.schemes]
    holding = [made for made in tried if not made.failures]
    if holding and draft.plan.level >= 4:
        chosen = levels.settle(draft, tried)
    else:
        chosen = _nearest(draft, eight, tried)
    if not prove(draft, chosen):
        rows = sum(sample.rows for sample in draft.choosing)
        raise refusal(draft, chosen, [f"it holds on the {rows} rows that chose it, but not on the proof's: {'; '.join(chosen.failures)}"])
    return chosen


def _int8wo(draft: Draft) -> Candidate:
    """There is one way, which computes in FP32: where that fails, rows or nodes to choose by don't help."""
    file = draft.path("int8wo")
    method = weight_only.quantize_weights(draft.base.file, file)
    graph = to_onnx.check(file)
    nodes = draft.base.nodes | {"quantized": graph.nodes}
    made = Candidate("int8wo", method, draft.base.level, file, graph, nodes)
    admit(draft, made)
    if not prove(draft, made):
        raise refusal(draft, made, made.failures)
    return made


def _nearest(draft: Draft, eight: EightBits, tried: list[Candidate]) -> Candidate:
    """The one that differs least, nodes put back to FP32 where none holds. Raises ExportError where that doesn't do."""
    holding = [made for made in tried if not made.failures]
    nearest = min(holding or tried, key=lambda made: made.error)
    chosen = nearest if holding else eight.sparing(nearest)
    if chosen is None:
        raise refusal(draft, nearest, nearest.failures)
    chosen.tried = tuple(made.record(_verdict(made, chosen)) for made in [*tried, *([] if chosen in tried else [chosen])])
    return chosen


def _verdict(made: Candidate, chosen: Candidate) -> str:
    if made is chosen:
        return "kept"
    return "; ".join(made.failures) or "holds its gate, but differs more"


def refusal(draft: Draft, made: Candidate, failures: list[str]) -> ExportError:
    """What to say of a precision that can't be made: by how much, and which node's answer is the first that's far off."""
    precision = made.precision
    where = _diverging(draft, made)
    return ExportError(
        f"{draft.plan.model.label}: {precision} isn't the same model: {'; '.join(failures)}; {f'{where}; ' if where else ''}"
        f"{_without(draft, precision)}{draft.suspects()}"
    )


def _without(draft: Draft, precision: str) -> str:
    others = ",".join(other for other in draft.plan.precisions if other != precision) or "fp32"
    return f"--precisions {others} does without"


def _diverging(draft: Draft, made: Candidate) -> str:
    row = {name: array[:1] if draft.traced.unbatched is None else array for name, array in draft.choosing[0].inputs.items()}
    try:
        return layers.told(layers.layers(draft.base.file, made.file, row, measure.threads()), draft.gate(made).relative / 2)
    except ExportError:
        return ""  # a graph that doesn't run at all: its failures say so


MAKERS: Mapping[str, Callable[[Draft], Candidate]] = MappingProxyType({"fp32": _fp32, "fp16": _fp16, "int8": _int8, "int8wo": _int8wo})
