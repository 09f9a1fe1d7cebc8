"""Has the drift guard watch what serves, and acts when it raises an alarm: a better precision answers, the bad one is pinned out.

One guard a version, from its load to its end, whatever precision serves meanwhile. It's kept out of the requests' way: whatever goes wrong
here is logged, and what serves goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from server.control.guarding.figures import show
from server.control.guarding.keeping import Keeping
from server.control.guarding.references import LivingReference
from server.control.guarding.trials import Trials
from server.control.guarding.watching import WHO, Stage, Watching, records_of
from server.errors import TidegateError, Unavailable
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.precision.drift import Verdict
from server.precision.guard.guard import Guard
from server.precision.guard.inputs import inputs_of
from server.precision.guard.record import Alarm, Comparison, Record
from server.precision.guard.sampling import Sample
from server.repository.declare.precision import REFERENCE
from server.router.table import ServedVersion, ServingTable
from server.state.base import Event
from server.state.changes import Changes
from server.tensors import Tensor

TICK = 1.0  # seconds
EXPIRE = 600.0  # seconds between looks for files that are too old
AGAIN = 30.0  # seconds after a fall back that failed


class Guarding:
    """In the event loop. `look` follows what serves, `run` also looks after what takes time."""

    def __init__(
        self, table: ServingTable, stage: Stage, recorder: Recorder, journal: Journal, changes: Changes, folder: Path | None = None
    ) -> None:
        """`folder` is where what model.yaml lets be kept is written; without one nothing is."""
        self._table = table
        self._stage = stage
        self._recorder = recorder
        self._journal = journal
        self._changes = changes
        self._keeping = Keeping(folder)
        self._trials = Trials(stage, changes, self._tell, self._start)
        self._watching: dict[tuple[str, str], Watching] = {}
        self._work: set[asyncio.Task[None]] = set()
        before = table.on_change

        def changed() -> None:
            before()
            self.look()

        table.on_change = changed

    def look(self) -> None:
        """Watch what serves now."""
        guarded = {(served.model, served.version): served for served in self._table if _is_guarded(served)}
        for key, served in guarded.items():
            known = self._watching.get(key)
            if known is not None and known.served.variants is not served.variants:  # loaded anew
                known.leave()
                known = None
            if known is None:
                known = self._watching[key] = self._begin(served)
            known.follow(served)
        for key in self._watching.keys() - guarded.keys():
            entry = self._table.version(*key)
            if entry is None or entry.serving is None or not entry.config.precision.guarded:
                self._watching.pop(key).leave()

    def _begin(self, served: ServedVersion) -> Watching:
        settings = served.config.precision.guard
        assert settings is not None
        reference = LivingReference(self._stage, served, settings.reference)
        owner = Owner(self, (served.model, served.version))
        guard = Guard(settings, reference, records_of(served, settings), owner, inputs_of(served.manifest))
        known = Watching(served, guard, reference, self._keeping.worst_of(served, settings))
        known.task = self._start(self._compare(known))
        return known

    async def _compare(self, known: Watching) -> None:
        """Compare until the version goes. A fault of the guard's own ends it, and is told."""
        await known.reference.settle()
        try:
            await known.guard.run()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            known.guard.watch(None)
            known.guard.paused = f"ended by a fault of its own: {error!r}"
            self._tell("guard_ended", known, level="error", reason=repr(error))

    async def run(self) -> None:
        """Look each TICK, too: at what failed before, at who is to be admitted."""
        expired = monotonic()
        while True:
            await asyncio.sleep(TICK)
            self.look()
            for known in self._watching.values():
                self._tend(known)
            self.show()
            if monotonic() - expired > EXPIRE:
                expired = monotonic()
                kept = [known.worst for known in self._watching.values() if known.worst is not None]
                await asyncio.to_thread(self._keeping.expire, kept)

    def show(self) -> None:
        """Have the metrics read."""
        for known in self._watching.values():
            show(self._recorder, known.served, known.guard)

    def _tend(self, known: Watching) -> None:
        reference = known.served.variants[REFERENCE].engine
        if reference is not None:
            reference.yields(yields=reference is not known.served.engine)
        watched = known.guard.watched
        record = known.guard.records.get(watched.key.precision) if watched is not None else None
        if record is not None and record.last is not None and not record.clean and monotonic() >= known.again:
            self.alarmed(known, record.last)  # the last attempt failed
        self._trials.begin(known)

    def alarmed(self, known: Watching, alarm: Alarm) -> None:
        """The variant that serves must not: fall back, once at a time."""
        if known.acting is None:
            known.acting = self._start(self._act(known, alarm))

    async def _act(self, known: Watching, alarm: Alarm) -> None:
        try:
            await self._fall_back(known, alarm)
        finally:
            known.acting = None

    async def _fall_back(self, known: Watching, alarm: Alarm) -> None:
        served, why = known.served, str(alarm)
        figures = {name: round(value, 4) for name, value in alarm.figures.items()}
        self._tell("precision_drifted", known, level="warning", precision=alarm.precision, cause=str(alarm.cause), reason=why, **figures)
        told = "; ".join([why, *(f"{name} {value:g}" for name, value in figures.items())])
        try:
            if (better := known.halfway) is not None:
                await self._stage.step(served.model, better, WHO, why)
            await self._stage.pin_out(served.model, alarm.precision, WHO, why, served.version)
        except TidegateError as error:
            known.again = monotonic() + AGAIN
            self._tell("precision_not_fallen_back", known, level="error", precision=alarm.precision, reason=str(error))
            told = f"{told}; it answers on: {error}"
        now = known.served.engine.key.precision if known.served.engine is not None else ""
        await self._changes.note(Event(0.0, WHO, "drift", served.model, alarm.precision, now, told))

    def judged(self, known: Watching, record: Record, verdict: Verdict) -> None:
        """A variant's test is over."""
        self._trials.judged(known, record, verdict)

    def differed(self, known: Watching, sample: Sample, reference: Mapping[str, Tensor], found: Comparison) -> None:
        """Keep a row that differs, where that's allowed. In the guard's thread."""
        if known.worst is not None:
            try:
                known.worst.keep(sample, reference, found)
            except OSError as error:
                self._tell("worst_not_kept", known, level="warning", reason=str(error.strerror or error))

    async def purge(self, name: str, who: str) -> int:
        """Remove what was kept of a model's worst samples; how many files. Raises Unavailable."""
        try:
            removed = await asyncio.to_thread(self._keeping.purge, name)
        except OSError as error:
            raise Unavailable(f"the worst samples of '{name[:255]}' can't be removed: {error.strerror or error}") from error
        if removed:
            await self._changes.note(Event(0.0, who, "purge", name, f"{removed} samples", "none", "asked for through the admin API"))
        return removed

    def told(self, name: str) -> list[dict[str, Any]]:
        """What the guard of each of a model's versions saw, for people and programs."""
        return [known.told() for key, known in self._watching.items() if key[0] == name]

    def of(self, key: tuple[str, str]) -> Watching | None:
        """What is known of a version; None where it isn't guarded."""
        return self._watching.get(key)

    def close(self) -> None:
        """Watch nothing any more."""
        for known in self._watching.values():
            known.leave()
        self._watching.clear()
        for task in self._work:
            task.cancel()

    def _tell(self, event: str, known: Watching, *, level: str = "info", **facts: Any) -> None:
        self._journal.lifecycle(event, level=level, model=known.served.model, version=known.served.version, **facts)
        told = f"{event} {facts.get('precision', '')}".strip()
        self._recorder.ring.routing((monotonic(), known.served.model, known.served.version, told))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom one version's guard tells (guard.Owner)."""

    guarding: Guarding
    key: tuple[str, str]

    def alarmed(self, alarm: Alarm) -> None:
        """See guard.Owner."""
        if (known := self.guarding.of(self.key)) is not None:
            self.guarding.alarmed(known, alarm)

    def judged(self, record: Record, verdict: Verdict) -> None:
        """See guard.Owner."""
        if (known := self.guarding.of(self.key)) is not None:
            self.guarding.judged(known, record, verdict)

    def differed(self, sample: Sample, reference: Mapping[str, Tensor], found: Comparison) -> None:
        """See guard.Owner."""
        if (known := self.guarding.of(self.key)) is not None:
            self.guarding.differed(known, sample, reference, found)


def _is_guarded(served: ServedVersion) -> bool:
    config = served.config
    return served.engine is not None and config.precision.guarded and not config.decoupled and REFERENCE in served.variants
