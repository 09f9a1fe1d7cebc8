"""Steps models through their precisions by themselves: sees what each is asked for, asks its ladder, has it switched, and says why.

The ladder decides, the stage acts. Rules: while an operator's choice holds nothing is stepped, and what would be is shown; while the model
is being switched or loaded nothing is decided; a precision to which a step failed isn't tried again for a while, each time for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic, time
from typing import Any, Protocol

from server.control.precision.models import Model, second_of_day
from server.control.precision.rungs import rungs_of, settings_of
from server.engine.engine import Engine
from server.errors import InvalidRequest, NotFound, Superseded, TidegateError
from server.logs import Journal
from server.metrics.catalogue import LADDER_STEPS, LADDER_UTILIZATION
from server.metrics.recorder import Recorder
from server.precision.ladder import Decision, Ladder, Policy, Reason
from server.router.table import ServedVersion, ServingTable, engines_of

TICK = 1.0  # seconds
LADDER, SCHEDULE = "ladder", "schedule"
FAILED = "failed"


class Stage(Protocol):
    """What steps are made on; the control plane is one."""

    frozen: set[str]

    def chosen(self, name: str) -> str | None:
        """What an operator chose over the ladder."""
        ...

    def switching(self, name: str) -> bool:
        """Whether the model is being switched or loaded just now."""
        ...

    async def switch(self, name: str, precision: str | None, who: str, why: str) -> None:
        """As ControlPlane.switch: an operator's choice."""
        ...

    async def step(self, name: str, precision: str | None, who: str, why: str) -> None:
        """As ControlPlane.step: the server's own."""
        ...


@dataclass(frozen=True, slots=True)
class Clocks:
    """`now` is monotonic, `wall` is Unix time; both in seconds."""

    now: Callable[[], float] = monotonic
    wall: Callable[[], float] = time


