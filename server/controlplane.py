"""Loads and unloads model versions and says what is there.

Loads run one at a time in a thread of their own; serving goes on beside them.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from server.config import Settings
from server.control.ensembles import Ensembles
from server.control.serving import Serving
from server.ensemble import Start
from server.errors import ModelDefect
from server.explain import capacity_of
from server.lanes.opening import LanePlan, Opened, open_lanes
from server.lanes.pad_proof import pad_fault
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.repository.loader import Loadable, describe
from server.repository.store import Entry, Store
from server.router.table import ServedVersion, ServingTable, State
from server.timeslice import LONG, take_turns


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A line of the repository index."""

    name: str
    version: str
    state: str
    reason: str


class ControlPlane:
    def __init__(self, settings: Settings, store: Store, table: ServingTable, recorder: Recorder, journal: Journal, start: Start) -> None:
        """`start` runs an ensemble's steps."""
        self._settings = settings
        self._store = store
        self._table = table
        self._recorder = recorder
        self._journal = journal
        # Process lanes' children end with the thread that started them: this one lives as long as the lanes.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=take_turns, initargs=(LONG,))
        self._root = _paths_below(settings.repository)
        self._serving = Serving(table, recorder, journal)
        self._ensembles = Ensembles(table, recorder, journal, start)
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
        if opened is None:
            self._ensembles.add(loadable)
            return
        unpadded = await pad_fault(opened.lanes[0], loadable.padding) if loadable.padding and opened.warmup.batched else ""
        served = self._serving.serve(loadable, opened, unpadded)
        self._table.put(served)
        self._recorder.ring.routing((monotonic(), entry.name, version, "ready"))
        if not capacity_of(served).feasible:
            self._journal.lifecycle("objective_not_feasible", level="warning", model=entry.name, version=version, reason=served.reason)
        self._journal.lifecycle(
            "model_ready", model=entry.name, version=version, platform=served.platform, lanes=served.lanes, note=served.reason
        )

    def _open(self, entry: Entry, version: str, loop: asyncio.AbstractEventLoop) -> tuple[Loadable, Opened | None]:
        """What to serve, and its lanes; an ensemble has none."""
        loadable = describe(entry, version, self._settings)
        if loadable.config.ensemble is not None:
            return loadable, None
        lanes, batching = loadable.config.lanes, loadable.config.batching
        warmup = loadable.config.warmup
        rows = () if warmup.skip or loadable.config.decoupled else warmup.rows or (1, 4, 16, batching.max_rows)
        plan = LanePlan(
            kind=lanes.kind,
            count=lanes.count or self._settings.lanes.count,
            threads=lanes.threads or self._settings.lanes.threads,
            rows=tuple(sorted({row for row in rows if row <= batching.max_rows})),
            trust_batch_axis=loadable.trust_batch_axis,
            memory_limit=lanes.memory_limit or 0,
            pin=lanes.pin,
            run_limit=lanes.run_limit,
            decoupled=loadable.config.decoupled,
        )
        return loadable, open_lanes(loadable.spec, plan, loop)

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
        await self._ensembles.drain()
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


def _paths_below(repository: Path) -> re.Pattern[str]:
    """Matches the repository's own part of a path to something in it, as it was given and as links and the working folder make it."""
    spellings = sorted({str(repository), str(repository.absolute()), str(repository.resolve())}, key=len, reverse=True)
    return re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, spellings))})/")
