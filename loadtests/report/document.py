"""A run as a document: what `--json` writes, and what two runs are compared by. JSON Schema: docs/schemas/loadtest.json.

Latencies are kept as histograms by second, of buckets 1 % wide, so that a quantile's noise can be told from a change.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtests.samples import Figures, Floats, Outcome, Samples, by_kind, figures
from loadtests.scenario import Objective, Scenario
from server.errors import ConfigError

SCHEMA_VERSION = 1
LEAST, GROWTH = 1e-5, 1.01  # seconds of the first bucket's end, and each one's end over the one's before
MOST_BYTES = 256 << 20

Counts = NDArray[np.int64]


class Block(BaseModel):
    """One second of a run: latencies by bucket, and how many requests were due, failed or refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    due: int
    answered: int
    refused: int
    failed: int
    good: int
    buckets: dict[int, int] = Field(description="Number of the latency's bucket → answers in it.")


class Told(BaseModel):
    """Figures of a run or of one kind of request; seconds and shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    requests: int
    offered: float
    answered: float
    rows: float
    refused: float
    failed: float
    good: float | None
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    most: float | None
    lag: float | None


class Held(BaseModel):
    """One limit of the scenario's `slo`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float | None
    limit: float
    met: bool


class Report(BaseModel):
    """All of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    tidegate: str
    scenario: dict[str, Any]
    url: str
    begun: str = Field(description="When, in UTC.")
    seconds: float
    whole: Told
    kinds: tuple[Told, ...]
    slo: tuple[Held, ...]
    client_cpu: float = Field(description="Share of a core that the generator took.")
    trusted: bool = Field(description="False where the generator itself fell behind.")
    why: dict[str, int] = Field(description="Reason of a failure or refusal → how often.")
    batch_rows: dict[int, int] = Field(description="Rows of the runs that answers told of → how often.")
    queue_p50: float | None
    queue_p99: float | None
    compute_p50: float | None
    compute_p99: float | None
    blocks: tuple[Block, ...]


def report_of(scenario: Scenario, samples: Samples, url: str, begun: str, version: str) -> Report:
    """The document of a run."""
    within = scenario.slo.within
    whole = figures(samples, within)
    runs = samples.runs
    rows, counts = np.unique([run.batch_rows for run in runs], return_counts=True) if runs else (np.zeros(0), np.zeros(0))
    queue, compute = (np.sort([getattr(run, name) for run in runs]) for name in ("queue", "compute"))
    return Report(
        tidegate=version,
        scenario=scenario.model_dump(mode="json", exclude_defaults=True),
        url=url,
        begun=begun,
        seconds=whole.seconds,
        whole=_told("all", whole),
        kinds=tuple(_told(name, each) for name, each in by_kind(samples, within)),
        slo=tuple(held(scenario.slo, whole)),
        client_cpu=samples.client_cpu,
        trusted=trusted(whole, samples.client_cpu),
        why=samples.why,
        batch_rows={int(row): int(count) for row, count in zip(rows, counts, strict=True)},
        queue_p50=_at(queue, 0.5),
        queue_p99=_at(queue, 0.99),
        compute_p50=_at(compute, 0.5),
        compute_p99=_at(compute, 0.99),
        blocks=tuple(blocks_of(samples, within)),
    )


def held(slo: Objective, found: Figures) -> list[Held]:
    """Each limit and whether it was kept. A figure that there's none of isn't."""
    most = {name: found.quantiles[name] for name in ("p50", "p90", "p99", "p999")} | {"errors": found.failed, "refused": found.refused}
    least = {"goodput": found.good, "rate": found.answered}
    kept: list[Held] = []
    for name, value in (most | least).items():
        limit = getattr(slo, name)
        if limit is None:
            continue
        known = value is not None and math.isfinite(value)
        met = known and (value <= limit if name in most else value >= limit)
        kept.append(Held(name=name, value=value if known else None, limit=limit, met=met))
    return kept


def trusted(found: Figures, client_cpu: float) -> bool:
    """Whether the generator kept up: it sent in time, next to what was measured, and had a core to itself."""
    behind = found.lag > max(0.002, 0.2 * found.quantiles["p99"])
    return not behind and client_cpu < 0.95


def blocks_of(samples: Samples, within: float | None) -> list[Block]:
    """What came of the requests of each second, by when they were due."""
    seconds = np.floor(samples.due - samples.begin).astype(np.int64)
    latency = samples.done - samples.due
    blocks = []
    for second in range(max(1, round(samples.end - samples.begin))):
        chosen = samples.measured & (seconds == second)
        outcome = samples.outcome[chosen]
        answered = latency[chosen][outcome == Outcome.ANSWERED]
        numbers, counts = np.unique(bucket_of(answered), return_counts=True)
        blocks.append(
            Block(
                due=int(chosen.sum()),
                answered=len(answered),
                refused=int((outcome == Outcome.REFUSED).sum()),
                failed=int((outcome >= Outcome.FAILED).sum()),
                good=len(answered) if within is None else int((answered <= within).sum()),
                buckets={int(number): int(count) for number, count in zip(numbers, counts, strict=True)},
            )
        )
    return blocks


def bucket_of(latency: Floats) -> Counts:
    """The number of each latency's bucket."""
    numbers: Counts = np.ceil(np.log(np.maximum(latency, LEAST) / LEAST) / math.log(GROWTH)).astype(np.int64)
    return numbers


def bucket_end(numbers: Counts) -> Floats:
    """The longest latencies that count into buckets, seconds."""
    ends: Floats = LEAST * np.power(GROWTH, numbers)
    return ends


def read_report(path: Path) -> Report:
    """A report from its file. Raises ConfigError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES} bytes, which no report is")
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ConfigError(f"{path}: not a report of `tidegate loadtest run --json`: {where}: {first['msg']}") from error


def report_schema() -> dict[str, Any]:
    """JSON Schema of the document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}


def _told(name: str, found: Figures) -> Told:
    quantiles = {key: _number(value) for key, value in found.quantiles.items()}
    return Told(
        name=name,
        requests=found.requests,
        offered=found.offered,
        answered=found.answered,
        rows=found.rows,
        refused=found.refused,
        failed=found.failed,
        good=found.good,
        mean=_number(found.mean),
        most=_number(found.most),
        lag=_number(found.lag),
        **quantiles,
    )


def _at(ordered: Floats, q: float) -> float | None:
    return float(np.quantile(ordered, q)) if len(ordered) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
