"""A scenario: what is asked, how often, for how long, and what must come of it. YAML in, one frozen value out; docs/loadtests.md explains.

JSON Schema: docs/schemas/scenario.json (generated, tested). Errors name the file, the line and the nearest right word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from loadtests.quantities import Distribution, Rate, Ratio, Seconds, Section
from server.documents import read_yaml
from server.errors import ConfigError

SHIPPED = Path(__file__).parent / "scenarios"
MOST_REQUESTS = 2_000_000
"""Of one run: what was asked is kept whole, some 50 bytes a request."""


class Shape(Section):
    """How the rate goes over the run."""

    kind: Literal["constant", "ramp", "steps", "spike", "diurnal"] = Field(default="constant", description="constant holds `rate`.")
    to: Rate | None = Field(default=None, description="With ramp: the rate at the end. With spike: the peak. With diurnal: the highest.")
    rates: tuple[Rate, ...] = Field(default=(), max_length=64, description="With steps: rates of equal time, in order.")
    at: Ratio = Field(default=0.4, description="With spike: when it begins, as a share of the run.")
    lasts: Ratio = Field(default=0.2, description="With spike: how long it is, as a share of the run.")
    periods: float = Field(default=1.0, gt=0, le=1000, description="With diurnal: days in the run.")

    @model_validator(mode="after")
    def _whole(self) -> Shape:
        if self.kind in ("ramp", "spike", "diurnal") and self.to is None:
            raise ValueError(f"shape {self.kind} needs `to`, the other rate, such as to: 400/s")
        if self.kind == "steps" and not self.rates:
            raise ValueError("shape steps needs `rates`, such as rates: [100/s, 200/s]")
        return self


class Arrivals(Section):
    """When requests fall due, whatever the server does: an open loop."""

    process: Literal["poisson", "uniform", "gamma", "mmpp"] = Field(
        default="poisson", description="poisson: independent; uniform: evenly; gamma: with `cv`; mmpp: bursts between calm times."
    )
    rate: Rate = Field(default=100.0, description="Requests a second, such as 200/s.")
    cv: float = Field(default=2.0, gt=0, le=20, description="With gamma: standard deviation of the gaps over their mean; 1 is poisson.")
    burst: float = Field(default=4.0, gt=1, le=100, description="With mmpp: the rate in a burst over the mean rate.")
    burst_share: Ratio = Field(default=0.1, description="With mmpp: share of the time that is burst.")
    burst_lasts: Seconds = Field(default=1.0, gt=0, description="With mmpp: mean length of a burst.")
    shape: Shape = Shape()

    @model_validator(mode="after")
    def _bursts_fit(self) -> Arrivals:
        if self.process == "mmpp" and not 0 < self.burst * self.burst_share < 1:
            raise ValueError(f"mmpp: burst {self.burst:g} x burst_share {self.burst_share:g} must be under 1, or nothing is left between")
        return self


class Closed(Section):
    """A closed loop: each user asks again once it was answered. It overstates what a server bears; say an open loop for latencies."""

    users: int = Field(default=8, ge=1, le=4096, description="Requests in flight.")


class Values(Section):
    """What an input's elements are; by default what its datatype suggests."""

    low: float = Field(default=0.0, description="Least value (integers and floats).")
    high: float = Field(default=1.0, description="Largest value; integers include it.")
    file: Path | None = Field(default=None, description="npz file with an array of this input's name: rows are taken from it in turn.")

    @model_validator(mode="after")
    def _ordered(self) -> Values:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is more than high {self.high:g}")
        return self


class Sticky(Section):
    """A header that stays the same for one user."""

    header: str = Field(default="x-user-id", pattern=r"^[A-Za-z0-9-]{1,64}$")
    users: int = Field(default=100, ge=1, le=1_000_000, description="How many users there are.")


class Asked(Section):
    """One kind of request in the mix."""

    model: str = Field(max_length=255)
    version: str = Field(default="", max_length=32)
    share: float = Field(default=1.0, gt=0, description="Its part of all requests, relative to the others'.")
    rows: Distribution = Field(default=Distribution(), description="Rows of a request: 4, [1, 8] or a distribution.")
    length: Distribution | None = Field(default=None, description="Length of axes that vary besides the rows, such as tokens.")
    values: dict[str, Values] = Field(default={}, description="By input.")
    outputs: tuple[str, ...] = Field(default=(), description="Outputs asked for; none: all.")
    priority: int = Field(default=0, ge=0, le=16, description="1 is the highest; 0: not said.")
    timeout: Seconds | None = Field(default=None, gt=0, description="The server's time to answer, as a request parameter.")
    tenant: str = Field(default="", max_length=64)
    precision: str = Field(default="", max_length=32)
    sticky: Sticky | None = None


