"""Has engines built that a version lacks on this GPU, one at a time, while its ONNX file serves; then the version is loaded again beside
itself, and takes its place.

An engine that can't be built is asked for once in this process's life: what failed stays in the version's reason, and its file can be read.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from server.config import Engines
from server.control.engines.child import COMMAND, log_of, run_build
from server.control.overrides import Wish
from server.control.versions import Versions
from server.errors import ModelDefect, Unavailable
from server.logs import Journal
from server.repository.declare.said import Loadable
from server.repository.devices.engines import BUILDING, EngineBuild
from server.router.table import ServingTable


class EngineBuilds:
    """`command` is what builds: the arguments of a build come after it."""

    def __init__(self, versions: Versions, table: ServingTable, settings: Engines, journal: Journal) -> None:
        self._versions = versions
        self._table = table
        self._settings = settings
        self._journal = journal
        self._tried: set[Path] = set()
        self._work: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self.command: Sequence[str] = COMMAND
        versions.on_ready = self.consider

    def consider(self, loadable: Loadable) -> None:
        """A version is served; have its engine built where it lacks one."""
        build = loadable.build
        if build is None or build.into in self._tried:
            return
        self._tried.add(build.into)
        task = asyncio.ensure_future(self._build(loadable.spec.model, loadable.spec.version, build))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def settle(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._work, return_exceptions=True)

    async def close(self) -> None:
        """End what is under way; what isn't whole leaves nothing in the cache."""
        for task in self._work:
            task.cancel()
        await self.settle()

    async def _build(self, name: str, version: str, build: EngineBuild) -> None:
        async with self._turn:
            facts = {"model": name, "version": version, "precision": build.precision}
            self._journal.lifecycle("engine_build_started", **facts, log=str(log_of(build)))
            begun = monotonic()
            try:
                fault = await run_build(build, self.command, self._settings.build_timeout)
                fault = fault or await self._swapped(name, version, build)
            except (ModelDefect, OSError, Unavailable) as error:
                fault = str(error)
            seconds = round(monotonic() - begun, 1)
            if fault:
                self._journal.lifecycle("engine_build_failed", level="warning", **facts, seconds=seconds, reason=fault)
                self._note(name, version, build, fault)
            else:
                self._journal.lifecycle("engine_built", **facts, seconds=seconds)

    async def _swapped(self, name: str, version: str, build: EngineBuild) -> str:
        """Load the version again, which finds its engine; why it isn't served by it. An engine that can't be served isn't kept."""
        async with self._versions.lock(name):
            served = self._table.version(name, version)
            if served is None or served.serving is None:
                return ""  # it was unloaded meanwhile; the engine is there for the next load
            self._versions.forget(name, version)
            _, listing = await self._versions.find(name, Wish())
            faults = await self._versions.apply(name, listing)
            if version in faults:
                with suppress(OSError):
                    shutil.rmtree(build.into)
                return f"it was built and can't be served: {faults[version]}"
            return ""

    def _note(self, name: str, version: str, build: EngineBuild, fault: str) -> None:
        """Say in the version's reason what became of it, in place of that it's being built."""
        served = self._table.version(name, version)
        if served is not None and served.serving is not None:
            told = f"building its {build.precision} engine failed: {fault}"
            served.note = served.reason = "; ".join([*(part for part in served.note.split("; ") if part != BUILDING), told])
