"""From open lanes to a version that serves: its engine, its notes, its gauges, its share of a device, and a watch over its processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

from server.backends.registry import EMULATED
from server.cache import Answers, Cached
from server.control.memory import memory_of
from server.control.precision.rungs import preferred_rows_per_s
from server.engine.admission import length_at, policy_of, terms_of
from server.engine.batcher import Batcher
from server.engine.cost_model import CostModel
from server.engine.engine import Engine
from server.engine.streams.engine import StreamingEngine
from server.engine.supervisor import Supervisor
from server.explain import capacity_of
from server.lanes.arbiter import Arbiter
from server.lanes.base import LossReason
from server.lanes.opening import Opened, usable_cores
from server.logs import Journal
from server.messages import ModelKey
from server.metrics.catalogue import LANE_RESTARTS
from server.metrics.rate import Rate
from server.metrics.recorder import Recorder
from server.padding import NO_PADDING
from server.repository.loader import Loadable
from server.router.table import ServedVersion, ServingTable, State, engines_of
from server.sequences import Sequences

OnLanes: TypeAlias = Callable[[ServedVersion, str], None]


class Serving:
    """Makes versions that serve. It puts none into the table, but takes one off whose processes are all lost. `on_lanes` is told of a
    version whose processes are all lost, and why; and, with "", when they are back."""

    def __init__(self, table: ServingTable, recorder: Recorder, journal: Journal) -> None:
        self._table = table
        self._recorder = recorder
        self._journal = journal
        self._arbiter = Arbiter(usable_cores())
        self.on_lanes: OnLanes = lambda served, why: None

    def serve(self, loadable: Loadable, opened: Opened, unpadded: str, beside: ServedVersion | None = None) -> ServedVersion:
        """The version on these lanes; `unpadded` is why it isn't padded although it asks for that. `beside` is the same version as it
        serves in another precision, whose sequences and kept answers the two share."""
        spec, config, warmup = loadable.spec, loadable.config, opened.warmup
        key = ModelKey(spec.model, spec.version, spec.precision)
        padding = NO_PADDING if unpadded or not warmup.batched else loadable.padding
        length = length_at(warmup.free_axis, opened.lanes[0].inputs, padding)
        batcher = Batcher(policy_of(config, len(opened.lanes), warmup.batched), CostModel(warmup.latency, length))
        figures = self._recorder.figures(key)
        proved = loadable.manifest.unbatched if loadable.manifest is not None else None
        kind = StreamingEngine if config.decoupled else Engine
        engine = kind(key, opened.lanes, batcher, figures, terms=terms_of(config, padding), batched=warmup.batched)
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
            filename=spec.path.name,
            device=spec.device,
            memory=memory_of(spec, opened.lanes),
            expected=loadable.expected,
            load_seconds=opened.seconds,
        )
        unbatched = "" if warmup.batched or config.decoupled else proved or warmup.why
        served.note = served.reason = "; ".join(filter(None, (loadable.note, *_notes(served, unbatched))))
        if config.sequence is not None:
            shared = beside.front if beside is not None else None
            served.front = shared if isinstance(shared, Sequences) else Sequences(engine, config.sequence)
        elif config.cache.max_bytes:
            kept = beside.front.answers if beside is not None and isinstance(beside.front, Cached) else Answers(config.cache.max_bytes)
            served.front = Cached(engine, kept)
        if opened.lanes[0].kind != "inline":
            device = EMULATED if spec.backend == EMULATED else spec.device  # a GPU of its own, in thought
            width = opened.threads if device == "cpu" else 1 / len(opened.lanes)
            engine.share_device(self._arbiter.device(device), width)
        if opened.lanes[0].kind == "process":
            self._watch(served, engine.supervisor)
        return served

    def attend(self, served: ServedVersion) -> None:
        """Have the gauges that know no precision show a version as it serves from now on."""
        gauge, labels, front = self._recorder.gauge, {"model": served.model, "version": served.version}, served.front
        gauge("tidegate_queue_rows", labels, lambda: sum(engine.queue_rows for engine in engines_of(served)))
        gauge("tidegate_queue_bytes", labels, lambda: sum(engine.queue_bytes for engine in engines_of(served)))
        gauge("nv_inference_pending_request_count", labels, lambda: sum(engine.queue_requests for engine in engines_of(served)))
        gauge("nv_model_load_duration_secs", labels, lambda: served.load_seconds)
        if served.platform == EMULATED:
            gauge("tidegate_emulated", labels, lambda: 1.0)
        if isinstance(front, Sequences):
            gauge("tidegate_sequences", labels, lambda: front.active)
        elif isinstance(front, Cached):
            gauge("tidegate_cache_bytes", labels, lambda: front.answers.bytes)
            gauge("tidegate_cache_lookups_total", {**labels, "result": "hit"}, lambda: front.answers.hits)
            gauge("tidegate_cache_lookups_total", {**labels, "result": "miss"}, lambda: front.answers.misses)

    def show(self, served: ServedVersion) -> None:
        """Have the gauges of one precision show it, while it's loaded."""
        engine = served.engine
        assert engine is not None
        gauge, labels = self._recorder.gauge, {"model": served.model, "version": served.version, "precision": engine.key.precision}
        gauge("tidegate_model_ready", labels, lambda: 0.0 if engine.supervisor.down else 1.0)
        gauge("tidegate_offered_rows_total", labels, lambda: engine.offered_rows)
        gauge("tidegate_capacity_rows_per_second", labels, lambda: capacity_of(served).rows_per_s)
        gauge("tidegate_run_seconds", labels, lambda: capacity_of(served).run_seconds)
        if engine.lanes[0].kind == "process":
            for reason in LossReason:
                gauge(LANE_RESTARTS.name, {**labels, "reason": reason}, partial(engine.supervisor.restarts.__getitem__, reason))
        offered = Rate(lambda: engine.offered_rows)
        gauge("tidegate_capacity_utilization", labels, lambda: offered.read() / (preferred_rows_per_s(served) or math.inf))
        gauge("tidegate_active_precision", labels, lambda: float(self._answers(served, engine)))

    def _answers(self, served: ServedVersion, engine: Engine) -> bool:
        """Whether it's this engine that the version's requests go to."""
        found = self._table.version(served.model, served.version)
        return found is not None and found.engine is engine

    def _watch(self, served: ServedVersion, supervisor: Supervisor) -> None:
        """Tell what becomes of process lanes, and take the version off the table while none of them lives."""

        def on_event(event: str, facts: dict[str, Any]) -> None:
            self._journal.lifecycle(event, model=served.model, version=served.version, **facts)
            self._recorder.ring.lane((monotonic(), str(facts.get("lane", f"{served.model}/{served.version}")), event))
            if event not in ("lanes_down", "lanes_up"):
                return
            self.on_lanes(served, str(facts.get("why", "")))
            if self._table.version(served.model, served.version) is served:
                served.state = State.READY if event == "lanes_up" else State.UNAVAILABLE
                served.reason = served.note if event == "lanes_up" else f"lane restarting: {facts['why']}"
                self._table.put(served)

        supervisor.on_event = on_event


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
