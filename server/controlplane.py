"""Loads and unloads model versions and says what is there.

Loads run one at a time in a thread of their own; serving goes on beside them.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from server.backends.registry import EMULATED
from server.config import Settings
from server.engine.admission import length_at, policy_of, terms_of
from server.engine.batcher import Batcher
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.engine.supervisor import Supervisor
from server.errors import ModelDefect
from server.explain import capacity_of
from server.lanes.arbiter import Arbiter
from server.lanes.base import LossReason
from server.lanes.opening import LanePlan, Opened, open_lanes, usable_cores
from server.lanes.pad_proof import pad_fault
from server.logs import Journal
from server.messages import ModelKey
from server.metrics.catalogue import LANE_RESTARTS, MODEL_LABELS
from server.metrics.rate import Rate
from server.metrics.recorder import Recorder
from server.padding import NO_PADDING
from server.repository.loader import Loadable, describe
from server.repository.store import Entry, Store
from server.router.table import ServedVersion, ServingTable, State
from server.timeslice import take_long_turns


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A line of the repository index."""

    name: str
    version: str
    state: str
    reason: str


class ControlPlane:
    def __init__(self, settings: Settings, store: Store, table: ServingTable, recorder: Recorder, journal: Journal) -> None:
        self._settings = settings
        self._store = store
        self._table = table
        self._recorder = recorder
        self._journal = journal
        # Process lanes' children end with the thread that started them: this one lives as long as the lanes.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=take_long_turns)
        self._root = _paths_below(settings.repository)
        self._arbiter = Arbiter(usable_cores())
        self.loaded = False

    async def load_all(self) -> None:
        """Load every version that the repository offers. A model that can't be served is listed with its reason; the others serve."""
        loop = asyncio.get_running_loop()
        listing = await loop.run_in_executor(self._loader, self._store.scan)
        for problem in listing.problems:
            self._unavailable(problem.name, problem.version, problem.reason)
        for entry in listing.entries:
            for version in entry.versions:
                self._table.put(ServedVersion(entry.name, version, State.LOADING))
        for entry in listing.entries:
            for version in entry.versions:
                await self._load(entry, version)
        self.loaded = True

    async def _load(self, entry: Entry, version: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            loadable, opened = await loop.run_in_executor(self._loader, self._open, entry, version, loop)
        except ModelDefect as error:
            self._unavailable(entry.name, version, str(error))
            return
        unpadded = await pad_fault(opened.lanes[0], loadable.padding) if loadable.padding and opened.warmup.batched else ""
        served = self._serve(loadable, opened, unpadded)
        self._table.put(served)
        self._recorder.ring.routing((monotonic(), entry.name, version, "ready"))
        if not capacity_of(served).feasible:
            self._journal.lifecycle("objective_not_feasible", level="warning", model=entry.name, version=version, reason=served.reason)
        self._journal.lifecycle(
            "model_ready", model=entry.name, version=version, platform=served.platform, lanes=served.lanes, note=served.reason
        )

    def _open(self, entry: Entry, version: str, loop: asyncio.AbstractEventLoop) -> tuple[Loadable, Opened]:
        loadable = describe(entry, version, self._settings)
        lanes, batching = loadable.config.lanes, loadable.config.batching
        rows = loadable.config.warmup.rows or (1, 4, 16, batching.max_rows)
        plan = LanePlan(
            kind=lanes.kind,
            count=lanes.count or self._settings.lanes.count,
            threads=lanes.threads or self._settings.lanes.threads,
            rows=tuple(sorted({row for row in rows if row <= batching.max_rows})),
            trust_batch_axis=loadable.trust_batch_axis,
            memory_limit=lanes.memory_limit or 0,
            pin=lanes.pin,
        )
        return loadable, open_lanes(loadable.spec, plan, loop)

    def _serve(self, loadable: Loadable, opened: Opened, unpadded: str) -> ServedVersion:
        spec, config, warmup = loadable.spec, loadable.config, opened.warmup
        key = ModelKey(spec.model, spec.version, spec.precision)
        padding = NO_PADDING if unpadded or not warmup.batched else loadable.padding
        length = length_at(warmup.free_axis, opened.lanes[0].inputs, padding)
        batcher = Batcher(policy_of(config, len(opened.lanes), warmup.batched), CostModel(warmup.latency, length))
        figures = self._recorder.figures(key)
        proved = loadable.manifest.unbatched if loadable.manifest is not None else None
        engine = Engine(key, opened.lanes, batcher, figures, terms=terms_of(config, padding), batched=warmup.batched)
        served = ServedVersion(
            key.name,
            key.version,
            State.READY,
            engine=engine,
            manifest=loadable.manifest,
            platform=spec.backend,
            lanes=opened.why,
            config=config,
            unpadded=unpadded,
        )
        served.reason = "; ".join(filter(None, (loadable.note, *_notes(served, "" if warmup.batched else proved or warmup.why))))
        self._gauges(served, engine)
        if opened.lanes[0].kind != "inline":
            device = EMULATED if spec.backend == EMULATED else spec.device  # a GPU of its own, in thought
            width = opened.threads if device == "cpu" else 1 / len(opened.lanes)
            engine.share_device(self._arbiter.device(device), width)
        if opened.lanes[0].kind == "process":
            self._watch(served, engine.supervisor)
        return served

    def _gauges(self, served: ServedVersion, engine: Engine) -> None:
        gauge, labels = self._recorder.gauge, {"model": served.model, "version": served.version}
        gauge("tidegate_queue_rows", labels, lambda: engine.queue_rows)
        gauge("tidegate_queue_bytes", labels, lambda: engine.queue_bytes)
        if served.platform == EMULATED:
            gauge("tidegate_emulated", labels, lambda: 1.0)
        labels = {**labels, "precision": engine.key.precision}
        gauge("tidegate_model_ready", labels, lambda: 0.0 if engine.supervisor.down else 1.0)
        gauge("tidegate_offered_rows_total", labels, lambda: engine.offered_rows)
        gauge("tidegate_capacity_rows_per_second", labels, lambda: capacity_of(served).rows_per_s)
        gauge("tidegate_run_seconds", labels, lambda: capacity_of(served).run_seconds)
        offered = Rate(lambda: engine.offered_rows)
        gauge("tidegate_capacity_utilization", labels, lambda: offered.read() / (capacity_of(served).rows_per_s or math.inf))

    def _watch(self, served: ServedVersion, supervisor: Supervisor) -> None:
        """Tell what becomes of process lanes, and take the version off the table while none of them lives."""
        ready = served.reason

        def on_event(event: str, facts: dict[str, Any]) -> None:
            self._journal.lifecycle(event, model=served.model, version=served.version, **facts)
            self._recorder.ring.lane((monotonic(), str(facts.get("lane", f"{served.model}/{served.version}")), event))
            if event in ("lanes_down", "lanes_up") and self._table.version(served.model, served.version) is served:
                served.state = State.READY if event == "lanes_up" else State.UNAVAILABLE
                served.reason = ready if event == "lanes_up" else f"lane restarting: {facts['why']}"
                self._table.put(served)

        supervisor.on_event = on_event
        for reason in LossReason:
            labels = dict(zip((*MODEL_LABELS, "reason"), (*supervisor.key, reason), strict=True))
            self._recorder.gauge(LANE_RESTARTS.name, labels, partial(supervisor.restarts.__getitem__, reason))

    def _unavailable(self, name: str, version: str, reason: str) -> None:
        # Anyone may read the index, and only the operator needs to know where the repository lies.
        self._table.put(ServedVersion(name, version, State.UNAVAILABLE, self._root.sub("", reason)))
        self._recorder.ring.routing((monotonic(), name, version, f"unavailable: {reason}"))
        self._journal.lifecycle("model_unavailable", model=name, version=version, reason=reason)

    def index(self, only_ready: bool = False) -> list[IndexRow]:
        """What the repository holds and how each version is."""
        rows = (IndexRow(entry.model, entry.version, entry.state, entry.reason) for entry in self._table)
        return [row for row in rows if not only_ready or row.state == State.READY]

    def ready(self) -> bool:
        """Whether the server may be sent requests, as `ready_when` has it: all models, any, or those named."""
        if not self.loaded:
            return False
        rule = self._settings.ready_when
        if rule == "any":
            return any(self._table.default(name) for name in self._table.names()) or not self._table.names()
        names = self._table.names() if rule == "all" else list(rule)
        return all(self._table.default(name) is not None for name in names)

    async def drain(self) -> None:
        """Wait until every engine has answered all that it took."""
        await asyncio.gather(*(entry.engine.drain() for entry in self._table if entry.engine is not None))

    async def close(self) -> None:
        """Give every lane back."""
        loop = asyncio.get_running_loop()
        for entry in self._table:
            if entry.engine is not None:
                entry.engine.abandon()
                await loop.run_in_executor(self._loader, entry.engine.close)
                entry.engine = None
        self._loader.shutdown()


def _notes(served: ServedVersion, unbatched: str) -> Iterator[str]:
    """What whoever runs a ready model should know of it."""
    if unbatched:
        yield f"served unbatched: {unbatched}"
    if served.unpadded:
        yield f"not padded, so only requests of one length share a run: {served.unpadded}"
    capacity = capacity_of(served)
    if not capacity.feasible:
        yield (
            f"batching.latency_objective {(capacity.objective or 0) * 1e3:.3g} ms can't be met: a run of one row takes "
            f"{capacity.run_seconds * 1e3:.3g} ms here; the least feasible is {math.ceil(capacity.run_seconds * 1.1e3)} ms"
        )


def _paths_below(repository: Path) -> re.Pattern[str]:
    """Matches the repository's own part of a path to something in it, as it was given and as links and the working folder make it."""
    spellings = sorted({str(repository), str(repository.absolute()), str(repository.resolve())}, key=len, reverse=True)
    return re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, spellings))})/")
