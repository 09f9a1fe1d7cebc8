"""Which ensembles serve: one does as soon as all its parts do, and says what it waits for until then. The table tells of each change."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.ensemble import Ensemble, Start, plan
from server.errors import ModelDefect
from server.logs import Journal
from server.messages import ModelKey
from server.metrics.recorder import Recorder
from server.repository.declare.said import Loadable
from server.router.table import Front, ServedVersion, ServingTable, State

DRAIN_POLL = 0.005  # seconds


@dataclass(slots=True, eq=False)
class _Member:
    """An ensemble, and the parts that it was last planned over."""

    entry: ServedVersion
    loadable: Loadable
    parts: tuple[Front, ...] = ()


class Ensembles:
    """`start` runs a step. The table's entry of an ensemble is made once; its state follows its parts'."""

    def __init__(self, table: ServingTable, recorder: Recorder, journal: Journal, start: Start) -> None:
        self._table = table
        self._recorder = recorder
        self._journal = journal
        self._start = start
        self._members: list[_Member] = []
        table.on_change = self._look

    def add(self, loadable: Loadable) -> None:
        """Have an ensemble serve once it can."""
        spec = loadable.spec
        entry = ServedVersion(spec.model, spec.version, State.LOADING, platform=spec.backend, config=loadable.config)
        self._members.append(_Member(entry, loadable))
        self._table.put(entry)

    async def drain(self) -> None:
        """Wait until no request waits for a step: only then may the parts stop taking any."""
        while any(isinstance(member.entry.front, Ensemble) and member.entry.front.running for member in self._members):
            await asyncio.sleep(DRAIN_POLL)

    def _look(self) -> None:
        """Something in the table changed. A change that this makes is looked at by the call that it leads to."""
        for member in list(self._members):
            entry = member.entry
            if self._table.version(entry.model, entry.version) is not entry:
                self._members.remove(member)
            elif self._follow(member):
                self._table.put(entry)
                return

    def _follow(self, member: _Member) -> bool:
        """Whether the ensemble changed with its parts."""
        entry, loadable = member.entry, member.loadable
        ensemble = loadable.config.ensemble
        assert ensemble is not None
        try:
            parts = tuple(self._part(entry, step.model, step.version) for step in ensemble.steps)
            if entry.front is not None and all(one is other for one, other in zip(parts, member.parts, strict=True)):
                return False
            found = plan(ensemble.steps, parts, loadable.spec.inputs, loadable.spec.outputs)
        except ModelDefect as defect:
            entry.front = None
            return self._tell(entry, State.UNAVAILABLE, str(defect))
        key = ModelKey(entry.model, entry.version, loadable.spec.precision)
        entry.front, member.parts = Ensemble(key, found, self._recorder.figures(key), self._start), parts
        return self._tell(entry, State.READY, "")

    def _part(self, entry: ServedVersion, model: str, version: str) -> Front:
        part = self._table.version(model, version) if version else self._table.default(model)
        front = None if part is None or part is entry else part.serving
        if part is None or part.state is not State.READY or front is None:
            of = f" version {version}" if version else ""
            raise ModelDefect(f"waits for its part, model {model!r}{of}: {self._why(model, version, entry)}")
        if part.config.decoupled:
            raise ModelDefect(f"model {model!r} is decoupled: it may give any number of answers, so it can't be a step of an ensemble")
        return front

    def _why(self, model: str, version: str, entry: ServedVersion) -> str:
        if model == entry.model:
            return "that is the ensemble itself"
        part = self._table.version(model, version) if version else next(iter(self._table.versions(model)), None)
        if part is None:
            return "there is none"
        return f"{part.state} ({part.reason})" if part.reason else str(part.state)

    def _tell(self, entry: ServedVersion, state: State, reason: str) -> bool:
        """Note a state; whether it's another than before."""
        before = entry.state, entry.reason
        entry.state, entry.reason = state, reason
        if state is not before[0]:
            event, level = ("model_ready", "info") if state is State.READY else ("model_unavailable", "warning")
            self._journal.lifecycle(event, level=level, model=entry.model, version=entry.version, platform=entry.platform, reason=reason)
        return (state, reason) != before
