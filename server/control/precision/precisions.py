"""Switches a model that serves to another precision, or back, without a request that notices; remembers what operators chose and what is
pinned out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from time import time
from typing import Any, TypeAlias

from server.control.overrides import Wish
from server.control.precision.choices import DEFAULT, Pin
from server.control.precision.residents import FilesChanged, answering
from server.control.precision.told import checked, told
from server.control.versions import Versions
from server.errors import ConfigError, InvalidRequest, ModelDefect, NotFound, Unavailable
from server.logs import Journal
from server.precision.variants import LOADED, State
from server.router.table import ServedVariant, ServedVersion, ServingTable
from server.state.base import Event
from server.state.changes import Changes

ROOM = "precision"
ASKED = "asked for through the admin API"
PIN_OVER = "its time is over"
LONGEST_WAIT = 3600.0  # seconds between two looks at whether a pin is over
Asked: TypeAlias = tuple[str, str]
"""Who, and why."""


@dataclass(frozen=True, slots=True)
class PrecisionRow:
    """A version of a model and its precisions: `active` answers, `available` are what its manifest has for this device."""

    version: str
    active: str
    available: tuple[str, ...]


class Precisions:
    """`sections` are what other parts tell of a model's precisions, by name: `read` shows them."""

    def __init__(self, versions: Versions, table: ServingTable, journal: Journal, changes: Changes) -> None:
        self._versions = versions
        self._choices = versions.choices
        self._residents = versions.residents
        self._table = table
        self._journal = journal
        self._changes = changes
        self._timers: dict[tuple[str, str, str], asyncio.TimerHandle] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._unkept: set[str] = set()  # models of which the state doesn't know what holds
        self.sections: dict[str, Callable[[str], Any]] = {}

    def chosen(self, name: str) -> str | None:
        """What an operator chose over model.yaml, None where that holds itself."""
        return self._choices.chosen(name)

    def stepped(self, name: str) -> str | None:
        """What the server itself went to, None where it didn't."""
        return self._choices.stepped(name)

    def rows(self, name: str) -> list[PrecisionRow]:
        """The versions of a model that serve, and their precisions. Raises NotFound where none does."""
        return [PrecisionRow(served.version, answering(served), tuple(served.variants)) for served in self._serving(name)]

    def read(self, name: str) -> dict[str, Any]:
        """All that is known of a model's precisions, as JSON. Raises NotFound."""
        versions = [told(served, self._choices.pins(name)) for served in self._serving(name)]
        chosen = self._choices.chosen(name)
        return {
            "model": name,
            "chosen": chosen,
            "stepped": self._choices.stepped(name),
            "remembered": name not in self._unkept,
            "differs": any(version["active"] != version["configured"] for version in versions),
            "versions": versions,
            **{section: tell(name) for section, tell in self.sections.items()},
        }

    async def restore(self) -> None:
        """Have what was kept hold again. Before any model is loaded. Raises ConfigError where the state can't be read."""
        try:
            kept = await self._changes.events.read(ROOM)
        except Unavailable as error:
            raise ConfigError(f"what operators set can't be read, so it couldn't be held to: {error}") from error
        for name, document in kept.items():
            try:
                self._choices.restore(name, document)
            except (KeyError, TypeError) as error:
                self._journal.lifecycle("state_not_understood", level="error", room=ROOM, model=name, why=repr(error))
            for (version, precision), pin in dict(self._choices.pins(name)).items():
                self._expect(name, version, precision, pin)

    async def switch(self, name: str, precision: str | None, asked: Asked, *, stepped: bool = False) -> None:
        """As ControlPlane.switch, and as ControlPlane.step where `stepped`."""
        turn = self._choices.ask(name)
        async with self._versions.lock(name):
            self._choices.check_newest(name, turn, precision)
            serving = self._serving(name)
            checked(serving, precision)
            was, before = ", ".join(map(answering, serving)), self._choices.held(name)
            self._choices.choose(name, precision, stepped=stepped)
            event = Event(0.0, asked[0], "precision", name, was, ", ".join(map(self._wanted, serving)), asked[1])
            try:
                await self._prepare(name, before)
            except (ModelDefect, Unavailable) as error:
                self._choices.put_back(name, before)
                self._activate(name)
                raise await self._not_switched(event, error) from error
            self._activate(name)
            await (self._changes.note(event) if stepped else self._kept(event))
            now = [answering(served) for served in self._serving(name)]
            self._journal.lifecycle("precision_switched", model=name, before=was, now=", ".join(now), who=asked[0], why=asked[1])

    async def hold(self, name: str, version: str, precision: str) -> None:
        """Load a variant if it isn't, and have it stay loaded until `release`, or until the model is loaded anew. Raises NotFound,
        InvalidRequest, ModelDefect."""
        async with self._versions.lock(name):
            for served, variant in self._having(name, precision, version):
                await self._residents.ready(served, precision)
                variant.holders += 1

    def release(self, name: str, version: str, precision: str) -> None:
        """Undo one `hold`. Nothing happens where the model isn't there any more."""
        served = self._table.version(name, version)
        variant = served.variants.get(precision) if served is not None else None
        if served is not None and variant is not None and variant.holders:
            variant.holders -= 1
            self._residents.tidy(served.variants)

    async def pin_out(self, name: str, precision: str, asked: Asked, version: str = "") -> None:
        """As ControlPlane.pin_out."""
        async with self._versions.lock(name):
            for served, variant in self._having(name, precision, version):
                if answering(served) == precision:
                    await self._replace(served, variant)
                pin = self._residents.pin(variant, asked[1])
                self._choices.pin(name, served.version, precision, pin)
                self._expect(name, served.version, precision, pin)
            seconds = max(pin.until for (_, pinned), pin in self._choices.pins(name).items() if pinned == precision) - time()
            await self._kept(Event(0.0, asked[0], "pin", name, precision, f"pinned out for {seconds:.0f} s", asked[1]))

    async def unpin(self, name: str, precision: str, asked: Asked, version: str = "") -> None:
        """As ControlPlane.unpin."""
        async with self._versions.lock(name):
            pinned = [at for at in self._choices.pins(name) if at[1] == precision and version in ("", at[0])]
            if not pinned:
                raise InvalidRequest(f"{precision[:32]!r} of model '{name[:255]}' isn't pinned out")
            for at in pinned:
                self._choices.pin(name, *at, None)
                timer = self._timers.pop((name, *at), None)
                if timer is not None:
                    timer.cancel()
                served = self._table.version(name, at[0])
                if served is not None and precision in served.variants:
                    self._residents.unpin(served.variants[precision], asked[1])
            await self._kept(Event(0.0, asked[0], "pin", name, precision, "may answer", asked[1]))
            for served in self._table.versions(name):  # back to what was asked for, where nobody else decides that
                if served.serving is not None and served.config.precision.policy == "fixed":
                    await self._versions.settle(served)

    async def forget(self, name: str) -> None:
        """A model is unloaded: what was chosen for it is cleared."""
        chosen = self._choices.chosen(name)
        self._choices.forget(name)
        if chosen is not None:
            await self._kept(Event(0.0, "", "precision", name, chosen, DEFAULT, "the model was unloaded"))

    def close(self) -> None:
        """Watch no pin any more."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._work:
            task.cancel()

    async def _prepare(self, name: str, before: tuple[str | None, str | None]) -> None:
        """Have ready what is wanted now, of every version that serves. Raises ModelDefect where that can't be; Unavailable."""
        for served in self._serving(name):
            try:
                await self._residents.ready(served, self._wanted(served))
            except FilesChanged:
                await self._load_anew(name, before)
                return
            except ModelDefect as error:
                raise ModelDefect(f"version {served.version}: {self._versions.notices.told(str(error))}") from error

    async def _load_anew(self, name: str, before: tuple[str | None, str | None]) -> None:
        """Load a model whose files are others than those that serve, in what is wanted now. Raises ModelDefect, Unavailable."""
        _, listing = await self._versions.find(name, Wish())
        faults = await self._versions.apply(name, listing)
        if faults:
            self._choices.put_back(name, before)
            await self._versions.apply(name, listing)  # those versions that had switched, back
            raise ModelDefect("; ".join(f"version {version}: {reason}" for version, reason in faults.items()))

    def _activate(self, name: str) -> None:
        """Have every version answer in what is wanted now, as far as that is loaded."""
        for served in self._table.versions(name):
            variant = served.variants.get(self._wanted(served)) if served.serving is not None else None
            if variant is not None and variant.state in LOADED:
                self._residents.activate(variant)
        for served in self._table.versions(name):
            self._residents.tidy(served.variants)

    async def _replace(self, served: ServedVersion, variant: ServedVariant) -> None:
        """Have another variant answer in the place of this one: a loaded one where there is one, the most exact first."""
        others = [each for each in served.variants.values() if each is not variant and each.state is not State.PINNED_OUT]
        for other in sorted(others, key=lambda each: each.state not in LOADED):
            with suppress(ModelDefect):
                self._residents.activate(await self._residents.ready(served, other.precision))
                return
        raise InvalidRequest(
            f"model '{served.model}' version {served.version}: {variant.precision} is the only precision that can answer, "
            "so it isn't pinned out"
        )

    def _wanted(self, served: ServedVersion) -> str:
        return self._choices.wanted(served.model, served.version, served.offered)

    def _serving(self, name: str) -> list[ServedVersion]:
        serving = [served for served in self._table.versions(name) if served.serving is not None]
        if not serving:
            raise NotFound(f"no version of a model '{name[:255]}' serves")
        if not all(served.variants for served in serving):
            raise NotFound(f"model '{name}' is an ensemble, which has no precision: ask for those of its parts")
        return serving

    def _having(self, name: str, precision: str, version: str) -> list[tuple[ServedVersion, ServedVariant]]:
        """Raises NotFound, InvalidRequest."""
        serving = [served for served in self._serving(name) if version in ("", served.version)]
        if not serving:
            raise NotFound(f"model '{name}' has no version {version[:32]!r} that serves")
        found = [(served, served.variants[precision]) for served in serving if precision in served.variants]
        if not found:
            checked(serving, precision)
        return found

    async def _not_switched(self, event: Event, error: ModelDefect | Unavailable) -> ModelDefect | Unavailable:
        text = f"model '{event.model}' still serves in {event.was}: it can't in {event.now}: {error}"
        await self._changes.note(replace(event, what="precision_failed", why=text))
        self._journal.lifecycle("precision_not_switched", level="warning", model=event.model, reason=str(error))
        return ModelDefect(text) if isinstance(error, ModelDefect) else error

    async def _kept(self, event: Event) -> None:
        """Keep what holds now. What was done for a reason isn't undone because it can't be written down."""
        self._unkept.discard(event.model)
        try:
            await self._changes.keep(ROOM, event.model, self._choices.document(event.model), event)
        except Unavailable as error:
            self._unkept.add(event.model)
            self._journal.lifecycle("event_not_kept", level="error", what=event.what, model=event.model, why=str(error))

    def _expect(self, name: str, version: str, precision: str, pin: Pin) -> None:
        """Look again when a pin is over."""
        key = name, version, precision
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        wait = min(LONGEST_WAIT, max(0.0, pin.until - time()))
        self._timers[key] = asyncio.get_running_loop().call_later(wait, partial(self._look, key))

    def _look(self, key: tuple[str, str, str]) -> None:
        name, version, precision = key
        pin = self._choices.pins(name).get((version, precision))
        if pin is not None and pin.until > time():
            self._expect(name, version, precision, pin)
        elif pin is not None:
            task = asyncio.ensure_future(self.unpin(name, precision, ("", PIN_OVER), version))
            self._work.add(task)
            task.add_done_callback(self._work.discard)
