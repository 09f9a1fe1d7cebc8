"""The shapes that named metrics have: histograms, gauges, counters, shares, and GPU figures from whoever has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from monitor.metrics.quantities import Unit
from monitor.metrics.query import Aggregate, Arithmetic, Either, Matcher, Over, Quantile, Query, Select
from server.metrics.catalogue import MODEL_LABELS

MODEL, INSTANCE, GPU = ("model",), ("instance",), ("instance", "gpu")


@dataclass(frozen=True, slots=True)
class Ask:
    """What an entry of the file asks for, defaults filled in. `q` is None for the mean; `change` wants the difference over `window`."""

    matchers: tuple[Matcher, ...]
    by: tuple[str, ...]
    window: float
    q: float | None = None
    change: bool = False


Build: TypeAlias = Callable[[Ask], Query]


@dataclass(frozen=True, slots=True)
class Named:
    """One named metric. `labels` are those that an entry may fix; `families` what it reads, the first of which shows its absence."""

    name: str
    unit: Unit
    what: str
    build: Build
    families: tuple[str, ...]
    labels: tuple[str, ...] = MODEL_LABELS
    by: tuple[str, ...] = MODEL
    window: float = 60.0
    comparison: str = ">"
    threshold: float | None = None
    q: float | None = None
    histogram: bool = False
    gauge: bool = False


def over(function: str, name: str, ask: Ask, *fixed: Matcher) -> Over:
    """`function` of the samples in the asked window."""
    return Over(function, Select(name, (*ask.matchers, *fixed)), ask.window)


def histogram(name: str, *fixed: Matcher) -> Build:
    """A quantile of a histogram, or the mean where no quantile is asked for."""

    def build(ask: Ask) -> Query:
        if ask.q is not None:
            return Quantile(ask.q, Aggregate("sum", ("le", *ask.by), over("rate", f"{name}_bucket", ask, *fixed)))
        total, count = (Aggregate("sum", ask.by, over("rate", f"{name}_{part}", ask, *fixed)) for part in ("sum", "count"))
        return Arithmetic("/", total, count)

    return build


def gauge(name: str, op: str = "max", function: str = "avg_over_time") -> Build:
    """A gauge's mean over the window; `op` joins the series that aren't told apart."""
    return lambda ask: Aggregate(op, ask.by, over("delta" if ask.change else function, name, ask))


def newest(name: str, op: str = "max") -> Build:
    """A gauge as it is now: for states, whose mean means nothing."""
    return lambda ask: Aggregate(op, ask.by, Select(name, ask.matchers))


def counted(function: str, name: str, *fixed: Matcher) -> Build:
    """How fast (rate) or how far (increase) a counter moved."""
    return lambda ask: Aggregate("sum", ask.by, over(function, name, ask, *fixed))


def share(part: Build, whole: Build) -> Build:
    """One over the other."""
    return lambda ask: Arithmetic("/", part(ask), whole(ask))


def first_of(own: Build, other: Build, scale: float = 1.0) -> Build:
    """`own` where the server or the monitor exports it, else DCGM's figure in its own unit."""
    return lambda ask: Either(own(ask), Arithmetic("*", other(ask), scale) if scale != 1.0 else other(ask), first=True)
