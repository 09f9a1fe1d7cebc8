"""Loads and unloads model versions and says what is there.

Loads run one at a time in a thread of their own; serving goes on beside them. One that can't be loaded changes nothing but the index,
which says why. Who asks for loads is `model_control`: nobody (none), the files (poll) or clients (explicit).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from server.config import Settings
from server.control.engines.builds import EngineBuilds
from server.control.overrides import Wish
from server.control.precision.precisions import ASKED, Precisions
from server.control.precision.stepping import Stepping
from server.control.routing.splits import Splits
from server.control.versions import NOT_LOADED, UNLOADED, Versions
from server.ensemble import Start
from server.errors import ConfigError, ModelDefect, NotFound, Unavailable
from server.logs import Journal
from server.metrics.recorder import Recorder
from server.repository.marks import Watcher
from server.router.table import ServingTable, State, engines_of
from server.state.changes import Changes

EVERY_MODEL = "*"
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A line of the repository index."""

    name: str
    version: str
    state: str
    reason: str


class ControlPlane:
    def __init__(
        self, settings: Settings, table: ServingTable, recorder: Recorder, journal: Journal, changes: Changes, start: Start
    ) -> None:
        """`changes` is where to write down what changes, `start` runs an ensemble's steps."""
        self._settings = settings
        self._table = table
        self._journal = journal
        self._versions = Versions(settings, table, recorder, journal, changes, start)
        self._store = self._versions.store
        self._loader, self._notices = self._versions.loader, self._versions.notices
        self._overrides, self._ensembles = self._versions.overrides, self._versions.ensembles
        self.admissions = self._versions.residents.admissions
        self.precisions = Precisions(self._versions, table, journal, changes)
        self.engines = EngineBuilds(self._versions, table, settings.engines, journal)
        self.stepping = Stepping(table, self, recorder, journal)
        self.precisions.sections["stepping"] = self.stepping.told
        self._wanted: set[str] = set()  # the models that were to be loaded; `ready` waits for them
        self._work: set[asyncio.Task[None]] = set()
        self.frozen: set[str] = set()  # models whose ladder mustn't step now: an experiment runs on them
        self.loaded = False

    async def load_all(self) -> None:
        """Load what `model_control` says. A model that can't be served is listed with its reason; the others serve. Raises ConfigError
        where the state can't be read."""
        await self.precisions.restore()
        await self.admissions.restore()
        watcher = Watcher(await self._loader.run(self._store.marks)) if self._settings.model_control == "poll" else None
        listing = await self._loader.run(self._store.scan)
        names = sorted({entry.name for entry in listing.entries} | {problem.name for problem in listing.problems})
        self._wanted.update(self._wanted_of(names))
        for name in self._wanted.difference(names):
            self._notices.unavailable(name, "", f"no such model: expected the folder {self._settings.repository / name}")
        for entry in listing.entries:
            for version in entry.versions:
                self._versions.announce(entry.name, version, entry.name in self._wanted)
        due = [name for name in names if name in self._wanted]
        for name in due:  # which grows by an ensemble's parts
            async with self._versions.lock(name):
                await self._versions.apply(name, listing.of(name))
            parts = [part for part in self._parts(name) if part in names and part not in self._wanted]
            self._wanted.update(parts)
            due += parts
        self.loaded = True
        self._start(self.stepping.run())
        if watcher is not None:
            self._start(self._poll(watcher))

    async def _poll(self, watcher: Watcher) -> None:
        """Follow what changes in the repository, once it has come to rest."""
        while True:
            await asyncio.sleep(self._settings.model_control_poll)
            try:
                marks = await self._loader.run(self._store.marks)
            except ConfigError as error:  # what serves goes on; the folder may come back
                self._journal.lifecycle("repository_not_readable", level="warning", reason=str(error))
                continue
            for name in watcher.changed(marks):
                await self._follow(name)

    async def _follow(self, name: str) -> None:
        async with self._versions.lock(name):
            listing = await self._loader.run(self._store.find, name)
            if listing.entries or listing.problems:
                self._wanted.add(name)
                await self._versions.apply(name, listing)
                return
            self._wanted.discard(name)
            for served in self._table.versions(name):
                await self._versions.take_down(served, forget=True)

    def _wanted_of(self, names: list[str]) -> list[str]:
        wish = self._settings.load_model
        return names if self._settings.model_control != "explicit" or EVERY_MODEL in wish else list(wish)

    async def load(self, name: str, config: str | None = None, files: Mapping[str, bytes] = NO_FILES) -> None:
        """Load a model as its files are now, or load it again where they changed, and return once it serves. `config` is a ModelConfig
        as JSON that is laid over the model's own, `files` are its files in place of the repository's; both hold until it's unloaded.

        Raises Unavailable where clients don't control models, Denied where they bring no files, NotFound for a model that isn't there,
        InvalidRequest, and ModelDefect where a version can't be served; what served before goes on then.
        """
        self._refuse_unless_explicit()
        await self._to_its_end(self._load_model(name, self._overrides.wish(config, files)))

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Answer what the model took, refuse what comes, and give back what it held; with `dependents` the parts of an ensemble's too.

        Raises Unavailable where clients don't control models, NotFound for one that isn't there.
        """
        self._refuse_unless_explicit()
        parts = self._parts(name) if dependents else []
        await self._to_its_end(self._unload_model(name))
        for part in parts:
            if part in self._wanted:
                await self._to_its_end(self._unload_model(part))

    def _refuse_unless_explicit(self) -> None:
        if self._settings.model_control != "explicit":
            raise Unavailable(
                "explicit model load / unload is not allowed if polling is enabled: "
                f"this server runs with model_control {self._settings.model_control}, it takes explicit"
            )

    async def _load_model(self, name: str, wish: Wish) -> None:
        async with self._versions.lock(name):
            override, listing = await self._versions.find(name, wish)
            if not listing.entries and not listing.problems:
                raise NotFound(f"failed to load '{name[:255]}', failed to poll from model repository: there is no such model")
            self._wanted.add(name)
            faults = await self._versions.apply(name, listing)
            await self._loader.run(partial(self._overrides.settle, name, override, serves=not faults))
        for part in self._parts(name):
            if part not in self._wanted:
                with suppress(NotFound, ModelDefect):  # the ensemble's own reason says what it waits for
                    await self._load_model(part, Wish())
        ensembles = [served for served in self._table.versions(name) if served.config.ensemble is not None]
        faults |= {served.version: served.reason for served in ensembles if served.state is State.UNAVAILABLE}
        if faults:
            told = "; ".join(f"version {version or 'any'} is at UNAVAILABLE state: {reason}" for version, reason in faults.items())
            raise ModelDefect(f"failed to load '{name}', {told}")

    async def _unload_model(self, name: str) -> None:
        async with self._versions.lock(name):
            if not self._table.versions(name):
                raise NotFound(f"failed to unload '{name[:255]}': there is no such model")
            self._wanted.discard(name)
            for served in self._table.versions(name):
                await self._versions.take_down(served)
            await self.precisions.forget(name)
            await self._loader.run(self._overrides.forget, name)

    async def switch(self, name: str, precision: str | None, who: str = "", why: str = ASKED) -> None:
        """Serve a model in another precision, None for what model.yaml says. One that is loaded takes its place at once, between two
        batches; another is opened beside the one that serves and warmed up first. It holds, also over a restart, until it's cleared or the
        model is unloaded.

        Raises NotFound, InvalidRequest, ModelDefect where it can't be served so (what served goes on), Superseded by a later switch.
        """
        await self._to_its_end(self.precisions.switch(name, precision, (who, why)))

    async def step(self, name: str, precision: str | None, who: str, why: str) -> None:
        """The same by the server itself: it isn't remembered, and an operator's switch ends it; None goes back to what holds then."""
        await self._to_its_end(self.precisions.switch(name, precision, (who, why), stepped=True))

    async def pin_out(self, name: str, precision: str, who: str, why: str, version: str = "") -> None:
        """Have a precision not answer for a while, twice as long each time; of one version, or of all that have it. Where it answers now,
        the most exact other one takes its place first. Raises NotFound, InvalidRequest where there's no other, ModelDefect."""
        await self._to_its_end(self.precisions.pin_out(name, precision, (who, why), version))

    async def unpin(self, name: str, precision: str, who: str, why: str = ASKED, version: str = "") -> None:
        """Let a precision answer again. Raises NotFound, InvalidRequest where it isn't pinned out."""
        await self._to_its_end(self.precisions.unpin(name, precision, (who, why), version))

    def chosen(self, name: str) -> str | None:
        """The precision that an operator chose over the model's own configuration and its ladder, None for none."""
        return self.precisions.chosen(name)

    def stepped(self, name: str) -> str | None:
        """The precision that the server stepped to by itself, None while the model's own configuration says."""
        return self.precisions.stepped(name)

    def switching(self, name: str) -> bool:
        """Whether a model is being loaded or switched just now."""
        return self._versions.lock(name).locked()

    def share_out_by(self, splits: Splits) -> None:
        """Have `splits` told of what models' configurations say, and the versions that it names loaded."""
        self._store.also, self._versions.declare, splits.load = splits.also, splits.declare, self.refresh

    async def refresh(self, name: str) -> None:
        """Serve what is offered of a model now. What can't be served says so in the index. Raises Unavailable."""
        await self._to_its_end(self._refresh(name))

    async def _refresh(self, name: str) -> None:
        async with self._versions.lock(name):
            _, listing = await self._versions.find(name, Wish())
            await self._versions.apply(name, listing)

    def _parts(self, name: str) -> list[str]:
        """The models that an ensemble is made of, none of another model's."""
        ensembles = (served.config.ensemble for served in self._table.versions(name))
        return sorted({step.model for ensemble in ensembles if ensemble is not None for step in ensemble.steps})

    async def look(self) -> None:
        """Bring models into the index that came into the repository since the last look, and take out those that never were loaded and
        are gone. Only where clients load models: else the index shows what was or will be loaded."""
        if self._settings.model_control != "explicit" or not self.loaded:
            return
        try:
            listing = await asyncio.to_thread(self._store.scan)
        except ConfigError:  # what serves goes on; the index says what it knew
            return
        there = {(entry.name, version) for entry in listing.entries for version in entry.versions}
        for served in list(self._table):
            if served.serving is None and served.reason in (NOT_LOADED, UNLOADED) and (served.model, served.version) not in there:
                self._table.remove(served.model, served.version)
        for name, version in there:
            if not self._table.versions(name):
                self._versions.announce(name, version, wanted=False)

    def index(self, only_ready: bool = False) -> list[IndexRow]:
        """What the repository holds and how each version is."""
        rows = (IndexRow(entry.model, entry.version, entry.state, entry.reason) for entry in self._table)
        return [row for row in rows if not only_ready or row.state == State.READY]

    def ready(self) -> bool:
        """Whether the server may be sent requests, as `ready_when` has it: all models that were to be loaded, any, or those named."""
        if not self.loaded:
            return False
        rule = self._settings.ready_when
        if rule == "any":
            return any(self._table.default(name) for name in self._table.names()) or not self._wanted
        return all(self._table.default(name) is not None for name in (self._wanted if rule == "all" else rule))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for `work`, which goes on where whoever asked goes away."""
        await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def drain(self) -> None:
        """Wait until every engine has answered all that it took."""
        await self._ensembles.drain()
        await asyncio.gather(*(engine.drain() for entry in self._table for engine in engines_of(entry)))

    async def close(self) -> None:
        """End loads that are under way and give every lane back."""
        await self.engines.close()
        work = list(self._work)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        self.precisions.close()
        self.admissions.close()
        for entry in self._table:
            await self._versions.residents.withdraw(entry.leaving or entry, 0.0)
            entry.engine = entry.leaving = None
        await self._versions.residents.close()
        await asyncio.to_thread(self._overrides.close)
        self._loader.shutdown()
