"""The drift guard of one version: looks at some answers of the variant that serves, computes them again in FP32, and says when it drifted.

It sees answers as an engine's tap (engine.Tap) and changes nothing itself: its owner is told and acts. What serves is never kept
waiting for it, but for an answer with NaN or Inf, which doesn't leave before FP32 was asked. While FP32 can't be asked it pauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import random, randrange
from time import monotonic
from typing import Any, Protocol, TypeAlias

import numpy as np

from server.engine.engine import Engine, Shares
from server.engine.request_queue import Ticket
from server.messages import BatchFacts, InferResponse
from server.precision.drift import Verdict
from server.precision.guard.asking import Layouts, Reference, answers, copy_of
from server.precision.guard.inputs import Input, count
from server.precision.guard.nonfinite import Recomputing
from server.precision.guard.record import Alarm, Blame, Comparison, Record, compare, is_finite
from server.precision.guard.sampling import Pacer, Sample, Sampler, Settings, Waiting
from server.tensors import Tensor, TensorSpec

REFERENCE = "fp32"
PACE = 0.02  # seconds between looks for an idle gap, while samples wait
REST = 0.25  # seconds between looks while more samples are gathered first
PATIENCE = 30.0  # seconds that a replay may take
PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds between attempts while the reference can't be asked


class Owner(Protocol):
    """Whom the guard tells. All are called in the event loop."""

    def alarmed(self, alarm: Alarm) -> None:
        """The variant that serves must not."""
        ...

    def judged(self, record: Record, verdict: Verdict) -> None:
        """A candidate was admitted or refused."""
        ...

    def differed(self, sample: Sample, reference: Mapping[str, Tensor], found: Comparison) -> None:
        """A row differs, where such are kept."""
        ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """A sample with the other variants' answers: FP32's, and the candidate's where one is on trial."""

    sample: Sample
    reference: Mapping[str, Tensor]
    candidate: Mapping[str, Tensor] | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a replay came to."""

    replayed: Replayed
    variant: Comparison | None
    candidate: Comparison | None


@dataclass(slots=True, eq=False)
class Counts:
    """What the guard did. `seconds` are in `Pacer`; `failed` samples got no answer in time, `speechless` ones have no numbers."""

    samples: int = 0
    failed: int = 0
    speechless: int = 0
    admissions: dict[str, int] = field(default_factory=lambda: {str(Verdict.ADMITTED): 0, str(Verdict.REFUSED): 0})


Answered: TypeAlias = tuple[list[Ticket], Shares]


class Watch:
    """The guard as the tap of one engine."""

    def __init__(self, guard: Guard, engine: Engine) -> None:
        self._guard = guard
        self._engine = engine

    @property
    def busy(self) -> bool:
        """See engine.Tap."""
        return self._guard.busy

    def sift(self, tickets: list[Ticket], outputs: Mapping[str, Tensor], shares: Shares, facts: BatchFacts) -> Answered:
        """See engine.Tap."""
        return self._guard.sift(self._engine, (tickets, shares), outputs, facts)


class Guard:
    """`watch` an engine, `run` it as a task, `close` it. `records` are the variants' by precision; `candidate` is the engine of one that is
    put to the test, `inputs` what is known of the calibration set's."""

    def __init__(
        self, settings: Settings, reference: Reference, records: dict[str, Record], owner: Owner, inputs: dict[str, Input] | None = None
    ) -> None:
        self.settings = settings
        self.reference = reference
        self.records = records
        self.inputs = inputs or {}
        self.candidate: Engine | None = None
        self.counts = Counts()
        self.waiting = Waiting()
        self.pacer = Pacer(settings.budget, settings.floor, monotonic())
        self.paused = ""
        self._owner = owner
        self._sampler = Sampler(settings.sample, random)
        self._layouts = Layouts()
        self._recomputing = Recomputing(reference, self._blamed)
        self._engine: Engine | None = None
        self._work = asyncio.Event()
        self._cost = 0.0  # seconds that a replay takes of the device
        self._failures = 0

    @property
    def busy(self) -> bool:
        """Whether answers are kept back."""
        return self._recomputing.busy

    @property
    def watched(self) -> Engine | None:
        """Whose answers are compared, None where nobody's are."""
        engine = self._engine
        return engine if engine is not None and engine.tap is not None else None

    @property
    def newest(self) -> Engine | None:
        """The engine that serves, whether its answers are compared or not."""
        return self._engine

    def watch(self, engine: Engine | None) -> None:
        """Compare this engine's answers from now on, and no other's; None: nobody's. FP32's are looked at only for a candidate. What was
        watched before sends no NaN on while it drains, either."""
        if engine is not self._engine:
            self.waiting.clear()
        self._engine = engine
        if engine is not None:
            needed = engine.key.precision != REFERENCE or self.candidate is not None
            engine.tap = Watch(self, engine) if needed else None

    def sift(self, engine: Engine, answered: Answered, outputs: Mapping[str, Tensor], facts: BatchFacts) -> Answered:
        """See engine.Tap."""
        record = self.records.get(facts.precision)
        if record is not None and not is_finite(outputs):
            return self._recomputing.sift(engine, record, answered, facts)
        if engine is self._engine:
            tickets, shares = answered
            for position in self._sampler.drawn(len(tickets)):
                self._look(engine, tickets[position], shares[position])
        return answered

    def _look(self, engine: Engine, ticket: Ticket, share: Mapping[str, Tensor]) -> None:
        """Keep one row of an answer, if there's room."""
        request = ticket.request
        rows = ticket.rows if engine.max_rows else 1
        size = (sum(array.nbytes for array in request.inputs.values()) + sum(array.nbytes for array in share.values())) // rows
        if not self.waiting.room(size):
            return
        row = randrange(rows) if engine.max_rows else None
        try:
            inputs, outputs = _row_of(request.inputs, engine.inputs, row), _row_of(share, engine.outputs, row)
        except (IndexError, np.exceptions.AxisError):  # not per row after all: a lone request's answer goes out unchecked
            self.counts.speechless += 1
            return
        if not is_finite(inputs):
            return
        self.waiting.add(Sample(inputs, outputs, self._layouts.of(request, inputs), engine.key.precision, monotonic(), size))
        self._work.set()

    def _blamed(self, record: Record, blame: Blame) -> None:
        alarm = record.blame(blame)
        if alarm is not None:
            self._owner.alarmed(alarm)

    async def run(self) -> None:
        """Compare what waits whenever it may be, for ever."""
        while True:
            if not len(self.waiting):
                self._work.clear()
                self.reference.dismiss()
                await self._work.wait()
            await asyncio.sleep(await self._turn())

    async def _turn(self) -> float:
        """Replay some samples if that may be now; seconds until the next look."""
        if not self.reference.due(len(self.waiting)):
            return REST
        engine = await self.reference.summon(urgent=False)
        if engine is None:
            return self._pause(self.reference.why or "FP32 isn't there")
        busy = self._engine is not None and not self._engine.device_idle
        most = self.pacer.may(monotonic(), self._cost, idle=engine.device_idle and not busy)
        samples = self.waiting.take(most)
        if not samples:
            return PACE
        replayed = await self._replay(engine, samples)
        if not replayed:
            return self._pause(engine.supervisor.down or "FP32 doesn't answer")
        self.paused, self._failures = "", 0
        for found in await asyncio.to_thread(self._compared, replayed):
            self._take(found)
        return 0.0

    def _pause(self, why: str) -> float:
        self.paused = why
        self.waiting.clear()  # what comes when it's back says more than what was
        self._failures += 1
        return PAUSES[min(self._failures, len(PAUSES)) - 1]

    async def _replay(self, engine: Engine, samples: list[Sample]) -> list[Replayed]:
        """The samples that were answered anew; those of FP32 itself aren't asked again."""
        theirs: list[Mapping[str, Tensor] | None]
        if samples[0].precision == REFERENCE:
            theirs = [sample.outputs for sample in samples]
        else:
            theirs = await self._asked(engine, samples)
        trial: list[Mapping[str, Tensor] | None] = [None] * len(samples)
        if (candidate := self.candidate) is not None and any(each is not None for each in theirs):
            trial = await self._asked(candidate, samples)
        self.counts.failed += theirs.count(None)
        return [
            Replayed(sample, reference, other)
            for sample, reference, other in zip(samples, theirs, trial, strict=True)
            if reference is not None
        ]

    async def _asked(self, engine: Engine, samples: list[Sample]) -> list[Mapping[str, Tensor] | None]:
        """An engine's answers to samples, its seconds paid for."""
        requests = [copy_of(engine, sample.inputs, sample.layout, tuple(sample.outputs)) for sample in samples]
        begun = monotonic()
        came = await answers(engine, requests, PATIENCE)
        seconds = _run_seconds(came) if any(came) else monotonic() - begun
        self.pacer.spent(monotonic(), seconds, len(samples))
        self._cost += 0.2 * (seconds - self._cost)
        return [answer.outputs if answer is not None else None for answer in came]

    def _compared(self, replayed: list[Replayed]) -> list[Found]:
        """In a thread of its own: large answers take a while."""
        return [self._compare(each) for each in replayed]

    def _compare(self, each: Replayed) -> Found:
        sample, candidate = each.sample, self.candidate
        count(self.inputs, sample.inputs)
        variant = self._beside(each.reference, sample.outputs, sample.precision)
        if variant is not None and variant.differs and self.settings.keep_worst:
            self._owner.differed(sample, each.reference, variant)
        trial = None
        if each.candidate is not None and candidate is not None and is_finite(each.reference):
            trial = self._beside(each.reference, each.candidate, candidate.key.precision)
        return Found(each, variant, trial)

    def _beside(self, reference: Mapping[str, Tensor], answer: Mapping[str, Tensor], precision: str) -> Comparison | None:
        """How far a variant's answer is from the reference's; None where that can't be told."""
        record = self.records.get(precision)
        try:
            return compare(reference, answer, record.tolerance, classes=record.classes) if record is not None else None
        except ValueError:  # of unlike shapes, which another rule than this one is for
            return None

    def _take(self, found: Found) -> None:
        """Count what was found, and tell of what follows from it."""
        self.counts.samples += 1
        self.counts.speechless += found.variant is None and found.candidate is None
        record = self.records.get(found.replayed.sample.precision)
        if record is not None and found.variant is not None:
            alarm = record.add(found.variant)
            if alarm is not None:
                self._owner.alarmed(alarm)
        if found.candidate is not None and self.candidate is not None:
            self._try(self.records[self.candidate.key.precision], found.candidate.differs)

    def _try(self, record: Record, differs: bool) -> None:
        """Count a row of the candidate's; tell of the verdict, once."""
        if record.admission is None or record.admission.verdict is not Verdict.UNDECIDED:
            return
        verdict = record.admission.add(differs)
        if verdict is not Verdict.UNDECIDED:
            self.counts.admissions[verdict] += 1
            self._owner.judged(record, verdict)

    def told(self) -> dict[str, Any]:
        """What it saw, for people and programs."""
        now = monotonic()
        return {
            "watching": self.watched.key.precision if self.watched is not None else None,
            "paused": self.paused,
            "sample": self.settings.sample,
            "budget": self.settings.budget,
            "device_share": round(self.pacer.share(now), 5),
            "samples": self.counts.samples,
            "waiting": len(self.waiting),
            "passed": self.waiting.passed,
            "failed": self.counts.failed,
            "candidate": self.candidate.key.precision if self.candidate is not None else None,
            "variants": {name: record.told() for name, record in self.records.items()},
            "inputs": {name: known.told() for name, known in self.inputs.items()},
        }


def _row_of(arrays: Mapping[str, Tensor], specs: tuple[TensorSpec, ...], row: int | None) -> dict[str, Tensor]:
    """A copy of one row of each tensor, whole where it isn't per row; of all of it without a row."""
    axes = {spec.name: spec.batch_axis for spec in specs}
    found = {}
    for name, array in arrays.items():
        axis = axes.get(name)
        found[name] = np.array(array) if row is None or axis is None else array.take([row], axis=axis)
    return found


def _run_seconds(came: list[InferResponse | None]) -> float:
    """What the runs took that gave these answers; one that gave several counts once."""
    runs = {id(answer.batch): answer.batch for answer in came if answer is not None and answer.batch is not None}
    return sum(facts.finished - facts.started for facts in runs.values())
