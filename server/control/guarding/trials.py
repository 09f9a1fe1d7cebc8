"""Puts variants of the ladder that have no proof on this device to the test, on rows that others answer, before the ladder may use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from server.control.guarding.references import Held
from server.control.guarding.watching import WHO, Stage, Tell, Watching
from server.errors import TidegateError
from server.precision.drift import Verdict
from server.precision.guard.record import Record
from server.precision.variants import State
from server.state.base import Event
from server.state.changes import Changes

AGAIN = 30.0  # seconds after one that couldn't be loaded

Start: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]


class Trials:
    """`start` has work done beside."""

    def __init__(self, stage: Stage, changes: Changes, tell: Tell, start: Start) -> None:
        self._stage = stage
        self._changes = changes
        self._tell = tell
        self._start = start

    def begin(self, known: Watching) -> None:
        """Put the next variant of a version to the test, if there's one and none is under way."""
        if known.admitting is None and (record := _untried(known)) is not None:
            known.admitting = Held(self._stage, known.served, record.precision)
            self._start(self._try(known, record, known.admitting))

    async def _try(self, known: Watching, record: Record, held: Held) -> None:
        engine = await held.hold()
        if engine is None:
            self._tell("precision_not_tried", known, level="warning", precision=record.precision, reason=held.why)
            await asyncio.sleep(AGAIN)
            known.admitting = None
            return
        known.guard.candidate = engine
        engine.yields(yields=True)
        known.guard.watch(known.served.engine)

    def judged(self, known: Watching, record: Record, verdict: Verdict) -> None:
        """A test is over."""
        if known.guard.candidate is not None:
            known.guard.candidate.yields(yields=False)
        known.guard.candidate = None
        if known.admitting is not None:
            known.admitting.release()
            known.admitting = None
        known.guard.watch(known.served.engine)
        assert record.admission is not None
        test = record.admission.judge()
        why = f"{verdict} on shadowed traffic: {test.differing} of {test.samples} rows differ from FP32 ({test.low:.2%} to {test.high:.2%})"
        self._tell("precision_judged", known, precision=record.precision, verdict=str(verdict), reason=why)
        if verdict is Verdict.ADMITTED:
            known.served.variants[record.precision].proven = True
        self._start(self._settle(known, record.precision, verdict, why))

    async def _settle(self, known: Watching, precision: str, verdict: Verdict, why: str) -> None:
        name, version = known.served.model, known.served.version
        if verdict is Verdict.REFUSED:
            try:
                await self._stage.pin_out(name, precision, WHO, why, version)
            except TidegateError as error:
                self._tell("precision_not_pinned_out", known, level="error", precision=precision, reason=str(error))
        await self._changes.note(Event(0.0, WHO, "admission", name, precision, str(verdict), why))


def _untried(known: Watching) -> Record | None:
    """A variant of the ladder that hasn't been judged."""
    variants = known.served.variants
    for name in known.served.config.precision.ladder:
        record = known.guard.records.get(name)
        barred = name not in variants or variants[name].state in (State.PINNED_OUT, State.FAILED)
        if record is not None and not barred and record.admission is not None and record.admission.verdict is Verdict.UNDECIDED:
            return record
    return None
