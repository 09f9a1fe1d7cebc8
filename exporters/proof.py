"""A candidate's proof: that it loads and says of its tensors what PyTorch showed, how far its answers are, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from exporters.draft import Candidate, Draft
from exporters.formats import to_onnx, to_trt
from exporters.parity import measure, report
from exporters.parity.resident import resident
from exporters.parity.task import Judged, judged
from exporters.plan import ExportError
from exporters.precision.calibration import CalibrationSet
from exporters.rows.arrays import count
from exporters.sources.pytorch import Sample
from server.backends.base import Backend
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
    """Run the candidate on PyTorch's own samples, and on the labelled set if there is one; whether it holds its precision's gate.

    Raises ExportError where a batch fails.
    """
    with draft.opened(candidate) as backend:
        candidate.distances = measure.distances(backend, draft.traced.samples())
        candidate.judged = _judge_task(draft, backend)
    gate = draft.gate(candidate)
    candidate.failures = report.failures(candidate.distances, draft.traced.outputs, gate, draft.whose)
    if draft.labelled and candidate.judged:
        candidate.failures += report.task_failures(candidate.judged, draft.labelled, gate)
    return not candidate.failures


def judge(draft: Draft, candidate: Candidate) -> bool:
    """Admit and prove one of several graphs of FP32; one that doesn't load or run fails like one that isn't the same model."""
    try:
        admit(draft, candidate)
        return prove(draft, candidate)
    except ExportError as error:
        candidate.failures = [_brief(draft, error)]
        return False


def choose_by(draft: Draft, candidate: Candidate) -> bool:
    """Admit one of several ways to a precision and run it on the rows that choose, not on the proof's; whether it holds there."""
    try:
        admit(draft, candidate)
        with draft.opened(candidate) as backend:
            candidate.distances = measure.distances(backend, draft.choosing)
    except ExportError as error:
        candidate.failures = [_brief(draft, error)]
        return False
    gate = draft.gate(candidate).tightened()
    candidate.failures = report.failures(candidate.distances, draft.traced.outputs, gate, draft.whose, strict=True)
    return not candidate.failures


def answered(draft: Draft, rows: CalibrationSet) -> tuple[Sample, ...]:
    """The rows with the answers of the FP32 graph, which was proved to be PyTorch's."""
    found: list[Sample] = []
    with draft.opened(draft.base) as backend:
        for batch in rows.batches:
            size = count(batch) if rows.batched else 1
            answers = backend.run(batch, size)
            found.append(Sample(size, batch, {spec.name: np.array(answers[spec.name]) for spec in draft.traced.outputs}))
    return tuple(found)


def _judge_task(draft: Draft, backend: Backend) -> Judged | None:
    """The first that is judged is FP32's portable graph: the others are held to its answers."""
    if draft.labelled is None:
        return None
    answers = draft.labelled.answers(backend)
    if draft.expected is None:
        draft.expected = answers
    return judged(draft.labelled, answers, draft.expected)


def _brief(draft: Draft, error: ExportError) -> str:
    return str(error).removeprefix(f"{draft.plan.model.label}: ").partition("\n")[0]


def time_together(draft: Draft, candidates: Sequence[Candidate]) -> None:
    """Time the candidates in turns, so that what else the machine does falls on all of them alike."""
    with ExitStack() as stack:
        backends = [stack.enter_context(draft.opened(candidate)) for candidate in candidates]
        found = measure.latencies(backends, next(draft.traced.samples()), draft.traced.unbatched is None)
    for candidate, runs in zip(candidates, found, strict=True):
        candidate.runs = runs


def weigh_memory(draft: Draft, candidates: Sequence[Candidate]) -> None:
    """What a process of its own holds that serves each candidate."""
    specs = [draft.spec(candidate) for candidate in candidates]
    found = resident(specs, next(draft.traced.samples()), draft.traced.unbatched is None, draft.work / "resident")
    for candidate, memory in zip(candidates, found, strict=True):
        candidate.memory = memory
        if memory is None:
            draft.reporter.note(f"{candidate.precision}: the memory that it takes couldn't be measured: its process was killed")
