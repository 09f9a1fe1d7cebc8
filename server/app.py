"""The composition root: builds every part, starts them in order, stops them in reverse. Tests drive the same object on port 0."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import orjson

from server.config import Settings
from server.control.dials import Dials
from server.control.routing.splits import Splits
from server.control.routing.trials import Trials
from server.controlplane import ControlPlane
from server.dataplane import DataPlane
from server.edges.admin.apart import admin_only, without_admin
from server.edges.admin.canary import add_canary
from server.edges.admin.experiments import add_experiments
from server.edges.admin.routes import add_admin
from server.edges.admin.weights import add_weights
from server.edges.extensions.configuration import add_configuration
from server.edges.extensions.generate import add_generate
from server.edges.extensions.repository import add_repository
from server.edges.extensions.settings import add_settings
from server.edges.extensions.shared_memory import add_shared_memory
from server.edges.grpc.listener import GrpcServer
from server.edges.grpc.servicer import Servicer
from server.edges.http_server import HttpServer
from server.edges.infer_edge import EdgeLimits, InferEdge
from server.edges.offload.json_worker import JsonWorker
from server.edges.rest import EXTENSIONS, build_rest
from server.errors import Unavailable
from server.gate import Gate, Operation
from server.lending import Lending
from server.logs import Journal
from server.metrics.exposition import LoopProbe, MetricsServer, Sources
from server.metrics.gpu import Gpus, nvml_library
from server.metrics.recorder import Recorder
from server.metrics.triton import Latencies
from server.protocol.head import Layouts
from server.recording import Recording
from server.regions import RegionLimits, Regions
from server.router.live.replicas import fleet_of
from server.router.router import Router
from server.router.table import ServingTable
from server.state.changes import Changes, events_of
from server.statistics import model_statistics

SWITCH_INTERVAL = 1e-4  # seconds: at the default 5 ms a busy loop starves thread lanes for seconds (measured)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server answers; `grpc` and `admin` are empty where it doesn't."""

    http: str
    grpc: str
    metrics: str
    admin: str = ""