class Target(Section):
    """How the server is asked."""

    protocol: Literal["http", "grpc", "grpc-stream"] = Field(default="http")
    format: Literal["binary", "json"] = Field(default="binary", description="With http: how tensors are written.")
    connections: int = Field(default=64, ge=1, le=4096, description="Most connections (http), calls in flight (grpc) or streams.")
    timeout: Seconds = Field(default=30.0, gt=0, description="The client's patience; then a request counts as failed.")


class Objective(Section):
    """What must come of the run, or `tidegate loadtest run` ends with status 3."""

    p50: Seconds | None = None
    p90: Seconds | None = None
    p99: Seconds | None = None
    p999: Seconds | None = None
    within: Seconds | None = Field(default=None, gt=0, description="A request is good if it was answered within this time.")
    goodput: Ratio | None = Field(default=None, description="Least share of all requests that must be good.")
    errors: Ratio | None = Field(default=None, description="Largest share of requests that fail; refused with 503 isn't failed.")
    refused: Ratio | None = Field(default=None, description="Largest share that is refused with 503.")
    rate: Rate | None = Field(default=None, description="Least answers a second.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Objective:
        if self.goodput is not None and self.within is None:
            raise ValueError("goodput needs `within`, the time that makes an answer good")
        return self


class Scenario(Section):
    """All of a scenario's file."""

    name: str = Field(default="", max_length=80)
    description: str = Field(default="", max_length=1000)
    target: Target = Target()
    duration: Seconds = Field(default=30.0, gt=0, le=86400)
    warmup: Seconds = Field(default=3.0, ge=0, le=3600, description="Time before that isn't measured.")
    seed: int = Field(default=1, ge=0)
    arrivals: Arrivals | None = None
    closed: Closed | None = None
    explain: Ratio = Field(default=0.05, description="Share of requests that ask the server for the facts of their run.")
    mix: tuple[Asked, ...] = Field(min_length=1, max_length=64)
    slo: Objective = Objective()

    @model_validator(mode="after")
    def _one_loop(self) -> Scenario:
        if self.arrivals is not None and self.closed is not None:
            raise ValueError("say `arrivals` (an open loop) or `closed`, not both")
        if self.arrivals is not None and self.most_due > MOST_REQUESTS:
            raise ValueError(
                f"about {self.most_due:,.0f} requests are due, more than {MOST_REQUESTS:,}: a lower rate or a shorter duration"
            )
        return self

    @property
    def open(self) -> Arrivals | None:
        """How requests fall due; None in a closed loop."""
        return None if self.closed is not None else self.arrivals or Arrivals()

    @property
    def most_due(self) -> float:
        """No more requests than about this fall due."""
        said = self.arrivals or Arrivals()
        return max(said.rate, said.shape.to or 0.0, *said.shape.rates, 0.0) * (self.duration + self.warmup)


def read_scenario(path: Path, over: Mapping[str, Any] | None = None) -> Scenario:
    """The scenario in a file, with `over` laid over its top level. Raises ConfigError that names file and line."""
    document = read_yaml(path)
    document.data.setdefault("name", path.stem)
    for section, values in (over or {}).items():
        told = document.data.get(section)
        document.data[section] = {**told, **values} if isinstance(told, dict) and isinstance(values, dict) else values
    return document.read_as(Scenario)


def find_scenario(name: str) -> Path:
    """A scenario's file by its path, or by the name of one that ships. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = sorted(SHIPPED.glob("*.yaml"))
    for file in shipped:
        if file.stem == name:
            return file
    raise ConfigError(f"no scenario {name!r}: neither a file nor one of those that ship: {', '.join(file.stem for file in shipped)}")


def scenario_schema() -> dict[str, Any]:
    """JSON Schema of a scenario's file."""
    schema = Scenario.model_json_schema()
    schema["title"] = "scenario.yaml"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
