"""Brings what is served of a model to what its files and its operators say: opens versions, swaps them for others, takes them down.

Whoever changes a model holds its lock. A version that is loaded again is opened beside the one that serves and takes its place at once;
then the old one answers what it took and is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias
from weakref import WeakValueDictionary

from server.config import Settings
from server.control.admissions import Admissions
from server.control.ensembles import Ensembles
from server.control.loading import Loader
from server.control.notices import Notices
from server.control.overrides import Override, Overrides, Wish
from server.control.precision.precisions import Precisions
from server.control.serving import Serving
from server.ensemble import Start
from server.errors import ConfigError, ModelDefect, Unavailable
from server.lanes.pad_proof import pad_fault
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.repository.configs.reading import Values
from server.repository.declare.routing import Routing
from server.repository.declare.said import Loadable
from server.repository.marks import Mark, mark_of
from server.repository.store import Entry, Listing, Store, paths_below
from server.router.table import ServedVersion, ServingTable, State

NOT_LOADED, UNLOADED = "not loaded", "unloaded"

Declare: TypeAlias = Callable[[str, Routing], None]
"""Told how a model's own configuration shares its requests out, before its versions are loaded."""


class Versions:
    """Its parts are its owner's, the control plane's, too."""

    def __init__(self, settings: Settings, store: Store, table: ServingTable, recorder: Recorder, journal: Journal, start: Start) -> None:
        """`start` runs an ensemble's steps."""
        self._settings = settings
        self._store = store
        self._table = table
        self._recorder = recorder
        self._journal = journal
        self.loader = Loader(settings)
        self.notices = Notices(table, recorder, journal, paths_below(settings.repository))
        self.precisions = Precisions(table)
        self.admissions = Admissions(table)
        self.overrides = Overrides(upload="upload" in settings.allow)
        self.ensembles = Ensembles(table, recorder, journal, start)
        self.declare: Declare = lambda name, routing: None
        self.on_ready: Callable[[Loadable], None] = lambda loadable: None  # told of each version that serves from now on
        self._serving = Serving(table, recorder, journal)
        self._marks: dict[tuple[str, str], tuple[Values, Mark]] = {}  # of what was loaded last
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, name: str) -> asyncio.Lock:
        """Held while a model is changed, so that two who ask at once have it done one after the other."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def find(self, name: str, wish: Wish) -> tuple[Override, Listing]:
        """What is to hold for a model, and the model with that. Raises Unavailable."""
        override = await self.loader.run(self.overrides.kept, name, wish)
        store = Store(override.place) if override.place else self._store
        try:
            return override, await self.loader.run(store.find, name, override.values)
        except ConfigError as error:
            self._journal.lifecycle("repository_not_readable", level="warning", reason=str(error))
            raise Unavailable(f"failed to load '{name[:255]}': the model repository can't be read now") from error

    def announce(self, name: str, version: str, wanted: bool) -> None:
        """Have the index show a version that doesn't serve yet, and whether it's to."""
        state, reason = (State.LOADING, "") if wanted else (State.UNAVAILABLE, NOT_LOADED)
        self._table.put(ServedVersion(name, version, state, reason))

    async def apply(self, name: str, listing: Listing) -> dict[str, str]:
        """Serve what the repository offers of one model, then take down what it no longer does; version → reason of what can't be served.
        What is no longer offered goes on until something else serves."""
        faults = {problem.version: self.notices.fault(name, problem.version, problem.reason) for problem in listing.problems}
        offered = [(self.precisions.over(entry), version) for entry in listing.entries for version in entry.versions]
        for entry in listing.entries:
            self.declare(name, entry.routing)
            for warning in entry.warnings:
                self._journal.lifecycle("configuration_passed_over", level="warning", model=name, reason=warning)
        for entry, version in offered:
            if reason := await self._load(entry, version):
                faults[version] = reason
        if not faults or any(self._serves(name, version) for _, version in offered):
            kept = {version for _, version in offered} | faults.keys()
            for served in self._table.versions(name):
                if served.version not in kept:
                    await self.take_down(served, forget=True)
        return faults

    def _serves(self, name: str, version: str) -> bool:
        served = self._table.version(name, version)
        return served is not None and served.serving is not None

    async def _load(self, entry: Entry, version: str) -> str:
        """Why a version can't be served as its files are now, "" once it is."""
        mark = entry.over, await self.loader.run(mark_of, entry.path, version)
        old = self._table.version(entry.name, version)
        gone = old.serving if old is not None else None
        if old is not None and gone is not None and self._marks.get((entry.name, version)) == mark:
            old.reason = old.note
            return ""
        if gone is None:
            self.announce(entry.name, version, wanted=True)
        try:
            loadable, opened = await self.loader.open(entry, version)
        except ModelDefect as error:
            return self.notices.fault(entry.name, version, str(error))
        if gone is not None and gone.key.precision != loadable.spec.precision:
            self._recorder.close(gone.key)  # its labels end with it
        self._marks[entry.name, version] = mark
        if opened is None:
            self.ensembles.add(loadable)
        else:
            unpadded = await pad_fault(opened.lanes[0], loadable.padding) if loadable.padding and opened.warmup.batched else ""
            self.notices.ready(served := self._serving.serve(loadable, opened, unpadded))
            self.admissions.renew(served)
            self.on_ready(loadable)
        if old is not None and gone is not None:
            await self.loader.retire(old, self._settings.drain_timeout)
        return ""

    def forget(self, name: str, version: str) -> None:
        """Have a version loaded again though its files are the same: something else that it depends on isn't."""
        self._marks.pop((name, version), None)

    async def take_down(self, served: ServedVersion, *, forget: bool = False) -> None:
        """Stop serving a version in order; `forget` takes it out of the index too."""
        front = served.serving
        if front is not None:
            self._table.put(ServedVersion(served.model, served.version, State.UNLOADING, platform=served.platform, leaving=served))
            await self.loader.retire(served, self._settings.drain_timeout)
            self._recorder.close(front.key)
            self._recorder.ring.routing((monotonic(), served.model, served.version, UNLOADED))
            self._journal.lifecycle("model_unloaded", model=served.model, version=served.version)
        self._marks.pop((served.model, served.version), None)
        if forget or not served.version:
            self._table.remove(served.model, served.version)
        else:
            self._table.put(ServedVersion(served.model, served.version, State.UNAVAILABLE, UNLOADED))
