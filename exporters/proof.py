"""A candidate's proof: that it loads and says of its tensors what PyTorch showed, how far its answers are, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from exporters.draft import Candidate, Draft
from exporters.formats import to_onnx, to_trt
from exporters.parity import measure, report
from exporters.plan import ExportError
from server.errors import ModelDefect

SHOWN = 3


def admit(draft: Draft, candidate: Candidate) -> None:
    """The file must say of its tensors what PyTorch showed, a session must load it, and so must TensorRT if it's for that, as far as is
    known without it. Raises ExportError.
    """
    try:
        to_onnx.check_shapes(candidate.graph, draft.inputs, draft.traced.outputs)
        if draft.plan.target == "tensorrt" and (faults := to_trt.faults(candidate.file, draft.inputs)):
            more = f" (and {len(faults) - SHOWN} more)" if len(faults) > SHOWN else ""
            raise ExportError(f"TensorRT doesn't take it: {'; '.join(faults[:SHOWN])}{more}")
        with draft.opened(candidate):
            pass
    except (ExportError, ModelDefect) as error:
        reason = str(error).removeprefix(f"{candidate.file}: ")
        raise ExportError(f"{draft.plan.model.label}: {reason}{draft.suspects()}") from error


def prove(draft: Draft, candidate: Candidate) -> bool:
    """Run the candidate on PyTorch's own samples; whether it holds its precision's gate. Raises ExportError where a batch fails."""
    with draft.opened(candidate) as backend:
        candidate.distances = measure.distances(backend, draft.traced.samples())
    gate = draft.gate(candidate)
    candidate.failures = report.failures(candidate.distances, draft.traced.outputs, gate, draft.whose)
    return not candidate.failures


def judge(draft: Draft, candidate: Candidate) -> bool:
    """Admit and prove one of several candidates; one that doesn't load or run fails like one that isn't the same model."""
    try:
        admit(draft, candidate)
        return prove(draft, candidate)
    except ExportError as error:
        candidate.failures = [str(error).removeprefix(f"{draft.plan.model.label}: ").partition("\n")[0]]
        return False


def time_together(draft: Draft, candidates: Sequence[Candidate]) -> None:
    """Time the candidates in turns, so that what else the machine does falls on all of them alike."""
    with ExitStack() as stack:
        backends = [stack.enter_context(draft.opened(candidate)) for candidate in candidates]
        found = measure.latencies(backends, next(draft.traced.samples()), draft.traced.unbatched is None)
    for candidate, seconds in zip(candidates, found, strict=True):
        candidate.seconds = seconds
