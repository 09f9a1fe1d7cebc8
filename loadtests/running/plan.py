"""What a run will ask, made whole before it begins: every request's due time, kind, body and headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.arrivals import due_times
from loadtests.asking import ModelFacts, Question, kinds_drawn, questions
from loadtests.clients.base import Client, Prepared, tenant_headers
from loadtests.samples import Floats
from loadtests.scenario import Asked, Scenario
from server.errors import ConfigError

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Shot:
    """A request as it goes out."""

    prepared: Prepared
    headers: Mapping[str, str]
    kind: int
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of a run. `due` rises, in seconds from the begin, one entry a shot; in a closed loop it's empty and the shots are asked
    over and over."""

    kinds: tuple[str, ...]
    due: Floats
    shots: Sequence[Shot]
    warmup: float
    end: float


async def plan(scenario: Scenario, client: Client) -> Plan:
    """Make a scenario's requests. Raises ConfigError where a model isn't there or doesn't take them, and for no request at all."""
    random = np.random.default_rng(scenario.seed)
    end = scenario.warmup + scenario.duration
    due = due_times(scenario.open, end, random) if scenario.open is not None else np.zeros(0)
    if scenario.open is not None and not len(due):
        raise ConfigError(f"scenario {scenario.name!r}: no request falls due in {end:g} s at {scenario.open.rate:g}/s")
    pools = [_Pool(number, asked, await _facts(client, asked), scenario, client, random) for number, asked in enumerate(scenario.mix)]
    count = len(due) if len(due) else 4096
    kinds = kinds_drawn(scenario.mix, count, random)
    shots = [pools[kind].shot(random) for kind in kinds]
    return Plan(names_of(scenario.mix), due, shots, scenario.warmup, end)


async def _facts(client: Client, asked: Asked) -> ModelFacts:
    return await client.facts(asked.model, asked.version)


class _Pool:
    """The requests of one kind, encoded: each as it is and with explain."""

    def __init__(self, kind: int, asked: Asked, facts: ModelFacts, scenario: Scenario, client: Client, random: np.random.Generator) -> None:
        self._asked = asked
        self._share = scenario.explain
        headers = tenant_headers(asked.tenant)
        made: Sequence[Question] = questions(kind, asked, facts, random)
        self._plain = [client.prepare(question, False, headers) for question in made]
        self._explained = [client.prepare(question, True, headers) for question in made]
        self._made = made
        self._next = 0

    def shot(self, random: np.random.Generator) -> Shot:
        """The next one in turn."""
        place = self._next % len(self._made)
        self._next += 1
        question = self._made[place]
        prepared = (self._explained if random.random() < self._share else self._plain)[place]
        sticky = self._asked.sticky
        headers = {sticky.header: f"user-{random.integers(sticky.users)}"} if sticky is not None else NO_HEADERS
        return Shot(prepared, headers, question.kind, question.rows)


def names_of(mix: Sequence[Asked]) -> tuple[str, ...]:
    """A name for each kind: its model, and a number where several ask the same one."""
    models = [asked.model for asked in mix]
    return tuple(model if models.count(model) == 1 else f"{model} #{number + 1}" for number, model in enumerate(models))
