"""Levels 3 and 4: other graphs of the same model are made and judged, and one is kept only where it was measured to be faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from exporters.draft import Candidate, Draft
from exporters.formats import to_onnx
from exporters.optimize.choose import fastest, speed_up
from exporters.optimize.fuse import DOMAIN, fuse
from exporters.plan import ExportError
from exporters.proof import judge, time_together


def candidates(draft: Draft) -> list[Candidate]:
    """The FP32 graphs that the plan's level allows, the plainest first; the base is one of them."""
    base = draft.base
    plain = [replace(base, level=1), base] if draft.plan.level >= 4 else [base]
    fused = _fused(draft, approximate=False)
    if not fused:
        draft.reporter.note("this graph has nothing to fuse (no transformer that onnxruntime recognises)")
    return [*plain, *fused, *(_fused(draft, approximate=True) if fused and draft.plan.level >= 4 else [])]


def _fused(draft: Draft, approximate: bool) -> list[Candidate]:
    """With its attention fused, and without where that breaks the model; none where there's nothing to fuse."""
    made: list[Candidate] = []
    for attention in (True, False):
        candidate = _fuse(draft, approximate, attention)
        if candidate is None:
            break
        made.append(candidate)
        if judge(draft, candidate):
            break
    return made


def _fuse(draft: Draft, approximate: bool, attention: bool) -> Candidate | None:
    """The graph fused, which must be as it was exported for attention: the clean-up merges what it's recognised by."""
    source = draft.traced.file if attention else draft.base.file
    nodes = {"exported": draft.base.nodes["exported"]} if attention else draft.base.nodes
    level = 4 if approximate else 3
    file = draft.path(f"fused-{level}-{'attention' if attention else 'plain'}")
    try:
        counts = fuse(source, file, approximate, attention)
    except ExportError as error:
        draft.reporter.note(str(error))
        return None
    if not counts:
        return None
    graph = to_onnx.check(file, domains=(DOMAIN,))
    method = f"fused: {', '.join(f'{count} {operator}' for operator, count in counts.items())}"
    return Candidate("fp32", method, level, file, graph, nodes | {"fused": graph.nodes})


def settle(draft: Draft, tried: Sequence[Candidate]) -> Candidate:
    """The fastest of those that hold their gates, with the record of all. One at least must hold.

    What is made for a device that isn't here can't be timed: then it's the last that holds, which does most of what was asked for.
    """
    holding = [made for made in tried if not made.failures]
    if draft.plan.target == "cpu":
        time_together(draft, holding)
        chosen = holding[fastest([made.runs for made in holding])]
        said = "kept"
    else:
        chosen, said = holding[-1], "kept, though not timed: its device isn't here"
    verdicts = [said if made is chosen else _verdict(made, chosen) for made in tried]
    chosen.tried = tuple(made.record(verdict) for made, verdict in zip(tried, verdicts, strict=True))
    return chosen


def note_fallback(draft: Draft, chosen: Candidate) -> None:
    """Say so where the level asked for isn't the one that was kept."""
    if chosen.level < draft.plan.level:
        why = next(
            (tried.verdict for tried in reversed(chosen.tried) if not tried.verdict.startswith("kept")), "it has no graph of its own"
        )
        draft.reporter.note(f"level {draft.plan.level} gains nothing here ({why}): level {chosen.level} is kept")


def _verdict(made: Candidate, chosen: Candidate) -> str:
    if made.failures:
        return "; ".join(made.failures)
    if not made.seconds:
        return "holds its gate, but another does more"
    return f"holds its gate, at {speed_up(chosen.seconds, made.seconds):.2f} times the speed of the one that was kept"