class App:
    """One server. `start`, then `addresses` and `ready_line`; `stop` drains and closes; `hurry` ends the drain's waits."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.table = ServingTable()
        self.recorder = Recorder(watched=settings.metrics.summaries)
        self.journal = Journal(settings.log)
        self.gate = Gate.from_settings(settings)
        self.router = Router(self.table)
        self.recording = Recording.from_settings(settings.recording)
        self.regions = _regions(settings)
        lending = Lending(self.regions, partial(self.gate.check, operation=Operation.SHARED_MEMORY), settings.limits.inflight_bytes)
        self.dials = Dials(settings, self.journal, self.router)
        self.dataplane = DataPlane(self.router, self.recorder, self.journal, lending, self.recording, self.dials.tracer)
        self.events = events_of(settings)
        self.fleet = fleet_of(settings, self.events, self.journal, self.recorder)
        changes = Changes(self.events, self.journal)
        self.control = ControlPlane(settings, self.table, self.recorder, self.journal, changes, self.dataplane.step)
        self.splits = Splits(self.table, self.router, self.events, self.journal)
        self.control.share_out_by(self.splits)
        self.trials = Trials(self.table, self.splits, self.events, self.journal, self.fleet, self.recorder)
        self.control.frozen = self.trials.frozen
        self._hurry = asyncio.Event()
        self._draining = False
        loop = asyncio.get_running_loop()
        layouts = Layouts()
        self._worker = JsonWorker(layouts)
        self.edge = InferEdge(self.dataplane, self.gate, _edge_limits(settings), loop, self._worker, layouts)
        statistics = partial(model_statistics, self.router, self.recorder)
        rest = build_rest(settings, self.gate, self.router, self.ready, statistics)
        add_admin(rest, self.gate, self.recorder.ring, self.control, changes)
        add_configuration(rest, self.gate, self.router)
        add_shared_memory(rest, self.gate, self.regions)
        add_generate(rest, self.edge)
        add_repository(rest, self.gate, self.control)
        add_settings(rest, self.gate, self.dials)
        add_weights(rest, self.gate, self.splits)
        add_canary(rest, self.gate, self.trials, self.router)
        add_experiments(rest, self.gate, self.trials, self.router)
        self.http = HttpServer(settings, rest if settings.admin.port is None else without_admin(rest), admin_only(rest), self.edge)
        self.router.on_steer = lambda: self.http.look_for(self.router.headers())
        servicer = Servicer(
            *(settings.server_name, EXTENSIONS, self.gate, self.router, self.control, self.ready),
            *(statistics, self.dials, self.regions),
        )
        self.grpc = GrpcServer(settings, self.edge, servicer)
        self.gpus = Gpus(lambda state: self.journal.lifecycle("gpus", state=state), nvml_library()) if settings.metrics.gpu else None
        latencies = Latencies(settings.metrics.histograms, settings.metrics.summaries)
        sources = Sources(self.recorder, self.gpus, latencies)
        self.metrics = MetricsServer(settings.host, settings.metrics_port, sources, live=lambda: True, ready=self.ready)
        self._probe = LoopProbe(loop, self.recorder)

    def ready(self) -> bool:
        """Whether load balancers should send requests here."""
        return not self._draining and self.control.ready() and self.trials.restored

    @property
    def addresses(self) -> Addresses:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        grpc = f"{host}:{self.grpc.port}" if self.grpc.port else ""
        admin = f"{host}:{self.http.admin_port}" if self.http.admin_port else ""
        return Addresses(f"{host}:{self.http.port}", grpc, f"{host}:{self.metrics.port}", admin)

    async def start(self) -> None:
        """Listen, then load. Requests for a model are refused with 503 until it is ready. Raises ConfigError."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self.metrics.start()
        if self.gpus is not None:
            self.gpus.start()
        await self._worker.start()
        await self.http.start()
        await self.grpc.start()
        self._probe.start()
        self.recorder.gauge("tidegate_connections", {}, lambda: float(self.http.connections))
        self.recorder.gauge("tidegate_inflight_bytes", {}, lambda: float(self.edge.inflight.used))
        if (recording := self.recording) is not None:
            self.recorder.gauge("tidegate_recording_dropped_total", {}, lambda: float(recording.dropped))
            self.recorder.gauge("tidegate_recording_bytes", {}, lambda: float(recording.folder.used))
        if (sender := self.dials.sender) is not None:
            self.recorder.gauge("tidegate_traces_dropped_total", {}, lambda: float(sender.dropped))
        self.journal.lifecycle("starting", pid=os.getpid(), repository=str(self.settings.repository), **_as_facts(self.addresses))
        self.fleet.start()
        await self._restore()
        await self.control.load_all()
        self.trials.begin()

    async def _restore(self) -> None:
        """Take up what the state holds. One that others share may come later: no baseline is known before that, so nor is this ready."""
        try:
            await self.splits.restore()
            await self.trials.restore()
        except Unavailable as error:
            if self.fleet.fence is None and self.fleet.reachable:
                raise
            self.journal.lifecycle("state_not_read", level="error", reason=str(error))

    def ready_line(self) -> str:
        """What is printed on stdout once, when the models are loaded."""
        models: dict[str, Any] = {}
        for row in self.control.index():
            best = models.get(row.name)
            models[row.name] = "READY" if "READY" in (best, row.state) else str(row.state)
        return orjson.dumps({"event": "ready", **_as_facts(self.addresses), "models": models}).decode()

    def hurry(self) -> None:
        """End the waits of a drain: a second signal."""
        self._hurry.set()

    async def stop(self, *, drain: bool = True) -> None:
        """Not ready at once, still accepting for `drain_delay`, then finish every connection within `drain_timeout`, then close."""
        self._draining = True
        self.events.end()
        self.journal.lifecycle("draining", delay_s=self.settings.drain_delay, timeout_s=self.settings.drain_timeout)
        if drain:
            await self._wait(asyncio.sleep(self.settings.drain_delay))
            deadline = monotonic() + self.settings.drain_timeout
            timeout = self.settings.drain_timeout
            await self._wait(asyncio.gather(self.http.drain(timeout), self.grpc.drain(timeout)))
            await self._wait(asyncio.wait_for(self.control.drain(), max(0.1, deadline - monotonic())))
        self._probe.stop()
        await self.grpc.close()
        await self.http.close()
        await self.trials.close()
        await self.control.close()
        self._worker.close()
        self.regions.unregister()
        self.metrics.close()
        if self.gpus is not None:
            self.gpus.close()
        if self.recording is not None:
            self.recording.close()
        await self.fleet.close()
        self.events.close()
        self.dials.close()
        self.journal.lifecycle("stopped")
        self.journal.close()

    async def _wait(self, work: Any) -> None:
        """Wait for `work` or for `hurry`, whichever comes first."""
        task = asyncio.ensure_future(work)
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({task, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for pending in (task, hurry):
            if not pending.done():
                pending.cancel()
        await asyncio.gather(task, hurry, return_exceptions=True)


def _as_facts(addresses: Addresses) -> dict[str, str]:
    facts = {"http": addresses.http, "grpc": addresses.grpc, "metrics": addresses.metrics, "admin": addresses.admin}
    return {name: address for name, address in facts.items() if address}


def _regions(settings: Settings) -> Regions:
    limits = RegionLimits(settings.limits.regions, settings.limits.region_bytes)
    return Regions(allowed="shared-memory" in settings.allow, limits=limits)


def _edge_limits(settings: Settings) -> EdgeLimits:
    limits = settings.limits
    return EdgeLimits(
        max_body=limits.max_body,
        max_json_body=limits.max_json_body,
        json_offload=limits.json_offload,
        inflight_bytes=limits.inflight_bytes,
        body_timeout=limits.body_timeout,
        keep_alive=settings.keep_alive,
        pipeline_depth=limits.pipeline_depth,
        pipeline_bytes=limits.pipeline_bytes,
        max_header_bytes=limits.max_header_bytes,
    )
