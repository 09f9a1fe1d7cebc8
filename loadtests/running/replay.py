"""A recorded trace as a plan: requests like those that came, at the times at which they came. docs/recording.md says what a trace holds.

Recorded tensors aren't sent again, only requests of the same models, rows, lengths, priorities, tenants and deadlines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtests.asking import ModelFacts, questions
from loadtests.clients.base import Client, tenant_headers
from loadtests.quantities import Distribution
from loadtests.running.plan import NO_HEADERS, Plan, Shot
from loadtests.scenario import MOST_REQUESTS, Asked, Values
from server.errors import ConfigError

LEAD = 0.5  # seconds before the first request, so that none is late because the run begins


class Line(BaseModel):
    """An arrival of a recording or an incident's file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    t: float = Field(ge=0, allow_inf_nan=False)
    model: str = Field(max_length=255)
    rows: int = Field(ge=1, le=1 << 16)
    length: int = Field(default=1, ge=1, le=1 << 20)
    priority: int = Field(default=0, ge=0)
    tenant: str = Field(default="", max_length=64)
    deadline: float | None = Field(default=None, gt=0, allow_inf_nan=False)


def read_lines(path: Path, only: str = "") -> list[Line]:
    """The arrivals of a recording's folder or file, or of an incident's file, by time. Raises ConfigError that names file and line."""
    files = sorted(path.glob("arrivals-*.jsonl")) if path.is_dir() else [path]
    lines = sorted((line for file in files for line in _lines(file) if not only or line.model == only), key=lambda line: line.t)
    if not lines:
        raise ConfigError(f"{path}: no arrivals{f' of model {only!r}' if only else ''} in it")
    if len(lines) > MOST_REQUESTS:
        raise ConfigError(f"{path}: {len(lines):,} arrivals, more than {MOST_REQUESTS:,}: give one of its files")
    return lines


def _lines(file: Path) -> Iterator[Line]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: can't be read: {error.strerror}") from error
    for number, raw in enumerate(content.splitlines(), 1):
        try:
            document = orjson.loads(raw)
            if isinstance(document, dict) and document.get("event") == "arrival":
                yield Line.model_validate(document)
        except (orjson.JSONDecodeError, ValidationError) as error:
            if number == content.count(b"\n") + 1:  # a line that was being written
                return
            raise ConfigError(f"{file}:{number}: not an arrival: {str(error).splitlines()[0]}") from error


async def replayed(lines: Sequence[Line], speed: float, values: dict[str, Values], client: Client, explain: float) -> Plan:
    """The plan that asks as `lines` did, `speed` times as fast. Raises ConfigError where a model isn't there."""
    models = tuple(dict.fromkeys(line.model for line in lines))
    facts = {model: await client.facts(model, "") for model in models}
    maker = _Maker(models, facts, values, client, explain)
    begin = lines[0].t
    due = np.asarray([LEAD + (line.t - begin) / speed for line in lines])
    return Plan(models, due, [maker.shot(line) for line in lines], 0.0, float(due[-1]) + 1e-3)


class _Maker:
    """Makes each different request once."""

    def __init__(
        self, models: Sequence[str], facts: dict[str, ModelFacts], values: dict[str, Values], client: Client, explain: float
    ) -> None:
        self._kinds = {model: number for number, model in enumerate(models)}
        self._facts = facts
        self._values = values
        self._client = client
        self._explain = explain
        self._random = np.random.default_rng(1)
        self._made: dict[tuple[object, ...], tuple[Shot, Shot]] = {}

    def shot(self, line: Line) -> Shot:
        key = (line.model, line.rows, line.length, line.priority, line.tenant, line.deadline)
        if key not in self._made:
            self._made[key] = self._new(line)
        return self._made[key][self._random.random() < self._explain]

    def _new(self, line: Line) -> tuple[Shot, Shot]:
        facts = self._facts[line.model]
        names = {each.name for each in facts.inputs}
        asked = Asked(
            model=line.model,
            rows=Distribution(value=line.rows),
            length=Distribution(value=line.length),
            values={name: said for name, said in self._values.items() if name in names},
            priority=line.priority,
            timeout=line.deadline,
            tenant=line.tenant,
        )
        kind = self._kinds[line.model]
        question = questions(kind, asked, facts, self._random)[0]
        headers = tenant_headers(line.tenant)
        plain, explained = (Shot(self._client.prepare(question, told, headers), NO_HEADERS, kind, question.rows) for told in (False, True))
        return plain, explained
