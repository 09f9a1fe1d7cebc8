"""What each model's requests are shared out by: model.yaml's weights, an operator's over them, an experiment's over both.

An operator's weights are a document of the state: they come back with the server, hold until they're cleared, and have the versions that
they name loaded whatever the model's version policy says. In the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from time import time
from typing import Any, TypeAlias

from server.errors import Conflict, InvalidRequest, NotFound, Unavailable
from server.logs import Journal
from server.repository.declare.routing import Routing, Sticky, read_sticky, weights_fault
from server.router.router import Router
from server.router.rules import split
from server.router.table import ServingTable
from server.router.traffic import Traffic
from server.state.base import Document, Event
from server.state.events import Events

ROOM = "weights"
"""Of the state: documents by model."""
NOTHING = Routing()
BY_POLICY = "the version policy"
Load: TypeAlias = Callable[[str], Awaitable[None]]
"""Looks at a model's files again and serves what is offered now."""
Weights: TypeAlias = Mapping[str, float]


class Splits:
    """By model's name. `also` are the versions that are to be loaded beside those of the version policy; `load` has that done."""

    def __init__(self, table: ServingTable, router: Router, events: Events, journal: Journal) -> None:
        self.also: dict[str, tuple[str, ...]] = {}
        self.load: Load = _nothing
        self._table = table
        self._router = router
        self._events = events
        self._journal = journal
        self._declared: dict[str, Routing] = {}
        self._chosen: dict[str, Weights] = {}
        self._trials: dict[str, Traffic] = {}

    async def restore(self) -> None:
        """Take up what the state holds. A document that makes no sense is left, and told of. Raises Unavailable."""
        for model, weights in (await self._read()).items():
            self._hold(model, weights)

    async def follow(self, *, emptied: bool) -> None:
        """Take up what other servers have changed. What holds here goes on holding where the state was emptied. Raises Unavailable."""
        found = await self._read()
        for model in self._chosen.keys() - found.keys():
            if not emptied:
                self._hold(model, None)
        for model, weights in found.items():
            if weights != self._chosen.get(model):
                self._hold(model, weights)
                if self._table.versions(model) and not self._table.ready(model).issuperset(self.also[model]):
                    await self.load(model)

    def declare(self, model: str, routing: Routing) -> None:
        """What a model's own configuration says now."""
        self._declared[model] = routing
        self._steer(model)

    def under(self, model: str, traffic: Traffic | None) -> None:
        """An experiment shares a model's requests out from now on; None: no more."""
        if traffic is None:
            self._trials.pop(model, None)
        else:
            self._trials[model] = traffic
        self._steer(model)

    def sticky(self, model: str) -> Sticky | None:
        """Where the model's configuration has the sticky key."""
        text = self._declared.get(model, NOTHING).sticky
        return None if text is None else read_sticky(text)

    def weights(self, model: str) -> Weights | None:
        """What holds now but for an experiment, None for the version policy."""
        return self._chosen.get(model) or self._declared.get(model, NOTHING).weights

    def read(self, model: str) -> dict[str, Any]:
        """What holds, what was said by whom, and what is ready. Raises NotFound."""
        self._must_be(model)
        declared, chosen = self._declared.get(model, NOTHING), self._chosen.get(model)
        trial, weights = self._trials.get(model), self.weights(model)
        if trial is not None and trial.rules is not None:
            weights, by = dict(zip(trial.rules.versions, trial.rules.weights, strict=True)), "an experiment"
        elif weights is None:
            by = BY_POLICY
        else:
            by = "the admin API" if chosen is not None else "model.yaml"
        default = self._table.default(model)
        return {
            "model": model,
            "weights": weights or ({default.version: 100.0} if default is not None else {}),
            "by": by,
            "declared": declared.weights,
            "chosen": chosen,
            "sticky": declared.sticky,
            "ready": sorted(self._table.ready(model), key=int),
        }

    async def choose(self, model: str, weights: Weights, who: str, why: str = "asked for through the admin API") -> None:
        """Have weights hold over model.yaml's until they're cleared; versions that aren't loaded are, first. What holds already isn't
        written again.

        Raises NotFound, InvalidRequest for weights or versions that can't be used, Conflict while an experiment has the model's requests,
        Unavailable where the state can't be written: nothing changed then."""
        self._must_be(model)
        self._must_be_free(model)
        if fault := weights_fault(weights):
            raise InvalidRequest(f"model '{model}': weights: {fault}")
        if weights == self._chosen.get(model):
            return
        await self.serve(model, [version for version, weight in weights.items() if weight > 0])
        self._must_be_free(model)
        await self.keep(model, weights, who, why)

    async def clear(self, model: str, who: str) -> None:
        """Have model.yaml's weights hold again. Raises as `choose` does."""
        self._must_be(model)
        self._must_be_free(model)
        if model in self._chosen:
            await self.keep(model, None, who, "cleared through the admin API")

    async def serve(self, model: str, versions: list[str]) -> None:
        """See to it that versions serve. Raises InvalidRequest with the reason why one can't."""
        if missing := [version for version in versions if version not in self._table.ready(model)]:
            before = self.also.get(model, ())
            self.also[model] = tuple({*before, *missing})
            await self.load(model)
            for version in versions:
                if version not in self._table.ready(model):
                    why = self._why_not(model, version)
                    self.also[model] = before
                    await self.load(model)  # the index needn't go on naming what isn't there
                    raise InvalidRequest(why)

    async def keep(self, model: str, weights: Weights | None, who: str, why: str) -> None:
        """Write weights down and let them hold, None for model.yaml's. Raises Unavailable."""
        was = self._told(model)
        declared = self._declared.get(model, NOTHING).weights
        now = told(weights or declared)
        document: Document | None = None if weights is None else {"weights": dict(weights)}
        await self._events.write(ROOM, model, document, Event(time(), who, "weights", model, was, now, why))
        self._hold(model, weights)

    async def _read(self) -> dict[str, Weights]:
        found: dict[str, Weights] = {}
        for model, document in (await self._events.read(ROOM)).items():
            weights = document.get("weights")
            if not isinstance(weights, dict) or (fault := weights_fault(weights)):
                fault = fault if isinstance(weights, dict) else f"expected percentages by version, got {str(weights)[:80]}"
                self._journal.lifecycle("weights_not_restored", level="error", model=model, reason=fault)
            else:
                found[model] = weights
        return found

    def _hold(self, model: str, weights: Weights | None) -> None:
        if weights is None:
            self._chosen.pop(model, None)
        else:
            self._chosen[model] = weights
        self._steer(model)

    def _steer(self, model: str) -> None:
        trial, weights = self._trials.get(model), self.weights(model)
        chosen = {version for version, weight in self._chosen.get(model, {}).items() if weight > 0}
        self.also[model] = tuple(chosen.union(trial.rules.versions if trial is not None and trial.rules is not None else ()))
        if trial is not None:
            self._router.steer(model, trial)
        else:
            self._router.steer(model, Traffic(split(model, weights), self.sticky(model)) if weights is not None else None)

    def _told(self, model: str) -> str:
        return told(self.weights(model))

    def _must_be(self, model: str) -> None:
        if not self._table.versions(model):
            raise NotFound(f"no model '{model[:255]}' is known here")

    def _must_be_free(self, model: str) -> None:
        if model in self._trials:
            raise Conflict(f"model '{model}': an experiment shares its requests out; end that first (`tidegate canary abort {model}`)")

    def _why_not(self, model: str, version: str) -> str:
        served = self._table.version(model, version)
        known = ", ".join(sorted(self._table.ready(model), key=int)) or "none"
        if served is None:
            return f"model '{model}' has no version {version}; ready are: {known}"
        return f"model '{model}' version {version} can't be sent requests, it's {served.state}: {served.reason}; ready are: {known}"


def told(weights: Weights | None) -> str:
    """Weights as people read them."""
    return ", ".join(f"{version}: {weight:g} %" for version, weight in weights.items()) if weights else BY_POLICY


async def _nothing(_: str) -> None:
    raise Unavailable("the models aren't loaded yet")