class Stepping:
    """In the event loop. `look` is one look at all models; `run` looks until it's cancelled."""

    def __init__(self, table: ServingTable, stage: Stage, recorder: Recorder, journal: Journal, clocks: Clocks | None = None) -> None:
        self._table = table
        self._stage = stage
        self._recorder = recorder
        self._journal = journal
        self._clocks = clocks or Clocks()
        self._models: dict[str, Model] = {}

    async def run(self) -> None:
        """Look each TICK."""
        try:
            while True:
                await asyncio.sleep(TICK)
                self.look()
        finally:
            for model in self._models.values():
                if model.task is not None:
                    model.task.cancel()

    def look(self) -> None:
        """Decide for each model that has several precisions, and begin what is to be done."""
        for served in list(self._several()):
            self._decide(served)
        for name in self._models.keys() - set(self._table.names()):
            self._forget(name)

    def _several(self) -> Iterator[ServedVersion]:
        for name in self._table.names():
            served = self._table.default(name)
            if served is not None and served.engine is not None and len(served.variants) > 1:
                yield served

    def _forget(self, name: str) -> None:
        model = self._models.pop(name)
        if model.task is not None:
            model.task.cancel()

    def _decide(self, served: ServedVersion) -> None:
        model, name = self._of(served), served.model
        model.asked.note(self._clocks.now(), self._engines(name))
        if model.task is not None or self._stage.switching(name):
            return
        self._follow(model, served)
        decision = model.decision = model.ladder.decide([each.rung for each in model.costed], model.sight)
        self._show(name, model)
        own = model.ladder.settings.policy is not Policy.FIXED and self._stage.chosen(name) is None
        if own and decision.precision != model.ladder.active:
            model.task = asyncio.ensure_future(self._step(name, model, decision))

    def _engines(self, name: str) -> list[Engine]:
        return [engine for served in self._table.versions(name) for engine in engines_of(served)]

    def _of(self, served: ServedVersion) -> Model:
        """What is known of the model, its ladder as model.yaml has it now."""
        model = self._models.get(served.model)
        if model is None:
            assert served.engine is not None
            model = Model(served.config, Ladder(settings_of(served.config), served.engine.key.precision))
            self._models[served.model] = model
        elif model.config is not served.config:
            model.config, model.ladder.settings = served.config, settings_of(served.config)
        return model

    def _follow(self, model: Model, served: ServedVersion) -> None:
        """Bring what the ladder is asked with up to now."""
        assert served.engine is not None
        name, now, active = served.model, self._clocks.now(), served.engine.key.precision
        if model.ladder.active != active:  # somebody else switched
            model.ladder.stepped(active, now)
        if served.offered and model.ladder.settings.active != served.offered[0]:
            model.ladder.settings = replace(model.ladder.settings, active=served.offered[0])
        model.costed = [model.barred(each, now) for each in rungs_of(served)]
        model.sight = replace(
            model.sight,
            now=now,
            rate=model.asked.rate,
            ahead=model.asked.ahead(model.step_seconds + TICK),
            rows=model.asked.sizes,
            frozen=name in self._stage.frozen,
            second=second_of_day(self._clocks.wall(), served.config.precision.time_zone),
        )

    async def _step(self, name: str, model: Model, decision: Decision) -> None:
        begun = self._clocks.now()
        who = SCHEDULE if model.ladder.settings.policy is Policy.SCHEDULE else LADDER
        try:
            await self._stage.step(name, decision.precision, who, model.why(decision))
        except Superseded:
            pass  # somebody asked for another switch meanwhile: that's seen at the next look
        except TidegateError as error:
            found = model.failed(decision.precision, self._clocks.now(), str(error))
            self._count(name, model, decision.precision, FAILED)
            facts = {"model": name, "precision": decision.precision, "reason": found.why, "again_in_s": found.wait}
            self._journal.lifecycle("precision_step_failed", level="warning", **facts)
        else:
            model.step_seconds = self._clocks.now() - begun
            self._stepped(name, model, decision)
        finally:
            model.task = None

    def _stepped(self, name: str, model: Model, decision: Decision) -> None:
        model.failures.pop(decision.precision, None)
        model.ladder.stepped(decision.precision, self._clocks.now())
        self._count(name, model, decision.precision, str(decision.reason))

    def _count(self, name: str, model: Model, precision: str, reason: str) -> None:
        model.steps[precision, reason] = model.steps.get((precision, reason), 0) + 1
        self._show(name, model)

    def _show(self, name: str, model: Model) -> None:
        """The metrics; again at each look, since those of a precision end when it's evicted."""
        for precision, reason in model.steps:
            labels = {"model": name, "precision": precision, "reason": reason}
            self._recorder.gauge(LADDER_STEPS.name, labels, partial(model.count, (precision, reason)))
        for precision, _ in model.decision.figures if model.decision is not None else ():
            self._recorder.gauge(LADDER_UTILIZATION.name, {"model": name, "precision": precision}, partial(model.utilization, precision))

    async def step(self, name: str, who: str, why: str, *, down: bool) -> None:
        """Step now, whatever the load: for an operator, or for an alert's action. Under policy ladder it's a step like the ladder's own,
        taken back when there's room; else it holds until it's cleared.

        Raises NotFound, InvalidRequest where there's no rung to step to, and what a switch raises.
        """
        served = self._table.default(name)
        if served is None or served.engine is None:
            raise NotFound(f"no version of a model '{name[:255]}' serves")
        model = self._of(served)
        self._follow(model, served)
        found = model.ladder.neighbour([each.rung for each in model.costed], model.sight, down=down)
        if found.reason is Reason.NO_BETTER:
            left = "".join(f"; {precision} is left out: {skip}" for precision, skip in found.skipped)
            raise InvalidRequest(f"model '{name}' has no precision {'below' if down else 'above'} {model.ladder.active} to step to{left}")
        own = model.ladder.settings.policy is Policy.LADDER and self._stage.chosen(name) is None
        await (self._stage.step if own else self._stage.switch)(name, found.precision, who, why)
        self._stepped(name, model, found)

    def told(self, name: str) -> dict[str, Any] | None:
        """How a model's precision is chosen and what would be done next, as JSON; None where there's nothing to choose."""
        served = next((each for each in self._several() if each.model == name), None)
        if served is None:
            return None
        model = self._of(served)
        self._follow(model, served)
        return model.told(self._stage.chosen(name), self._clocks.now())
